//! Copies what can be read of a damaged database, and says what cannot.
//!
//! # How it works
//!
//! A database that opens is copied tree by tree; a leaf that cannot be read costs its keys, but for those that were
//! changed since the last checkpoint.
//!
//! Of one that does not open, [`Remains`] has every whole image and redo block. While the superblock and the directory
//! are whole, the directory says which images count. Otherwise images are ordered by what they hold, and the newest one
//! of a range counts: it is the right one, unless that was damaged and an older one is still there. Then the changes of
//! the redo stream are made on top. A record that an image holds already is not: it could bring back an older value if
//! a later record is missing.

use super::copied::Copied;
use super::cursor::{Ended, Wanted, successor};
use super::fold::gather;
use super::leaf::{BigRef, Leaf, Value};
use super::redo::{self, Record};
use super::{BwTree, DEFAULT_TREE, Forest, catalog::DEFAULT_ID};
use crate::base::Lsn;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::ivec::IVec;
use crate::pagecache::{Decoder, FoundImage, Holds, ImageAddr, ImageKind, Item, PageState, Remains, Root};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Takes what was found.
pub trait Sink {
    /// There is a tree of this name.
    ///
    /// # Errors
    /// What creating it failed with.
    fn tree(&mut self, name: &[u8]) -> Result<()>;
    /// The tree of this name is gone.
    ///
    /// # Errors
    /// What dropping it failed with.
    fn drop_tree(&mut self, name: &[u8]) -> Result<()>;
    /// The key of the tree has this value, or none.
    ///
    /// # Errors
    /// What writing failed with.
    fn set(&mut self, tree: &[u8], key: &[u8], value: Option<&[u8]>) -> Result<()>;
    /// This is lost.
    fn lose(&mut self, damage: Damage);
}

/// Pairs copied at a time.
const STEP: usize = 256;

impl Forest {
    /// Copies all trees of a database that could be opened.
    ///
    /// # Errors
    /// What the sink returns.
    pub fn salvage(&self, sink: &mut dyn Sink) -> Result<()> {
        for tree in self.catalog.list() {
            sink.tree(&tree.name)?;
            self.salvage_tree(&tree, sink)?;
        }
        Ok(())
    }

    fn salvage_tree(&self, tree: &BwTree, sink: &mut dyn Sink) -> Result<()> {
        let (mut start, mut copied) = (Bound::Included(IVec::default()), Copied::default());
        let wanted = Wanted { bound: &Bound::Unbounded, backwards: false, most: STEP };
        loop {
            copied.clear();
            let step = self.copy(tree, &mut start, wanted, &mut copied);
            let mut reached = match &start {
                Bound::Included(key) => key.to_vec(),
                Bound::Excluded(key) => successor(key),
                Bound::Unbounded => unreachable!("no step upwards starts at the end"),
            };
            while let Some((key, value)) = copied.pair() {
                sink.set(&tree.name, &key, Some(&value))?;
                reached = successor(&key);
            }
            match step {
                Ok(Ended::More) => {}
                Ok(Ended::Done | Ended::End) => return Ok(()),
                Err(error) => match self.skip(tree, &reached, error, sink)? {
                    Some(next) => start = Bound::Included(IVec::from(next)),
                    None => return Ok(()),
                },
            }
            self.keep_up_reading();
        }
    }

    /// Says what is lost where `key` cannot be read, copies what changed there since the last checkpoint, and returns
    /// where to go on, which is behind the key.
    fn skip(&self, tree: &BwTree, key: &[u8], error: Error, sink: &mut dyn Sink) -> Result<Option<Vec<u8>>> {
        let guard = crossbeam_epoch::pin();
        let (pid, low, high) = self.child_of(tree, key, &guard)?;
        debug_assert!(high.as_ref().is_none_or(|high| key < high.as_slice()), "the child has the key");
        let state = self.cache.load(pid, &guard).1;
        let image = match state {
            PageState::Disk(image) => image,
            PageState::Resident(frame) | PageState::Merging(frame) => frame.disk(),
            _ => ImageAddr::NONE,
        };
        let damage = self.log().unreadable(image.offset(), image.bytes(), error)?;
        let mut damage = damage.of_keys(&tree.name, &low, high.as_deref());
        let end = match &damage.keys {
            Some((_, Some(end))) if **end > *key => Some(end.to_vec()),
            Some((_, None)) => None,
            // A leaf that ends before the next one begins: the keys between them are nowhere.
            _ => {
                damage.keys = Some((key.into(), high.as_deref().map(IVec::from)));
                high
            }
        };
        sink.lose(damage);
        if let PageState::Resident(frame) = state
            && frame.overlay()
        {
            for entry in gather(frame, frame.used().0, None).records.iter() {
                if entry.exists()
                    && let Ok(value) = self.copy_out(tree, &entry.key(), entry.value)
                {
                    sink.set(&tree.name, &entry.key(), Some(&value))?;
                }
            }
        }
        Ok(end)
    }
}

/// A range of keys, and the image that has them.
#[derive(Clone, Debug)]
struct Piece {
    high: Option<Vec<u8>>,
    /// The image and its nonce. Nothing: an empty leaf, or a damaged one.
    image: Option<(ImageAddr, u64)>,
    holds: Holds,
}

/// What is known of a tree.
#[derive(Debug, Default)]
struct Found {
    name: Vec<u8>,
    /// By low key.
    pieces: BTreeMap<Vec<u8>, Piece>,
}

impl Found {
    /// Gives those parts of a range to an image that no other has yet.
    fn paint(&mut self, low: &[u8], high: Option<&[u8]>, piece: &Piece) {
        let mut start = low.to_vec();
        // A piece that begins before and reaches into the range.
        if let Some((_, before)) = self.pieces.range(..=start.clone()).next_back() {
            match &before.high {
                None => return,
                Some(end) if *end > start => start.clone_from(end),
                Some(_) => {}
            }
        }
        while high.is_none_or(|high| start.as_slice() < high) {
            let next = self.pieces.range(start.clone()..).next();
            let next = next.map(|(low, piece)| (low.clone(), piece.high.clone()));
            let end = match &next {
                Some((low, _)) if high.is_none_or(|high| low.as_slice() < high) => Some(low.clone()),
                _ => high.map(<[u8]>::to_vec),
            };
            if end.as_ref().is_none_or(|end| *end > start) {
                self.pieces.insert(start, Piece { high: end.clone(), ..piece.clone() });
            }
            match next {
                Some((low, Some(after))) if Some(&low) == end.as_ref() => start = after,
                _ => return,
            }
        }
    }

    /// The piece that has a key.
    fn piece(&self, key: &[u8]) -> Option<&Piece> {
        let (_, piece) =
            self.pieces.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        piece.high.as_ref().is_none_or(|high| key < high.as_slice()).then_some(piece)
    }

    /// Ranges that no piece has.
    fn gaps(&self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let mut gaps = Vec::new();
        let mut reached = Some(Vec::new());
        for (low, piece) in &self.pieces {
            match reached {
                Some(start) if start < *low => gaps.push((start, Some(low.clone()))),
                _ => {}
            }
            reached = piece.high.clone();
        }
        gaps.extend(reached.map(|start| (start, None)));
        gaps
    }
}

/// Puts what remains together.
struct Puzzle<'a> {
    remains: &'a Remains,
    /// The runs that the directory lists, if it says which images count.
    listed: Option<Vec<Run>>,
    trees: BTreeMap<u32, Found>,
    /// Smaller ids that are not in `trees` are of dropped trees.
    next_tree: u32,
    id_floor: u64,
}

/// What is left of a directory: all items, or those up to the first damage.
struct Directory {
    root: Root,
    runs: Vec<Run>,
    items: Vec<Item>,
    is_whole: bool,
}

/// A run of segments in a file: first offset, end and nonce.
type Run = (u64, u64, u64);

/// The nonce of an image in one of these runs.
fn nonce_in(runs: &[Run], image: ImageAddr) -> Option<u64> {
    let is_in = |run: &&Run| run.0 <= image.offset() && image.offset() < run.1;
    runs.iter().find(is_in).map(|run| run.2)
}

/// The directory of a root image of that nonce.
fn read_directory(remains: &Remains, image: ImageAddr, nonce: u64) -> Option<Directory> {
    let root = Root::decode(&remains.payload(image, ImageKind::Root, nonce)?)?;
    // That of the root may not be listed.
    let mut runs = vec![(remains.segment_of(image.offset()), image.offset(), nonce)];
    for (number, page) in &root.runs {
        let (start, end) = remains.range(*number, page.units);
        runs.push((start, end, page.nonce));
    }
    let mut directory = Directory { root, runs, items: Vec::new(), is_whole: false };
    let mut decoder = Decoder::default();
    for chunk in &directory.root.chunks {
        let nonce = nonce_in(&directory.runs, *chunk);
        let Some(bytes) = nonce.and_then(|nonce| remains.payload(*chunk, ImageKind::Chunk, nonce)) else {
            return Some(directory);
        };
        decoder.feed(&bytes);
        while let Ok(Some(item)) = decoder.next() {
            directory.is_whole = item == Item::End;
            directory.items.push(item);
        }
    }
    Some(directory)
}

/// Copies what remains of a database that could not be opened. Whether a directory said what counts, and no change since
/// is missing, so that nothing is older than it should be; and the bound of identifiers that may have been handed out.
///
/// # Errors
/// What the sink returns.
pub fn salvage_remains(remains: &Remains, sink: &mut dyn Sink) -> Result<(bool, u64)> {
    let mut puzzle = Puzzle { remains, listed: None, trees: BTreeMap::new(), next_tree: 0, id_floor: 0 };
    puzzle.find_trees(sink);
    for found in puzzle.trees.values() {
        sink.tree(&found.name)?;
        puzzle.copy_images(found, sink)?;
    }
    let is_complete = puzzle.replay(sink)?;
    Ok((puzzle.listed.is_some() && is_complete, puzzle.id_floor))
}

impl Puzzle<'_> {
    fn find_trees(&mut self, sink: &mut dyn Sink) {
        if let Some(superblock) = &self.remains.superblock {
            self.id_floor = superblock.id_floor;
            let (offset, bytes) = superblock.root;
            if bytes == 0 {
                // There was no checkpoint: everything is in the redo stream.
                self.listed = Some(Vec::new());
                self.add_tree(DEFAULT_ID, DEFAULT_TREE);
                self.next_tree = DEFAULT_ID + 1;
                return;
            }
            let found = self.remains.images.get(&offset).map(|found| found.image);
            let directory =
                found.and_then(|image| read_directory(self.remains, image, superblock.root_nonce));
            if let Some(directory) = directory.filter(|directory| directory.is_whole) {
                self.next_tree = directory.root.next_tree;
                self.take_listing(directory.runs, directory.items, sink);
                return;
            }
        }
        sink.lose(self.remains.damage(
            0,
            0,
            "the directory is damaged: what is found may be older than it was",
        ));
        self.paint_trees(sink);
    }

    fn add_tree(&mut self, id: u32, name: &[u8]) -> &mut Found {
        let found = self.trees.entry(id).or_default();
        if found.name.is_empty() {
            found.name = name.to_vec();
        }
        found
    }

    /// The directory says what counts.
    fn take_listing(&mut self, runs: Vec<Run>, items: Vec<Item>, sink: &mut dyn Sink) {
        let mut id = 0;
        let mut last: Option<Vec<u8>> = None;
        for item in items {
            let (low, image) = match item {
                Item::Tree(next, _, name) => {
                    (id, last) = (next, None);
                    self.add_tree(id, &name);
                    continue;
                }
                Item::Leaf(low, image) => (low, image),
                Item::End => continue,
            };
            // One that an earlier use of the segment left is not the one that is meant.
            let nonce = nonce_in(&runs, image).unwrap_or(0);
            let whole = self.remains.find(image, nonce);
            let holds = whole.map_or(Holds::default(), |found| found.header.holds);
            let found = self.trees.entry(id).or_default();
            if let Some(before) = last.as_ref().and_then(|last| found.pieces.get_mut(last)) {
                before.high = Some(low.clone());
            }
            let image = image.is_some().then_some((image, nonce));
            found.pieces.insert(low.clone(), Piece { high: None, image, holds });
            last = Some(low);
        }
        for found in self.trees.values_mut() {
            for (low, piece) in &mut found.pieces {
                let Some((image, nonce)) = piece.image else { continue };
                if self.remains.find(image, nonce).is_none() {
                    let damage = self.remains.damage(image.offset(), image.bytes(), "damaged image");
                    sink.lose(damage.of_keys(&found.name, low, piece.high.as_deref()));
                    piece.image = None;
                }
            }
        }
        self.listed = Some(runs);
    }

    /// The newest images count.
    fn paint_trees(&mut self, sink: &mut dyn Sink) {
        let mut newest: Option<BTreeSet<u32>> = None;
        for root in self.newest_first(ImageKind::Root) {
            let directory = read_directory(self.remains, root.image, root.header.nonce);
            let Some(directory) = directory else { continue };
            let mut ids = BTreeSet::new();
            for item in directory.items {
                if let Item::Tree(id, _, name) = item {
                    ids.insert(id);
                    // A name that was given up is not taken from an older directory.
                    if newest.as_ref().is_none_or(|newest| id >= self.next_tree || newest.contains(&id)) {
                        self.add_tree(id, &name);
                    }
                }
            }
            if directory.is_whole && newest.is_none() {
                self.next_tree = directory.root.next_tree;
                newest = Some(ids);
            }
        }
        for leaf in self.newest_first(ImageKind::Leaf) {
            let (id, nonce, holds) = (leaf.header.tree, leaf.header.nonce, leaf.header.holds);
            let is_dropped = newest.as_ref().is_some_and(|ids| id < self.next_tree && !ids.contains(&id));
            if is_dropped {
                continue;
            }
            let Some(bytes) = self.remains.payload(leaf.image, ImageKind::Leaf, nonce) else { continue };
            let piece = Piece { high: None, image: Some((leaf.image, nonce)), holds };
            let Ok(leaf) = Leaf::validate(&bytes) else { continue };
            self.trees.entry(id).or_default().paint(leaf.low(), leaf.high(), &piece);
        }
        for (id, found) in &mut self.trees {
            if found.name.is_empty() {
                found.name = if *id == DEFAULT_ID { DEFAULT_TREE.to_vec() } else { unknown_name(*id) };
            }
            for (low, high) in found.gaps() {
                let damage = self.remains.damage(0, 0, "no image of these keys is left");
                sink.lose(damage.of_keys(&found.name, &low, high.as_deref()));
            }
        }
        self.add_tree(DEFAULT_ID, DEFAULT_TREE);
    }

    /// Images of a kind, those with the newest changes first.
    fn newest_first(&self, kind: ImageKind) -> Vec<FoundImage> {
        let images = self.remains.images.values().filter(|found| found.header.kind == kind);
        let mut images: Vec<_> = images.copied().collect();
        let holds = |found: &FoundImage| (found.header.holds.none_from, found.header.holds.all_before);
        images.sort_by_key(|found| std::cmp::Reverse(holds(found)));
        images
    }

    fn copy_images(&self, found: &Found, sink: &mut dyn Sink) -> Result<()> {
        for (low, piece) in &found.pieces {
            let Some((image, nonce)) = piece.image else { continue };
            let bytes = self.remains.payload(image, ImageKind::Leaf, nonce);
            let leaf = bytes.as_ref().and_then(|bytes| Leaf::validate(bytes).ok());
            // One that the directory lists has exactly the keys up to the next one.
            let fits = |leaf: &Leaf<'_>| {
                self.listed.is_none() || leaf.low() == *low && leaf.high() == piece.high.as_deref()
            };
            let Some(leaf) = leaf.filter(fits) else {
                let damage = self.remains.damage(image.offset(), image.bytes(), "malformed leaf");
                sink.lose(damage.of_keys(&found.name, low, piece.high.as_deref()));
                continue;
            };
            for i in leaf.lower_bound(low)..leaf.len() {
                let (rest, value) = leaf.record(i);
                let key = [leaf.prefix(), rest].concat();
                if piece.high.as_ref().is_some_and(|high| key >= *high) {
                    break;
                }
                match value {
                    Value::Inline(value) => sink.set(&found.name, &key, Some(value))?,
                    Value::Big(big) => {
                        let big = BigRef::decode(big);
                        let listed = self.listed.as_ref();
                        let nonce = listed.map(|runs| nonce_in(runs, big.image).unwrap_or(0));
                        self.copy_big(found, &key, big, nonce, sink)?;
                    }
                    Value::Gone => {}
                }
            }
        }
        Ok(())
    }

    /// Copies a big value, of the run with that nonce if it is known, or says that it is lost.
    fn copy_big(
        &self,
        found: &Found,
        key: &[u8],
        big: BigRef,
        nonce: Option<u64>,
        sink: &mut dyn Sink,
    ) -> Result<()> {
        let nonce = nonce.or_else(|| Some(self.remains.images.get(&big.image.offset())?.header.nonce));
        let payload = nonce.and_then(|nonce| self.remains.payload(big.image, ImageKind::Big, nonce));
        let value = payload.as_deref().and_then(|payload| {
            let (len, rest) = payload.split_first_chunk::<4>()?;
            let (its, value) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
            (its == key && value.len() as u64 == big.len).then_some(value)
        });
        if value.is_none() {
            let damage = self.remains.damage(big.image.offset(), big.image.bytes(), "damaged big value");
            sink.lose(damage.of_keys(&found.name, key, Some(&successor(key))));
        }
        // Whatever was there before, it is not this key's value.
        sink.set(&found.name, key, value)
    }

    /// Makes the changes of the redo stream on top of the images; whether none is missing.
    fn replay(&mut self, sink: &mut dyn Sink) -> Result<bool> {
        let remains = self.remains;
        let from = remains.superblock.as_ref().map_or(Lsn(0), |superblock| superblock.redo.lsn);
        let mut gaps = Vec::new();
        let mut gap = |lsn, offset| gaps.push((lsn, offset));
        remains.records(from, &redo::is_well_formed, &mut |_, _, _| Ok(()), &mut gap)?;
        for (lsn, offset) in &gaps {
            let what = format!("the redo log has a gap at LSN {}: changes from there on may be lost", lsn.0);
            sink.lose(remains.damage(*offset, 0, &what));
        }
        let gaps: Vec<Lsn> = gaps.into_iter().map(|(lsn, _)| lsn).collect();
        let mut is_complete = gaps.is_empty();
        let mut each = |lsn: Lsn, kind, body: &[u8]| {
            let Some(records) = redo::decode(kind, body) else {
                is_complete = false;
                let what = format!("a record of kind {kind} at LSN {} of the redo log cannot be read", lsn.0);
                sink.lose(remains.damage(0, 0, &what));
                return Ok(());
            };
            records.iter().try_for_each(|record| self.apply(lsn, record, &gaps, sink))
        };
        remains.records(from, &redo::is_well_formed, &mut each, &mut |_, _| {})?;
        Ok(is_complete)
    }

    fn apply(&mut self, lsn: Lsn, record: &Record<'_>, gaps: &[Lsn], sink: &mut dyn Sink) -> Result<()> {
        match *record {
            Record::Create { tree, name } => {
                if tree >= self.next_tree && !self.trees.contains_key(&tree) {
                    self.add_tree(tree, name);
                    sink.tree(name)?;
                }
                Ok(())
            }
            Record::Drop { tree } => match self.trees.remove(&tree) {
                Some(found) => sink.drop_tree(&found.name),
                None => Ok(()),
            },
            Record::Ids { floor } => {
                self.id_floor = self.id_floor.max(floor);
                Ok(())
            }
            Record::Put { tree, key, value } => match self.target(lsn, tree, key, gaps) {
                Some(found) => sink.set(&found.name, key, Some(value)),
                None => Ok(()),
            },
            Record::Remove { tree, key } => match self.target(lsn, tree, key, gaps) {
                Some(found) => sink.set(&found.name, key, None),
                None => Ok(()),
            },
            Record::PutBig { tree, key, big, nonce } => match self.target(lsn, tree, key, gaps) {
                Some(found) => self.copy_big(found, key, big, Some(nonce), sink),
                None => Ok(()),
            },
        }
    }

    /// The tree of a change that is to be made: not one that the image of its key holds, or may hold with others that
    /// are missing.
    fn target(&self, lsn: Lsn, tree: u32, key: &[u8], gaps: &[Lsn]) -> Option<&Found> {
        let found = self.trees.get(&tree)?;
        let holds = found.piece(key).map_or(Holds::default(), |piece| piece.holds);
        let unsure = || lsn < holds.none_from && gaps.iter().any(|gap| *gap > lsn && *gap < holds.none_from);
        (lsn >= holds.all_before && !unsure()).then_some(found)
    }
}

fn unknown_name(id: u32) -> Vec<u8> {
    format!("salvaged tree {id}").into_bytes()
}
