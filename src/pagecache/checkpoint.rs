//! Checkpoints: the images of all pages changed before some LSN, a new leaf directory, a superblock.
//!
//! # How it works
//!
//! 1. *Fence*: everything reserved so far is visible and its LSNs end at the redo LSN of this checkpoint.
//! 2. The caller, who knows the trees, goes through all leaves in key order. A leaf with a change before the
//!    redo LSN that is in no image is folded ([`PageCache::list_resident`]). The images of some such leaves are written with one
//!    call ([`PageCache::write_listed`]), and then the addresses of these leaves and of those between go into the directory.
//! 3. The directory's root is written, everything is synced, and the superblock makes it count.
//! 4. What the old checkpoint referred to and this one does not is freed once no reader can have its address.
//!
//! One that is made only so that segments of dead images are freed keeps the redo LSN of the one before, and so writes no
//! leaf but those that have no image yet. Where there are big values it cannot: the log refers to them, and they must stay
//! as long as it is replayed from before their records.
//!
//! An image may hold changes past the redo LSN: replaying their records again changes nothing, and they
//! are durable before the superblock is (L9), so that an image never shows more than the log.
//!
//! # Format
//!
//! What a checkpoint leaves on disk is in `pagecache/directory.rs` and, for the superblock, in `log/format.rs`. The newest
//! state is what the directory refers to, with all records of the redo stream from the redo LSN on applied in order. An
//! image that the directory refers to may have changes of some of these records already.
//!
//! # References
//!
//! Fuzzy checkpoints with a redo point: Mohan et al., "ARIES", TODS 1992, section 5.4.

use super::directory::{Encoder, Root};
use super::frame::{FrameKind, FrameRef, NewFrame};
use super::mapping_table::{PageState, Word};
use super::{Folded, Page, PageCache, count};
use crate::base::{Lsn, RedoPosition, fail};
use crate::error::Result;
use crate::log::format::image_bytes;
use crate::log::{ImageAddr, ImageKind, Segments, Stream};
use crossbeam_epoch::Guard;
use std::sync::Arc;

/// Largest directory chunk, bytes.
const CHUNK: usize = 64 << 10;
/// Images written with one call, unless they are long: then so many bytes.
const BATCH: usize = 32;
const BATCH_BYTES: usize = 1 << 20;

/// Pages that are looked at to find out what a checkpoint would free.
const SAMPLE: u64 = 128;

/// A checkpoint being made.
#[derive(Debug)]
pub struct CheckpointBuilder {
    redo: RedoPosition,
    /// Runs that had nothing live when it began.
    dead: Vec<u32>,
    encoder: Encoder,
    chunks: Vec<ImageAddr>,
    /// Leaf images that no page owns.
    orphans: Vec<ImageAddr>,
    /// Largest chunk that fits in a segment, bytes.
    chunk: usize,
}

/// Leaves that follow each other, of which some have no image yet that has every change before the redo LSN.
#[derive(Debug)]
pub struct Listing<'b, 'g> {
    builder: &'b mut CheckpointBuilder,
    /// The leaves in order: low key, and the image if it is there; otherwise the next of `unwritten` is about it.
    leaves: Vec<(Vec<u8>, Option<ImageAddr>)>,
    unwritten: Vec<Unwritten<'g>>,
    /// Bytes of the images in `unwritten`.
    bytes: usize,
    /// Changes before this are in all that is unwritten.
    all_before: Lsn,
}

impl Listing<'_, '_> {
    /// Adds a leaf whose image has every change before the redo LSN.
    pub fn add(&mut self, low: &[u8], image: ImageAddr) {
        self.leaves.push((low.to_vec(), Some(image)));
    }

    /// Whether it is time to write what is folded.
    pub fn is_full(&self) -> bool {
        self.unwritten.len() >= BATCH || self.bytes >= BATCH_BYTES
    }
}

/// A leaf that was folded, and whose image is not written yet.
#[derive(Debug)]
struct Unwritten<'g> {
    pid: u32,
    frame: FrameRef<'g>,
    /// How many of the frame's deltas are in the image.
    used: usize,
    folded: Folded,
}

impl CheckpointBuilder {
    /// Changes before this are in the images that the checkpoint refers to.
    pub fn redo_lsn(&self) -> Lsn {
        self.redo.lsn
    }

    /// A tree; its leaves follow in key order. `big`: it may have big values.
    pub fn tree(&mut self, id: u32, big: bool, name: &[u8]) {
        self.encoder.tree(id, big, name);
    }

    /// An empty list, to which leaves of the last tree are added.
    pub fn listing<'g>(&mut self) -> Listing<'_, 'g> {
        let (leaves, unwritten) = (Vec::new(), Vec::new());
        Listing { builder: self, leaves, unwritten, bytes: 0, all_before: Lsn(0) }
    }
}

impl<P: Page> PageCache<P> {
    /// Begins a checkpoint. One at a time; the caller sees to that. `keep_tail`: replay may start where it started before.
    ///
    /// # Errors
    /// What writing failed with.
    pub fn begin_checkpoint(&self, keep_tail: bool) -> Result<CheckpointBuilder> {
        self.check()?;
        fail::check("snap write")?;
        // In this order: what is dead by now died before the fence, so no image listed below refers to it.
        let dead = self.log().segments().begin_checkpoint();
        let keep_tail = keep_tail && !self.log().segments().holds_big();
        let redo = if keep_tail { self.log().superblock().redo } else { self.fence()? };
        let chunk = CHUNK.min(self.log().segments().size() - 256);
        let (chunks, orphans) = (Vec::new(), Vec::new());
        Ok(CheckpointBuilder { redo, dead, encoder: Encoder::default(), chunks, orphans, chunk })
    }

    /// About how many bytes of images a checkpoint would free that are not dead yet, as the records in them were removed since
    /// they were written. Of pages that are in memory as a whole.
    pub fn removed_bytes(&self) -> u64 {
        let guard = crossbeam_epoch::pin();
        // Odd, so that trees that take turns are all met, and not from the same page on each time.
        let step = self.table().high_water().div_ceil(SAMPLE) | 1;
        let first = 1 + self.log().end().0 % step;
        let mut removed = 0;
        for pid in (first..self.table().high_water()).step_by(step as usize) {
            if self.table().try_get(pid as u32).is_none() {
                continue;
            }
            let (_, PageState::Resident(frame)) = self.load(pid as u32, &guard) else { continue };
            if frame.kind() == FrameKind::Leaf && !frame.overlay() {
                removed += self.removed_from(frame);
            }
        }
        u64::try_from(removed).unwrap_or(0).saturating_mul(step)
    }

    /// By how many bytes the image of a leaf, and what it refers to, would be smaller if it was written now.
    fn removed_from(&self, frame: FrameRef<'_>) -> i64 {
        let (used, _) = frame.used();
        if frame.is_clean(used) {
            return 0;
        }
        let folded = P::fold(frame, used, None);
        let dropped = folded.dropped.iter().map(|big| big.bytes()).sum::<u64>();
        let old = match frame.disk() {
            // Split off a leaf whose image still has all of it.
            image if !image.is_some() => 0,
            // How long what is compressed would be nobody knows.
            _ if self.log().compresses() => image_bytes(frame.base().len()) as u64,
            image => image.bytes(),
        };
        old.saturating_add(dropped) as i64 - image_bytes(folded.image.len()) as i64
    }

    fn write_chunks(&self, builder: &mut CheckpointBuilder, at_least: usize) -> Result<()> {
        while builder.encoder.out.len() >= at_least && !builder.encoder.out.is_empty() {
            let len = builder.encoder.out.len().min(builder.chunk);
            let chunk = &builder.encoder.out[..len];
            fail::check("snap write len")?;
            let image = self.log().append(
                Stream::Leaves,
                ImageKind::Chunk,
                0,
                [chunk, &[]],
                self.holds(builder.redo.lsn),
            )?;
            builder.chunks.push(image);
            builder.encoder.out.drain(..len);
        }
        Ok(())
    }

    /// Adds the leaf in `frame`, and folds it if no image has every change before the redo LSN. Under the maintenance lock,
    /// which is held until the listing was written. `visible`: what [`Self::visible`] said before the frame was looked for.
    ///
    /// # Errors
    /// What reading failed with; then it is not added.
    pub fn list_resident<'g>(
        &self,
        listing: &mut Listing<'_, 'g>,
        low: &[u8],
        (pid, frame): (u32, FrameRef<'g>),
        visible: Lsn,
    ) -> Result<()> {
        let (used, _) = frame.used();
        let redo_lsn = listing.builder.redo_lsn();
        if frame.first_change(used) >= redo_lsn {
            listing.add(low, frame.disk());
            return Ok(());
        }
        let below = if frame.overlay() { Some(self.read_below(frame)?) } else { None };
        let folded = P::fold(frame, used, below.as_deref());
        if listing.unwritten.is_empty() {
            // What the fence waited for is visible, and later folds have more.
            listing.all_before = visible.max(redo_lsn);
        }
        listing.bytes += folded.image.len();
        listing.leaves.push((low.to_vec(), None));
        listing.unwritten.push(Unwritten { pid, frame, used, folded });
        Ok(())
    }

    /// Adds a leaf that is nobody's, with an image that only the directory refers to.
    ///
    /// # Errors
    /// What writing failed with.
    pub fn add_orphan(
        &self,
        builder: &mut CheckpointBuilder,
        tree: u32,
        low: &[u8],
        image: &[u8],
    ) -> Result<()> {
        let address = self.write_leaves(Stream::Leaves, &[(tree, image)], builder.redo_lsn())?[0];
        builder.orphans.push(address);
        builder.encoder.leaf(low, address);
        Ok(())
    }

    /// Writes what is folded and adds everything that is listed to the directory.
    ///
    /// # Errors
    /// What writing failed with; of leaves whose image was written, nothing is lost then, and the others stay as they are.
    pub fn write_listed(&self, listing: &mut Listing<'_, '_>, guard: &Guard) -> Result<()> {
        let images: Vec<(u32, &[u8])> =
            listing.unwritten.iter().map(|leaf| (leaf.frame.tree(), leaf.folded.image.as_slice())).collect();
        let images = match images.is_empty() {
            true => Vec::new(),
            false => self.write_leaves(Stream::Leaves, &images, listing.all_before)?,
        };
        let builder = &mut *listing.builder;
        for (leaf, image) in listing.unwritten.drain(..).zip(&images) {
            self.swap_written(builder, leaf, *image, guard);
        }
        listing.bytes = 0;
        let mut written = images.into_iter();
        for (low, image) in listing.leaves.drain(..) {
            let image = image.or_else(|| written.next()).expect("one image for each leaf that was folded");
            builder.encoder.leaf(&low, image);
        }
        self.write_chunks(builder, builder.chunk)
    }

    /// Has a leaf, whose image is written now, go on from there.
    fn swap_written(
        &self,
        builder: &mut CheckpointBuilder,
        leaf: Unwritten<'_>,
        image: ImageAddr,
        guard: &Guard,
    ) {
        let Unwritten { pid, frame, used, folded } = leaf;
        // What is not decided, and what came since it was folded, moves to the new frame.
        let used_now = frame.freeze();
        let moved = folded.carried.iter().copied().chain(used..used_now);
        // An overlay had no image in memory before; if memory is short it needs none now. Otherwise it stays for readers.
        let leaves =
            frame.overlay() && frame.right() == 0 && moved.clone().next().is_none() && self.is_tight();
        let new = if leaves {
            self.note_evicted(folded.newest);
            None
        } else {
            let new = NewFrame {
                overlay: false,
                base: &folded.image,
                disk: image,
                first_lsn: Lsn::MAX,
                newest: folded.newest,
                ..frame.outline()
            };
            Some(FrameRef::create_with(self.arena(), new, frame, moved))
        };
        let word = new.map_or(Word::disk(image), Word::resident);
        if !self.table().swap(pid, Word::resident(frame), word) {
            if let Some(new) = new {
                self.discard(new);
            }
            // Somebody consolidated or split the page meanwhile, and it keeps its own image. This one is what
            // the directory needs, and belongs to it.
            builder.orphans.push(image);
            return;
        }
        self.kill(frame.disk());
        // A big value whose end is before the redo LSN is not met again by a replay from here.
        let replayed = frame.has_change_from(used, builder.redo_lsn());
        for big in folded.dropped {
            if replayed {
                self.kill(big);
            } else {
                self.log().segments().kill_listed(big.offset(), big.bytes());
            }
        }
        self.retire(frame, guard);
    }

    /// Finishes a checkpoint: from when this returns, a crash loses nothing before its redo LSN.
    ///
    /// # Errors
    /// What writing failed with; then the checkpoint before stays.
    pub fn finish_checkpoint(
        &self,
        mut builder: CheckpointBuilder,
        next_tree: u32,
        id_floor: u64,
    ) -> Result<()> {
        builder.encoder.end();
        let written = self.write_chunks(&mut builder, 1).and_then(|()| self.write_root(&builder, next_tree));
        let mut images = builder.chunks;
        images.append(&mut builder.orphans);
        let root = match written {
            Ok(root) => root,
            Err(error) => {
                self.kill_all(&images);
                return Err(error);
            }
        };
        images.push(root);
        let redo_segments = match self.log().commit_checkpoint(root, builder.redo, id_floor) {
            Ok(segments) => segments,
            Err(error) => {
                self.kill_all(&images);
                return Err(error);
            }
        };
        count(&self.counters.checkpoints);
        // There is no clock there: asking for it panics.
        if cfg!(not(target_family = "wasm")) {
            *self.counters.checkpointed.lock() = Some(std::time::Instant::now());
        }
        let before = std::mem::replace(&mut *self.directory.lock(), images);
        self.kill_all(&before);
        self.free_segments([builder.dead, redo_segments].concat());
        Ok(())
    }

    /// A checkpoint that was begun is given up.
    pub fn abandon_checkpoint(&self, builder: CheckpointBuilder) {
        self.log().segments().listed();
        self.kill_all(&builder.chunks);
        self.kill_all(&builder.orphans);
    }

    fn write_root(&self, builder: &CheckpointBuilder, next_tree: u32) -> Result<ImageAddr> {
        fail::check("snap write crc")?;
        // In this order: a big value whose record is before `captured` is in the counts.
        let captured = self.log().end();
        let mut runs = self.log().segments().listed();
        // These are freed when this checkpoint is durable.
        runs.retain(|(number, _)| !builder.dead.contains(number));
        let root = Root { next_tree, captured, runs, chunks: builder.chunks.clone() };
        let holds = self.holds(builder.redo.lsn);
        self.log().append(Stream::Leaves, ImageKind::Root, 0, [&root.encode(), &[]], holds)
    }

    /// Nothing durable refers to these segments: reused when no reader can have an address in them (L1).
    fn free_segments(&self, numbers: Vec<u32>) {
        if numbers.is_empty() {
            return;
        }
        self.log().note_freed(numbers.len());
        let guard = crossbeam_epoch::pin();
        release_later(Arc::clone(self.log().segments()), numbers, &guard);
        guard.flush();
    }
}

/// Frees segments when every guard has ended that is pinned now.
pub(super) fn release_later(segments: Arc<Segments>, numbers: Vec<u32>, guard: &Guard) {
    segments.drain(&numbers);
    super::frame::defer(guard, move || segments.release(&numbers));
}
