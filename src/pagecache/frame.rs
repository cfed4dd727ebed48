//! Frames: resident pages, an immutable base image and an append-only array of delta slots.
//!
//! # States
//!
//! ```text
//! open --publish--> open ... --16th publish--> frozen --replace--> retired --epoch, discard--> freed
//!   \------------------- freeze (CAS SEAL) ------^
//! ```
//!
//! # Format
//!
//! One arena block: header (64 bytes), slots (leaf frames only, 16 words), base image.
//! A slot word is `fingerprint << 48 | address of a delta record`, 0 when empty, or `SEAL`. A delta is one change, or a
//! *run*: the intents of a transaction for this leaf, which its status decides. A run of one intent has the fingerprint
//! of its key, a longer one has `ANY`.
//!
//! # Invariants
//!
//! - P1: slots fill in order; the first empty slot is the only one a CAS may change.
//! - P2: once no slot is empty, or `SEAL` is in one, no slot ever changes again.
//! - P3: a leaf's frame is replaced in the mapping table only after it is frozen, so a publish that
//!   succeeds was made on the current frame of its page.
//! - P4: a published delta is freed only together with its frame, and that only when every guard has ended that was
//!   pinned before the frame left the mapping table.
//!
//! # Concurrency
//!
//! The successful CAS in [`FrameRef::publish`] is the linearization point of every write but those of transactions, for
//! which that is the CAS in `Status::commit`.

#![allow(unsafe_code)]

use super::arena::Arena;
use super::status::{Outcome, Status};
use crate::base::sync::Watch;
use crate::base::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use crate::base::{Lsn, prefetch};
use crate::log::ImageAddr;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

/// Delta slots of a leaf frame; few enough for every interleaving in a model.
pub const SLOTS: usize = if cfg!(loom) { 2 } else { 16 };

/// Marks the first empty slot of a frame that was frozen before it was full.
const SEAL: u64 = 1;
/// The fingerprint of a run of several changes, which may have any key.
const ANY: u16 = u16::MAX;
/// Bytes of a leaf frame that a point read looks at first: header, slots, and the fingerprints and offsets in the base.
const READ_FIRST: usize = 512;
/// Bytes of a delta, header included, that a read asks for at once.
const DELTA_FIRST: usize = 192;
/// Going through so many deltas costs a reader about as much as folding a leaf.
const FOLD_AFTER: u32 = 64;
/// As [`FOLD_AFTER`], when somebody else is about to fold it, most likely.
const FOLD_FROZEN_AFTER: u32 = 1024;
/// The clock of a frame that the eviction hand must not touch.
const HELD: u8 = 2;
const ADDRESS_BITS: u32 = 48;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A leaf: slots and a base image that is also its image on disk.
    Leaf = 1,
    /// An inner node: no slots, never on disk.
    Inner = 2,
}

/// What a delta does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeltaKind {
    /// The value is in the record.
    Put = 0,
    /// The key is gone.
    Remove = 1,
    /// The record's value is a reference to a big value.
    PutBig = 2,
    /// A run: the intents of a transaction for one leaf, which its status decides.
    Run = 3,
}

#[repr(C, align(16))]
struct Header {
    /// Written by the constructor only.
    kind: FrameKind,
    /// The base holds only changes to the image at `disk`, and copies out of it. Written by the constructor only.
    overlay: bool,
    /// 1 = used since the eviction hand last came by; `HELD` = the hand is to keep off. Any thread; relaxed.
    clock: AtomicU8,
    /// Bytes of the base image. Written by the constructor only.
    base_len: u32,
    /// The page's newest image, 0 = none. Written by the constructor only.
    disk: u64,
    /// Smallest LSN of a change that is in the base and not in the image; MAX = the base has nothing that the image has not.
    /// Written by the constructor only.
    first_lsn: u64,
    /// Above the LSN of every change in the base. Written by the constructor only.
    newest: u64,
    /// No other frame of this cache has it. Written by the constructor only.
    id: u64,
    /// The tree of the page. Written by the constructor only.
    tree: u32,
    /// PID of the right sibling, 0 = to be found from the root. Written by the constructor only.
    right: u32,
    /// PID of the page that this one is being merged into. Written before the mapping word says so.
    merge_into: AtomicU32,
    /// Deltas that readers went through, in all. Any reader; relaxed.
    passed: AtomicU32,
    spare: [u32; 2],
    /// The header and the base.
    watch: Watch,
}

/// What a new frame is made of.
#[derive(Clone, Copy, Debug)]
pub struct NewFrame<'a> {
    /// Leaf or inner.
    pub kind: FrameKind,
    /// The base holds only changes to the image at `disk`, and copies out of it.
    pub overlay: bool,
    /// The tree of the page.
    pub tree: u32,
    /// The base image.
    pub base: &'a [u8],
    /// The page's newest image.
    pub disk: ImageAddr,
    /// Smallest LSN of a change that is in `base` and not in the image.
    pub first_lsn: Lsn,
    /// Above the LSN of every change in `base`.
    pub newest: Lsn,
    /// PID of the right sibling, 0 = to be found from the root.
    pub right: u32,
}

#[repr(C)]
struct DeltaHeader {
    /// Of a change: written by `set_lsn`, before the record is published. Of a run: the address of its status, of
    /// which the record is an owner.
    lsn: AtomicU64,
    key_len: u32,
    value_len: u32,
    kind: DeltaKind,
    /// The whole record.
    watch: Watch,
}

const HEADER: usize = size_of::<Header>();
const DELTA_HEADER: usize = size_of::<DeltaHeader>();
const _: () = assert!(cfg!(loom) || HEADER == 64 && DELTA_HEADER == 24);

/// What a publish found.
#[derive(Debug)]
pub enum Published {
    /// The delta is visible.
    Installed,
    /// Another delta took the slot first; look at it and go on.
    Taken,
    /// The frame is frozen.
    Frozen,
}

/// A frame, valid as long as the epoch guard of lifetime `'g`.
#[derive(Clone, Copy, Debug)]
pub struct FrameRef<'g> {
    ptr: NonNull<Header>,
    guard: PhantomData<&'g ()>,
}

/// What a delta slot holds.
#[derive(Clone, Copy, Debug)]
pub enum Slot<'g> {
    /// One change.
    Change(DeltaRef<'g>),
    /// The intents of a transaction for this leaf.
    Run(RunRef<'g>),
}

/// A change, valid as long as the epoch guard of lifetime `'g`.
#[derive(Clone, Copy, Debug)]
pub struct DeltaRef<'g> {
    /// Position of its redo record.
    pub lsn: Lsn,
    /// What it does.
    pub kind: DeltaKind,
    /// The fingerprint in its slot.
    pub fingerprint: u16,
    /// The whole key.
    pub key: &'g [u8],
    /// The value, or a reference to a big value.
    pub value: &'g [u8],
}

/// What looking through the deltas of a frame found.
#[derive(Clone, Copy, Debug)]
pub struct Look<'g> {
    /// Number of published deltas: the slot to publish to.
    pub used: usize,
    /// Whether nothing can be published any more.
    pub frozen: bool,
    /// The newest change of the key.
    pub delta: Option<DeltaRef<'g>>,
    /// The slot that it is in; [`SLOTS`] if there is none.
    pub slot: usize,
    /// The run with an intent of somebody else for the key that is not decided.
    pub blocked: Option<RunRef<'g>>,
}

/// Who looks at the deltas of a key.
#[derive(Clone, Copy, Debug)]
pub enum Looker<'a> {
    /// Somebody who reads: waits for a transaction that is deciding.
    Reader,
    /// Somebody who wants to write, or to validate: is told of undecided intents but those of this status.
    Writer(Option<&'a Status>),
}

/// A delta record that is not published yet; freed when dropped unpublished.
#[derive(Debug)]
pub struct NewDelta<'a> {
    arena: &'a Arena,
    ptr: NonNull<u8>,
    size: usize,
    /// A run of more than one intent.
    is_long: bool,
}

/// Calls `work` once every guard that is pinned now has ended.
pub fn defer(guard: &crossbeam_epoch::Guard, work: impl FnOnce() + Send + 'static) {
    guard.defer(work);
}

/// Frees a block that others have seen. A model keeps it, so that a use after this is always told from
/// a use of what came in its place.
///
/// # Safety
/// As for [`Arena::free`].
unsafe fn give_back(arena: &Arena, block: NonNull<u8>, size: usize) {
    if cfg!(not(loom)) {
        // SAFETY: as the caller promises.
        unsafe { arena.free(block, size) };
    }
}

/// The intents of a transaction for one leaf.
#[derive(Clone, Copy, Debug)]
pub struct RunRef<'g> {
    /// What decides about them.
    pub status: &'g Status,
    bytes: &'g [u8],
}

impl<'g> RunRef<'g> {
    /// Number of intents.
    pub fn len(self) -> usize {
        run::len(self.bytes)
    }

    /// Intent `i` in key order: what is to be done, key and value.
    pub fn intent(self, i: usize) -> (DeltaKind, &'g [u8], &'g [u8]) {
        run::intent(self.bytes, i)
    }

    /// Index of the first intent whose key is not below `key`.
    pub fn lower_bound(self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.intent(middle).1 < key { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The intent for a key.
    pub fn find(self, key: &[u8]) -> Option<(DeltaKind, &'g [u8], &'g [u8])> {
        let i = self.lower_bound(key);
        (i < self.len()).then(|| self.intent(i)).filter(|(_, found, _)| *found == key)
    }

    /// The LSN of the changes, if they are some; whoever reads past an intent waits for a transaction that is deciding.
    pub fn settled(self) -> Option<Lsn> {
        let mut outcome = self.status.outcome();
        if outcome == Outcome::Deciding {
            outcome = self.status.settle();
        }
        match outcome {
            Outcome::Committed(lsn) => Some(lsn),
            _ => None,
        }
    }

    /// Intent `i` as the change that it has become.
    pub fn change(self, i: usize, lsn: Lsn, fingerprint: u16) -> DeltaRef<'g> {
        let (kind, key, value) = self.intent(i);
        DeltaRef { lsn, kind, fingerprint, key, value }
    }

    #[cold]
    fn look(
        self,
        fingerprint: u16,
        key: &[u8],
        who: Looker<'_>,
        blocked: &mut Option<RunRef<'g>>,
    ) -> Option<DeltaRef<'g>> {
        let i = self.lower_bound(key);
        if i == self.len() || self.intent(i).1 != key {
            return None;
        }
        match who {
            Looker::Reader => self.settled().map(|lsn| self.change(i, lsn, fingerprint)),
            Looker::Writer(own) => match self.status.outcome() {
                Outcome::Committed(lsn) => Some(self.change(i, lsn, fingerprint)),
                Outcome::Aborted => None,
                Outcome::Pending | Outcome::Deciding => {
                    if !own.is_some_and(|own| std::ptr::eq(own, self.status)) {
                        *blocked = Some(self);
                    }
                    None
                }
            },
        }
    }

    /// A share in the status.
    pub fn owner(self) -> Arc<Status> {
        let status = std::ptr::from_ref(self.status).expose_provenance();
        let status = std::ptr::with_exposed_provenance::<Status>(status);
        // SAFETY: from `Arc::into_raw`, and the record keeps its share.
        unsafe { Arc::increment_strong_count(status) };
        // SAFETY: this is the share that was just made.
        unsafe { Arc::from_raw(status) }
    }
}

/// An intent: what is to be done, key, and the value or the reference to it.
type Intent<'i> = (DeltaKind, &'i [u8], &'i [u8]);

/// What is left to be written of the bytes of a new delta.
struct Body {
    at: NonNull<u8>,
    left: usize,
}

impl Body {
    #[inline(always)]
    fn put(&mut self, bytes: &[u8]) {
        self.left = self.left.checked_sub(bytes.len()).expect("the length that was announced");
        // SAFETY: `NewDelta::with` made the block long enough for what is left; source and block are distinct.
        unsafe { self.at.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        // SAFETY: within the block, as above, or at its end.
        self.at = unsafe { self.at.add(bytes.len()) };
    }
}

/// The bytes of a run: number of intents, offset of each, then each: kind, length of the key, length of the value
/// (u32 each), key, value.
mod run {
    use super::{Body, DeltaKind, Intent};

    fn number(bytes: &[u8], at: usize) -> usize {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
    }

    pub fn size<'i>(intents: impl Iterator<Item = Intent<'i>>) -> usize {
        intents.fold(4, |size, (_, key, value)| size + 16 + key.len() + value.len())
    }

    pub fn write<'i>(body: &mut Body, intents: impl ExactSizeIterator<Item = Intent<'i>> + Clone) {
        let mut number =
            |n: usize| body.put(&u32::try_from(n).expect("a run is shorter than 4 GiB").to_ne_bytes());
        number(intents.len());
        let mut at = 4 + 4 * intents.len();
        for (_, key, value) in intents.clone() {
            number(at);
            at += 12 + key.len() + value.len();
        }
        for (kind, key, value) in intents {
            let number = |n: usize| (n as u32).to_ne_bytes();
            body.put(&number(kind as usize));
            body.put(&number(key.len()));
            body.put(&number(value.len()));
            body.put(key);
            body.put(value);
        }
    }

    pub fn len(bytes: &[u8]) -> usize {
        number(bytes, 0)
    }

    pub fn intent(bytes: &[u8], i: usize) -> (DeltaKind, &[u8], &[u8]) {
        let at = number(bytes, 4 + 4 * i);
        let kind = match number(bytes, at) {
            0 => DeltaKind::Put,
            1 => DeltaKind::Remove,
            _ => DeltaKind::PutBig,
        };
        let (key, value) = (number(bytes, at + 4), number(bytes, at + 8));
        let rest = &bytes[at + 12..at + 12 + key + value];
        (kind, &rest[..key], &rest[key..])
    }
}

fn slot_area(kind: FrameKind) -> usize {
    match kind {
        FrameKind::Leaf => SLOTS * size_of::<AtomicU64>(),
        FrameKind::Inner => 0,
    }
}

impl<'a> NewDelta<'a> {
    /// A new record whose key and value are what `write` writes, so many bytes.
    #[inline(always)]
    fn with(
        arena: &'a Arena,
        (kind, is_long): (DeltaKind, bool),
        (key, value): (usize, usize),
        write: impl FnOnce(&mut Body),
    ) -> NewDelta<'a> {
        let size = DELTA_HEADER + key + value;
        let ptr = arena.alloc(size);
        let header = DeltaHeader {
            lsn: AtomicU64::new(0),
            key_len: u32::try_from(key).expect("keys are shorter than 4 GiB"),
            value_len: u32::try_from(value).expect("inline values are shorter than 4 GiB"),
            kind,
            watch: Watch::new(),
        };
        // SAFETY: the block is `size` bytes, 16-aligned and ours alone.
        unsafe { ptr.cast::<DeltaHeader>().write(header) };
        // SAFETY: `DELTA_HEADER` is within the block.
        let mut body = Body { at: unsafe { ptr.add(DELTA_HEADER) }, left: size - DELTA_HEADER };
        write(&mut body);
        assert!(body.left == 0, "all bytes of a delta are initialised");
        NewDelta { arena, ptr, size, is_long }
    }

    /// Copies a change into a new record.
    #[inline]
    pub fn new(arena: &'a Arena, kind: DeltaKind, key: &[u8], value: &[u8]) -> NewDelta<'a> {
        let is_long = kind == DeltaKind::Run && run::len(value) > 1;
        Self::with(arena, (kind, is_long), (key.len(), value.len()), |body| {
            body.put(key);
            body.put(value);
        })
    }

    /// A run of intents in key order.
    pub fn run<'i>(
        arena: &'a Arena,
        status: &Arc<Status>,
        intents: impl ExactSizeIterator<Item = Intent<'i>> + Clone,
    ) -> NewDelta<'a> {
        let (is_long, size) = (intents.len() > 1, run::size(intents.clone()));
        let write = |body: &mut Body| run::write(body, intents);
        let delta = Self::with(arena, (DeltaKind::Run, is_long), (0, size), write);
        let owner = Arc::into_raw(Arc::clone(status)).expose_provenance();
        delta.set_lsn(Lsn(owner as u64));
        delta
    }

    /// A copy of what slot `i` of a frame holds, for another frame of the page.
    pub fn copy(arena: &'a Arena, frame: FrameRef<'_>, i: usize) -> NewDelta<'a> {
        match frame.slot(i) {
            Slot::Change(delta) => {
                let copy = NewDelta::new(arena, delta.kind, delta.key, delta.value);
                copy.set_lsn(delta.lsn);
                copy
            }
            Slot::Run(run) => {
                let copy = NewDelta::new(arena, DeltaKind::Run, &[], run.bytes);
                let owner = Arc::into_raw(run.owner()).expose_provenance();
                copy.set_lsn(Lsn(owner as u64));
                copy
            }
        }
    }

    /// Sets the position of the redo record, before the record is published.
    pub fn set_lsn(&self, lsn: Lsn) {
        // SAFETY: initialised by `new`, alive until dropped.
        let header = unsafe { self.ptr.cast::<DeltaHeader>().as_ref() };
        // Relaxed: the publishing CAS (Release) makes it visible.
        header.lsn.store(lsn.0, Ordering::Relaxed);
    }

    fn word(&self, fingerprint: u16) -> u64 {
        let address = self.ptr.as_ptr().expose_provenance() as u64;
        debug_assert_eq!(address & !ADDRESS_MASK, 0, "addresses have 48 bits");
        (u64::from(fingerprint) << ADDRESS_BITS) | address
    }
}

impl Drop for NewDelta<'_> {
    fn drop(&mut self) {
        // SAFETY: never published (`publish` forgets it), so nobody else has the pointer.
        unsafe { disown_status(self.ptr) };
        // SAFETY: as above.
        unsafe { self.arena.free(self.ptr, self.size) };
    }
}

/// Ends the share that a run's record has in its status; does nothing for a change.
///
/// # Safety
/// - `record` is an initialised record that is freed next, and nobody looks at it any more
unsafe fn disown_status(record: NonNull<u8>) {
    // SAFETY: initialised, as the caller promises.
    let header = unsafe { record.cast::<DeltaHeader>().as_ref() };
    // Relaxed: written before the record was published, or by this thread.
    let word = header.lsn.load(Ordering::Relaxed);
    // A run that was never given its owner has none.
    if header.kind == DeltaKind::Run && word != 0 {
        let status = std::ptr::with_exposed_provenance::<Status>(word as usize);
        // SAFETY: from `Arc::into_raw`, for this record, which gives it up here.
        drop(unsafe { Arc::from_raw(status) });
    }
}

impl<'g> FrameRef<'g> {
    /// Allocates a frame with no deltas.
    pub fn create(arena: &Arena, new: NewFrame<'_>) -> FrameRef<'g> {
        let slots = slot_area(new.kind);
        let ptr = arena.alloc(HEADER + slots + new.base.len());
        let header = Header {
            kind: new.kind,
            overlay: new.overlay,
            clock: AtomicU8::new(1),
            base_len: u32::try_from(new.base.len()).expect("a base image is shorter than 4 GiB"),
            disk: new.disk.0,
            first_lsn: new.first_lsn.0,
            newest: new.newest.0,
            id: arena.next_id(),
            tree: new.tree,
            right: new.right,
            merge_into: AtomicU32::new(0),
            passed: AtomicU32::new(0),
            spare: [0; 2],
            watch: Watch::new(),
        };
        // SAFETY: the block is large enough, 16-aligned and ours alone.
        unsafe { ptr.cast::<Header>().write(header) };
        // SAFETY: the slots follow the header within the block.
        let slots_at = unsafe { ptr.add(HEADER) };
        for i in 0..slots / size_of::<AtomicU64>() {
            // SAFETY: `slots` bytes follow the header within the block.
            let slot = unsafe { slots_at.cast::<AtomicU64>().add(i) };
            // SAFETY: within the block, as above, which is 16-aligned.
            unsafe { slot.write(AtomicU64::new(0)) };
        }
        // SAFETY: the base follows the slots within the block.
        let base_at = unsafe { slots_at.add(slots) };
        // SAFETY: the base's bytes are left in the block; source and block are distinct.
        unsafe { base_at.as_ptr().copy_from_nonoverlapping(new.base.as_ptr(), new.base.len()) };
        FrameRef { ptr: ptr.cast(), guard: PhantomData }
    }

    /// Allocates a frame with copies of some slots of another frame of the page in its first slots.
    pub fn create_with(
        arena: &Arena,
        new: NewFrame<'_>,
        from: FrameRef<'_>,
        slots: impl IntoIterator<Item = usize>,
    ) -> FrameRef<'g> {
        let frame = FrameRef::create(arena, new);
        for (at, i) in slots.into_iter().enumerate() {
            frame.put(at, from.slot_fingerprint(i), NewDelta::copy(arena, from, i));
        }
        frame
    }

    /// Fills slot `i` of a frame that nobody else has yet.
    pub fn put(self, i: usize, fingerprint: u16, delta: NewDelta<'_>) {
        let (published, _) = self.publish(i, fingerprint, delta);
        debug_assert!(matches!(published, Published::Installed), "the frame is ours alone");
    }

    /// What one like it is made of, but for its deltas.
    pub fn outline(self) -> NewFrame<'g> {
        NewFrame {
            kind: self.kind(),
            overlay: self.overlay(),
            tree: self.tree(),
            base: self.base(),
            disk: self.disk(),
            first_lsn: self.first_lsn(),
            newest: self.newest(),
            right: self.right(),
        }
    }

    /// Allocates a frame with the same content and first `used` deltas, whose image is at `disk`.
    pub fn copy<'n>(self, arena: &Arena, used: usize, disk: ImageAddr) -> FrameRef<'n> {
        FrameRef::create_with(arena, NewFrame { disk, ..self.outline() }, self, 0..used)
    }

    /// The frame at an address that was read from a mapping word.
    ///
    /// # Safety
    /// - `address` came from a resident mapping word, read while the guard of `'g` was pinned.
    pub unsafe fn from_address(address: u64) -> FrameRef<'g> {
        let ptr = std::ptr::with_exposed_provenance_mut::<Header>(address as usize);
        // SAFETY: resident words hold non-null addresses.
        let ptr = unsafe { NonNull::new_unchecked(ptr) };
        FrameRef { ptr, guard: PhantomData }
    }

    /// The address for the mapping word.
    pub fn address(self) -> u64 {
        self.ptr.as_ptr().expose_provenance() as u64
    }

    /// Asks the memory for what a point read of a leaf looks at before it knows the record, and waits for none of it.
    #[inline(always)]
    pub fn prefetch_for_get(self) {
        self.prefetch_first(READ_FIRST);
    }

    /// Asks the memory for the first `len` bytes of a page, and waits for none of them.
    #[inline(always)]
    pub fn prefetch_first(self, len: usize) {
        prefetch(self.ptr.as_ptr().cast(), len);
    }

    #[inline]
    fn header(self) -> &'g Header {
        // SAFETY: the guard of `'g` keeps the frame alive (P4).
        let header = unsafe { self.ptr.as_ref() };
        header.watch.read();
        header
    }

    /// Leaf or inner.
    #[inline]
    pub fn kind(self) -> FrameKind {
        self.header().kind
    }

    /// The base image.
    #[inline]
    pub fn base(self) -> &'g [u8] {
        let header = self.header();
        // SAFETY: `create` made the block this long.
        let at = unsafe { self.ptr.cast::<u8>().add(HEADER + slot_area(header.kind)) };
        // SAFETY: initialised by `create`, immutable, alive for `'g`.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), header.base_len as usize) }
    }

    #[inline]
    fn slots(self) -> &'g [AtomicU64; SLOTS] {
        debug_assert_eq!(self.kind(), FrameKind::Leaf);
        // SAFETY: within the block of a leaf frame.
        let at = unsafe { self.ptr.cast::<u8>().add(HEADER) };
        // SAFETY: initialised by `create`, 16-aligned, only accessed as atomics.
        unsafe { at.cast::<[AtomicU64; SLOTS]>().as_ref() }
    }

    /// Number of published deltas, and whether the frame is frozen.
    #[inline]
    pub fn used(self) -> (usize, bool) {
        let slots = self.slots();
        for (i, slot) in slots.iter().enumerate() {
            // SeqCst: pairs with the CAS in `publish`: acquires the record, and see `Status::outcome`.
            match slot.load(Ordering::SeqCst) {
                0 => return (i, false),
                SEAL => return (i, true),
                _ => {}
            }
        }
        (SLOTS, true)
    }

    /// What slot `i`, which must be below what `used` returned, holds.
    #[inline]
    pub fn slot(self, i: usize) -> Slot<'g> {
        // Acquire: pairs with the CAS in `publish`.
        let word = self.slots()[i].load(Ordering::Acquire);
        debug_assert!(word > SEAL, "P1: delta {i} is published");
        Self::slot_at(word)
    }

    /// The change in slot `i`, which holds one.
    #[cfg(test)]
    pub fn delta(self, i: usize) -> DeltaRef<'g> {
        match self.slot(i) {
            Slot::Change(delta) => delta,
            Slot::Run(_) => panic!("slot {i} holds a run"),
        }
    }

    /// The fingerprint of slot `i`, which must be below what `used` returned.
    fn slot_fingerprint(self, i: usize) -> u16 {
        // Relaxed: published slots do not change.
        (self.slots()[i].load(Ordering::Relaxed) >> ADDRESS_BITS) as u16
    }

    /// The record of a published slot word, which was read with Acquire.
    #[inline]
    fn slot_at(word: u64) -> Slot<'g> {
        let ptr = std::ptr::with_exposed_provenance::<u8>((word & ADDRESS_MASK) as usize);
        prefetch(ptr, DELTA_FIRST);
        // SAFETY: published records are initialised and freed with their frame (P4).
        let header = unsafe { &*ptr.cast::<DeltaHeader>() };
        header.watch.read();
        // SAFETY: the key follows the header in the block.
        let key_at = unsafe { ptr.add(DELTA_HEADER) };
        // SAFETY: `new` copied this many bytes there; immutable since.
        let key = unsafe { std::slice::from_raw_parts(key_at, header.key_len as usize) };
        // SAFETY: the value follows the key in the block.
        let value_at = unsafe { key_at.add(header.key_len as usize) };
        // SAFETY: `new` copied this many bytes there; immutable since.
        let value = unsafe { std::slice::from_raw_parts(value_at, header.value_len as usize) };
        // Relaxed: written before the publishing CAS, which the Acquire above pairs with.
        let word_in = header.lsn.load(Ordering::Relaxed);
        let fingerprint = (word >> ADDRESS_BITS) as u16;
        if header.kind == DeltaKind::Run {
            let status = std::ptr::with_exposed_provenance::<Status>(word_in as usize);
            // SAFETY: the record is an owner of it, and lives as long as the guard (P4).
            return Slot::Run(RunRef { status: unsafe { &*status }, bytes: value });
        }
        let lsn = Lsn(word_in);
        Slot::Change(DeltaRef { lsn, kind: header.kind, fingerprint, key, value })
    }

    /// The words of the published slots, how many they are, and whether the frame is frozen.
    #[inline]
    fn words(self) -> ([u64; SLOTS], usize, bool) {
        let mut words = [0; SLOTS];
        for (i, slot) in self.slots().iter().enumerate() {
            // SeqCst: as in `used`.
            let word = slot.load(Ordering::SeqCst);
            if word <= SEAL {
                return (words, i, word == SEAL);
            }
            words[i] = word;
        }
        (words, SLOTS, true)
    }

    /// The newest change of a key among these words, and its slot.
    #[inline(always)]
    fn newest_change(
        words: &[u64],
        fingerprint: u16,
        key: &[u8],
        who: Looker<'_>,
        blocked: &mut Option<RunRef<'g>>,
    ) -> Option<(usize, DeltaRef<'g>)> {
        for (i, word) in words.iter().enumerate().rev() {
            let found = (*word >> ADDRESS_BITS) as u16;
            if found != fingerprint && found != ANY {
                continue;
            }
            match Self::slot_at(*word) {
                Slot::Change(delta) if delta.key == key => return Some((i, delta)),
                Slot::Change(_) => {}
                Slot::Run(run) => {
                    if let Some(delta) = run.look(fingerprint, key, who, blocked) {
                        return Some((i, delta));
                    }
                }
            }
        }
        None
    }

    /// The newest change of a key, for somebody who reads: waits for a transaction that is deciding.
    ///
    /// The linearization point is the load of the word that is returned; of the first word if there is none; and if the
    /// frame was replaced before that, when the mapping word was loaded, or what is returned was published, whichever is
    /// later. What is in a later slot and was not seen was not there yet when that was loaded, as that comes after (P1).
    #[inline]
    pub fn find(self, fingerprint: u16, key: &[u8]) -> Option<DeltaRef<'g>> {
        /// Slots that are looked at before it is asked whether there are more.
        const STEP: usize = 4;
        let slots = self.slots();
        let mut hits = 0_u32;
        let mut runs = 0;
        // No branch within a step: how many slots are in use is hard to predict.
        for (i, step) in slots.chunks(STEP).enumerate() {
            let mut last = 0;
            for (j, slot) in step.iter().enumerate() {
                // SeqCst: as in `used`.
                last = slot.load(Ordering::SeqCst);
                let found = (last >> ADDRESS_BITS) as u32;
                hits |= u32::from(found == u32::from(fingerprint)) << (i * STEP + j);
                runs |= found + 1;
            }
            // P1: the rest is empty.
            if last == 0 {
                break;
            }
        }
        // Only `ANY` and one more has this bit: there is a run. And 0 is what empty slots have, too.
        if runs > u32::from(ANY) || fingerprint == 0 {
            return self.find_one_by_one(fingerprint, key);
        }
        while hits != 0 {
            let i = hits.ilog2() as usize;
            match self.slot(i) {
                Slot::Change(delta) if delta.key == key => return Some(delta),
                Slot::Change(_) => {}
                Slot::Run(_) => return self.find_one_by_one(fingerprint, key),
            }
            hits ^= 1 << i;
        }
        None
    }

    /// As [`Self::find`], for what is rare.
    #[cold]
    fn find_one_by_one(self, fingerprint: u16, key: &[u8]) -> Option<DeltaRef<'g>> {
        let (words, used, _) = self.words();
        let found = Self::newest_change(&words[..used], fingerprint, key, Looker::Reader, &mut None);
        found.map(|(_, delta)| delta)
    }

    /// Looks through the published deltas, newest first, for the one that decides about `key`.
    #[inline]
    pub fn look(self, fingerprint: u16, key: &[u8], who: Looker<'_>) -> Look<'g> {
        let (words, used, frozen) = self.words();
        let mut blocked = None;
        let found = Self::newest_change(&words[..used], fingerprint, key, who, &mut blocked);
        let slot = found.map_or(SLOTS, |(i, _)| i);
        Look { used, frozen, delta: found.map(|(_, delta)| delta), slot, blocked }
    }

    /// Whether slot `i` says anything about a key.
    pub fn concerns(self, i: usize, key: &[u8]) -> bool {
        match self.slot(i) {
            Slot::Change(delta) => delta.key == key,
            Slot::Run(run) => run.find(key).is_some(),
        }
    }

    /// The undecided runs among the first `used` slots.
    pub fn undecided(self, used: usize) -> impl Iterator<Item = RunRef<'g>> {
        (0..used).filter_map(move |i| match self.slot(i) {
            Slot::Run(run) if run.status.outcome().is_open() => Some(run),
            _ => None,
        })
    }

    /// Puts a delta into slot `i`. The linearization point of single writes.
    ///
    /// On anything but `Installed` the delta is handed back.
    pub fn publish<'a>(
        self,
        i: usize,
        fingerprint: u16,
        delta: NewDelta<'a>,
    ) -> (Published, Option<NewDelta<'a>>) {
        let Some(slot) = self.slots().get(i) else { return (Published::Frozen, Some(delta)) };
        let fingerprint = if delta.is_long { ANY } else { fingerprint };
        // SeqCst: releases the record to the loads in `used`, `look` and `slot`, and see `Status::outcome`.
        // Acquire on failure lets the caller look at the winner.
        match slot.compare_exchange(0, delta.word(fingerprint), Ordering::SeqCst, Ordering::Acquire) {
            Ok(_) => {
                std::mem::forget(delta);
                if cfg!(loom) {
                    // SeqCst: for the model checker, to which SeqCst accesses are no more than AcqRel ones.
                    fence(Ordering::SeqCst);
                }
                (Published::Installed, None)
            }
            Err(SEAL) => (Published::Frozen, Some(delta)),
            Err(_) => (Published::Taken, Some(delta)),
        }
    }

    /// Closes the frame to deltas (P2) and returns how many it has.
    pub fn freeze(self) -> usize {
        for (i, slot) in self.slots().iter().enumerate() {
            // AcqRel: as in `publish`, of which this is the competitor. Acquire on failure: the winner's record is read.
            match slot.compare_exchange(0, SEAL, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) | Err(SEAL) => return i,
                Err(_) => {}
            }
        }
        SLOTS
    }

    /// The page's newest image.
    pub fn disk(self) -> ImageAddr {
        ImageAddr(self.header().disk)
    }

    /// Smallest LSN of a change in the base that is in no image.
    pub fn first_lsn(self) -> Lsn {
        Lsn(self.header().first_lsn)
    }

    /// The LSN of slot `i`, if it holds what is decided to be a change.
    fn lsn(self, i: usize) -> Option<Lsn> {
        match self.slot(i) {
            Slot::Change(delta) => Some(delta.lsn),
            Slot::Run(run) => match run.status.outcome() {
                Outcome::Committed(lsn) => Some(lsn),
                _ => None,
            },
        }
    }

    /// Smallest LSN of a change, in the base or the first `used` deltas, that is in no image. What is not decided yet
    /// has a later LSN than any that was completed before the call.
    pub fn first_change(self, used: usize) -> Lsn {
        (0..used).filter_map(|i| self.lsn(i)).fold(self.first_lsn(), Lsn::min)
    }

    /// Whether a leaf with its first `used` deltas has nothing that its image has not.
    pub fn is_clean(self, used: usize) -> bool {
        used == 0 && self.first_lsn() == Lsn::MAX
    }

    /// Whether one of the first `used` deltas has an LSN of at least `from`.
    pub fn has_change_from(self, used: usize, from: Lsn) -> bool {
        (0..used).filter_map(|i| self.lsn(i)).any(|lsn| lsn >= from)
    }

    /// Above the LSN of every change in the base.
    #[inline]
    pub fn newest(self) -> Lsn {
        Lsn(self.header().newest)
    }

    /// No other frame of this cache has it, not even one that is long gone.
    #[inline]
    pub fn id(self) -> u64 {
        self.header().id
    }

    /// Whether the base holds only changes to the image at `disk`.
    #[inline]
    pub fn overlay(self) -> bool {
        self.header().overlay
    }

    /// The tree of the page.
    pub fn tree(self) -> u32 {
        self.header().tree
    }

    /// PID of the right sibling; 0 = to be found from the root.
    #[inline]
    pub fn right(self) -> u32 {
        self.header().right
    }

    /// PID of the page that this one is being merged into, when its mapping word says that it is.
    pub fn merge_into(self) -> u32 {
        // Relaxed: written before the CAS on the mapping word, which the reader's Acquire load pairs with.
        self.header().merge_into.load(Ordering::Relaxed)
    }

    /// Notes where the page is merged into, before the mapping word says that it is.
    pub fn set_merge_into(self, pid: u32) {
        // Relaxed: the CAS on the mapping word publishes it.
        self.header().merge_into.store(pid, Ordering::Relaxed);
    }

    /// Notes a use, for eviction.
    #[inline]
    pub fn touch(self) {
        let clock = &self.header().clock;
        // Relaxed: statistic; written only when it changes, so a hot line stays shared.
        if clock.load(Ordering::Relaxed) == 0 {
            clock.store(1, Ordering::Relaxed);
        }
    }

    /// Notes that a reader went through all deltas; whether readers did so often enough that it should fold them.
    pub fn note_reader(self) -> bool {
        let (used, frozen) = self.used();
        if used == 0 {
            return false;
        }
        let passed = &self.header().passed;
        // Relaxed: statistic. Two at the same time count as one.
        let total = passed.load(Ordering::Relaxed).saturating_add(used as u32);
        // Whoever froze it folds it soon, or gave that up.
        let enough = total >= if frozen { FOLD_FROZEN_AFTER } else { FOLD_AFTER };
        // Relaxed: as above.
        passed.store(if enough { 0 } else { total }, Ordering::Relaxed);
        enough
    }

    /// Whether it was used since the last call.
    pub fn take_clock(self) -> bool {
        // Relaxed: statistic.
        self.header().clock.compare_exchange(1, 0, Ordering::Relaxed, Ordering::Relaxed) != Err(0)
    }

    /// Keeps the eviction hand off until [`Self::release`]: no other page refers to this one yet.
    pub fn hold(self) {
        // Relaxed: the mapping word publishes it.
        self.header().clock.store(HELD, Ordering::Relaxed);
    }

    /// Whether no other page refers to this one yet.
    pub fn is_held(self) -> bool {
        // Relaxed: the mapping word published it, and who sees it a moment longer loses nothing.
        self.header().clock.load(Ordering::Relaxed) == HELD
    }

    /// Ends [`Self::hold`].
    pub fn release(self) {
        // Relaxed: statistic from here on.
        self.header().clock.store(1, Ordering::Relaxed);
    }

    /// Bytes of the record in slot `i`.
    fn slot_bytes(self, i: usize) -> usize {
        DELTA_HEADER
            + match self.slot(i) {
                Slot::Change(delta) => delta.key.len() + delta.value.len(),
                Slot::Run(run) => run.bytes.len(),
            }
    }

    /// Where the record in slot `i` is.
    pub fn slot_address(self, i: usize) -> u64 {
        // Relaxed: nothing is read there.
        self.slots()[i].load(Ordering::Relaxed) & ADDRESS_MASK
    }

    /// Bytes of the frame and its deltas.
    pub fn bytes(self) -> usize {
        let mut total = HEADER + slot_area(self.kind()) + self.base().len();
        if self.kind() == FrameKind::Leaf {
            let (used, _) = self.used();
            total += (0..used).map(|i| self.slot_bytes(i)).sum::<usize>();
        }
        total
    }

    /// Calls `free` with the frame once every guard that is pinned now has ended. The frame has left the
    /// mapping table (P3, P5).
    pub fn retire(
        self,
        guard: &crossbeam_epoch::Guard,
        free: impl FnOnce(FrameRef<'static>) + Send + 'static,
    ) {
        let address = self.address();
        defer(guard, move || {
            // SAFETY: the caller frees it here and nowhere else, so it is alive until then.
            free(unsafe { FrameRef::from_address(address) });
        });
    }

    /// Frees a frame that nobody else can reach: it never was in the mapping table, or it left it and its epoch
    /// is over.
    pub fn discard(self, arena: &Arena) {
        // SAFETY: what the callers keep, as said above: nobody else can reach it any more (P5).
        unsafe { self.free(arena) };
    }

    /// Frees the frame and its deltas.
    ///
    /// # Safety
    /// - the frame is unreachable from the mapping table and no guard that could have read it is pinned,
    ///   or it was never reachable
    pub unsafe fn free(self, arena: &Arena) {
        if self.kind() == FrameKind::Leaf {
            let (used, _) = self.used();
            for i in 0..used {
                // Acquire: pairs with the CAS in `publish`.
                let word = self.slots()[i].load(Ordering::Acquire);
                let size = self.slot_bytes(i);
                let ptr = std::ptr::with_exposed_provenance_mut::<u8>((word & ADDRESS_MASK) as usize);
                // SAFETY: published words hold non-null addresses.
                let ptr = unsafe { NonNull::new_unchecked(ptr) };
                // SAFETY: initialised, as it was published, and not freed yet.
                unsafe { ptr.cast::<DeltaHeader>().as_ref() }.watch.freed();
                // SAFETY: unreachable as the caller promises, and freed next.
                unsafe { disown_status(ptr) };
                // SAFETY: allocated with this size; unreachable as the caller promises.
                unsafe { give_back(arena, ptr, size) };
            }
        }
        let size = HEADER + slot_area(self.kind()) + self.base().len();
        self.header().watch.freed();
        // SAFETY: allocated with this size by `create`; unreachable as the caller promises.
        unsafe { give_back(arena, self.ptr.cast(), size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn new_frame(kind: FrameKind, base: &[u8]) -> NewFrame<'_> {
        let disk = ImageAddr::NONE;
        NewFrame { kind, overlay: false, tree: 1, base, disk, first_lsn: Lsn::MAX, newest: Lsn(0), right: 0 }
    }

    fn put<'a>(arena: &'a Arena, key: &[u8], value: &[u8], lsn: u64) -> NewDelta<'a> {
        let delta = NewDelta::new(arena, DeltaKind::Put, key, value);
        delta.set_lsn(Lsn(lsn));
        delta
    }

    #[test]
    fn deltas_are_found_newest_first_and_memory_returns() {
        let arena = Arena::default();
        let frame = FrameRef::create(
            &arena,
            NewFrame { first_lsn: Lsn(7), ..new_frame(FrameKind::Leaf, b"base image") },
        );
        assert_eq!((frame.base(), frame.first_lsn(), frame.used()), (&b"base image"[..], Lsn(7), (0, false)));
        for (i, value) in [b"old", b"new"].into_iter().enumerate() {
            let (outcome, back) = frame.publish(i, 9, put(&arena, b"key", value, i as u64));
            assert!(matches!(outcome, Published::Installed) && back.is_none());
        }
        let found = frame.look(9, b"key", Looker::Reader).delta.expect("published");
        assert_eq!((found.value, found.lsn, found.kind), (&b"new"[..], Lsn(1), DeltaKind::Put));
        assert!(frame.look(9, b"other", Looker::Reader).delta.is_none(), "a fingerprint alone is no match");
        assert_eq!(frame.delta(0).value, b"old");
        let find = |fingerprint| frame.find(fingerprint, b"key").map(|delta| delta.value);
        assert_eq!((find(9), find(0), find(8)), (Some(&b"new"[..]), None, None));
        for (i, key) in (2..SLOTS).zip([b"a", b"b", b"c", b"d", b"e", b"f"]) {
            let (outcome, _) = frame.publish(i, 0, put(&arena, key, key, i as u64));
            assert!(matches!(outcome, Published::Installed));
            assert_eq!(frame.find(0, key).map(|delta| delta.value), Some(&key[..]));
            assert_eq!(find(9), Some(&b"new"[..]), "whatever is behind it");
        }
        // SAFETY: never reachable from a mapping table.
        unsafe { frame.free(&arena) };
        assert_eq!(arena.allocated(), 0, "frame and deltas are freed");
    }

    #[test]
    fn a_run_is_what_its_status_says_and_lets_go_of_it() {
        let arena = Arena::default();
        for (intents, commits) in [(1, true), (3, true), (1, false), (3, false)] {
            let status = Status::new(1, false);
            let frame = FrameRef::create(&arena, new_frame(FrameKind::Leaf, &[]));
            frame.put(0, 9, put(&arena, b"b", b"old", 1));
            let all: [(DeltaKind, &[u8], &[u8]); 3] = [
                (DeltaKind::Put, b"b", b"new"),
                (DeltaKind::Remove, b"c", b""),
                (DeltaKind::PutBig, b"d", b"reference"),
            ];
            frame.put(1, 9, NewDelta::run(&arena, &status, all[..intents].iter().copied()));
            drop(NewDelta::run(&arena, &status, all.into_iter()));
            let value = |who| frame.look(9, b"b", who).delta.map(|delta| (delta.value, delta.lsn));
            assert_eq!(value(Looker::Reader), Some((&b"old"[..], Lsn(1))), "pending");
            let look = frame.look(9, b"b", Looker::Writer(None));
            assert!(look.blocked.is_some_and(|run| std::ptr::eq(run.status, &*status)));
            assert!(frame.look(9, b"b", Looker::Writer(Some(&status))).blocked.is_none());
            assert_eq!((frame.undecided(2).count(), frame.first_change(2)), (1, Lsn(1)));
            let copy = frame.copy(&arena, frame.freeze(), ImageAddr(6));
            assert!(status.begin_deciding() && if commits { status.commit(Lsn(7)) } else { status.abort() });
            let expected = if commits { (&b"new"[..], Lsn(7)) } else { (&b"old"[..], Lsn(1)) };
            for frame in [frame, copy] {
                assert_eq!(frame.find(9, b"b").map(|delta| (delta.value, delta.lsn)), Some(expected));
                let other = frame.look(8, b"d", Looker::Reader).delta.map(|delta| delta.kind);
                assert_eq!(other, (commits && intents == 3).then_some(DeltaKind::PutBig));
                assert!(frame.concerns(1, b"b") && !frame.concerns(1, b"a"));
                assert_eq!(frame.undecided(2).count(), 0);
            }
            assert_eq!(Arc::strong_count(&status), 3, "ours, and one for each frame");
            for frame in [frame, copy] {
                // SAFETY: never reachable from a mapping table.
                unsafe { frame.free(&arena) };
            }
            assert_eq!((Arc::strong_count(&status), arena.allocated()), (1, 0));
        }
    }

    #[test]
    fn a_frozen_frame_takes_no_delta() {
        let arena = Arena::default();
        for filled in [0, 3, SLOTS] {
            let frame = FrameRef::create(&arena, new_frame(FrameKind::Leaf, &[]));
            for i in 0..filled {
                assert!(matches!(
                    frame.publish(i, 1, put(&arena, &[i as u8], b"v", 0)).0,
                    Published::Installed
                ));
            }
            assert_eq!(frame.freeze(), filled);
            assert_eq!(frame.freeze(), filled, "freezing twice changes nothing");
            assert_eq!(frame.used(), (filled, true));
            assert!(matches!(frame.publish(filled, 1, put(&arena, b"k", b"v", 0)).0, Published::Frozen));
            // SAFETY: never reachable from a mapping table.
            unsafe { frame.free(&arena) };
        }
        assert_eq!(arena.allocated(), 0, "rejected deltas are freed, too");
    }

    #[test]
    fn a_copy_differs_only_in_its_image() {
        let arena = Arena::default();
        let new =
            NewFrame { disk: ImageAddr(5), overlay: true, right: 3, ..new_frame(FrameKind::Leaf, b"base") };
        let frame = FrameRef::create(&arena, new);
        assert!(matches!(frame.publish(0, 1, put(&arena, b"k", b"v", 8)).0, Published::Installed));
        let copy = frame.copy(&arena, frame.freeze(), ImageAddr(6));
        assert_eq!((frame.disk(), copy.disk()), (ImageAddr(5), ImageAddr(6)));
        assert_eq!((copy.base(), copy.overlay(), copy.right()), (frame.base(), true, 3));
        let delta = copy.delta(0);
        assert_eq!((delta.key, delta.value, delta.lsn), (&b"k"[..], &b"v"[..], Lsn(8)));
        assert_eq!(copy.used(), (1, false), "it takes deltas again");
        // SAFETY: never reachable from a mapping table.
        unsafe { copy.free(&arena) };
        assert!(frame.take_clock() && !frame.take_clock());
        frame.touch();
        assert!(frame.take_clock());
        // SAFETY: never reachable from a mapping table.
        unsafe { frame.free(&arena) };
    }

    /// Every delta that a racing publisher was told is installed is there, once, and nothing else is.
    #[test]
    fn racing_publishers_and_a_freezer_lose_nothing() {
        let rounds = if cfg!(miri) { 8 } else { 2_000 };
        let arena = Arc::new(Arena::default());
        for round in 0..rounds {
            let frame = FrameRef::create(&arena, new_frame(FrameKind::Leaf, &[]));
            let address = frame.address();
            let writer = |who: u8| {
                let arena = Arc::clone(&arena);
                move || {
                    // SAFETY: the frame is freed only after every thread was joined.
                    let frame = unsafe { FrameRef::from_address(address) };
                    let mut installed = Vec::new();
                    for n in 0..12_u8 {
                        let mut delta = put(&arena, &[who, n], &[n], 0);
                        loop {
                            let (used, _) = frame.used();
                            match frame.publish(used, u16::from(n), delta) {
                                (Published::Installed, _) => break installed.push([who, n]),
                                (Published::Frozen, _) => return installed,
                                (Published::Taken, back) => delta = back.expect("handed back"),
                            }
                        }
                    }
                    installed
                }
            };
            let mut acked: Vec<[u8; 2]> = std::thread::scope(|s| {
                let threads = [s.spawn(writer(1)), s.spawn(writer(2))];
                if round % 2 == 0 {
                    s.spawn(move || {
                        // SAFETY: as above.
                        unsafe { FrameRef::from_address(address) }.freeze()
                    });
                }
                threads.into_iter().flat_map(|t| t.join().expect("a writer panicked")).collect()
            });
            let (used, _) = frame.used();
            let mut seen: Vec<[u8; 2]> =
                (0..used).map(|i| frame.delta(i).key.try_into().expect("two bytes")).collect();
            acked.sort_unstable();
            seen.sort_unstable();
            assert_eq!(acked, seen);
            // SAFETY: all threads are joined.
            unsafe { frame.free(&arena) };
        }
        assert_eq!(arena.allocated(), 0);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::base::sync::check;
    use std::sync::Arc;

    /// Of all keys, so that looking for one looks at the records of the others.
    const FINGERPRINT: u16 = 7;

    /// The key, and the LSN, of a delta of the model.
    fn name(who: u8, n: u8) -> [u8; 2] {
        [who, n]
    }

    fn lsn([who, n]: [u8; 2]) -> Lsn {
        Lsn(u64::from(who) * 10 + u64::from(n))
    }

    /// The published prefix, each record as its publisher made it.
    fn published(frame: FrameRef<'_>, used: usize) -> Vec<[u8; 2]> {
        let delta = |i| {
            let delta = frame.delta(i);
            let key: [u8; 2] = delta.key.try_into().expect("two bytes");
            assert_eq!((delta.value, delta.lsn, delta.fingerprint), (&key[1..], lsn(key), FINGERPRINT));
            key
        };
        (0..used).map(delta).collect()
    }

    /// Publishes `count` deltas, or as many as the frame takes.
    fn publisher(arena: &Arena, frame: FrameRef<'_>, who: u8, count: u8) -> Vec<[u8; 2]> {
        let mut installed = Vec::new();
        for n in 0..count {
            let key = name(who, n);
            let mut delta = NewDelta::new(arena, DeltaKind::Put, &key, &key[1..]);
            delta.set_lsn(lsn(key));
            loop {
                let look = frame.look(FINGERPRINT, &key, Looker::Reader);
                assert!(look.delta.is_none(), "not published yet");
                match frame.publish(look.used, FINGERPRINT, delta) {
                    (Published::Installed, _) => break installed.push(key),
                    (Published::Frozen, _) => return installed,
                    (Published::Taken, back) => delta = back.expect("handed back"),
                }
            }
        }
        installed
    }

    /// What was acknowledged is the published prefix, which the freezer saw whole (P1, P2).
    fn publishers_and_a_freezer(counts: [u8; 2]) {
        let arena = Arc::new(Arena::default());
        let new = NewFrame {
            kind: FrameKind::Leaf,
            overlay: false,
            tree: 1,
            base: b"base",
            disk: ImageAddr::NONE,
            first_lsn: Lsn::MAX,
            newest: Lsn(0),
            right: 0,
        };
        let frame = FrameRef::create(&arena, new);
        let address = frame.address();
        let spawn = |who: u8, count| {
            let arena = Arc::clone(&arena);
            loom::thread::spawn(move || {
                // SAFETY: the frame is freed only after every thread was joined.
                publisher(&arena, unsafe { FrameRef::from_address(address) }, who, count)
            })
        };
        let threads = [spawn(1, counts[0]), spawn(2, counts[1])];
        let used = frame.freeze();
        let at_freeze = published(frame, used);
        let mut acked: Vec<_> =
            threads.into_iter().flat_map(|t| t.join().expect("a publisher panicked")).collect();
        assert_eq!(frame.used(), (used, true), "nothing changes after the freeze");
        assert_eq!(published(frame, used), at_freeze);
        let mut seen = at_freeze;
        acked.sort_unstable();
        seen.sort_unstable();
        assert_eq!(acked, seen);
        // SAFETY: all threads are joined.
        unsafe { frame.free(&arena) };
    }

    #[test]
    fn publishers_and_a_freezer_agree() {
        check(3, || publishers_and_a_freezer([2, 1]));
    }
}
