//! Folds the deltas of a leaf frame into its base: what the leaf has after them, and images that are made of it.
//!
//! # How it works
//!
//! Most of a leaf stays as it is. A fold is a list of stretches: runs of records of an image, and changes in between. An
//! image is put together of these; the bytes of a run are the same in it, as long as its keys have the same prefix.

use super::delta::{Entry, SortedDeltas, base_entry, big_image, changed};
use super::leaf::{Leaf, LeafBuilder};
use super::runs::Runs;
use crate::base::{Lsn, prefetch};
use crate::pagecache::{Folded, FrameRef, ImageAddr, Page};
use std::collections::BTreeSet;
use std::ops::{Bound, Range};

/// What a record costs besides its key and value.
const RECORD: usize = 9;
/// Bytes of a base that a fold asks for at once.
const BASE_FIRST: usize = 16 << 10;
/// Bytes of the usual head of a record, which is part of that.
const HEAD: usize = 4;

/// Neighbours in a leaf.
#[derive(Clone, Debug)]
enum Stretch<'g> {
    /// Records of an image.
    Run(Leaf<'g>, Range<usize>),
    /// A change.
    One(Entry<'g>),
}

impl<'g> Stretch<'g> {
    fn len(&self) -> usize {
        match self {
            Stretch::Run(_, run) => run.len(),
            Stretch::One(_) => 1,
        }
    }

    /// Some of them.
    fn slice(&self, range: Range<usize>) -> Stretch<'g> {
        match self {
            Stretch::Run(leaf, run) => Stretch::Run(*leaf, run.start + range.start..run.start + range.end),
            one @ Stretch::One(_) => one.clone(),
        }
    }

    /// Record `i`.
    fn entry(&self, i: usize) -> Entry<'g> {
        match self {
            Stretch::Run(leaf, run) => {
                let (rest, value) = leaf.record(run.start + i);
                base_entry(*leaf, run.start + i, rest, value)
            }
            Stretch::One(entry) => *entry,
        }
    }

    /// What the records cost in a leaf where so many bytes of each key are left out.
    fn size(&self, prefix: usize) -> usize {
        match self {
            Stretch::Run(leaf, run) => {
                let starts = leaf.starts();
                let shared = leaf.prefix().len();
                let bytes = starts.get(run.end) - starts.get(run.start);
                bytes + run.len() * (RECORD - HEAD + shared) - run.len() * prefix
            }
            Stretch::One(entry) => {
                let key = entry.prefix.len() + entry.rest.len();
                RECORD + key + entry.value.bytes().len() - prefix
            }
        }
    }
}

/// Records of a leaf, in the order of their keys.
#[derive(Debug, Default)]
pub struct Records<'g> {
    stretches: Vec<Stretch<'g>>,
    len: usize,
}

impl<'g> Records<'g> {
    /// Those of a base after its deltas, with what is gone if that is to be kept. Images of big values that are replaced
    /// are `dropped`.
    fn of(
        base: Leaf<'g>,
        deltas: &SortedDeltas<'g>,
        keep_gone: bool,
        dropped: &mut Vec<ImageAddr>,
    ) -> Records<'g> {
        let mut out = Records { stretches: Vec::with_capacity(2 * deltas.len() + 1), len: 0 };
        let mut runs = Runs::between(base, deltas, Bound::Unbounded, Bound::Unbounded);
        while let Some(piece) = runs.next(false, usize::MAX) {
            out.add(Stretch::Run(base, piece.run));
            dropped.extend(piece.replaced.and_then(|i| big_image(base.record(i).1)));
            if let Some(entry) = piece.delta.map(changed)
                && (keep_gone || entry.exists())
            {
                out.add(Stretch::One(entry));
            }
        }
        out
    }

    /// Those of the image below an overlay, which these change. Images of big values that are replaced are `dropped`.
    fn over(&self, below: Leaf<'g>, dropped: &mut Vec<ImageAddr>) -> Records<'g> {
        let mut out = Records::default();
        let mut from = 0;
        for entry in self.iter() {
            let key = entry.key();
            let rest = key.get(below.prefix().len()..).unwrap_or_default();
            let found = below.search_in(from..below.len(), rest);
            let (Ok(i) | Err(i)) = found;
            out.add(Stretch::Run(below, from..i));
            from = i;
            if found.is_ok() {
                dropped.extend(big_image(below.record(i).1));
                from += 1;
            }
            if entry.exists() {
                out.add(Stretch::One(entry));
            }
        }
        out.add(Stretch::Run(below, from..below.len()));
        out
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn add(&mut self, stretch: Stretch<'g>) {
        if stretch.len() > 0 {
            self.len += stretch.len();
            self.stretches.push(stretch);
        }
    }

    /// Adds others, which come behind.
    pub fn append(&mut self, mut other: Records<'g>) {
        self.stretches.append(&mut other.stretches);
        self.len += other.len;
    }

    /// All of them, one by one.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'g>> {
        self.stretches.iter().flat_map(|stretch| (0..stretch.len()).map(|i| stretch.entry(i)))
    }

    /// What each of them costs in a leaf where so many bytes of each key are left out.
    pub fn sizes(&self, prefix: usize) -> impl Iterator<Item = usize> {
        let each = move |stretch: &Stretch<'g>, i: usize| stretch.slice(i..i + 1).size(prefix);
        self.stretches.iter().flat_map(move |stretch| (0..stretch.len()).map(move |i| each(stretch, i)))
    }

    /// What all of them cost in a leaf where so many bytes of each key are left out.
    pub fn size(&self, prefix: usize) -> usize {
        self.stretches.iter().map(|stretch| stretch.size(prefix)).sum()
    }

    /// Whether they are all records of an image, and something behind these.
    pub fn only_append_to(&self, leaf: Leaf<'_>) -> bool {
        let is_one = |stretch: &Stretch<'_>| matches!(stretch, Stretch::One(_));
        match self.stretches.split_first() {
            Some((Stretch::Run(_, run), rest)) => {
                *run == (0..leaf.len()) && !rest.is_empty() && rest.iter().all(is_one)
            }
            _ => false,
        }
    }

    /// Some of them.
    pub fn slice(&self, range: Range<usize>) -> Records<'g> {
        let mut out = Records { stretches: Vec::with_capacity(self.stretches.len()), len: 0 };
        let mut at = 0;
        for stretch in &self.stretches {
            let (start, end) = (range.start.max(at), range.end.min(at + stretch.len()));
            if start < end {
                out.add(stretch.slice(start - at..end - at));
            }
            at += stretch.len();
        }
        out
    }

    /// Their image.
    pub fn build(&self, low: &[u8], high: Option<&[u8]>) -> Vec<u8> {
        let bytes = self.size(0) - self.len * RECORD;
        let mut builder = LeafBuilder::new(low, high, self.len, bytes);
        for stretch in &self.stretches {
            match stretch {
                Stretch::Run(leaf, run) => builder.push_run(*leaf, run.clone()),
                Stretch::One(entry) => builder.push(entry.prefix, entry.rest, entry.fingerprint, entry.value),
            }
        }
        builder.finish()
    }
}

/// The records of a leaf after folding, and what the fold leaves behind.
#[derive(Debug)]
pub struct Gathered<'g> {
    /// The records. Without those that are gone, unless an overlay was folded without what is below.
    pub records: Records<'g>,
    /// Images of big values that nothing refers to any more.
    pub dropped: Vec<ImageAddr>,
    /// Slots with intents that are not decided, which were left out.
    pub carried: Vec<usize>,
    /// Smallest LSN of what was folded, and above the greatest.
    pub lsns: (Lsn, Lsn),
}

/// Folds the first `used` deltas of a frame into its base, and that, for an overlay, over the image `below`.
///
/// An overlay that is folded without `below` stays one, and keeps what it removes.
pub fn gather<'g>(frame: FrameRef<'g>, used: usize, below: Option<Leaf<'g>>) -> Gathered<'g> {
    let base = Leaf::new(frame.base());
    // All of it is copied in the end; what is long comes by itself then.
    prefetch(base.bytes().as_ptr(), base.bytes().len().min(BASE_FIRST));
    let mut deltas = SortedDeltas::of(frame, used, false);
    let (mut dropped, carried) = deltas.take_left_out();
    debug_assert!(below.is_none() || frame.overlay(), "only an overlay has something below");
    let changes = Records::of(base, &deltas, frame.overlay(), &mut dropped);
    let records = match below {
        None => changes,
        Some(below) => changes.over(below, &mut dropped),
    };
    let mut out = Gathered { records, dropped, carried, lsns: deltas.lsns };
    out.forget_what_stays();
    out
}

impl Gathered<'_> {
    /// Replay repeats changes that an image has already, so a big value may be met as its own predecessor: it is
    /// dropped when it is not the value any more, and once.
    fn forget_what_stays(&mut self) {
        if self.dropped.is_empty() {
            return;
        }
        let stays: BTreeSet<ImageAddr> = self.records.iter().filter_map(|e| big_image(e.value)).collect();
        self.dropped.sort_unstable();
        self.dropped.dedup();
        self.dropped.retain(|image| !stays.contains(image));
    }
}

/// Leaves, as far as the pagecache must know them.
#[derive(Debug)]
pub struct LeafPage;

impl Page for LeafPage {
    fn validate(bytes: &[u8]) -> Result<(), &'static str> {
        Leaf::validate(bytes).map(|_| ()).map_err(|malformed| malformed.0)
    }

    fn is_of(frame: FrameRef<'_>, image: &[u8]) -> bool {
        let (leaf, image) = (Leaf::new(frame.base()), Leaf::new(image));
        (leaf.low(), leaf.high()) == (image.low(), image.high())
    }

    fn bare(frame: FrameRef<'_>) -> Vec<u8> {
        let leaf = Leaf::new(frame.base());
        LeafBuilder::new(leaf.low(), leaf.high(), 0, 0).finish()
    }

    fn fold(frame: FrameRef<'_>, used: usize, below: Option<&[u8]>) -> Folded {
        let leaf = Leaf::new(frame.base());
        let gathered = gather(frame, used, below.map(Leaf::new));
        let image = gathered.records.build(leaf.low(), leaf.high());
        let newest = frame.newest().max(gathered.lsns.1);
        Folded { image, dropped: gathered.dropped, carried: gathered.carried, newest }
    }
}

#[cfg(test)]
mod tests;
