//! `Error`: everything that can go wrong, in one public type; and `Result`.
//!
//! The texts and the mapping to [`std::io::ErrorKind`] are relied on by programs that look into
//! them, so they are part of the interface:
//!
//! ```text
//! variant              Display                                            as io::Error
//! CollectionNotFound   Collection [..] does not exist                     NotFound
//! Unsupported          Unsupported: ..                                    InvalidInput
//! ReportableBug        Unexpected bug has happened: .. Please report it   Other
//! Io                   IO error: ..                                       the error itself
//! Corruption           Read corrupted data at file offset .. backtrace .. InvalidData
//! FailPoint            Fail point has been triggered                      Other
//! ```

use crate::damage::Damage;
use crate::ivec::IVec;
use std::fmt;
use std::io;

/// What operations on a database return: a `T`, or the [`Error`] that prevented it.
pub type Result<T> = std::result::Result<T, Error>;

/// The outcome of a compare-and-swap: outside whether storage worked, inside whether it swapped.
pub(crate) type CompareAndSwapResult = Result<std::result::Result<(), CompareAndSwapError>>;

/// Where in the file something was found; the type of [`Error::Corruption`]'s `at`.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskPtr {
    /// A byte offset in the file.
    Inline(u64),
    /// A byte offset in the file that refers to a value kept elsewhere, and the name of that value.
    Blob(u64, i64),
    /// A byte offset in the file, and all that is known about what is wrong there.
    Damaged(&'static Damage),
}

impl DiskPtr {
    /// The byte offset in the file.
    #[must_use]
    pub const fn lid(&self) -> u64 {
        match *self {
            DiskPtr::Inline(offset) | DiskPtr::Blob(offset, _) => offset,
            DiskPtr::Damaged(damage) => damage.offset,
        }
    }
}

/// An offset alone reads as it did in 0.34.
impl fmt::Debug for DiskPtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskPtr::Inline(offset) => write!(f, "Inline({offset})"),
            DiskPtr::Blob(offset, name) => write!(f, "Blob({offset}, {name})"),
            DiskPtr::Damaged(damage) => write!(f, "Inline({}), {damage}", damage.offset),
        }
    }
}

impl fmt::Display for DiskPtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why [`Tree::compare_and_swap`](crate::Tree::compare_and_swap) did not swap: the key held something
/// else.
///
/// # Examples
/// ```
/// # fn main() -> sled::Result<()> {
/// let db = sled::Config::new().temporary(true).open()?;
/// db.insert("key", "is")?;
/// let error = db.compare_and_swap("key", Some("was"), Some("will be"))?.unwrap_err();
/// assert_eq!(error.current, Some("is".into()));
/// assert_eq!(error.proposed, Some("will be".into()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CompareAndSwapError {
    /// What the key held instead of the expected value; `None`: it was absent.
    pub current: Option<IVec>,
    /// The new value that was not stored; `None`: the key was to be removed.
    pub proposed: Option<IVec>,
}

impl fmt::Display for CompareAndSwapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compare and swap conflict")
    }
}

impl std::error::Error for CompareAndSwapError {}

/// Everything that can go wrong in a database.
///
/// # Examples
/// ```
/// use sled::{Config, Error};
///
/// let error = Config::new().cache_capacity(1).open().unwrap_err();
/// assert!(matches!(error, Error::Unsupported(_)));
/// // It converts to what functions of the standard library return.
/// let error = std::io::Error::from(error);
/// assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
/// ```
#[derive(Debug)]
pub enum Error {
    /// The tree with this name was removed by [`Db::drop_tree`](crate::Db::drop_tree) while a handle to
    /// it lived.
    CollectionNotFound(IVec),
    /// What was asked for cannot be done; the text says what and why.
    Unsupported(String),
    /// A state that should be impossible was met. Please report it, with the text.
    ReportableBug(String),
    /// The operating system refused. After a failed sync every later write and flush returns the same error,
    /// until the database is opened again; after a failed write they may succeed.
    Io(io::Error),
    /// The file holds bytes that were not written by this database, or the disk does not give them back: a damaged disk, or
    /// another program. [`Error::damage`] says more.
    Corruption {
        /// Where in the file, when that is known.
        at: Option<DiskPtr>,
        /// Reserved for a backtrace.
        bt: (),
    },
    /// A failure that a test asked for.
    #[doc(hidden)]
    #[cfg(feature = "failpoints")]
    FailPoint,
}

impl Error {
    /// A merge in a tree that has no operator.
    pub(crate) fn no_operator() -> Error {
        Error::Unsupported("merge needs a merge operator: see Tree::set_merge_operator".into())
    }

    /// Damage that was found in a file.
    #[cold]
    pub(crate) fn damaged(damage: Damage) -> Error {
        // Once: a page is tried again and again.
        if !damage.is_known() {
            log::error!("{damage}");
        }
        Error::about(damage)
    }

    fn about(damage: Damage) -> Error {
        let offset = damage.offset;
        let at = damage.keep().map_or(DiskPtr::Inline(offset), DiskPtr::Damaged);
        Error::Corruption { at: Some(at), bt: () }
    }

    /// Says of damage which keys of which tree it concerns, unless that is known already.
    #[cold]
    pub(crate) fn concerns(self, tree: &[u8], low: &[u8], high: Option<&[u8]>) -> Error {
        match self.damage() {
            Some(damage) if damage.tree.is_none() => Error::about(damage.clone().of_keys(tree, low, high)),
            _ => self,
        }
    }

    /// What is damaged: file, place, extent, and the tree and keys that it concerns, as far as these are known.
    /// `None`: this is no [`Error::Corruption`], or nothing but perhaps the place is known.
    ///
    /// # Examples
    /// ```
    /// let error = sled::Error::Unsupported("this".into());
    /// assert_eq!(error.damage(), None);
    /// ```
    #[must_use]
    pub fn damage(&self) -> Option<&Damage> {
        match self {
            Error::Corruption { at: Some(DiskPtr::Damaged(damage)), .. } => Some(damage),
            _ => None,
        }
    }

    /// Whether the file is damaged, or a page of it cannot be read: an [`Error::Corruption`].
    ///
    /// # Examples
    /// ```
    /// assert!(!sled::Error::Unsupported("this".into()).is_corruption());
    /// ```
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(self, Error::Corruption { .. })
    }

    /// Whether the database could not be opened because it is open already, here or in another process.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let config = sled::Config::new().temporary(true);
    /// let _db = config.open()?;
    /// assert!(config.open().unwrap_err().is_locked());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_locked(&self) -> bool {
        matches!(self, Error::Io(e) if e.kind() == io::ErrorKind::Other && e.to_string().starts_with(LOCKED))
    }

    /// Whether the disk, or what may be used of it, is full. What failed may succeed once there is room.
    ///
    /// # Examples
    /// ```
    /// let error = sled::Error::Io(std::io::ErrorKind::StorageFull.into());
    /// assert!(error.is_disk_full());
    /// ```
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self, Error::Io(e) if matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }

    /// Whether the same call may succeed later without anything being repaired: the database is locked, the disk is
    /// full, or the operating system was busy.
    ///
    /// # Examples
    /// ```
    /// assert!(sled::Error::Io(std::io::ErrorKind::StorageFull.into()).is_retryable());
    /// assert!(!sled::Error::Unsupported("this".into()).is_retryable());
    /// ```
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        use io::ErrorKind::{Interrupted, OutOfMemory, ResourceBusy, TimedOut, WouldBlock};
        let busy = |kind| matches!(kind, Interrupted | OutOfMemory | ResourceBusy | TimedOut | WouldBlock);
        self.is_locked() || self.is_disk_full() || matches!(self, Error::Io(e) if busy(e.kind()))
    }
}

/// What the text of a lock error begins with.
pub(crate) const LOCKED: &str = "could not acquire lock on";

/// A copy of an I/O error with the same kind, text and, where there is one, operating system code.
fn clone_io(error: &io::Error) -> io::Error {
    if let Some(code) = error.raw_os_error() {
        return io::Error::from_raw_os_error(code);
    }
    let (kind, text) = (error.kind(), error.to_string());
    // An error that is nothing but its kind stays so, and needs no allocation.
    if text == kind.to_string() { kind.into() } else { io::Error::new(kind, text) }
}

/// Whether two I/O errors say the same: the code of the operating system, or else kind and text.
fn same_io(a: &io::Error, b: &io::Error) -> bool {
    let codes = (a.raw_os_error(), b.raw_os_error());
    a.kind() == b.kind() && codes.0 == codes.1 && (codes.0.is_some() || a.to_string() == b.to_string())
}

impl Clone for Error {
    fn clone(&self) -> Error {
        match self {
            Error::CollectionNotFound(name) => Error::CollectionNotFound(name.clone()),
            Error::Unsupported(text) => Error::Unsupported(text.clone()),
            Error::ReportableBug(text) => Error::ReportableBug(text.clone()),
            Error::Io(error) => Error::Io(clone_io(error)),
            Error::Corruption { at, bt: () } => Error::Corruption { at: *at, bt: () },
            #[cfg(feature = "failpoints")]
            Error::FailPoint => Error::FailPoint,
        }
    }
}

/// Reflexive, so a clone equals its original: I/O errors by operating system code or else by kind and
/// text.
impl PartialEq for Error {
    fn eq(&self, other: &Error) -> bool {
        match (self, other) {
            (Error::CollectionNotFound(a), Error::CollectionNotFound(b)) => a == b,
            (Error::Unsupported(a), Error::Unsupported(b))
            | (Error::ReportableBug(a), Error::ReportableBug(b)) => a == b,
            (Error::Io(a), Error::Io(b)) => same_io(a, b),
            (Error::Corruption { at: a, .. }, Error::Corruption { at: b, .. }) => a == b,
            #[cfg(feature = "failpoints")]
            (Error::FailPoint, Error::FailPoint) => true,
            _ => false,
        }
    }
}

impl Eq for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::CollectionNotFound(name) => write!(f, "Collection {name:?} does not exist"),
            Error::Unsupported(text) => write!(f, "Unsupported: {text}"),
            Error::ReportableBug(text) => {
                write!(f, "Unexpected bug has happened: {text}. Please report it")
            }
            Error::Io(error) => write!(f, "IO error: {error}"),
            Error::Corruption { at, bt } => {
                let offset =
                    at.map(|at| if let DiskPtr::Damaged(d) = at { DiskPtr::Inline(d.offset) } else { at });
                write!(f, "Read corrupted data at file offset {offset:?} backtrace {bt:?}")?;
                self.damage().map_or(Ok(()), |damage| write!(f, ": {damage}"))
            }
            #[cfg(feature = "failpoints")]
            Error::FailPoint => f.write_str("Fail point has been triggered"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

/// An I/O error comes out as it went in; any other is wrapped and can be had back with `get_ref`.
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::CollectionNotFound(_) => io::ErrorKind::NotFound,
            Error::Unsupported(_) => io::ErrorKind::InvalidInput,
            Error::ReportableBug(_) | Error::Io(_) => io::ErrorKind::Other,
            Error::Corruption { .. } => io::ErrorKind::InvalidData,
            #[cfg(feature = "failpoints")]
            Error::FailPoint => io::ErrorKind::Other,
        };
        match error {
            Error::Io(inner) => inner,
            other => io::Error::new(kind, other),
        }
    }
}

impl From<Error> for CompareAndSwapResult {
    fn from(error: Error) -> CompareAndSwapResult {
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    fn corruption_at(offset: u64) -> Error {
        Error::Corruption { at: Some(DiskPtr::Inline(offset)), bt: () }
    }

    fn damage() -> Damage {
        let what = "damaged image".into();
        Damage { what, file: Some("x/db".into()), offset: 7, len: 64, tree: None, keys: None }
    }

    /// One of each variant.
    fn all() -> Vec<Error> {
        vec![
            Error::CollectionNotFound(IVec::from("ab")),
            Error::Unsupported("this".into()),
            Error::ReportableBug("that".into()),
            Error::Io(io::Error::other("custom")),
            Error::Io(io::ErrorKind::StorageFull.into()),
            Error::Io(io::Error::from_raw_os_error(2)),
            corruption_at(7),
            Error::Corruption { at: None, bt: () },
            Error::damaged(damage()),
            #[cfg(feature = "failpoints")]
            Error::FailPoint,
        ]
    }

    #[test]
    fn a_clone_says_the_same_and_equals_only_its_original() {
        for (i, a) in all().iter().enumerate() {
            for (j, b) in all().iter().enumerate() {
                assert_eq!(a.clone() == *b, i == j, "{a:?} and {b:?}");
            }
            assert_eq!(a.clone().clone().to_string(), a.to_string());
            assert!(a.source().is_none());
        }
    }

    #[test]
    fn a_clone_keeps_the_code_of_the_operating_system() {
        let Error::Io(copy) = Error::Io(io::Error::from_raw_os_error(28)).clone() else {
            panic!("the variant stays")
        };
        assert_eq!(copy.raw_os_error(), Some(28));
    }

    #[test]
    fn texts_are_recognisable() {
        let texts: Vec<String> = all().iter().map(Error::to_string).collect();
        assert_eq!(texts[0], "Collection [97, 98] does not exist");
        assert_eq!(texts[1], "Unsupported: this");
        assert_eq!(texts[2], "Unexpected bug has happened: that. Please report it");
        assert_eq!(texts[3], "IO error: custom");
        assert_eq!(texts[6], "Read corrupted data at file offset Some(Inline(7)) backtrace ()");
        assert_eq!(texts[7], "Read corrupted data at file offset None backtrace ()");
        let expected = "Read corrupted data at file offset Some(Inline(7)) backtrace (): damaged image: 64 bytes at offset 7 of x/db";
        assert_eq!(texts[8], expected);
        let conflict = CompareAndSwapError { current: None, proposed: Some(IVec::from("x")) };
        assert_eq!(conflict.to_string(), "Compare and swap conflict");
    }

    #[test]
    fn kinds_as_the_standard_library_has_them() {
        use io::ErrorKind as K;
        let kinds: Vec<K> = all().into_iter().map(|e| io::Error::from(e).kind()).collect();
        let expected = [
            K::NotFound,
            K::InvalidInput,
            K::Other,
            K::Other,
            K::StorageFull,
            K::NotFound,
            K::InvalidData,
            K::InvalidData,
            K::InvalidData,
        ];
        assert_eq!(kinds[..expected.len()], expected);
        let io = io::Error::from(Error::Io(io::Error::from_raw_os_error(2)));
        assert_eq!(io.raw_os_error(), Some(2), "an I/O error comes out as it went in");
        let wrapped = io::Error::from(Error::Unsupported("this".into()));
        assert_eq!(wrapped.to_string(), "Unsupported: this");
        let inner = wrapped.get_ref().and_then(|e| e.downcast_ref::<Error>());
        assert_eq!(inner, Some(&Error::Unsupported("this".into())));
        assert!(Error::from(io) == Error::Io(io::Error::from_raw_os_error(2)));
    }

    #[test]
    fn damage_is_told_whose_it_is_once() {
        let error = Error::damaged(damage()).concerns(b"t", b"a", Some(b"b"));
        let keys = Some((IVec::from("a"), Some(IVec::from("b"))));
        let expected = Damage { tree: Some("t".into()), keys, ..damage() };
        assert_eq!(error.damage(), Some(&expected));
        assert_eq!(error.clone().concerns(b"u", b"", None), error);
        assert!(error.is_corruption() && !error.is_retryable());
        assert_eq!(Error::no_operator().concerns(b"t", b"", None), Error::no_operator());
    }

    #[test]
    fn kinds_of_failures_are_told_apart() {
        let io = |e: io::Error| Error::Io(e);
        let locked = io(io::Error::other("could not acquire lock on \"x\": held by process 7"));
        assert!(locked.is_locked() && locked.is_retryable() && !locked.is_disk_full());
        // EFBIG, EDQUOT and ENOSPC where these numbers are so.
        let full = [io::ErrorKind::FileTooLarge, io::ErrorKind::QuotaExceeded, io::ErrorKind::StorageFull];
        assert!(full.into_iter().all(|kind| io(kind.into()).is_disk_full()));
        let failed = io(io::Error::other("EIO"));
        assert!(
            !failed.is_locked()
                && !failed.is_retryable()
                && !failed.is_disk_full()
                && !failed.is_corruption()
        );
    }

    #[test]
    fn an_error_is_an_outcome_of_compare_and_swap() {
        let outcome: CompareAndSwapResult = corruption_at(1).into();
        assert_eq!(outcome, Err(corruption_at(1)));
    }

    #[test]
    fn disk_pointers_know_their_offset() {
        assert_eq!((DiskPtr::Inline(5).lid(), DiskPtr::Blob(6, -1).lid()), (5, 6));
        assert_eq!(DiskPtr::Blob(6, -1).to_string(), "Blob(6, -1)");
    }
}
