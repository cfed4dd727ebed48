//! Walks every tree and checks what the invariants say.

use super::descent::At;
use super::inner::Inner;
use super::leaf::Leaf;
use super::{BwTree, Forest};
use crate::error::{Error, Result};
use crate::pagecache::{FrameKind, PageState, Slot};

impl Forest {
    /// Checks T1 and T2 on every leaf of every tree, reading those that are evicted. For a tree that nobody
    /// writes to meanwhile.
    ///
    /// # Errors
    /// `ReportableBug` with what is wrong, or what reading failed with.
    pub fn check_invariants(&self) -> Result<()> {
        // No node is merged meanwhile, so that a fence stays one.
        let _no_merges = self.checkpointing.lock();
        for tree in self.catalog.list() {
            match self.check_tree(&tree) {
                Ok(()) | Err(Error::CollectionNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn check_tree(&self, tree: &BwTree) -> Result<()> {
        let wrong = |what: String| Err(Error::ReportableBug(format!("tree {:?}: {what}", tree.name)));
        self.check_node(tree, tree.root, b"", None)?;
        let mut low = Vec::new();
        let mut keys = 0;
        loop {
            let guard = crossbeam_epoch::pin();
            tree.check()?;
            let at = self.whole_leaf(tree, &guard, |guard| self.leaf(tree, &low, guard))?;
            if at.leaf().low() != low {
                return wrong(format!("T1: a leaf starts at {:?}, not at {low:?}", at.leaf().low()));
            }
            if let Err(malformed) = Leaf::validate(at.frame.base()) {
                return wrong(format!("T2: {}", malformed.0));
            }
            keys += self.check_deltas(tree, at)?;
            match at.leaf().high() {
                Some(high) if high <= &low[..] => return wrong("T1: fences not in order".into()),
                Some(high) => low = high.to_vec(),
                None => break,
            }
            drop(guard);
            self.make_room()?;
        }
        if let Some(known) = tree.length.get().filter(|known| *known != keys as u64) {
            return wrong(format!("T8: {keys} keys by walking, {known} should be there"));
        }
        let counted = self.count(tree)?;
        if counted != keys {
            return wrong(format!("{keys} keys by walking, {counted} by counting"));
        }
        Ok(())
    }

    /// Number of keys of a leaf, after checking that the deltas belong to it.
    pub(super) fn check_deltas(&self, tree: &BwTree, at: At<'_>) -> Result<usize> {
        let (used, _) = at.frame.used();
        let covers = |key| at.leaf().covers(key);
        for i in 0..used {
            let within = match at.frame.slot(i) {
                Slot::Change(delta) => covers(delta.key),
                Slot::Run(run) => (0..run.len()).all(|i| covers(run.intent(i).1)),
            };
            if !within {
                let what = format!("tree {:?}: T1: delta {i} is outside of its leaf", tree.name);
                return Err(Error::ReportableBug(what));
            }
        }
        let mut merged = super::delta::Merged::forward(at.frame, &[]);
        let mut keys = 0;
        let mut last: Option<Vec<u8>> = None;
        while let Some(entry) = merged.next() {
            if last.as_ref().is_some_and(|last| *last >= entry.key()) {
                return Err(Error::ReportableBug(format!("tree {:?}: T2: keys not in order", tree.name)));
            }
            last = Some(entry.key());
            keys += usize::from(entry.exists());
        }
        Ok(keys)
    }

    /// Checks that inner nodes have the ranges that their parents say.
    fn check_node(&self, tree: &BwTree, pid: u32, low: &[u8], high: Option<&[u8]>) -> Result<()> {
        let guard = crossbeam_epoch::pin();
        let PageState::Resident(frame) = self.cache.load(pid, &guard).1 else { return Ok(()) };
        if frame.kind() != FrameKind::Inner {
            return Ok(());
        }
        let node = Inner::new(frame.base());
        if node.low() != low || node.high() != high {
            let what = format!("tree {:?}: T1: node {pid} has another range than its parent says", tree.name);
            return Err(Error::ReportableBug(what));
        }
        for i in 0..node.children() {
            let end = node.end(i);
            self.check_node(tree, node.child(i), &node.separator(i), end.as_deref())?;
        }
        Ok(())
    }
}
