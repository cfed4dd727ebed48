//! A transaction while its closure runs: what it has read, and writes that only it sees.
//!
//! # How it works
//!
//! Writes are staged by tree and key. What is read comes from them first, and otherwise from the trees through the
//! [`ReadSet`], which sees to it that everything is of one state of the database. Nothing is published, no guard is
//! pinned and no lock is held while the closure runs; [`Transaction::commit`] does the rest.

use super::intent::Commit;
use super::priority::Holder;
use super::read_set::{ReadSet, Seen, Step, is_void, is_within};
use super::{BwTree, Forest, add};
use crate::error::{Error, Result};
use crate::ivec::IVec;
use crate::pagecache::Status;
use crossbeam_utils::Backoff;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// Applies the merge operator of a tree, by its index in the transaction, to a key, its value and an operand; `None`:
/// that tree has none.
pub type Operators<'a> = &'a dyn Fn(usize, &[u8], Option<&[u8]>, &[u8]) -> Option<Option<Vec<u8>>>;

/// Why something did not give a result.
#[derive(Debug)]
pub(super) enum Interrupted {
    /// This transaction goes first.
    Conflict(Arc<Status>),
    /// What it failed with.
    Failed(Error),
}

/// Pairs that were read ahead at the first step, and at most.
const AHEAD: std::ops::RangeInclusive<usize> = 1..=64;
/// Runs of the closure after which a commit asks others for patience.
const IMPATIENT: u32 = 4;

/// Runs after which it claims the priority of its trees.
const STARVING: u32 = 8;

/// What a transaction does to a key.
#[derive(Clone, Debug)]
pub(super) struct Write {
    /// The value that it is given, `None` in it: it is removed. Without: that which it has.
    base: Option<Option<IVec>>,
    /// Merged into that, in this order.
    operands: Vec<IVec>,
}

impl Write {
    /// Gives the key this value, whatever it has.
    fn put(value: Option<IVec>) -> Write {
        Write { base: Some(value), operands: Vec::new() }
    }

    /// The value that it gives the key.
    ///
    /// # Errors
    /// What it is, if it depends on the value that the key has.
    pub(super) fn into_value(self) -> std::result::Result<Option<IVec>, Write> {
        match self {
            Write { base: Some(value), operands } if operands.is_empty() => Ok(value),
            other => Err(other),
        }
    }

    /// Bytes of values.
    pub(super) fn len(&self) -> usize {
        let base = self.base.iter().flatten().map(|value| value.len());
        base.chain(self.operands.iter().map(|operand| operand.len())).sum()
    }

    /// The value that it gives the key, if it does not depend on anything.
    fn value(&self) -> Option<Option<IVec>> {
        if self.operands.is_empty() { self.base.clone() } else { None }
    }

    /// The value that it gives a key which has `old`.
    ///
    /// # Errors
    /// `Unsupported` without a merge operator.
    pub(super) fn apply(
        &self,
        tree: usize,
        key: &[u8],
        old: Option<&IVec>,
        operators: Operators<'_>,
    ) -> Result<Option<IVec>> {
        let mut value = match &self.base {
            Some(base) => base.clone(),
            None => old.cloned(),
        };
        for operand in &self.operands {
            let merged = operators(tree, key, value.as_ref().map(AsRef::as_ref), operand);
            value = merged.ok_or_else(Error::no_operator)?.map(IVec::from);
        }
        Ok(value)
    }
}

/// Pairs that were read ahead of the closure.
#[derive(Debug)]
struct Ahead {
    tree: usize,
    backwards: bool,
    /// Pairs between here ...
    from: Bound<Vec<u8>>,
    /// ... and where the next step starts, `None` for `end`.
    next: Option<Bound<Vec<u8>>>,
    /// The other end of what was asked for.
    end: Bound<Vec<u8>>,
    pairs: VecDeque<(IVec, IVec)>,
    /// How many were asked for.
    limit: usize,
}

/// A transaction being run, over trees that it has handles of.
#[derive(Debug)]
pub struct Transaction<H: AsRef<BwTree>> {
    trees: Vec<H>,
    reads: ReadSet,
    writes: BTreeMap<(usize, IVec), Write>,
    ahead: Option<Ahead>,
    /// What was read does not hold any more.
    is_stale: bool,
    /// Where the redo stream ended at its first commit.
    age: Option<u64>,
    /// Runs of the closure before this one.
    runs: u32,
}

/// `None`: what was read before does not hold any more, and the closure must be run again.
type Read<T> = Result<Option<T>>;

impl<H: AsRef<BwTree>> Transaction<H> {
    /// A transaction over these trees, which are different ones; what follows names them by their index.
    pub fn new(trees: Vec<H>) -> Transaction<H> {
        Transaction {
            trees,
            reads: ReadSet::new(),
            writes: BTreeMap::new(),
            ahead: None,
            is_stale: false,
            age: None,
            runs: 0,
        }
    }

    /// Forgets what was read and written; the next run of the closure begins.
    pub fn restart(&mut self) {
        self.reads.clear();
        self.writes.clear();
        self.ahead = None;
        self.is_stale = false;
        self.runs += 1;
        if self.runs >= STARVING {
            self.claim();
        }
    }

    /// Has others let it go first.
    fn claim(&mut self) {
        let holder = self.reads.holder.get_or_insert_with(Holder::new);
        holder.note_progress();
        for tree in &self.trees {
            tree.as_ref().priority.claim(holder);
        }
    }

    /// The value of a key, own writes included.
    ///
    /// # Errors
    /// What reading failed with; `CollectionNotFound`, `Unsupported`.
    pub fn get(
        &mut self,
        forest: &Forest,
        tree: usize,
        key: &[u8],
        operators: Operators<'_>,
    ) -> Read<Option<IVec>> {
        let at = (tree, IVec::from(key));
        if self.is_stale {
            return Ok(None);
        }
        let write = self.writes.get(&at).cloned();
        if let Some(value) = write.as_ref().and_then(Write::value) {
            return Ok(Some(value));
        }
        let old = match write.as_ref().and_then(|write| write.base.clone()) {
            Some(base) => base,
            None => match self.read(forest, (tree, &at.1), true)? {
                None => return Ok(None),
                Some(Seen::Value(value)) => Some(value),
                Some(_) => None,
            },
        };
        match write {
            None => Ok(Some(old)),
            Some(write) => write.apply(tree, key, old.as_ref(), operators).map(Some),
        }
    }

    /// Whether a key has a value, own writes included.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub fn contains(
        &mut self,
        forest: &Forest,
        tree: usize,
        key: &[u8],
        operators: Operators<'_>,
    ) -> Read<bool> {
        let at = (tree, IVec::from(key));
        if self.writes.contains_key(&at) {
            return Ok(self.get(forest, tree, key, operators)?.map(|value| value.is_some()));
        }
        if self.is_stale {
            return Ok(None);
        }
        Ok(self.read(forest, (tree, &at.1), false)?.map(|seen| seen != Seen::Absent))
    }

    fn read(&mut self, forest: &Forest, at: (usize, &IVec), with_value: bool) -> Read<Seen> {
        self.trees[at.0].as_ref().check()?;
        self.reads.holder.as_deref().inspect(|holder| holder.note_progress());
        if let Some(seen) = self.reads.known(at.0, at.1, with_value) {
            return Ok(Some(seen.clone()));
        }
        let seen = self.reads.point(forest, &self.trees, at, with_value)?;
        self.is_stale |= seen.is_none();
        Ok(seen)
    }

    /// Something that tells before from after, an identifier, was handed out in this run: a key that was changed and changed
    /// back is not as it was.
    pub fn be_strict(&mut self) {
        self.reads.is_strict = true;
    }

    /// Gives a key a value, or removes it, and returns the value before.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub fn insert(
        &mut self,
        forest: &Forest,
        tree: usize,
        key: IVec,
        value: Option<IVec>,
        operators: Operators<'_>,
    ) -> Read<Option<IVec>> {
        let old = self.get(forest, tree, &key, operators)?;
        if old.is_some() {
            let known = self.reads.known(tree, &key, true);
            let same = match (known, &value) {
                (Some(Seen::Value(seen)), Some(value)) => seen == value,
                (Some(Seen::Absent), None) => true,
                _ => false,
            };
            if same {
                // What is there already needs no write: the read stands for it.
                self.writes.remove(&(tree, key));
            } else {
                self.stage(tree, key, value);
            }
        }
        Ok(old)
    }

    /// Gives a key a value, or removes it, whatever it has.
    pub fn stage(&mut self, tree: usize, key: IVec, value: Option<IVec>) {
        self.writes.insert((tree, key), Write::put(value));
    }

    /// Merges an operand into what a key has when the transaction is committed, or into what this transaction has given
    /// it.
    pub fn stage_merge(&mut self, tree: usize, key: IVec, operand: IVec) {
        let nothing = Write { base: None, operands: Vec::new() };
        self.writes.entry((tree, key)).or_insert(nothing).operands.push(operand);
    }

    /// The first pair within bounds, own writes included, or the last one.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub fn next_pair(
        &mut self,
        forest: &Forest,
        tree: usize,
        (low, high): (&Bound<Vec<u8>>, &Bound<Vec<u8>>),
        backwards: bool,
        operators: Operators<'_>,
    ) -> Read<Option<(IVec, IVec)>> {
        let (mut low, mut high) = (low.clone(), high.clone());
        self.trees[tree].as_ref().check()?;
        self.reads.holder.as_deref().inspect(|holder| holder.note_progress());
        loop {
            if self.is_stale {
                return Ok(None);
            }
            let Some(stored) = self.stored(forest, tree, (&low, &high), backwards)? else {
                self.is_stale = true;
                return Ok(None);
            };
            let own = self.own(tree, (&low, &high), backwards);
            let own_first = match (&own, &stored) {
                (Some(own), Some((key, _))) => (if backwards { key.cmp(own) } else { own.cmp(key) }).is_le(),
                (own, _) => own.is_some(),
            };
            let Some(key) = own.filter(|_| own_first) else { return Ok(Some(stored)) };
            // The stored pair covers the way there, so what it does not have is absent.
            let old = stored.filter(|(stored, _)| *stored == key).map(|(_, value)| value);
            let write = &self.writes[&(tree, key.clone())];
            if let Some(value) = write.apply(tree, &key, old.as_ref(), operators)? {
                return Ok(Some(Some((key, value))));
            }
            *(if backwards { &mut high } else { &mut low }) = Bound::Excluded(key.to_vec());
        }
    }

    /// The key of the first own write within bounds.
    fn own(
        &self,
        tree: usize,
        (low, high): (&Bound<Vec<u8>>, &Bound<Vec<u8>>),
        backwards: bool,
    ) -> Option<IVec> {
        if is_void(low, high) {
            return None;
        }
        let low = match low {
            Bound::Included(key) => Bound::Included((tree, IVec::from(&key[..]))),
            Bound::Excluded(key) => Bound::Excluded((tree, IVec::from(&key[..]))),
            Bound::Unbounded => Bound::Included((tree, IVec::default())),
        };
        let high = match high {
            Bound::Included(key) => Bound::Included((tree, IVec::from(&key[..]))),
            Bound::Excluded(key) => Bound::Excluded((tree, IVec::from(&key[..]))),
            Bound::Unbounded => Bound::Excluded((tree + 1, IVec::default())),
        };
        let mut range = self.writes.range((low, high));
        let found = if backwards { range.next_back() } else { range.next() };
        found.map(|((_, key), _)| key.clone())
    }

    /// The first stored pair within bounds.
    fn stored(
        &mut self,
        forest: &Forest,
        tree: usize,
        (low, high): (&Bound<Vec<u8>>, &Bound<Vec<u8>>),
        backwards: bool,
    ) -> Read<Option<(IVec, IVec)>> {
        let (near, far) = if backwards { (high, low) } else { (low, high) };
        let usable = |ahead: &mut Ahead| {
            ahead.tree == tree && ahead.backwards == backwards && ahead.end == *far && ahead.reach(near)
        };
        let mut limit = *AHEAD.start();
        let mut from = near.clone();
        if let Some(ahead) = self.ahead.as_mut()
            && usable(ahead)
        {
            if let Some(pair) = ahead.pairs.front() {
                return Ok(Some(Some(pair.clone())));
            }
            match &ahead.next {
                None => return Ok(Some(None)),
                Some(next) if is_not_before(next, near, backwards) => from = next.clone(),
                Some(_) => {}
            }
            limit = (2 * ahead.limit).min(*AHEAD.end());
        }
        let bounds = if backwards { (low, &from, true) } else { (&from, high, false) };
        let Some(step) = self.reads.range(forest, &self.trees, tree, bounds, limit)? else { return Ok(None) };
        // A step without pairs is the last one.
        let Step { pairs, next } = step;
        let pair = pairs.front().cloned();
        self.ahead =
            Some(Ahead { tree, backwards, from: near.clone(), next, end: far.clone(), pairs, limit });
        Ok(Some(pair))
    }

    /// Whether everything that was read held together at one instant.
    ///
    /// # Errors
    /// What reading failed with; `CollectionNotFound`.
    pub fn is_consistent(&mut self, forest: &Forest) -> Result<bool> {
        Ok(!self.is_stale && (self.reads.is_instant() || self.reads.confirm(forest, &self.trees)?))
    }

    /// Makes all writes visible in one instant; `false`: what was read does not hold any more, and nothing is
    /// changed: run the closure again after [`Self::restart`].
    ///
    /// # Errors
    /// What reading or writing failed with, then nothing is changed; `CollectionNotFound`, `Unsupported`.
    pub fn commit(&mut self, forest: &Forest, operators: Operators<'_>) -> Result<bool> {
        let committed = self.try_commit(forest, operators)?;
        if !committed {
            add(&forest.counters.conflicts);
        }
        Ok(committed)
    }

    fn try_commit(&mut self, forest: &Forest, operators: Operators<'_>) -> Result<bool> {
        if self.is_stale {
            return Ok(false);
        }
        if self.writes.is_empty() {
            return self.is_consistent(forest);
        }
        let standing = self.standing(forest);
        let writes = std::mem::take(&mut self.writes);
        let mut commit = Commit::new(forest, &self.trees, operators, writes.into_iter());
        commit.run(&mut self.reads, standing)
    }

    /// Its age, and whether others are asked for patience.
    fn standing(&mut self, forest: &Forest) -> (u64, bool) {
        let age = *self.age.get_or_insert_with(|| forest.log().end().0);
        (age, self.runs >= IMPATIENT)
    }
}

impl Forest {
    /// Makes all of these writes to a tree visible in one instant, whatever the keys have: these in order, and the value
    /// that each is given, without one it is removed.
    ///
    /// # Errors
    /// As for [`Transaction::commit`].
    pub fn write_all(&self, tree: &BwTree, writes: impl Iterator<Item = (IVec, Option<IVec>)>) -> Result<()> {
        let (trees, backoff) = ([tree], Backoff::new());
        let mut transaction = Transaction::new(trees.to_vec());
        let writes = writes.map(|(key, value)| ((0, key), Write::put(value)));
        let mut commit = Commit::new(self, &trees, &|_, _, _, _| None, writes);
        loop {
            let standing = transaction.standing(self);
            if commit.run(&mut transaction.reads, standing)? {
                return Ok(());
            }
            add(&self.counters.conflicts);
            transaction.restart();
            backoff.snooze();
        }
    }
}

impl<H: AsRef<BwTree>> Drop for Transaction<H> {
    fn drop(&mut self) {
        let Some(holder) = self.reads.holder.take() else { return };
        for tree in &self.trees {
            tree.as_ref().priority.release(&holder);
        }
        holder.end();
    }
}

impl Ahead {
    /// Whether a read from `near` on can go on here; skips what comes before that.
    fn reach(&mut self, near: &Bound<Vec<u8>>) -> bool {
        let open = Bound::Unbounded;
        let reaches = |pair: &(IVec, IVec)| {
            if self.backwards { is_within(&pair.0, &open, near) } else { is_within(&pair.0, near, &open) }
        };
        if !is_not_before(near, &self.from, self.backwards) {
            return false;
        }
        while self.pairs.front().is_some_and(|pair| !reaches(pair)) {
            self.pairs.pop_front();
        }
        self.from = near.clone();
        true
    }
}

/// Whether a bound lies at another one or further on.
fn is_not_before(bound: &Bound<Vec<u8>>, other: &Bound<Vec<u8>>, backwards: bool) -> bool {
    let (key, excluded) = match bound {
        Bound::Included(key) => (key, false),
        Bound::Excluded(key) => (key, true),
        Bound::Unbounded => return *other == Bound::Unbounded,
    };
    match other {
        Bound::Unbounded => true,
        Bound::Included(other) | Bound::Excluded(other) if key != other => (key > other) != backwards,
        Bound::Included(_) => true,
        Bound::Excluded(_) => excluded,
    }
}
