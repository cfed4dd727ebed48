//! Transactions: several reads and writes, of one tree or of several, as one step.
//!
//! [`Tree::transaction`] runs a closure over one tree, [`Transactional::transaction`] over several. What the
//! closure returns decides: with `Ok` everything that it wrote is made visible in one instant; with an error, see
//! [`abort`], or a panic, nothing of it ever was there.
//!
//! ```
//! use sled::Transactional;
//! use sled::transaction::{TransactionError, abort};
//!
//! # fn main() -> sled::Result<()> {
//! let db = sled::Config::new().temporary(true).open()?;
//! let (open, done) = (db.open_tree("open")?, db.open_tree("done")?);
//! open.insert("task 1", "write it down")?;
//!
//! let finish = |task: &str| {
//!     (&open, &done).transaction(|(open, done)| {
//!         match open.remove(task)? {
//!             Some(text) => done.insert(task, text)?,
//!             None => return abort("no such task"),
//!         };
//!         Ok(())
//!     })
//! };
//! assert_eq!(finish("task 1"), Ok(()));
//! assert_eq!(finish("task 2"), Err(TransactionError::Abort("no such task")));
//! # Ok(())
//! # }
//! ```
//!
//! # Semantics
//!
//! Transactions are serializable and optimistic: they lock nothing while the closure runs. The closure sees the
//! state of one instant, with its own writes on top, even in a run that is not going to succeed. If others have
//! changed what it read by the time it has ended, it **runs again**: it may run several times under contention,
//! once without, and should do nothing that matters except through the trees that it is given. What was read
//! includes what was looked for and not found, and the gaps between the keys of a range. A key that was only
//! written by [`apply_batch`](TransactionalTree::apply_batch) or [`merge`](TransactionalTree::merge) was not read.
//!
//! After a crash a transaction is there as a whole or not at all. It is durable after a flush, as any other
//! write; [`TransactionalTree::flush`] asks for one.
//!
//! Everything else may be done inside a closure: the methods of a [`Tree`], of this or another
//! database, flushes, and other transactions. They see what is committed and nothing of the transaction around
//! them; and if they write what that has read, it conflicts with them, and runs again.

use super::batch::Batch;
pub use super::transaction_error::{
    ConflictableTransactionError, ConflictableTransactionResult, TransactionError, TransactionResult,
    UnabortableTransactionError,
};
pub use super::transactional_iter::TransactionalIter;
pub use super::transactional_tree::{TransactionalTree, TransactionalTrees};
use super::tree::Tree;
use crate::base::metrics::{Op, measure};
use crate::error::{Error, Result};
use crate::tree::own_changes;
use crossbeam_utils::Backoff;

/// Runs in a row which changed something by other means, and conflicted, before that is held to be the reason.
const SUSPICIOUS: u32 = 1000;

/// What the closure of a transaction returns to give it up: nothing is applied, and the transaction returns
/// [`TransactionError::Abort`] with this value.
///
/// # Errors
/// Always; that is what it is for.
///
/// # Examples
///
/// ```
/// use sled::transaction::{TransactionError, abort};
///
/// # fn main() -> sled::Result<()> {
/// let db = sled::Config::new().temporary(true).open()?;
/// db.insert("stock", [0])?;
/// let sold = db.transaction(|tree| {
///     let stock = tree.get("stock")?.map_or(0, |stock| stock[0]);
///     if stock == 0 {
///         return abort("sold out");
///     }
///     tree.insert("stock", vec![stock - 1])?;
///     Ok(stock - 1)
/// });
/// assert_eq!(sold, Err(TransactionError::Abort("sold out")));
/// # Ok(())
/// # }
/// ```
pub fn abort<A, T>(t: T) -> ConflictableTransactionResult<A, T> {
    Err(ConflictableTransactionError::Abort(t))
}

/// A [`Tree`], or several of one database, that a transaction can be run over: a tuple of up to 14 references, or a
/// slice.
///
/// # Examples
///
/// ```
/// use sled::Transactional;
/// use sled::transaction::TransactionResult;
///
/// # fn main() -> TransactionResult<()> {
/// let db = sled::Config::new().temporary(true).open()?;
/// let (a, b) = (db.open_tree("a")?, db.open_tree("b")?);
///
/// // A tuple; `&*db` is the default tree.
/// (&*db, &a, &b).transaction(|(default, a, b)| {
///     default.insert("key", "1")?;
///     a.insert("key", "2")?;
///     b.insert("key", "3")?;
///     Ok(())
/// })?;
///
/// // A slice: as many as there are.
/// let trees = vec![a, b];
/// let values = trees.transaction(|trees| {
///     let mut values = Vec::new();
///     for tree in trees {
///         values.extend(tree.get("key")?);
///     }
///     Ok(values)
/// })?;
/// assert_eq!(values, ["2", "3"]);
/// # Ok(())
/// # }
/// ```
pub trait Transactional<E = ()> {
    /// What the closure is given: a [`TransactionalTree`] for each tree.
    type View;

    /// Begins a transaction by hand: nothing is read yet, and nothing that is written by way of its views is ever
    /// applied. [`transaction`](Transactional::transaction) is what applies.
    ///
    /// # Errors
    /// `Unsupported` when the trees are not all of one database.
    ///
    /// # Examples
    ///
    /// ```
    /// use sled::{Transactional, Tree};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// let overlay = Transactional::<()>::make_overlay(&*db)?;
    /// let view = <Tree as Transactional>::view_overlay(&overlay);
    /// view.insert("key", "value")?;
    /// assert_eq!(view.get("key")?, Some("value".into()));
    /// assert_eq!(db.get("key")?, None);
    /// # Ok(())
    /// # }
    /// ```
    fn make_overlay(&self) -> Result<TransactionalTrees>;

    /// The view of what [`make_overlay`](Transactional::make_overlay) began.
    ///
    /// # Panics
    /// May panic when it was begun with fewer trees.
    ///
    /// # Examples
    ///
    /// See [`make_overlay`](Transactional::make_overlay).
    fn view_overlay(overlay: &TransactionalTrees) -> Self::View;

    /// Runs `f` over these trees, and if it returns `Ok` makes everything that it wrote visible in one instant.
    ///
    /// - Serializable: it is as if every transaction, batch and single operation had happened alone, one after the
    ///   other. `f` sees one consistent state, and its own writes, in every run.
    /// - Optimistic: nothing is locked while `f` runs. **`f` may run several times under contention**: it runs again
    ///   when somebody has changed what it read. Uncontended it runs once.
    /// - A run that cannot succeed any more is left at once, in the middle of an operation, by unwinding as a panic does
    ///   but without a message; with `panic = "abort"` the operation returns `Conflict` instead. So a guard of a
    ///   `std::sync::Mutex` had better not be held across operations: it would be poisoned.
    /// - All or nothing: when `f` returns an error, or panics, nothing is applied; the panic goes on. After a crash
    ///   either all of it is there or nothing.
    /// - The same tree may be named twice; both views share their writes. Without any tree, an empty slice, `f` runs,
    ///   and there is nothing to apply.
    /// - Inside `f` everything else is allowed, other transactions included, and sees what is committed only. A
    ///   closure that by such means changes what it has read conflicts with itself; when that happens 1000 times in a
    ///   row the transaction gives up with `Unsupported`.
    /// - It is durable after the next flush, or when it returns if a view was asked for one.
    ///
    /// # Errors
    /// [`Abort`](TransactionError::Abort) with what `f` gave up with; [`Storage`](TransactionError::Storage) with
    /// `Unsupported` when the trees are not all of one database, which is found before `f` runs; with what `f` or
    /// applying its writes failed with, and then nothing is applied; or with what the flush that `f` asked for
    /// failed with, and then everything is.
    ///
    /// # Examples
    ///
    /// ```
    /// use sled::Transactional;
    ///
    /// # fn main() -> sled::transaction::TransactionResult<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// let (names, count) = (db.open_tree("names")?, db.open_tree("count")?);
    /// let total = (&names, &count).transaction(|(names, count)| {
    ///     let mut total = count.get("total")?.map_or(0, |total| total[0]);
    ///     if names.insert("ada", "")?.is_none() {
    ///         total += 1;
    ///     }
    ///     count.insert("total", vec![total])?;
    ///     Ok(total)
    /// })?;
    /// assert_eq!(total, 1);
    /// # Ok(())
    /// # }
    /// ```
    fn transaction<F, A>(&self, f: F) -> TransactionResult<A, E>
    where
        F: Fn(&Self::View) -> ConflictableTransactionResult<A, E>,
    {
        let _measured = measure(Op::Transaction);
        let mut overlay = self.make_overlay()?;
        let (backoff, mut _rerun) = (Backoff::new(), None);
        let mut suspicious = 0;
        loop {
            let before = own_changes();
            let outcome = overlay.run(|| f(&Self::view_overlay(&overlay)));
            suspicious = if own_changes() == before { 0 } else { suspicious + 1 };
            if let Some(result) = overlay.finish(outcome) {
                return result;
            }
            if suspicious == SUSPICIOUS {
                let text = "the closure of a transaction keeps changing, by other means, what it has read";
                return Err(Error::Unsupported(text.into()).into());
            }
            overlay = overlay.again();
            backoff.snooze();
            _rerun = Some(measure(Op::Rerun));
        }
    }
}

impl<E> Transactional<E> for Tree {
    type View = TransactionalTree;

    fn make_overlay(&self) -> Result<TransactionalTrees> {
        TransactionalTrees::new([self])
    }

    fn view_overlay(overlay: &TransactionalTrees) -> Self::View {
        overlay.view(0)
    }
}

impl<E> Transactional<E> for &Tree {
    type View = TransactionalTree;

    fn make_overlay(&self) -> Result<TransactionalTrees> {
        TransactionalTrees::new([*self])
    }

    fn view_overlay(overlay: &TransactionalTrees) -> Self::View {
        overlay.view(0)
    }
}

impl<E> Transactional<E> for &&Tree {
    type View = TransactionalTree;

    fn make_overlay(&self) -> Result<TransactionalTrees> {
        TransactionalTrees::new([**self])
    }

    fn view_overlay(overlay: &TransactionalTrees) -> Self::View {
        overlay.view(0)
    }
}

impl<E> Transactional<E> for [Tree] {
    type View = Vec<TransactionalTree>;

    fn make_overlay(&self) -> Result<TransactionalTrees> {
        TransactionalTrees::new(self)
    }

    fn view_overlay(overlay: &TransactionalTrees) -> Self::View {
        overlay.views()
    }
}

impl<E> Transactional<E> for [&Tree] {
    type View = Vec<TransactionalTree>;

    fn make_overlay(&self) -> Result<TransactionalTrees> {
        TransactionalTrees::new(self.iter().copied())
    }

    fn view_overlay(overlay: &TransactionalTrees) -> Self::View {
        overlay.views()
    }
}

/// The second of two, so that something can be repeated for each position.
macro_rules! each {
    ($position:tt, $type:ty) => {
        $type
    };
}

macro_rules! transactional_tuple {
    ($($position:tt)+) => {
        impl<E> Transactional<E> for ($(each!($position, &Tree),)+) {
            type View = ($(each!($position, TransactionalTree),)+);

            fn make_overlay(&self) -> Result<TransactionalTrees> {
                TransactionalTrees::new([$(self.$position),+])
            }

            fn view_overlay(overlay: &TransactionalTrees) -> Self::View {
                ($(overlay.view($position),)+)
            }
        }
    };
}

transactional_tuple!(0);
transactional_tuple!(0 1);
transactional_tuple!(0 1 2);
transactional_tuple!(0 1 2 3);
transactional_tuple!(0 1 2 3 4);
transactional_tuple!(0 1 2 3 4 5);
transactional_tuple!(0 1 2 3 4 5 6);
transactional_tuple!(0 1 2 3 4 5 6 7);
transactional_tuple!(0 1 2 3 4 5 6 7 8);
transactional_tuple!(0 1 2 3 4 5 6 7 8 9);
transactional_tuple!(0 1 2 3 4 5 6 7 8 9 10);
transactional_tuple!(0 1 2 3 4 5 6 7 8 9 10 11);
transactional_tuple!(0 1 2 3 4 5 6 7 8 9 10 11 12);
transactional_tuple!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);

impl Tree {
    /// Makes the changes of a batch, all at once: nobody sees some of them without the others by reading keys, and
    /// after a crash all are there or none. They are durable after the next flush.
    ///
    /// # Errors
    /// As for [`Tree::insert`]; then nothing has changed. An empty batch never fails.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("draft", "text")?;
    ///
    /// let mut batch = sled::Batch::default();
    /// batch.remove("draft");
    /// batch.insert("letter", "text");
    /// db.apply_batch(batch)?;
    ///
    /// assert_eq!((db.get("draft")?, db.get("letter")?), (None, Some("text".into())));
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply_batch(&self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let _measured = measure(Op::Batch);
        self.engine().forest().write_all(self.bw(), batch.into_writes())
    }

    /// Runs `f` over this tree, and if it returns `Ok` makes everything that it wrote visible in one instant.
    ///
    /// - Serializable: it is as if every transaction, batch and single operation had happened alone, one after the
    ///   other. `f` sees one consistent state, and its own writes, in every run.
    /// - Optimistic: nothing is locked while `f` runs. **`f` may run several times under contention**: it runs again
    ///   when somebody has changed what it read. Uncontended it runs once.
    /// - A run that cannot succeed any more is left at once, in the middle of an operation, by unwinding as a panic does
    ///   but without a message; with `panic = "abort"` the operation returns `Conflict` instead. So a guard of a
    ///   `std::sync::Mutex` had better not be held across operations: it would be poisoned.
    /// - All or nothing: when `f` returns an error, or panics, nothing is applied; the panic goes on. After a crash
    ///   either all of it is there or nothing.
    /// - Inside `f` everything else is allowed, other transactions included, and sees what is committed only. A
    ///   closure that by such means changes what it has read conflicts with itself; when that happens 1000 times in a
    ///   row the transaction gives up with `Unsupported`.
    /// - It is durable after the next flush, or when it returns if the view was asked for one.
    ///
    /// For several trees see [`Transactional::transaction`].
    ///
    /// # Errors
    /// [`Abort`](TransactionError::Abort) with what `f` gave up with; [`Storage`](TransactionError::Storage) with what
    /// `f` or applying its writes failed with, and then nothing is applied; or with what the flush that `f` asked
    /// for failed with, and then everything is.
    ///
    /// # Examples
    ///
    /// ```
    /// use sled::transaction::{TransactionError, abort};
    ///
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("alice", vec![10])?;
    /// db.insert("bob", vec![0])?;
    ///
    /// let pay = |amount: u8| {
    ///     db.transaction(|accounts| {
    ///         let alice = accounts.get("alice")?.map_or(0, |balance| balance[0]);
    ///         let bob = accounts.get("bob")?.map_or(0, |balance| balance[0]);
    ///         let Some(rest) = alice.checked_sub(amount) else { return abort("not enough") };
    ///         accounts.insert("alice", vec![rest])?;
    ///         accounts.insert("bob", vec![bob + amount])?;
    ///         Ok(rest)
    ///     })
    /// };
    /// assert_eq!(pay(7), Ok(3));
    /// assert_eq!(pay(7), Err(TransactionError::Abort("not enough")));
    /// assert_eq!(db.get("bob")?, Some(vec![7].into()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn transaction<F, A, E>(&self, f: F) -> TransactionResult<A, E>
    where
        F: Fn(&TransactionalTree) -> ConflictableTransactionResult<A, E>,
    {
        Transactional::transaction(self, f)
    }
}
