//! The walk from the root to a leaf, and to an inner node; helps half-done splits along.

use super::excerpt::For;
use super::inner::Inner;
use super::leaf::Leaf;
use super::{BwTree, Forest};
use crate::error::{Error, Result};
use crate::pagecache::{FrameKind, FrameRef, ImageAddr, PageState, Word};
use crossbeam_epoch::Guard;

/// How often a walk may be sent back to the root: each time a leaf was split meanwhile.
const MOST_ASTRAY: usize = 1000;

/// Leaves that are asked for together.
pub(super) const TOGETHER: usize = 16;
/// Bytes of an inner node that are asked for before it is searched: its header, and the samples of up to 512 children.
const INNER_FIRST: usize = 384;

/// A page where the walk ended.
#[derive(Clone, Copy, Debug)]
pub struct At<'g> {
    /// The page.
    pub pid: u32,
    /// Its frame when it was looked at.
    pub frame: FrameRef<'g>,
}

impl<'g> At<'g> {
    /// The base image of the leaf.
    #[inline]
    pub fn leaf(self) -> Leaf<'g> {
        debug_assert_eq!(self.frame.kind(), FrameKind::Leaf);
        Leaf::new(self.frame.base())
    }

    /// After a walk to the greatest keys below `before`: whether the leaf has some, so that who goes on at its low
    /// fence gets on. Otherwise the image has other fences than the separators around it.
    pub fn starts_before(self, before: Option<&[u8]>) -> bool {
        let low = self.leaf().low();
        before.is_none_or(|before| low.is_empty() || low < before)
    }
}

/// Whether a leaf starts at `low`, and does not end behind `end`.
fn is_between(leaf: Leaf<'_>, low: &[u8], end: Option<&[u8]>) -> bool {
    let within = match (leaf.high(), end) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(high), Some(end)) => high <= end,
    };
    within && leaf.low() == low
}

/// Whether a leaf starts where child `i` of a node does, and does not end behind it.
fn is_child(leaf: Leaf<'_>, node: Inner<'_>, i: usize) -> bool {
    is_between(leaf, &node.separator(i), node.end(i).as_deref())
}

/// What a walk is to end at. A trait and not an enum, so that the walk is compiled for each of them.
trait Goal: Copy {
    fn is_past_inner(self, node: Inner<'_>) -> bool;
    fn is_past_leaf(self, leaf: Leaf<'_>) -> bool;
    /// Index of the child to go on at.
    fn child(self, node: Inner<'_>) -> usize;
    /// A key that the leaf may have.
    fn key(&self) -> &[u8];
    /// What for, if no more of the leaf is needed than what it says about that key.
    fn one_record(&self) -> Option<For> {
        None
    }
}

/// The leaf whose range has the key.
#[derive(Clone, Copy, Debug)]
struct Of<'a>(&'a [u8]);

impl Goal for Of<'_> {
    #[inline(always)]
    fn is_past_inner(self, node: Inner<'_>) -> bool {
        node.is_past(self.0)
    }

    #[inline(always)]
    fn is_past_leaf(self, leaf: Leaf<'_>) -> bool {
        leaf.is_past(self.0)
    }

    #[inline(always)]
    fn child(self, node: Inner<'_>) -> usize {
        node.find(self.0)
    }

    fn key(&self) -> &[u8] {
        self.0
    }
}

/// The same, for somebody who needs no more of it than what it says about the key.
#[derive(Clone, Copy, Debug)]
struct Record<'a>(Of<'a>, For);

impl Goal for Record<'_> {
    #[inline(always)]
    fn is_past_inner(self, node: Inner<'_>) -> bool {
        self.0.is_past_inner(node)
    }

    #[inline(always)]
    fn is_past_leaf(self, leaf: Leaf<'_>) -> bool {
        self.0.is_past_leaf(leaf)
    }

    #[inline(always)]
    fn child(self, node: Inner<'_>) -> usize {
        self.0.child(node)
    }

    fn key(&self) -> &[u8] {
        self.0.key()
    }

    fn one_record(&self) -> Option<For> {
        Some(self.1)
    }
}

/// The leaf with the greatest keys below this; `None` = the last leaf.
#[derive(Clone, Copy, Debug)]
struct Before<'a>(Option<&'a [u8]>);

impl Goal for Before<'_> {
    fn is_past_inner(self, node: Inner<'_>) -> bool {
        node.high().is_some_and(|high| self.0.is_none_or(|key| high < key))
    }

    fn is_past_leaf(self, leaf: Leaf<'_>) -> bool {
        leaf.high().is_some_and(|high| self.0.is_none_or(|key| high < key))
    }

    fn child(self, node: Inner<'_>) -> usize {
        node.find_before(self.0)
    }

    fn key(&self) -> &[u8] {
        // No key is greater, but for those that start with as many such bytes.
        self.0.unwrap_or(&[0xFF; 64])
    }
}

impl Forest {
    /// The leaf whose range has `key`, in memory.
    ///
    /// # Errors
    /// What faulting it in failed with; `CollectionNotFound` when the tree is gone.
    #[inline]
    pub(super) fn leaf<'g>(&self, tree: &BwTree, key: &[u8], guard: &'g Guard) -> Result<At<'g>> {
        self.walk(tree, Of(key), guard)
    }

    /// The leaf whose range has `key`; if it was on disk, perhaps only what it says about that key (`tree/excerpt.rs`).
    ///
    /// # Errors
    /// As for [`Self::leaf`].
    #[inline]
    pub(super) fn leaf_of_record<'g>(
        &self,
        tree: &BwTree,
        (key, what_for): (&[u8], For),
        guard: &'g Guard,
    ) -> Result<At<'g>> {
        self.walk(tree, Record(Of(key), what_for), guard)
    }

    /// The leaf with the greatest keys below `key`, in memory; `None` = the last leaf.
    ///
    /// # Errors
    /// As for [`Self::leaf`].
    pub(super) fn leaf_before<'g>(
        &self,
        tree: &BwTree,
        key: Option<&[u8]>,
        guard: &'g Guard,
    ) -> Result<At<'g>> {
        self.walk(tree, Before(key), guard)
    }

    /// Asks the memory for the leaves of some keys, [`TOGETHER`] at most, and waits for none of them. The keys go down side
    /// by side, so that what is missing on their ways comes at once. Only a hint: nothing is read from disk, no split is
    /// helped along, and a key that is not on a straight way down is left out.
    pub(super) fn ask_for_leaves<'k>(&self, tree: &BwTree, keys: impl Iterator<Item = &'k [u8]>) {
        let guard = crossbeam_epoch::pin();
        if tree.check().is_err() {
            return;
        }
        let mut ways = [(&[][..], tree.root); TOGETHER];
        let mut len = 0;
        for (way, key) in ways.iter_mut().zip(keys) {
            way.0 = key;
            len += 1;
        }
        let mut frames = [None; TOGETHER];
        let mut above_leaves = false;
        while len > 0 {
            for (found, (_, pid)) in frames.iter_mut().zip(&ways[..len]) {
                let PageState::Resident(frame) = self.cache.load(*pid, &guard).1 else {
                    *found = None;
                    continue;
                };
                *found = Some(frame);
                if above_leaves {
                    frame.prefetch_for_get();
                } else {
                    frame.prefetch_first(INNER_FIRST);
                }
            }
            if above_leaves {
                return;
            }
            let mut kept = 0;
            for i in 0..len {
                let (Some(frame), (key, _)) = (frames[i], ways[i]) else { continue };
                if frame.kind() == FrameKind::Leaf {
                    continue;
                }
                let node = Inner::new(frame.base());
                if !node.is_past(key) {
                    above_leaves = node.level() == 1;
                    ways[kept] = (key, node.child(node.find(key)));
                    kept += 1;
                }
            }
            len = kept;
        }
    }

    #[inline]
    fn walk<'g>(&self, tree: &BwTree, goal: impl Goal, guard: &'g Guard) -> Result<At<'g>> {
        let mut pid = tree.root;
        let mut astray = 0;
        let mut above_leaves = false;
        loop {
            let (frame, merging) = match self.cache.load(pid, guard).1 {
                PageState::Resident(frame) => (frame, false),
                PageState::Merging(frame) => (frame, true),
                PageState::Disk(image) => {
                    self.fault(tree, goal, (pid, image), guard)?;
                    continue;
                }
                PageState::Redirect(into) => {
                    pid = into;
                    continue;
                }
                PageState::Free => {
                    // Only a tree that was dropped loses pages that a guard can still reach.
                    tree.check()?;
                    pid = tree.root;
                    continue;
                }
            };
            if above_leaves {
                frame.prefetch_for_get();
            } else {
                frame.prefetch_first(INNER_FIRST);
            }
            if frame.kind() == FrameKind::Inner {
                let node = Inner::new(frame.base());
                // The next one is a leaf, or at the right of this node; then it was asked for in vain.
                above_leaves = node.level() == 1;
                pid = if goal.is_past_inner(node) { node.right() } else { node.child(goal.child(node)) };
                debug_assert_ne!(pid, 0, "T1: what is past a node is at its right");
                continue;
            }
            let leaf = Leaf::new(frame.base());
            if goal.is_past_leaf(leaf) {
                pid = self.move_right(tree, leaf, frame, guard)?;
                if pid == tree.root {
                    astray += 1;
                    if astray > MOST_ASTRAY {
                        // The image of the leaf has other fences than the separators around it.
                        return Err(self.misplaced(tree, At { pid, frame }));
                    }
                }
                continue;
            }
            let mut at = At { pid, frame };
            if merging {
                match self.merged_into(at, goal, guard) {
                    Some(current) => at = current,
                    None => {
                        // Merged, and already split again or merged further: the maintenance thread is about to say so.
                        self.cache.check()?;
                        std::thread::yield_now();
                        pid = tree.root;
                        continue;
                    }
                }
            }
            self.cache.counters.visits.raise();
            return Ok(at);
        }
    }

    /// Brings an evicted leaf into memory, which a walk to `goal` came to.
    ///
    /// # Errors
    /// What reading failed with; `Corruption` when its fences are not the separators around it.
    #[cold]
    fn fault(
        &self,
        tree: &BwTree,
        goal: impl Goal,
        (pid, image): (u32, ImageAddr),
        guard: &Guard,
    ) -> Result<()> {
        let bytes = match self.cache.read_leaf(image) {
            Ok(bytes) => bytes,
            Err(error) => return Err(self.concerns_leaf(tree, goal, pid, error, guard)),
        };
        if !self.fits(tree, goal, pid, Leaf::new(&bytes), guard)? {
            if self.cache.load(pid, guard).0 == Word::disk(image) {
                let error = self.cache.damaged(image, "a leaf with wrong fences");
                return Err(self.concerns_leaf(tree, goal, pid, error, guard));
            }
            return Ok(());
        }
        let one = goal.one_record().map(|what_for| (goal.key(), what_for));
        let excerpt = one.and_then(|record| self.excerpt(tree, None, Leaf::new(&bytes), record));
        let (base, overlay) = excerpt.as_deref().map_or((&bytes[..], false), |base| (base, true));
        self.cache.fault_in(pid, tree.id, image, (base, overlay), guard);
        Ok(())
    }

    /// An error about a leaf whose image has other fences than the separators around it.
    #[cold]
    pub(super) fn misplaced(&self, tree: &BwTree, at: At<'_>) -> Error {
        let error = self.cache.damaged(at.frame.disk(), "a leaf with wrong fences");
        error.concerns(&tree.name, at.leaf().low(), at.leaf().high())
    }

    /// Says of damage to a leaf, which a walk to `goal` came to, which keys it concerns: those between the separators.
    #[cold]
    fn concerns_leaf(&self, tree: &BwTree, goal: impl Goal, pid: u32, error: Error, guard: &Guard) -> Error {
        match self.inner_at(tree, 1, goal.key(), guard) {
            Ok(None) => error.concerns(&tree.name, b"", None),
            Ok(Some((at, _))) => {
                let node = Inner::new(at.frame.base());
                let i = (0..node.children()).find(|i| node.child(*i) == pid);
                // If it is none of them, it was split off one of them.
                let i = i.unwrap_or_else(|| goal.child(node));
                error.concerns(&tree.name, &node.separator(i), node.end(i).as_deref())
            }
            Err(_) => error,
        }
    }

    /// Whether a leaf has the fences that the lowest inner node says, if it was reached from there, and not from its left
    /// sibling, which knows where it starts only.
    fn fits(&self, tree: &BwTree, goal: impl Goal, pid: u32, leaf: Leaf<'_>, guard: &Guard) -> Result<bool> {
        let mut at = tree.root;
        loop {
            let frame = match self.cache.load(at, guard).1 {
                PageState::Resident(frame) | PageState::Merging(frame) => frame,
                PageState::Redirect(into) => {
                    at = into;
                    continue;
                }
                PageState::Disk(_) => return Ok(leaf.is_only()),
                PageState::Free => {
                    tree.check()?;
                    return Ok(true);
                }
            };
            if frame.kind() == FrameKind::Leaf {
                return Ok(true);
            }
            let node = Inner::new(frame.base());
            if goal.is_past_inner(node) {
                at = node.right();
                continue;
            }
            let i = goal.child(node);
            if node.level() > 1 {
                at = node.child(i);
                continue;
            }
            return Ok(node.child(i) != pid || is_child(leaf, node, i));
        }
    }

    /// Whether the fences of an image are the separators around its page, which starts at `low`.
    ///
    /// # Errors
    /// As for [`Self::inner_at`].
    pub(super) fn is_in_place(
        &self,
        tree: &BwTree,
        pid: u32,
        low: &[u8],
        image: &[u8],
        guard: &Guard,
    ) -> Result<bool> {
        let leaf = Leaf::new(image);
        let Some((at, _)) = self.inner_at(tree, 1, low, guard)? else {
            return Ok(pid == tree.root && leaf.is_only());
        };
        let node = Inner::new(at.frame.base());
        let i = node.find(low);
        Ok(node.child(i) == pid && is_child(leaf, node, i))
    }

    /// The page right of a leaf that was split, after its separator was posted.
    fn move_right(&self, tree: &BwTree, leaf: Leaf<'_>, frame: FrameRef<'_>, guard: &Guard) -> Result<u32> {
        match frame.right() {
            // Its separator has been posted (T3), so the walk finds it from the root.
            0 => Ok(tree.root),
            right => {
                let separator = leaf.high().expect("what is past a leaf is past its high fence");
                self.post(tree, 1, separator, right, guard)?;
                Ok(right)
            }
        }
    }

    /// Which frame is current for a leaf that is being merged: its own while the page it goes into still ends where it
    /// starts, and the merged one from then on. `None`: it is neither of these any more.
    fn merged_into<'g>(&self, at: At<'g>, goal: impl Goal, guard: &'g Guard) -> Option<At<'g>> {
        let pid = at.frame.merge_into();
        let (_, PageState::Resident(into)) = self.cache.load(pid, guard) else { return None };
        let own = match into.kind() {
            // A root whose only child this is, to take its place.
            FrameKind::Inner => {
                let node = Inner::new(into.base());
                node.children() == 1 && node.child(0) == at.pid
            }
            FrameKind::Leaf => {
                let left = Leaf::new(into.base());
                if !goal.is_past_leaf(left) {
                    return Some(At { pid, frame: into });
                }
                // Split after the merge it would have another right sibling.
                left.high() == Some(at.leaf().low()) && (into.right() == 0 || into.right() == at.pid)
            }
        };
        own.then_some(at)
    }

    /// The inner node at `level` whose range has `key`, and its word. `None`: the tree is not that high.
    pub(super) fn inner_at<'g>(
        &self,
        tree: &BwTree,
        level: u32,
        key: &[u8],
        guard: &'g Guard,
    ) -> Result<Option<(At<'g>, Word)>> {
        let mut pid = tree.root;
        loop {
            let (word, state) = self.cache.load(pid, guard);
            let frame = match state {
                PageState::Resident(frame) | PageState::Merging(frame) => frame,
                PageState::Redirect(into) => {
                    pid = into;
                    continue;
                }
                PageState::Disk(_) => return Ok(None),
                PageState::Free => {
                    tree.check()?;
                    pid = tree.root;
                    continue;
                }
            };
            if frame.kind() == FrameKind::Leaf {
                return Ok(None);
            }
            let node = Inner::new(frame.base());
            if node.level() < level {
                return Ok(None);
            }
            if node.is_past(key) {
                pid = node.right();
            } else if node.level() == level {
                return Ok(Some((At { pid, frame }, word)));
            } else {
                pid = node.child(node.find(key));
            }
        }
    }
}
