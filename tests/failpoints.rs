//! Failures at named places, with the feature `failpoints`: no place loses what was flushed.
//!
//! Each place is armed in turn while a database writes, flushes and makes checkpoints. What fails does so with
//! `FailPoint`; then the database is opened again and has every flushed key, with that value or a later one.

#![cfg(feature = "failpoints")]

use sled::testing::{self, SimStorage, Tuning};
use sled::{Config, Db, Error, fail};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// All places that mean something here, and whether a small program comes by.
const PLACES: [(&str, bool); 18] = [
    ("buffer write", true),
    ("buffer write post", true),
    ("zero garbage segment", true),
    ("zero garbage segment post", true),
    ("zero garbage segment SA", false),
    ("segment initial free zero", true),
    ("write_config bytes", false),
    ("write_config crc", false),
    ("write_config post", false),
    ("snap write", true),
    ("snap write len", true),
    ("snap write crc", true),
    ("snap write post", true),
    ("snap write mv", true),
    ("snap write mv post", true),
    ("blob blob write", true),
    ("file truncation", false),
    ("sync", true),
];

/// One test at a time: the places belong to the process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(medium: &SimStorage) -> Result<Db, Error> {
    let tuning =
        Tuning { leaf_bytes: 512, segment: 4096, redo_buffer: 256, threads: false, ..Tuning::default() };
    testing::open_on(medium.clone(), &Config::new().flush_every_ms(None), tuning)
}

/// One round of writing; what was written to each key since it was last known to be durable.
fn write(db: &Db, round: u32, tried: &mut BTreeMap<u32, Vec<u32>>) -> Result<(), Error> {
    for key in 0..40 {
        let value = round * 100 + key;
        tried.entry(key).or_default().push(value);
        let mut bytes = value.to_be_bytes().to_vec();
        // Some are values with images of their own.
        bytes.resize(if key % 8 == 0 { 600 } else { 40 }, 7);
        db.insert(key.to_be_bytes(), bytes)?;
    }
    testing::checkpoint(db)?;
    db.flush()?;
    for values in tried.values_mut() {
        values.drain(..values.len() - 1);
    }
    Ok(())
}

#[test]
fn nothing_that_was_flushed_is_lost_wherever_it_fails() {
    let _alone = alone();
    for (place, is_met) in PLACES {
        let medium = SimStorage::new();
        let mut tried = BTreeMap::new();
        let mut failures = 0;
        let mut db = open(&medium).unwrap();
        for round in 0..12 {
            // The first check, the third, and some more.
            fail::set(place, [0, 1, 0b100, 0b1011][round as usize % 4]);
            let result = write(&db, round, &mut tried);
            let armed = fail::is_active(place);
            fail::reset();
            let Err(error) = result else { continue };
            assert_eq!(error, Error::FailPoint, "{place}, still armed: {armed}");
            failures += 1;
            drop(db);
            db = open(&medium).unwrap();
            testing::check_invariants(&db).unwrap();
            for (key, values) in &mut tried {
                let found = db.get(key.to_be_bytes()).unwrap();
                let found = found.map(|v| u32::from_be_bytes(v[..4].try_into().unwrap()));
                // Before the first flush there may be nothing.
                let fine = found.map_or(round == 0 || failures == round + 1, |value| values.contains(&value));
                assert!(fine, "{place}: {key} is {found:?}, of {values:?}");
            }
        }
        assert!(!is_met || failures > 0, "{place} was never met");
    }
}

/// A creation may be killed before the new names are durable. Whoever opens what it left makes them so, or fails.
#[test]
fn nothing_is_opened_whose_name_may_be_lost() {
    const PLACE: &str = "directory sync";
    let _alone = alone();
    let scratch = std::env::temp_dir().join(format!("sled-names-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&scratch);
    std::fs::create_dir_all(&scratch).unwrap();
    let directory = scratch.join("a/b");
    let open = || Config::new().path(&directory).flush_every_ms(None).open();
    // The entries above come first, from `b` up to the root, and then the one of the file.
    let depth = directory.ancestors().count() - 1;
    for failing in [0, 1, depth] {
        fail::set(PLACE, 1 << failing);
        assert!(matches!(open(), Err(Error::Io(_))), "sync {failing} of a directory fails");
        assert!(!fail::is_active(PLACE), "it was met");
        fail::reset();
        let _ = std::fs::remove_dir_all(scratch.join("a"));
    }
    // As a process leaves it that is killed between giving the file its name and the sync.
    fail::set(PLACE, 1 << depth);
    drop(open());
    let named = directory.join("db").is_file();
    fail::set(PLACE, u64::MAX);
    assert!(
        named && matches!(open(), Err(Error::Io(_))),
        "a name that was there already is not durable for that"
    );
    fail::reset();
    let db = open().unwrap();
    db.insert("k", "v").unwrap();
    db.flush().unwrap();
    drop(db);
    std::fs::remove_dir_all(&scratch).unwrap();
}
