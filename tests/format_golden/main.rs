//! Format version 1 is frozen: committed databases read as they did on the day they were written.
//!
//! # How it works
//!
//! `tests/golden` has small databases, and their content as JSON lines: the trees in the order of their names,
//! `{"tree": name}`, each followed by its records in key order, `{"key": key, "value": value}`, all in hexadecimal
//! digits. Neither is ever changed; a later format gets files of its own, and these go on being read.
//!
//! - `closed`: closed in order; several trees after splits and node merges, empty names, keys and values, long keys
//!   with a common prefix, big values.
//! - `compressed`: the same, with compressed images.
//! - `crashed`: a checkpoint and a redo tail with changes of every kind, trees created, dropped and created again.
//! - `torn`: the same, and a batch that came after reached the medium in part.
//!
//! The tests open copies, compare everything, and go on writing. `hostile` makes files out of the golden ones that must be
//! refused. `tests/format_reader.py`, written from the specification alone, lists the golden databases and random ones
//! just as the engine does.
//!
//! `SLED_WRITE_GOLDEN=1 cargo test --features compression --test format_golden -- --ignored write_golden` writes files that are
//! not there (see `write`); it overwrites none.

#![cfg(not(miri))]

#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod listing;
mod reader;
mod specification;
mod write;

use common::Scratch;
use listing::{check_all_reads, list};
use sled::testing::check_invariants;
use sled::{Config, Db, Result};
use std::path::{Path, PathBuf};

/// The directory with the golden files.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The bytes of a golden database.
fn golden_bytes(name: &str) -> Vec<u8> {
    std::fs::read(golden().join(name).with_extension("db")).expect("the golden files are committed")
}

/// What is in a golden database.
fn golden_listing(name: &str) -> String {
    let name = match name {
        "compressed" => "closed",
        "torn" => "crashed",
        other => other,
    };
    std::fs::read_to_string(golden().join(name).with_extension("jsonl"))
        .expect("the golden files are committed")
}

/// A directory with these bytes as its database.
fn directory_with(name: &str, bytes: &[u8]) -> Scratch {
    let scratch = Scratch::new(name);
    std::fs::write(scratch.join("db"), bytes).expect("the scratch directory is writable");
    scratch
}

fn config(directory: &Scratch) -> Config {
    Config::new().path(directory.path()).flush_every_ms(None).cache_capacity(8 << 20)
}

/// Opens a copy of a golden database, compares it in every way, writes to it, and opens it again.
fn check(name: &str, config: impl Fn(&Scratch) -> Config) -> Result<()> {
    let expected = golden_listing(name);
    let directory = directory_with(name, &golden_bytes(name));
    let open = || -> Result<Db> { config(&directory).open() };
    let db = open()?;
    assert!(db.was_recovered(), "{name}");
    assert_eq!(list(&db)?, expected, "{name}");
    check_all_reads(&db, &expected)?;
    check_invariants(&db)?;
    drop(db);
    let db = open()?;
    assert_eq!(list(&db)?, expected, "{name}: opening and closing changed it");
    let tree = db.open_tree(b"\xFFadded later")?;
    tree.insert("key", vec![7; 20_000])?;
    db.flush()?;
    drop((tree, db));
    let db = open()?;
    let [key, value] = ["key".as_bytes(), &[7; 20_000]].map(listing::hex);
    let added = format!("{}{}", listing::tree_line(b"\xFFadded later"), listing::record_line(&key, &value));
    assert_eq!(list(&db)?, expected + &added, "{name}: what was there or was added");
    check_invariants(&db)
}

#[test]
fn a_closed_database_of_version_1_reads_as_ever() -> Result<()> {
    check("closed", config)
}

#[test]
fn a_redo_tail_of_version_1_is_replayed_as_ever() -> Result<()> {
    check("crashed", config)
}

#[test]
fn a_torn_redo_tail_of_version_1_ends_where_it_did() -> Result<()> {
    check("torn", config)
}

#[cfg(feature = "compression")]
#[test]
fn a_compressed_database_of_version_1_reads_as_ever() -> Result<()> {
    check("compressed", |directory| config(directory).use_compression(true))
}

/// Whatever can decompress: the setting is the database's.
#[test]
fn a_compressed_database_is_refused_without_the_setting() {
    let bytes = golden_bytes("compressed");
    let directory = directory_with("uncompressed", &bytes);
    let error = config(&directory).open().expect_err("it was created with compression");
    let text = "Unsupported: use_compression(false): the database was created with use_compression(true)";
    assert_eq!(error.to_string(), text);
    assert!(std::fs::read(directory.join("db")).expect("still there") == bytes, "the file was changed");
}
