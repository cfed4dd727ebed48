//! What the benchmarks share: their data, their directories, and a tiny mode.
//!
//! Keys are 24 bytes and come in no order, values are 150 bytes and tell key and version, so that every
//! answer can be checked. `cargo bench` measures; `cargo test --benches` runs everything once on a
//! thousandth of the data, so that the benchmarks stay true.

use sled::Db;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a key.
pub const KEY: usize = 24;
/// Bytes of a value.
pub const VALUE: usize = 150;

/// `full` in a measurement, a thousandth of it (but some) in a test.
pub fn scaled(full: u64) -> u64 {
    let measured =
        std::env::args().any(|arg| arg == "--bench") && !std::env::args().any(|arg| arg == "--test");
    if measured { full } else { (full / 1000).max(100) }
}

/// A bijection without visible order (the finalizer of splitmix64).
pub fn scatter(i: u64) -> u64 {
    let mut x = i.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Key number `i`.
pub fn key(i: u64) -> [u8; KEY] {
    let mut key = *b"benchmark:--------------";
    key[10..18].copy_from_slice(&scatter(i).to_be_bytes());
    key[18..].copy_from_slice(&i.to_be_bytes()[2..]);
    key
}

/// The value of key number `i` after `version` updates; incompressible.
pub fn value(i: u64, version: u64) -> [u8; VALUE] {
    let mut value = [0; VALUE];
    for (at, chunk) in value.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(
            &scatter(i ^ (version << 32) ^ ((at as u64) << 56)).to_be_bytes()[..chunk.len()],
        );
    }
    value
}

/// A directory of its own for one database, removed when dropped.
pub struct Directory(pub PathBuf);

impl Directory {
    /// A name that nothing uses yet.
    pub fn new() -> Directory {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: a number that is handed out once.
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Directory(std::env::temp_dir().join(format!("sled-bench-{}-{n}", std::process::id())))
    }

    /// The database in it.
    pub fn open(&self) -> Db {
        sled::open(&self.0).expect("the directory is this benchmark's own")
    }

    /// A database with keys 0 to `n`, all at version 0, flushed.
    pub fn filled(&self, n: u64) -> Db {
        let db = self.open();
        for i in 0..n {
            assert_eq!(
                db.insert(key(i), &value(i, 0)[..]).expect("room on the disk"),
                None,
                "key {i} is new"
            );
        }
        db.flush().expect("a healthy disk");
        assert_eq!(db.len() as u64, n, "every key was inserted");
        db
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Nothing to remove where nothing was opened.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
