//! Bytes in one segmented file: the redo stream, the page stream and the superblocks.
//!
//! # How it works
//!
//! ```text
//!  reserve -> fill -> publish -> complete          append images
//!      |                                                |
//!  ring of buffers --seal--> blocks (crc)               |
//!      |  drain                                         |
//!  redo segments  <- - - - one file - - - ->  page segments
//!      \________________ flush: one sync _______________/
//!                           |
//!                      superblock A / B   (checkpoints)
//! ```
//!
//! # Invariants
//!
//! L1, L2 in [`segment`], L3 to L5 in [`redo_buffer`], L6, L7 in [`stability`], L10, L11 in [`group_commit`], and
//!
//! - L8: a record is visible to others only while or after its reservation exists, and the reservation is
//!   completed only when the record is visible: once a buffer is final, everything in it is visible.
//! - L9: a superblock is written only after everything that it refers to is durable.
//!
//! # Concurrency
//!
//! Lock order: `writer`, then the ring's rotation and the locks of segments and streams; `superblock` comes before
//! `sync_call`, which is innermost. Who leads a group commit takes them and holds none of them before; `writer` is
//! released before the sync, so that filling buffers goes on while the medium syncs.

pub mod address;
pub mod compression;
pub mod format;
mod group_commit;
#[cfg(all(test, loom))]
mod models;
pub mod page_stream;
pub mod record;
pub mod redo_buffer;
pub mod redo_scan;
mod redo_writer;
pub mod salvage;
pub mod scrub;
pub mod segment;
#[cfg(test)]
mod simulated;
pub mod stability;

pub use address::{ImageAddr, MAX_IMAGE, MAX_OFFSET};
pub use format::{Holds, ImageHeader, ImageKind, MAGIC, SegmentKind};
pub use page_stream::{NewImage, PageStream, Scan, Stream};
pub use redo_buffer::Reservation;
pub use segment::{Page, Segments, Usage};

use crate::base::metrics::{self, Op};
use crate::base::sync::{Mutex, MutexGuard};
use crate::base::{Lsn, RedoPosition, fail};
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::storage::Storage;
use format::{COPY_AT, FIRST_LSN, SECTOR, SEGMENTS_AT, SLOTS_AT, SegmentHeader, Superblock};
use group_commit::GroupCommit;
use record::EachRecord;
use redo_buffer::{MAX_RECORD, Reserved, Ring};
use redo_writer::RedoWriter;
use stability::Stability;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// What the layer is told when it is opened.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Bytes of one redo buffer.
    pub redo_buffer: usize,
    /// Never sync: the data is not to survive the process.
    pub volatile: bool,
    /// Records are refused.
    pub read_only: bool,
    /// zstd level for images; `None` = they are not compressed.
    pub compression: Option<i32>,
}

/// Buffers of the ring.
const BUFFERS: usize = if cfg!(loom) { 3 } else { 8 };
/// Free segments that keep their blocks, to be reused without metadata to commit.
const RECYCLED: usize = 2;

/// The log of one database.
pub struct Log {
    storage: Arc<dyn Storage>,
    segments: Arc<Segments>,
    pages: PageStream,
    options: LogOptions,
    stability: Stability,
    /// Set once the stream's end is known.
    ring: OnceLock<Ring>,
    /// Moves buffers to the medium. `None` until the stream's end is known.
    writer: Mutex<Option<RedoWriter>>,
    /// Makes those who flush at the same time share a sync.
    commits: GroupCommit,
    /// Held across every call of the system's sync: it reports a failure to one caller only.
    sync_call: Mutex<()>,
    /// The newest superblock that is durable.
    superblock: Mutex<Superblock>,
    /// Called when there is a sealed buffer to write.
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Where replay would start after a crash now. Raised by checkpoints; read as a hint.
    redo_lsn: AtomicU64,
    /// Position of the record that is being replayed. Written by recovery, which is alone.
    replaying: AtomicU64,
    /// Syncs. Statistic.
    syncs: AtomicU64,
    /// Segments freed. Statistic.
    freed: AtomicU64,
    /// Where the stream went on when the file was opened. Set once, by recovery.
    started: AtomicU64,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Log({:?}, stable {})", self.storage, self.stability.stable().0)
    }
}

/// The first sector of a new file: all that makes it a database.
pub fn initial_contents(segment: usize, compressed: bool) -> [u8; SECTOR] {
    let redo = RedoPosition { lsn: FIRST_LSN, segment: 0, offset: SECTOR as u32, nonce: 0 };
    let superblock = Superblock {
        generation: 1,
        segment: segment_size(segment),
        compressed,
        root: (0, 0),
        root_nonce: 0,
        redo,
        stable: FIRST_LSN,
        id_floor: 0,
    };
    superblock.encode()
}

/// The size of a segment that comes nearest to what was asked for.
fn segment_size(asked: usize) -> u32 {
    let bounded = asked.clamp(*format::SEGMENT_SIZES.start() as usize, *format::SEGMENT_SIZES.end() as usize);
    u32::try_from(bounded.next_multiple_of(4096)).expect("bounded")
}

/// The newest copy in a slot; `None`: there is no whole one.
fn read_slot(storage: &dyn Storage, slot: u64, len: u64) -> Result<Option<Superblock>> {
    let mut newest: Option<Superblock> = None;
    let mut stranger = None;
    for at in [slot, slot + COPY_AT] {
        let mut sector = [0; SECTOR];
        let there = usize::try_from(len.saturating_sub(at)).map_or(SECTOR, |len| len.min(SECTOR));
        storage.read_at(at.min(len), &mut sector[..there])?;
        match Superblock::decode(&sector) {
            // One that belongs into the other slot got here by accident.
            Ok(Some(found))
                if found.slot() == slot
                    && newest.as_ref().is_none_or(|n| n.generation < found.generation) =>
            {
                newest = Some(found);
            }
            Ok(_) => {}
            Err(error) => stranger = Some(error),
        }
    }
    match (newest, stranger) {
        (Some(found), _) => Ok(Some(found)),
        (None, Some(error)) => Err(error),
        (None, None) => Ok(None),
    }
}

/// The newest superblock of a file.
fn read_superblock(storage: &dyn Storage) -> Result<Superblock> {
    let len = storage.len()?;
    let [first, second] = SLOTS_AT.map(|at| read_slot(storage, at, len));
    match (first, second) {
        (Ok(Some(found)), Err(error @ Error::Io(_))) if found.generation == 1 => Err(error),
        // The creation was cut short: whatever is in the other slot was on its way.
        (Ok(Some(found)), Ok(None) | Err(_)) if found.generation == 1 => Ok(found),
        (Ok(Some(a)), Ok(Some(b))) if a.generation.abs_diff(b.generation) == 1 => {
            Ok(if a.generation > b.generation { a } else { b })
        }
        // Nothing of ours anywhere.
        (Err(error @ Error::Unsupported(_)), Ok(None) | Err(Error::Unsupported(_))) => Err(error),
        (Err(error @ Error::Io(_)), _) | (_, Err(error @ Error::Io(_))) => Err(error),
        // A later version wrote to this file.
        (_, Err(error)) if error.to_string().contains("version") => Err(error),
        (Err(error), _) if error.to_string().contains("version") => Err(error),
        _ => {
            let what = format!("a superblock is damaged or missing in a file of {len} bytes");
            Err(damage(storage, 0, SEGMENTS_AT, &what))
        }
    }
}

/// What is wrong at a place of the file, and how many bytes that concerns, 0 = not known.
fn damage_at(storage: &dyn Storage, offset: u64, len: u64, what: &str) -> Damage {
    let file = storage.path().map(std::path::Path::to_path_buf);
    Damage { what: what.to_owned(), file, offset, len, tree: None, keys: None }
}

/// As [`damage_at`], as an error.
#[cold]
fn damage(storage: &dyn Storage, offset: u64, len: u64, what: &str) -> Error {
    Error::damaged(damage_at(storage, offset, len, what))
}

impl Log {
    /// Opens the file as far as its superblock; [`Self::adopt`] and [`Self::replay`] follow.
    ///
    /// # Errors
    /// `Unsupported` for a file that is not ours, `Corruption` for one without a valid superblock, `Io`.
    pub fn open(storage: Arc<dyn Storage>, options: LogOptions) -> Result<Log> {
        let superblock = read_superblock(&*storage)?;
        let segments = Arc::new(Segments::new(superblock.segment));
        let pages = PageStream::new(Arc::clone(&storage), Arc::clone(&segments));
        let log = Log {
            pages,
            stability: Stability::new(superblock.stable),
            ring: OnceLock::new(),
            writer: Mutex::new(None),
            commits: GroupCommit::default(),
            sync_call: Mutex::new(()),
            wake: OnceLock::new(),
            redo_lsn: AtomicU64::new(superblock.redo.lsn.0),
            replaying: AtomicU64::new(superblock.redo.lsn.0),
            superblock: Mutex::new(superblock),
            syncs: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            started: AtomicU64::new(0),
            storage,
            segments,
            options,
        };
        log.segments.begin_recovery(log.file_segments()?);
        Ok(log)
    }

    /// An error that says what is wrong at a place of the file, and how many bytes that concerns, 0 = not known.
    #[cold]
    pub fn damage(&self, offset: u64, len: u64, what: &str) -> Error {
        damage(&*self.storage, offset, len, what)
    }

    /// As [`Self::damage`], for a report.
    pub fn damage_at(&self, offset: u64, len: u64, what: &str) -> Damage {
        damage_at(&*self.storage, offset, len, what)
    }

    /// Number of segments that the file has room for.
    fn file_segments(&self) -> Result<u32> {
        let len = self.storage.len()?.saturating_sub(SEGMENTS_AT);
        let count = len.div_ceil(self.segments.size() as u64);
        u32::try_from(count).map_err(|_| Error::Unsupported(format!("a file of {len} bytes")))
    }

    /// Recovery: the directory says that a run holds images.
    ///
    /// # Errors
    /// `Corruption` when it overlaps another or lies past the end of the file.
    pub fn adopt(&self, number: u32, page: Page) -> Result<()> {
        let end = self.file_segments()?;
        if self.segments.adopt_page(number, page, end) {
            return Ok(());
        }
        let what = format!("the directory lists segments {number}..+{}, of {end}", page.units);
        Err(self.damage(self.segments.offset(number), 0, &what))
    }

    /// Recovery: makes the run of big values known that a record refers to, and checks that the image is
    /// there. `false`: it never reached the medium whole.
    ///
    /// # Errors
    /// What reading failed with.
    pub fn adopt_big(&self, image: ImageAddr, nonce: u64) -> Result<bool> {
        let Some(number) = self.segments.number(image.offset()) else { return Ok(false) };
        if !self.segments.is_big(number) {
            let mut header = [0; format::HEADER];
            let offset = self.segments.offset(number);
            if offset + header.len() as u64 > self.storage.len()? {
                return Ok(false);
            }
            self.storage.read_at(offset, &mut header)?;
            let Some(found) = SegmentHeader::decode(&header, number) else { return Ok(false) };
            let units = u32::try_from(found.first).unwrap_or(u32::MAX);
            let used = format::HEADER as u64;
            let page = Page {
                kind: found.kind,
                nonce,
                units,
                used,
                live: 0,
                pending: 0,
                sealed: true,
                emptied: false,
            };
            if found.kind != SegmentKind::Big
                || found.nonce != nonce
                || !self.segments.adopt_page(number, page, self.file_segments()?)
            {
                return Ok(false);
            }
            // As in `write_again`: it may be in the caches of the system only.
            self.storage.write_at(offset, &header)?;
        }
        if self.segments.nonce(image.offset(), image.bytes()) != Some(nonce) {
            return Ok(false);
        }
        match self.pages.read_raw(image) {
            Ok((header, _)) if header.kind != ImageKind::Big => Ok(false),
            Ok((_, raw)) => {
                self.storage.write_at(image.offset(), &raw)?;
                self.segments.note_used(number, image.offset() + image.bytes());
                Ok(true)
            }
            Err(Error::Corruption { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Recovery: calls `each` with position, kind and body of every record of the redo tail, until it says
    /// `false` (the record refers to something that never reached the medium), then starts the stream behind
    /// the last. Whether the file was new.
    ///
    /// # Errors
    /// `Corruption` for damage to what was durable, `Io`, or what `each` returns.
    pub fn replay(&self, each: EachRecord<'_>) -> Result<bool> {
        let superblock = self.superblock();
        let (storage, segments) = (Arc::clone(&self.storage), Arc::clone(&self.segments));
        // A new file: the superblock names segment 0 with nonce 0, which no segment has, and nothing was
        // durable.
        let fresh = superblock.generation == 1;
        let writer = if fresh {
            let open = segments.open_redo();
            let mut writer = RedoWriter::new(storage, segments, open, superblock.redo.lsn);
            fail::check("write_config bytes")?;
            writer.start_segment()?;
            // From here on the superblock names a redo stream: what is flushed will be found.
            self.sync()?;
            fail::check("write_config crc")?;
            let redo = writer.position();
            // Twice: generation 1 is gone when something can be flushed, so that it always means "nothing
            // yet".
            for _ in 0..2 {
                self.write_superblock(|s| Superblock { generation: s.generation + 1, redo, ..s.clone() })?;
            }
            fail::check("write_config post")?;
            writer
        } else {
            let each: EachRecord<'_> = &mut |lsn, kind, body| {
                // Relaxed: recovery is alone.
                self.replaying.store(lsn.0, Ordering::Relaxed);
                each(lsn, kind, body)
            };
            let found = redo_scan::scan(&*storage, &segments, superblock.redo, superblock.stable, each)?;
            self.write_again(&superblock, &found)?;
            // Free from here on is what this superblock does not refer to, but the one before it may. If this one is in
            // the caches of the system only, a power cut leaves that one, so this one must be durable first (L1).
            self.sync()?;
            self.stability.raise(found.end);
            let writer = RedoWriter::resume(storage, Arc::clone(&segments), &found);
            segments.end_recovery();
            writer
        };
        let start = writer.lsn();
        // Relaxed: recovery is alone.
        self.started.store(start.0, Ordering::Relaxed);
        *self.writer.lock() = Some(writer);
        let ring = Ring::new(BUFFERS, self.options.redo_buffer, start);
        self.ring.set(ring).expect("replayed once");
        Ok(fresh)
    }

    /// Recovery: writes what it relies on, and nobody knows to be durable, once more to where it is. After a
    /// failed sync the system may show bytes that it will never write by itself (L7); those of the next sync
    /// it will.
    fn write_again(&self, superblock: &Superblock, found: &redo_scan::ScannedRedo) -> Result<()> {
        fail::check("buffer write")?;
        for (number, end) in &found.chain {
            if *end >= superblock.stable {
                // Of a segment that ends there all is durable but perhaps its header, which names the next one.
                let relied_on = if *end > superblock.stable { self.segments.size() } else { SECTOR };
                let offset = self.segments.offset(*number);
                let there = self.storage.len()?.saturating_sub(offset).min(relied_on as u64);
                let mut bytes = vec![0; there as usize];
                self.storage.read_at(offset, &mut bytes)?;
                self.storage.write_at(offset, &bytes)?;
            }
        }
        self.put_superblock(superblock)?;
        if superblock.generation == 2 {
            // The creation was cut short before generation 1 was gone.
            self.sync()?;
            self.write_superblock(|s| Superblock { generation: s.generation + 1, ..s.clone() })?;
        }
        Ok(())
    }

    /// Changes before this are visible in frames.
    pub fn visible(&self) -> Lsn {
        match self.ring.get() {
            // L8: what is durable was in a buffer that was final.
            Some(_) => self.stability.stable(),
            // Relaxed: recovery is alone.
            None => Lsn(self.replaying.load(Ordering::Relaxed)),
        }
    }

    /// No change at or behind this was made yet.
    pub fn newest(&self) -> Lsn {
        match self.ring.get() {
            Some(ring) => ring.end(),
            // Relaxed: recovery is alone.
            None => Lsn(self.replaying.load(Ordering::Relaxed)).plus(1),
        }
    }

    /// Sealed buffers that wait to be written.
    pub fn backlog(&self) -> u64 {
        self.ring().sealed() - self.ring().first_undrained()
    }

    /// Sets what is called when a buffer waits to be written.
    pub fn set_wake(&self, wake: Box<dyn Fn() + Send + Sync>) {
        // Set once, by the engine.
        let _ = self.wake.set(wake);
    }

    #[inline]
    fn ring(&self) -> &Ring {
        self.ring.get().expect("the stream is started before anything is written")
    }

    /// Claims `len` bytes of the redo stream.
    ///
    /// # Errors
    /// The first fatal error; what writing buffers out failed with; `Unsupported` for more than 1 GiB.
    #[inline]
    pub fn reserve(&self, len: usize) -> Result<Reservation<'_>> {
        self.stability.check()?;
        if self.options.read_only {
            return Err(Error::Unsupported("the database was opened with read_only(true)".into()));
        }
        if len > MAX_RECORD {
            return Err(Error::Unsupported(format!("a record of {len} bytes")));
        }
        loop {
            match self.ring().reserve(len) {
                Reserved::Space(space) => {
                    if space.is_first() {
                        self.wake();
                    }
                    return Ok(space);
                }
                Reserved::Full => self.drain()?,
            }
        }
    }

    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    fn writer(&self) -> MutexGuard<'_, Option<RedoWriter>> {
        self.writer.lock()
    }

    fn drain_below(&self, writer: &mut RedoWriter, sequence: u64) -> Result<()> {
        let ring = self.ring();
        let mut next = ring.first_undrained();
        while next < sequence {
            let done = ring.take_final(next);
            writer.write(done.base, done.bytes, self.stability.stable())?;
            ring.drained(next);
            next += 1;
        }
        Ok(())
    }

    /// Writes every sealed buffer.
    ///
    /// # Errors
    /// What writing failed with; nothing is lost, the next call tries again.
    pub fn drain(&self) -> Result<()> {
        self.stability.check()?;
        let mut writer = self.writer();
        let writer = writer.as_mut().expect("the stream is started");
        self.drain_below(writer, self.ring().sealed())
    }

    /// Writes everything that is reserved when this is called; the writer stays locked.
    fn drain_all(&self) -> Result<MutexGuard<'_, Option<RedoWriter>>> {
        self.stability.check()?;
        let mut guard = self.writer();
        let writer = guard.as_mut().expect("the stream is started");
        let sequence = loop {
            match self.ring().seal_current() {
                Some(sequence) => break sequence,
                None => self.drain_below(writer, self.ring().sealed())?,
            }
        };
        self.drain_below(writer, sequence)?;
        Ok(guard)
    }

    /// Syncs the medium; a failure is final (L7).
    fn sync(&self) -> Result<()> {
        let _one_at_a_time = self.sync_call.lock();
        self.stability.check()?;
        if self.options.volatile {
            return Ok(());
        }
        // Relaxed: statistic.
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let _measured = metrics::measure(Op::Sync);
        fail::check("sync").and_then(|()| Ok(self.storage.sync_data()?)).map_err(|error| {
            self.stability.poison(error);
            self.stability.check().expect_err("poisoned just now")
        })
    }

    /// Makes everything durable that was reserved when this is called; one sync serves all who wait.
    /// Returns the stable LSN.
    ///
    /// # Errors
    /// What writing failed with; after a failed sync always the same error.
    pub fn flush(&self) -> Result<Lsn> {
        let goal = self.ring().end();
        self.stability.check()?;
        if self.stability.stable() >= goal {
            return Ok(self.stability.stable());
        }
        self.commits.commit(&self.stability, Some(goal), || self.drain_and_sync())
    }

    /// Makes everything durable that was written when this is called; the stable LSN.
    fn drain_and_sync(&self) -> Result<Lsn> {
        let writer = self.drain_all()?;
        let end = writer.as_ref().expect("the stream is started").lsn();
        // Buffers are filled and drained while the medium syncs.
        drop(writer);
        self.sync()?;
        self.stability.raise(end);
        Ok(end)
    }

    /// Everything reserved before this call is visible and written, and replay could start at the position
    /// returned.
    ///
    /// # Errors
    /// What writing failed with.
    pub fn fence(&self) -> Result<RedoPosition> {
        let mut writer = self.drain_all()?;
        let writer = writer.as_mut().expect("the stream is started");
        writer.start_segment()?;
        Ok(writer.position())
    }

    /// Makes a checkpoint durable: what it refers to, then its superblock. Returns the redo segments that
    /// nothing refers to any more.
    ///
    /// # Errors
    /// What writing failed with, then the previous checkpoint counts.
    pub fn commit_checkpoint(&self, root: ImageAddr, redo: RedoPosition, id_floor: u64) -> Result<Vec<u32>> {
        // Images may hold changes whose records are not durable yet: these come first (L9).
        let stable = self.flush_always()?;
        fail::check("snap write post")?;
        let root_nonce =
            self.segments.nonce(root.offset(), root.bytes()).expect("the root was just appended");
        let next = |s: &Superblock| Superblock {
            generation: s.generation + 1,
            root: (root.offset(), root.bytes()),
            root_nonce,
            redo,
            stable,
            id_floor: id_floor.max(s.id_floor),
            ..s.clone()
        };
        self.write_superblock(next)?;
        // Relaxed: a hint, see `redo_tail`.
        self.redo_lsn.store(redo.lsn.0, Ordering::Relaxed);
        Ok(self.writer().as_mut().expect("the stream is started").take_before(redo))
    }

    /// Flushes and syncs, even when the redo stream has nothing new: there may be images.
    fn flush_always(&self) -> Result<Lsn> {
        self.commits.commit(&self.stability, None, || self.drain_and_sync())
    }

    /// Notes in the superblock how far the stream is durable, so that from now on an earlier end is known for
    /// damage. Nothing is written when it says so already.
    ///
    /// # Errors
    /// What writing failed with.
    pub fn seal_end(&self) -> Result<()> {
        let stable = self.stability.stable();
        if self.superblock.lock().stable >= stable {
            return Ok(());
        }
        self.write_superblock(|s| Superblock { generation: s.generation + 1, stable, ..s.clone() })
    }

    fn write_superblock(&self, change: impl FnOnce(&Superblock) -> Superblock) -> Result<()> {
        let mut current = self.superblock.lock();
        let next = change(&current);
        fail::check("snap write mv")?;
        self.put_superblock(&next)?;
        fail::check("snap write mv post")?;
        self.sync()?;
        *current = next;
        Ok(())
    }

    /// Writes both copies of a superblock into its slot.
    fn put_superblock(&self, superblock: &Superblock) -> Result<()> {
        let mut slot = [0; COPY_AT as usize + SECTOR];
        let copy = superblock.encode();
        slot[..SECTOR].copy_from_slice(&copy);
        slot[COPY_AT as usize..].copy_from_slice(&copy);
        Ok(self.storage.write_at(superblock.slot(), &slot)?)
    }

    /// The newest durable superblock.
    pub fn superblock(&self) -> Superblock {
        self.superblock.lock().clone()
    }

    /// Whether [`Self::give_back`], of `all` or not, has something to do, now or when readers have left what was freed.
    pub fn has_spare(&self, all: bool) -> bool {
        self.segments.is_draining() || self.segments.has_spare(if all { 0 } else { RECYCLED })
    }

    /// Gives back to the medium what is free, but for what is reused soon; if `all`, that, too, and what open runs have not
    /// come to.
    ///
    /// # Errors
    /// What cutting the file or punching holes failed with.
    pub fn give_back(&self, all: bool) -> Result<()> {
        self.segments.give_back(&*self.storage, if all { 0 } else { RECYCLED })?;
        if !all {
            return Ok(());
        }
        if let Some(writer) = self.writer().as_ref() {
            self.segments.give_back_ahead(&*self.storage, writer.next())?;
        }
        self.pages.give_back()
    }

    /// Notes that segments were freed.
    pub fn note_freed(&self, count: usize) {
        // Relaxed: statistic.
        self.freed.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Appends images; compressed when that is on and worth it.
    ///
    /// # Errors
    /// The first fatal error; what writing failed with.
    pub fn append(
        &self,
        stream: Stream,
        kind: ImageKind,
        tree: u32,
        payload: [&[u8]; 2],
        holds: Holds,
    ) -> Result<ImageAddr> {
        self.stability.check()?;
        let len = payload[0].len() + payload[1].len();
        if len as u64 + 128 > MAX_IMAGE {
            return Err(Error::Unsupported(format!(
                "a page or value of {len} bytes, of at most {MAX_IMAGE}"
            )));
        }
        let packed = self.options.compression.filter(|_| payload[1].is_empty());
        let packed = packed.and_then(|level| compression::compress(payload[0], level));
        let image = match &packed {
            None => NewImage { kind, tree, payload, raw: None, holds },
            Some(packed) => NewImage { kind, tree, payload: [packed, &[]], raw: Some(len as u32), holds },
        };
        Ok(self.pages.append(stream, &[image])?[0])
    }

    /// Whether images are compressed.
    pub fn compresses(&self) -> bool {
        self.options.compression.is_some()
    }

    /// The page stream.
    pub fn pages(&self) -> &PageStream {
        &self.pages
    }

    /// The segments.
    pub fn segments(&self) -> &Arc<Segments> {
        &self.segments
    }

    /// What is durable, and whether writing is still possible.
    pub fn stability(&self) -> &Stability {
        &self.stability
    }

    /// Where the redo stream ends.
    pub fn end(&self) -> Lsn {
        self.ring().end()
    }

    /// Where the redo stream ends, if everything reserved before that was completed; `None`: some of it was not, just
    /// now.
    pub fn quiet_end(&self) -> Option<Lsn> {
        self.ring().quiet_end()
    }

    /// Redo bytes that would be replayed after a crash now.
    pub fn redo_tail(&self) -> u64 {
        // Relaxed: a hint of when a checkpoint is due. One that is made in between may have passed the end.
        self.ring().end().0.saturating_sub(self.redo_lsn.load(Ordering::Relaxed))
    }

    /// Segments that hold the redo tail.
    pub fn redo_segments(&self) -> usize {
        self.writer().as_ref().map_or(0, RedoWriter::segments)
    }

    /// Bytes that the file occupies.
    ///
    /// # Errors
    /// What asking the system failed with.
    pub fn allocated(&self) -> Result<u64> {
        Ok(self.storage.allocated()?)
    }

    /// Bytes of the redo stream since it was opened.
    pub fn redo_written(&self) -> u64 {
        // Relaxed: set before there was anybody to ask.
        self.ring().end().0.saturating_sub(self.started.load(Ordering::Relaxed))
    }

    /// Memory of buffers and tables, bytes.
    pub fn memory(&self) -> u64 {
        self.ring().bytes() + self.segments.bytes()
    }

    /// Syncs so far.
    pub fn syncs(&self) -> u64 {
        // Relaxed: statistic.
        self.syncs.load(Ordering::Relaxed)
    }

    /// Segments freed so far.
    pub fn freed(&self) -> u64 {
        // Relaxed: statistic.
        self.freed.load(Ordering::Relaxed)
    }

    /// Blocks, syncs, aborted reservations and freed segments so far.
    pub fn counts(&self) -> [u64; 4] {
        let blocks = self.writer().as_ref().map_or(0, RedoWriter::blocks);
        [blocks, self.syncs(), self.ring().aborted(), self.freed()]
    }
}
