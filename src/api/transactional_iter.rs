//! `TransactionalIter`: the pairs of a tree as a transaction sees them, in order.

use super::transaction_error::UnabortableTransactionError;
use super::transactional_tree::{Found, TransactionalTree};
use crate::ivec::IVec;
use crate::tree::is_void;
use std::ops::Bound;

/// An iterator over the pairs of a [`TransactionalTree`] in key order, from both ends.
///
/// It shows what the transaction sees: the state of one instant, and the transaction's own writes, those that are
/// made while it goes on included. What it did not find is also a part of what the transaction has read: a key
/// that others insert there meanwhile is a conflict. After an error, or at the end, it stays there.
///
/// # Examples
///
/// ```
/// # fn main() -> sled::transaction::TransactionResult<()> {
/// let db = sled::Config::new().temporary(true).open()?;
/// for key in ["a", "b", "c"] {
///     db.insert(key, "1")?;
/// }
/// let sum = db.transaction(|tree| {
///     let mut sum = 0;
///     for pair in tree.range("a"..="b").rev() {
///         let (_key, value) = pair?;
///         sum += u32::from(value[0] - b'0');
///     }
///     Ok(sum)
/// })?;
/// assert_eq!(sum, 2);
/// # Ok(())
/// # }
/// ```
pub struct TransactionalIter {
    tree: TransactionalTree,
    /// What is left lies between these.
    low: Bound<Vec<u8>>,
    high: Bound<Vec<u8>>,
    done: bool,
}

impl TransactionalIter {
    pub(super) fn new(
        tree: TransactionalTree,
        low: Bound<Vec<u8>>,
        high: Bound<Vec<u8>>,
    ) -> TransactionalIter {
        TransactionalIter { tree, low, high, done: false }
    }

    fn step(&mut self, backwards: bool) -> Option<Found<(IVec, IVec)>> {
        if self.done || is_void(&self.low, &self.high) {
            return None;
        }
        let found = self.tree.pair(&self.low, &self.high, backwards).transpose();
        match &found {
            Some(Ok((key, _))) => {
                let end = if backwards { &mut self.high } else { &mut self.low };
                *end = Bound::Excluded(key.to_vec());
            }
            Some(Err(_)) | None => self.done = true,
        }
        found
    }
}

impl Iterator for TransactionalIter {
    type Item = std::result::Result<(IVec, IVec), UnabortableTransactionError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(false)
    }

    fn last(mut self) -> Option<Self::Item> {
        self.next_back()
    }
}

impl DoubleEndedIterator for TransactionalIter {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(true)
    }
}

impl std::iter::FusedIterator for TransactionalIter {}
