//! The memory of frames and deltas, counted to the byte.
//!
//! # How it works
//!
//! Blocks are 16-byte aligned. Sizes are rounded up to classes about an eighth apart, and freed blocks wait in a bounded
//! cache, a stack for each class: consolidation frees a frame and its deltas and soon asks for others of about the same
//! size, which the general allocator answers slowly. What the cache does not have comes from the global
//! allocator, and what it has no room for goes back there. The count is what `cache_capacity` bounds, so every
//! frame and delta is allocated here and nowhere else.
//!
//! # Concurrency
//!
//! Freed blocks are kept in shards, and so are small amounts that the common count does not have yet: a thread uses always
//! the same shard, and threads, as long as they are few, different ones. In a shard there is a mutex for each class, held
//! for a push or a pop.

#![allow(unsafe_code)]

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

const ALIGN: usize = 16;
/// Up to here classes are 32 bytes apart, from here on eight in each doubling.
const FINE: usize = 512;
/// Longer blocks are not cached.
const LONGEST: usize = 32 << 10;
const FINE_CLASSES: usize = FINE / 32;
const CLASSES: usize = FINE_CLASSES + 8 * (LONGEST.ilog2() - FINE.ilog2()) as usize;
/// One in a model, whose stacks are small.
const SHARDS: usize = if cfg!(loom) { 1 } else { 4 };
/// Bytes that freed blocks of one class in a shard may take up.
const CACHED: usize = 128 << 10;
/// Bytes that all freed blocks of a shard together may take up; they are in no count.
const CACHED_IN_ALL: u64 = 256 << 10;
/// Bytes that a shard counts for itself, up or down.
const UNCOUNTED: i64 = 16 << 10;

/// Freed blocks of one class.
#[derive(Debug, Default)]
struct Stack(Vec<NonNull<u8>>);

// SAFETY: the blocks belong to whoever holds the stack; nobody else has their addresses.
unsafe impl Send for Stack {}

/// What a thread uses without being in the way of others.
#[derive(Debug)]
struct Shard {
    /// Bytes allocated less bytes freed that are not in the common count. Any thread, by atomic add.
    uncounted: AtomicI64,
    /// Bytes in freed blocks that are kept. Any thread, by atomic add.
    cached: AtomicU64,
    free: [Mutex<Stack>; CLASSES],
}

impl Shard {
    /// A block of a class, if one is kept.
    fn take(&self, class: usize, size: usize) -> Option<NonNull<u8>> {
        let block = self.free[class].lock().0.pop()?;
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
        let room = (stack.0.len() + 1) * size <= CACHED;
        if room {
            // Relaxed: statistic.
            self.cached.fetch_add(size as u64, Ordering::Relaxed);
            stack.0.push(block);
        }
        room
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
}

impl Default for Arena {
    fn default() -> Arena {
        let shard = |_| {
            let free = std::array::from_fn(|_| Mutex::default());
            CachePadded::new(Shard { uncounted: AtomicI64::new(0), cached: AtomicU64::new(0), free })
        };
        let zero = || CachePadded::new(AtomicU64::new(0));
        Arena {
            allocated: CachePadded::new(AtomicI64::new(0)),
            retired: zero(),
            last_id: zero(),
            shards: std::array::from_fn(shard),
        }
    }
}

/// The shard of this thread.
#[inline]
fn own_shard() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        // Relaxed: only spreading matters.
        static SHARD: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    // A thread that is ending has no number any more.
    SHARD.try_with(|shard| *shard).unwrap_or(0)
}

/// The class of a size, if blocks of it are cached, and the size of its blocks.
#[inline]
fn class(size: usize) -> (Option<usize>, usize) {
    if size <= FINE {
        let index = size.saturating_sub(1) / 32;
        return (Some(index), (index + 1) * 32);
    }
    if size > LONGEST {
        return (None, size.next_multiple_of(ALIGN));
    }
    let last = size - 1;
    let doubling = last.ilog2();
    let shift = doubling - 3;
    let eighth = last >> shift;
    let index = FINE_CLASSES + 8 * (doubling - FINE.ilog2()) as usize + (eighth - 8);
    (Some(index), (eighth + 1) << shift)
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, ALIGN).expect("a block is smaller than the address space")
}

impl Arena {
    /// An uninitialised block of at least `size` bytes, 16-byte aligned.
    pub fn alloc(&self, size: usize) -> NonNull<u8> {
        let (class, size) = class(size);
        let shard = &self.shards[own_shard()];
        self.count(shard, size as i64);
        if let Some(class) = class
            && let Some(block) = shard.take(class, size).or_else(|| self.common().take(class, size))
        {
            return block;
        }
        let layout = layout(size);
        // SAFETY: `layout` never has size zero.
        let block = unsafe { alloc(layout) };
        let Some(block) = NonNull::new(block) else { handle_alloc_error(layout) };
        block
    }

    /// Gives a block back.
    ///
    /// # Safety
    /// - `block` came from `alloc(size)` of this arena with the same `size`
    /// - it is not used any more and was not freed before
    pub unsafe fn free(&self, block: NonNull<u8>, size: usize) {
        let (class, size) = class(size);
        let shard = &self.shards[own_shard()];
        self.count(shard, -(size as i64));
        if let Some(class) = class
            && (shard.keep(class, size, block) || self.common().keep(class, size, block))
        {
            return;
        }
        // SAFETY: the caller promises that it was allocated with this layout and is free of users.
        unsafe { dealloc(block.as_ptr(), layout(size)) };
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

    /// Bytes in blocks that are not freed, rounding included.
    pub fn allocated(&self) -> u64 {
        // Relaxed: statistic.
        let shards = self.shards.iter().map(|shard| shard.uncounted.load(Ordering::Relaxed)).sum::<i64>();
        u64::try_from(self.allocated.load(Ordering::Relaxed) + shards).unwrap_or(0)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for size in 1..=LONGEST {
            let (Some(index), rounded) = class(size) else { continue };
            if rounded != size {
                continue;
            }
            for shard in &mut self.shards {
                for block in shard.free[index].get_mut().0.drain(..) {
                    // SAFETY: cached blocks were allocated with the layout of their class, and have no users.
                    unsafe { dealloc(block.as_ptr(), layout(size)) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_dense_ascending_and_near_what_was_asked_for() {
        let mut last = (0, 32);
        for size in 1..=LONGEST {
            let (index, rounded) = class(size);
            let index = index.expect("short enough to be cached");
            assert!(rounded >= size && rounded.is_multiple_of(ALIGN));
            assert!(rounded - size < 32 || (rounded - size) * 8 < size);
            assert!((index, rounded) == last || (index == last.0 + 1 && size == last.1 + 1), "at {size}");
            last = (index, rounded);
        }
        assert_eq!(last.0, CLASSES - 1);
        assert_eq!(class(LONGEST + 1), (None, LONGEST + 16));
    }

    #[test]
    fn freed_blocks_are_used_again_and_the_cache_is_bounded() {
        let arena = Arena::default();
        let first = arena.alloc(5000);
        // SAFETY: from `alloc` of that size, not used any more.
        unsafe { arena.free(first, 5000) };
        assert_eq!(arena.alloc(5100), first, "of the same class");
        let blocks: Vec<_> = (0..200).map(|_| arena.alloc(5000)).collect();
        for block in blocks {
            // SAFETY: from `alloc` of that size, not used any more.
            unsafe { arena.free(block, 5000) };
        }
        let cached: usize =
            arena.shards.iter().flat_map(|shard| &shard.free).map(|stack| stack.lock().0.len()).sum();
        assert_eq!(cached, 2 * (CACHED / class(5000).1));
        // SAFETY: from `alloc` of that class, not used any more.
        unsafe { arena.free(first, 5100) };
        assert_eq!(arena.allocated(), 0);
    }
}
