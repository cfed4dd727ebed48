//! Atomics, a mutex and waiting for the lock-free protocols: of the standard library, or of the model
//! checker.
//!
//! # How it works
//!
//! Under `cfg(loom)` the same names are loom's, which runs a model through every interleaving of its threads
//! and every value that a load may return; run one with
//! `RUSTFLAGS="--cfg loom --cfg crossbeam_loom" cargo test --release --lib models`, as everything else needs
//! a model around it. [`Watch`] tells it of plain accesses behind raw pointers, which it cannot see: without
//! a happens-before edge between one and a conflicting other the model fails. In a normal build it has no
//! size and does nothing.
//!
//! # References
//!
//! CDSChecker (Norris, Demsky, OOPSLA 2013), which loom implements.

#[cfg(not(loom))]
pub use self::native::{Backoff, Mutex, Watch, Watches, atomic};

#[cfg(loom)]
pub use self::model::{Backoff, Mutex, Watch, Watches, atomic};

#[cfg(not(loom))]
mod native {
    pub use crossbeam_utils::Backoff;
    pub use parking_lot::Mutex;
    use std::ops::Range;
    pub use std::sync::atomic;

    /// One place in memory that plain accesses share.
    #[derive(Debug)]
    pub struct Watch;

    impl Watch {
        /// A new place, written by whoever makes it.
        #[inline(always)]
        pub fn new() -> Watch {
            Watch
        }

        /// It is read.
        #[inline(always)]
        pub fn read(&self) {}

        /// It is given back.
        #[inline(always)]
        pub fn freed(&self) {}
    }

    /// A place for each byte of a buffer.
    #[derive(Debug)]
    pub struct Watches;

    impl Watches {
        /// For a buffer of `len` bytes.
        pub fn new(_len: usize) -> Watches {
            Watches
        }

        /// These bytes are read.
        #[inline(always)]
        pub fn read(&self, _range: Range<usize>) {}

        /// These bytes are written.
        #[inline(always)]
        pub fn written(&self, _range: Range<usize>) {}
    }
}

/// Runs a model, with at most so many preemptions in an interleaving unless `LOOM_MAX_PREEMPTIONS` says
/// otherwise, and says how many interleavings that were. Threads that yield or wait are not preempted.
#[cfg(all(test, loom))]
pub fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    let interleavings = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&interleavings);
    builder.check(move || {
        // Relaxed: statistic.
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    // Relaxed: statistic.
    println!("{} interleavings", interleavings.load(Ordering::Relaxed));
}

#[cfg(loom)]
mod model {
    use loom::cell::UnsafeCell;
    pub use loom::sync::atomic;
    use std::ops::Range;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;

    /// A mutex that needs no `unwrap`.
    #[derive(Debug)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// An unlocked mutex.
        pub fn new(value: T) -> Mutex<T> {
            Mutex(loom::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        pub fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().expect("a panic ends the model")
        }
    }

    /// Waiting: another thread goes first.
    #[derive(Debug)]
    pub struct Backoff;

    impl Backoff {
        /// As in a normal build.
        pub fn new() -> Backoff {
            Backoff
        }

        /// Another thread goes first.
        pub fn snooze(&self) {
            loom::thread::yield_now();
        }

        /// Waiting never turns into sleeping.
        pub fn is_completed(&self) -> bool {
            false
        }
    }

    /// One place in memory that plain accesses share.
    #[derive(Debug)]
    pub struct Watch {
        accesses: UnsafeCell<()>,
        /// Set by `freed`.
        freed: AtomicBool,
    }

    impl Watch {
        /// A new place, written by whoever makes it.
        #[track_caller]
        pub fn new() -> Watch {
            Watch { accesses: UnsafeCell::new(()), freed: AtomicBool::new(false) }
        }

        /// It is read.
        #[track_caller]
        pub fn read(&self) {
            assert!(!self.freed.load(Relaxed), "read after it was freed");
            self.accesses.with(|_| ());
        }

        /// It is given back.
        #[track_caller]
        pub fn freed(&self) {
            assert!(!self.freed.swap(true, Relaxed), "freed twice");
            self.accesses.with_mut(|_| ());
        }
    }

    /// A place for each byte of a buffer, which is a few bytes long in a model.
    #[derive(Debug)]
    pub struct Watches(Box<[UnsafeCell<()>]>);

    impl Watches {
        /// For a buffer of `len` bytes.
        pub fn new(len: usize) -> Watches {
            Watches((0..len).map(|_| UnsafeCell::new(())).collect())
        }

        /// These bytes are read.
        #[track_caller]
        pub fn read(&self, range: Range<usize>) {
            self.0[range].iter().for_each(|place| place.with(|_| ()));
        }

        /// These bytes are written.
        #[track_caller]
        pub fn written(&self, range: Range<usize>) {
            self.0[range].iter().for_each(|place| place.with_mut(|_| ()));
        }
    }
}
