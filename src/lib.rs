//! An embedded, ordered key-value store with the API of sled 0.34: a lock-free Bw-tree over an
//! epoch-reclaimed pagecache over one segmented log file.
//!
//! ```
//! # fn main() -> sled::Result<()> {
//! # let db = sled::Config::new().temporary(true).open()?;
//! # /*
//! let db = sled::open("my_database")?;
//! # */
//! db.insert("key", "value")?;
//! assert_eq!(db.get("key")?, Some("value".into()));
//! for pair in db.range("a".."l") {
//!     let (key, value) = pair?;
//!     println!("{key:?} -> {value:?}");
//! }
//! db.flush()?; // durable from here on
//! # Ok(())
//! # }
//! ```
//!
//! # What survives
//!
//! When [`Tree::flush`] has returned `Ok`, everything written before it was called survives the end of the
//! process and the loss of power. After a crash the database is as it was after some prefix of all writes to
//! all its trees: nothing later without everything earlier. What was not flushed may be gone; a background
//! thread flushes every 500 ms unless [`Config::flush_every_ms`] says otherwise, but only a flush that
//! returned is a promise.
//!
//! # Layers
//!
//! ```text
//! api -> tree -> pagecache -> log -> storage       (base, error, ivec: from anywhere)
//! ```
//!
//! Each is a folder of `src/`; its `mod.rs` says how it works and which invariants it keeps.
#![deny(missing_docs)]
#![deny(unsafe_code)]

mod api;
mod base;
mod damage;
#[cfg(feature = "docs")]
pub mod doc;
mod error;
mod ivec;
mod log;
mod pagecache;
mod storage;
mod tree;

pub use api::batch::Batch;
#[doc(hidden)]
pub use api::compat::{
    Atomic, Context, CrossbeamGuard, Guard, Lazy, LogOffset, Lsn, MAX_MSG_HEADER_LEN,
    MAX_SPACE_AMPLIFICATION, MINIMUM_ITEMS_PER_SEGMENT, Owned, PageId, RunningConfig, SEG_HEADER_LEN, Shared,
    crossbeam_pin, pin,
};
pub use api::config::{Config, Mode, open};
pub use api::db::Db;
pub use api::iter::Iter;
pub use api::merge_operator::MergeOperator;
pub use api::salvage::Salvage;
pub use api::stats::Stats;
pub use api::subscriber::Subscriber;
#[doc(hidden)]
pub use api::testing;
pub use api::transaction;
pub use api::transaction::Transactional;
pub use api::tree::Tree;
pub use api::verify::{Progress, Verification};
#[cfg(feature = "failpoints")]
#[doc(hidden)]
pub use base::fail;
pub use damage::Damage;
#[doc(hidden)]
pub use error::DiskPtr;
pub use error::{CompareAndSwapError, Error, Result};
pub use ivec::IVec;
pub use tree::watch::Event;
