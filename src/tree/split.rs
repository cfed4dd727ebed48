//! Posts separators to parents, and splits inner nodes.
//!
//! # Concurrency
//!
//! Posting is idempotent and done by the splitter and by whoever walks to the right. A post that comes late, after its
//! page was merged away again, must do nothing: the parent is loaded first, then it is checked that the page
//! still stands for itself, then the parent is swapped. A merge starts only while the separator is in the parent (T4),
//! so if the page stops standing for itself after the check, the parent has been swapped since it was loaded.

use super::inner::{Inner, build};
use super::{BwTree, Forest, add};
use crate::error::Result;
use crate::pagecache::{PageState, Word};
use crossbeam_epoch::Guard;

impl Forest {
    /// Sees to it that the node at `level` has `separator`, with `right` behind it.
    ///
    /// # Errors
    /// `CollectionNotFound`, `Unsupported` when PIDs are used up.
    pub(super) fn post(
        &self,
        tree: &BwTree,
        level: u32,
        separator: &[u8],
        right: u32,
        guard: &Guard,
    ) -> Result<()> {
        loop {
            let Some((at, word)) = self.inner_at(tree, level, separator, guard)? else {
                // The root was a leaf when this page was split off; its separator went in with the root's.
                return Ok(());
            };
            let node = Inner::new(at.frame.base());
            let index = node.find(separator);
            if node.child(index) == right || (index > 0 && node.separator_is(index, separator)) {
                return Ok(());
            }
            if !matches!(self.cache.load(right, guard).1, PageState::Resident(_) | PageState::Disk(_)) {
                return Ok(());
            }
            if word != Word::resident(at.frame) {
                // Being merged; a few instructions away from being a redirect.
                std::thread::yield_now();
                continue;
            }
            if node.children() < self.options.fanout {
                let new = self.inner_frame(tree, &node.insert(index + 1, separator, right), guard);
                if self.cache.replace(at.pid, at.frame, new, guard) {
                    return Ok(());
                }
                continue;
            }
            let mut children = node.to_children();
            children.insert(index + 1, (separator.to_vec(), right));
            if self.split_inner(tree, at.pid, node, &children, word, guard)? {
                return Ok(());
            }
        }
    }

    /// Replaces an inner node by two with `children`; `false`: somebody else replaced it.
    fn split_inner(
        &self,
        tree: &BwTree,
        pid: u32,
        node: Inner<'_>,
        children: &[(Vec<u8>, u32)],
        word: Word,
        guard: &Guard,
    ) -> Result<bool> {
        let shape = self.shape.lock();
        // Ascending keys leave full nodes behind.
        let appended = node.high().is_none() && children.last().is_some_and(|(key, _)| !node.has(key));
        let cut = if appended { children.len() - 2 } else { children.len() / 2 }.max(1);
        let (left, right) = children.split_at(cut);
        let separator = &right[0].0;
        let right_node = build_owned(node, right, node.high(), node.right());
        let right_pid = self.cache.allocate(self.inner_frame(tree, &right_node, guard))?;
        let old = match self.cache.load(pid, guard) {
            (current, PageState::Resident(frame)) if current == word => frame,
            _ => {
                self.uninstall(right_pid, guard);
                return Ok(false);
            }
        };
        if pid != tree.root {
            let left_node = build_owned(node, left, Some(separator), right_pid);
            if !self.cache.replace(pid, old, self.inner_frame(tree, &left_node, guard), guard) {
                self.uninstall(right_pid, guard);
                return Ok(false);
            }
            add(&self.counters.inner_splits);
            drop(shape);
            self.post(tree, node.level() + 1, separator, right_pid, guard)?;
            return Ok(true);
        }
        let left_node = build_owned(node, left, Some(separator), right_pid);
        let left_pid = match self.cache.allocate(self.inner_frame(tree, &left_node, guard)) {
            Ok(left_pid) => left_pid,
            Err(error) => {
                self.uninstall(right_pid, guard);
                return Err(error);
            }
        };
        let both = [(&b""[..], left_pid), (separator.as_slice(), right_pid)];
        let root = self.inner_frame(tree, &build(node.level() + 1, &both, None, 0), guard);
        if !self.cache.replace(pid, old, root, guard) {
            self.uninstall(left_pid, guard);
            self.uninstall(right_pid, guard);
            return Ok(false);
        }
        add(&self.counters.root_splits);
        Ok(true)
    }
}

/// A node of the same level with other children.
pub(super) fn build_owned(
    like: Inner<'_>,
    children: &[(Vec<u8>, u32)],
    high: Option<&[u8]>,
    right: u32,
) -> Vec<u8> {
    let children: Vec<(&[u8], u32)> = children.iter().map(|(key, pid)| (key.as_slice(), *pid)).collect();
    build(like.level(), &children, high, right)
}
