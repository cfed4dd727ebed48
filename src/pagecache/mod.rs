//! PID -> page, resident or an address on disk; knows no tree types.
//!
//! # How it works
//!
//! A page is a word in the [`mapping_table`]: the address of a resident [`frame`], or of its image in the
//! page stream. Frames are replaced by CAS on the word and retired through the epoch; eviction writes what
//! has no image and swaps the frame for its address; the next access faults it in.
//!
//! # Invariants
//!
//! P1 to P4 are stated, and kept, in [`frame`], P5 in [`mapping_table`], P8 in [`status`], and
//!
//! - P6: the image at `disk` of a page's frame, or in its word, is live and has exactly one owner: that page.
//! - P7: pages are evicted, moved and merged only by the holder of the maintenance lock; anybody may replace
//!   a frame by one with the same content, split a page, or fault one in.
//!
//! # Concurrency
//!
//! Reads and writes of resident pages take no lock but, for a moment, those of the arena. The maintenance
//! lock is held for one bounded step at a time.

pub mod arena;
mod checkpoint;
mod classes;
mod compaction;
pub mod directory;
mod eviction;
pub mod frame;
pub mod mapping_table;
mod memory;
#[cfg(all(test, loom))]
mod models;
mod regions;
mod spans;
pub mod status;

pub use crate::log::format::LARGEST;
pub use crate::log::record::{EachRecord, FRAME, NOTE, frame as frame_record, frame_note};
pub use crate::log::salvage::{FoundImage, Remains, search};
pub use crate::log::scrub::Findings;
pub use crate::log::{ImageAddr, ImageKind, Log, Page as Run, Scan, SegmentKind, Usage};
pub use checkpoint::{CheckpointBuilder, Listing};
pub use directory::{Decoder, Item, Root};
pub use frame::{
    DeltaKind, DeltaRef, FrameKind, FrameRef, Looker, NewDelta, NewFrame, Published, RunRef, SLOTS, Slot,
};
pub use mapping_table::{MappingTable, PageState, Word};
pub use status::{Outcome, Status};

use crate::base::{Lsn, RedoPosition, Tally, fail};
use crate::error::{Error, Result};
use crate::ivec::IVec;
pub use crate::log::Holds;
pub use crate::log::Reservation;
use crate::log::{ImageHeader, Stream};
use arena::Arena;
use crossbeam_epoch::Guard;
use eviction::Hand;
use parking_lot::{Mutex, MutexGuard};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What the pagecache must know about the content of its pages.
pub trait Page: Send + Sync + 'static {
    /// Checks the bytes of a leaf that come from disk.
    ///
    /// # Errors
    /// What is wrong with them.
    fn validate(bytes: &[u8]) -> std::result::Result<(), &'static str>;

    /// Whether an image has the range of the leaf in a frame.
    fn is_of(frame: FrameRef<'_>, image: &[u8]) -> bool;

    /// An image without records of the range of the leaf in a frame.
    fn bare(frame: FrameRef<'_>) -> Vec<u8>;

    /// The image of a leaf after its first `used` deltas. `below` is the image under an overlay.
    fn fold(frame: FrameRef<'_>, used: usize, below: Option<&[u8]>) -> Folded;
}

/// A leaf with its deltas folded in.
#[derive(Debug)]
pub struct Folded {
    /// The image.
    pub image: Vec<u8>,
    /// Big values that the image does not refer to any more.
    pub dropped: Vec<ImageAddr>,
    /// Slots with intents that are not decided, which the image does not show.
    pub carried: Vec<usize>,
    /// Above the LSN of every change that was folded in.
    pub newest: Lsn,
}

/// What the layer is told when it is opened.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Bytes of memory for frames and deltas; tables and the buffers of the log come on top.
    pub capacity: u64,
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Frames and deltas, which the capacity bounds.
    pub cached: u64,
    /// Those that are out of use and wait for their epoch.
    pub retired: u64,
    /// Tables, and the buffers of the log.
    pub tables: u64,
}

/// Capacity from which on the cache is in huge pages of the system: what these take up more does not matter then. Random
/// reads and writes are 15 % faster with them.
const HUGE_FROM: u64 = 32 << 20;

/// Statistics, all relaxed.
#[derive(Debug, Default)]
pub struct CacheCounters {
    /// Frames dropped because their image is current.
    pub evictions: AtomicU64,
    /// Pages written by eviction.
    pub page_outs: AtomicU64,
    /// Pages read.
    pub faults: AtomicU64,
    /// Pages that were made overlays.
    pub shrunk: AtomicU64,
    /// Frames moved to other memory.
    pub moved_frames: AtomicU64,
    /// Overlays whose image was read because somebody needed more of it.
    pub overlay_faults: AtomicU64,
    /// Overlays whose image was read so that they could be written.
    pub overlays_folded: AtomicU64,
    /// Checkpoints that became durable.
    pub checkpoints: AtomicU64,
    /// When the last one did.
    pub checkpointed: Mutex<Option<Instant>>,
    /// Images moved by the cleaner.
    pub moved_images: AtomicU64,
    /// Leaves that operations came to.
    pub visits: Tally,
}

/// Adds one to a statistic.
pub fn count(counter: &AtomicU64) {
    // Relaxed: statistic.
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Frames that a thread retires before it hands them over to be freed. Left to itself the epoch would free hundreds at
/// once, more than a shard of the arena keeps, in one thread, and the others would have to ask what they share.
const RETIRED_TOGETHER: u32 = 4;

thread_local! {
    /// Frames that this thread has retired.
    static RETIRED: Cell<u32> = const { Cell::new(0) };
}

/// What outlives the cache, for what the epoch frees later.
#[derive(Debug, Default)]
struct Shared {
    arena: Arena,
    table: MappingTable,
}

impl Shared {
    /// Replaces the frame `old` of a page, frozen if it is a leaf's (P3), by `new`; `false`: somebody else
    /// did, and `new` is gone.
    fn replace(self: &Arc<Self>, pid: u32, old: FrameRef<'_>, new: FrameRef<'_>, guard: &Guard) -> bool {
        if !self.table.swap(pid, Word::resident(old), Word::resident(new)) {
            new.discard(&self.arena);
            return false;
        }
        self.retire(old, guard);
        true
    }

    /// Frees a frame that has left the mapping table once nobody can see it any more.
    fn retire(self: &Arc<Self>, frame: FrameRef<'_>, guard: &Guard) {
        let shared = Arc::clone(self);
        let bytes = frame.bytes();
        shared.arena.note_retired(bytes);
        frame.retire(guard, move |frame| {
            frame.discard(&shared.arena);
            shared.arena.note_reclaimed(bytes);
        });
        let count = RETIRED.get().wrapping_add(1);
        RETIRED.set(count);
        // Not in a model, whose interleavings would depend on the count that the one before left.
        if cfg!(not(loom)) && count.is_multiple_of(RETIRED_TOGETHER) {
            guard.flush();
        }
    }

    /// The image of a page is `to` from now on, where it was `from`, whether the page is in memory or not;
    /// whether it was. Under the maintenance lock. A frame never changes its image: it is replaced by one
    /// like it, so that whoever builds another from it meanwhile fails to install that (P6).
    fn move_image(self: &Arc<Self>, pid: u32, from: ImageAddr, to: ImageAddr, guard: &Guard) -> bool {
        loop {
            match self.table.load(pid, guard) {
                (word, PageState::Disk(image)) if image == from => {
                    if self.table.swap(pid, word, Word::disk(to)) {
                        return true;
                    }
                }
                (_, PageState::Resident(old)) if old.kind() == FrameKind::Leaf && old.disk() == from => {
                    let used = old.freeze();
                    if self.replace(pid, old, old.copy(&self.arena, used, to), guard) {
                        return true;
                    }
                }
                _ => return false,
            }
        }
    }
}

/// Proof that the maintenance lock is held (P7).
#[derive(Debug)]
pub struct Maintenance<'a> {
    hand: MutexGuard<'a, Hand>,
}

/// The pages of one database.
#[derive(Debug)]
pub struct PageCache<P> {
    shared: Arc<Shared>,
    log: Log,
    options: CacheOptions,
    /// P7.
    maintenance: Mutex<Hand>,
    /// Memory in use that eviction did not get below, and a step more; 0 = it did.
    stuck: AtomicU64,
    /// Above the LSN of every change in a page that was evicted. Raised before the page's word says so.
    evicted: AtomicU64,
    /// Images of the durable directory, and leaf images that only it refers to: they die when the next one is
    /// durable.
    directory: Mutex<Vec<ImageAddr>>,
    /// What happened so far.
    pub counters: CacheCounters,
    page: PhantomData<P>,
}

impl<P: Page> PageCache<P> {
    /// A cache without pages over a log.
    pub fn new(log: Log, options: CacheOptions) -> PageCache<P> {
        let shared = Arc::<Shared>::default();
        if options.capacity >= HUGE_FROM {
            shared.arena.use_huge_pages();
        }
        PageCache {
            shared,
            log,
            options,
            maintenance: Mutex::default(),
            stuck: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            directory: Mutex::default(),
            counters: CacheCounters::default(),
            page: PhantomData,
        }
    }

    /// Where frames and deltas are allocated.
    #[inline]
    pub fn arena(&self) -> &Arena {
        &self.shared.arena
    }

    /// The mapping table.
    #[inline]
    pub fn table(&self) -> &MappingTable {
        &self.shared.table
    }

    /// Claims `len` bytes of the redo stream; completed when the change is visible (L8).
    ///
    /// # Errors
    /// As for [`Log::reserve`].
    #[inline]
    pub fn reserve(&self, len: usize) -> Result<Reservation<'_>> {
        self.log.reserve(len)
    }

    /// Whether anything may still be written.
    ///
    /// # Errors
    /// The first fatal error.
    pub fn check(&self) -> Result<()> {
        self.log.stability().check()
    }

    /// The log, for those who assemble the layers.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Takes the maintenance lock.
    pub fn maintain(&self) -> Maintenance<'_> {
        Maintenance { hand: self.maintenance.lock() }
    }

    /// A PID with a new page.
    ///
    /// # Errors
    /// `Unsupported` when there are four billion pages.
    pub fn allocate(&self, frame: FrameRef<'_>) -> Result<u32> {
        let pid = self.allocate_empty()?;
        self.table().set(pid, Word::resident(frame));
        Ok(pid)
    }

    /// A PID without a page yet.
    ///
    /// # Errors
    /// `Unsupported` when there are four billion pages.
    pub fn allocate_empty(&self) -> Result<u32> {
        self.table().allocate().ok_or_else(|| Error::Unsupported("more than 4 billion pages".into()))
    }

    /// The state of a page.
    #[inline]
    pub fn load<'g>(&self, pid: u32, guard: &'g Guard) -> (Word, PageState<'g>) {
        self.shared.table.load(pid, guard)
    }

    /// Makes a frame.
    pub fn frame<'g>(&self, new: NewFrame<'_>, _guard: &'g Guard) -> FrameRef<'g> {
        FrameRef::create(self.arena(), new)
    }

    /// Frees a frame that was never in the mapping table.
    pub fn discard(&self, frame: FrameRef<'_>) {
        frame.discard(self.arena());
    }

    /// Replaces the frame `old` of a page, frozen if it is a leaf's (P3), by `new`; `false`: somebody else
    /// did, and `new` is gone.
    pub fn replace(&self, pid: u32, old: FrameRef<'_>, new: FrameRef<'_>, guard: &Guard) -> bool {
        self.shared.replace(pid, old, new, guard)
    }

    /// Replaces a leaf's frame, which is frozen with `used` deltas, by one with the same deltas on another base: the image at
    /// `disk`, or, for an overlay, what there is instead. `false`: somebody else replaced it.
    pub fn rebase(
        &self,
        (pid, frame): (u32, FrameRef<'_>),
        used: usize,
        (base, overlay): (&[u8], bool),
        guard: &Guard,
    ) -> bool {
        let new = NewFrame { overlay, base, ..frame.outline() };
        self.replace(pid, frame, FrameRef::create_with(self.arena(), new, frame, 0..used), guard)
    }

    /// Frees a frame that has left the mapping table once nobody can see it any more.
    pub fn retire(&self, frame: FrameRef<'_>, guard: &Guard) {
        self.shared.retire(frame, guard);
    }

    /// Frees a PID whose word is 0 or says "redirect" once nobody can have it any more.
    pub fn retire_pid(&self, pid: u32, guard: &Guard) {
        let shared = Arc::clone(&self.shared);
        let free = move || {
            shared.table.set(pid, Word::FREE);
            shared.table.free(pid);
        };
        frame::defer(guard, free);
    }

    /// An image is not referred to any more.
    pub fn kill(&self, image: ImageAddr) {
        if image.is_some() {
            self.log.pages().kill(image);
        }
    }

    /// Kills the images of several big values.
    pub fn kill_all(&self, images: &[ImageAddr]) {
        images.iter().for_each(|image| self.kill(*image));
    }

    /// An error that says what is wrong with an image.
    #[cold]
    pub fn damaged(&self, image: ImageAddr, what: &str) -> Error {
        self.log.pages().damaged(image, what)
    }

    /// Reads a leaf image.
    ///
    /// # Errors
    /// `Corruption` with its place; what reading failed with.
    pub fn read_leaf(&self, image: ImageAddr) -> Result<IVec> {
        let (_, bytes) = self.log.pages().read(image, ImageKind::Leaf)?;
        P::validate(&bytes).map_err(|what| self.damaged(image, what))?;
        Ok(bytes)
    }

    /// Reads the image under an overlay.
    ///
    /// # Errors
    /// As for [`Self::read_leaf`]; `Corruption` when it is of another range.
    pub fn read_below(&self, frame: FrameRef<'_>) -> Result<IVec> {
        let bytes = self.read_leaf(frame.disk())?;
        if P::is_of(frame, &bytes) {
            Ok(bytes)
        } else {
            Err(self.damaged(frame.disk(), "a leaf with wrong fences"))
        }
    }

    /// Brings an evicted page, whose image was read, into memory, unless somebody else did: as a whole, or an overlay with a
    /// part of it.
    pub fn fault_in(
        &self,
        pid: u32,
        tree: u32,
        image: ImageAddr,
        (base, overlay): (&[u8], bool),
        guard: &Guard,
    ) {
        count(&self.counters.faults);
        let new = NewFrame {
            kind: FrameKind::Leaf,
            overlay,
            tree,
            base,
            disk: image,
            first_lsn: Lsn::MAX,
            newest: self.newest_evicted(),
            right: 0,
        };
        let frame = self.frame(new, guard);
        if !self.table().swap(pid, Word::disk(image), Word::resident(frame)) {
            self.discard(frame);
        }
    }

    /// A page with changes below `newest` is about to be evicted.
    fn note_evicted(&self, newest: Lsn) {
        // Relaxed: the CAS on the mapping word orders it with whoever faults the page in.
        self.evicted.fetch_max(newest.0, Ordering::Relaxed);
    }

    fn newest_evicted(&self) -> Lsn {
        // Relaxed: as in `note_evicted`.
        Lsn(self.evicted.load(Ordering::Relaxed))
    }

    /// What an image holds whose content has every change before `all_before`.
    fn holds(&self, all_before: Lsn) -> Holds {
        Holds { all_before, none_from: self.log.newest() }
    }

    /// Changes before this are visible in frames.
    pub fn visible(&self) -> Lsn {
        self.log.visible()
    }

    /// Makes everything durable that was written before; the stable LSN.
    ///
    /// # Errors
    /// As for [`Log::flush`].
    pub fn flush(&self) -> Result<Lsn> {
        self.log.flush()
    }

    /// See [`Log::fence`].
    ///
    /// # Errors
    /// As there.
    pub fn fence(&self) -> Result<RedoPosition> {
        self.log.fence()
    }

    /// Writes a big value; its image is live, and durable when a record reserved later is. To be followed by
    /// [`Self::settle_big`].
    ///
    /// # Errors
    /// What writing failed with; `Unsupported` when it is too long.
    pub fn write_big(&self, tree: u32, key: &[u8], value: &[u8]) -> Result<ImageAddr> {
        let len = u32::try_from(key.len()).expect("keys are shorter than 4 GiB");
        let head = [&len.to_le_bytes()[..], key].concat();
        for part in
            ["blob blob write", "write_blob write crc", "write_blob write kind_byte", "write_blob write buf"]
        {
            fail::check(part)?;
        }
        self.log.append(Stream::Big, ImageKind::Big, tree, [&head, value], self.holds(self.log.newest()))
    }

    /// What was to refer to a big value's image does so, or does not, and the image is dead.
    pub fn settle_big(&self, image: ImageAddr, referred_to: bool) {
        if !referred_to {
            self.kill(image);
        }
        self.log.segments().let_go(image.offset());
    }

    /// Reads a sealed segment; `None`: some of the images in it are still to be referred to.
    ///
    /// # Errors
    /// What reading failed with.
    pub fn scan_segment(&self, number: u32, nonce: u64, used: u64) -> Result<Option<Scan>> {
        // Who writes leaves holds the lock until they are in their places, or is the checkpoint, beside which there is no
        // cleaner; and none come to a sealed segment any more. For reading the lock is given up: that may take long, and others
        // evict meanwhile.
        let lock = self.maintain();
        if !self.log.segments().is_settled(number) {
            return Ok(None);
        }
        drop(lock);
        self.log.pages().scan_segment(number, nonce, used).map(Some)
    }

    /// Reads a big value: its image's bytes and where in them the value starts.
    ///
    /// # Errors
    /// `Corruption` with its place; what reading failed with.
    pub fn read_big(&self, image: ImageAddr) -> Result<(IVec, usize)> {
        self.value_of(image, self.log.pages().read(image, ImageKind::Big)?.1)
    }

    /// As [`Self::read_big`], of a segment that was read.
    ///
    /// # Errors
    /// `Corruption` with its place.
    pub fn read_big_of(&self, scan: &Scan, image: ImageAddr) -> Result<(IVec, usize)> {
        self.value_of(image, self.read_for_move(scan, image)?.2)
    }

    fn value_of(&self, image: ImageAddr, bytes: IVec) -> Result<(IVec, usize)> {
        let key_len = bytes.get(..4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")) as usize);
        match key_len.and_then(|len| len.checked_add(4)).filter(|at| *at <= bytes.len()) {
            Some(at) => Ok((bytes, at)),
            None => Err(self.damaged(image, "a big value without a key")),
        }
    }

    /// Nonce of the segment of an image.
    pub fn nonce(&self, image: ImageAddr) -> u64 {
        self.log.segments().nonce(image.offset(), image.bytes()).expect("a live image is in a page segment")
    }

    /// Recovery: the directory's root, if a checkpoint was ever made. The runs that it lists become known.
    ///
    /// # Errors
    /// `Corruption` when it is damaged.
    pub fn load_root(&self) -> Result<Option<Root>> {
        let superblock = self.log.superblock();
        if superblock.root == (0, 0) {
            return Ok(None);
        }
        let (offset, bytes) = superblock.root;
        let malformed = || self.log.damage(offset, bytes, "malformed root of the leaf directory");
        let fits = bytes <= crate::log::MAX_IMAGE && offset <= crate::log::MAX_OFFSET;
        if !fits || !offset.is_multiple_of(64) || !bytes.is_multiple_of(64) || bytes == 0 {
            return Err(malformed());
        }
        let image = ImageAddr::new(offset, bytes);
        let segments = self.log.segments();
        let number = segments.number(offset).ok_or_else(malformed)?;
        let size = segments.size() as u64;
        let units = u32::try_from((offset - segments.offset(number) + bytes).div_ceil(size))
            .map_err(|_| malformed())?;
        let run = Run {
            kind: SegmentKind::Leaves,
            nonce: superblock.root_nonce,
            units,
            used: offset - segments.offset(number) + bytes,
            live: 0,
            pending: 0,
            sealed: true,
            emptied: false,
        };
        self.log.adopt(number, run)?;
        let (_, payload) = self.log.pages().read(image, ImageKind::Root)?;
        let root = Root::decode(&payload).ok_or_else(malformed)?;
        for (listed, run) in &root.runs {
            // The root's own segment is known, and may have been opened for it.
            if *listed != number {
                self.log.adopt(*listed, *run)?;
            }
        }
        let mut images = root.chunks.clone();
        images.push(image);
        for image in &images {
            if !self.revive_leaf(*image) {
                return Err(self.damaged(*image, "a part of the leaf directory outside of the page segments"));
            }
        }
        *self.directory.lock() = images;
        Ok(Some(root))
    }

    /// The root of the newest durable directory, if a checkpoint was ever made.
    ///
    /// # Errors
    /// As for [`Self::read_leaf`].
    pub fn read_root(&self) -> Result<Option<Root>> {
        let (offset, bytes) = self.log.superblock().root;
        if bytes == 0 {
            return Ok(None);
        }
        let image = ImageAddr::new(offset, bytes);
        let (_, payload) = self.log.pages().read(image, ImageKind::Root)?;
        let root = Root::decode(&payload);
        root.map(Some).ok_or_else(|| self.damaged(image, "malformed root of the leaf directory"))
    }

    /// A part of the directory.
    ///
    /// # Errors
    /// As for [`Self::read_leaf`].
    pub fn read_chunk(&self, image: ImageAddr) -> Result<IVec> {
        Ok(self.log.pages().read(image, ImageKind::Chunk)?.1)
    }

    /// Recovery: calls `each` with every item of the directory.
    ///
    /// # Errors
    /// `Corruption` when it is damaged, or what `each` returns.
    pub fn read_directory(&self, root: &Root, each: &mut dyn FnMut(Item) -> Result<()>) -> Result<()> {
        let mut decoder = directory::Decoder::default();
        let mut ended = false;
        for chunk in &root.chunks {
            decoder.feed(&self.read_chunk(*chunk)?);
            let place = |error| self.log.placed(*chunk, error);
            while !ended && let Some(item) = decoder.next().map_err(place)? {
                ended = item == Item::End;
                each(item).map_err(place)?;
            }
        }
        if ended && decoder.is_empty() {
            return Ok(());
        }
        let last = root.chunks.last().copied().unwrap_or(ImageAddr::NONE);
        Err(self.damaged(last, "the leaf directory has no end, or something follows it"))
    }

    /// Recovery: see [`Log::replay`].
    ///
    /// # Errors
    /// As there.
    pub fn replay(&self, each: EachRecord<'_>) -> Result<bool> {
        self.log.replay(each)
    }

    /// Recovery: an image of a leaf or the directory is live; `false`: it is in no segment for these.
    pub fn revive_leaf(&self, image: ImageAddr) -> bool {
        self.log.segments().revive(image.offset(), image.bytes(), SegmentKind::Leaves)
    }

    /// Recovery: a big value that the directory does not count is live.
    pub fn revive_big(&self, image: ImageAddr) {
        let known = self.log.segments().revive(image.offset(), image.bytes(), SegmentKind::Big);
        debug_assert!(known, "L2: its run was made known before");
    }

    /// Recovery: see [`Log::adopt_big`].
    ///
    /// # Errors
    /// As there.
    pub fn adopt_big(&self, image: ImageAddr, nonce: u64) -> Result<bool> {
        self.log.adopt_big(image, nonce)
    }

    /// Moves the image of a page if it is still `from`: appends it elsewhere, and has the page own the new
    /// one. Under the maintenance lock.
    ///
    /// # Errors
    /// What writing failed with.
    pub fn move_leaf(
        &self,
        pid: u32,
        from: ImageAddr,
        (header, raw): (&ImageHeader, &[u8]),
        _lock: &Maintenance<'_>,
        guard: &Guard,
    ) -> Result<bool> {
        let owns = match self.load(pid, guard).1 {
            PageState::Disk(image) => image == from,
            PageState::Resident(frame) => frame.kind() == FrameKind::Leaf && frame.disk() == from,
            _ => false,
        };
        if !owns {
            return Ok(false);
        }
        let to = self.log.pages().append_raw(Stream::Moved, header, raw)?;
        let moved = self.shared.move_image(pid, from, to, guard);
        self.kill(if moved { from } else { to });
        if moved {
            count(&self.counters.moved_images);
        }
        Ok(moved)
    }

    /// Everything that pages refer to was moved out of a segment.
    pub fn emptied(&self, number: u32) {
        self.log.segments().emptied(number);
    }

    /// A big value was moved.
    pub fn note_moved(&self) {
        count(&self.counters.moved_images);
    }

    /// An image of a segment that was read: header, bytes as stored, and payload.
    ///
    /// # Errors
    /// `Corruption` when it is not whole.
    pub fn read_for_move(&self, scan: &Scan, image: ImageAddr) -> Result<(ImageHeader, IVec, IVec)> {
        let (header, raw) = self.log.pages().scanned(scan, image)?;
        let payload = self.log.pages().payload(image, &header, &raw)?;
        Ok((header, raw, payload))
    }

    /// Bytes of memory, by what they are for.
    pub fn memory(&self) -> Memory {
        let (allocated, retired) = (self.arena().allocated(), self.arena().retired());
        let tables = self.table().bytes() + self.log.memory();
        Memory { cached: allocated.saturating_sub(retired), retired: retired.min(allocated), tables }
    }
}

impl<P> Drop for PageCache<P> {
    fn drop(&mut self) {
        let guard = crossbeam_epoch::pin();
        let (arena, table) = (&self.shared.arena, &self.shared.table);
        arena.give_back_after(|| {
            for pid in 1..table.high_water() {
                let pid = pid as u32;
                if table.try_get(pid).is_none() {
                    continue;
                }
                if let (_, PageState::Resident(frame) | PageState::Merging(frame)) = table.load(pid, &guard) {
                    table.set(pid, Word::FREE);
                    frame.discard(arena);
                }
            }
        });
    }
}
