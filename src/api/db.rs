//! `Db`: an open database, and its default tree.

use super::compat::Context;
use super::config::Config;
use super::engine::Engine;
use super::tree::Tree;
use crate::error::{Error, Result};
use crate::ivec::IVec;
use crate::tree::DEFAULT_TREE;
use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

/// The collection type that `export` names and `import` takes.
const COLLECTION: &[u8] = b"tree";

/// An open database. It is its own default [`Tree`]; others are opened by name with [`Db::open_tree`].
///
/// Clones share the database. It is closed, and its file unlocked, when the last handle of any kind is
/// dropped: `Db`, `Tree`, `Iter` or an export.
///
/// # Examples
///
/// ```
/// # fn main() -> sled::Result<()> {
/// let db = sled::Config::new().temporary(true).open()?;
/// db.insert("key", "value")?;
/// let numbers = db.open_tree("numbers")?;
/// numbers.insert(7_u32.to_be_bytes(), "seven")?;
/// assert_eq!(db.get("key")?, Some("value".into()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Db {
    /// What the database was opened with.
    #[doc(hidden)]
    pub context: Context,
    default: Tree,
}

impl Deref for Db {
    type Target = Tree;

    fn deref(&self) -> &Tree {
        &self.default
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db")
            .field("path", &self.context.get_path())
            .field("trees", &self.tree_names())
            .finish()
    }
}

impl Db {
    pub(super) fn new(context: Context, default: Tree) -> Db {
        Db { context, default }
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        self.default.engine()
    }

    /// Opens a database at a path.
    ///
    /// # Errors
    /// As for [`Config::open`].
    #[doc(hidden)]
    #[deprecated(since = "0.30.2", note = "use `sled::open(path)`")]
    pub fn open<P: AsRef<Path>>(path: P) -> Result<Db> {
        Config::new().path(path).open()
    }

    /// Returns the tree with this name, which is created if there is none. All handles of a name see the same
    /// data.
    ///
    /// That a tree exists is durable after the next flush.
    ///
    /// # Errors
    /// `Io`, and the first fatal error of this database.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// let tree = db.open_tree(b"accounts")?;
    /// tree.insert("alice", "1")?;
    /// assert_eq!(db.open_tree("accounts")?.len(), 1);
    /// assert_eq!(db.len(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_tree<V: AsRef<[u8]>>(&self, name: V) -> Result<Tree> {
        let of = name.as_ref().to_vec();
        // Before there is what is returned, which would be leaked if this panicked after that.
        drop(name);
        if of == DEFAULT_TREE {
            return Ok(self.default.clone());
        }
        self.engine().tree(&of)
    }

    /// Removes a tree with everything in it; `false` if there is none of that name. Handles that are still
    /// held fail with `CollectionNotFound` from now on, also when a tree of the same name is created again.
    ///
    /// # Errors
    /// `Unsupported` for the default tree; `Io`; the first fatal error of this database.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// let tree = db.open_tree("old")?;
    /// assert_eq!(db.drop_tree("old"), Ok(true));
    /// assert_eq!(db.drop_tree("old"), Ok(false));
    /// assert_eq!(tree.get("k"), Err(sled::Error::CollectionNotFound("old".into())));
    /// # Ok(())
    /// # }
    /// ```
    pub fn drop_tree<V: AsRef<[u8]>>(&self, name: V) -> Result<bool> {
        let name = name.as_ref();
        if name == DEFAULT_TREE {
            return Err(Error::Unsupported("the default tree cannot be dropped".into()));
        }
        self.engine().drop_tree(name)
    }

    /// Returns the names of all trees, the default tree's included.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.open_tree("a")?;
    /// assert_eq!(db.tree_names(), ["__sled__default", "a"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn tree_names(&self) -> Vec<IVec> {
        self.engine().forest().catalog.list().iter().map(|tree| tree.name.clone()).collect()
    }

    /// Returns whether the database was there already when it was opened.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// assert!(!db.was_recovered());
    /// # Ok(())
    /// # }
    /// ```
    pub fn was_recovered(&self) -> bool {
        !self.engine().is_fresh()
    }

    /// Returns a number that this database never returned before, not even before a crash. Numbers ascend,
    /// with gaps after a restart.
    ///
    /// # Errors
    /// `Io` when the reservation of more numbers cannot be made durable.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// assert_eq!(db.generate_id()?, 0);
    /// assert_eq!(db.generate_id()?, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn generate_id(&self) -> Result<u64> {
        self.engine().forest().generate_id()
    }

    /// Returns the bytes that the database occupies on disk, everything included, as `du` would count them.
    ///
    /// # Errors
    /// `Io` when the system cannot tell.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("k", vec![0; 100_000])?;
    /// db.flush()?;
    /// assert!(db.size_on_disk()? >= 100_000);
    /// # Ok(())
    /// # }
    /// ```
    pub fn size_on_disk(&self) -> Result<u64> {
        self.engine().forest().log().allocated()
    }

    /// Bytes on disk per byte of live images, redo tail and the least that a database occupies.
    ///
    /// # Errors
    /// `Io` when the system cannot tell.
    #[doc(hidden)]
    pub fn space_amplification(&self) -> Result<f64> {
        let log = self.engine().forest().log();
        let live = log.segments().usage().live + log.redo_tail();
        // The superblocks, the redo segments in use and next, an open one of leaves and one of the cleaner or
        // big values.
        let least = 8192 + 4 * log.segments().size() as u64;
        Ok(log.allocated()? as f64 / (live + least) as f64)
    }

    /// Returns the CRC-32 of all names, keys and values: of each tree in name order its name, then key and
    /// value of each pair in key order.
    ///
    /// # Errors
    /// What reading failed with.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("a", "1")?;
    /// assert_eq!(db.checksum()?, 2_774_111_088);
    /// # Ok(())
    /// # }
    /// ```
    pub fn checksum(&self) -> Result<u32> {
        let mut hasher = crc32fast::Hasher::new();
        for name in self.tree_names() {
            // Dropped since its name was listed: as if it had been before.
            let Some(tree) = self.engine().existing_tree(&name) else { continue };
            hasher.update(&name);
            tree.hash_into(&mut hasher)?;
        }
        Ok(hasher.finalize())
    }

    /// Returns everything, tree by tree, for [`Db::import`] of this or another version: the collection type
    /// `tree`, the tree's name, and its rows, each a key and a value. Rows are read as the iterator is
    /// consumed.
    ///
    /// # Panics
    /// The iterator panics when reading fails.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let old = sled::Config::new().temporary(true).open()?;
    /// old.insert("k", "v")?;
    /// let new = sled::Config::new().temporary(true).open()?;
    /// new.import(old.export());
    /// assert_eq!(new.checksum()?, old.checksum()?);
    /// # Ok(())
    /// # }
    /// ```
    #[expect(clippy::type_complexity, reason = "the signature of 0.34")]
    pub fn export(&self) -> Vec<(Vec<u8>, Vec<u8>, impl Iterator<Item = Vec<Vec<u8>>> + use<>)> {
        let row = |pair: Result<(IVec, IVec)>| {
            let (key, value) = pair.expect("export stops where the database cannot be read");
            vec![key.to_vec(), value.to_vec()]
        };
        let mut collections = Vec::new();
        for name in self.tree_names() {
            // Dropped since its name was listed: not there to be exported.
            let Some(tree) = self.engine().existing_tree(&name) else { continue };
            collections.push((COLLECTION.to_vec(), name.to_vec(), tree.iter().map(row)));
        }
        collections
    }

    /// Inserts what [`Db::export`] of this or another version returned.
    ///
    /// # Panics
    /// For a collection that is not a `tree`, a row without key and value, a key that is there already, and
    /// when writing fails. Rows before that stay.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// let rows = vec![vec![b"key".to_vec(), b"value".to_vec()]];
    /// db.import(vec![(b"tree".to_vec(), b"name".to_vec(), rows.into_iter())]);
    /// assert_eq!(db.open_tree("name")?.get("key")?, Some("value".into()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn import(&self, export: Vec<(Vec<u8>, Vec<u8>, impl Iterator<Item = Vec<Vec<u8>>>)>) {
        for (kind, name, rows) in export {
            assert_eq!(kind, COLLECTION, "import of a collection type that is not known");
            let tree = self.open_tree(&name).expect("import needs a tree to insert into");
            for mut row in rows {
                let value = row.pop().expect("an imported row has a value");
                let key = row.pop().expect("an imported row has a key");
                let old = tree.insert(&key, value).expect("import needs to insert");
                assert!(old.is_none(), "import of a key that is there already: {key:?}");
            }
        }
    }
}
