//! Nonces: numbers that no earlier use of a segment had.
//!
//! # How it works
//!
//! The keys of the standard library's hash maps are random in each process; hashing a counter with them gives
//! 64 bits that repeat with negligible probability. They only tell old bytes from new ones, they keep no
//! secret.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// A source of nonces.
#[derive(Debug, Default)]
pub struct Nonces {
    keys: RandomState,
    /// How many were made. Any thread, by atomic add.
    made: AtomicU64,
}

impl Nonces {
    /// A number not used before, never 0.
    pub fn next(&self) -> u64 {
        // Relaxed: only uniqueness matters.
        let n = self.made.fetch_add(1, Ordering::Relaxed);
        self.keys.hash_one(n).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::Nonces;

    #[test]
    fn nonces_differ_within_and_between_sources() {
        let (a, b) = (Nonces::default(), Nonces::default());
        let mut all: Vec<u64> = (0..1000).flat_map(|_| [a.next(), b.next()]).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 2000);
    }
}
