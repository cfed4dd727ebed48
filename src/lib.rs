//! An embedded, ordered key-value store with the API of sled 0.34: a lock-free Bw-tree
//! over an epoch-reclaimed pagecache over one segmented log file.
//!
//! The crate is being built from the bottom up. What is here so far is internal: the medium and the
//! frames of the pagecache. There is no database to open yet, and nothing pretends to be one.
//!
//! # Layers
//!
//! ```text
//! api -> tree -> pagecache -> log -> storage       (base, error, ivec: from anywhere)
//! ```
#![deny(missing_docs)]
#![deny(unsafe_code)]

#[doc(hidden)]
pub mod base;
#[doc(hidden)]
pub mod pagecache;
#[doc(hidden)]
pub mod storage;
#[doc(hidden)]
pub mod tree;
