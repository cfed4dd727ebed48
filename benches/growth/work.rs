//! What the parts share: records, choices among them, and a clock.
//!
//! A key has 16 bytes in no order, a value 100 that tell key and version, so that every answer can be checked.

use crate::common::{self, Directory, scaled, scatter};
use sled::Db;
use std::time::{Duration, Instant};

/// Bytes of a key.
const KEY: usize = 16;
/// Bytes of a value.
const VALUE: usize = 100;
/// Bytes of a record: of its key and its value.
pub const RECORD: u64 = (KEY + VALUE) as u64;
/// The cache where the data shall fit; the default of `sled::Config`.
pub const CACHE: u64 = 1 << 30;
/// What plots and tables say of the records.
pub const RECORDS: &str = "16-byte keys in random order, 100-byte values";

/// Key number `i`: half a bijection of `i`, half its number, hidden.
pub fn key(i: u64) -> [u8; KEY] {
    let mut key = [0; KEY];
    key[..8].copy_from_slice(&scatter(i).to_be_bytes());
    key[8..].copy_from_slice(&(scatter(!scatter(i)) ^ i).to_be_bytes());
    key
}

/// The number of a key.
fn number(key: &[u8]) -> u64 {
    let half = |at: usize| u64::from_be_bytes(key[at..at + 8].try_into().expect("8 bytes"));
    assert_eq!(key.len(), KEY, "no other keys were inserted");
    scatter(!half(0)) ^ half(8)
}

/// The value of key number `i` after `version` updates; incompressible.
pub fn value(i: u64, version: u64) -> [u8; VALUE] {
    common::value(i, version)[..VALUE].try_into().expect("it has more")
}

/// The database in `directory`, durable every 500 ms as by default.
pub fn open(directory: &Directory, cache: u64) -> Db {
    let config = sled::Config::new().path(&directory.0).cache_capacity(cache);
    config.open().expect("the directory is this benchmark's own")
}

/// Inserts the keys `numbers`, at version 0.
pub fn insert(db: &Db, numbers: std::ops::Range<u64>) {
    for i in numbers {
        let old = db.insert(key(i), &value(i, 0)[..]).expect("room on the disk");
        assert_eq!(old, None, "key {i} is new");
    }
}

/// Reads key number `i`, which is at version 0.
pub fn read(db: &Db, i: u64) {
    let found = db.get(key(i)).expect("readable").expect("every key was inserted");
    assert_eq!(found[..], value(i, 0), "value of key {i}");
}

/// Panics unless `db` has the keys 0 to `n`, each at its version, and nothing else.
pub fn check(db: &Db, n: u64, version: impl Fn(u64) -> u64) {
    assert_eq!(db.len() as u64, n, "every key counts once");
    let (mut count, mut last) = (0, None);
    for record in db.iter() {
        let (found, holds) = record.expect("readable");
        let i = number(&found);
        assert!(i < n && found[..] == key(i), "{found:?} is no key that was inserted");
        assert_eq!(holds[..], value(i, version(i)), "value of key {i}");
        assert!(last.replace(found.clone()).is_none_or(|last| last < found), "in order, none twice");
        count += 1;
    }
    assert_eq!(count, n, "none is missing");
}

/// Chooses records; the same ones in every run.
pub struct Choice(u64);

impl Choice {
    /// Choices of their own for each `stream`.
    pub fn new(stream: u64) -> Choice {
        Choice(stream << 40)
    }

    fn random(&mut self) -> u64 {
        self.0 += 1;
        scatter(self.0)
    }

    /// One of `n` numbers, each as likely as the others.
    pub fn uniform(&mut self, n: u64) -> u64 {
        self.random() % n
    }

    /// One of `n` numbers; number k - 1 with a chance of `ln(1 + 1/k) / ln(n + 1)`, about in inverse proportion
    /// to k, as Zipf's law has it.
    ///
    /// The distribution function of the density `1/x` from 1 to n + 1 is inverted, and its result truncated: Devroye,
    /// Non-Uniform Random Variate Generation (1986), III.2.2.
    pub fn skewed(&mut self, n: u64) -> u64 {
        // From 0 to less than 1, of the 53 bits that a float has.
        let u = (self.random() >> 11) as f64 / (1_u64 << 53) as f64;
        // Rounding may reach n + 1.
        (((n + 1) as f64).powf(u) as u64 - 1).min(n - 1)
    }
}

/// How long one rate is measured.
pub fn time() -> Duration {
    Duration::from_millis(scaled(4000))
}

/// Repeats `operation` until `time` is over; returns how often, and how often in a second.
pub fn repeat(time: Duration, mut operation: impl FnMut()) -> (u64, f64) {
    const BETWEEN_LOOKS_AT_THE_CLOCK: u64 = 64;
    let (start, mut count) = (Instant::now(), 0);
    loop {
        (0..BETWEEN_LOOKS_AT_THE_CLOCK).for_each(|_| operation());
        count += BETWEEN_LOOKS_AT_THE_CLOCK;
        let passed = start.elapsed();
        if passed >= time {
            return (count, count as f64 / passed.as_secs_f64());
        }
    }
}
