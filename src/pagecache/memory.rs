//! Memory from the operating system, or, where that is not asked, from the global allocator.
//!
//! # How it works
//!
//! On Unix a piece is a mapping of its own. Its pages take up memory once they are touched, and no longer when they are
//! given back. Elsewhere, and under tools that watch memory, a piece is a block of the global allocator, all of it is
//! taken up from the start, and it can only be given back as a whole.

#![allow(unsafe_code)]

use std::ops::Range;
use std::ptr::NonNull;

/// A piece of memory, freed when it is dropped. Where it is used, and by whom, is its owner's business.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is an address range that nobody else owns, and its methods that change something need all of it.
unsafe impl Send for Memory {}

impl Memory {
    /// The address of the first byte.
    pub fn address(&self) -> usize {
        self.start.as_ptr().addr()
    }

    /// The byte at `offset`.
    pub fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.len, "outside of the piece");
        // SAFETY: within one allocation, as was just checked.
        unsafe { self.start.add(offset) }
    }
}

#[cfg(all(unix, not(miri), not(loom)))]
mod system {
    use super::*;

    /// Bytes of a region.
    pub const REGION: usize = 2 << 20;
    /// Whether memory is taken up only when it is touched.
    pub const LAZY: bool = true;

    /// Since Linux 6.1; not in every libc.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const MADV_COLLAPSE: libc::c_int = 25;

    /// What pages of the operating system are multiples of.
    fn granularity() -> usize {
        // SAFETY: gets and returns numbers only.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(64 << 10)
    }

    impl Memory {
        /// A piece of `len` bytes, a multiple of the arena's page; `None`: there is none.
        pub fn new(len: usize) -> Option<Memory> {
            let (protection, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON);
            // SAFETY: a new mapping, where the system likes it, replaces no other.
            let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
            if start == libc::MAP_FAILED {
                return None;
            }
            Some(Memory { start: NonNull::new(start.cast())?, len })
        }

        /// Asks for huge pages, with which reading is faster, or for small ones, which take up only what was asked for.
        pub fn advise(&self, huge: bool) {
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            let _ = huge;
            #[cfg(any(target_os = "linux", target_os = "android"))]
            // SAFETY: an advice about a mapping that is this piece's; it changes no content. A kernel without huge pages
            // refuses, which is as well.
            unsafe {
                let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
                libc::madvise(self.start.as_ptr().cast(), self.len, advice);
            }
        }

        /// Makes huge pages of all of it now, what is not touched included; whether the system did.
        pub fn make_huge(&self) -> bool {
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            return false;
            #[cfg(any(target_os = "linux", target_os = "android"))]
            // SAFETY: an advice about a mapping that is this piece's; what is in it stays. Older kernels refuse.
            unsafe {
                libc::madvise(self.start.as_ptr().cast(), self.len, MADV_COLLAPSE) == 0
            }
        }

        /// Touches all of it, so that who uses it first need not wait until the system has found and zeroed its pages.
        /// Nobody may use it yet.
        pub fn populate(&mut self) {
            for offset in (0..self.len).step_by(granularity()) {
                // SAFETY: within this piece, which is borrowed for this; what was never touched is zero.
                unsafe { self.start.add(offset).write_volatile(0) };
            }
        }

        /// Gives as much of a range back as is made of whole pages of the system, and says which part that is.
        ///
        /// # Safety
        /// - nobody uses what is in the range, whose content is lost
        pub unsafe fn give_back(&self, range: Range<usize>) -> Range<usize> {
            assert!(range.start <= range.end && range.end <= self.len, "outside of the piece");
            let granularity = granularity();
            let start = range.start.next_multiple_of(granularity);
            let end = range.end / granularity * granularity;
            if start >= end {
                return range.start..range.start;
            }
            // SAFETY: the range is in this piece's mapping, whose start is a multiple of the system's page, and the caller
            // promises that nobody uses it.
            let done = unsafe {
                libc::madvise(self.start.as_ptr().add(start).cast(), end - start, libc::MADV_DONTNEED)
            };
            if done == 0 { start..end } else { range.start..range.start }
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: the mapping is this piece's, and its owner has let go of it. If it fails, it stays mapped.
            let done = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
            debug_assert_eq!(done, 0, "a mapping is not unmapped");
        }
    }
}

#[cfg(not(all(unix, not(miri), not(loom))))]
mod system {
    use super::super::classes::PAGE;
    use super::*;
    use std::alloc::{Layout, alloc, dealloc};

    /// Bytes of a region: all of it is taken up at once.
    pub const REGION: usize = 256 << 10;
    /// Whether memory is taken up only when it is touched.
    pub const LAZY: bool = false;

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, PAGE).expect("a piece is smaller than the address space")
    }

    impl Memory {
        /// A piece of `len` bytes, a multiple of the arena's page; `None`: there is none.
        pub fn new(len: usize) -> Option<Memory> {
            assert!(len > 0, "a piece is not empty");
            // SAFETY: the layout has not size zero.
            let start = unsafe { alloc(layout(len)) };
            Some(Memory { start: NonNull::new(start)?, len })
        }

        /// Does nothing here.
        pub fn advise(&self, _huge: bool) {}

        /// Does nothing here.
        pub fn populate(&mut self) {}

        /// Does nothing here, and says so.
        pub fn make_huge(&self) -> bool {
            false
        }

        /// Gives nothing back, and says so.
        ///
        /// # Safety
        /// - nobody uses what is in the range, whose content is lost
        pub unsafe fn give_back(&self, range: Range<usize>) -> Range<usize> {
            range.start..range.start
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: allocated with this layout, and its owner has let go of it.
            unsafe { dealloc(self.start.as_ptr(), layout(self.len)) };
        }
    }
}

pub use system::{LAZY, REGION};

#[cfg(all(test, target_os = "linux", not(miri), not(loom)))]
mod tests {
    use super::*;

    /// Pages of the system that take up memory.
    fn resident(memory: &Memory) -> usize {
        let mut pages = vec![0_u8; REGION / 4096];
        // SAFETY: one byte for each page, of which there are no more than these.
        let done = unsafe { libc::mincore(memory.start.as_ptr().cast(), REGION, pages.as_mut_ptr()) };
        assert_eq!(done, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn pages_are_taken_up_when_touched_and_not_when_given_back() {
        let memory = Memory::new(REGION).expect("memory");
        memory.advise(true);
        memory.advise(false);
        assert_eq!(resident(&memory), 0);
        // SAFETY: within the piece, which nobody else uses.
        unsafe { memory.start.write_bytes(1, REGION / 2) };
        let touched = resident(&memory);
        assert!(touched > 0);
        // SAFETY: nobody uses it any more.
        let done = unsafe { memory.give_back(4096..REGION / 2 - 1) };
        assert!(done.start >= 4096 && done.end < REGION / 2 && done.len() >= REGION / 2 - (128 << 10));
        assert!(resident(&memory) < touched / 8);
        // SAFETY: within the piece, where nobody writes meanwhile.
        let kept = unsafe { [memory.start.read(), memory.start.add(REGION / 2 - 1).read()] };
        assert_eq!(kept, [1, 1], "what is around it stays");
    }
}
