//! One test per behaviour of the public API, on real directories and on simulated media.
//!
//! `points`: keys, updates and merge operators. `database`: trees, ids, flushes, export and checksums.
//! `transactions`: them, their views, and batches. `opening`: configuration, locks, files and temporary databases.
//! `statistics`: what is counted. `lengths`: `len`. `values`: `IVec`, errors and their texts.

#[path = "../common/mod.rs"]
mod common;
mod database;
mod lengths;
mod opening;
mod points;
mod statistics;
mod transactions;
mod values;

use sled::testing::{SimStorage, Tuning, open_on};
use sled::{Config, Db};

/// An empty database in memory, with the sizes of a normal one.
fn fresh() -> Db {
    on(&SimStorage::new())
}

/// A database on a medium, without threads, so that only calls write.
fn on(medium: &SimStorage) -> Db {
    let config = Config::new().flush_every_ms(None);
    let tuning = Tuning { threads: false, ..Tuning::default() };
    open_on(medium.clone(), &config, tuning).expect("opens")
}

/// Asserts that something panics; its message goes to the captured output.
fn assert_panics(what: &str, call: impl FnOnce()) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    assert!(outcome.is_err(), "{what} must panic");
}
