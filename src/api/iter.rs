//! `Iter`: ordered pairs of a tree, from both ends.
//!
//! # How it works
//!
//! Each end copies pairs out of one leaf at a time, few at first, more when the iteration goes on, and makes keys
//! and values of the copy when they are asked for. Nothing is locked or pinned between two steps.

use super::tree::Tree;
use crate::base::metrics::{Op, measure};
use crate::error::{Error, Result};
use crate::ivec::IVec;
use crate::tree::{Copied, Ended, Wanted};
use std::cmp::Ordering;
use std::ops::Bound;

/// Pairs copied by the first step of an end, at most.
const FIRST_STEP: usize = 11;
/// No step is for fewer pairs.
const LEAST_STEP: usize = 4;
/// Pairs copied by later steps, at most.
const LONGEST_STEP: usize = 128;

/// One end of an iteration.
#[derive(Debug)]
struct End {
    /// Copied, yielded or not.
    copied: Copied,
    /// Where the next step starts.
    next: Bound<IVec>,
    /// Number of pairs that were copied so far.
    total: usize,
    /// What the last step ended with.
    failed: Option<Error>,
    /// The last key that was yielded before `copied`.
    yielded: Option<IVec>,
    /// The bound was met: there is nothing more, whatever is inserted.
    met: bool,
}

impl End {
    fn new(next: Bound<IVec>) -> End {
        End { copied: Copied::default(), next, total: 0, failed: None, yielded: None, met: false }
    }

    /// The last key that was yielded, in two parts.
    fn last(&self) -> Option<[&[u8]; 2]> {
        self.copied.taken_key().or_else(|| self.yielded.as_ref().map(|key| [&key[..], &[]]))
    }

    /// Copies what comes next.
    fn step(&mut self, tree: &Tree, bound: &Bound<IVec>, backwards: bool) -> Result<()> {
        let _measured = measure(Op::Scan);
        if let Some([front, back]) = self.copied.taken_key() {
            self.yielded = Some(IVec::joined(front, back));
        }
        self.copied.clear();
        // What the first step was to copy and the leaf did not have, or as much as there was so far.
        let missing = FIRST_STEP.saturating_sub(self.total);
        let most = missing.max(self.total).clamp(LEAST_STEP, LONGEST_STEP);
        let wanted = Wanted { bound, backwards, most };
        let forest = tree.engine().forest();
        let ended = forest.copy(tree.bw(), &mut self.next, wanted, &mut self.copied);
        self.total += self.copied.len();
        self.met = ended? == Ended::Done;
        forest.keep_up_reading();
        Ok(())
    }
}

/// Whether the next of an end is not before, in its direction, what the other has yielded last.
fn have_met(next: Option<[&[u8]; 2]>, last: [&[u8]; 2], backwards: bool) -> bool {
    next.is_some_and(|next| {
        let order = next.iter().copied().flatten().cmp(last.iter().copied().flatten());
        order == Ordering::Equal || (order == Ordering::Greater) != backwards
    })
}

/// An iterator over the pairs of a [`Tree`] in key order, from both ends.
///
/// It shows the tree as it changes: what is inserted or removed while it goes on may or may not be seen, but
/// keys ascend (descend from the back), none is yielded twice, and one that is there all the time is not
/// missed. It blocks nobody and keeps the database open. After an error it ends.
pub struct Iter {
    tree: Tree,
    low: Bound<IVec>,
    high: Bound<IVec>,
    front: End,
    back: End,
    /// An error was yielded, or the ends have met.
    done: bool,
}

impl Iter {
    pub(super) fn new(tree: Tree, low: Bound<IVec>, high: Bound<IVec>) -> Iter {
        let first = match &low {
            // Upwards there is no key before this one.
            Bound::Unbounded => Bound::Included(IVec::default()),
            low => low.clone(),
        };
        let last = high.clone();
        Iter { tree, low, high, front: End::new(first), back: End::new(last), done: false }
    }

    /// Takes something of the next pair of an end.
    #[inline(always)]
    fn pull<T>(&mut self, backwards: bool, take: impl FnOnce(&mut Copied) -> Option<T>) -> Option<Result<T>> {
        let (end, other) = if backwards { (&self.back, &self.front) } else { (&self.front, &self.back) };
        // Else there may be nothing, or the other end may be there already.
        if !end.copied.is_at_record() || other.total > 0 {
            match self.prepare(backwards) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        take(if backwards { &mut self.back.copied } else { &mut self.front.copied }).map(Ok)
    }

    #[cold]
    fn next_slow(&mut self) -> Option<Result<(IVec, IVec)>> {
        self.pull(false, |copied| copied.pair())
    }

    /// Copies more if there is nothing left to be taken; whether there is something then, which the other end has
    /// not yielded.
    fn prepare(&mut self, backwards: bool) -> Result<bool> {
        if self.done {
            return Ok(false);
        }
        let (end, other, bound) = if backwards {
            (&mut self.back, &self.front, &self.low)
        } else {
            (&mut self.front, &self.back, &self.high)
        };
        if end.copied.is_empty() {
            if end.failed.is_none() && !end.met {
                end.failed = end.step(&self.tree, bound, backwards).err();
            }
            // What was read before an error comes before it.
            if end.copied.is_empty() {
                let Some(error) = end.failed.take() else { return Ok(false) };
                self.done = true;
                return Err(error);
            }
        }
        let met = other.last().is_some_and(|last| have_met(end.copied.next_key(), last, backwards));
        if met {
            self.done = true;
            self.front.copied.clear();
            self.back.copied.clear();
        }
        Ok(!met)
    }

    /// Keys only, in the same order.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("a", "1")?;
    /// let keys: sled::Result<Vec<sled::IVec>> = db.iter().keys().collect();
    /// assert_eq!(keys?, ["a"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn keys(self) -> impl DoubleEndedIterator<Item = Result<IVec>> + Send + Sync {
        Part(self, Copied::key)
    }

    /// Values only, in the order of their keys.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// db.insert("a", "1")?;
    /// let values: sled::Result<Vec<sled::IVec>> = db.iter().values().collect();
    /// assert_eq!(values?, ["1"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn values(self) -> impl DoubleEndedIterator<Item = Result<IVec>> + Send + Sync {
        Part(self, Copied::value)
    }
}

impl Iterator for Iter {
    type Item = Result<(IVec, IVec)>;

    #[inline(never)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.back.total == 0
            && let Some(pair) = self.front.copied.common_pair()
        {
            return Some(Ok(pair));
        }
        self.next_slow()
    }

    fn nth(&mut self, n: usize) -> Option<Self::Item> {
        for _ in 0..n {
            let _skipped = self.pull(false, |copied| copied.skip())?;
        }
        self.next()
    }

    fn count(mut self) -> usize {
        std::iter::from_fn(|| self.pull(false, |copied| copied.skip())).count()
    }

    fn last(mut self) -> Option<Self::Item> {
        self.next_back()
    }
}

impl DoubleEndedIterator for Iter {
    #[inline]
    fn next_back(&mut self) -> Option<Self::Item> {
        self.pull(true, |copied| copied.pair())
    }
}

/// What [`Iter::keys`] and [`Iter::values`] return: a part of each pair.
struct Part<F>(Iter, F);

impl<F: Fn(&mut Copied) -> Option<IVec>> Iterator for Part<F> {
    type Item = Result<IVec>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.0.pull(false, &self.1)
    }

    fn count(self) -> usize {
        self.0.count()
    }
}

impl<F: Fn(&mut Copied) -> Option<IVec>> DoubleEndedIterator for Part<F> {
    #[inline]
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.pull(true, &self.1)
    }
}
