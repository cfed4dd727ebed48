//! Asking for memory before it is needed, so that several lines come at once instead of one after the other.

#![allow(unsafe_code)]

/// Bytes that come together.
const LINE: usize = 64;

/// Asks for `len` bytes from `ptr` on, once for each [`LINE`] of them, and waits for none. If `ptr` is within a line, the
/// last one may be left out. Any address will do: nothing is read. Does nothing where there is no such instruction.
#[inline(always)]
pub fn prefetch(ptr: *const u8, len: usize) {
    for at in (0..len).step_by(LINE) {
        let line = ptr.wrapping_add(at);
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint, which cannot fault; SSE is part of x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = line;
    }
}
