//! Goes through all leaves for a checkpoint; rebuilds the trees from one, and replays the redo tail on them.
//!
//! # How it works
//!
//! A step of the walk takes one node of the lowest inner level, as it was at one instant, under the
//! maintenance lock, and adds an entry for each of its leaves. A leaf that is split meanwhile is followed to
//! the right up to the next separator; one that is evicted is complete and has exactly the range between its
//! separators (T3). The entries of a step cover the node's range without gaps, and the next step starts where
//! that ends, so the directory is a partition of the key space whatever is split meanwhile. Pages are merged
//! only between checkpoints.
//!
//! At open the entries come back in order; each level's nodes are built as they fill up. Then the redo tail
//! is replayed: each change is published as a delta, on an overlay where the leaf is on disk, so that no leaf
//! is read.

use super::catalog::{BwTree, DEFAULT_ID, DEFAULT_TREE};
use super::consolidate::Fold;
use super::descent::At;
use super::inner::{self, Inner};
use super::leaf::{BigRef, Leaf, LeafBuilder, fingerprint};
use super::length::Length;
use super::redo::Record;
use super::{Forest, add};
use crate::base::Lsn;
use crate::error::{Error, Result};
use crate::pagecache::{
    CheckpointBuilder, DeltaKind, FrameKind, ImageAddr, Item, Listing, NewDelta, NewFrame, PageState,
    Published, Word,
};
use crossbeam_epoch::Guard;
use parking_lot::MutexGuard;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Records after which it is worth while to make memory ready beside the replay of more.
const MANY: u64 = 50_000;
/// How often it is seen whether more is needed.
const LOOK_AGAIN: Duration = Duration::from_micros(300);

/// Says that something has ended, be it by a panic.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        // Relaxed: what follows waits for the thread that sees it.
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Forest {
    /// Makes a checkpoint. `keep_tail`: replay may start where it started before.
    ///
    /// # Errors
    /// What reading or writing failed with; then the checkpoint before stays.
    pub(super) fn checkpoint(&self, keep_tail: bool, _alone: &MutexGuard<'_, ()>) -> Result<()> {
        let mut builder = self.cache.begin_checkpoint(keep_tail)?;
        let (trees, next_tree) = self.catalog.snapshot();
        if self.waits_for_dropped() {
            // Dropped since that was asked last.
            self.cache.abandon_checkpoint(builder);
            return Ok(());
        }
        let id_floor = self.id_floor();
        match self.list(&mut builder, &trees) {
            Ok(()) => self.cache.finish_checkpoint(builder, next_tree, id_floor),
            Err(error) => {
                self.cache.abandon_checkpoint(builder);
                Err(error)
            }
        }
    }

    fn list(&self, builder: &mut CheckpointBuilder, trees: &[Arc<BwTree>]) -> Result<()> {
        let mut pace = Pace { syncs: self.log().syncs(), left: MOST_PAUSES };
        for tree in trees {
            builder.tree(tree.id, tree.is_big(), &tree.name);
            let mut low = Some(Vec::new());
            while let Some(from) = low {
                self.give_way(&mut pace);
                self.make_ready();
                low = match self.list_step(builder, tree, &from) {
                    Ok(next) => next,
                    // Dropped meanwhile, which is in the redo tail: what is behind what was listed of it counts no more. But
                    // replay may come to changes there before it comes to that.
                    Err(Error::CollectionNotFound(_)) => {
                        let rest = LeafBuilder::new(&from, None, 0, 0).finish();
                        self.cache.add_orphan(builder, tree.id, &from, &rest)?;
                        None
                    }
                    Err(error) => return Err(error),
                };
            }
        }
        Ok(())
    }

    /// Between two steps: when others are waiting for syncs, which write what a step has written as well, lets some of
    /// them go first.
    fn give_way(&self, pace: &mut Pace) {
        let syncs = self.log().syncs();
        let others = syncs != std::mem::replace(&mut pace.syncs, syncs);
        if others && pace.left > 0 && self.has_maintenance_thread() {
            pace.left -= 1;
            std::thread::sleep(PAUSE);
        }
    }

    /// Lists the leaves of one lowest inner node from `from` on; where the next step starts.
    fn list_step(
        &self,
        builder: &mut CheckpointBuilder,
        tree: &BwTree,
        from: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        let _lock = self.cache.maintain();
        let guard = crossbeam_epoch::pin();
        tree.check()?;
        let mut listing = builder.listing();
        let Some((at, _)) = self.inner_at(tree, 1, from, &guard)? else {
            let end = self.list_leaf(&mut listing, tree, tree.root, (from, None), &guard)?;
            self.cache.write_listed(&mut listing, &guard)?;
            return Ok(end);
        };
        let node = Inner::new(at.frame.base());
        let mut next = from.to_vec();
        for i in node.find(from)..node.children() {
            let high = node.end(i);
            // Up to the next separator, however often the leaf was split since; without one, to the end of the tree.
            loop {
                let end = high.as_deref();
                let reached = self.list_leaf(&mut listing, tree, node.child(i), (&next, end), &guard)?;
                if reached.is_none() || listing.is_full() {
                    self.cache.write_listed(&mut listing, &guard)?;
                }
                match reached {
                    None => return Ok(None),
                    Some(reached) => next = reached,
                }
                if high.as_ref().is_some_and(|high| next >= *high) {
                    break;
                }
            }
        }
        self.cache.write_listed(&mut listing, &guard)?;
        Ok(node.high().map(|_| next))
    }

    /// Lists the leaf that has `low`, starting at `pid`; its high fence. `high`: the next separator.
    fn list_leaf<'g>(
        &self,
        listing: &mut Listing<'_, 'g>,
        tree: &BwTree,
        pid: u32,
        (low, high): (&[u8], Option<&[u8]>),
        guard: &'g Guard,
    ) -> Result<Option<Vec<u8>>> {
        if let (word, PageState::Disk(image)) = self.cache.load(pid, guard) {
            // Complete, and its range is that between the separators, unless it was split off and evicted
            // since the node was loaded; then the walk from the root knows better. If it is still on disk
            // after the separators were read they are of this image: what is faulted in stays, as only the
            // holder of the lock evicts.
            if let Some((at, _)) = self.inner_at(tree, 1, low, guard)? {
                let node = Inner::new(at.frame.base());
                let index = node.find(low);
                let same = node.child(index) == pid && node.separator(index) == low;
                if same && self.cache.load(pid, guard).0 == word {
                    let end = node.end(index);
                    listing.add(low, image);
                    return Ok(end);
                }
            } else if pid == tree.root {
                listing.add(low, image);
                return Ok(None);
            }
        }
        let visible = self.cache.visible();
        let at = self.leaf(tree, low, guard)?;
        let leaf = at.leaf();
        debug_assert_eq!(leaf.low(), low, "T1: the listed leaves have no gaps");
        let within = high.is_none_or(|high| leaf.high().is_some_and(|end| end <= high));
        debug_assert!(within, "T1: leaf {} of tree {} ends behind the next separator", at.pid, tree.id);
        match self.cache.list_resident(listing, low, (at.pid, at.frame), visible) {
            Err(_) if self.log_again(tree, at, guard)? => listing.add(low, at.frame.disk()),
            listed => listed?,
        }
        // How large an overlay's image is nobody knows without it.
        if !at.frame.overlay() {
            self.note_if_sparse(tree, leaf, leaf.payload());
        }
        Ok(leaf.high().map(<[u8]>::to_vec))
    }

    /// Builds the trees of the durable checkpoint; no leaf is read.
    ///
    /// # Errors
    /// `Corruption` when the directory is not one, or what reading failed with.
    pub(super) fn load_directory(&self) -> Result<Lsn> {
        let mut builder: Option<TreeBuilder<'_>> = None;
        let mut captured = Lsn(0);
        if let Some(root) = self.cache.load_root()? {
            captured = root.captured;
            self.catalog.reserve_ids(root.next_tree);
            self.cache.read_directory(&root, &mut |item| {
                match item {
                    Item::Tree(id, big, name) => {
                        let known = self.catalog.get(&name).is_some() || self.catalog.get_id(id).is_some();
                        let last = builder.as_ref().is_some_and(|last| last.id == id || last.name == name);
                        if known || last || id == 0 || id >= root.next_tree {
                            return Err(malformed("a tree that is there already, or was never created"));
                        }
                        let next = TreeBuilder::new(self, id, big, name);
                        if let Some(done) = builder.replace(next) {
                            done.finish()?;
                        }
                    }
                    Item::Leaf(low, image) => {
                        let Some(builder) = &mut builder else { return Err(malformed("a leaf of no tree")) };
                        builder.leaf(low, image)?;
                    }
                    Item::End => {
                        if let Some(done) = builder.take() {
                            done.finish()?;
                        }
                    }
                }
                Ok(())
            })?;
        }
        if self.catalog.get_id(DEFAULT_ID).is_none() {
            let tree = self.new_tree(DEFAULT_ID, DEFAULT_TREE)?;
            self.catalog.insert(tree);
        }
        Ok(captured)
    }

    /// A tree with an empty root leaf.
    pub(super) fn new_tree(&self, id: u32, name: &[u8]) -> Result<BwTree> {
        let guard = crossbeam_epoch::pin();
        let root = self.cache.allocate(self.empty_leaf(id, &guard))?;
        Ok(BwTree::new(id, name, root, false, Length::zero()))
    }

    fn empty_leaf<'g>(&self, tree: u32, guard: &'g Guard) -> crate::pagecache::FrameRef<'g> {
        let base = LeafBuilder::new(b"", None, 0, 0).finish();
        let new = NewFrame {
            kind: FrameKind::Leaf,
            overlay: false,
            tree,
            base: &base,
            disk: ImageAddr::NONE,
            first_lsn: Lsn::MAX,
            newest: Lsn(0),
            right: 0,
        };
        self.cache.frame(new, guard)
    }

    /// Applies the redo tail; `captured` is the LSN of the directory. Whether the file was new.
    ///
    /// # Errors
    /// As for [`PageCache::replay`](crate::pagecache::PageCache::replay).
    pub(super) fn replay_all(&self, captured: Lsn) -> Result<bool> {
        let ended = AtomicBool::new(false);
        let make_ready = || {
            // Relaxed: whoever is late makes a region ready for nothing.
            while !ended.load(Ordering::Relaxed) {
                if self.cache.grows() {
                    self.cache.make_ready();
                }
                std::thread::sleep(LOOK_AGAIN);
            }
        };
        std::thread::scope(|scope| {
            let _end = End(&ended);
            let mut records = 0;
            self.cache.replay(&mut |lsn, kind, body: &[u8]| {
                records += 1;
                if records == MANY {
                    // There is no maintenance thread yet. Without this one it takes a little longer.
                    let helper = std::thread::Builder::new().name("sled-open".into());
                    let _ = helper.spawn_scoped(scope, make_ready);
                }
                self.replay(lsn, kind, body, captured)
            })
        })
    }

    /// Applies a redo record; `false`: it refers to a big value that never reached the medium.
    ///
    /// # Errors
    /// `Unsupported` for a record of an unknown kind, `Corruption` for a malformed one, what writing failed
    /// with.
    pub(super) fn replay(&self, lsn: Lsn, kind: u8, body: &[u8], captured: Lsn) -> Result<bool> {
        if kind == super::redo::kind::NOTE {
            self.take_lengths(lsn, body);
        }
        let Some(records) = super::redo::decode(kind, body) else {
            log::error!("redo record of kind {kind} at LSN {} cannot be read", lsn.0);
            let known = (1..=super::redo::kind::TRANSACTION).contains(&kind);
            return Err(if known {
                Error::Corruption { at: None, bt: () }
            } else {
                Error::Unsupported(format!("redo record of kind {kind}: written by a later version?"))
            });
        };
        // All or nothing.
        for record in &records {
            if let Record::PutBig { big, nonce, .. } = record
                && !self.cache.adopt_big(big.image, *nonce)?
            {
                return Ok(false);
            }
        }
        for record in &records {
            self.replay_record(lsn, record, captured)?;
        }
        Ok(true)
    }

    fn replay_record(&self, lsn: Lsn, record: &Record<'_>, captured: Lsn) -> Result<()> {
        match *record {
            Record::Put { tree, key, value } => self.replay_change(tree, key, DeltaKind::Put, value, lsn)?,
            Record::Remove { tree, key } => self.replay_change(tree, key, DeltaKind::Remove, &[], lsn)?,
            Record::PutBig { tree, key, big, .. } => {
                // Of a dropped tree otherwise, and nothing refers to it.
                if let Some(found) = self.catalog.get_id(tree) {
                    found.set_big();
                    if lsn >= captured {
                        self.cache.revive_big(big.image);
                    }
                }
                self.replay_change(tree, key, DeltaKind::PutBig, &big.encode(), lsn)?;
            }
            Record::Create { tree, name } => {
                // A smaller id than the directory's next, and not in it: dropped before the checkpoint.
                if tree >= self.catalog.next_id() {
                    let new = self.new_tree(tree, name)?;
                    self.catalog.insert(new);
                }
            }
            Record::Drop { tree } => {
                if let Some(found) = self.catalog.get_id(tree) {
                    self.unfreed.lock().insert(tree);
                    self.catalog.remove(&found.name, |_| Ok(()))?;
                    self.note_dropped(found);
                }
            }
            Record::Ids { floor } => self.raise_id_floor(floor),
        }
        Ok(())
    }

    /// Publishes a change without reading its leaf.
    fn replay_change(&self, id: u32, key: &[u8], kind: DeltaKind, value: &[u8], lsn: Lsn) -> Result<()> {
        let Some(tree) = self.catalog.get_id(id) else { return Ok(()) };
        // Whether the key was there is not looked for.
        tree.length.lose();
        let fingerprint = fingerprint(key);
        loop {
            let guard = crossbeam_epoch::pin();
            let at = self.overlay_leaf(&tree, key, &guard)?;
            at.frame.touch();
            let (used, frozen) = at.frame.used();
            if frozen {
                self.consolidate(&tree, at, Fold::Blind, &guard)?;
                drop(guard);
                self.make_room()?;
                continue;
            }
            let delta = NewDelta::new(self.cache.arena(), kind, key, value);
            delta.set_lsn(lsn);
            if let (Published::Installed, _) = at.frame.publish(used, fingerprint, delta) {
                return Ok(());
            }
        }
    }

    /// The leaf of a key; an evicted one becomes an overlay, with its fences from the parent.
    fn overlay_leaf<'g>(&self, tree: &BwTree, key: &[u8], guard: &'g Guard) -> Result<At<'g>> {
        let (pid, low, high) = match self.inner_at(tree, 1, key, guard)? {
            None => (tree.root, Vec::new(), None),
            Some((at, _)) => {
                let node = Inner::new(at.frame.base());
                let index = node.find(key);
                let high = node.end(index);
                (node.child(index), node.separator(index), high)
            }
        };
        if let (word, PageState::Disk(image)) = self.cache.load(pid, guard) {
            let base = LeafBuilder::new(&low, high.as_deref(), 0, 0).finish();
            let new = NewFrame {
                kind: FrameKind::Leaf,
                overlay: true,
                tree: tree.id,
                base: &base,
                disk: image,
                first_lsn: Lsn::MAX,
                newest: Lsn(0),
                right: 0,
            };
            let frame = self.cache.frame(new, guard);
            if self.cache.table().swap(pid, word, Word::resident(frame)) {
                return Ok(At { pid, frame });
            }
            self.cache.discard(frame);
        }
        self.leaf(tree, key, guard)
    }
}

fn malformed(what: &str) -> Error {
    log::error!("malformed leaf directory: {what}");
    Error::Corruption { at: None, bt: () }
}

/// How long a checkpoint steps aside for those who flush.
const PAUSE: Duration = Duration::from_millis(4);
/// How often it does: about a second in all.
const MOST_PAUSES: u32 = 250;

/// How a checkpoint gives way.
struct Pace {
    /// Syncs when the last step ended.
    syncs: u64,
    /// Pauses that are left.
    left: u32,
}

/// Smallest keys and PIDs of a node's children.
type Children = Vec<(Vec<u8>, u32)>;

/// Builds a tree from its directory entries, level by level as nodes fill up.
struct TreeBuilder<'a> {
    forest: &'a Forest,
    id: u32,
    big: bool,
    name: Vec<u8>,
    previous: Option<Vec<u8>>,
    /// Children collected for the next node of each level, lowest first.
    levels: Vec<Children>,
    /// The last node built of each level, to learn its right sibling.
    waiting: Vec<Option<(u32, Children)>>,
}

impl<'a> TreeBuilder<'a> {
    fn new(forest: &'a Forest, id: u32, big: bool, name: Vec<u8>) -> TreeBuilder<'a> {
        let (levels, waiting) = (vec![Vec::new()], vec![None]);
        TreeBuilder { forest, id, big, name, previous: None, levels, waiting }
    }

    fn leaf(&mut self, low: Vec<u8>, image: ImageAddr) -> Result<()> {
        let ascends = match &self.previous {
            None => low.is_empty(),
            Some(previous) => *previous < low,
        };
        if !ascends {
            return Err(malformed("leaves not in order"));
        }
        if !image.is_some() && !low.is_empty() {
            return Err(malformed("a leaf without an image"));
        }
        let pid = if image.is_some() {
            if !self.forest.cache.revive_leaf(image) {
                return Err(self
                    .forest
                    .cache
                    .damaged(image, "a leaf outside of the page segments, or in two places"));
            }
            let pid = self.forest.cache.allocate_empty()?;
            self.forest.cache.table().set(pid, Word::disk(image));
            pid
        } else {
            let guard = crossbeam_epoch::pin();
            self.forest.cache.allocate(self.forest.empty_leaf(self.id, &guard))?
        };
        self.previous = Some(low.clone());
        self.add(0, low, pid)
    }

    /// Adds a child to the node being collected above `level`.
    fn add(&mut self, level: usize, low: Vec<u8>, pid: u32) -> Result<()> {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
            self.waiting.push(None);
        }
        self.levels[level].push((low, pid));
        let full = (self.forest.options.fanout / 4 * 3).max(2);
        if self.levels[level].len() > full {
            // One more is kept, so that no node is left without children.
            let rest = self.levels[level].split_off(full);
            let children = std::mem::replace(&mut self.levels[level], rest);
            self.node(level, children)?;
        }
        Ok(())
    }

    /// A node is complete; the one before it is built now that its right sibling is known.
    fn node(&mut self, level: usize, children: Children) -> Result<()> {
        let pid = self.forest.cache.allocate_empty()?;
        let low = children[0].0.clone();
        if let Some((before, its)) = self.waiting[level].replace((pid, children)) {
            self.set_node(level, before, &its, Some(&low), pid);
        }
        self.add(level + 1, low, pid)
    }

    fn set_node(&self, level: usize, pid: u32, children: &[(Vec<u8>, u32)], high: Option<&[u8]>, right: u32) {
        let guard = crossbeam_epoch::pin();
        let children: Vec<(&[u8], u32)> = children.iter().map(|(key, pid)| (key.as_slice(), *pid)).collect();
        let level = u32::try_from(level + 1).expect("a tree has few levels");
        let node = inner::build(level, &children, high, right);
        let new = NewFrame {
            kind: FrameKind::Inner,
            overlay: false,
            tree: self.id,
            base: &node,
            disk: ImageAddr::NONE,
            first_lsn: Lsn::MAX,
            newest: Lsn(0),
            right: 0,
        };
        self.forest.cache.table().set(pid, Word::resident(self.forest.cache.frame(new, &guard)));
    }

    /// No more leaves: builds what is left of each level up to the root.
    fn finish(mut self) -> Result<()> {
        if self.previous.is_none() {
            return Err(malformed("a tree without leaves"));
        }
        let mut level = 0;
        let root = loop {
            let rest = std::mem::take(&mut self.levels[level]);
            if self.waiting[level].is_none() && rest.len() == 1 {
                break rest[0].1;
            }
            if !rest.is_empty() {
                self.node(level, rest)?;
            }
            if let Some((pid, children)) = self.waiting[level].take() {
                self.set_node(level, pid, &children, None, 0);
            }
            level += 1;
        };
        add(&self.forest.counters.trees_loaded);
        self.forest.catalog.insert(BwTree::new(self.id, &self.name, root, self.big, Length::unknown()));
        Ok(())
    }
}

/// The references to big values in a leaf's records.
pub(super) fn big_refs(leaf: Leaf<'_>) -> impl Iterator<Item = BigRef> + '_ {
    (0..leaf.len()).filter_map(move |i| match leaf.record(i).1 {
        super::leaf::Value::Big(bytes) => Some(BigRef::decode(bytes)),
        _ => None,
    })
}
