//! `Iter`: ordered pairs of a tree, from both ends.
//!
//! # How it works
//!
//! Each end copies pairs out of one leaf at a time, few at first, more when the iteration goes on. Nothing is
//! locked or pinned between two steps.

use super::tree::Tree;
use crate::base::metrics::{Op, measure};
use crate::error::{Error, Result};
use crate::ivec::IVec;
use crate::tree::{Next, Pairs, Start};
use std::ops::Bound;

/// Pairs copied by the first step of an end.
const FIRST_STEP: usize = 11;
/// Pairs copied by later steps, at most.
const LONGEST_STEP: usize = 128;

/// One end of an iteration.
#[derive(Debug)]
struct End {
    /// Copied and not yielded.
    pairs: Pairs,
    next: Start,
    limit: usize,
    /// What the last step ended with.
    failed: Option<Error>,
    /// The last key that was yielded.
    yielded: Option<IVec>,
    /// The bound was met: there is nothing more, whatever is inserted.
    met: bool,
}

impl End {
    fn new(next: Start) -> End {
        End { pairs: Pairs::new(), next, limit: FIRST_STEP, failed: None, yielded: None, met: false }
    }

    /// Takes note of how a step ended.
    fn advance(&mut self, next: Next) {
        self.limit = (self.limit * 2).min(LONGEST_STEP);
        self.met = next == Next::Done;
        if let Next::From(start) = next {
            self.next = start;
        } else if let Some((key, _)) = self.pairs.back() {
            self.next = Start::Beyond(key.to_vec());
        }
    }
}

/// An iterator over the pairs of a [`Tree`] in key order, from both ends.
///
/// It shows the tree as it changes: what is inserted or removed while it goes on may or may not be seen, but
/// keys ascend (descend from the back), none is yielded twice, and one that is there all the time is not
/// missed. It blocks nobody and keeps the database open. After an error it ends.
pub struct Iter {
    tree: Tree,
    low: Bound<Vec<u8>>,
    high: Bound<Vec<u8>>,
    front: End,
    back: End,
    /// An error was yielded, or the ends have met.
    done: bool,
}

impl Iter {
    pub(super) fn new(tree: Tree, low: Bound<Vec<u8>>, high: Bound<Vec<u8>>) -> Iter {
        let first = match &low {
            Bound::Unbounded => Start::At(Vec::new()),
            Bound::Included(key) => Start::At(key.clone()),
            Bound::Excluded(key) => Start::Beyond(key.clone()),
        };
        let last = match &high {
            Bound::Unbounded => Start::End,
            Bound::Included(key) => Start::At(key.clone()),
            Bound::Excluded(key) => Start::Beyond(key.clone()),
        };
        Iter { tree, low, high, front: End::new(first), back: End::new(last), done: false }
    }

    fn step(&mut self) -> Result<()> {
        let _measured = measure(Op::Scan);
        self.front.pairs.reserve(self.front.limit);
        let engine = self.tree.engine();
        let next = engine.forest().step(
            self.tree.bw(),
            &self.front.next,
            &self.high,
            self.front.limit,
            &mut self.front.pairs,
        )?;
        engine.forest().keep_up_reading();
        self.front.advance(next);
        Ok(())
    }

    fn step_back(&mut self) -> Result<()> {
        let _measured = measure(Op::Scan);
        self.back.pairs.reserve(self.back.limit);
        let engine = self.tree.engine();
        let next = engine.forest().step_back(
            self.tree.bw(),
            &self.back.next,
            &self.low,
            self.back.limit,
            &mut self.back.pairs,
        )?;
        engine.forest().keep_up_reading();
        self.back.advance(next);
        Ok(())
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
        self.map(|pair| pair.map(|(key, _)| key))
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
        self.map(|pair| pair.map(|(_, value)| value))
    }
}

impl Iterator for Iter {
    type Item = Result<(IVec, IVec)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        if self.front.pairs.is_empty() && self.front.failed.is_none() && !self.front.met {
            self.front.failed = self.step().err();
        }
        // What was read before an error comes before it.
        if self.front.pairs.is_empty()
            && let Some(error) = self.front.failed.take()
        {
            self.done = true;
            return Some(Err(error));
        }
        let (key, value) = self.front.pairs.pop_front()?;
        if self.back.yielded.as_ref().is_some_and(|last| key >= *last) {
            // The ends have met.
            self.done = true;
            return None;
        }
        self.front.yielded = Some(key.clone());
        Some(Ok((key, value)))
    }

    fn last(mut self) -> Option<Self::Item> {
        self.next_back()
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        if self.back.pairs.is_empty() && self.back.failed.is_none() && !self.back.met {
            self.back.failed = self.step_back().err();
        }
        // What was read before an error comes before it.
        if self.back.pairs.is_empty()
            && let Some(error) = self.back.failed.take()
        {
            self.done = true;
            return Some(Err(error));
        }
        let (key, value) = self.back.pairs.pop_front()?;
        if self.front.yielded.as_ref().is_some_and(|last| key <= *last) {
            self.done = true;
            return None;
        }
        self.back.yielded = Some(key.clone());
        Some(Ok((key, value)))
    }
}
