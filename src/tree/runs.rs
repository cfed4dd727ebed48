//! A leaf after its deltas, as runs of base records and single deltas in between, in either direction.
//!
//! # How it works
//!
//! As [`Merged`](super::delta::Merged), but what is between two deltas is not looked at record by record: where a delta
//! belongs in the base is searched for.

use super::delta::SortedDeltas;
use super::leaf::Leaf;
use crate::pagecache::DeltaRef;
use std::ops::{Bound, Range};

/// Base records that no delta is about, and then a delta.
#[derive(Debug)]
pub struct Piece<'g> {
    /// Indexes of the base records; to be taken from their end when the direction is downwards.
    pub run: Range<usize>,
    /// Behind them in the direction.
    pub delta: Option<DeltaRef<'g>>,
    /// Index of the base record that the delta is about.
    pub replaced: Option<usize>,
}

/// What is left of a leaf.
#[derive(Debug)]
pub struct Runs<'g, 'd> {
    base: Leaf<'g>,
    deltas: &'d SortedDeltas<'g>,
    /// Indexes of base records.
    records: Range<usize>,
    /// Indexes of deltas.
    changes: Range<usize>,
    /// Whether the leaf has something before, and behind these.
    more: (bool, bool),
}

/// The index that was found, or the one behind it if that is what was looked for.
fn index(found: Result<usize, usize>, behind: bool) -> usize {
    match found {
        Ok(i) => i + usize::from(behind),
        Err(i) => i,
    }
}

impl<'g, 'd> Runs<'g, 'd> {
    /// Those within bounds.
    pub fn between(
        base: Leaf<'g>,
        deltas: &'d SortedDeltas<'g>,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
    ) -> Runs<'g, 'd> {
        let (mut records, mut changes) = (0..base.len(), 0..deltas.len());
        if let Bound::Included(key) | Bound::Excluded(key) = low {
            let behind = matches!(low, Bound::Excluded(_));
            records.start = index(base.search(key), behind);
            changes.start = index(deltas.search(key), behind);
        }
        if let Bound::Included(key) | Bound::Excluded(key) = high
            && base.high().is_none_or(|end| end > key)
        {
            let behind = matches!(high, Bound::Included(_));
            records.end = index(base.search(key), behind);
            changes.end = index(deltas.search(key), behind);
        }
        let before = records.start > 0 || changes.start > 0;
        let behind = records.end < base.len() || changes.end < deltas.len();
        Runs { base, deltas, records, changes, more: (before, behind) }
    }

    /// Whether the leaf has something past the bound in a direction.
    pub fn is_cut(&self, backwards: bool) -> bool {
        if backwards { self.more.0 } else { self.more.1 }
    }

    /// The next piece upwards or downwards, with at most `most` records, at least 1.
    pub fn next(&mut self, backwards: bool, most: usize) -> Option<Piece<'g>> {
        if self.records.is_empty() && self.changes.is_empty() {
            return None;
        }
        let delta = if self.changes.is_empty() {
            None
        } else {
            self.deltas.get(if backwards { self.changes.end - 1 } else { self.changes.start })
        };
        let (run, found) = if backwards { self.run_down(delta, most) } else { self.run_up(delta, most) };
        // It may have ended for that reason.
        let delta = delta.filter(|_| run.len() < most);
        let mut replaced = None;
        if delta.is_some() {
            if backwards {
                self.changes.end -= 1;
                self.records.end -= usize::from(found);
                replaced = found.then_some(self.records.end);
            } else {
                self.changes.start += 1;
                replaced = found.then_some(self.records.start);
                self.records.start += usize::from(found);
            }
        }
        Some(Piece { run, delta, replaced })
    }

    /// Takes the records up to a delta; whether there is one of its key behind them.
    fn run_up(&mut self, delta: Option<DeltaRef<'g>>, most: usize) -> (Range<usize>, bool) {
        let start = self.records.start;
        let reach = start..self.records.end.min(start.saturating_add(most)).max(start);
        let found = delta.map_or(Err(reach.end), |delta| self.find(delta, reach));
        self.records.start = index(found, false);
        (start..self.records.start, found.is_ok())
    }

    /// Takes the records down to a delta; whether there is one of its key before them.
    fn run_down(&mut self, delta: Option<DeltaRef<'g>>, most: usize) -> (Range<usize>, bool) {
        let end = self.records.end;
        let reach = self.records.start.max(end.saturating_sub(most)).min(end)..end;
        let found = delta.map_or(Err(reach.start), |delta| self.find(delta, reach));
        let start = index(found, true);
        self.records.end = start;
        (start..end, found.is_ok())
    }

    fn find(&self, delta: DeltaRef<'g>, within: Range<usize>) -> Result<usize, usize> {
        // T2: it has the prefix.
        self.base.search_in(within, delta.key.get(self.base.prefix().len()..).unwrap_or_default())
    }
}
