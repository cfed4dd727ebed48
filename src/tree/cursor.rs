//! Ordered reads: copies entries out of one leaf at a time, in either direction, and counts them.
//!
//! # How it works
//!
//! A step finds where its bounds are in a leaf by searching, so that it compares no key on the way, and copies what is
//! between two deltas at once (`runs.rs`, `copied.rs`). It asks the memory for what it will look at before it does, and
//! folds a leaf of which readers went through many deltas.
//!
//! # Concurrency
//!
//! Nothing is held between two calls: a step starts anew from a key, so splits, merges and evictions in between do
//! not matter, and a key that stays is seen exactly once.

use super::consolidate::Fold;
use super::copied::{Copied, Parts};
use super::delta::{SortedDeltas, value_of};
use super::descent::At;
use super::inner::Inner;
use super::leaf::{Leaf, Value, fingerprint};
use super::runs::Runs;
use super::{BwTree, Forest};
use crate::error::Result;
use crate::ivec::IVec;
use crate::pagecache::PageState;
use std::ops::{Bound, Range};

/// Bytes of the next leaf of an iteration that are asked for: most of what a leaf has. Asking for 2 KiB or 12 KiB gains less.
const EXPECTED: usize = 6144;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// There may be more.
    More,
    /// A key past the bound was met, or there can be none within it.
    Done,
    /// The end of the tree was reached; keys may be inserted there.
    End,
}

/// What a step is to copy.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// How far it goes, at most.
    pub bound: &'a Bound<IVec>,
    /// Downwards.
    pub backwards: bool,
    /// Number of pairs, at least 1.
    pub most: usize,
}

/// The smallest key above `key`.
pub(super) fn successor(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// Whether a key lies past an upper bound.
pub(super) fn above(key: &[u8], end: &Bound<impl AsRef<[u8]>>) -> bool {
    match end {
        Bound::Unbounded => false,
        Bound::Included(end) => key > end.as_ref(),
        Bound::Excluded(end) => key >= end.as_ref(),
    }
}

/// Whether a key lies before a lower bound.
pub(super) fn below(key: &[u8], start: &Bound<impl AsRef<[u8]>>) -> bool {
    match start {
        Bound::Unbounded => false,
        Bound::Included(start) => key < start.as_ref(),
        Bound::Excluded(start) => key <= start.as_ref(),
    }
}

fn slice(bound: &Bound<IVec>) -> Bound<&[u8]> {
    bound.as_ref().map(AsRef::as_ref)
}

/// What is beyond a key.
fn behind([front, back]: Parts<'_>) -> Bound<IVec> {
    Bound::Excluded(IVec::joined(front, back))
}

/// Whether there may be keys above `key` that are not past an upper bound.
fn reaches_above(key: &[u8], end: &Bound<IVec>) -> bool {
    match end {
        Bound::Unbounded => true,
        Bound::Included(end) => key < &end[..],
        // The next key is the longer one by a zero.
        Bound::Excluded(end) => key < &end[..] && end.strip_prefix(key) != Some(&[0]),
    }
}

/// Whether there may be keys below `key` that are not before a lower bound.
fn reaches_below(key: &[u8], start: &Bound<IVec>) -> bool {
    match start {
        Bound::Unbounded => true,
        Bound::Included(start) => key > &start[..],
        Bound::Excluded(start) => key > &start[..] && key.strip_prefix(&start[..]) != Some(&[0]),
    }
}

/// The records of a run before the first, in a direction, with a big value, and that one.
fn before_big(leaf: Leaf<'_>, run: Range<usize>, backwards: bool) -> (Range<usize>, Option<usize>) {
    let is_big = |i: &usize| leaf.is_reference(*i);
    let big = if backwards { run.clone().rev().find(is_big) } else { run.clone().find(is_big) };
    let before = match big {
        None => run,
        Some(i) if backwards => i + 1..run.end,
        Some(i) => run.start..i,
    };
    (before, big)
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

    /// Copies pairs from `start` on into `out`, which has none; stops at the end of a leaf. `start` becomes where the next
    /// step starts; unbounded is the end of the tree.
    ///
    /// # Errors
    /// What reading failed with; `CollectionNotFound`. What was copied before that is there.
    pub fn copy(
        &self,
        tree: &BwTree,
        start: &mut Bound<IVec>,
        wanted: Wanted<'_>,
        out: &mut Copied,
    ) -> Result<Ended> {
        let Wanted { bound, backwards, most } = wanted;
        loop {
            let nothing = match (slice(start), backwards) {
                (Bound::Unbounded, false) => true,
                (Bound::Unbounded, true) => false,
                (Bound::Excluded(key), true) => key.is_empty() || !reaches_below(key, bound),
                (Bound::Included(key), true) => below(key, bound),
                (Bound::Excluded(key), false) => !reaches_above(key, bound),
                (Bound::Included(key), false) => above(key, bound),
            };
            if nothing {
                return Ok(Ended::Done);
            }
            let guard = crossbeam_epoch::pin();
            tree.check()?;
            let at = self.whole_leaf(tree, &guard, |guard| match (slice(start), backwards) {
                // Upwards, the leaf of a key may have nothing beyond it; then the next one is looked at.
                (Bound::Included(key), _) | (Bound::Excluded(key), false) => self.leaf(tree, key, guard),
                (Bound::Excluded(key), true) => self.leaf_before(tree, Some(key), guard),
                (Bound::Unbounded, _) => self.leaf_before(tree, None, guard),
            })?;
            if let (Bound::Excluded(key), true) = (slice(start), backwards)
                && !at.starts_before(Some(key))
            {
                return Err(self.misplaced(tree, at));
            }
            let is_cut = self.copy_leaf(tree, at, slice(start), wanted, out)?;
            if at.frame.note_reader() {
                // For those who come next; what it fails with is not what was asked for.
                let _ = self.consolidate(tree, at, Fold::Whole, &guard);
            }
            if out.len() >= most || out.ends_early() {
                *start = behind(out.last_key().expect("something was copied"));
                return Ok(Ended::More);
            }
            if is_cut {
                return Ok(Ended::Done);
            }
            let leaf = at.leaf();
            let fence = if backwards { Some(leaf.low()).filter(|low| !low.is_empty()) } else { leaf.high() };
            let Some(fence) = fence else {
                if let Some(last) = out.last_key() {
                    *start = behind(last);
                }
                return Ok(Ended::End);
            };
            let is_last = if backwards { !reaches_below(fence, bound) } else { above(fence, bound) };
            if is_last {
                return Ok(Ended::Done);
            }
            let next = IVec::from(fence);
            *start = if backwards { Bound::Excluded(next) } else { Bound::Included(next) };
            if !out.is_empty() {
                if let Bound::Included(key) = slice(start) {
                    self.prefetch_leaf(tree, key, &guard);
                }
                return Ok(Ended::More);
            }
        }
    }

    /// Asks the memory for the leaf of a key, which comes while the pairs of the one before are taken.
    fn prefetch_leaf(&self, tree: &BwTree, key: &[u8], guard: &crossbeam_epoch::Guard) {
        if let Ok(Some((at, _))) = self.inner_at(tree, 1, key, guard) {
            let node = Inner::new(at.frame.base());
            if let PageState::Resident(leaf) = self.cache.load(node.child(node.find(key)), guard).1 {
                leaf.prefetch_first(EXPECTED);
            }
        }
    }

    /// Copies pairs of one leaf; whether it has something past the bound.
    fn copy_leaf(
        &self,
        tree: &BwTree,
        at: At<'_>,
        from: Bound<&[u8]>,
        Wanted { bound, backwards, most }: Wanted<'_>,
        out: &mut Copied,
    ) -> Result<bool> {
        let leaf = at.leaf();
        leaf.prefetch_fences();
        leaf.prefetch_search();
        let (used, _) = at.frame.used();
        let deltas = SortedDeltas::of(at.frame, used, true);
        let bound = slice(bound);
        let (low, high) = if backwards { (bound, from) } else { (from, bound) };
        // A step often starts where the leaf does, which then is not searched.
        let low =
            if matches!(low, Bound::Included(key) if key <= leaf.low()) { Bound::Unbounded } else { low };
        let from_first = !backwards && matches!(low, Bound::Unbounded);
        if from_first {
            leaf.prefetch_run(0..leaf.len());
        }
        let mut runs = Runs::between(leaf, &deltas, low, high);
        let mut begun = false;
        while out.len() < most
            && let Some(piece) = runs.next(backwards, most - out.len())
        {
            if !begun {
                let first = if piece.run.is_empty() {
                    piece.delta.map_or(0, |delta| delta.key.len())
                } else {
                    leaf.prefix().len() + leaf.suffix(piece.run.start).len()
                };
                if !from_first && !backwards {
                    leaf.prefetch_run(piece.run.clone());
                }
                out.begin(leaf, first, most);
                begun = true;
            }
            let (run, big) = before_big(leaf, piece.run, backwards);
            out.add_run(leaf, run, backwards);
            if let Some(i) = big {
                let (suffix, value) = leaf.record(i);
                let key = [leaf.prefix(), suffix].concat();
                out.add_big(&key, self.copy_out(tree, &key, value)?);
                return Ok(false);
            }
            let Some(delta) = piece.delta else { continue };
            match value_of(delta) {
                Value::Gone => {}
                value @ Value::Inline(_) => out.add(delta.key, value),
                // It ends the step, so that no more than one is held.
                value @ Value::Big(_) => {
                    out.add_big(delta.key, self.copy_out(tree, delta.key, value)?);
                    return Ok(false);
                }
            }
        }
        Ok(runs.is_cut(backwards))
    }

    /// Number of keys, leaf by leaf, without copying anything.
    ///
    /// # Errors
    /// As for [`Self::copy`].
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
            let now = value_of(delta) != Value::Gone;
            count = count + usize::from(now) - usize::from(before);
        }
        count
    }
}
