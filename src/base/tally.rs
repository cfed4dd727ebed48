//! Counting what happens on every operation, without a line that all processors write to.

use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const SHARDS: usize = 16;

/// The number of this thread: 0, 1, 2 and so on, in the order in which they ask.
#[inline]
pub fn thread_number() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        // Relaxed: only spreading matters.
        static NUMBER: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    }
    // A thread that is ending has no number any more.
    NUMBER.try_with(|number| *number).unwrap_or(0)
}

/// A count that is exact as long as there are few threads. More than sixteen share what they count in, and of two that
/// count at the same instant there, one may be lost.
#[derive(Debug, Default)]
pub struct Tally {
    shards: [CachePadded<AtomicU64>; SHARDS],
}

impl Tally {
    /// Adds one.
    #[inline]
    pub fn raise(&self) {
        let shard = &self.shards[thread_number() % SHARDS];
        // Relaxed, and not one step, which would cost more than all the rest: statistic.
        let count = shard.load(Ordering::Relaxed);
        // Relaxed: as above.
        shard.store(count.wrapping_add(1), Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn sum(&self) -> u64 {
        // Relaxed: statistic.
        self.shards.iter().map(|shard| shard.load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }
}
