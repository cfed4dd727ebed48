//! `TransactionalTree`: a tree as it is seen from inside a transaction.
//!
//! # How it works
//!
//! ```text
//!   TransactionalTrees --.               one for each run of the closure
//!   TransactionalTree  ---> Run ------>  Transaction (of the tree layer): reads recorded, writes staged
//!   TransactionalIter  --'
//! ```
//!
//! All views of a run share its `Transaction`, so they see each other's writes. When the run has ended, however it
//! did, the `Transaction` is taken out of it: a view that outlives its run has nothing to write to any more.
//!
//! # Invariants
//!
//! - X1: the `Transaction` is borrowed only within [`TransactionalTree::access`], where the only code of the user's
//!   that runs is a merge operator. One that comes back to the same transaction is refused.
//! - X2: a run in which an operation met a conflict is never committed, even if the closure goes on: what it has
//!   decided since may rest on nothing. Nor is one in which an operation failed with an error that the closure hides:
//!   half of what it was to do is not there.

use super::batch::Batch;
use super::engine::Engine;
use super::transaction_error::{
    ConflictableTransactionError, ConflictableTransactionResult, TransactionError, TransactionResult,
    UnabortableTransactionError,
};
use super::transactional_iter::TransactionalIter;
use super::tree::{Tree, end_of_prefix, owned};
use crate::error::{Error, Result};
use crate::ivec::IVec;
use crate::tree::{BwTree, Forest, Operators, Transaction};
use std::cell::{Cell, RefCell};
use std::ops::{Bound, RangeBounds};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;

/// What an operation inside a transaction returns.
pub(super) type Found<T> = std::result::Result<T, UnabortableTransactionError>;

/// A tree of a run, for the layer below.
struct Handle {
    trees: Rc<[Tree]>,
    index: usize,
}

impl AsRef<BwTree> for Handle {
    fn as_ref(&self) -> &BwTree {
        self.trees[self.index].bw()
    }
}

/// What a closure that is to run again is left with: the address of its run.
struct Rerun(usize);

/// One run of a closure.
struct Run {
    /// The trees, by their index in the transaction.
    trees: Rc<[Tree]>,
    /// `None`: the run has ended.
    transaction: RefCell<Option<Transaction<Handle>>>,
    /// An operation met a conflict. Set by `access`.
    conflict: Cell<bool>,
    /// It is run by `TransactionalTrees::run`, which an operation that meets a conflict unwinds to.
    is_looped: Cell<bool>,
    /// What the first operation that failed did so with. Set by `access`.
    failure: RefCell<Option<Error>>,
    /// A flush is to follow. Set by a view.
    flush: Cell<bool>,
}

impl Run {
    fn new(trees: Rc<[Tree]>, transaction: Transaction<Handle>) -> Rc<Run> {
        let (conflict, flush) = (Cell::new(false), Cell::new(false));
        let transaction = RefCell::new(Some(transaction));
        let (is_looped, failure) = (Cell::new(false), RefCell::default());
        Rc::new(Run { trees, transaction, conflict, is_looped, failure, flush })
    }

    /// The database; `None`: there are no trees.
    fn engine(&self) -> Option<&Engine> {
        self.trees.first().map(|tree| &**tree.engine())
    }

    /// Applies the merge operator of a tree of this run.
    fn merge(&self, tree: usize, key: &[u8], old: Option<&[u8]>, operand: &[u8]) -> Option<Option<Vec<u8>>> {
        self.trees[tree].group().operator.call(key, old, operand)
    }

    /// Whether what was read held together at one instant.
    fn is_consistent(&self) -> Result<bool> {
        let Some(engine) = self.engine() else { return Ok(true) };
        let mut transaction = self.transaction.borrow_mut();
        transaction.as_mut().map_or(Ok(true), |transaction| transaction.is_consistent(engine.forest()))
    }

    /// Makes the writes visible; `false`: there was a conflict, and nothing is.
    fn commit(&self) -> Result<bool> {
        let Some(engine) = self.engine() else { return Ok(true) };
        // Not borrowed meanwhile: a merge operator may still hold a view.
        let mut transaction = self.transaction.take().expect("a run is committed once");
        let merge: Operators<'_> = &|tree, key, old, operand| self.merge(tree, key, old, operand);
        let committed = transaction.commit(engine.forest(), merge)?;
        if !committed {
            self.transaction.replace(Some(transaction));
        } else if self.flush.get() {
            engine.flush()?;
        }
        Ok(committed)
    }
}

/// The trees of a transaction and what was read and written in a run of it; what
/// [`Transactional::make_overlay`](super::transaction::Transactional::make_overlay) returns.
pub struct TransactionalTrees {
    run: Rc<Run>,
    /// Index in the transaction of each tree that was named, in that order; the same tree has one index.
    indices: Vec<usize>,
}

impl TransactionalTrees {
    pub(super) fn new<'a>(named: impl IntoIterator<Item = &'a Tree>) -> Result<TransactionalTrees> {
        let (mut trees, mut indices): (Vec<Tree>, Vec<usize>) = (Vec::new(), Vec::new());
        for tree in named {
            let first = trees.first().unwrap_or(tree).engine();
            if !Arc::ptr_eq(first, tree.engine()) {
                let paths = [first, tree.engine()].map(|engine| engine.config().get_path());
                return Err(Error::Unsupported(format!(
                    "a transaction over trees of two databases, {} and {}",
                    paths[0].display(),
                    paths[1].display()
                )));
            }
            let known = trees.iter().position(|known| std::ptr::eq(known.bw(), tree.bw()));
            indices.push(known.unwrap_or_else(|| {
                trees.push(tree.clone());
                trees.len() - 1
            }));
        }
        let trees: Rc<[Tree]> = trees.into();
        let handles = (0..trees.len()).map(|index| Handle { trees: Rc::clone(&trees), index }).collect();
        Ok(TransactionalTrees { run: Run::new(trees, Transaction::new(handles)), indices })
    }

    /// The view of the tree that was named at this position.
    pub(super) fn view(&self, position: usize) -> TransactionalTree {
        TransactionalTree { run: Rc::clone(&self.run), index: self.indices[position] }
    }

    /// The views of all trees that were named.
    pub(super) fn views(&self) -> Vec<TransactionalTree> {
        (0..self.indices.len()).map(|position| self.view(position)).collect()
    }

    /// Calls the closure. One that meets a conflict is left by unwinding, without a message, as programs for 0.34, where
    /// no operation ever returned `Conflict`, take it for granted that there is a result.
    pub(super) fn run<A, E>(
        &self,
        f: impl FnOnce() -> ConflictableTransactionResult<A, E>,
    ) -> ConflictableTransactionResult<A, E> {
        self.run.is_looped.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(f));
        self.run.is_looped.set(false);
        outcome.unwrap_or_else(|payload| match payload.downcast_ref() {
            Some(Rerun(run)) if *run == Rc::as_ptr(&self.run).addr() => {
                Err(ConflictableTransactionError::Conflict)
            }
            _ => resume_unwind(payload),
        })
    }

    /// Ends a run whose closure returned `outcome`; `None`: there was a conflict, and it is to run again.
    pub(super) fn finish<A, E>(
        &self,
        outcome: ConflictableTransactionResult<A, E>,
    ) -> Option<TransactionResult<A, E>> {
        if self.run.conflict.get() {
            return None; // X2
        }
        let result = match outcome {
            Err(ConflictableTransactionError::Conflict) => return None,
            // What it gave up for may not have been the state of one instant.
            Err(ConflictableTransactionError::Abort(value)) => match self.run.is_consistent() {
                Ok(true) => Err(TransactionError::Abort(value)),
                Ok(false) => return None,
                Err(error) => Err(TransactionError::Storage(error)),
            },
            Err(ConflictableTransactionError::Storage(error)) => Err(TransactionError::Storage(error)),
            Ok(value) => match self.run.failure.take().map_or_else(|| self.run.commit(), Err) {
                Ok(true) => Ok(value),
                Ok(false) => return None,
                Err(error) => Err(TransactionError::Storage(error)),
            },
        };
        self.run.transaction.take();
        Some(result)
    }

    /// For the next run of the closure.
    pub(super) fn again(self) -> TransactionalTrees {
        let mut transaction = self.run.transaction.take().expect("a run that met a conflict is not over");
        transaction.restart();
        let run = Run::new(Rc::clone(&self.run.trees), transaction);
        TransactionalTrees { run, indices: self.indices }
    }
}

/// A tree inside a transaction: shows the state of one instant with the transaction's own writes on top, and
/// keeps these to itself until the transaction succeeds.
///
/// The closure of [`Tree::transaction`] is given one, and that of
/// [`Transactional::transaction`](super::transaction::Transactional::transaction) one for each tree. Clones, and
/// views of one tree that was named twice, share their writes. When the run of the closure that it was made for
/// has ended, its operations return [`Error::Unsupported`].
///
/// # Examples
///
/// ```
/// # fn main() -> sled::transaction::TransactionResult<()> {
/// let db = sled::Config::new().temporary(true).open()?;
/// db.transaction(|tree| {
///     tree.insert("key", "value")?;
///     assert_eq!(tree.get("key")?, Some("value".into()));
///     assert_eq!(db.get("key")?, None); // outside of the transaction nothing is to be seen yet
///     Ok(())
/// })?;
/// assert_eq!(db.get("key")?, Some("value".into()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TransactionalTree {
    run: Rc<Run>,
    index: usize,
}

impl TransactionalTree {
    fn tree(&self) -> &Tree {
        &self.run.trees[self.index]
    }

    /// Does something with the transaction, unless its run has ended.
    fn access<T>(
        &self,
        work: impl FnOnce(&mut Transaction<Handle>, &Forest, Operators<'_>) -> Result<Option<T>>,
    ) -> Found<T> {
        let refused = |text: &str| UnabortableTransactionError::Storage(Error::Unsupported(text.into()));
        if self.run.conflict.get() {
            return Err(UnabortableTransactionError::Conflict);
        }
        let forest = self.tree().engine().forest();
        let result = {
            let Ok(mut slot) = self.run.transaction.try_borrow_mut() else {
                // X1
                return Err(refused("a merge operator uses the transaction that it is called by"));
            };
            let Some(transaction) = slot.as_mut() else {
                return Err(refused("this run of the transaction is over"));
            };
            work(transaction, forest, &|tree, key, old, operand| self.run.merge(tree, key, old, operand))
        };
        forest.keep_up_reading();
        match result {
            Ok(Some(found)) => Ok(found),
            Ok(None) => {
                self.run.conflict.set(true);
                if self.run.is_looped.get() && cfg!(panic = "unwind") && !std::thread::panicking() {
                    resume_unwind(Box::new(Rerun(Rc::as_ptr(&self.run).addr())));
                }
                Err(UnabortableTransactionError::Conflict)
            }
            Err(error) => {
                self.run.failure.borrow_mut().get_or_insert_with(|| error.clone());
                Err(error.into())
            }
        }
    }

    pub(super) fn pair(
        &self,
        low: &Bound<Vec<u8>>,
        high: &Bound<Vec<u8>>,
        backwards: bool,
    ) -> Found<Option<(IVec, IVec)>> {
        self.access(|transaction, forest, merge| {
            transaction.next_pair(forest, self.index, (low, high), backwards, merge)
        })
    }

    /// Returns the value of a key.
    ///
    /// # Errors
    /// [`Conflict`](UnabortableTransactionError::Conflict) when others have written what this transaction has
    /// read: the closure is to return it, and runs again. (In a program that unwinds when it panics the closure is
    /// left at once instead, and this is not seen.) `Storage` with `CollectionNotFound` when the tree was
    /// dropped, with `Io` or `Corruption` when the key's page cannot be read, and with `Unsupported` when the run
    /// that this belongs to has ended, or a merge operator that the transaction calls uses the transaction.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("key", "value")?;
    /// let value = db.transaction(|tree| Ok(tree.get("key")?))?;
    /// assert_eq!(value, Some("value".into()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn get<K: AsRef<[u8]>>(
        &self,
        key: K,
    ) -> std::result::Result<Option<IVec>, UnabortableTransactionError> {
        let key = key.as_ref();
        self.access(|transaction, forest, merge| transaction.get(forest, self.index, key, merge))
    }

    /// Returns whether a key has a value. A big value is not read for that.
    ///
    /// # Errors
    /// As for [`TransactionalTree::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("key", "value")?;
    /// db.transaction(|tree| {
    ///     assert!(tree.contains_key("key")? && !tree.contains_key("other")?);
    ///     Ok(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn contains_key<K: AsRef<[u8]>>(
        &self,
        key: K,
    ) -> std::result::Result<bool, UnabortableTransactionError> {
        let key = key.as_ref();
        self.access(|transaction, forest, merge| transaction.contains(forest, self.index, key, merge))
    }

    /// Gives a key a value and returns the value before, as this transaction sees it.
    ///
    /// # Errors
    /// As for [`TransactionalTree::get`], since the value before is read; then nothing has changed.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.transaction(|tree| {
    ///     assert_eq!(tree.insert("key", "1")?, None);
    ///     assert_eq!(tree.insert("key", "2")?, Some("1".into()));
    ///     Ok(())
    /// })?;
    /// assert_eq!(db.get("key")?, Some("2".into()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn insert<K, V>(
        &self,
        key: K,
        value: V,
    ) -> std::result::Result<Option<IVec>, UnabortableTransactionError>
    where
        K: AsRef<[u8]> + Into<IVec>,
        V: Into<IVec>,
    {
        let (key, value) = (key.into(), value.into());
        self.access(|transaction, forest, merge| {
            transaction.insert(forest, self.index, key, Some(value), merge)
        })
    }

    /// Takes a key out and returns the value that it had, as this transaction sees it.
    ///
    /// # Errors
    /// As for [`TransactionalTree::insert`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("key", "value")?;
    /// db.transaction(|tree| {
    ///     assert_eq!(tree.remove("key")?, Some("value".into()));
    ///     assert_eq!(tree.remove("key")?, None);
    ///     Ok(())
    /// })?;
    /// assert_eq!(db.get("key")?, None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn remove<K>(&self, key: K) -> std::result::Result<Option<IVec>, UnabortableTransactionError>
    where
        K: AsRef<[u8]> + Into<IVec>,
    {
        let key = key.into();
        self.access(|transaction, forest, merge| transaction.insert(forest, self.index, key, None, merge))
    }

    /// Gives the merge operator of the tree an operand for a key.
    ///
    /// What the operator makes of it is known when it is read, at the latest when the transaction succeeds, and
    /// so it is not returned. As nothing is read for it either, transactions that merge into the same key do not
    /// conflict for that.
    ///
    /// # Errors
    /// `Storage` with `Unsupported` when the tree has no merge operator; otherwise as for
    /// [`TransactionalTree::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.set_merge_operator(|_key, old, new| Some([old.unwrap_or_default(), new].concat()));
    /// db.insert("key", "a")?;
    /// db.transaction(|tree| {
    ///     tree.merge("key", "b")?;
    ///     tree.merge("key", "c")?;
    ///     assert_eq!(tree.get("key")?, Some("abc".into()));
    ///     Ok(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn merge<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        key: K,
        operand: V,
    ) -> std::result::Result<(), UnabortableTransactionError> {
        if !self.tree().group().operator.is_set() {
            return Err(Error::no_operator().into());
        }
        let (key, operand) = (IVec::from(key.as_ref()), IVec::from(operand.as_ref()));
        self.access(|transaction, _, _| {
            transaction.stage_merge(self.index, key, operand);
            Ok(Some(()))
        })
    }

    /// Makes the changes of a batch a part of this transaction.
    ///
    /// # Errors
    /// `Storage` with `Unsupported` when the run that this belongs to has ended, or a merge operator that the
    /// transaction calls uses the transaction. Whether the tree is there is found out when the transaction
    /// succeeds.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// let mut batch = sled::Batch::default();
    /// batch.insert("key", "value");
    /// db.transaction(|tree| {
    ///     tree.apply_batch(&batch)?;
    ///     assert_eq!(tree.get("key")?, Some("value".into()));
    ///     Ok(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply_batch(&self, batch: &Batch) -> std::result::Result<(), UnabortableTransactionError> {
        self.access(|transaction, _, _| {
            for (key, value) in batch.writes() {
                transaction.stage(self.index, key.clone(), value.cloned());
            }
            Ok(Some(()))
        })
    }

    /// Has the database flushed once this transaction has succeeded, before it returns. When that fails, the
    /// transaction returns the error, though its changes are there, as those of any write before a flush that
    /// fails.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.transaction(|tree| {
    ///     tree.insert("key", "value")?;
    ///     tree.flush();
    ///     Ok(())
    /// })?;
    /// assert_eq!(db.flush()?, 0); // it is durable already
    /// # Ok(())
    /// # }
    /// ```
    pub fn flush(&self) {
        self.run.flush.set(true);
    }

    /// As [`Db::generate_id`](crate::Db::generate_id): a number that is not returned again, whatever becomes of
    /// the transaction. Of two transactions of which one reads what the other has written, it has the greater numbers.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// let id = db.transaction(|tree| {
    ///     let id = tree.generate_id()?;
    ///     tree.insert(&id.to_be_bytes(), "value")?;
    ///     Ok(id)
    /// })?;
    /// assert!(db.generate_id()? > id);
    /// # Ok(())
    /// # }
    /// ```
    pub fn generate_id(&self) -> Result<u64> {
        if let Ok(mut transaction) = self.run.transaction.try_borrow_mut()
            && let Some(transaction) = transaction.as_mut()
        {
            transaction.be_strict();
        }
        self.tree().engine().forest().generate_id()
    }

    /// Returns an iterator over all pairs.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("a", "1")?;
    /// db.transaction(|tree| {
    ///     tree.insert("b", "2")?;
    ///     assert_eq!(tree.iter().count(), 2);
    ///     Ok(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn iter(&self) -> TransactionalIter {
        self.between(Bound::Unbounded, Bound::Unbounded)
    }

    /// Returns an iterator over the pairs whose keys lie in a range; an empty or inverted range has none.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// for key in ["a", "b", "c"] {
    ///     db.insert(key, "")?;
    /// }
    /// db.transaction(|tree| {
    ///     tree.remove("b")?;
    ///     assert_eq!(tree.range("a".."c").count(), 1);
    ///     Ok(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn range<K: AsRef<[u8]>, R: RangeBounds<K>>(&self, range: R) -> TransactionalIter {
        let (low, high) = (owned(range.start_bound()), owned(range.end_bound()));
        // Before there is what is returned, which would be leaked if this panicked after that.
        drop(range);
        self.between(low, high)
    }

    /// Returns an iterator over the pairs whose keys start with `prefix`.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// for key in ["ab", "ac", "b"] {
    ///     db.insert(key, "")?;
    /// }
    /// db.transaction(|tree| {
    ///     for pair in tree.scan_prefix("a") {
    ///         tree.remove(pair?.0)?;
    ///     }
    ///     Ok(())
    /// })?;
    /// assert_eq!(db.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn scan_prefix<P: AsRef<[u8]>>(&self, prefix: P) -> TransactionalIter {
        let start = prefix.as_ref().to_vec();
        // Before there is what is returned, which would be leaked if this panicked after that.
        drop(prefix);
        let end = end_of_prefix(&start);
        self.between(Bound::Included(start), end)
    }

    fn between(&self, low: Bound<Vec<u8>>, high: Bound<Vec<u8>>) -> TransactionalIter {
        TransactionalIter::new(self.clone(), low, high)
    }

    /// Returns the pair with the least key.
    ///
    /// # Errors
    /// As for [`TransactionalTree::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.transaction(|tree| {
    ///     assert_eq!(tree.first()?, None);
    ///     tree.insert("key", "value")?;
    ///     assert_eq!(tree.first()?, Some(("key".into(), "value".into())));
    ///     Ok(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn first(&self) -> std::result::Result<Option<(IVec, IVec)>, UnabortableTransactionError> {
        self.pair(&Bound::Unbounded, &Bound::Unbounded, false)
    }

    /// Returns the pair with the greatest key.
    ///
    /// # Errors
    /// As for [`TransactionalTree::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("a", "1")?;
    /// db.transaction(|tree| {
    ///     tree.insert("b", "2")?;
    ///     assert_eq!(tree.last()?, Some(("b".into(), "2".into())));
    ///     Ok(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn last(&self) -> std::result::Result<Option<(IVec, IVec)>, UnabortableTransactionError> {
        self.pair(&Bound::Unbounded, &Bound::Unbounded, true)
    }

    /// Returns the pair with the greatest key below `key`.
    ///
    /// # Errors
    /// As for [`TransactionalTree::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert([1], "one")?;
    /// db.transaction(|tree| {
    ///     assert_eq!(tree.get_lt([3])?, Some((vec![1].into(), "one".into())));
    ///     assert_eq!(tree.get_lt([1])?, None);
    ///     Ok(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_lt<K: AsRef<[u8]>>(
        &self,
        key: K,
    ) -> std::result::Result<Option<(IVec, IVec)>, UnabortableTransactionError> {
        self.pair(&Bound::Unbounded, &Bound::Excluded(key.as_ref().to_vec()), true)
    }

    /// Returns the pair with the least key above `key`.
    ///
    /// # Errors
    /// As for [`TransactionalTree::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert([3], "three")?;
    /// db.transaction(|tree| {
    ///     assert_eq!(tree.get_gt([1])?, Some((vec![3].into(), "three".into())));
    ///     assert_eq!(tree.get_gt([3])?, None);
    ///     Ok(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_gt<K: AsRef<[u8]>>(
        &self,
        key: K,
    ) -> std::result::Result<Option<(IVec, IVec)>, UnabortableTransactionError> {
        self.pair(&Bound::Excluded(key.as_ref().to_vec()), &Bound::Unbounded, false)
    }
}
