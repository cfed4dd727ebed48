//! `Config`: what a database is opened with, and `Mode`.
//!
//! # How it works
//!
//! A `Config` is a shared, immutable [`Inner`]. A setter takes the `Config` and changes the `Inner`, of
//! a copy if anybody else has it: another `Config` or an open database. So a configuration in use never
//! changes.
//!
//! What must be one for all copies is in a [`Place`], which they share: the directory and what became
//! of it. A setter that makes the configuration mean another directory makes a new `Place`.
//!
//! ```text
//!   Config --> Inner --.                    Place
//!   Config --> Inner ---> Place             scratch   the made-up directory, once it was asked for
//!   Db -----'                               doomed    the directory to remove
//!                                           error     the first failure of a background task
//! ```
//!
//! # Invariants
//!
//! - C1: a directory is removed only if it was opened as temporary, the last time it was opened, and only
//!   when neither a database nor any configuration for it is left.

use super::compat::RunningConfig;
use super::db::Db;
use super::engine;
use crate::error::{Error, Result};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

/// The directory of a configuration without a path. A temporary one of this name counts as without.
const DEFAULT_PATH: &str = "default.sled";

/// The smallest and largest size of a segment that may be asked for, in bytes; the log takes 4096 for less.
const SEGMENT_SIZES: std::ops::RangeInclusive<usize> = 256..=16 << 20;

/// The smallest cache, in bytes.
const MIN_CACHE_CAPACITY: u64 = 256;

/// Opens the database in the directory `path` with the default [`Config`], and creates it, with
/// the directories above it, if it is not there.
///
/// # Errors
/// As [`Config::open`].
///
/// # Examples
/// ```
/// # fn main() -> sled::Result<()> {
/// # let path = std::env::temp_dir().join(format!("sled-doc-open-{}", std::process::id()));
/// let db = sled::open(&path)?;
/// db.insert("key", "value")?;
/// assert_eq!(db.get("key")?, Some("value".into()));
/// # drop(db);
/// # std::fs::remove_dir_all(&path)?;
/// # Ok(())
/// # }
/// ```
pub fn open<P: AsRef<Path>>(path: P) -> Result<Db> {
    Config::new().path(path).open()
}

/// What to favour when space and speed are at odds; see [`Config::mode`].
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// Use less space on disk: clean sooner.
    LowSpace,
    /// Do more operations in a second: clean later.
    HighThroughput,
}

/// What to open a database with: made with [`new`](Config::new), changed with the other methods one
/// after the other, used with [`open`](Config::open), as often as needed.
///
/// Cloning is cheap. Nothing that is done to a clone changes the original or an open database.
///
/// # Examples
/// ```
/// # fn main() -> sled::Result<()> {
/// let config = sled::Config::new().temporary(true).cache_capacity(64 << 20).flush_every_ms(Some(100));
/// let db = config.open()?;
/// db.insert("key", "value")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Config(Arc<Inner>);

/// The values behind a [`Config`], which derefs to this. Each is documented at the setter of its name.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Inner {
    pub cache_capacity: u64,
    pub flush_every_ms: Option<u64>,
    pub segment_size: usize,
    pub path: PathBuf,
    pub create_new: bool,
    pub read_only: bool,
    pub mode: Mode,
    pub temporary: bool,
    pub use_compression: bool,
    pub compression_factor: i32,
    pub print_profile_on_drop: bool,
    pub idgen_persist_interval: u64,
    /// The version of the interface: major, minor.
    pub version: (usize, usize),
    /// What all copies for the same directory share.
    place: Arc<Place>,
}

/// What all configurations for one directory, and databases opened with them, share.
#[derive(Debug, Default)]
struct Place {
    /// A directory name nobody else has; chosen when it is first needed.
    scratch: OnceLock<PathBuf>,
    /// The directory to remove with the last reference: what was opened as temporary, absolute.
    doomed: Mutex<Option<PathBuf>>,
    /// The first failure since the database was last opened.
    error: Mutex<Option<Error>>,
}

/// Locks; a panic elsewhere cannot leave an `Option` half-written.
fn lock<T>(mutex: &Mutex<Option<T>>) -> MutexGuard<'_, Option<T>> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(directory) = lock(&self.doomed).take() else { return };
        match std::fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                log::warn!("could not remove the temporary database {}: {e}", directory.display());
            }
            _ => {}
        }
    }
}

/// A directory name that was never used: in memory where the system offers that.
fn scratch_directory() -> PathBuf {
    let shared_memory = Path::new("/dev/shm");
    let parent = if cfg!(target_os = "linux") && shared_memory.is_dir() {
        shared_memory.to_path_buf()
    } else {
        std::env::temp_dir()
    };
    // The keys of a `RandomState` differ from call to call and from process to process.
    let unique = RandomState::new().hash_one((std::process::id(), SystemTime::now()));
    parent.join(format!("pagecache.tmp.{unique}"))
}

impl Inner {
    /// Whether the directory is a made-up one.
    fn uses_scratch(&self) -> bool {
        self.temporary && self.path == Path::new(DEFAULT_PATH)
    }

    /// The directory that the database is in, or will be.
    #[must_use]
    pub fn get_path(&self) -> PathBuf {
        if self.uses_scratch() {
            self.place.scratch.get_or_init(scratch_directory).clone()
        } else {
            self.path.clone()
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config(Arc::new(Inner {
            cache_capacity: 1 << 30,
            flush_every_ms: Some(500),
            segment_size: 512 << 10,
            path: PathBuf::from(DEFAULT_PATH),
            create_new: false,
            read_only: false,
            mode: Mode::LowSpace,
            temporary: false,
            use_compression: false,
            compression_factor: 5,
            print_profile_on_drop: false,
            idgen_persist_interval: 1_000_000,
            version: (0, 34),
            place: Arc::default(),
        }))
    }
}

impl Deref for Config {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Config {
    /// The defaults, which each method states.
    ///
    /// # Examples
    /// ```
    /// let config = sled::Config::new();
    /// assert_eq!(config.get_path(), std::path::Path::new("default.sled"));
    /// ```
    #[must_use]
    pub fn new() -> Config {
        Config::default()
    }

    /// Opens the database, and creates it, with the directories above it, if it is not there.
    ///
    /// A database can be open once at a time. It is closed when the last handle is dropped: every `Db`,
    /// `Tree` and iterator.
    ///
    /// # Errors
    /// - [`Error::Unsupported`]: a value of this configuration is out of its range, or the directory holds
    ///   something that is no database of this version.
    /// - [`Error::Io`]: of kind `Other` with a text that starts with `could not acquire lock on`, when it is
    ///   open already, which [`Error::is_locked`] tells; of kind `AlreadyExists`, when [`create_new`](Config::create_new) finds a database; or
    ///   what the operating system says.
    /// - [`Error::Corruption`]: the file is damaged.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let config = sled::Config::new().temporary(true);
    /// let db = config.open()?;
    /// db.insert("key", "value")?;
    ///
    /// let error = std::io::Error::from(config.open().unwrap_err());
    /// assert!(error.to_string().starts_with("could not acquire lock on"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(&self) -> Result<Db> {
        self.validate()?;
        // Nobody else can have a made-up directory, so it goes even if opening fails halfway.
        if self.uses_scratch() {
            self.doom()?;
        }
        let db = engine::open(self)?;
        if self.temporary {
            self.doom()?;
        } else {
            // It was temporary once and is not any more: what it holds is to stay (C1).
            *lock(&self.place.doomed) = None;
        }
        Ok(db)
    }

    /// Has the directory removed with the last reference to it (C1). Absolute, as the process may move
    /// meanwhile.
    fn doom(&self) -> Result<()> {
        let directory = std::path::absolute(self.get_path())?;
        *lock(&self.place.doomed) = Some(directory);
        Ok(())
    }

    /// `Unsupported` with the name and value of the first option that is out of range.
    pub(crate) fn validate(&self) -> Result<()> {
        let unless = |fine: bool, text: String| if fine { Ok(()) } else { Err(Error::Unsupported(text)) };
        let size = self.segment_size;
        unless(
            size.is_power_of_two() && SEGMENT_SIZES.contains(&size),
            format!("segment_size {size}: must be a power of two from 256 to 16777216 bytes"),
        )?;
        unless(
            !(self.read_only && (self.temporary || self.create_new)),
            "read_only true: a temporary or new database is written".to_owned(),
        )?;
        unless(
            self.cache_capacity >= MIN_CACHE_CAPACITY,
            format!("cache_capacity {}: must be at least {MIN_CACHE_CAPACITY} bytes", self.cache_capacity),
        )?;
        unless(
            !self.use_compression || cfg!(feature = "compression"),
            "use_compression true: needs the cargo feature `compression`".to_owned(),
        )?;
        unless(
            (1..=22).contains(&self.compression_factor),
            format!("compression_factor {}: must be from 1 to 22", self.compression_factor),
        )?;
        unless(self.idgen_persist_interval > 0, "idgen_persist_interval 0: must be at least 1".to_owned())
    }

    /// Applies a setter to this configuration alone, whoever else has what it refers to.
    fn change(mut self, set: impl FnOnce(&mut Inner)) -> Config {
        let before = self.get_path();
        let inner = Arc::make_mut(&mut self.0);
        set(inner);
        // A scratch directory that was named before is not named again: it belongs to the old place.
        if inner.get_path() != before {
            inner.place = Arc::default();
        }
        self
    }

    /// The directory of the database. Default: `default.sled` in the current directory of the process.
    ///
    /// # Examples
    /// ```
    /// let config = sled::Config::new().path("somewhere");
    /// assert_eq!(config.get_path(), std::path::Path::new("somewhere"));
    /// ```
    #[must_use]
    pub fn path<P: AsRef<Path>>(self, path: P) -> Config {
        self.change(|inner| inner.path = path.as_ref().to_path_buf())
    }

    /// How many bytes of memory pages and their changes may take up. What does not fit is written, and read
    /// again when it is needed. Default: 1 GiB. At least 256; less than 64 KiB counts as 64 KiB.
    ///
    /// Inner nodes count, too, but never leave: when they alone exceed the capacity, everything still works,
    /// more slowly. What comes on top: 2 MiB of buffers of the log, 8 bytes of table for each page, and up to
    /// 4 MiB of pages before writers wait until others have left.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).cache_capacity(64 << 20).open()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn cache_capacity(self, to: u64) -> Self {
        self.change(|inner| inner.cache_capacity = to)
    }

    /// What to favour when space and speed are at odds. Default: [`Mode::LowSpace`].
    ///
    /// It says how dense the cleaner keeps the pages in the file. While it is written to, pages are moved together when there
    /// are more than 1.3 bytes for each live one, and two segments, with [`Mode::LowSpace`], 2 with [`Mode::HighThroughput`],
    /// which writes less for that. When nothing has been written for a moment, that is done down to 1.15.
    ///
    /// And it says how long the log of changes may get before the pages are written: half of their bytes, 64 MiB at least and
    /// 256 MiB at most, with [`Mode::LowSpace`]; as many as they have, 64 to 512 MiB, with [`Mode::HighThroughput`]. After a
    /// crash it is replayed, about a second for a million changes.
    ///
    /// A database may be opened with either at any time.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).mode(sled::Mode::HighThroughput).open()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn mode(self, to: Mode) -> Self {
        self.change(|inner| inner.mode = to)
    }

    /// Whether the file holds compressed data; needs the cargo feature `compression`. Default: no.
    /// A database keeps what it was created with, and opening it with another value is an error.
    ///
    /// # Examples
    /// ```
    /// match sled::Config::new().temporary(true).use_compression(true).open() {
    ///     Ok(_db) => {}
    ///     Err(error) => assert!(error.to_string().contains("use_compression"), "the feature is missing"),
    /// }
    /// ```
    #[must_use]
    pub fn use_compression(self, to: bool) -> Self {
        self.change(|inner| inner.use_compression = to)
    }

    /// How hard to compress, from 1, which is fast, to 22, which is small. Default: 5.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let config = sled::Config::new().temporary(true).compression_factor(10);
    /// config.open()?;
    /// assert!(config.compression_factor(23).open().is_err());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn compression_factor(self, to: i32) -> Self {
        self.change(|inner| inner.compression_factor = to)
    }

    /// Whether to remove the database, with everything in its directory, once it is closed and this
    /// configuration and its clones are dropped. Default: no.
    ///
    /// Without a [`path`](Config::path) it is in a new directory, below `/dev/shm` on Linux, which keeps
    /// it in memory, and below the system's directory for temporary files elsewhere. With a path it is
    /// there. A directory that was not opened is not removed.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let config = sled::Config::new().temporary(true);
    /// let path = config.get_path();
    /// config.open()?.insert("key", "value")?;
    /// // The data lives as long as the configuration.
    /// assert_eq!(config.open()?.get("key")?, Some("value".into()));
    /// drop(config);
    /// assert!(!path.exists());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn temporary(self, to: bool) -> Self {
        self.change(|inner| inner.temporary = to)
    }

    /// Whether the database is only looked at: nothing in its directory is written, created or removed, and the
    /// directory and the file may be read-only themselves. Default: no.
    ///
    /// Any number of processes may have it open so at the same time, but none for writing. What was in the redo log is
    /// there as after any other open; what it changed is kept in memory when the cache is too small for it. Operations
    /// that change something return [`Error::Unsupported`]; [`flush`](crate::Tree::flush) has nothing to do.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("sled-doc-read-only-{}", std::process::id()));
    /// sled::open(&path)?.insert("key", "value")?;
    ///
    /// let db = sled::Config::new().path(&path).read_only(true).open()?;
    /// assert_eq!(db.get("key")?, Some("value".into()));
    /// assert!(db.insert("key", "other").is_err());
    /// # drop(db);
    /// # std::fs::remove_dir_all(&path)?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn read_only(self, to: bool) -> Self {
        self.change(|inner| inner.read_only = to)
    }

    /// Whether [`open`](Config::open) fails, with an I/O error of kind `AlreadyExists`, when the
    /// database is there already. Default: no.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let config = sled::Config::new().temporary(true).create_new(true);
    /// drop(config.open()?);
    /// let error = std::io::Error::from(config.open().unwrap_err());
    /// assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn create_new(self, to: bool) -> Self {
        self.change(|inner| inner.create_new = to)
    }

    /// Whether to print a table of latencies when the database is closed. Default: no.
    ///
    /// They are measured only without the cargo feature `no_metrics`, which is a default one, and are those of
    /// all databases of the process; otherwise nothing is printed.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).print_profile_on_drop(true).open()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn print_profile_on_drop(self, to: bool) -> Self {
        self.change(|inner| inner.print_profile_on_drop = to)
    }

    /// How many bytes a segment has, of which a new database's file is made: a power of two from 256 to
    /// 16777216, where less than 4096 counts as 4096. Default: 524288. A database that is there keeps its
    /// own.
    ///
    /// The file grows, is cleaned and gives space back by segments; even an empty database has some.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).segment_size(64 << 10).open()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn segment_size(self, segment_size: usize) -> Config {
        self.change(|inner| inner.segment_size = segment_size)
    }

    /// How many milliseconds a change waits at most before it is made durable in the background; `None`:
    /// until a flush, or until the database is closed. Default: `Some(500)`.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).flush_every_ms(None).open()?;
    /// db.insert("key", "value")?;
    /// db.flush()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn flush_every_ms(self, every_ms: Option<u64>) -> Self {
        self.change(|inner| inner.flush_every_ms = every_ms)
    }

    /// How many identifiers [`Db::generate_id`](crate::Db::generate_id) sets aside at a time. Fewer mean
    /// smaller gaps after the database is opened again, and more to write. Default: 1000000. At least 1.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).idgen_persist_interval(1000).open()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn idgen_persist_interval(self, interval: u64) -> Self {
        self.change(|inner| inner.idgen_persist_interval = interval)
    }

    /// `Ok` as long as nothing failed in the background since the database was last opened with this
    /// configuration or a clone of it.
    ///
    /// # Errors
    /// The first failure: what every write to the database returns since.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let config = sled::Config::new().temporary(true);
    /// let db = config.open()?;
    /// config.global_error()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn global_error(&self) -> Result<()> {
        lock(&self.place.error).clone().map_or(Ok(()), Err)
    }

    /// Records a failure for [`global_error`](Config::global_error), unless there is one already.
    pub(crate) fn latch_error(&self, error: Error) {
        lock(&self.place.error).get_or_insert(error);
    }

    /// Forgets the failure of an earlier opening; to be called once the database is locked.
    pub(crate) fn clear_error(&self) {
        *lock(&self.place.error) = None;
    }

    /// Does nothing.
    #[doc(hidden)]
    #[must_use]
    #[deprecated(since = "0.31.0", note = "this does nothing for now. maybe it will in the future.")]
    pub const fn segment_cleanup_skew(self, _: usize) -> Self {
        self
    }

    /// Does nothing.
    #[doc(hidden)]
    #[must_use]
    #[deprecated(since = "0.31.0", note = "this does nothing for now. maybe it will in the future.")]
    pub const fn segment_cleanup_threshold(self, _: u8) -> Self {
        self
    }

    /// Does nothing.
    #[doc(hidden)]
    #[must_use]
    #[deprecated(since = "0.31.0", note = "this does nothing for now. maybe it will in the future.")]
    pub const fn snapshot_after_ops(self, _: u64) -> Self {
        self
    }

    /// Does nothing.
    #[doc(hidden)]
    #[must_use]
    #[deprecated(since = "0.31.0", note = "this does nothing for now. maybe it will in the future.")]
    pub fn snapshot_path<P>(self, _: P) -> Self {
        self
    }

    /// Validates; [`open`](Config::open) does that, and then opens.
    ///
    /// # Panics
    /// When a value is out of its range.
    #[doc(hidden)]
    #[must_use]
    #[deprecated(since = "0.29.0", note = "use Config::open instead")]
    pub fn build(self) -> RunningConfig {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        RunningConfig::new(self)
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
