//! Nonces: numbers that no earlier use of a segment had.
//!
//! # How it works
//!
//! The keys of the standard library's hash maps are random in each process; hashing a counter with them gives
//! 64 bits that repeat with negligible probability. They only tell old bytes from new ones, they keep no
//! secret. A test that is to write the same bytes twice gives a seed instead.

use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// Where the sources that this thread makes take their numbers from; `None`: from `RandomState`.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Lets the sources that this thread makes from now on follow from a seed, each of them differently. Whoever gives
/// a seed sees to it that no earlier use of the medium had it.
pub fn seed_nonces(seed: Option<u64>) {
    SEED.set(seed);
}

/// A source of nonces.
#[derive(Debug)]
pub struct Nonces {
    keys: RandomState,
    /// What the numbers follow from, instead of `keys`.
    seed: Option<u64>,
    /// How many were made. Any thread, by atomic add.
    made: AtomicU64,
}

impl Default for Nonces {
    fn default() -> Nonces {
        let seed = SEED.get();
        SEED.set(seed.map(|seed| mix(!seed, 0)));
        Nonces { keys: RandomState::new(), seed, made: AtomicU64::new(0) }
    }
}

/// Steps and scrambles (splitmix64).
fn mix(seed: u64, n: u64) -> u64 {
    let mut x = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Nonces {
    /// A number not used before, never 0.
    pub fn next(&self) -> u64 {
        // Relaxed: only uniqueness matters.
        let n = self.made.fetch_add(1, Ordering::Relaxed);
        self.seed.map_or_else(|| self.keys.hash_one(n), |seed| mix(seed, n)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::{Nonces, seed_nonces};

    #[test]
    fn nonces_differ_within_and_between_sources() {
        let (a, b) = (Nonces::default(), Nonces::default());
        let mut all: Vec<u64> = (0..1000).flat_map(|_| [a.next(), b.next()]).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 2000);
    }

    #[test]
    fn a_seed_repeats_the_nonces_of_every_source() {
        let run = |seed| {
            seed_nonces(Some(seed));
            let sources = [Nonces::default(), Nonces::default(), Nonces::default()];
            seed_nonces(None);
            sources.iter().flat_map(|source| (0..100).map(|_| source.next())).collect::<Vec<u64>>()
        };
        assert_eq!(run(5), run(5));
        let mut all = [run(5), run(6)].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 600);
        assert_ne!(Nonces::default().next(), Nonces::default().next());
    }
}
