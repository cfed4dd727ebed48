//! The memory of frames and deltas, counted to the byte.
//!
//! # How it works
//!
//! Blocks are 16-byte aligned. Sizes are rounded up to [`classes`](super::classes), and freed blocks wait in a bounded
//! cache, a stack for each class: consolidation frees a frame and its deltas and soon asks for others of about the same
//! size. What the cache does not have comes from [`spans`](super::spans), and what it has no room for, or what nobody
//! wanted for some time, goes back there. The general allocator has memory for each thread, and would keep too much of
//! what one thread allocates and another frees. The count is what `cache_capacity` bounds, so every frame and delta is
//! allocated here and nowhere else.
//!
//! # Concurrency
//!
//! Freed blocks are kept in shards, and so are small amounts that the common count does not have yet: a thread uses always
//! the same shard, and threads, as long as they are few, different ones. In a shard there is a mutex for each class, held
//! for a push or a pop.
//!
//! While memory is compacted no freed block is kept, so that what is allocated then lies as low as possible.

#![allow(unsafe_code)]

use super::classes::{CLASSES, SHAPES, class};
use super::spans::Spans;
use crate::base::thread_number;
use crossbeam_utils::CachePadded;
use parking_lot::Mutex;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

/// One in a model, whose stacks are small.
const SHARDS: usize = if cfg!(loom) { 1 } else { 4 };
/// Bytes that freed blocks of one class in a shard may take up, and how many there may be: each keeps a page in use.
const CACHED: usize = 64 << 10;
const CACHED_BLOCKS: usize = 64;
/// Bytes that all freed blocks of a shard together may take up; they are in no count.
const CACHED_IN_ALL: u64 = 128 << 10;
/// Blocks freed in a shard before it is seen whether a class has some that nobody wants.
const VISIT: u32 = if cfg!(miri) { 4 } else { 128 };
/// AddressSanitizer sees that a block is used which was freed only if it came from the general allocator.
const DIRECT: bool = cfg!(any(fuzzing, all(crossbeam_sanitize, not(crossbeam_sanitize_thread))));
/// Bytes that a shard counts for itself, up or down.
const UNCOUNTED: i64 = 16 << 10;

/// Freed blocks of one class.
#[derive(Debug, Default)]
struct Stack {
    blocks: Vec<NonNull<u8>>,
    /// The fewest there were since the last visit: so many were not wanted in that time.
    fewest: usize,
}

// SAFETY: the blocks belong to whoever holds the stack; nobody else has their addresses.
unsafe impl Send for Stack {}

/// What a thread uses without being in the way of others.
#[derive(Debug)]
struct Shard {
    /// Bytes allocated less bytes freed that are not in the common count. Any thread, by atomic add.
    uncounted: AtomicI64,
    /// Bytes in freed blocks that are kept. Any thread, by atomic add.
    cached: AtomicU64,
    /// Blocks that were to be kept so far. Any thread, by atomic add.
    frees: AtomicU32,
    free: [Mutex<Stack>; CLASSES],
}

impl Shard {
    /// A block of a class, if one is kept.
    fn take(&self, class: usize, size: usize) -> Option<NonNull<u8>> {
        let mut stack = self.free[class].lock();
        let block = stack.blocks.pop()?;
        stack.fewest = stack.fewest.min(stack.blocks.len());
        drop(stack);
        // Relaxed: statistic.
        self.cached.fetch_sub(size as u64, Ordering::Relaxed);
        Some(block)
    }

    /// Keeps a block, if there is room.
    fn keep(&self, class: usize, size: usize, block: NonNull<u8>) -> bool {
        // Relaxed: statistic.
        if self.cached.load(Ordering::Relaxed) + size as u64 > CACHED_IN_ALL {
            return false;
        }
        let mut stack = self.free[class].lock();
        let room = stack.blocks.len() < CACHED_BLOCKS.min(CACHED / size);
        if room {
            // Relaxed: statistic.
            self.cached.fetch_add(size as u64, Ordering::Relaxed);
            stack.blocks.push(block);
        }
        room
    }

    /// The class whose turn it is to be visited after one more block was freed.
    #[inline]
    fn due(&self) -> Option<usize> {
        // Relaxed: only a rhythm.
        let frees = self.frees.fetch_add(1, Ordering::Relaxed);
        frees.is_multiple_of(VISIT).then_some((frees / VISIT) as usize % CLASSES)
    }

    /// Takes the blocks of a class out that nobody wanted since the last visit.
    fn visit(&self, class: usize) -> Vec<NonNull<u8>> {
        self.take_out(class, |stack| stack.fewest)
    }

    /// Takes all blocks of a class out.
    fn empty(&self, class: usize) -> Vec<NonNull<u8>> {
        self.take_out(class, |stack| stack.blocks.len())
    }

    fn take_out(&self, class: usize, how_many: impl FnOnce(&Stack) -> usize) -> Vec<NonNull<u8>> {
        let mut stack = self.free[class].lock();
        let unwanted = how_many(&stack);
        let blocks: Vec<_> = stack.blocks.drain(..unwanted).collect();
        stack.fewest = stack.blocks.len();
        drop(stack);
        // Relaxed: statistic.
        self.cached.fetch_sub((blocks.len() * SHAPES[class].size) as u64, Ordering::Relaxed);
        blocks
    }
}

/// Allocates and counts the blocks of one pagecache.
#[derive(Debug)]
pub struct Arena {
    /// Bytes in blocks not freed yet, rounding included, but for what shards count themselves. Any thread, by atomic
    /// add.
    allocated: CachePadded<AtomicI64>,
    /// Bytes in blocks that are out of use and wait for their epoch. Any thread, by atomic add.
    retired: CachePadded<AtomicU64>,
    /// Number of the last frame. Any thread, by atomic add.
    last_id: CachePadded<AtomicU64>,
    /// The last is common to all threads: what one frees too much of another may lack.
    shards: [CachePadded<Shard>; SHARDS + 1],
    spans: Spans,
    /// Freed blocks are not kept. Set while memory is compacted.
    keeps_none: AtomicBool,
}

impl Default for Arena {
    fn default() -> Arena {
        let shard = |_| {
            let free = std::array::from_fn(|_| Mutex::default());
            CachePadded::new(Shard {
                uncounted: AtomicI64::new(0),
                cached: AtomicU64::new(0),
                frees: AtomicU32::new(0),
                free,
            })
        };
        let zero = || CachePadded::new(AtomicU64::new(0));
        Arena {
            allocated: CachePadded::new(AtomicI64::new(0)),
            retired: zero(),
            last_id: zero(),
            shards: std::array::from_fn(shard),
            spans: Spans::default(),
            keeps_none: AtomicBool::new(false),
        }
    }
}

/// Memory that is to become free: ranges of addresses, in order.
#[derive(Debug)]
pub struct Surplus<'a>(&'a [Range<usize>]);

impl Surplus<'_> {
    /// All memory.
    #[cfg(test)]
    #[expect(clippy::single_range_in_vec_init, reason = "it is one range")]
    pub const ALL: Surplus<'static> = Surplus(&[0..usize::MAX]);

    /// Whether an address lies in it.
    pub fn has(&self, address: u64) -> bool {
        let after = self.0.partition_point(|range| range.start as u64 <= address);
        self.0[..after].last().is_some_and(|range| address < range.end as u64)
    }
}

/// The shard of this thread.
#[inline]
fn own_shard() -> usize {
    thread_number() % SHARDS
}

impl Arena {
    /// From now on memory is in huge pages of the system: faster to read, but a little more of it.
    pub fn use_huge_pages(&self) {
        self.spans.use_huge_pages();
    }

    /// As [`Spans::give_back_after`].
    pub fn give_back_after(&self, free_most: impl FnOnce()) {
        self.spans.give_back_after(free_most);
    }

    /// As [`Spans::grows`].
    #[inline]
    pub fn grows(&self) -> bool {
        self.spans.grows()
    }

    /// As [`Spans::make_ready`].
    pub fn make_ready(&self, regions: usize) {
        self.spans.make_ready(regions);
    }

    /// As [`Spans::has_surplus`].
    pub fn has_surplus(&self) -> bool {
        self.spans.has_surplus()
    }

    /// As [`Spans::vacate`], and meanwhile no freed block is kept.
    pub fn vacate(&self, mut empty: impl FnMut(&Surplus<'_>)) {
        self.spans.drop_ready();
        if !self.has_surplus() {
            return;
        }
        self.keep_none(true);
        self.spans.vacate(|ranges| empty(&Surplus(ranges)));
        self.keep_none(false);
        self.spans.make_huge();
    }

    /// Whether freed blocks are kept from here on; those that are kept go back if not.
    fn keep_none(&self, none: bool) {
        // Relaxed: a hint; a block that is kept all the same goes back some time.
        self.keeps_none.store(none, Ordering::Relaxed);
        if none {
            for shard in &self.shards {
                (0..CLASSES).for_each(|class| self.give_back(class, shard.empty(class)));
            }
        }
    }

    /// An uninitialised block of at least `size` bytes, 16-byte aligned.
    pub fn alloc(&self, size: usize) -> NonNull<u8> {
        let (class, size) = class(size);
        let class = class.filter(|_| !DIRECT);
        let shard = &self.shards[own_shard()];
        self.count(shard, size as i64);
        if let Some(class) = class
            && let Some(block) = shard.take(class, size).or_else(|| self.common().take(class, size))
        {
            return block;
        }
        self.spans.alloc(class, size)
    }

    /// Gives a block back.
    ///
    /// # Safety
    /// - `block` came from `alloc(size)` of this arena with the same `size`
    /// - it is not used any more and was not freed before
    pub unsafe fn free(&self, block: NonNull<u8>, size: usize) {
        let (class, size) = class(size);
        let class = class.filter(|_| !DIRECT);
        let shard = &self.shards[own_shard()];
        self.count(shard, -(size as i64));
        // Relaxed: a hint.
        if let Some(class) = class
            && !self.keeps_none.load(Ordering::Relaxed)
        {
            self.tidy(shard);
            if shard.keep(class, size, block) {
                return;
            }
            self.tidy(self.common());
            if self.common().keep(class, size, block) {
                return;
            }
        }
        // SAFETY: the caller promises that `alloc` returned it for a size of this class, and that it is free of users;
        // what `alloc` returns came from `spans`, whether it was kept in between or not.
        unsafe { self.spans.free(class, size, block) };
    }

    /// Gives blocks of a class back that nobody wants, once in a while.
    #[inline]
    fn tidy(&self, shard: &Shard) {
        let Some(class) = shard.due() else { return };
        self.give_back(class, shard.visit(class));
    }

    /// Gives blocks back that were kept.
    fn give_back(&self, class: usize, blocks: Vec<NonNull<u8>>) {
        for block in blocks {
            // SAFETY: a kept block came from `spans` for its class, and belongs to whoever took it out of its stack.
            unsafe { self.spans.free(Some(class), SHAPES[class].size, block) };
        }
    }

    fn common(&self) -> &Shard {
        &self.shards[SHARDS]
    }

    /// Counts bytes that were allocated or, below zero, freed.
    #[inline]
    fn count(&self, shard: &Shard, bytes: i64) {
        // Relaxed: statistic.
        let now = shard.uncounted.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if now.abs() > UNCOUNTED {
            // Relaxed: statistic. Whoever else has added meanwhile is counted, too.
            let moved = shard.uncounted.swap(0, Ordering::Relaxed);
            self.allocated.fetch_add(moved, Ordering::Relaxed);
        }
    }

    /// A number that was not handed out before.
    pub fn next_id(&self) -> u64 {
        // Relaxed: only uniqueness matters.
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Notes that `bytes` went out of use and wait for their epoch.
    pub fn note_retired(&self, bytes: usize) {
        // Relaxed: statistic.
        self.retired.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes that `bytes` that waited were freed.
    pub fn note_reclaimed(&self, bytes: usize) {
        // Relaxed: statistic.
        self.retired.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes in blocks that went out of use and wait for their epoch.
    #[inline]
    pub fn retired(&self) -> u64 {
        // Relaxed: statistic.
        self.retired.load(Ordering::Relaxed)
    }

    /// Bytes in blocks that are in use, about.
    #[inline]
    pub fn in_use(&self) -> u64 {
        self.about().saturating_sub(self.retired())
    }

    /// Bytes in blocks that are not freed, rounding included, but for what shards have not told yet.
    #[inline]
    pub fn about(&self) -> u64 {
        // Relaxed: statistic.
        u64::try_from(self.allocated.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Bytes of memory that blocks take up, and those that were freed and may be used again.
    #[cfg_attr(not(test), expect(dead_code, reason = "for statistics"))]
    pub fn held(&self) -> u64 {
        self.spans.held()
    }

    /// Bytes in blocks that are not freed, rounding included.
    pub fn allocated(&self) -> u64 {
        // Relaxed: statistic.
        let shards = self.shards.iter().map(|shard| shard.uncounted.load(Ordering::Relaxed)).sum::<i64>();
        u64::try_from(self.allocated.load(Ordering::Relaxed) + shards).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_blocks_are_used_again_and_the_cache_is_bounded() {
        let arena = Arena::default();
        let first = arena.alloc(5000);
        // SAFETY: from `alloc` of that size, not used any more.
        unsafe { arena.free(first, 5000) };
        assert_eq!(arena.alloc(5100), first, "of the same class");
        let blocks: Vec<_> = (0..2000).map(|_| arena.alloc(5000)).collect();
        for block in blocks {
            // SAFETY: from `alloc` of that size, not used any more.
            unsafe { arena.free(block, 5000) };
        }
        let cached: usize =
            arena.shards.iter().flat_map(|shard| &shard.free).map(|stack| stack.lock().blocks.len()).sum();
        assert_eq!(cached, 2 * (CACHED / class(5000).1));
        assert!(arena.held() < arena.allocated() + (2 << 20), "what is not kept goes back");
        // SAFETY: from `alloc` of that class, not used any more.
        unsafe { arena.free(first, 5100) };
        assert_eq!(arena.allocated(), 0);
    }

    /// Each kept block keeps a page in use, if others of its span have been freed.
    #[test]
    fn kept_blocks_that_nobody_wants_go_back() {
        let arena = Arena::default();
        let unwanted: Vec<_> = (0..50).map(|_| arena.alloc(700)).collect();
        for block in unwanted {
            // SAFETY: from `alloc` of that size, not used any more.
            unsafe { arena.free(block, 700) };
        }
        let kept = || {
            arena
                .shards
                .iter()
                .map(|shard| shard.free[class(700).0.unwrap()].lock().blocks.len())
                .sum::<usize>()
        };
        assert_eq!(kept(), 50);
        for _ in 0..2 * CLASSES * VISIT as usize {
            let block = arena.alloc(5000);
            // SAFETY: from `alloc` of that size, not used any more.
            unsafe { arena.free(block, 5000) };
        }
        assert_eq!(kept(), 0);
        assert_eq!(arena.allocated(), 0);
    }
}
