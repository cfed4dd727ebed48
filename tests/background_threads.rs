//! A background thread that dies is told to everybody, and nobody waits for it.
//!
//! The medium panics in the next call that a given thread makes. Each test kills one of the two threads that
//! way in the middle of its work, then writes, flushes, awaits, reads and closes under a watchdog.

mod common_durability;

use common_durability::{Hooked, Request, Watchdog, block_on, bytes_of, soak, within};
use sled::testing::{OpClass, Tuning, open_on};
use sled::transaction::TransactionError;
use sled::{Batch, Config, Db, Error};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

/// How soon the death must have been told.
const TOLD: Duration = Duration::from_secs(1);

/// A database whose every thread has something to do soon, with a few keys in it.
fn open(medium: &Hooked) -> Db {
    let tuning = Tuning {
        leaf_bytes: 512,
        redo_buffer: 4096,
        segment: 16 << 10,
        redo_budget: 64 << 10,
        ..Tuning::default()
    };
    let config = Config::new().cache_capacity(64 << 10).flush_every_ms(Some(20));
    let db = open_on(medium.clone(), &config, tuning).expect("works");
    for i in 0..50_u32 {
        db.insert(i.to_be_bytes(), bytes_of(u64::from(i), 100)).expect("works");
    }
    db.flush().expect("works");
    db
}

/// Kills `thread` before its next call of `class`.
fn kill(medium: &Hooked, thread: &'static str, class: OpClass) {
    kill_at(medium, thread, class, 1);
}

/// Kills `thread` before the so-manyth of its calls of `class` from now on; whether that has happened.
fn kill_at(medium: &Hooked, thread: &'static str, class: OpClass, call: u64) -> Arc<AtomicBool> {
    let is_dead = Arc::new(AtomicBool::new(false));
    let (dies, calls) = (Arc::clone(&is_dead), AtomicU64::new(0));
    let by_it = move |request: Request<'_>| {
        let is_its = request.class == class && std::thread::current().name() == Some(thread);
        // Relaxed: counted by one thread.
        is_its && calls.fetch_add(1, Ordering::Relaxed) + 1 == call
    };
    medium.before_next(by_it, move || {
        // Release: pairs with the Acquire of whoever asks.
        dies.store(true, Ordering::Release);
        // Without the message that a panic prints.
        resume_unwind(Box::new("the driver is gone"));
    });
    is_dead
}

fn names(error: &Error, thread: &str) -> bool {
    matches!(error, Error::ReportableBug(text) if text.contains(thread) && text.contains("the driver is gone"))
}

/// Everything that can be asked for after the death of `thread`.
fn check_told(db: &Db, thread: &str) {
    let told = |error: Error, by: &str| assert!(names(&error, thread), "{by}: {error}");
    told(db.insert("new", "1").expect_err("refused"), "insert");
    told(db.remove(0_u32.to_be_bytes()).expect_err("refused"), "remove");
    told(db.compare_and_swap("new", None::<&str>, Some("1")).expect_err("refused"), "compare_and_swap");
    told(db.update_and_fetch("new", |_| Some("1")).expect_err("refused"), "update_and_fetch");
    let changed = db.fetch_and_update(0_u32.to_be_bytes(), |_| Some("1"));
    told(changed.expect_err("refused"), "fetch_and_update");
    let mut batch = Batch::default();
    batch.insert("new", "1");
    told(db.apply_batch(batch).expect_err("refused"), "apply_batch");
    match db.transaction::<_, (), ()>(|tree| tree.insert("new", "1").map(drop).map_err(Into::into)) {
        Err(TransactionError::Storage(error)) => told(error, "transaction"),
        other => panic!("transaction: {other:?}"),
    }
    told(db.pop_min().expect_err("refused"), "pop_min");
    told(db.clear().expect_err("refused"), "clear");
    told(db.open_tree("new").expect_err("refused"), "open_tree");
    told(db.flush().expect_err("refused"), "flush");
    told(block_on(db.flush_async()).expect_err("refused"), "flush_async");
    told(db.global_error().expect_err("refused"), "global_error");
    for i in 0..50_u32 {
        let want = bytes_of(u64::from(i), 100);
        assert_eq!(db.get(i.to_be_bytes()).expect("works").as_deref(), Some(&want[..]), "reads go on");
    }
    let keys: sled::Result<Vec<_>> = db.iter().keys().collect();
    assert!(keys.expect("works").len() >= 50, "reads go on");
}

/// Writes from two threads until both are told of the death.
fn write_until_told(db: &Db, thread: &str) {
    std::thread::scope(|scope| {
        for writer in 0..2_u64 {
            scope.spawn(move || {
                for i in 0_u64.. {
                    let key = format!("w{writer}/{}", i % 4000);
                    if let Err(error) = db.insert(key, bytes_of(i * 2 + writer, 100)) {
                        assert!(names(&error, thread), "{error}");
                        return;
                    }
                }
            });
        }
    });
}

fn kill_while_writing(thread: &'static str, class: OpClass) {
    let dog = Watchdog::new(Duration::from_secs(20));
    dog.begin(format!("{thread} dies in a {class:?}"));
    let medium = Hooked::default();
    let db = open(&medium);
    kill(&medium, thread, class);
    write_until_told(&db, thread);
    let begun = Instant::now();
    check_told(&db, thread);
    dog.begin("closing");
    drop(db);
    assert!(begun.elapsed() < TOLD, "{:?}", begun.elapsed());
    dog.begin("opening again");
    medium.unhook();
    open(&medium);
}

#[test]
fn a_log_writer_that_dies_writing_is_told() {
    kill_while_writing("sled-log", OpClass::Write);
}

#[test]
fn a_log_writer_that_dies_syncing_is_told() {
    kill_while_writing("sled-log", OpClass::Sync);
}

#[test]
fn a_maintenance_thread_that_dies_writing_is_told() {
    kill_while_writing("sled-maintenance", OpClass::Write);
}

#[test]
fn a_maintenance_thread_that_dies_syncing_is_told() {
    kill_while_writing("sled-maintenance", OpClass::Sync);
}

/// Overwrites big and small values, so that all is done that the threads do, until that fails or for so many rounds.
fn work(db: &Db, rounds: u64) -> Result<(), Error> {
    for round in 0..rounds {
        for key in 0..60_u64 {
            let len = if key.is_multiple_of(16) { 2000 } else { 150 };
            // More than the cache has room for, half of it at rest, so that images are moved.
            let number = key * 7 % 60 + round * round % 41 * 60;
            db.insert(format!("work {number}"), bytes_of(round, len))?;
        }
        if round % 8 == 7 {
            db.remove(format!("work {round}"))?;
            block_on(db.flush_async())?;
        }
    }
    Ok(())
}

/// One run; whether the thread came as far as the call it was to die at.
fn die_at(thread: &'static str, class: OpClass, call: u64) -> bool {
    let medium = Hooked::default();
    let db = open(&medium);
    let mut subscriber = db.watch_prefix("work");
    let listener = std::thread::spawn(move || subscriber.by_ref().count());
    let is_dead = kill_at(&medium, thread, class, call);
    let worked = work(&db, 100);
    // Acquire: pairs with the Release before it dies.
    let died = is_dead.load(Ordering::Acquire);
    if died {
        let begun = Instant::now();
        assert!(within(TOLD, || db.global_error().is_err()), "not told in {TOLD:?}");
        check_told(&db, thread);
        assert!(begun.elapsed() < 2 * TOLD, "{:?}", begun.elapsed());
    } else {
        // From here on it may die as it likes.
        medium.unhook();
    }
    match worked {
        Ok(()) => {}
        Err(error) => assert!(died && names(&error, thread), "{error}"),
    }
    drop(db);
    let told = listener.join().expect("does not panic");
    assert!(told > 50, "{told} events");
    medium.unhook();
    let db = open(&medium);
    sled::testing::check_invariants(&db).expect("whole");
    for i in 0..50_u32 {
        assert!(db.get(i.to_be_bytes()).expect("works").is_some(), "{i} was flushed");
    }
    died
}

/// Each thread dies at each of its first calls of each class: everybody is told, nobody waits, subscribers see the end
/// once the database is closed, and nothing flushed is lost.
#[test]
fn a_thread_that_dies_at_any_call_is_told_and_held_up_by_nobody() {
    let dog = Watchdog::new(Duration::from_secs(20));
    for thread in ["sled-log", "sled-maintenance"] {
        for class in [OpClass::Read, OpClass::Write, OpClass::Sync, OpClass::Resize] {
            let calls = (1..=12 * soak()).filter(|call| {
                dog.begin(format!("{thread} dies at call {call} of {class:?}"));
                die_at(thread, class, *call)
            });
            let deaths = calls.count();
            println!("{thread} died {deaths} times in a {class:?}");
            // The log writer neither reads nor resizes.
            let expected = thread == "sled-maintenance" || matches!(class, OpClass::Write | OpClass::Sync);
            assert!(deaths > 0 || !expected, "{thread} never came to a {class:?}");
        }
    }
}

/// Nobody writes any more when the timer's flush dies: the next write is told all the same.
#[test]
fn a_death_while_nothing_is_written_is_told_to_the_next_write() {
    let dog = Watchdog::new(Duration::from_secs(20));
    dog.begin("the timer's flush");
    let medium = Hooked::default();
    let db = open(&medium);
    kill(&medium, "sled-log", OpClass::Sync);
    db.insert("last", "1").unwrap();
    let begun = Instant::now();
    while db.global_error().is_ok() {
        assert!(begun.elapsed() < TOLD, "not told in {TOLD:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    check_told(&db, "sled-log");
}

/// Those whose flush it was serving when it died get the error, and so do those who asked meanwhile.
#[test]
fn whoever_awaits_a_flush_is_told() {
    for class in [OpClass::Write, OpClass::Sync] {
        let dog = Watchdog::new(Duration::from_secs(20));
        dog.begin(format!("awaiting, {class:?}"));
        let medium = Hooked::default();
        let config = Config::new().flush_every_ms(None);
        let db = open_on(medium.clone(), &config, Tuning::default()).unwrap();
        db.insert("k", "v").unwrap();
        let by_it = move |request: Request<'_>| {
            request.class == class && std::thread::current().name() == Some("sled-log")
        };
        medium.before_next(by_it, || {
            // Time for all to ask.
            std::thread::sleep(Duration::from_millis(100));
            resume_unwind(Box::new("the driver is gone"));
        });
        let (sender, receiver) = mpsc::channel();
        for _ in 0..4 {
            let (db, sender) = (db.clone(), sender.clone());
            std::thread::spawn(move || sender.send(block_on(db.flush_async())));
        }
        // One that is never polled again, and one that is dropped, disturb nobody.
        let mut idle = Box::pin(db.flush_async());
        let _ = idle.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let mut gone = Box::pin(db.flush_async());
        let _ = gone.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(gone);
        for _ in 0..4 {
            let told = receiver.recv_timeout(TOLD).expect("somebody waits for ever");
            let error = told.unwrap_err();
            assert!(names(&error, "sled-log"), "{error}");
        }
        drop(idle);
        dog.begin("closing");
        drop(db);
    }
}
