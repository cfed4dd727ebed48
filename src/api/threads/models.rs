//! Models of how the background threads are woken, for the model checker.

use super::{Bell, FlushWaiter, Signals, Woken};
use crate::base::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::base::sync::check;
use loom::thread::spawn;
use std::sync::Arc;
use std::task::{Wake, Waker};

/// Whoever rings before the other waits is heard.
#[test]
fn a_bell_rung_before_the_wait_is_heard() {
    check(3, || {
        let shared = Arc::new((Bell::default(), AtomicBool::new(false)));
        let ringers = [(); 2].map(|()| {
            let shared = Arc::clone(&shared);
            spawn(move || {
                // Relaxed: ordered by the bell.
                shared.1.store(true, Ordering::Relaxed);
                shared.0.ring();
            })
        });
        assert_eq!(shared.0.wait(None), Woken::Rung);
        // Relaxed: ordered by the bell.
        assert!(shared.1.load(Ordering::Relaxed), "what was to be seen is seen");
        ringers.into_iter().for_each(|ringer| ringer.join().expect("no panic"));
        shared.0.stop();
        assert_eq!(shared.0.wait(None), Woken::Stop);
    });
}

/// What is written while the log writer takes off its timers rings its bell, or keeps the timers on.
#[test]
fn nothing_is_written_while_the_log_writer_sleeps() {
    check(4, || {
        let shared = Arc::new((Signals::default(), AtomicU64::new(0)));
        // It is awake because of something that was written before.
        shared.0.wrote(0);
        assert_eq!(shared.0.writer.wait(None), Woken::Rung);
        let writer = {
            let shared = Arc::clone(&shared);
            spawn(move || {
                // Relaxed: the end of the log, whose own orderings do not count here.
                shared.1.fetch_add(1, Ordering::Relaxed);
                shared.0.wrote(0);
            })
        };
        // Relaxed: as above.
        let quiet = shared.0.rest(|| shared.1.load(Ordering::Relaxed) == 0);
        writer.join().expect("no panic");
        assert!(shared.0.writer.state.lock().rung, "a write waits for ever; it was quiet: {quiet}");
    });
}

/// Whoever awaits a flush while the log writer ends is served, or told that there is none.
#[test]
fn nobody_awaits_a_log_writer_that_is_gone() {
    check(4, || {
        let signals = Arc::new(Signals::default());
        let awaiting = {
            let signals = Arc::clone(&signals);
            spawn(move || [signals.await_flush(), signals.await_flush()])
        };
        signals.close_waiters(&|| Ok(1));
        let waiters = awaiting.join().expect("no panic");
        for waiter in waiters.into_iter().flatten() {
            assert!(waiter.is_finished(), "it waits for ever");
        }
        assert!(signals.await_flush().is_none());
    });
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        // Relaxed: looked at after the join.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A task that finds no result is woken when there is one.
#[test]
fn whoever_polls_before_the_result_is_woken() {
    check(4, || {
        let waiter = Arc::new(FlushWaiter::default());
        let server = {
            let waiter = Arc::clone(&waiter);
            spawn(move || waiter.finish(Ok(1)))
        };
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let found = waiter.poll(&Waker::from(Arc::clone(&flag)));
        server.join().expect("no panic");
        // Relaxed: ordered by the join.
        assert!(found.is_some() || flag.0.load(Ordering::Relaxed), "the task sleeps for ever");
    });
}
