//! `Tree`: an ordered map from bytes to bytes.

use super::engine::{Core, Engine, Group};
use super::iter::Iter;
use super::merge_operator::MergeOperator;
use super::subscriber::Subscriber;
use crate::base::metrics::{Op, measure};
use crate::error::{CompareAndSwapError, CompareAndSwapResult, Error, Result};
use crate::ivec::IVec;
use crate::tree::{BwTree, Change, Copied, Wanted, Written};
use crossbeam_utils::CachePadded;
use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::task::Poll;

/// An ordered map from byte strings to byte strings within a [`Db`](crate::Db).
///
/// All methods may be called from many threads at once; operations on one key are linearizable. Clones share
/// the tree. Keys and values may be any bytes, the empty ones included; keys are ordered byte by byte. A key
/// and its value may have up to about 1 GiB together; more is [`Error::Unsupported`].
///
/// Writes are durable when a flush that was called after them has returned; see [`Tree::flush`].
///
/// # Examples
///
/// ```
/// # fn main() -> sled::Result<()> {
/// let db = sled::Config::new().temporary(true).open()?;
/// let tree = db.open_tree("fruit")?;
/// assert_eq!(tree.insert("apple", "red")?, None);
/// assert_eq!(tree.insert("apple", "green")?, Some("red".into()));
/// assert_eq!(tree.get("apple")?, Some("green".into()));
/// assert_eq!(tree.remove("apple")?, Some("green".into()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tree {
    /// On a cache line of its own: clones change the count in front of it.
    shared: Arc<CachePadded<Shared>>,
}

struct Shared {
    /// Dropped first: it closes the database.
    engine: Arc<Engine>,
    /// Its core, to be there without a detour.
    core: Arc<Core>,
    bw: Arc<BwTree>,
    group: Arc<Group>,
}

const fn assert_send_sync<T: Send + Sync>() {}
const _: () = assert_send_sync::<Tree>();
const _: () = assert_send_sync::<Iter>();

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("name", &String::from_utf8_lossy(&self.shared.bw.name))
            .finish_non_exhaustive()
    }
}

impl IntoIterator for &Tree {
    type Item = Result<(IVec, IVec)>;
    type IntoIter = Iter;

    fn into_iter(self) -> Iter {
        self.iter()
    }
}

/// A copy of a bound.
pub(super) fn owned<K: AsRef<[u8]>, O: for<'a> From<&'a [u8]>>(bound: Bound<&K>) -> Bound<O> {
    bound.map(|key| O::from(key.as_ref()))
}

/// The least key above all that start with `prefix`.
pub(super) fn end_of_prefix(prefix: &[u8]) -> Bound<Vec<u8>> {
    let Some(last) = prefix.iter().rposition(|byte| *byte != 0xFF) else { return Bound::Unbounded };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Bound::Excluded(end)
}

impl Tree {
    pub(super) fn new(engine: Arc<Engine>, bw: Arc<BwTree>, group: Arc<Group>) -> Tree {
        let core = Arc::clone(engine.core());
        Tree { shared: Arc::new(CachePadded::new(Shared { engine, core, bw, group })) }
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.shared.engine
    }

    pub(super) fn bw(&self) -> &BwTree {
        &self.shared.bw
    }

    pub(super) fn group(&self) -> &Group {
        &self.shared.group
    }

    fn write(&self, key: &[u8], decide: impl FnMut(Option<&IVec>) -> Result<Change>) -> Result<Written> {
        let _measured = measure(Op::Write);
        self.shared.core.forest.write(&self.shared.bw, key, decide)
    }

    /// Gives a key a value and returns the value before. A value equal to that before is not written.
    ///
    /// # Errors
    /// `CollectionNotFound` when the tree was dropped; `Io` or `Corruption` when the key's page cannot be
    /// read; `Io` when room must be made by writing and that fails; `Unsupported` when key and value are too
    /// long; the first fatal error of this database. Then nothing has changed.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// assert_eq!(db.insert("k", "v1")?, None);
    /// assert_eq!(db.insert("k", vec![2])?, Some("v1".into()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn insert<K, V>(&self, key: K, value: V) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let value = value.into();
        let written = self.write(key.as_ref(), |old| {
            Ok(if old == Some(&value) { Change::Keep } else { Change::Put(value.clone()) })
        });
        written.map(|written| written.old)
    }

    /// Returns the value of a key.
    ///
    /// # Errors
    /// `CollectionNotFound` when the tree was dropped; `Io` or `Corruption` when the key's page cannot be
    /// read.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert([1, 2], "v")?;
    /// assert_eq!(db.get([1, 2])?, Some("v".into()));
    /// assert_eq!(db.get([1])?, None);
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    pub fn get<K: AsRef<[u8]>>(&self, key: K) -> Result<Option<IVec>> {
        let _measured = measure(Op::Get);
        let found = self.shared.core.forest.get(&self.shared.bw, key.as_ref());
        self.shared.core.forest.keep_up_reading();
        found
    }

    /// Takes a key out and returns the value that it had. Nothing is written when it had none.
    ///
    /// # Errors
    /// As for [`Tree::insert`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("k", "v")?;
    /// assert_eq!(db.remove("k")?, Some("v".into()));
    /// assert_eq!(db.remove("k")?, None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn remove<K: AsRef<[u8]>>(&self, key: K) -> Result<Option<IVec>> {
        let written =
            self.write(key.as_ref(), |old| Ok(if old.is_none() { Change::Keep } else { Change::Remove }));
        written.map(|written| written.old)
    }

    /// Returns whether a key has a value.
    ///
    /// # Errors
    /// As for [`Tree::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("k", "")?;
    /// assert!(db.contains_key("k")? && !db.contains_key("l")?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn contains_key<K: AsRef<[u8]>>(&self, key: K) -> Result<bool> {
        let _measured = measure(Op::Get);
        let found = self.shared.core.forest.contains(&self.shared.bw, key.as_ref());
        self.shared.core.forest.keep_up_reading();
        found
    }

    /// If the value of a key is `old` (`None` = there is none), makes it `new` (`None` = removes it).
    /// Otherwise returns what it is.
    ///
    /// # Errors
    /// The outer error as for [`Tree::insert`]. The inner one says that the value was another.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// assert_eq!(db.compare_and_swap("k", None as Option<&str>, Some("1"))?, Ok(()));
    /// let lost = db.compare_and_swap("k", Some("0"), Some("2"))?.expect_err("it is 1");
    /// assert_eq!(lost.current, Some("1".into()));
    /// assert_eq!(lost.proposed, Some("2".into()));
    /// assert_eq!(db.compare_and_swap("k", Some("1"), None as Option<&str>)?, Ok(()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn compare_and_swap<K, OV, NV>(
        &self,
        key: K,
        old: Option<OV>,
        new: Option<NV>,
    ) -> CompareAndSwapResult
    where
        K: AsRef<[u8]>,
        OV: AsRef<[u8]>,
        NV: Into<IVec>,
    {
        let new: Option<IVec> = new.map(Into::into);
        let old = old.as_ref().map(AsRef::as_ref);
        let written = self.write(key.as_ref(), |current| {
            Ok(match &new {
                _ if current.map(AsRef::as_ref) != old => Change::Keep,
                Some(new) => Change::Put(new.clone()),
                None => Change::Remove,
            })
        })?;
        Ok(if written.changed {
            Ok(())
        } else {
            Err(CompareAndSwapError { current: written.old, proposed: new })
        })
    }

    /// Changes a value in one step to what `f` makes of it (`None` = no value), and returns the new one. `f`
    /// is called again when somebody else was faster.
    ///
    /// # Errors
    /// As for [`Tree::insert`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// let longer = |old: Option<&[u8]>| Some([old.unwrap_or_default(), b"x"].concat());
    /// assert_eq!(db.update_and_fetch("k", longer)?, Some("x".into()));
    /// assert_eq!(db.update_and_fetch("k", longer)?, Some("xx".into()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn update_and_fetch<K, V, F>(&self, key: K, mut f: F) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        F: FnMut(Option<&[u8]>) -> Option<V>,
        V: Into<IVec>,
    {
        let mut new = None;
        self.write(key.as_ref(), |old| {
            new = f(old.map(AsRef::as_ref)).map(Into::into);
            Ok(new.clone().map_or(Change::Remove, Change::Put))
        })?;
        Ok(new)
    }

    /// As [`Tree::update_and_fetch`], but returns the value before.
    ///
    /// # Errors
    /// As for [`Tree::insert`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("k", "1")?;
    /// assert_eq!(db.fetch_and_update("k", |_| Some("2"))?, Some("1".into()));
    /// assert_eq!(db.get("k")?, Some("2".into()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn fetch_and_update<K, V, F>(&self, key: K, mut f: F) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        F: FnMut(Option<&[u8]>) -> Option<V>,
        V: Into<IVec>,
    {
        let written = self.write(key.as_ref(), |old| {
            let new: Option<IVec> = f(old.map(AsRef::as_ref)).map(Into::into);
            Ok(new.map_or(Change::Remove, Change::Put))
        });
        written.map(|written| written.old)
    }

    /// Gives the merge operator the key, its value and an operand, makes what it returns the value, and
    /// returns that.
    ///
    /// # Errors
    /// `Unsupported` when there is no merge operator; otherwise as for [`Tree::insert`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.set_merge_operator(|_key: &[u8], old: Option<&[u8]>, new: &[u8]| {
    ///     Some([old.unwrap_or_default(), new].concat())
    /// });
    /// db.merge("k", "a")?;
    /// assert_eq!(db.merge("k", "b")?, Some("ab".into()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn merge<K, V>(&self, key: K, value: V) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        let (key, operand) = (key.as_ref(), value.as_ref());
        if !self.shared.group.operator.is_set() {
            return Err(Error::no_operator());
        }
        let mut new = None;
        self.write(key, |old| {
            let old = old.map(AsRef::as_ref);
            let merged = self.shared.group.operator.call(key, old, operand).ok_or_else(Error::no_operator)?;
            new = merged.map(IVec::from);
            Ok(new.clone().map_or(Change::Remove, Change::Put))
        })?;
        Ok(new)
    }

    /// Returns a stream of the changes to the keys with a prefix, an empty one for all keys, from now on.
    ///
    /// Every change that begins after this has returned is in it, once, and before the call that makes it returns; so
    /// what is read after this, with the changes that come, misses nothing. All subscribers see the changes of a tree in
    /// the same order; those of a transaction or a batch are together, in key order. What is in the stream may not be
    /// durable yet. A write that changes nothing, an insert of the value that is there or a removal of a key that is
    /// not, is no change; compare-and-swap, update and merge are, whatever the value.
    ///
    /// A subscriber never makes a writer wait: when more than 32 MiB of changes wait for it, its stream ends, and
    /// [`Subscriber::lagged`] says so. It also ends when the tree is dropped, or the last handle of the database is,
    /// which a subscriber is not. What waits then can still be fetched.
    ///
    /// # Examples
    ///
    /// ```
    /// use sled::Event;
    ///
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// let subscriber = db.watch_prefix("a");
    /// db.insert("ab", "1")?;
    /// db.insert("b", "2")?;
    /// db.remove("ab")?;
    /// drop(db);
    /// let events: Vec<Event> = subscriber.collect();
    /// let insert = Event::Insert { key: "ab".into(), value: "1".into() };
    /// assert_eq!(events, [insert, Event::Remove { key: "ab".into() }]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn watch_prefix<P: AsRef<[u8]>>(&self, prefix: P) -> Subscriber {
        let start = prefix.as_ref().to_vec();
        // Before there is what is returned, which would be leaked if this panicked after that.
        drop(prefix);
        Subscriber::new(&self.shared.bw.watchers, &start)
    }

    /// Sets the merge operator of this tree, for all its handles, until the database is closed. Replaces the
    /// one before.
    ///
    /// Calls of an operator are serialized by a lock of its tree, which is held during a call. An operator
    /// may use the database, its own tree included; but the operators of two trees that each merge into the
    /// other tree can deadlock when two threads enter them from either side. There is no `Send` bound, so
    /// that programs for 0.34 compile; an operator that holds something that must not leave its thread must
    /// be used on that thread only.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// fn largest(_key: &[u8], old: Option<&[u8]>, new: &[u8]) -> Option<Vec<u8>> {
    ///     Some(old.unwrap_or_default().max(new).to_vec())
    /// }
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.set_merge_operator(largest);
    /// db.merge("k", [3])?;
    /// assert_eq!(db.merge("k", [2])?, Some(vec![3].into()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_merge_operator(&self, merge_operator: impl MergeOperator + 'static) {
        self.shared.group.operator.set(Box::new(merge_operator));
    }

    /// Makes durable everything that was written before, to any tree of this database, and returns how many
    /// bytes of the log became durable meanwhile, 0 if there were none. When this has returned `Ok`, it
    /// survives the loss of power.
    ///
    /// # Errors
    /// `Io` when writing fails; that can be tried again. When the system could not sync, what the disk holds
    /// is unknown: from then on every write and flush returns that error until the database is opened again,
    /// which finds everything that was flushed before.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("k", "v")?;
    /// assert!(db.flush()? > 0);
    /// assert_eq!(db.flush()?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn flush(&self) -> Result<usize> {
        let before = self.shared.core.forest.log().stability().stable().0;
        let after = self.shared.engine.flush()?;
        Ok(usize::try_from(after.saturating_sub(before)).unwrap_or(usize::MAX))
    }

    /// As [`Tree::flush`], without blocking the task. Any number of tasks may await it together; dropping the
    /// future is safe.
    ///
    /// # Errors
    /// As for [`Tree::flush`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn block_on<F: std::future::Future>(f: F) -> F::Output {
    /// #     let mut f = std::pin::pin!(f);
    /// #     let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     loop {
    /// #         if let std::task::Poll::Ready(out) = f.as_mut().poll(&mut context) { return out; }
    /// #     }
    /// # }
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("k", "v")?;
    /// assert!(block_on(db.flush_async())? > 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn flush_async(&self) -> Result<usize> {
        let before = self.shared.core.forest.log().stability().stable().0;
        let Some(waiter) = self.shared.engine.await_flush() else { return self.flush() };
        let after = std::future::poll_fn(|context| match waiter.poll(context.waker()) {
            Some(result) => Poll::Ready(result),
            None => Poll::Pending,
        });
        let after = after.await?;
        Ok(usize::try_from(after.saturating_sub(before)).unwrap_or(usize::MAX))
    }

    /// Returns the pair with the greatest key below `key`.
    ///
    /// # Errors
    /// As for [`Tree::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert([1], "one")?;
    /// db.insert([3], "three")?;
    /// assert_eq!(db.get_lt([3])?, Some((vec![1].into(), "one".into())));
    /// assert_eq!(db.get_lt([1])?, None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_lt<K>(&self, key: K) -> Result<Option<(IVec, IVec)>>
    where
        K: AsRef<[u8]>,
    {
        self.one(Bound::Excluded(IVec::from(key.as_ref())), true)
    }

    /// Returns the pair with the least key above `key`.
    ///
    /// # Errors
    /// As for [`Tree::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert([3], "three")?;
    /// assert_eq!(db.get_gt([1])?, Some((vec![3].into(), "three".into())));
    /// assert_eq!(db.get_gt([3])?, None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_gt<K>(&self, key: K) -> Result<Option<(IVec, IVec)>>
    where
        K: AsRef<[u8]>,
    {
        self.one(Bound::Excluded(IVec::from(key.as_ref())), false)
    }

    fn one(&self, mut start: Bound<IVec>, backwards: bool) -> Result<Option<(IVec, IVec)>> {
        let _measured = measure(Op::Scan);
        let mut copied = Copied::default();
        let wanted = Wanted { bound: &Bound::Unbounded, backwards, most: 1 };
        self.shared.core.forest.copy(&self.shared.bw, &mut start, wanted, &mut copied)?;
        self.shared.core.forest.keep_up_reading();
        Ok(copied.pair())
    }

    /// Returns an iterator over all pairs.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("a", "1")?;
    /// db.insert("b", "2")?;
    /// let pairs: Result<Vec<_>, _> = db.iter().rev().collect();
    /// assert_eq!(pairs?[0].0, "b");
    /// # Ok(())
    /// # }
    /// ```
    pub fn iter(&self) -> Iter {
        Iter::new(self.clone(), Bound::Unbounded, Bound::Unbounded)
    }

    /// Returns an iterator over the pairs whose keys lie in a range; an empty or inverted range has none.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// for key in ["a", "b", "c"] {
    ///     db.insert(key, "")?;
    /// }
    /// assert_eq!(db.range("a".."c").count(), 2);
    /// assert_eq!(db.range("b"..).count(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn range<K, R>(&self, range: R) -> Iter
    where
        K: AsRef<[u8]>,
        R: RangeBounds<K>,
    {
        let (low, high) = (owned(range.start_bound()), owned(range.end_bound()));
        // Before there is what is returned, which would be leaked if this panicked after that.
        drop(range);
        Iter::new(self.clone(), low, high)
    }

    /// Returns an iterator over the pairs whose keys start with `prefix`.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// for key in ["ab", "ac", "b"] {
    ///     db.insert(key, "")?;
    /// }
    /// assert_eq!(db.scan_prefix("a").count(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn scan_prefix<P>(&self, prefix: P) -> Iter
    where
        P: AsRef<[u8]>,
    {
        let start = prefix.as_ref().to_vec();
        // Before there is what is returned, which would be leaked if this panicked after that.
        drop(prefix);
        let end = end_of_prefix(&start).map(IVec::from);
        Iter::new(self.clone(), Bound::Included(IVec::from(start)), end)
    }

    /// Returns the pair with the least key.
    ///
    /// # Errors
    /// As for [`Tree::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// assert_eq!(db.first()?, None);
    /// db.insert("k", "v")?;
    /// assert_eq!(db.first()?, Some(("k".into(), "v".into())));
    /// # Ok(())
    /// # }
    /// ```
    pub fn first(&self) -> Result<Option<(IVec, IVec)>> {
        self.one(Bound::Included(IVec::default()), false)
    }

    /// Returns the pair with the greatest key.
    ///
    /// # Errors
    /// As for [`Tree::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("a", "1")?;
    /// db.insert("b", "2")?;
    /// assert_eq!(db.last()?, Some(("b".into(), "2".into())));
    /// # Ok(())
    /// # }
    /// ```
    pub fn last(&self) -> Result<Option<(IVec, IVec)>> {
        self.one(Bound::Unbounded, true)
    }

    /// Takes out the pair with the greatest key, and returns it. No two callers get the same one.
    ///
    /// # Errors
    /// As for [`Tree::insert`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("a", "1")?;
    /// assert_eq!(db.pop_max()?, Some(("a".into(), "1".into())));
    /// assert_eq!(db.pop_max()?, None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pop_max(&self) -> Result<Option<(IVec, IVec)>> {
        self.pop(|tree| tree.last())
    }

    /// Takes out the pair with the least key, and returns it. No two callers get the same one.
    ///
    /// # Errors
    /// As for [`Tree::insert`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("a", "1")?;
    /// db.insert("b", "2")?;
    /// assert_eq!(db.pop_min()?, Some(("a".into(), "1".into())));
    /// # Ok(())
    /// # }
    /// ```
    pub fn pop_min(&self) -> Result<Option<(IVec, IVec)>> {
        self.pop(|tree| tree.first())
    }

    fn pop(&self, find: impl Fn(&Tree) -> Result<Option<(IVec, IVec)>>) -> Result<Option<(IVec, IVec)>> {
        loop {
            let Some((key, value)) = find(self)? else { return Ok(None) };
            let none: Option<IVec> = None;
            if self.compare_and_swap(&key, Some(&value), none)?.is_ok() {
                return Ok(Some((key, value)));
            }
        }
    }

    /// Returns the number of keys. Writes that have not returned yet may be counted or not.
    ///
    /// It is known, and not counted: but for the first call after a crash, or after a time in which somebody always
    /// wrote, which goes through all leaves. Values longer than 2 KiB are not read for that. When a page cannot be read
    /// then, the error is logged and 0 is returned; [`Tree::iter`] returns the error itself. A dropped tree has none.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("k", "v")?;
    /// assert_eq!(db.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn len(&self) -> usize {
        let len = self.shared.core.forest.len(&self.shared.bw).unwrap_or_else(|error| {
            log::error!("len() of {self:?}: {error}");
            0
        });
        usize::try_from(len).unwrap_or(usize::MAX)
    }

    /// Returns whether there is no key; an error reads as "there may be".
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// assert!(db.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_empty(&self) -> bool {
        matches!(self.first(), Ok(None))
    }

    /// Takes out all keys one by one; keys inserted meanwhile may stay.
    ///
    /// # Errors
    /// As for [`Tree::insert`]; then some keys are gone and some are not.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("k", "v")?;
    /// db.clear()?;
    /// assert!(db.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn clear(&self) -> Result<()> {
        for key in self.iter().keys() {
            self.remove(key?)?;
        }
        Ok(())
    }

    /// Returns the name of the tree.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// assert_eq!(db.name(), "__sled__default");
    /// assert_eq!(db.open_tree("t")?.name(), "t");
    /// # Ok(())
    /// # }
    /// ```
    pub fn name(&self) -> IVec {
        self.shared.bw.name.clone()
    }

    /// Returns the CRC-32 of the key and the value of each pair in key order.
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
    /// let tree: &sled::Tree = &db;
    /// assert_eq!(tree.checksum()?, 1_826_703_395);
    /// # Ok(())
    /// # }
    /// ```
    pub fn checksum(&self) -> Result<u32> {
        let mut hasher = crc32fast::Hasher::new();
        self.hash_into(&mut hasher)?;
        Ok(hasher.finalize())
    }

    pub(super) fn hash_into(&self, hasher: &mut crc32fast::Hasher) -> Result<()> {
        for pair in self {
            let (key, value) = pair?;
            hasher.update(&key);
            hasher.update(&value);
        }
        Ok(())
    }

    /// As [`Tree::insert`].
    ///
    /// # Errors
    /// As there.
    #[doc(hidden)]
    #[deprecated(since = "0.24.2", note = "use `insert`")]
    pub fn set<K, V>(&self, key: K, value: V) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        self.insert(key, value)
    }

    /// As [`Tree::remove`].
    ///
    /// # Errors
    /// As there.
    #[doc(hidden)]
    #[deprecated(since = "0.24.2", note = "use `remove`")]
    pub fn del<K: AsRef<[u8]>>(&self, key: K) -> Result<Option<IVec>> {
        self.remove(key)
    }

    /// Walks all trees and checks the structure.
    ///
    /// # Errors
    /// `ReportableBug` with what is wrong, or what reading failed with.
    #[doc(hidden)]
    pub fn verify_integrity(&self) -> Result<()> {
        self.shared.core.forest.check_invariants()
    }

    /// The first fatal error of this database, if there was one.
    ///
    /// # Errors
    /// That error.
    #[doc(hidden)]
    pub fn global_error(&self) -> Result<()> {
        self.shared.engine.config().global_error()
    }
}
