//! Numbers of threads, and counts of what happens on every operation, without a line that all processors write to.

use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counts that are added up: one for each of the first threads, and one for all others.
const SHARDS: usize = 16;

/// The number of this thread: 0, 1, 2 and so on, in the order in which they ask, and never again; the greatest there is
/// for a thread that is ending.
#[inline]
pub fn thread_number() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        // Relaxed: only spreading matters.
        static NUMBER: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.try_with(|number| *number).unwrap_or(usize::MAX)
}

/// A count.
#[derive(Debug, Default)]
pub struct Tally {
    shards: [CachePadded<AtomicU64>; SHARDS],
}

impl Tally {
    /// Adds one.
    #[inline]
    pub fn raise(&self) {
        match self.shards[..SHARDS - 1].get(thread_number()) {
            Some(own) => {
                // Relaxed, and not one step, which would cost more than all the rest: nobody else writes it.
                let count = own.load(Ordering::Relaxed);
                // Relaxed: as above.
                own.store(count.wrapping_add(1), Ordering::Relaxed);
            }
            None => {
                // Relaxed: statistic.
                self.shards[SHARDS - 1].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// What was counted so far.
    pub fn sum(&self) -> u64 {
        // Relaxed: statistic.
        self.shards.iter().map(|shard| shard.load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_however_many_threads_count() {
        let tally = Tally::default();
        for _ in 0..3 {
            std::thread::scope(|scope| {
                for _ in 0..10 {
                    scope.spawn(|| (0..1_000).for_each(|_| tally.raise()));
                }
            });
        }
        assert_eq!(tally.sum(), 30_000);
    }
}
