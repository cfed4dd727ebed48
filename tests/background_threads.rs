//! A background thread that dies is told to everybody, and nobody waits for it.
//!
//! The medium panics in the next call that a given thread makes. Each test kills one of the two threads that
//! way in the middle of its work, then writes, flushes, awaits, reads and closes under a watchdog.

mod common_durability;

use common_durability::{Hooked, Request, Watchdog, block_on, bytes_of};
use sled::testing::{OpClass, Tuning, open_on};
use sled::{Config, Db, Error};
use std::panic::resume_unwind;
use std::sync::mpsc;
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
    let by_it =
        move |request: Request<'_>| request.class == class && std::thread::current().name() == Some(thread);
    // Without the message that a panic prints.
    medium.before_next(by_it, || resume_unwind(Box::new("the driver is gone")));
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
