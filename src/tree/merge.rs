//! Node merges: small pages go into their left siblings, small inner nodes too, and a root with one child
//! takes that child's place.
//!
//! # How it works
//!
//! Consolidations note leaves that have become small. The holder of the maintenance lock (T4) takes such a leaf and a
//! neighbour under the same parent, L and R:
//!
//! 1. R is frozen and its word says *merging*: nobody replaces it any more. Its frozen frame stays readable.
//! 2. L is replaced by L + R in one CAS. From that instant on the merged page is the truth: a reader that
//!    still comes to R looks at L first, and writers wait for this.
//! 3. R becomes a redirect to L, the separator leaves the parent, and R's PID is freed through the epoch.

use super::descent::At;
use super::fold::gather;
use super::inner::Inner;
use super::leaf::Leaf;
use super::split::build_owned;
use super::{BwTree, Forest, add};
use crate::base::Lsn;
use crate::error::Result;
use crate::pagecache::{FrameKind, FrameRef, Maintenance, NewFrame, PageState, Word};
use crossbeam_epoch::Guard;

impl Forest {
    /// Merges the leaves that were noted as small.
    ///
    /// # Errors
    /// What posting or dropping separators failed with.
    pub(super) fn merge_sparse(&self) -> Result<()> {
        while let Some((id, low)) = self.take_sparse() {
            let Some(tree) = self.catalog.get_id(id) else { continue };
            let lock = self.cache.maintain();
            let guard = crossbeam_epoch::pin();
            if tree.check().is_err() {
                continue;
            }
            let mut level = 0;
            // A merge may leave the parent small.
            while self.merge_at(&tree, level, &low, &lock, &guard)? {
                level += 1;
            }
        }
        Ok(())
    }

    /// Merges the page at `level` that has `key` with a neighbour; whether the parent has become small.
    fn merge_at(
        &self,
        tree: &BwTree,
        level: u32,
        key: &[u8],
        lock: &Maintenance<'_>,
        guard: &Guard,
    ) -> Result<bool> {
        let Some((parent, _)) = self.inner_at(tree, level + 1, key, guard)? else { return Ok(false) };
        let node = Inner::new(parent.frame.base());
        if node.children() == 1 {
            if parent.pid == tree.root {
                self.collapse_root(tree, parent, guard)?;
                return Ok(false);
            }
            return Ok(true);
        }
        let index = node.find(key);
        let left = if index > 0 { index - 1 } else { index };
        let (left_pid, right_pid) = (node.child(left), node.child(left + 1));
        let separator = node.separator(left + 1);
        if level == 0 {
            // Reads, and may split; then the parent is not this one any more, and the next time is soon enough. What
            // cannot be read stays as it is; who needs it is told.
            let both = [left_pid, right_pid].map(|pid| self.mergeable(tree, pid, guard));
            if !both.iter().all(|leaf| matches!(leaf, Ok(Some(_)))) {
                return Ok(false);
            }
        }
        let shape = self.shape.lock();
        if !self.are_siblings(tree, level + 1, &separator, left_pid, right_pid, guard)? {
            return Ok(false);
        }
        let merged = if level == 0 {
            self.merge_leaves(tree, left_pid, right_pid, lock, guard)
        } else {
            self.merge_inner(tree, left_pid, right_pid, guard)
        };
        if !merged {
            return Ok(false);
        }
        self.drop_separator(tree, level + 1, &separator, right_pid, guard)?;
        self.cache.retire_pid(right_pid, guard);
        // What follows may fold and split a leaf, whose separator may split an inner node.
        drop(shape);
        let left = node.children() - 1;
        if left == 1 && parent.pid == tree.root {
            if let (_, PageState::Resident(frame)) = self.cache.load(tree.root, guard)
                && frame.kind() == FrameKind::Inner
                && Inner::new(frame.base()).children() == 1
            {
                self.collapse_root(tree, At { pid: tree.root, frame }, guard)?;
            }
            return Ok(false);
        }
        Ok(left <= (self.options.fanout / 4).max(1))
    }

    /// Whether two pages are next to each other under one parent, with `separator` between them.
    fn are_siblings(
        &self,
        tree: &BwTree,
        level: u32,
        separator: &[u8],
        left_pid: u32,
        right_pid: u32,
        guard: &Guard,
    ) -> Result<bool> {
        let Some((parent, _)) = self.inner_at(tree, level, separator, guard)? else { return Ok(false) };
        let node = Inner::new(parent.frame.base());
        let right = node.find(separator);
        let posted = right > 0 && node.separator_is(right, separator);
        Ok(posted && node.child(right) == right_pid && node.child(right - 1) == left_pid)
    }

    /// The frame of a leaf, faulted in if that is cheap; `None`: it is no leaf that can be merged.
    fn mergeable<'g>(&self, tree: &BwTree, pid: u32, guard: &'g Guard) -> Result<Option<FrameRef<'g>>> {
        // One that is being written all the time is not for now.
        for _ in 0..4 {
            match self.cache.load(pid, guard).1 {
                PageState::Disk(image) if image.bytes() > self.options.leaf as u64 => return Ok(None),
                PageState::Disk(image) => {
                    let bytes = self.cache.read_leaf(image)?;
                    let low = Leaf::new(&bytes).low();
                    if !self.is_in_place(tree, pid, low, &bytes, guard)? {
                        // Moved on, or damaged, which is for those to say who need it.
                        return Ok(None);
                    }
                    self.cache.fault_in(pid, tree.id, image, (&bytes, false), guard);
                }
                // Folded first, so that its size is what is in it.
                PageState::Resident(frame) if frame.overlay() || frame.used().0 > 0 => {
                    if frame.undecided(frame.used().0).next().is_some() {
                        return Ok(None);
                    }
                    self.consolidate(tree, At { pid, frame }, super::consolidate::Fold::Whole, guard)?;
                }
                PageState::Resident(frame) => return Ok(Some(frame)),
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    fn merge_leaves(
        &self,
        tree: &BwTree,
        left_pid: u32,
        right_pid: u32,
        _lock: &Maintenance<'_>,
        guard: &Guard,
    ) -> bool {
        let resident = |pid| match self.cache.load(pid, guard).1 {
            PageState::Resident(frame) if frame.kind() == FrameKind::Leaf && !frame.overlay() => Some(frame),
            _ => None,
        };
        let (Some(left), Some(right)) = (resident(left_pid), resident(right_pid)) else { return false };
        let payload = |frame: FrameRef<'_>| Leaf::new(frame.base()).payload();
        if payload(left) + payload(right) > self.options.leaf / 4 * 3 {
            return false;
        }
        if !self.claim(left_pid, right_pid, right) {
            return false;
        }
        let used = right.freeze();
        let right_leaf = Leaf::new(right.base());
        loop {
            // Changed its nature: the root, split.
            let Some(left) = resident(left_pid) else { return self.unclaim(right_pid, right) };
            let left_leaf = Leaf::new(left.base());
            if left_leaf.high() != Some(right_leaf.low()) {
                return self.unclaim(right_pid, right);
            }
            let left_used = left.freeze();
            let mut both = gather(left, left_used, None);
            let mut from_right = gather(right, used, None);
            if !both.carried.is_empty() || !from_right.carried.is_empty() {
                // Transactions that are under way; the next time is soon enough.
                return self.unclaim(right_pid, right);
            }
            both.records.append(from_right.records);
            both.dropped.append(&mut from_right.dropped);
            let base = both.records.build(left_leaf.low(), right_leaf.high());
            let new = NewFrame {
                kind: FrameKind::Leaf,
                overlay: false,
                tree: tree.id,
                base: &base,
                disk: left.disk(),
                first_lsn: Lsn(0),
                newest: Lsn::max(left.newest(), right.newest()).max(both.lsns.1).max(from_right.lsns.1),
                right: right.right(),
            };
            if self.cache.replace(left_pid, left, self.cache.frame(new, guard), guard) {
                self.cache.kill_all(&both.dropped);
                break;
            }
        }
        self.redirect(left_pid, right_pid, right, guard);
        self.cache.kill(right.disk());
        add(&self.counters.node_merges);
        true
    }

    fn merge_inner(&self, tree: &BwTree, left_pid: u32, right_pid: u32, guard: &Guard) -> bool {
        let resident = |pid| match self.cache.load(pid, guard).1 {
            PageState::Resident(frame) if frame.kind() == FrameKind::Inner => Some(frame),
            _ => None,
        };
        let (Some(left), Some(right)) = (resident(left_pid), resident(right_pid)) else { return false };
        let right_node = Inner::new(right.base());
        if Inner::new(left.base()).children() + right_node.children() > self.options.fanout / 4 * 3 + 1 {
            return false;
        }
        if !self.claim(left_pid, right_pid, right) {
            return false;
        }
        loop {
            let Some(left) = resident(left_pid) else { return self.unclaim(right_pid, right) };
            let left_node = Inner::new(left.base());
            if left_node.high() != Some(right_node.low()) {
                return self.unclaim(right_pid, right);
            }
            let mut children = left_node.to_children();
            children.extend(right_node.to_children());
            let node = build_owned(left_node, &children, right_node.high(), right_node.right());
            if self.cache.replace(left_pid, left, self.inner_frame(tree, &node, guard), guard) {
                break;
            }
        }
        self.redirect(left_pid, right_pid, right, guard);
        add(&self.counters.inner_merges);
        true
    }

    /// Makes the word of a page say that it is being merged; `false`: its frame was replaced meanwhile.
    fn claim(&self, left_pid: u32, right_pid: u32, right: FrameRef<'_>) -> bool {
        right.set_merge_into(left_pid);
        self.cache.table().swap(right_pid, Word::resident(right), Word::merging(right))
    }

    /// Gives a claimed page up; always `false`.
    fn unclaim(&self, right_pid: u32, right: FrameRef<'_>) -> bool {
        let back = self.cache.table().swap(right_pid, Word::merging(right), Word::resident(right));
        debug_assert!(back, "T4: nobody else changes the word of a claimed page");
        false
    }

    fn redirect(&self, left_pid: u32, right_pid: u32, right: FrameRef<'_>, guard: &Guard) {
        let done = self.cache.table().swap(right_pid, Word::merging(right), Word::redirect(left_pid));
        debug_assert!(done, "T4: nobody else changes the word of a claimed page");
        self.cache.retire(right, guard);
    }

    /// Takes a separator and the page behind it out of its parent.
    fn drop_separator(
        &self,
        tree: &BwTree,
        level: u32,
        separator: &[u8],
        pid: u32,
        guard: &Guard,
    ) -> Result<()> {
        loop {
            let Some((at, word)) = self.inner_at(tree, level, separator, guard)? else { return Ok(()) };
            let node = Inner::new(at.frame.base());
            let index = node.find(separator);
            if node.child(index) != pid || word != Word::resident(at.frame) {
                debug_assert!(false, "T4: the separator is in its parent until the merge takes it out");
                return Ok(());
            }
            let mut children = node.to_children();
            children.remove(index);
            let new = build_owned(node, &children, node.high(), node.right());
            if self.cache.replace(at.pid, at.frame, self.inner_frame(tree, &new, guard), guard) {
                return Ok(());
            }
        }
    }

    /// The root takes the place of its only child.
    fn collapse_root(&self, tree: &BwTree, root: At<'_>, guard: &Guard) -> Result<()> {
        let child_pid = Inner::new(root.frame.base()).child(0);
        let child = match self.cache.load(child_pid, guard).1 {
            PageState::Resident(frame) if frame.kind() == FrameKind::Inner => frame,
            PageState::Free | PageState::Merging(_) | PageState::Redirect(_) => return Ok(()),
            _ => match self.mergeable(tree, child_pid, guard)? {
                Some(frame) => frame,
                None => return Ok(()),
            },
        };
        if !self.claim(root.pid, child_pid, child) {
            return Ok(());
        }
        let whole = match child.kind() {
            FrameKind::Inner => Inner::new(child.base()).high().is_none(),
            FrameKind::Leaf => Leaf::new(child.base()).high().is_none(),
        };
        if !whole {
            // Split, and the separator is on its way into the root.
            self.unclaim(child_pid, child);
            return Ok(());
        }
        let mut dropped = Vec::new();
        let new = match child.kind() {
            FrameKind::Inner => self.inner_frame(tree, child.base(), guard),
            FrameKind::Leaf => {
                let used = child.freeze();
                let gathered = gather(child, used, None);
                if !gathered.carried.is_empty() {
                    self.unclaim(child_pid, child);
                    return Ok(());
                }
                dropped = gathered.dropped;
                let base = gathered.records.build(b"", None);
                let new = NewFrame {
                    kind: FrameKind::Leaf,
                    overlay: false,
                    tree: tree.id,
                    base: &base,
                    disk: child.disk(),
                    first_lsn: Lsn(0),
                    newest: child.newest().max(gathered.lsns.1),
                    right: 0,
                };
                self.cache.frame(new, guard)
            }
        };
        if !self.cache.replace(root.pid, root.frame, new, guard) {
            self.unclaim(child_pid, child);
            return Ok(());
        }
        self.cache.kill_all(&dropped);
        self.redirect(root.pid, child_pid, child, guard);
        self.cache.retire_pid(child_pid, guard);
        add(&self.counters.root_collapses);
        Ok(())
    }
}
