//! Reads that fail now and then, in a database just recovered, while others write and a checkpoint is made.

use super::common_durability::{Hooked, Random, bytes_of, open_tiny, soak};
use sled::testing::{CrashMode, OpClass, SimStorage, checkpoint};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Barrier;
use std::time::Duration;

const KEYS: u64 = 120;
const THREADS: u64 = 2;

thread_local! {
    /// Whether this thread cannot read.
    static CANNOT_READ: Cell<bool> = const { Cell::new(false) };
}

/// Writes keys of its own, some of which cannot be read just now; what was written.
fn write(db: &sled::Db, seed: u64, thread: u64) -> BTreeMap<u64, Vec<u8>> {
    let mut random = Random(seed * THREADS + thread);
    let mut last = BTreeMap::new();
    for step in 0..60 {
        let number = random.below(KEYS / THREADS) * THREADS + thread;
        let value = bytes_of(step * 31 + seed, 40);
        if db.insert(number.to_be_bytes(), &value[..]).is_ok() {
            last.insert(number, value);
        }
    }
    last
}

/// A checkpoint that cannot read a page logs the page's changes once more. That must not bring back what another thread,
/// for which reading worked, has overwritten meanwhile.
#[test]
fn changes_that_are_logged_again_undo_no_later_one() {
    let mut went_on = 0;
    for seed in 0..300 * soak() {
        let medium = SimStorage::new();
        let db = open_tiny(&medium, 256).expect("healthy");
        (0..KEYS).for_each(|n| drop(db.insert(n.to_be_bytes(), bytes_of(n, 60)).expect("healthy")));
        checkpoint(&db).expect("healthy");
        (0..KEYS).for_each(|n| drop(db.insert(n.to_be_bytes(), bytes_of(n + seed, 20)).expect("healthy")));
        db.flush().expect("healthy");
        // Recovery publishes the changes on pages that it does not read.
        let medium = medium.crash(seed, CrashMode::DropUnsynced);
        drop(db);
        let hooked = Hooked::on(medium.clone());
        let db = open_tiny(&hooked, 256).expect("healthy");
        let faulty = medium.clone();
        hooked.before(move |request| match request.class {
            OpClass::Read if CANNOT_READ.get() => faulty.fail(OpClass::Read, 0, true, ErrorKind::Other),
            // Time for others, in the midst of what it does.
            OpClass::Write if CANNOT_READ.get() => std::thread::sleep(Duration::from_micros(50)),
            _ => {}
        });
        let start = Barrier::new(THREADS as usize + 1);
        let written: Vec<_> = std::thread::scope(|scope| {
            let (db, start) = (&db, &start);
            let writer = |thread| {
                scope.spawn(move || {
                    start.wait();
                    write(db, seed, thread)
                })
            };
            let writers: Vec<_> = (0..THREADS).map(writer).collect();
            start.wait();
            CANNOT_READ.set(true);
            let made = checkpoint(db);
            CANNOT_READ.set(false);
            went_on += u64::from(made.is_ok() && medium.injected() > 0);
            writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
        });
        hooked.unhook();
        medium.heal();
        db.flush().expect("healthy");
        let again = open_tiny(&medium.crash(seed, CrashMode::DropUnsynced), 256).expect("healthy");
        for (number, value) in written.iter().flatten() {
            for (when, db) in [("before", &db), ("after", &again)] {
                let found = db.get(number.to_be_bytes()).expect("healthy");
                assert_eq!(found.as_deref(), Some(&value[..]), "seed {seed}, key {number}, {when} the crash");
            }
        }
    }
    assert!(went_on > 3, "{went_on} checkpoints went on without a page");
}
