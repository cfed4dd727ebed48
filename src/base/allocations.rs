//! With the feature `measure_allocs`, a global allocator that counts.
//!
//! It is the system's, and adds up what the whole program allocates; the profile of a database shows it.

#![allow(unsafe_code)]

#[cfg(feature = "measure_allocs")]
mod counting {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// How many allocations there were. Statistic.
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    /// Their bytes. Statistic.
    static BYTES: AtomicUsize = AtomicUsize::new(0);

    /// The system's allocator, counted.
    struct Counting;

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    // SAFETY: every call is passed on as it is to `System`, which keeps the contract; counting allocates nothing.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // Relaxed: statistics.
            COUNT.fetch_add(1, Ordering::Relaxed);
            BYTES.fetch_add(layout.size(), Ordering::Relaxed);
            // SAFETY: the caller's promises are those that `System` asks for.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: the caller's promises are those that `System` asks for.
            unsafe { System.dealloc(pointer, layout) }
        }
    }

    /// Allocations and their bytes so far.
    pub fn counted() -> (usize, usize) {
        // Relaxed: statistics.
        (COUNT.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed))
    }
}

/// A line about what was allocated so far.
#[cfg(feature = "measure_allocs")]
pub fn allocations() -> String {
    let (count, bytes) = counting::counted();
    format!("{count} allocations of {bytes} bytes\n")
}

/// Nothing was counted.
#[cfg(not(any(feature = "measure_allocs", feature = "no_metrics")))]
pub fn allocations() -> String {
    String::new()
}
