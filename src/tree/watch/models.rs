//! Models of subscribing while others write and of ending, for the model checker.
//!
//! # How it works
//!
//! The code is the module's own; each thread registers with a collector of the model, as in the models of the pagecache.

use super::{Event, Wakes, Watchers, await_guards};
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::check;
use crossbeam_epoch::Collector;
use loom::thread::spawn;
use std::sync::Arc;
use std::sync::atomic::AtomicBool as Plain;

fn event() -> Event {
    Event::Remove { key: "k".into() }
}

/// Publishes a change, and says so to those who watch.
fn write(watchers: &Watchers, changed: &AtomicBool) {
    let emitter = watchers.emitter();
    // Release: pairs with the Acquire of the subscriber.
    changed.store(true, Ordering::Release);
    let mut wakes = Wakes::default();
    if let Some(mut emitter) = emitter {
        emitter.emit(&event(), &mut wakes);
    }
    wakes.wake();
}

/// Whoever begins to watch, and then does not find a change, gets it as an event.
#[test]
fn a_change_is_found_or_comes_as_an_event() {
    static CAME: Plain = Plain::new(false);
    static FOUND: Plain = Plain::new(false);
    check(3, || {
        let collector = Collector::new();
        let shared = Arc::new((Watchers::default(), AtomicBool::new(false)));
        let writer = {
            let (collector, shared) = (collector.clone(), Arc::clone(&shared));
            spawn(move || {
                let participant = collector.register();
                let _guard = participant.pin();
                write(&shared.0, &shared.1);
            })
        };
        let participant = collector.register();
        let queue = shared.0.list("".into());
        await_guards(|| participant.pin());
        // Acquire: pairs with the Release of the writer.
        let found = shared.1.load(Ordering::Acquire);
        writer.join().expect("no panic");
        let came = queue.waiting.lock().take();
        assert!(found || came == Some(event()), "a change is lost");
        CAME.fetch_or(came.is_some(), Ordering::Relaxed);
        FOUND.fetch_or(found && came.is_none(), Ordering::Relaxed);
    });
    assert!(CAME.load(Ordering::Relaxed) && FOUND.load(Ordering::Relaxed), "both were met");
}

/// Whoever waits for an event is not left waiting when the tree goes or the writer was faster, and gets what came before
/// the end; and nobody waits for a subscriber that goes.
#[test]
fn the_end_reaches_who_waits() {
    check(3, || {
        let watchers = Arc::new(Watchers::default());
        let (queue, other) = (watchers.list("".into()), watchers.list("".into()));
        let writer = {
            let watchers = Arc::clone(&watchers);
            spawn(move || {
                write(&watchers, &AtomicBool::new(false));
                watchers.end();
            })
        };
        watchers.forget(&other);
        assert_eq!(queue.next(None), Ok(Some(event())), "it came before the end");
        assert_eq!(queue.next(None), Ok(None), "the end");
        writer.join().expect("no panic");
        assert!(!watchers.any());
        assert_eq!(watchers.list("".into()).next(None), Ok(None), "too late");
    });
}
