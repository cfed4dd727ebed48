//! The hidden and deprecated names of 0.34, in one place.
//!
//! They are here for the programs that use them, and are not meant for new ones. Names that described
//! the log of 0.34 (`Log`, `LogRead`, `PageCache`, `BatchManifest`, ...) have nothing to stand for any
//! more and are gone. `Tree::set`, `Tree::del`, `Db::open` and the like are with their types.

use super::config::Config;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::OnceLock;

#[doc(hidden)]
pub use crossbeam_epoch::{Atomic, Guard as CrossbeamGuard, Owned, Shared, pin as crossbeam_pin};

/// What `Db::space_amplification` was promised to stay below.
#[doc(hidden)]
pub const MAX_SPACE_AMPLIFICATION: f64 = 5.0;

/// Bytes of the largest record header of 0.34.
#[doc(hidden)]
pub const MAX_MSG_HEADER_LEN: usize = 32;

/// Bytes of a segment header of 0.34.
#[doc(hidden)]
pub const SEG_HEADER_LEN: usize = 20;

/// Records that 0.34 made sure to fit into a segment.
#[doc(hidden)]
pub const MINIMUM_ITEMS_PER_SEGMENT: usize = 4;

/// A page identifier as 0.34 had it.
#[doc(hidden)]
pub type PageId = u64;

/// A logical position in the log as 0.34 had it.
#[doc(hidden)]
pub type Lsn = i64;

/// A byte position in the file as 0.34 had it.
#[doc(hidden)]
pub type LogOffset = u64;

/// A configuration that was found valid.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct RunningConfig(Config);

impl RunningConfig {
    /// Wraps a configuration that was validated before.
    pub(crate) const fn new(config: Config) -> RunningConfig {
        RunningConfig(config)
    }

    /// The snapshot files of 0.34: there are none any more.
    ///
    /// # Errors
    /// None.
    pub fn get_snapshot_files(&self) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

impl Deref for RunningConfig {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.0
    }
}

/// What `Db::context` is: the configuration that the database was opened with.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Context(RunningConfig);

impl Context {
    /// The context of a database opened with this configuration.
    pub(crate) const fn new(config: RunningConfig) -> Context {
        Context(config)
    }
}

impl Deref for Context {
    type Target = RunningConfig;

    fn deref(&self) -> &RunningConfig {
        &self.0
    }
}

/// Participation in the epoch of crossbeam's default collector.
#[doc(hidden)]
pub struct Guard(crossbeam_epoch::Guard);

/// Pins the current thread in crossbeam's default collector.
#[doc(hidden)]
#[must_use]
pub fn pin() -> Guard {
    Guard(crossbeam_epoch::pin())
}

impl Deref for Guard {
    type Target = crossbeam_epoch::Guard;

    fn deref(&self) -> &crossbeam_epoch::Guard {
        &self.0
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A value that is computed when it is first used; for statics.
#[doc(hidden)]
pub struct Lazy<T, F> {
    value: OnceLock<T>,
    init: F,
}

impl<T, F> Lazy<T, F> {
    /// A value that `init` will compute, once.
    pub const fn new(init: F) -> Lazy<T, F> {
        Lazy { value: OnceLock::new(), init }
    }
}

impl<T, F: Fn() -> T> Deref for Lazy<T, F> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.get_or_init(&self.init)
    }
}

impl<T: fmt::Debug, F> fmt::Debug for Lazy<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lazy").field(&self.value).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn a_lazy_static_is_computed_once() {
        static CALLS: Lazy<Mutex<u32>, fn() -> Mutex<u32>> = Lazy::new(|| Mutex::new(0));
        static VALUE: Lazy<u32, fn() -> u32> = Lazy::new(|| {
            *CALLS.lock().unwrap() += 1;
            7
        });
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(|| *VALUE)).collect();
        for thread in threads {
            assert_eq!(thread.join().expect("does not panic"), 7);
        }
        assert_eq!(*CALLS.lock().unwrap(), 1);
    }

    /// Not under miri, whose aliasing rules crossbeam's lists do not keep.
    #[test]
    #[cfg(not(miri))]
    fn a_guard_is_one_of_crossbeam() {
        let guard = pin();
        guard.flush();
        assert!(crossbeam_epoch::is_pinned());
        drop(guard);
        assert!(!crossbeam_epoch::is_pinned());
    }

    #[test]
    fn a_context_leads_to_its_configuration() {
        fn check<T: Clone + fmt::Debug + Send + Sync>(_: &T) {}
        let running = RunningConfig::new(Config::new().path("somewhere").cache_capacity(1234));
        check(&running);
        let context = Context::new(running);
        check(&context);
        assert_eq!(context.get_path(), PathBuf::from("somewhere"));
        assert_eq!(context.cache_capacity, 1234);
        assert!(context.get_snapshot_files().expect("never fails").is_empty());
    }
}
