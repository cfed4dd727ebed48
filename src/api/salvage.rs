//! `Db::salvage`: what can be read of a damaged database, in a new one.

use super::config::Config;
use super::db::Db;
use super::engine::{self, Medium};
use super::testing::Tuning;
use super::tree::Tree;
use crate::damage::Damage;
use crate::error::Result;
use crate::tree::{Remains, Sink, salvage_remains, search};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What [`Db::salvage`] could copy, and what is lost.
///
/// # Examples
/// ```
/// fn report(salvage: &sled::Salvage) {
///     println!("{} keys of {} trees", salvage.records, salvage.trees);
///     for lost in &salvage.lost {
///         println!("lost: {lost}");
///     }
/// }
/// # let _ = report;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Salvage {
    /// Trees that were copied.
    pub trees: u64,
    /// Keys in the new database.
    pub records: u64,
    /// What is lost, or may be, and why.
    pub lost: Vec<Damage>,
    /// Whether what leads to the newest state is damaged, or changes are missing in the redo log: then what was found is
    /// the newest of what is left, and may be older than it was. Keys that were removed may be there again.
    pub may_be_older: bool,
}

impl Salvage {
    /// Whether nothing was lost.
    ///
    /// # Examples
    /// ```
    /// let fine = |salvage: &sled::Salvage| salvage.is_whole();
    /// # let _ = fine;
    /// ```
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.lost.is_empty() && !self.may_be_older
    }
}

/// Memory for the pages of either database, bytes.
const CACHE: u64 = 64 << 20;

/// Puts what is found into a database.
struct Copy<'a> {
    to: &'a Db,
    trees: BTreeMap<Vec<u8>, Tree>,
    lost: Vec<Damage>,
}

impl Copy<'_> {
    fn open(&mut self, name: &[u8]) -> Result<&Tree> {
        if !self.trees.contains_key(name) {
            self.trees.insert(name.to_vec(), self.to.open_tree(name)?);
        }
        Ok(&self.trees[name])
    }
}

impl Sink for Copy<'_> {
    fn tree(&mut self, name: &[u8]) -> Result<()> {
        self.open(name).map(|_| ())
    }

    fn drop_tree(&mut self, name: &[u8]) -> Result<()> {
        self.trees.remove(name);
        self.to.drop_tree(name).map(|_| ())
    }

    fn set(&mut self, tree: &[u8], key: &[u8], value: Option<&[u8]>) -> Result<()> {
        let tree = self.open(tree)?;
        match value {
            Some(value) => tree.insert(key, value)?,
            None => tree.remove(key)?,
        };
        Ok(())
    }

    fn lose(&mut self, damage: Damage) {
        log::warn!("lost: {damage}");
        self.lost.push(damage);
    }
}

/// What there is to copy from.
enum Source {
    /// A database that can be opened.
    Db(Db),
    /// What is left of one that cannot.
    Remains(Remains),
}

impl Source {
    fn find(medium: &Medium, tuning: &Tuning) -> Result<Source> {
        let config = Config::new().read_only(true).cache_capacity(CACHE);
        match engine::open_on(Arc::clone(medium), &config, tuning) {
            Ok(db) => Ok(Source::Db(db)),
            Err(error) => {
                log::warn!("the database cannot be opened, what is left of it is looked for: {error}");
                search(Arc::clone(medium)).map(Source::Remains).map_err(|_| error)
            }
        }
    }

    fn copy(&self, to: &Db) -> Result<Salvage> {
        let mut copy = Copy { to, trees: BTreeMap::new(), lost: Vec::new() };
        let (is_sure, ids) = match self {
            Source::Db(db) => {
                let forest = db.engine().forest();
                forest.salvage(&mut copy)?;
                (true, forest.ids_below())
            }
            Source::Remains(remains) => salvage_remains(remains, &mut copy)?,
        };
        to.engine().forest().skip_ids(ids)?;
        to.flush()?;
        let trees = copy.trees.values();
        Ok(Salvage {
            trees: copy.trees.len() as u64,
            records: trees.map(|tree| tree.len() as u64).sum(),
            lost: copy.lost,
            may_be_older: !is_sure,
        })
    }
}

/// Copies what can be read of a database on a medium into an empty one.
///
/// # Errors
/// As for [`Db::salvage`].
pub(super) fn salvage(from: Medium, to: &Db, tuning: &Tuning) -> Result<Salvage> {
    Source::find(&from, tuning)?.copy(to)
}

impl Db {
    /// Copies everything that can be read of the database in the directory `from` into a new one in the directory `to`,
    /// and says what is lost. What is in `from` is not changed.
    ///
    /// If only pages or values are damaged, exactly their keys are lost. If what leads to them is (a superblock, the
    /// directory of pages, the redo log), the file is searched for every whole page and log record, and the newest of
    /// each range of keys is taken; the result says so.
    ///
    /// The new database is durable when this returns.
    ///
    /// # Errors
    /// - [`Error::Io`](crate::Error::Io): `from` is open for writing, cannot be read, or is no database; there is a database in `to`
    ///   already; or `to` cannot be written.
    /// - [`Error::Unsupported`](crate::Error::Unsupported): nothing of a database of this version is in `from`; or it is compressed, and the
    ///   feature `compression` is missing.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("sled-doc-salvage-{}", std::process::id()));
    /// let (damaged, new) = (path.join("damaged"), path.join("new"));
    /// sled::open(&damaged)?.insert("key", "value")?;
    ///
    /// let result = sled::Db::salvage(&damaged, &new)?;
    /// assert!(result.is_whole());
    /// assert_eq!(sled::open(&new)?.get("key")?, Some("value".into()));
    /// # std::fs::remove_dir_all(&path)?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(unix)]
    pub fn salvage<P, Q>(from: P, to: Q) -> Result<Salvage>
    where
        P: AsRef<std::path::Path>,
        Q: AsRef<std::path::Path>,
    {
        // First, so that nothing is created for what is no database.
        let source = Source::find(&engine::look_at(from.as_ref())?, &Tuning::default())?;
        let to = Config::new().path(to).create_new(true).cache_capacity(CACHE).open()?;
        source.copy(&to)
    }
}
