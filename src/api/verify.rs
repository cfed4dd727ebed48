//! `Db::verify`: whether everything in the file is as it was written.

use super::db::Db;
use crate::damage::Damage;
use crate::error::Result;
use crate::tree::Findings;
use std::ops::ControlFlow;

/// How far [`Db::verify_with`] has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes read.
    pub bytes: u64,
    /// Bytes to be read in all, about: what is live, and the redo log.
    pub of: u64,
    /// Damages found.
    pub damages: usize,
}

/// What [`Db::verify`] has read, and what of it is damaged.
///
/// # Examples
/// ```
/// # fn main() -> sled::Result<()> {
/// let db = sled::Config::new().temporary(true).open()?;
/// db.insert("key", "value")?;
/// let found: sled::Verification = db.verify()?;
/// assert_eq!((found.trees, found.records), (1, 1));
/// for damage in &found.damages {
///     eprintln!("{damage}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// Trees.
    pub trees: u64,
    /// Leaves of the trees: ranges of keys.
    pub leaves: u64,
    /// Keys of the trees, without those in damaged leaves.
    pub records: u64,
    /// Values that are kept apart because they are long.
    pub big_values: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is damaged, in the order in which it was found.
    pub damages: Vec<Damage>,
    /// Whether it was cancelled, so that not everything was read.
    pub cancelled: bool,
}

impl Verification {
    /// Whether everything was read, and nothing of it is damaged.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// assert!(db.verify()?.is_whole());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damages.is_empty() && !self.cancelled
    }
}

impl Db {
    /// Reads everything in the file that is live, or that would be needed after a crash, and reports every damage with
    /// its place, extent, tree and keys: both superblocks, the redo log up to what was flushed, the leaf directory and
    /// every leaf that it lists, every leaf of every tree, and every big value.
    ///
    /// Others may read and write meanwhile; what they wrote since the last flush is not in the log yet and so not
    /// checked there. Pages that are not in memory are read past the cache.
    ///
    /// A key whose page is damaged cannot be read, and every other can. [`Db::salvage`] copies those into a new
    /// database.
    ///
    /// # Errors
    /// [`Error::ReportableBug`](crate::Error::ReportableBug) when what is in memory is wrong. Damage, and places that
    /// the operating system cannot read, are no errors here but in the result.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("key", "value")?;
    /// db.flush()?;
    /// assert!(db.verify()?.is_whole());
    /// # Ok(())
    /// # }
    /// ```
    pub fn verify(&self) -> Result<Verification> {
        self.verify_with(|_| ControlFlow::Continue(()))
    }

    /// As [`Db::verify`], and tells `progress` now and then how far it has come: after the redo log, and for every leaf and
    /// big value. `Break` cancels it. `progress` may use the database.
    ///
    /// # Errors
    /// As for [`Db::verify`]. To be cancelled is no error: the result says so, and has what was found by then.
    ///
    /// # Examples
    /// ```
    /// use std::ops::ControlFlow;
    ///
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// let mut asked = 0;
    /// let found = db.verify_with(|progress| {
    ///     asked += 1;
    ///     if progress.bytes > 1000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    /// })?;
    /// assert!(found.cancelled && asked > 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn verify_with<F>(&self, mut progress: F) -> Result<Verification>
    where
        F: FnMut(&Progress) -> ControlFlow<()>,
    {
        let forest = self.engine().forest();
        let of = forest.bytes_to_scrub();
        let mut go_on = |bytes: u64, damages: &[Damage]| {
            let damages = damages.len();
            progress(&Progress { bytes, of: of.max(bytes), damages }).is_continue()
        };
        let mut found = Findings::new(&mut go_on);
        match forest.scrub(&mut found) {
            Err(error) if !found.cancelled => return Err(error),
            _ => {}
        }
        let counts = found.counts;
        Ok(Verification {
            trees: counts.trees,
            leaves: counts.leaves,
            records: counts.records,
            big_values: counts.big_values,
            bytes: counts.bytes,
            damages: found.damages,
            cancelled: found.cancelled,
        })
    }
}
