//! Memory with a count: what long `IVec`s share, and what iterators copy into.
//!
//! # How it works
//!
//! One block from the allocator: the number of shares and the capacity, then the bytes. A [`Part`] is a range of the bytes
//! and has one share. A [`Chunk`] has one, too, and may write: it is filled from its start on and gives parts of what is
//! filled away. It takes shares for many parts at once, so that a part costs no atomic operation, and gives back what is
//! left when it is dropped. Who gives the last share back frees the block.
//!
//! # Invariants
//!
//! - V4: the count is the number of `Block`s of the memory, and what its chunk has taken in advance, if it has one. A chunk
//!   is the only one, and is there before all parts.
//! - V5: `start + len` of a part is at most the number of bytes that were written, which is at most the capacity.
//! - V6: bytes of a part are written only when the count says that there is nobody else. A chunk writes behind all that was
//!   filled, and from the start again only when the count says that there is no part.
//!
//! # Concurrency
//!
//! The count goes up relaxed, as whoever raises it has a share, and down with Release, so that whoever finds himself alone
//! (Acquire) comes after all that the others read. Only the chunk's owner knows how many shares it has in advance. What he
//! finds may be an old count, but not one that is too small: all counts since he last took shares are at least what he
//! has in advance now, and one for each part that he gave away and whose end they do not show.

#![allow(unsafe_code)]

use crate::base::sync::Watches;
use crate::base::sync::atomic::{AtomicUsize, Ordering, fence};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, Range};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::ptr::{self, NonNull};
use std::slice;

/// Shares that a chunk takes at once; few in a model, so that it takes some again.
const BULK: usize = if cfg!(loom) { 2 } else { 1 << 10 };

/// More shares than this are a leak, which must not end with a count of zero.
const MOST: usize = isize::MAX as usize;

/// What is in front of the bytes.
struct Header {
    /// V4.
    shares: AtomicUsize,
    /// Number of bytes.
    capacity: usize,
    /// Of the bytes, for the model checker.
    watches: Watches,
}

/// A share of a block of memory.
struct Block(NonNull<Header>);

// SAFETY: the count is atomic, and V6 keeps writers from everybody else.
unsafe impl Send for Block {}
// SAFETY: as above; through a shared reference nothing but the count is written.
unsafe impl Sync for Block {}

// Nothing is half done where a panic may be. The model checker's atomics do not say so themselves.
impl UnwindSafe for Block {}
impl RefUnwindSafe for Block {}

fn layout(capacity: usize) -> Layout {
    let bytes = Layout::array::<u8>(capacity).and_then(|bytes| Layout::new::<Header>().extend(bytes));
    bytes.expect("no more than the address space").0
}

impl Block {
    /// The only share of new memory, of which nothing was written.
    fn new(capacity: usize) -> Block {
        // SAFETY: it has a header, so its size is not zero.
        let memory = unsafe { alloc(layout(capacity)) };
        Block::of_memory(memory, capacity)
    }

    /// The only share of new memory of zeros.
    fn zeroed(capacity: usize) -> Block {
        // SAFETY: it has a header, so its size is not zero.
        let memory = unsafe { alloc_zeroed(layout(capacity)) };
        let block = Block::of_memory(memory, capacity);
        block.header().watches.written(0..capacity);
        block
    }

    /// The only share of what was allocated for so many bytes, if it was.
    fn of_memory(memory: *mut u8, capacity: usize) -> Block {
        let Some(header) = NonNull::new(memory.cast::<Header>()) else {
            handle_alloc_error(layout(capacity))
        };
        let first = Header { shares: AtomicUsize::new(1), capacity, watches: Watches::new(capacity) };
        // SAFETY: it is new, and was laid out for this.
        unsafe { header.write(first) };
        Block(header)
    }

    #[inline(always)]
    fn header(&self) -> &Header {
        // SAFETY: V4, it is not freed while there is a share; after `new`, nobody has it for himself.
        unsafe { self.0.as_ref() }
    }

    /// Where the bytes are.
    #[inline(always)]
    fn start(&self) -> *mut u8 {
        self.0.as_ptr().cast::<u8>().wrapping_add(size_of::<Header>())
    }

    /// Bytes of it.
    ///
    /// # Safety
    /// - They were written.
    /// - Nobody writes them while the reference lives.
    #[inline(always)]
    unsafe fn bytes(&self, start: usize, len: usize) -> &[u8] {
        self.header().watches.read(start..start + len);
        // SAFETY: as the caller says.
        unsafe { slice::from_raw_parts(self.start().wrapping_add(start), len) }
    }

    /// Writes bytes.
    ///
    /// # Safety
    /// - There is room for them from `at` on.
    /// - Nobody else reads or writes there.
    #[inline(always)]
    unsafe fn write(&self, at: usize, bytes: &[u8]) {
        self.header().watches.written(at..at + bytes.len());
        // SAFETY: as the caller says; so what is read is somewhere else.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start().wrapping_add(at), bytes.len()) };
    }

    /// Takes more shares.
    #[inline(always)]
    fn raise(&self, shares: usize) {
        // Relaxed: nothing is read that the share of the caller does not protect.
        let before = self.header().shares.fetch_add(shares, Ordering::Relaxed);
        if before > MOST {
            std::process::abort();
        }
    }

    /// Whether there are no shares but so many.
    #[inline(always)]
    fn are_all(&self, shares: usize) -> bool {
        // Acquire: pairs with the Release in `drop`, so that what others read they read before.
        self.header().shares.load(Ordering::Acquire) == shares
    }

    /// Frees the memory.
    ///
    /// # Safety
    /// - Nobody has a share, and it is not used any more.
    #[cold]
    #[inline(never)]
    unsafe fn free(&self) {
        let capacity = self.header().capacity;
        self.header().watches.written(0..capacity);
        // SAFETY: nobody uses it.
        unsafe { self.0.drop_in_place() };
        // SAFETY: it came from `alloc` with this layout.
        unsafe { dealloc(self.0.as_ptr().cast(), layout(capacity)) };
    }
}

impl Clone for Block {
    #[inline]
    fn clone(&self) -> Block {
        self.raise(1);
        Block(self.0)
    }
}

impl Drop for Block {
    #[inline]
    fn drop(&mut self) {
        // Release: pairs with the Acquire fence of whoever frees it, and with the Acquire in `are_all`.
        if self.header().shares.fetch_sub(1, Ordering::Release) == 1 {
            // Acquire: pairs with the Release of all others; what they read they have read.
            fence(Ordering::Acquire);
            // SAFETY: V4, that was the last one.
            unsafe { self.free() };
        }
    }
}

/// A range of shared memory.
#[derive(Clone)]
pub struct Part {
    block: Block,
    start: usize,
    len: usize,
}

impl Part {
    /// A copy of two runs of bytes, one behind the other.
    pub fn joined(front: &[u8], back: &[u8]) -> Part {
        let len = front.len() + back.len();
        let block = Block::new(len);
        // SAFETY: it is long enough, and new.
        unsafe { block.write(0, front) };
        // SAFETY: as above.
        unsafe { block.write(front.len(), back) };
        Part { block, start: 0, len }
    }

    /// Zeros.
    pub fn zeroed(len: usize) -> Part {
        Part { block: Block::zeroed(len), start: 0, len }
    }

    /// A part of the part.
    ///
    /// # Panics
    /// When the range does not lie within it.
    pub fn within(&self, range: Range<usize>) -> Part {
        assert!(range.start <= range.end && range.end <= self.len, "V5: the range lies within the part");
        Part { block: self.block.clone(), start: self.start + range.start, len: range.len() }
    }

    /// Bytes of memory that are not freed as long as it is there.
    pub fn capacity(&self) -> usize {
        self.block.header().capacity
    }

    /// The bytes, for writing: in place if nobody else has a share, else of a copy of just these.
    pub fn own(&mut self) -> &mut [u8] {
        if !self.block.are_all(1) {
            *self = Part::joined(self, &[]);
        }
        self.block.header().watches.written(self.start..self.start + self.len);
        // SAFETY: V5; V6, nobody else has a share, and without one there is no way to get one.
        unsafe { slice::from_raw_parts_mut(self.block.start().wrapping_add(self.start), self.len) }
    }
}

impl Deref for Part {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        debug_assert!(self.start + self.len <= self.block.header().capacity, "V5");
        // SAFETY: V5; V6, who writes to a part has no other share and no chunk.
        unsafe { self.block.bytes(self.start, self.len) }
    }
}

/// Memory that is filled from its start on, and of which parts are given away.
pub struct Chunk {
    block: Block,
    /// Bytes that were written since it was empty.
    filled: usize,
    /// Shares for parts that are to be given away.
    ready: usize,
}

impl Chunk {
    /// An empty one.
    pub fn new(capacity: usize) -> Chunk {
        Chunk { block: Block::new(capacity), filled: 0, ready: 0 }
    }

    /// Number of bytes that it may have.
    #[inline(always)]
    pub fn capacity(&self) -> usize {
        self.block.header().capacity
    }

    /// What was filled.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: that was written; V6, what writes there needs the chunk, or there are no parts.
        unsafe { self.block.bytes(0, self.filled) }
    }

    /// Writes bytes behind what was filled.
    ///
    /// # Panics
    /// When there is no room.
    #[inline(always)]
    pub fn append(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.capacity() - self.filled, "no more than there is room for");
        // SAFETY: there is room; V6, parts have only what was filled.
        unsafe { self.block.write(self.filled, bytes) };
        self.filled += bytes.len();
    }

    /// Makes it empty, if there are no parts of it; whether that is so.
    pub fn clear(&mut self) -> bool {
        let alone = self.block.are_all(1 + self.ready);
        if alone {
            self.filled = 0;
        }
        alone
    }

    /// Whether it has shares for parts.
    #[inline(always)]
    pub fn is_ready(&self) -> bool {
        self.ready > 0
    }

    /// A part of what was filled.
    ///
    /// # Panics
    /// When the range does not lie within it.
    #[inline(always)]
    pub fn part(&mut self, range: &Range<usize>) -> Part {
        assert!(range.start <= range.end && range.end <= self.filled, "V5: the range was filled");
        if self.ready == 0 {
            self.take_shares();
        }
        // V4: here is what one of the shares is for.
        self.ready -= 1;
        Part { block: Block(self.block.0), start: range.start, len: range.end - range.start }
    }

    #[cold]
    #[inline(never)]
    fn take_shares(&mut self) {
        self.block.raise(BULK);
        self.ready = BULK;
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if self.ready > 0 {
            // Relaxed: the share of its own, which is given back behind this, is not the last one without that of all parts.
            self.block.header().shares.fetch_sub(self.ready, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk").field("capacity", &self.capacity()).field("filled", &self.filled).finish()
    }
}
