//! Which trees there are: name -> id and root.
//!
//! # Format
//!
//! On disk: the items of kind tree in the directory (`pagecache/directory.rs`), then the redo records that create and drop
//! trees (`tree/redo.rs`). The tree [`DEFAULT_TREE`] has the id 1 and is always there, without a record; ids of others
//! start at 2. A name may be any bytes. An id is never given twice, so that records of a tree that was dropped can be told
//! from those of a later one with the same name.
//!
//! # Concurrency
//!
//! A lock that only opening, dropping and listing trees take; operations on a tree hold their own reference.

use super::length::Length;
use super::priority::Priority;
use super::watch::Watchers;
use crate::error::{Error, Result};
use crate::ivec::IVec;
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Name of the tree that is always there.
pub const DEFAULT_TREE: &[u8] = b"__sled__default";
/// Its id.
pub const DEFAULT_ID: u32 = 1;

/// One tree.
#[derive(Debug)]
pub struct BwTree {
    /// Never used again for another.
    pub id: u32,
    /// What it was opened as.
    pub name: IVec,
    /// PID of the root, the same for the tree's life.
    pub root: u32,
    /// Set once, by `drop_tree`, before its pages go.
    dropped: AtomicBool,
    /// Whether it may have big values. Set by writers.
    big: AtomicBool,
    /// How many keys it has.
    pub(super) length: Length,
    /// Of a transaction that others keep from committing.
    pub(super) priority: Priority,
    /// Who wants to know of changes; subscribers do not keep it.
    pub watchers: Arc<Watchers>,
}

/// So that a reference is one to it, as a shared one is.
impl AsRef<BwTree> for BwTree {
    fn as_ref(&self) -> &BwTree {
        self
    }
}

impl BwTree {
    /// A tree whose root is the page `root`.
    pub(super) fn new(id: u32, name: &[u8], root: u32, big: bool, length: Length) -> BwTree {
        let (dropped, big) = (AtomicBool::new(false), AtomicBool::new(big));
        BwTree {
            id,
            name: IVec::from(name),
            root,
            dropped,
            big,
            length,
            priority: Priority::default(),
            watchers: Arc::default(),
        }
    }

    /// Called with a guard pinned, before the tree is looked at: its pages stay until the guard ends.
    ///
    /// # Errors
    /// `CollectionNotFound` when the tree was dropped.
    #[inline]
    pub fn check(&self) -> Result<()> {
        // Acquire: pairs with the Release in `set_dropped`.
        if self.dropped.load(Ordering::Acquire) { Err(self.gone()) } else { Ok(()) }
    }

    /// The error of a tree that was dropped.
    pub fn gone(&self) -> Error {
        Error::CollectionNotFound(self.name.clone())
    }

    /// From now on operations fail.
    pub fn set_dropped(&self) {
        // Release: pairs with the Acquire in `check`.
        self.dropped.store(true, Ordering::Release);
    }

    /// Notes that there may be big values.
    pub fn set_big(&self) {
        // Relaxed: read under the maintenance lock after a fence, or when nobody writes any more.
        self.big.store(true, Ordering::Relaxed);
    }

    /// Whether there may be big values.
    pub fn is_big(&self) -> bool {
        // Relaxed: as in `set_big`.
        self.big.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Inner {
    by_name: BTreeMap<IVec, Arc<BwTree>>,
    by_id: HashMap<u32, Arc<BwTree>>,
    /// Id of the next new tree.
    next: u32,
}

/// The trees of a database.
#[derive(Debug)]
pub struct Catalog {
    inner: RwLock<Inner>,
}

impl Catalog {
    /// No trees; ids start behind that of the default tree.
    pub fn new() -> Catalog {
        Catalog { inner: RwLock::new(Inner { next: DEFAULT_ID + 1, ..Inner::default() }) }
    }

    /// The tree of a name.
    pub fn get(&self, name: &[u8]) -> Option<Arc<BwTree>> {
        self.inner.read().by_name.get(name).cloned()
    }

    /// The tree of an id.
    pub fn get_id(&self, id: u32) -> Option<Arc<BwTree>> {
        self.inner.read().by_id.get(&id).cloned()
    }

    /// All trees, by name.
    pub fn list(&self) -> Vec<Arc<BwTree>> {
        self.inner.read().by_name.values().cloned().collect()
    }

    /// All trees, by name, and the id that the next new one gets.
    pub fn snapshot(&self) -> (Vec<Arc<BwTree>>, u32) {
        let inner = self.inner.read();
        (inner.by_name.values().cloned().collect(), inner.next)
    }

    /// Recovery: the id that the next new tree gets is at least `next`.
    pub fn reserve_ids(&self, next: u32) {
        let mut inner = self.inner.write();
        inner.next = inner.next.max(next);
    }

    /// Recovery: the id that the next new tree gets.
    pub fn next_id(&self) -> u32 {
        self.inner.read().next
    }

    /// Adds a tree that recovery found.
    pub fn insert(&self, tree: BwTree) -> Arc<BwTree> {
        let tree = Arc::new(tree);
        let mut inner = self.inner.write();
        // The last one has no successor: there will be no new tree.
        inner.next = inner.next.max(tree.id.saturating_add(1));
        inner.by_id.insert(tree.id, Arc::clone(&tree));
        inner.by_name.insert(tree.name.clone(), Arc::clone(&tree));
        tree
    }

    /// The tree of a name, made by `make` from a new id if there is none.
    ///
    /// # Errors
    /// What `make` failed with; `Unsupported` after four billion trees.
    pub fn get_or_create(
        &self,
        name: &[u8],
        make: impl FnOnce(u32) -> Result<BwTree>,
    ) -> Result<Arc<BwTree>> {
        if let Some(tree) = self.get(name) {
            return Ok(tree);
        }
        let mut inner = self.inner.write();
        if let Some(tree) = inner.by_name.get(name) {
            return Ok(Arc::clone(tree));
        }
        let id = inner.next;
        let next = id.checked_add(1).ok_or_else(|| Error::Unsupported("4 billion trees".into()))?;
        let tree = Arc::new(make(id)?);
        inner.next = next;
        inner.by_id.insert(id, Arc::clone(&tree));
        inner.by_name.insert(tree.name.clone(), Arc::clone(&tree));
        Ok(tree)
    }

    /// Takes a tree out after `log` has recorded that; `None` = there is none of that name.
    ///
    /// # Errors
    /// What `log` failed with; then the tree stays.
    pub fn remove(
        &self,
        name: &[u8],
        log: impl FnOnce(&BwTree) -> Result<()>,
    ) -> Result<Option<Arc<BwTree>>> {
        let mut inner = self.inner.write();
        let Some(tree) = inner.by_name.get(name).cloned() else { return Ok(None) };
        log(&tree)?;
        inner.by_name.remove(name);
        inner.by_id.remove(&tree.id);
        tree.set_dropped();
        drop(inner);
        tree.watchers.end();
        Ok(Some(tree))
    }
}
