//! Reads everything that is live, or that a crash would be recovered from, and reports what is damaged.
//!
//! # How it works
//!
//! First what the file says by itself: superblocks, headers, the redo stream up to what is durable, and the leaf
//! directory with every image that it lists. Then the trees as they are: every leaf, changes included, and every big
//! value that a record refers to. Leaves that are not in memory are read past the cache, so that what others use stays
//! in it; so most images are read twice, once for where they are and once for what refers to them now.
//!
//! Checkpoints wait while the headers and the redo stream are read, and not longer: if one is made while the directory is
//! read, what is left of the old one counts no more, and what is being read of it stays for the guard.

use super::consolidate::Fold;
use super::cursor::successor;
use super::delta::Merged;
use super::descent::At;
use super::inner::Inner;
use super::leaf::{BigRef, Leaf, Value};
use super::{BwTree, Forest, redo};
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::pagecache::{Decoder, Findings, FrameKind, ImageAddr, Item, PageState};
use crossbeam_epoch::Guard;

const WRONG_FENCES: &str = "a leaf with wrong fences";

/// Goes through the items of a directory: a leaf ends where the next one starts.
#[derive(Debug, Default)]
struct Listing {
    tree: u32,
    /// The last leaf, whose end is not known yet.
    leaf: Option<(Vec<u8>, ImageAddr)>,
}

impl Listing {
    /// Takes the next item: tree, low key and image of the leaf that ends with it.
    fn take(&mut self, item: Item) -> Option<(u32, Vec<u8>, ImageAddr)> {
        let (tree, next) = match item {
            Item::Leaf(low, image) => (self.tree, Some((low, image))),
            Item::Tree(id, ..) => (id, None),
            Item::End => (0, None),
        };
        let before = std::mem::replace(&mut self.leaf, next);
        let of = std::mem::replace(&mut self.tree, tree);
        before.map(|(low, image)| (of, low, image))
    }

    /// Where the last leaf starts.
    fn low(&self) -> Option<&[u8]> {
        self.leaf.as_ref().map(|(low, _)| low.as_slice())
    }
}

impl Forest {
    /// Checks everything; what is damaged is in `found`.
    ///
    /// # Errors
    /// When the check was cancelled; `ReportableBug` when what is in memory is wrong.
    pub fn scrub(&self, found: &mut Findings<'_>) -> Result<()> {
        self.log().scrub_superblocks(found)?;
        let listed = self.scrub_checkpoint(found)?;
        for tree in self.catalog.list() {
            found.counts.trees += 1;
            match self.scrub_tree(&tree, &listed, found) {
                Ok(()) | Err(Error::CollectionNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Bytes that a check reads, about: each leaf twice, as the directory lists it and as it is.
    pub fn bytes_to_scrub(&self) -> u64 {
        let log = self.log();
        2 * log.segments().usage().live + log.redo_tail()
    }

    /// Checks what the newest checkpoint consists of; the leaf images that it lists, in order.
    fn scrub_checkpoint(&self, found: &mut Findings<'_>) -> Result<Vec<ImageAddr>> {
        let mut listed = Vec::new();
        let root = {
            let _no_checkpoint = self.checkpointing.lock();
            self.log().scrub_headers(found);
            self.log().scrub_redo(found, &mut |_, kind, body| {
                if redo::is_well_formed(kind, body) {
                    Ok(true)
                } else {
                    Err(Error::Corruption { at: None, bt: () })
                }
            })?;
            let root = self.cache.read_root();
            (self.log().superblock().root, root)
        };
        found.read(0)?;
        let (place, chunks) = match root {
            (place, Ok(root)) => (place, root.unwrap_or_default().chunks),
            ((offset, bytes), Err(error)) => {
                found.note(self.log().unreadable(offset, bytes, error)?);
                return Ok(listed);
            }
        };
        let (mut decoder, mut listing) = (Decoder::default(), Listing::default());
        for chunk in chunks {
            let _guard = {
                let _no_checkpoint = self.checkpointing.lock();
                if self.log().superblock().root != place {
                    break;
                }
                crossbeam_epoch::pin()
            };
            found.read(chunk.bytes())?;
            let decoded = self.cache.read_chunk(chunk).and_then(|bytes| {
                decoder.feed(&bytes);
                let mut items = Vec::new();
                while let Some(item) = decoder.next()? {
                    items.push(item);
                }
                Ok(items)
            });
            match decoded {
                Ok(items) => items.into_iter().try_for_each(|item| {
                    let Some((tree, low, image)) = listing.take(item) else { return Ok(()) };
                    listed.push(image);
                    self.scrub_listed(tree, (&low, listing.low()), image, found)
                })?,
                Err(error) => {
                    // Of what follows it is not known where it begins.
                    let error = self.log().placed(chunk, error);
                    found.note(self.log().unreadable(chunk.offset(), chunk.bytes(), error)?);
                    break;
                }
            }
        }
        listed.retain(|image| image.is_some());
        listed.sort_unstable();
        if let Some(twice) = listed.windows(2).find(|pair| pair[0] == pair[1]) {
            found.note(self.damage_at(twice[0], "an image that the directory lists twice"));
        }
        Ok(listed)
    }

    /// Checks the image of a leaf that the directory lists.
    fn scrub_listed(
        &self,
        id: u32,
        (low, high): (&[u8], Option<&[u8]>),
        image: ImageAddr,
        found: &mut Findings<'_>,
    ) -> Result<()> {
        if !image.is_some() {
            return Ok(());
        }
        found.read(image.bytes())?;
        let damage = match self.cache.read_leaf(image) {
            Ok(bytes) => {
                let leaf = Leaf::new(&bytes);
                if leaf.low() == low && leaf.high() == high {
                    return Ok(());
                }
                self.damage_at(image, WRONG_FENCES)
            }
            Err(error) => self.unreadable(image, error)?,
        };
        let name = self.catalog.get_id(id).map(|tree| tree.name.clone());
        found.note(match name {
            Some(name) => damage.of_keys(&name, low, high),
            None => damage,
        });
        Ok(())
    }

    fn damage_at(&self, image: ImageAddr, what: &str) -> Damage {
        self.log().damage_at(image.offset(), image.bytes(), what)
    }

    /// What is damaged when reading an image failed.
    fn unreadable(&self, image: ImageAddr, error: Error) -> Result<Damage> {
        self.log().unreadable(image.offset(), image.bytes(), error)
    }

    fn scrub_tree(&self, tree: &BwTree, listed: &[ImageAddr], found: &mut Findings<'_>) -> Result<()> {
        let mut next = Some(Vec::new());
        while let Some(low) = next {
            let guard = crossbeam_epoch::pin();
            tree.check()?;
            next = self.scrub_leaf(tree, &low, listed, found, &guard)?;
            drop(guard);
            // What was folded is in memory now.
            self.keep_up_reading();
        }
        Ok(())
    }

    /// Checks the leaf that has `low`; its high fence.
    fn scrub_leaf(
        &self,
        tree: &BwTree,
        low: &[u8],
        listed: &[ImageAddr],
        found: &mut Findings<'_>,
        guard: &Guard,
    ) -> Result<Option<Vec<u8>>> {
        loop {
            let (pid, start, end) = self.child_of(tree, low, guard)?;
            if let (word, PageState::Disk(image)) = self.cache.load(pid, guard) {
                found.read(image.bytes())?;
                let damage = match self.cache.read_leaf(image) {
                    Ok(bytes) => {
                        let leaf = Leaf::new(&bytes);
                        // What is evicted has the range that its parent says.
                        if leaf.low() == start && leaf.high() == end.as_deref() {
                            let records = (0..leaf.len()).map(|i| leaf.record(i));
                            let records = records.map(|(rest, value)| (leaf.prefix(), rest, value));
                            self.scrub_values(tree, records, found)?;
                            return Ok(end);
                        }
                        self.damage_at(image, WRONG_FENCES)
                    }
                    Err(error) => self.unreadable(image, error)?,
                };
                // Unless it was split since the separators were looked at.
                if self.cache.load(pid, guard).0 == word
                    && self.child_of(tree, low, guard)? == (pid, start.clone(), end.clone())
                {
                    found.note(damage.of_keys(&tree.name, &start, end.as_deref()));
                    return Ok(end);
                }
                continue;
            }
            let whole = self.leaf(tree, low, guard).and_then(|at| {
                let overlay = at.frame.overlay();
                if overlay {
                    self.consolidate(tree, at, Fold::Whole, guard)?
                }
                Ok((at, overlay))
            });
            match whole {
                Ok((_, true)) => {}
                Ok((at, false)) => return self.scrub_resident(tree, at, listed, found),
                Err(error) => {
                    let damage = self.log().unreadable(0, 0, error)?;
                    found.note(damage.of_keys(&tree.name, &start, end.as_deref()));
                    return Ok(end);
                }
            }
        }
    }

    /// The lowest page whose range has `low`, and that range as its parent says.
    pub(super) fn child_of(
        &self,
        tree: &BwTree,
        low: &[u8],
        guard: &Guard,
    ) -> Result<(u32, Vec<u8>, Option<Vec<u8>>)> {
        Ok(match self.inner_at(tree, 1, low, guard)? {
            None => (tree.root, Vec::new(), None),
            Some((at, _)) => {
                let node = Inner::new(at.frame.base());
                let i = node.find(low);
                (node.child(i), node.separator(i), node.end(i))
            }
        })
    }

    fn scrub_resident(
        &self,
        tree: &BwTree,
        at: At<'_>,
        listed: &[ImageAddr],
        found: &mut Findings<'_>,
    ) -> Result<Option<Vec<u8>>> {
        debug_assert_eq!(at.frame.kind(), FrameKind::Leaf);
        let leaf = at.leaf();
        if let Err(malformed) = Leaf::validate(at.frame.base()) {
            return Err(Error::ReportableBug(format!("tree {:?}: T2: {}", tree.name, malformed.0)));
        }
        let image = at.frame.disk();
        if image.is_some() && listed.binary_search(&image).is_err() {
            found.read(image.bytes())?;
            if let Err(error) = self.cache.read_leaf(image) {
                found.note(self.unreadable(image, error)?.of_keys(&tree.name, leaf.low(), leaf.high()));
            }
        }
        self.check_deltas(tree, at)?;
        let mut merged = Merged::forward(at.frame, &[]);
        let entries = std::iter::from_fn(|| merged.next()).filter(|entry| entry.exists());
        self.scrub_values(tree, entries.map(|entry| (entry.prefix, entry.rest, entry.value)), found)?;
        Ok(leaf.high().map(<[u8]>::to_vec))
    }

    /// Checks the big values of a leaf, and counts its records.
    fn scrub_values<'a>(
        &self,
        tree: &BwTree,
        records: impl Iterator<Item = (&'a [u8], &'a [u8], Value<'a>)>,
        found: &mut Findings<'_>,
    ) -> Result<()> {
        found.counts.leaves += 1;
        for (prefix, rest, value) in records {
            found.counts.records += 1;
            let Value::Big(reference) = value else { continue };
            let big = BigRef::decode(reference);
            let key = [prefix, rest].concat();
            found.counts.big_values += 1;
            found.read(big.image.bytes())?;
            let Err(error) = self.read_big(tree, &key, big) else { continue };
            let damage = self.unreadable(big.image, error)?;
            found.note(damage.of_keys(&tree.name, &key, Some(&successor(&key))));
        }
        Ok(())
    }
}
