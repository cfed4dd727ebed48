//! `Batch`: changes of a tree that are applied together.

use crate::ivec::IVec;
use std::collections::BTreeMap;

/// Changes that [`Tree::apply_batch`](crate::Tree::apply_batch) makes all at once, or
/// [`TransactionalTree::apply_batch`](crate::transaction::TransactionalTree::apply_batch) as a part of a
/// transaction.
///
/// A key is changed once: the last thing that the batch was told about it is what counts.
///
/// # Examples
///
/// ```
/// # fn main() -> sled::Result<()> {
/// let db = sled::Config::new().temporary(true).open()?;
/// db.insert("old", "value")?;
///
/// let mut batch = sled::Batch::default();
/// batch.insert("new", "first");
/// batch.insert("new", "last");
/// batch.remove("old");
/// db.apply_batch(batch)?;
///
/// assert_eq!(db.get("new")?, Some("last".into()));
/// assert_eq!(db.get("old")?, None);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// What becomes of each key, `None` = removed; in key order, so that it is logged and observed in it.
    writes: BTreeMap<IVec, Option<IVec>>,
}

impl Batch {
    /// The key is to have this value.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut batch = sled::Batch::default();
    /// batch.insert("key", vec![1, 2, 3]);
    /// ```
    pub fn insert<K, V>(&mut self, key: K, value: V)
    where
        K: Into<IVec>,
        V: Into<IVec>,
    {
        self.writes.insert(key.into(), Some(value.into()));
    }

    /// The key is to have no value.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut batch = sled::Batch::default();
    /// batch.remove("key");
    /// ```
    pub fn remove<K>(&mut self, key: K)
    where
        K: Into<IVec>,
    {
        self.writes.insert(key.into(), None);
    }

    /// Whether nothing is to be changed.
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// What becomes of each key, in key order; `None` = it is removed.
    pub(super) fn writes(&self) -> impl Iterator<Item = (&IVec, Option<&IVec>)> {
        self.writes.iter().map(|(key, value)| (key, value.as_ref()))
    }

    /// As [`Self::writes`].
    pub(super) fn into_writes(self) -> impl Iterator<Item = (IVec, Option<IVec>)> {
        self.writes.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::Batch;

    #[test]
    fn the_last_word_on_a_key_counts_and_keys_are_in_order() {
        let mut batch = Batch::default();
        assert!(batch.is_empty());
        batch.remove("b");
        batch.insert("c", "1");
        batch.insert("a", "2");
        batch.insert("b", "3");
        batch.remove("c");
        batch.remove("");
        let expected = [("", None), ("a", Some("2")), ("b", Some("3")), ("c", None)];
        let expected = expected.map(|(key, value)| (key.as_bytes(), value.map(str::as_bytes)));
        let writes: Vec<_> = batch.writes().map(|(key, value)| (&key[..], value.map(|v| &v[..]))).collect();
        assert_eq!(writes, expected);
        assert!(!batch.is_empty());
    }
}
