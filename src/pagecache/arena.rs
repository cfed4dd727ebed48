//! The memory of frames and deltas, counted to the byte.
//!
//! # How it works
//!
//! Blocks are 16-byte aligned and come from the global allocator, rounded to 16 bytes. The count is what
//! `cache_capacity` bounds, so every frame and delta is allocated here and nowhere else.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

const ALIGN: usize = 16;

/// Allocates and counts the blocks of one pagecache.
#[derive(Debug, Default)]
pub struct Arena {
    /// Bytes in blocks not freed yet, rounding included. Any thread, by atomic add.
    allocated: AtomicU64,
    /// Bytes in blocks that are out of use and wait for their epoch. Any thread, by atomic add.
    retired: AtomicU64,
}

fn layout(size: usize) -> Layout {
    let rounded = size.max(1).next_multiple_of(ALIGN);
    Layout::from_size_align(rounded, ALIGN).expect("a block is smaller than the address space")
}

impl Arena {
    /// An uninitialised block of at least `size` bytes, 16-byte aligned.
    pub fn alloc(&self, size: usize) -> NonNull<u8> {
        let layout = layout(size);
        // SAFETY: `layout` never has size zero.
        let block = unsafe { alloc(layout) };
        let Some(block) = NonNull::new(block) else { handle_alloc_error(layout) };
        // Relaxed: statistic.
        self.allocated.fetch_add(layout.size() as u64, Ordering::Relaxed);
        block
    }

    /// Gives a block back.
    ///
    /// # Safety
    /// - `block` came from `alloc(size)` of this arena with the same `size`
    /// - it is not used any more and was not freed before
    pub unsafe fn free(&self, block: NonNull<u8>, size: usize) {
        let layout = layout(size);
        // Relaxed: statistic.
        let before = self.allocated.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        debug_assert!(before >= layout.size() as u64, "more was freed than allocated");
        // SAFETY: the caller promises that it was allocated with this layout and is free of users.
        unsafe { dealloc(block.as_ptr(), layout) };
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

    /// Bytes in blocks that are in use.
    pub fn in_use(&self) -> u64 {
        // Relaxed: statistics.
        self.allocated().saturating_sub(self.retired.load(Ordering::Relaxed))
    }

    /// Bytes in blocks that are not freed, rounding included.
    pub fn allocated(&self) -> u64 {
        // Relaxed: statistic.
        self.allocated.load(Ordering::Relaxed)
    }
}
