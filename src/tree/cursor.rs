//! Ordered reads: copies entries out of one leaf at a time, in either direction, and counts them.
//!
//! # Concurrency
//!
//! Nothing is held between two calls: a step starts anew from a key, so splits, merges and evictions in between do
//! not matter, and a key that stays is seen exactly once.

use super::consolidate::Fold;
use super::delta::{Merged, SortedDeltas};
use super::descent::At;
use super::leaf::{Leaf, Value, fingerprint};
use super::{BwTree, Forest};
use crate::error::Result;
use crate::ivec::IVec;
use std::ops::Bound;

/// Where a step starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With this key, if it is there.
    At(Vec<u8>),
    /// With the next key after (or, downwards, before) this one.
    Beyond(Vec<u8>),
    /// Downwards only: with the last key there is.
    End,
}

/// Where the next step starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// There.
    From(Start),
    /// A key past the bound was met, or there can be none within it.
    Done,
    /// The end of the tree was reached; keys may be inserted there.
    End,
}

/// Pairs that were copied out.
pub type Pairs = std::collections::VecDeque<(IVec, IVec)>;

/// The smallest key above `key`.
pub(super) fn successor(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// Whether a key lies past an upper bound.
pub(super) fn above(key: &[u8], end: &Bound<Vec<u8>>) -> bool {
    match end {
        Bound::Unbounded => false,
        Bound::Included(end) => key > &end[..],
        Bound::Excluded(end) => key >= &end[..],
    }
}

/// Whether a key lies before a lower bound.
pub(super) fn below(key: &[u8], start: &Bound<Vec<u8>>) -> bool {
    match start {
        Bound::Unbounded => false,
        Bound::Included(start) => key < &start[..],
        Bound::Excluded(start) => key <= &start[..],
    }
}

impl Forest {
    /// The leaf for a step, whole.
    pub(super) fn whole_leaf<'g>(
        &self,
        tree: &BwTree,
        guard: &'g crossbeam_epoch::Guard,
        find: impl Fn(&'g crossbeam_epoch::Guard) -> Result<At<'g>>,
    ) -> Result<At<'g>> {
        loop {
            let at = find(guard)?;
            if !at.frame.overlay() {
                at.frame.touch();
                return Ok(at);
            }
            self.consolidate(tree, at, Fold::Whole, guard)?;
        }
    }

    /// Copies up to `limit` pairs upwards from `from` to `end` into `out`; stops at the end of a leaf.
    ///
    /// # Errors
    /// What reading failed with; `CollectionNotFound`.
    pub fn step(
        &self,
        tree: &BwTree,
        from: &Start,
        end: &Bound<Vec<u8>>,
        limit: usize,
        out: &mut Pairs,
    ) -> Result<Next> {
        let mut next = match from {
            Start::At(key) => key.clone(),
            Start::Beyond(key) => successor(key),
            Start::End => return Ok(Next::Done),
        };
        loop {
            if above(&next, end) {
                return Ok(Next::Done);
            }
            let guard = crossbeam_epoch::pin();
            tree.check()?;
            let at = self.whole_leaf(tree, &guard, |guard| self.leaf(tree, &next, guard))?;
            let mut merged = Merged::forward(at.frame, &next);
            let mut key = Vec::new();
            while let Some(entry) = merged.next() {
                if !entry.exists() {
                    continue;
                }
                key.clear();
                key.extend_from_slice(entry.prefix);
                key.extend_from_slice(entry.rest);
                if above(&key, end) {
                    return Ok(Next::Done);
                }
                out.push_back((IVec::from(&key[..]), self.copy_out(tree, &key, entry.value)?));
                // A big value ends the step, so that no more than one is held.
                if out.len() >= limit || matches!(entry.value, Value::Big(_)) {
                    return Ok(Next::From(Start::Beyond(key)));
                }
            }
            let Some(high) = at.leaf().high() else { return Ok(Next::End) };
            if !out.is_empty() {
                return Ok(Next::From(Start::At(high.to_vec())));
            }
            next = high.to_vec();
        }
    }

    /// Copies up to `limit` pairs downwards from `from` to `start` into `out`; stops at the end of a leaf.
    ///
    /// # Errors
    /// As for [`Self::step`].
    pub fn step_back(
        &self,
        tree: &BwTree,
        from: &Start,
        start: &Bound<Vec<u8>>,
        limit: usize,
        out: &mut Pairs,
    ) -> Result<Next> {
        let mut before = match from {
            Start::At(key) => Some(successor(key)),
            Start::Beyond(key) => Some(key.clone()),
            Start::End => None,
        };
        loop {
            if before.as_ref().is_some_and(Vec::is_empty) {
                return Ok(Next::Done);
            }
            let guard = crossbeam_epoch::pin();
            tree.check()?;
            let at =
                self.whole_leaf(tree, &guard, |guard| self.leaf_before(tree, before.as_deref(), guard))?;
            if !at.starts_before(before.as_deref()) {
                return Err(self.misplaced(tree, at));
            }
            let mut merged = Merged::backward(at.frame, before.as_deref());
            let mut key = Vec::new();
            while let Some(entry) = merged.next_back() {
                if !entry.exists() {
                    continue;
                }
                key.clear();
                key.extend_from_slice(entry.prefix);
                key.extend_from_slice(entry.rest);
                if below(&key, start) {
                    return Ok(Next::Done);
                }
                out.push_back((IVec::from(&key[..]), self.copy_out(tree, &key, entry.value)?));
                if out.len() >= limit || matches!(entry.value, Value::Big(_)) {
                    return Ok(Next::From(Start::Beyond(key)));
                }
            }
            let low = at.leaf().low();
            if low.is_empty() {
                return Ok(Next::End);
            }
            if below(low, start) {
                return Ok(Next::Done);
            }
            if !out.is_empty() {
                return Ok(Next::From(Start::Beyond(low.to_vec())));
            }
            before = Some(low.to_vec());
        }
    }

    /// Number of keys, leaf by leaf, without copying anything.
    ///
    /// # Errors
    /// As for [`Self::step`].
    pub fn count(&self, tree: &BwTree) -> Result<usize> {
        let mut total = 0;
        let mut next = Vec::new();
        loop {
            let guard = crossbeam_epoch::pin();
            tree.check()?;
            let at = self.whole_leaf(tree, &guard, |guard| self.leaf(tree, &next, guard))?;
            // Merged meanwhile, it may start further left; what is left of `next` was counted.
            total += Self::count_leaf(at, &next);
            let Some(high) = at.leaf().high() else { return Ok(total) };
            next = high.to_vec();
            drop(guard);
            self.keep_up_reading();
        }
    }

    fn count_leaf(at: At<'_>, from: &[u8]) -> usize {
        let base = Leaf::new(at.frame.base());
        let (used, _) = at.frame.used();
        let mut count = base.len() - base.lower_bound(from);
        let deltas = SortedDeltas::of(at.frame, used, true);
        for delta in (0..deltas.len()).filter_map(|i| deltas.get(i)).filter(|delta| delta.key >= from) {
            let before = base.find(delta.key, fingerprint(delta.key)).is_some();
            let now = super::delta::value_of(delta) != Value::Gone;
            count = count + usize::from(now) - usize::from(before);
        }
        count
    }
}
