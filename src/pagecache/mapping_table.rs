//! The mapping table: PID -> word, the current state of a page.
//!
//! # How it works
//!
//! Words live in buckets that double in size, so the table grows without moving a word and a look-up is a bit
//! count and two loads. A bucket is allocated when its first PID is; the memory of a large one is touched only
//! as its words are used.
//!
//! # Concurrency
//!
//! `get` takes no lock. PIDs are handed out under a mutex, which is rare: once a split, not once a write.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

const FIRST_BITS: u32 = 10;
const FIRST: u64 = 1 << FIRST_BITS;
const BUCKETS: usize = (u32::BITS - FIRST_BITS + 1) as usize;

/// Which PIDs may be handed out.
#[derive(Debug)]
struct Pids {
    /// Every PID from here on was never handed out.
    next: u64,
    /// Below `next`, and free again.
    free: Vec<u32>,
}

/// Grow-only table of one word a PID.
#[derive(Debug)]
pub struct MappingTable {
    buckets: [OnceLock<Box<[AtomicU64]>>; BUCKETS],
    pids: Mutex<Pids>,
    /// Bytes of all buckets. Written when a bucket is allocated.
    bytes: AtomicU64,
}

impl Default for MappingTable {
    fn default() -> MappingTable {
        MappingTable::new()
    }
}

/// Bucket and index of a PID.
#[inline]
fn place(pid: u32) -> (usize, usize) {
    let shifted = u64::from(pid) + FIRST;
    let bucket = u64::BITS - 1 - shifted.leading_zeros();
    ((bucket - FIRST_BITS) as usize, (shifted - (1 << bucket)) as usize)
}

impl MappingTable {
    /// A table in which no PID was handed out. PID 0 never is: it means "none".
    pub fn new() -> MappingTable {
        let pids = Mutex::new(Pids { next: 1, free: Vec::new() });
        MappingTable { buckets: [const { OnceLock::new() }; BUCKETS], pids, bytes: AtomicU64::new(0) }
    }

    /// The word of a page, or `None` for a PID that was never handed out in the range of its bucket.
    #[inline]
    pub fn try_get(&self, pid: u32) -> Option<&AtomicU64> {
        let (bucket, index) = place(pid);
        self.buckets[bucket].get().map(|words| &words[index])
    }

    /// The word of a page.
    ///
    /// # Panics
    /// When `pid` was never handed out: PIDs from disk go through [`Self::ensure`] first.
    #[inline]
    pub fn get(&self, pid: u32) -> &AtomicU64 {
        self.try_get(pid).expect("the PID was handed out or ensured before")
    }

    fn pids(&self) -> std::sync::MutexGuard<'_, Pids> {
        // Nothing panics between the two changes that belong together.
        self.pids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reach(&self, pid: u32) {
        let (bucket, _) = place(pid);
        self.buckets[bucket].get_or_init(|| {
            let words = FIRST << bucket;
            // Relaxed: statistic.
            self.bytes.fetch_add(words * 8, Ordering::Relaxed);
            (0..words).map(|_| AtomicU64::new(0)).collect()
        });
    }

    /// A PID nobody else has, its word 0; `None` when all four billion are in use.
    pub fn allocate(&self) -> Option<u32> {
        let mut pids = self.pids();
        if let Some(pid) = pids.free.pop() {
            return Some(pid);
        }
        let pid = u32::try_from(pids.next).ok()?;
        pids.next += 1;
        drop(pids);
        self.reach(pid);
        Some(pid)
    }

    /// Takes a PID back. Its word must be 0, and no guard that could have read the PID still be pinned.
    pub fn free(&self, pid: u32) {
        // Relaxed: the caller has the PID to itself.
        debug_assert_eq!(self.get(pid).load(Ordering::Relaxed), 0, "a freed PID has no page");
        self.pids().free.push(pid);
    }

    /// Recovery: makes `pid` one that was handed out; the caller has bounded it by what the file can hold, as
    /// memory grows with the largest PID. The PIDs skipped are found by [`Self::collect_free`].
    pub fn ensure(&self, pid: u32) {
        let mut pids = self.pids();
        pids.next = pids.next.max(u64::from(pid) + 1);
        drop(pids);
        self.reach(pid);
    }

    /// Recovery: every PID handed out or skipped whose word is 0 becomes free.
    pub fn collect_free(&self) {
        let mut pids = self.pids();
        let end = u32::try_from(pids.next - 1).expect("PIDs are 32 bits");
        // Relaxed: recovery is alone. Highest first, so that the lowest are handed out first.
        let unused = |pid: &u32| self.try_get(*pid).is_none_or(|word| word.load(Ordering::Relaxed) == 0);
        let free: Vec<u32> = (1..=end).rev().filter(unused).collect();
        for pid in &free {
            self.reach(*pid);
        }
        pids.free = free;
    }

    /// One past the largest PID handed out.
    pub fn high_water(&self) -> u64 {
        self.pids().next
    }

    /// Bytes of the table, untouched ones included.
    pub fn bytes(&self) -> u64 {
        // Relaxed: statistic.
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn places_are_dense_and_distinct() {
        let mut expected = (0, 0);
        for pid in 0..20_000 {
            assert_eq!(place(pid), expected);
            expected.1 += 1;
            if expected.1 == (FIRST as usize) << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
        assert_eq!(place(u32::MAX).0, BUCKETS - 1);
    }

    #[test]
    fn concurrent_allocations_are_unique_and_words_stay() {
        let table = MappingTable::new();
        let each = if cfg!(miri) { 600 } else { 20_000 };
        let mut all = BTreeSet::new();
        std::thread::scope(|s| {
            let work = || {
                let mut mine = Vec::new();
                for i in 0..each {
                    let pid = table.allocate().expect("PIDs are left");
                    table.get(pid).store(u64::from(pid) + 7, Ordering::Relaxed);
                    mine.push(pid);
                    if i % 3 == 0 {
                        let back = mine.swap_remove(mine.len() / 2);
                        table.get(back).store(0, Ordering::Relaxed);
                        table.free(back);
                    }
                }
                mine
            };
            let threads = [s.spawn(work), s.spawn(work), s.spawn(work)];
            for thread in threads {
                for pid in thread.join().expect("a worker panicked") {
                    assert!(pid > 0 && all.insert(pid), "{pid} was handed out twice");
                }
            }
        });
        for pid in &all {
            assert_eq!(table.get(*pid).load(Ordering::Relaxed), u64::from(*pid) + 7);
        }
        assert!(table.bytes() >= table.high_water() * 8 && table.bytes() < table.high_water() * 32);
    }

    #[test]
    fn recovery_hands_out_what_no_page_uses() {
        let table = MappingTable::new();
        assert!(table.try_get(5000).is_none(), "nothing is there before it is needed");
        for pid in [5000, 3, 7] {
            table.ensure(pid);
            table.get(pid).store(1, Ordering::Relaxed);
        }
        table.collect_free();
        let fresh: BTreeSet<u32> = (0..4997).map(|_| table.allocate().expect("PIDs are left")).collect();
        assert_eq!(fresh.len(), 4997);
        assert!(!fresh.contains(&3) && !fresh.contains(&7) && !fresh.contains(&0));
        assert_eq!((fresh.first(), fresh.last()), (Some(&1), Some(&4999)));
        assert_eq!(table.allocate(), Some(5001));
    }
}
