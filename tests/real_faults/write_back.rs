//! The system took the bytes and cannot write them later: the sync that learns of it fails, and no later one is trusted.
//!
//! A file system in a sparse image on another one that has less room than the image says. Its writes go to the caches of
//! the system; writing those back fails, which one sync is told and the next one is not.
//!
//! Linux 6.18 now and then tells it to none: a write, an `fdatasync` that returned 0, and the bytes are zeros after mounting
//! again (seen in the calls that `strace` logged). So all that is asked for here is a prefix, or damage by its name.

use crate::children::Sequence;
use crate::common_durability::{Scratch, Watchdog, block_on};
use crate::mounts::{EXT4_NO_JOURNAL, Mount};
use sled::{Config, Db, Error, Result};
use std::path::Path;
use std::time::Duration;

fn open(directory: &Path) -> Result<Db> {
    let config = Config::new().path(directory).cache_capacity(1 << 20).segment_size(64 << 10);
    config.flush_every_ms(None).open()
}

#[test]
fn a_write_back_that_fails_is_told_and_later_syncs_are_not_trusted() {
    let scratch = Scratch::new("write-back");
    let dog = Watchdog::new(Duration::from_secs(40));
    dog.begin("write-back");
    let Some(outer) = Mount::new(&scratch.0, EXT4_NO_JOURNAL, 24) else { return };
    let Some(inner) = Mount::new(&outer.point, EXT4_NO_JOURNAL, 120) else { return };
    std::fs::write(outer.point.join("filler"), vec![1; 15 << 20]).expect("there is room");
    let directory = inner.point.join("database");
    let db = open(&directory).expect("there is room");
    let mut sequence = Sequence::found(&db, 0);
    sequence.steps(&db, 500);
    let error = sequence.until_failure(&db, 200_000).expect("the outer one fills up");
    assert!(matches!(error, Error::Io(_)), "{error}");
    println!("after {} keys: {error}", sequence.acknowledged);
    // The inner one has room, so it was a sync that failed, and every call says so from now on.
    for _ in 0..3 {
        assert_eq!(db.flush().expect_err("final"), error);
        assert_eq!(block_on(db.flush_async()).expect_err("final"), error);
        assert_eq!(db.insert("k", "v").expect_err("final"), error);
    }
    assert!(sequence.acknowledged > 500);
    drop(db);
    // What was never written is gone with the caches.
    inner.unmount();
    // Opening writes and syncs what it relies on, for which there must be room.
    std::fs::remove_file(outer.point.join("filler")).expect("it was written");
    inner.mount();
    let read = |db: &Db| db.iter().map(|pair| pair.map(drop)).collect::<Result<Vec<_>>>();
    match open(&directory).and_then(|db| read(&db).map(|_| db)) {
        // Of a sync that lied nothing may be left to tell it by, but then nothing behind it, either.
        Ok(db) => println!("{} of {} keys are there", Sequence::found(&db, 0).next, sequence.acknowledged),
        Err(Error::Corruption { at, .. }) => println!("a sync before lied: damage at {at:?}"),
        Err(error) => panic!("does not open: {error}"),
    }
}
