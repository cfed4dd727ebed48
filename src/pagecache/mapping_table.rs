//! The mapping table: PID -> word, the current state of a page.
//!
//! # How it works
//!
//! Words live in buckets that double in size, so the table grows without moving a word and a look-up is a bit
//! count and two loads. A bucket is allocated when its first PID is; the memory of a large one is touched
//! only as its words are used.
//!
//! # States of a page
//!
//! ```text
//! free --allocate--> resident --evict_page, page_out--> image --fault_in--> resident
//!                     |   ^
//!               claim |   | unclaim
//!                     v   |
//!                    merging --redirect--> redirect --retire_pid, epoch--> free
//! ```
//!
//! A resident page stays resident when its frame is replaced, and `move_image` changes the image in either state.
//!
//! # Format of a word
//!
//! Two tag bits on top: `00` = address of a resident frame, its lowest bit set while the page is being merged
//! into its left sibling; `01` = address of the page's image; `10` = PID of the page that this one was merged
//! into. 0 = free.
//!
//! # Invariants
//!
//! - P5: a word that says "resident" holds the address of a frame that is freed only after the word changed
//!   and every guard pinned before that has ended.
//!
//! # Concurrency
//!
//! Words that anybody else can change are changed by CAS only. `load` takes no lock. PIDs are handed out
//! under a mutex, which is rare: once a split, not once a write.

#![allow(unsafe_code)]

use super::frame::FrameRef;
use crate::base::sync::Mutex;
use crate::base::sync::atomic::{AtomicU64, Ordering};
use crate::log::ImageAddr;
use crossbeam_epoch::Guard;
use std::sync::OnceLock;

/// Log2 of the words of the first bucket.
const FIRST_BITS: u32 = if cfg!(loom) { 2 } else { 10 };
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

const TAG_SHIFT: u32 = 62;
const TAG_DISK: u64 = 1;
const TAG_REDIRECT: u64 = 2;
const MERGING: u64 = 1;
const PAYLOAD: u64 = (1 << TAG_SHIFT) - 1;

/// A mapping word as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(u64);

impl Word {
    /// No page.
    pub const FREE: Word = Word(0);

    /// The page is evicted.
    pub fn disk(image: ImageAddr) -> Word {
        Word((TAG_DISK << TAG_SHIFT) | image.0)
    }

    /// The page was merged into another.
    pub fn redirect(pid: u32) -> Word {
        Word((TAG_REDIRECT << TAG_SHIFT) | u64::from(pid))
    }

    /// The page is resident.
    pub fn resident(frame: FrameRef<'_>) -> Word {
        Word(frame.address())
    }

    /// The page is resident and being merged into its left sibling.
    pub fn merging(frame: FrameRef<'_>) -> Word {
        Word(frame.address() | MERGING)
    }
}

/// The state of a page.
#[derive(Clone, Copy, Debug)]
pub enum PageState<'g> {
    /// No page.
    Free,
    /// In memory.
    Resident(FrameRef<'g>),
    /// In memory, frozen, being merged into its left sibling.
    Merging(FrameRef<'g>),
    /// On disk.
    Disk(ImageAddr),
    /// Merged into that page.
    Redirect(u32),
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
    /// When `pid` was never handed out; PIDs do not come from disk.
    #[inline]
    pub fn get(&self, pid: u32) -> &AtomicU64 {
        self.try_get(pid).expect("the PID was handed out before")
    }

    /// The state of a page, and the word that says so.
    #[inline]
    pub fn load<'g>(&self, pid: u32, _guard: &'g Guard) -> (Word, PageState<'g>) {
        // Acquire: pairs with the Release in `swap` and `set`, so the frame is initialised.
        let word = self.get(pid).load(Ordering::Acquire);
        let state = match word >> TAG_SHIFT {
            0 if word == 0 => PageState::Free,
            0 => {
                // SAFETY: P5, and `_guard` is pinned.
                let frame = unsafe { FrameRef::from_address(word & !MERGING) };
                if word & MERGING == 0 { PageState::Resident(frame) } else { PageState::Merging(frame) }
            }
            TAG_DISK => PageState::Disk(ImageAddr(word & PAYLOAD)),
            _ => PageState::Redirect((word & PAYLOAD) as u32),
        };
        (Word(word), state)
    }

    /// Changes the word of a page if it is still `from`.
    #[must_use]
    pub fn swap(&self, pid: u32, from: Word, to: Word) -> bool {
        // AcqRel: Release pairs with the Acquire in `load`, which sees the frame whole; Acquire pairs with
        // the Release of whoever set `from`, and orders what the caller frees behind it. Acquire on failure:
        // not relied on.
        self.get(pid).compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Sets the word of a page that nobody else can change: a new one, or during recovery.
    pub fn set(&self, pid: u32, to: Word) {
        // Release: pairs with the Acquire in `load`.
        self.get(pid).store(to.0, Ordering::Release);
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
        let mut pids = self.pids.lock();
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
        self.pids.lock().free.push(pid);
    }

    /// One past the largest PID handed out.
    pub fn high_water(&self) -> u64 {
        self.pids.lock().next
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
}
