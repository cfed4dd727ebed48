//! Atomics, a mutex, a condition, parking and waiting for the protocols: of the standard library, or of the model
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
pub use self::native::{
    Backoff, Condvar, Mutex, MutexGuard, Thread, Watch, Watches, atomic, current, park, yield_now,
};

#[cfg(loom)]
pub use self::model::{
    Backoff, Condvar, Mutex, MutexGuard, Thread, Watch, Watches, atomic, current, park, yield_now,
};

#[cfg(not(loom))]
mod native {
    pub use crossbeam_utils::Backoff;
    pub use parking_lot::{Condvar, Mutex, MutexGuard};
    use std::ops::Range;
    pub use std::sync::atomic;
    pub use std::thread::{Thread, current, park, yield_now};

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
    pub use loom::thread::{Thread, current, park, yield_now};
    use std::ops::{Deref, DerefMut, Range};
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;
    use std::time::Instant;

    /// A mutex that needs no `unwrap`.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    /// The mutex is locked.
    #[derive(Debug)]
    pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    const LOCKED: &str = "unlocked only while its thread waits";
    const PANIC: &str = "a panic ends the model";

    impl<T> Mutex<T> {
        /// An unlocked mutex.
        pub fn new(value: T) -> Mutex<T> {
            Mutex(loom::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().expect(PANIC)))
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().expect(LOCKED)
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect(LOCKED)
        }
    }

    /// A condition without clocks: waiting until a time is over at once.
    #[derive(Debug)]
    pub struct Condvar(loom::sync::Condvar);

    impl Default for Condvar {
        fn default() -> Condvar {
            Condvar::new()
        }
    }

    /// Why waiting ended.
    #[derive(Clone, Copy, Debug)]
    pub struct TimedOut;

    impl TimedOut {
        /// Because of the time.
        pub fn timed_out(self) -> bool {
            true
        }
    }

    impl Condvar {
        /// Nobody waits.
        pub fn new() -> Condvar {
            Condvar(loom::sync::Condvar::new())
        }

        /// Waits to be notified.
        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let locked = guard.0.take().expect(LOCKED);
            guard.0 = Some(self.0.wait(locked).expect(PANIC));
        }

        /// The time has come.
        pub fn wait_until<T>(&self, _guard: &mut MutexGuard<'_, T>, _until: Instant) -> TimedOut {
            TimedOut
        }

        /// Wakes one that waits.
        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        /// Wakes all that wait.
        pub fn notify_all(&self) {
            self.0.notify_all();
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
