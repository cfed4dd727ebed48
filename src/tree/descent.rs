//! The walk from the root to a leaf, and to an inner node; helps half-done splits along.

use super::inner::Inner;
use super::leaf::Leaf;
use super::{BwTree, Forest};
use crate::error::Result;
use crate::pagecache::{FrameKind, FrameRef, PageState, Word};
use crossbeam_epoch::Guard;

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
}

/// What the walk is to end at.
#[derive(Clone, Copy, Debug)]
enum Goal<'a> {
    /// The leaf whose range has the key.
    Key(&'a [u8]),
    /// The leaf with the greatest keys below this; `None` = the last leaf.
    Before(Option<&'a [u8]>),
}

impl Goal<'_> {
    fn is_past_inner(self, node: Inner<'_>) -> bool {
        match self {
            Goal::Key(key) => node.is_past(key),
            Goal::Before(Some(key)) => node.high().is_some_and(|high| high < key),
            Goal::Before(None) => node.high().is_some(),
        }
    }

    fn is_past_leaf(self, leaf: Leaf<'_>) -> bool {
        match self {
            Goal::Key(key) => leaf.is_past(key),
            Goal::Before(Some(key)) => leaf.high().is_some_and(|high| high < key),
            Goal::Before(None) => leaf.high().is_some(),
        }
    }

    fn child(self, node: Inner<'_>) -> usize {
        match self {
            Goal::Key(key) => node.find(key),
            Goal::Before(key) => node.find_before(key),
        }
    }
}

impl Forest {
    /// The leaf whose range has `key`, in memory.
    ///
    /// # Errors
    /// What faulting it in failed with; `CollectionNotFound` when the tree is gone.
    #[inline]
    pub(super) fn leaf<'g>(&self, tree: &BwTree, key: &[u8], guard: &'g Guard) -> Result<At<'g>> {
        self.walk(tree, Goal::Key(key), guard)
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
        self.walk(tree, Goal::Before(key), guard)
    }

    #[inline]
    fn walk<'g>(&self, tree: &BwTree, goal: Goal<'_>, guard: &'g Guard) -> Result<At<'g>> {
        let mut pid = tree.root;
        loop {
            let (frame, merging) = match self.cache.load(pid, guard).1 {
                PageState::Resident(frame) => (frame, false),
                PageState::Merging(frame) => (frame, true),
                PageState::Disk(image) => {
                    self.cache.fault_in(pid, tree.id, image, guard)?;
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
            if frame.kind() == FrameKind::Inner {
                let node = Inner::new(frame.base());
                pid = if goal.is_past_inner(node) { node.right() } else { node.child(goal.child(node)) };
                debug_assert_ne!(pid, 0, "T1: what is past a node is at its right");
                continue;
            }
            let leaf = Leaf::new(frame.base());
            if goal.is_past_leaf(leaf) {
                pid = self.move_right(tree, leaf, frame, guard)?;
                continue;
            }
            if merging {
                match self.merged_into(At { pid, frame }, goal, guard) {
                    Some(at) => return Ok(at),
                    None => {
                        // Merged, and already split again or merged further: the maintenance thread is about to say so.
                        self.cache.check()?;
                        std::thread::yield_now();
                        pid = tree.root;
                        continue;
                    }
                }
            }
            return Ok(At { pid, frame });
        }
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
    fn merged_into<'g>(&self, at: At<'g>, goal: Goal<'_>, guard: &'g Guard) -> Option<At<'g>> {
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
