//! The Bw-tree: ordered bytes over pages.
//!
//! # Invariants
//!
//! - T1: the leaves of a tree partition the key space: the high fence of a leaf is the low fence of the next.
//! - T2: the keys of a leaf ascend strictly and lie within its fences.

pub mod inner;
pub mod leaf;

/// Number of leading bytes that two keys share.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}
