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
//! A mutex for each class, held for a push or a pop.

#![allow(unsafe_code)]

use parking_lot::Mutex;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

const ALIGN: usize = 16;
/// Up to here classes are 32 bytes apart, from here on eight in each doubling.
const FINE: usize = 512;
/// Longer blocks are not cached.
const LONGEST: usize = 32 << 10;
const FINE_CLASSES: usize = FINE / 32;
const CLASSES: usize = FINE_CLASSES + 8 * (LONGEST.ilog2() - FINE.ilog2()) as usize;
/// Bytes that freed blocks of one class may take up.
const CACHED: usize = 128 << 10;
/// Bytes that all freed blocks together may take up; they are in no count.
const CACHED_IN_ALL: u64 = 2 << 20;

/// Freed blocks of one class.
#[derive(Debug, Default)]
struct Stack(Vec<NonNull<u8>>);

// SAFETY: the blocks belong to whoever holds the stack; nobody else has their addresses.
unsafe impl Send for Stack {}

/// Allocates and counts the blocks of one pagecache.
#[derive(Debug)]
pub struct Arena {
    /// Bytes in blocks not freed yet, rounding included. Any thread, by atomic add.
    allocated: AtomicU64,
    /// Bytes in blocks that are out of use and wait for their epoch. Any thread, by atomic add.
    retired: AtomicU64,
    /// Bytes in freed blocks that are kept. Any thread, by atomic add.
    cached: AtomicU64,
    /// Number of the last frame. Any thread, by atomic add.
    last_id: AtomicU64,
    free: [Mutex<Stack>; CLASSES],
}

impl Default for Arena {
    fn default() -> Arena {
        let free = std::array::from_fn(|_| Mutex::default());
        let zero = || AtomicU64::new(0);
        Arena { allocated: zero(), retired: zero(), cached: zero(), last_id: zero(), free }
    }
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
        // Relaxed: statistic.
        self.allocated.fetch_add(size as u64, Ordering::Relaxed);
        if let Some(block) = class.and_then(|class| self.free[class].lock().0.pop()) {
            // Relaxed: statistic.
            self.cached.fetch_sub(size as u64, Ordering::Relaxed);
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
        // Relaxed: statistic.
        let before = self.allocated.fetch_sub(size as u64, Ordering::Relaxed);
        debug_assert!(before >= size as u64, "more was freed than allocated");
        if let Some(class) = class {
            let mut stack = self.free[class].lock();
            // Relaxed: statistic.
            let room = self.cached.load(Ordering::Relaxed) + size as u64 <= CACHED_IN_ALL;
            if room && (stack.0.len() + 1) * size <= CACHED {
                self.cached.fetch_add(size as u64, Ordering::Relaxed);
                stack.0.push(block);
                return;
            }
        }
        // SAFETY: the caller promises that it was allocated with this layout and is free of users.
        unsafe { dealloc(block.as_ptr(), layout(size)) };
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

    /// Bytes in blocks that are in use.
    #[inline]
    pub fn in_use(&self) -> u64 {
        self.allocated().saturating_sub(self.retired())
    }

    /// Bytes in blocks that are not freed, rounding included.
    #[inline]
    pub fn allocated(&self) -> u64 {
        // Relaxed: statistic.
        self.allocated.load(Ordering::Relaxed)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for size in 1..=LONGEST {
            let (Some(index), rounded) = class(size) else { continue };
            if rounded != size {
                continue;
            }
            for block in self.free[index].get_mut().0.drain(..) {
                // SAFETY: cached blocks were allocated with the layout of their class, and have no users.
                unsafe { dealloc(block.as_ptr(), layout(size)) };
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
        let cached: usize = arena.free.iter().map(|stack| stack.lock().0.len()).sum();
        assert_eq!(cached, CACHED / class(5000).1);
        // SAFETY: from `alloc` of that class, not used any more.
        unsafe { arena.free(first, 5100) };
        assert_eq!(arena.allocated(), 0);
    }
}
