//! A file system without room: an error of the kind that programs look for, and no harm.

use crate::children::Sequence;
use crate::common_durability::{Scratch, Watchdog};
use crate::mounts::{EXT4, Mount};
use sled::{Config, Db, Error, Result, testing};
use std::fs::remove_file;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

fn config(directory: &Path) -> Config {
    Config::new().path(directory).cache_capacity(1 << 20).segment_size(64 << 10).flush_every_ms(None)
}

fn says_full(error: &Error) {
    let full = matches!(error, Error::Io(e) if e.kind() == ErrorKind::StorageFull);
    assert!(full, "not said to be full: {error}");
}

/// A small file system, and who says when it hangs.
fn small(name: &str) -> Option<(Scratch, Mount, Watchdog)> {
    let scratch = Scratch::new(name);
    let mount = Mount::new(&scratch.0, EXT4, 24)?;
    let dog = Watchdog::new(Duration::from_secs(30));
    dog.begin(name);
    Some((scratch, mount, dog))
}

/// Writes until there is no room.
fn write_until_full(db: &Db, sequence: &mut Sequence) {
    says_full(&sequence.until_failure(db, 100_000).expect("it fills up"));
    sequence.is_readable(db);
    // Whoever tries again is told again, or there was some room.
    if let Some(error) = sequence.until_failure(db, 200) {
        says_full(&error);
    }
    sequence.is_readable(db);
}

#[test]
fn a_full_file_system_can_be_read_and_goes_on_when_there_is_room() {
    let Some((_scratch, mount, _dog)) = small("full") else { return };
    let directory = mount.point.join("database");
    let mut acknowledged = 0;
    for _ in 0..3 {
        let db = config(&directory).open().expect("there is room");
        let mut sequence = Sequence::found(&db, acknowledged);
        sequence.steps(&db, 300);
        let filler = mount.fill();
        write_until_full(&db, &mut sequence);
        remove_file(filler).expect("it is there");
        sequence.flush(&db).expect("there is room");
        sequence.steps(&db, 300);
        testing::checkpoint(&db).expect("there is room");
        testing::check_invariants(&db).expect("nothing is broken");
        sequence.is_readable(&db);
        acknowledged = sequence.acknowledged;
    }
    Sequence::found(&config(&directory).open().expect("there is room"), acknowledged);
}

#[test]
fn a_database_is_not_half_created_where_there_is_no_room() {
    let Some((_scratch, mount, _dog)) = small("full-create") else { return };
    let filler = mount.fill();
    for name in ["database", "database", "nested/database"] {
        let directory = mount.point.join(name);
        // One sector may fit into what cannot be filled; then writing says it.
        let outcome: Result<()> = config(&directory).open().and_then(|db| {
            (0..100_000_u64)
                .try_for_each(|n| db.insert(n.to_be_bytes(), [7_u8; 500].as_slice()).map(drop))?;
            db.flush().map(drop)
        });
        says_full(&outcome.expect_err("there is no room"));
    }
    remove_file(filler).expect("it is there");
    for name in ["database", "nested/database"] {
        let db = config(&mount.point.join(name)).open().expect("there is room");
        db.clear().expect("there is room");
        let mut sequence = Sequence::found(&db, 0);
        sequence.steps(&db, 100);
        drop(db);
        let entries = std::fs::read_dir(mount.point.join(name)).expect("there");
        let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["db"], "something is left");
    }
}

/// A copy of the file is what the end of the process would leave.
#[test]
fn recovery_without_room_loses_nothing() {
    let Some((_scratch, mount, _dog)) = small("full-open") else { return };
    let (directory, copy) = (mount.point.join("database"), mount.point.join("copy"));
    std::fs::create_dir_all(&copy).expect("there is room");
    let db = config(&directory).open().expect("there is room");
    let mut sequence = Sequence::found(&db, 0);
    for _ in 0..10 {
        sequence.steps(&db, 170);
        sequence.flush(&db).expect("there is room");
        std::fs::copy(directory.join("db"), copy.join("db")).expect("there is room");
        let filler = mount.fill();
        let opened = config(&copy).open();
        match opened {
            Err(error) => says_full(&error),
            Ok(copied) => {
                let mut there = Sequence::found(&copied, sequence.acknowledged);
                // The medium may keep a few free blocks of the file itself.
                if let Some(error) = there.until_failure(&copied, 2_000) {
                    says_full(&error);
                }
                there.is_readable(&copied);
            }
        }
        remove_file(filler).expect("it is there");
        Sequence::found(&config(&copy).open().expect("there is room"), sequence.acknowledged);
        remove_file(copy.join("db")).expect("it is there");
    }
}

#[test]
fn checkpoints_and_closing_without_room_lose_nothing() {
    let Some((_scratch, mount, _dog)) = small("full-close") else { return };
    let directory = mount.point.join("database");
    let mut acknowledged = 0;
    let mut failed = 0;
    for _ in 0..6 {
        let db = config(&directory).open().expect("there is room");
        let mut sequence = Sequence::found(&db, acknowledged);
        sequence.steps(&db, 250);
        let filler = mount.fill();
        if let Err(error) = testing::checkpoint(&db) {
            says_full(&error);
            failed += 1;
        }
        sequence.is_readable(&db);
        // Not flushed: closing has to write it, and cannot.
        for number in sequence.next..sequence.next + 3 {
            let _ = db.insert(number.to_be_bytes(), [0; 0]);
            let _ = db.remove(number.to_be_bytes());
        }
        acknowledged = sequence.acknowledged;
        drop(db);
        remove_file(filler).expect("it is there");
    }
    assert!(failed > 0, "no checkpoint met the end of the room");
    Sequence::found(&config(&directory).open().expect("there is room"), acknowledged);
}
