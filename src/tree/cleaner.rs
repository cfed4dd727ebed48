//! Cleaning: moves what is live out of sparse segments, and frees the pages of dropped trees.
//!
//! # How it works
//!
//! An image says which tree it is of, and its payload which keys: the tree knows the page, and the page
//! whether it still owns the image. Live leaves are copied as they are, checked, and swapped in by CAS. A big
//! value is referred to by a record of a leaf, so it is moved by publishing a new reference. Segments are
//! taken sparsest first until the file is as dense as it should be; the next checkpoint makes them free.
//!
//! # References
//!
//! Segment cleaning: Rosenblum and Ousterhout, "The Design and Implementation of a Log-Structured File
//! System", TOCS 1992, section 3.

use super::consolidate::Fold;
use super::delta::big_image;
use super::descent::At;
use super::inner::Inner;
use super::leaf::{BigRef, Leaf, fingerprint};
use super::{BwTree, Forest, SMALL, When, add};
use crate::error::{Error, Result};
use crate::pagecache::{FrameKind, ImageAddr, PageState, Run, Scan, SegmentKind, Usage, Word};
use crossbeam_epoch::Guard;
use std::collections::BTreeSet;

/// Segments with a larger share of live bytes are not worth moving.
const DENSE: f64 = 0.9;

impl Forest {
    /// Empties sparse segments until page segments have as few bytes per live byte as they are to have.
    ///
    /// # Errors
    /// What reading or writing failed with.
    pub(super) fn clean(&self, when: When) -> Result<()> {
        let segments = self.log().segments();
        let usage = segments.usage();
        let goal = self.clean_goal(&usage, when);
        let mut used = usage.used - usage.dead;
        if used <= goal {
            return Ok(());
        }
        for (number, run) in segments.sparse(DENSE) {
            if used <= goal {
                break;
            }
            self.clean_segment(number, &run)?;
            self.make_ready();
            used = used.saturating_sub(run.used - run.live);
        }
        Ok(())
    }

    /// Bytes that runs with live images may have before the cleaner works.
    pub(super) fn clean_goal(&self, usage: &Usage, when: When) -> u64 {
        let segments = 2 * self.log().segments().size() as u64;
        let (amplification, slack) = match when {
            When::Busy => (self.options.amplification.0, segments),
            When::AtRest => (self.options.amplification.1, segments.min(SMALL)),
        };
        (usage.live as f64 * amplification) as u64 + slack
    }

    fn clean_segment(&self, number: u32, run: &Run) -> Result<()> {
        let (nonce, used, kind) = (run.nonce, run.used, run.kind);
        let mut all_known = true;
        let scan = self.cache.scan_segment(number, nonce, used)?;
        let Some(scan) = scan else { return Ok(()) };
        for &(image, header) in &scan.images {
            let Some(tree) = self.catalog.get_id(header.tree) else {
                // The images of a dropped tree are counted until it is freed.
                all_known &= !self.unfreed.lock().contains(&header.tree);
                continue;
            };
            let moved = match header.kind {
                crate::pagecache::ImageKind::Leaf => self.move_leaf(&tree, &scan, image),
                crate::pagecache::ImageKind::Big => self.move_big(&tree, &scan, image),
                // A part of the directory: the next checkpoint writes a new one.
                _ => Ok(()),
            };
            match moved {
                Ok(()) => {}
                // Dropped just now, and counted until it is freed; or damaged, and left where it is.
                Err(Error::CollectionNotFound(_) | Error::Corruption { .. }) => all_known = false,
                Err(error) => return Err(error),
            }
        }
        // Leaves are counted exactly, and moving them has brought their count down.
        if all_known && kind == SegmentKind::Big {
            self.cache.emptied(number);
        }
        add(&self.counters.cleaned_segments);
        Ok(())
    }

    fn move_leaf(&self, tree: &BwTree, scan: &Scan, image: ImageAddr) -> Result<()> {
        let lock = self.cache.maintain();
        let guard = crossbeam_epoch::pin();
        tree.check()?;
        // What is dead may be damaged without harm; what is live and damaged is left where it is.
        let Ok((header, raw, payload)) = self.cache.read_for_move(scan, image) else {
            return Err(Error::Corruption { at: None, bt: () });
        };
        let Ok(leaf) = Leaf::validate(&payload) else { return Err(Error::Corruption { at: None, bt: () }) };
        let pid = match self.inner_at(tree, 1, leaf.low(), &guard)? {
            None => tree.root,
            Some((at, _)) => {
                let node = Inner::new(at.frame.base());
                node.child(node.find(leaf.low()))
            }
        };
        self.cache.move_leaf(pid, image, (&header, &raw), &lock, &guard)?;
        Ok(())
    }

    fn move_big(&self, tree: &BwTree, scan: &Scan, image: ImageAddr) -> Result<()> {
        let (bytes, at) = self.cache.read_big_of(scan, image)?;
        let (key, value) = (&bytes[4..at], &bytes[at..]);
        if !self.refers_when_folded(tree, key, image)? {
            return Ok(());
        }
        let new = BigRef { image: self.cache.write_big(tree.id, key, value)?, len: value.len() as u64 };
        let moved = self.relocate_big(tree, key, image, new);
        self.cache.settle_big(new.image, matches!(moved, Ok(true)));
        if moved? {
            self.cache.note_moved();
        }
        // What replaced it, this or a write that came before, may not be folded yet, as an overlay keeps its changes when it
        // gets its image back.
        self.refers_when_folded(tree, key, image).map(drop)
    }

    /// Recovery: counts the live bytes of the runs in which replay saw big values die. An image may hold what
    /// a record replays once more, so what died and what only seemed to is known when all is replayed and
    /// folded.
    ///
    /// # Errors
    /// What reading failed with.
    pub(super) fn recount_big_values(&self) -> Result<()> {
        let segments = self.log().segments();
        while let Some((number, run)) = segments.next_suspect() {
            let mut live = 0;
            let scan = self.cache.scan_segment(number, run.nonce, run.used)?;
            let images = scan.iter().flat_map(|scan| scan.images.iter().map(move |image| (scan, image)));
            for (scan, &(image, header)) in images {
                // A damaged image is met again by whoever reads the value.
                let Ok((bytes, at)) = self.cache.read_big_of(scan, image) else {
                    live += image.bytes();
                    continue;
                };
                let counts = match self.catalog.get_id(header.tree) {
                    // Counted until the tree's pages are freed.
                    None => self.unfreed.lock().contains(&header.tree),
                    Some(tree) => self.refers_when_folded(&tree, &bytes[4..at], image)?,
                };
                live += if counts { image.bytes() } else { 0 };
                self.make_room()?;
            }
            segments.set_live(number, live);
        }
        segments.end_replay();
        Ok(())
    }

    /// Whether the key refers to the image, after its leaf was folded: from then on no frame that can be
    /// reached has the image behind a newer value, and nobody but those who have a guard already will count
    /// its death.
    fn refers_when_folded(&self, tree: &BwTree, key: &[u8], image: ImageAddr) -> Result<bool> {
        let fingerprint = fingerprint(key);
        loop {
            let guard = crossbeam_epoch::pin();
            tree.check()?;
            let at = self.leaf(tree, key, &guard)?;
            if !at.frame.overlay() && at.frame.find(fingerprint, key).is_none() {
                return Ok(at.leaf().find(key, fingerprint).and_then(big_image) == Some(image));
            }
            self.consolidate(tree, at, Fold::Whole, &guard)?;
        }
    }

    /// Frees the pages of dropped trees that nobody can be in any more.
    ///
    /// # Errors
    /// Never fails because of what it reads: what cannot be read is not freed.
    pub(super) fn free_dropped(&self) -> Result<()> {
        loop {
            let Some(tree) = self.dropped.lock().pop_front() else { return Ok(()) };
            let _lock = self.cache.maintain();
            let guard = crossbeam_epoch::pin();
            self.free_tree(&tree, &guard);
            self.unfreed.lock().remove(&tree.id);
        }
    }

    fn free_tree(&self, tree: &BwTree, guard: &Guard) {
        let mut pending = vec![tree.root];
        let mut seen = BTreeSet::new();
        while let Some(pid) = pending.pop() {
            if pid == 0 || !seen.insert(pid) {
                continue;
            }
            let (word, state) = self.cache.load(pid, guard);
            match state {
                PageState::Free => continue,
                PageState::Redirect(into) => {
                    // Its PID is on its way to be freed.
                    pending.push(into);
                    continue;
                }
                PageState::Resident(frame) | PageState::Merging(frame)
                    if frame.kind() == FrameKind::Inner =>
                {
                    let node = Inner::new(frame.base());
                    pending.extend((0..node.children()).map(|i| node.child(i)));
                    pending.push(node.right());
                }
                PageState::Resident(frame) | PageState::Merging(frame) => {
                    pending.push(frame.right());
                    self.kill_leaf(At { pid, frame }, tree.is_big());
                }
                PageState::Disk(image) => {
                    if tree.is_big()
                        && let Ok(bytes) = self.cache.read_leaf(image)
                    {
                        super::walk::big_refs(Leaf::new(&bytes)).for_each(|big| self.cache.kill(big.image));
                    }
                    self.cache.kill(image);
                }
            }
            let freed = self.cache.table().swap(pid, word, Word::FREE);
            debug_assert!(freed, "nobody else is in a dropped tree");
            if let PageState::Resident(frame) | PageState::Merging(frame) = state {
                self.cache.retire(frame, guard);
            }
            self.cache.retire_pid(pid, guard);
        }
    }

    fn kill_leaf(&self, at: At<'_>, big: bool) {
        let used = at.frame.freeze();
        if big {
            let below = at.frame.overlay().then(|| self.cache.read_below(at.frame).ok()).flatten();
            let gathered = super::fold::gather(at.frame, used, below.as_deref().map(Leaf::new));
            self.cache.kill_all(&gathered.dropped);
            let live = gathered.records.iter().filter_map(|entry| super::delta::big_image(entry.value));
            live.for_each(|image| self.cache.kill(image));
        }
        self.cache.kill(at.frame.disk());
    }
}
