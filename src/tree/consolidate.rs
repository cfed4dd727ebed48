//! Folds the deltas of a leaf into a new base, and splits it when it has grown too large.
//!
//! # How it works
//!
//! Whoever meets a frozen frame may do this, and an iterator freezes one whose deltas readers went through again and
//! again; the CAS on the mapping word decides, losers free what they built. A
//! leaf above the limit is cut into as many parts as it needs at once: the right ones are installed under new PIDs
//! that nobody knows, then one CAS replaces the page by its left part, from which the others are reached; then their
//! separators are posted. The root keeps its PID: its parts all get new ones.

use super::delta::Entry;
use super::descent::At;
use super::fold::{Records, gather};
use super::leaf::{BigRef, Leaf, Value, fingerprint, separator};
use super::redo::{big_rest, encode_transaction, kind, transaction_len};
use super::{BwTree, Forest, add};
use crate::base::Lsn;
use crate::error::Result;
use crate::ivec::IVec;
use crate::pagecache::{FrameKind, FrameRef, NewDelta, NewFrame, PageState, SLOTS, Slot, Word};
use crossbeam_epoch::Guard;
use std::borrow::Cow;
use std::ops::Range;

/// Changes that an overlay keeps as they are when it gets its image back, unless they replace big values: if it is dropped
/// again, they need not be written for that.
pub(super) const KEPT: usize = SLOTS * 3 / 4;

/// How an overlay is folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fold {
    /// With its image: the result is a whole leaf.
    Whole,
    /// Without, as long as it is small: nothing is read.
    Blind,
}

/// A part of a leaf that is split.
struct Part {
    low: Vec<u8>,
    image: Vec<u8>,
}

/// All parts, and what else they get.
struct Parts<'g> {
    parts: Vec<Part>,
    /// Above the LSN of every change in them.
    newest: Lsn,
    /// The frame that is split.
    from: FrameRef<'g>,
    /// Its slots with undecided intents.
    carried: Vec<usize>,
}

impl Forest {
    /// Whether a leaf is to be split though it is not full: eviction and checkpoints write leaves with what was added to
    /// them, and do not split any.
    #[inline]
    pub(super) fn is_oversized(&self, at: At<'_>) -> bool {
        let leaf = at.leaf();
        leaf.payload() > self.options.leaf && leaf.len() > 1
    }

    /// Freezes the frame of a leaf and replaces it by one, or by several, without deltas but for intents that are not
    /// decided.
    ///
    /// # Errors
    /// What reading the image under an overlay failed with.
    pub(super) fn consolidate(&self, tree: &BwTree, at: At<'_>, fold: Fold, guard: &Guard) -> Result<()> {
        self.consolidate_over(tree, at, fold, None, guard)
    }

    /// Reads the image under an overlay.
    ///
    /// # Errors
    /// What that failed with.
    pub(super) fn image_below(&self, tree: &BwTree, at: At<'_>) -> Result<IVec> {
        let leaf = at.leaf();
        let image = self.cache.read_below(at.frame);
        let image = image.map_err(|error| error.concerns(&tree.name, leaf.low(), leaf.high()))?;
        add(&self.cache.counters.overlay_faults);
        Ok(image)
    }

    /// As [`Self::consolidate`]; `below`: the image under the overlay, if it was read already.
    ///
    /// # Errors
    /// As there.
    pub(super) fn consolidate_over(
        &self,
        tree: &BwTree,
        at: At<'_>,
        fold: Fold,
        below: Option<IVec>,
        guard: &Guard,
    ) -> Result<()> {
        let used = at.frame.freeze();
        match self.cache.load(at.pid, guard) {
            (_, PageState::Resident(current)) if current.address() == at.frame.address() => {}
            (_, PageState::Merging(_)) => {
                // A few instructions of the maintenance thread away from being a redirect, unless that has died.
                self.cache.check()?;
                std::thread::yield_now();
                return Ok(());
            }
            _ => return Ok(()),
        }
        let leaf = at.leaf();
        let image;
        let blind = at.frame.overlay() && fold == Fold::Blind && leaf.payload() < self.options.leaf;
        let below = if at.frame.overlay() && !blind {
            image = match below {
                Some(image) => image,
                None => self.image_below(tree, at)?,
            };
            let below = Leaf::new(&image);
            // The cleaner relies on it that a fold counts the death of a big value: a checkpoint that finds the frame
            // replaced takes what was below its redo LSN for folded, and frees the segment.
            let kills = || tree.is_big() && !gather(at.frame, used, Some(below)).dropped.is_empty();
            // E1: the image has what the base has.
            let copied = leaf.len() == 0 || at.frame.first_lsn() == Lsn::MAX;
            if copied && used <= KEPT && !kills() {
                // If somebody was faster, the page is another now.
                let _ = self.cache.rebase((at.pid, at.frame), used, (&image, false), guard);
                return Ok(());
            }
            Some(below)
        } else {
            None
        };
        let gathered = gather(at.frame, used, below);
        let records = &gathered.records;
        let total = records.size(leaf.prefix().len());
        let first_lsn = at.frame.first_lsn().min(gathered.lsns.0);
        let newest = at.frame.newest().max(gathered.lsns.1);
        let carried = &gathered.carried;
        add(&self.counters.consolidations);
        let replaced = if blind || total <= self.options.leaf || records.len() < 2 {
            let base = records.build(leaf.low(), leaf.high());
            let new = NewFrame {
                kind: FrameKind::Leaf,
                overlay: blind,
                tree: tree.id,
                base: &base,
                disk: at.frame.disk(),
                first_lsn,
                newest,
                right: at.frame.right(),
            };
            let new = FrameRef::create_with(self.cache.arena(), new, at.frame, carried.iter().copied());
            let replaced = self.cache.replace(at.pid, at.frame, new, guard);
            if replaced && !blind {
                self.note_if_sparse(tree, leaf, total);
            }
            replaced
        } else {
            let appends = leaf.high().is_none() && records.only_append_to(leaf);
            let cuts = self.cuts(records, total, leaf.prefix().len(), appends);
            let parts = Self::parts(records, &cuts, leaf);
            let parts = Parts { parts, newest, from: at.frame, carried: carried.clone() };
            if at.pid == tree.root {
                self.split_root(tree, at, &parts, guard)?
            } else {
                self.split_leaf(tree, at, &parts, guard)?
            }
        };
        if replaced {
            self.cache.kill_all(&gathered.dropped);
        }
        Ok(())
    }

    /// Logs the changes of an overlay, whose image cannot be read, once more, so that a checkpoint can do without an image
    /// that has them: it keeps the one that cannot be read, and replay comes to the changes again. Under the maintenance lock.
    /// `false`: the image can be read, or the frame was replaced, or a commit is under way in it.
    ///
    /// T5 is kept: the record counts only if the frame is still the one that was frozen when the new one takes its place.
    /// Then nothing was published for these keys since, and what is published later is reserved later. Otherwise, since
    /// reading may work for others, somebody else may have, and the record becomes padding.
    ///
    /// # Errors
    /// What writing failed with.
    pub(super) fn log_again(&self, tree: &BwTree, at: At<'_>, guard: &Guard) -> Result<bool> {
        let is_undecided = |used| at.frame.undecided(used).next().is_some();
        if !at.frame.overlay() || is_undecided(at.frame.used().0) || self.cache.read_below(at.frame).is_ok() {
            return Ok(false);
        }
        let used = at.frame.freeze();
        let gathered = gather(at.frame, used, None);
        if !gathered.carried.is_empty() {
            return Ok(false);
        }
        if gathered.records.is_empty() {
            return Ok(true);
        }
        let changes: Vec<_> = gathered.records.iter().map(|entry| self.logged(&entry)).collect();
        let len = changes.iter().map(|(_, key, rest)| (key.len(), rest.len()));
        let mut space = self.cache.reserve(transaction_len(len))?;
        let mut encoder = encode_transaction(space.bytes());
        changes.iter().for_each(|(kind, key, rest)| encoder.change(*kind, tree.id, key, rest));
        debug_assert!(encoder.is_full(), "the length that was announced");
        let lsn = space.lsn();
        let leaf = at.leaf();
        let base = gathered.records.build(leaf.low(), leaf.high());
        let new = NewFrame {
            kind: FrameKind::Leaf,
            overlay: true,
            tree: tree.id,
            base: &base,
            disk: at.frame.disk(),
            first_lsn: lsn,
            newest: at.frame.newest().max(gathered.lsns.1).max(lsn.plus(1)),
            right: at.frame.right(),
        };
        let new = self.cache.frame(new, guard);
        let replaced = self.cache.replace(at.pid, at.frame, new, guard);
        if replaced {
            space.complete();
            self.cache.kill_all(&gathered.dropped);
        }
        Ok(replaced)
    }

    /// Kind, key and rest of the change of a transaction that leaves an entry.
    fn logged<'a>(&self, entry: &Entry<'a>) -> (u8, Vec<u8>, Cow<'a, [u8]>) {
        match entry.value {
            Value::Inline(value) => (kind::PUT, entry.key(), Cow::Borrowed(value)),
            Value::Gone => (kind::REMOVE, entry.key(), Cow::Borrowed(&[])),
            Value::Big(bytes) => {
                let big = BigRef::decode(bytes);
                let rest = big_rest(big, self.cache.nonce(big.image));
                (kind::PUT_BIG, entry.key(), Cow::Owned(rest.to_vec()))
            }
        }
    }

    /// Where to cut: the first entry of each part but the first.
    fn cuts(&self, records: &Records<'_>, total: usize, prefix: usize, appends: bool) -> Vec<usize> {
        let goal = if appends {
            self.options.leaf / 10 * 9
        } else {
            let parts = total.div_ceil(self.options.leaf / 10 * 7).max(2);
            total.div_ceil(parts)
        };
        let mut cuts = Vec::new();
        let mut size = 0;
        for (i, bytes) in records.sizes(prefix).enumerate() {
            if size > 0 && size + bytes / 2 > goal {
                cuts.push(i);
                size = 0;
            }
            size += bytes;
        }
        if cuts.is_empty() {
            cuts.push(records.len() / 2);
        }
        cuts
    }

    fn parts(records: &Records<'_>, cuts: &[usize], leaf: Leaf<'_>) -> Vec<Part> {
        let mut lows = vec![leaf.low().to_vec()];
        for cut in cuts {
            let around = records.slice(cut - 1..cut + 1);
            let mut around = around.iter().map(|entry| entry.key());
            let (before, behind) =
                around.next().zip(around.next()).expect("something on both sides of a cut");
            lows.push(separator(&before, &behind).to_vec());
        }
        let ends = cuts.iter().copied().chain([records.len()]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let ranges: Vec<Range<usize>> = starts.zip(ends).map(|(start, end)| start..end).collect();
        let high = |i: usize| lows.get(i + 1).map(Vec::as_slice).or(leaf.high());
        let images: Vec<Vec<u8>> = (0..)
            .zip(&ranges)
            .map(|(i, range)| records.slice(range.clone()).build(&lows[i], high(i)))
            .collect();
        lows.into_iter().zip(images).map(|(low, image)| Part { low, image }).collect()
    }

    fn part_frame<'g>(
        &self,
        tree: &BwTree,
        parts: &Parts<'_>,
        i: usize,
        right: u32,
        guard: &'g Guard,
    ) -> FrameRef<'g> {
        let part = &parts.parts[i];
        let new = NewFrame {
            kind: FrameKind::Leaf,
            overlay: false,
            tree: tree.id,
            base: &part.image,
            // The first takes over the image of the whole.
            disk: if i == 0 { parts.from.disk() } else { crate::pagecache::ImageAddr::NONE },
            // No image has this range.
            first_lsn: Lsn(0),
            newest: parts.newest,
            right,
        };
        let frame = self.cache.frame(new, guard);
        let mut slot = 0;
        for at in &parts.carried {
            let Slot::Run(run) = parts.from.slot(*at) else { unreachable!("only runs are undecided") };
            let first = run.lower_bound(&part.low);
            let end = parts.parts.get(i + 1).map_or(run.len(), |next| run.lower_bound(&next.low));
            if first < end {
                let intents = (first..end).map(|i| run.intent(i));
                let piece = NewDelta::run(self.cache.arena(), &run.owner(), intents);
                frame.put(slot, fingerprint(run.intent(first).1), piece);
                slot += 1;
            }
        }
        frame
    }

    /// Lets the eviction hand have pages that others refer to now.
    fn release(&self, pids: &[u32], guard: &Guard) {
        for pid in pids {
            if let (_, PageState::Resident(frame)) = self.cache.load(*pid, guard) {
                frame.release();
            }
        }
    }

    /// Installs all parts but the first under new PIDs, right to left; the last is followed by `right`.
    fn install(&self, tree: &BwTree, parts: &Parts<'_>, right: u32, guard: &Guard) -> Result<Vec<u32>> {
        let mut pids = vec![0; parts.parts.len() - 1];
        let mut next = right;
        for i in (0..pids.len()).rev() {
            let frame = self.part_frame(tree, parts, i + 1, next, guard);
            // Evicting it would post the separator behind it, for a page that may never come to be.
            frame.hold();
            match self.cache.allocate(frame) {
                Ok(pid) => next = pid,
                Err(error) => {
                    pids[i + 1..].iter().for_each(|pid| self.uninstall(*pid, guard));
                    return Err(error);
                }
            }
            pids[i] = next;
        }
        Ok(pids)
    }

    /// Takes back a page that no other refers to.
    pub(super) fn uninstall(&self, pid: u32, guard: &Guard) {
        loop {
            let (word, state) = self.cache.load(pid, guard);
            if !self.cache.table().swap(pid, word, Word::FREE) {
                continue;
            }
            match state {
                PageState::Resident(frame) => self.cache.retire(frame, guard),
                PageState::Disk(image) => self.cache.kill(image),
                other => unreachable!("nobody merges or frees a page that no other refers to: {other:?}"),
            }
            self.cache.table().free(pid);
            return;
        }
    }

    fn split_leaf(&self, tree: &BwTree, at: At<'_>, parts: &Parts<'_>, guard: &Guard) -> Result<bool> {
        let pids = self.install(tree, parts, at.frame.right(), guard)?;
        let left = self.part_frame(tree, parts, 0, pids[0], guard);
        if !self.cache.replace(at.pid, at.frame, left, guard) {
            pids.iter().for_each(|pid| self.uninstall(*pid, guard));
            return Ok(false);
        }
        add(&self.counters.leaf_splits);
        self.release(&pids, guard);
        for (part, pid) in parts.parts[1..].iter().zip(&pids) {
            // Whoever walks to the right tries again (T3).
            let _ = self.post(tree, 1, &part.low, *pid, guard);
        }
        Ok(true)
    }

    /// The root is a leaf and becomes an inner node over the parts.
    fn split_root(&self, tree: &BwTree, at: At<'_>, parts: &Parts<'_>, guard: &Guard) -> Result<bool> {
        let mut pids = self.install(tree, parts, 0, guard)?;
        let first = self.part_frame(tree, parts, 0, pids[0], guard);
        first.hold();
        let first_pid = match self.cache.allocate(first) {
            Ok(pid) => pid,
            Err(error) => {
                pids.iter().for_each(|pid| self.uninstall(*pid, guard));
                return Err(error);
            }
        };
        pids.insert(0, first_pid);
        let children: Vec<(&[u8], u32)> =
            parts.parts.iter().zip(&pids).map(|(part, pid)| (part.low.as_slice(), *pid)).collect();
        let node = super::inner::build(1, &children, None, 0);
        let root = self.inner_frame(tree, &node, guard);
        if !self.cache.table().swap(at.pid, Word::resident(at.frame), Word::resident(root)) {
            self.cache.discard(root);
            pids.iter().for_each(|pid| self.uninstall(*pid, guard));
            return Ok(false);
        }
        self.release(&pids, guard);
        self.cache.retire(at.frame, guard);
        add(&self.counters.root_splits);
        Ok(true)
    }

    /// A frame for an inner node.
    pub(super) fn inner_frame<'g>(&self, tree: &BwTree, node: &[u8], guard: &'g Guard) -> FrameRef<'g> {
        let new = NewFrame {
            kind: FrameKind::Inner,
            overlay: false,
            tree: tree.id,
            base: node,
            disk: crate::pagecache::ImageAddr::NONE,
            first_lsn: Lsn::MAX,
            newest: Lsn(0),
            right: 0,
        };
        self.cache.frame(new, guard)
    }
}
