//! The Bw-tree: ordered bytes over pages.
//!
//! # Invariants
//!
//! - T1: the leaves of a tree partition the key space: the high fence of a leaf is the low fence of the next.
//! - T2: the keys of a leaf ascend strictly and lie within its fences.

pub mod leaf;
