//! Frames: resident pages, an immutable base image and an append-only array of delta slots.
//!
//! # Format
//!
//! One arena block: header (64 bytes), slots (leaf frames only, 16 words), base image.
//! A slot word is `fingerprint << 48 | address of a delta record`, 0 when empty, or `SEAL`.
//!
//! # States
//!
//! ```text
//! open --publish--> open ... --16th publish--> frozen --replace--> retired --epoch--> freed
//!   \------------------- freeze (CAS SEAL) ------^
//! ```
//!
//! # Invariants
//!
//! - P1: slots fill in order; the first empty slot is the only one a CAS may change.
//! - P2: once no slot is empty, or `SEAL` is in one, no slot ever changes again.
//! - P3: a frame is replaced in the mapping table only after it is frozen, so a publish that
//!   succeeds was made on the current frame of its page.
//! - P4: a published delta is freed only together with the frame that replaced its frame's epoch.
//!
//! # Concurrency
//!
//! The successful CAS in [`FrameRef::publish`] is the linearization point of every write.

#![allow(unsafe_code)]

use super::arena::Arena;
use crate::base::Lsn;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Delta slots of a leaf frame.
pub const SLOTS: usize = 16;

/// Marks the first empty slot of a frame that was frozen before it was full.
const SEAL: u64 = 1;
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
}

#[repr(C, align(16))]
struct Header {
    /// Written by the constructor only.
    kind: FrameKind,
    /// 1 = used since the eviction hand last came by. Relaxed statistic.
    clock: AtomicU8,
    base_len: u32,
    /// Address of the image equal to the base, 0 = none; the cleaner moves it by CAS.
    disk: AtomicU64,
    /// Smallest LSN of a change that is in the base and in no image.
    first_lsn: u64,
    spare: [u64; 5],
}

#[repr(C)]
struct DeltaHeader {
    lsn: AtomicU64,
    key_len: u32,
    value_len: u32,
    kind: DeltaKind,
}

const HEADER: usize = size_of::<Header>();
const DELTA_HEADER: usize = size_of::<DeltaHeader>();
const _: () = assert!(HEADER == 64 && DELTA_HEADER == 24);

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

/// A delta record, valid as long as the epoch guard of lifetime `'g`.
#[derive(Clone, Copy, Debug)]
pub struct DeltaRef<'g> {
    /// Position of its redo record.
    pub lsn: Lsn,
    /// What it does.
    pub kind: DeltaKind,
    /// The whole key.
    pub key: &'g [u8],
    /// The value, or a reference to a big value.
    pub value: &'g [u8],
}

/// A delta record that is not published yet; freed when dropped unpublished.
#[derive(Debug)]
pub struct NewDelta<'a> {
    arena: &'a Arena,
    ptr: NonNull<u8>,
    size: usize,
}

fn slot_area(kind: FrameKind) -> usize {
    match kind {
        FrameKind::Leaf => SLOTS * 8,
        FrameKind::Inner => 0,
    }
}

impl<'a> NewDelta<'a> {
    /// Copies a change into a new record.
    pub fn new(arena: &'a Arena, kind: DeltaKind, key: &[u8], value: &[u8]) -> NewDelta<'a> {
        let size = DELTA_HEADER + key.len() + value.len();
        let ptr = arena.alloc(size);
        let header = DeltaHeader {
            lsn: AtomicU64::new(0),
            key_len: u32::try_from(key.len()).expect("keys are shorter than 4 GiB"),
            value_len: u32::try_from(value.len()).expect("inline values are shorter than 4 GiB"),
            kind,
        };
        // SAFETY: the block is `size` bytes, 16-aligned and ours alone.
        unsafe { ptr.cast::<DeltaHeader>().write(header) };
        // SAFETY: `DELTA_HEADER` is within the block.
        let body = unsafe { ptr.add(DELTA_HEADER) };
        // SAFETY: the key fits behind the header; source and block are distinct.
        unsafe { body.as_ptr().copy_from_nonoverlapping(key.as_ptr(), key.len()) };
        // SAFETY: within the block, as `size` says.
        let value_at = unsafe { body.add(key.len()) };
        // SAFETY: the value fits behind the key; source and block are distinct.
        unsafe { value_at.as_ptr().copy_from_nonoverlapping(value.as_ptr(), value.len()) };
        NewDelta { arena, ptr, size }
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
        unsafe { self.arena.free(self.ptr, self.size) };
    }
}

impl<'g> FrameRef<'g> {
    /// Allocates a frame with no deltas and returns the word for the mapping table.
    pub fn create(arena: &Arena, kind: FrameKind, base: &[u8], disk: u64, first_lsn: Lsn) -> FrameRef<'g> {
        let slots = slot_area(kind);
        let ptr = arena.alloc(HEADER + slots + base.len());
        let header = Header {
            kind,
            clock: AtomicU8::new(1),
            base_len: u32::try_from(base.len()).expect("a base image is shorter than 4 GiB"),
            disk: AtomicU64::new(disk),
            first_lsn: first_lsn.0,
            spare: [0; 5],
        };
        // SAFETY: the block is large enough, 16-aligned and ours alone.
        unsafe { ptr.cast::<Header>().write(header) };
        // SAFETY: the slots follow the header within the block.
        let slots_at = unsafe { ptr.add(HEADER) };
        // SAFETY: `slots` bytes follow the header within the block.
        unsafe { slots_at.as_ptr().write_bytes(0, slots) };
        // SAFETY: the base follows the slots within the block.
        let base_at = unsafe { slots_at.add(slots) };
        // SAFETY: `base.len()` bytes are left in the block; source and block are distinct.
        unsafe { base_at.as_ptr().copy_from_nonoverlapping(base.as_ptr(), base.len()) };
        FrameRef { ptr: ptr.cast(), guard: PhantomData }
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

    #[inline]
    fn header(self) -> &'g Header {
        // SAFETY: the guard of `'g` keeps the frame alive (P4).
        unsafe { self.ptr.as_ref() }
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
            // Acquire: pairs with the CAS in `publish`, so the record is initialised.
            match slot.load(Ordering::Acquire) {
                0 => return (i, false),
                SEAL => return (i, true),
                _ => {}
            }
        }
        (SLOTS, true)
    }

    /// Delta `i`, which must be below what `used` returned.
    #[inline]
    pub fn delta(self, i: usize) -> DeltaRef<'g> {
        // Acquire: pairs with the CAS in `publish`.
        let word = self.slots()[i].load(Ordering::Acquire);
        debug_assert!(word > SEAL, "P1: delta {i} is published");
        let ptr = std::ptr::with_exposed_provenance::<u8>((word & ADDRESS_MASK) as usize);
        // SAFETY: published records are initialised and freed with their frame (P4).
        let header = unsafe { &*ptr.cast::<DeltaHeader>() };
        // SAFETY: the key follows the header in the block.
        let key_at = unsafe { ptr.add(DELTA_HEADER) };
        // SAFETY: `new` copied this many bytes there; immutable since.
        let key = unsafe { std::slice::from_raw_parts(key_at, header.key_len as usize) };
        // SAFETY: the value follows the key in the block.
        let value_at = unsafe { key_at.add(header.key_len as usize) };
        // SAFETY: `new` copied this many bytes there; immutable since.
        let value = unsafe { std::slice::from_raw_parts(value_at, header.value_len as usize) };
        // Relaxed: written before the publishing CAS, which the Acquire above pairs with.
        DeltaRef { lsn: Lsn(header.lsn.load(Ordering::Relaxed)), kind: header.kind, key, value }
    }

    /// Newest of the first `used` deltas that has `key`.
    #[inline]
    pub fn find_delta(self, used: usize, fingerprint: u16, key: &[u8]) -> Option<DeltaRef<'g>> {
        for i in (0..used).rev() {
            // Relaxed: `delta` below re-reads with Acquire.
            let word = self.slots()[i].load(Ordering::Relaxed);
            if (word >> ADDRESS_BITS) as u16 == fingerprint {
                let delta = self.delta(i);
                if delta.key == key {
                    return Some(delta);
                }
            }
        }
        None
    }

    /// Puts a delta into slot `i`. The linearization point of writes.
    ///
    /// On anything but `Installed` the delta is handed back.
    pub fn publish<'a>(
        self,
        i: usize,
        fingerprint: u16,
        delta: NewDelta<'a>,
    ) -> (Published, Option<NewDelta<'a>>) {
        let Some(slot) = self.slots().get(i) else { return (Published::Frozen, Some(delta)) };
        // AcqRel: Release publishes the record to the Acquire loads in `used` and `delta`;
        // Acquire on failure lets the caller look at the winner.
        match slot.compare_exchange(0, delta.word(fingerprint), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                std::mem::forget(delta);
                (Published::Installed, None)
            }
            Err(SEAL) => (Published::Frozen, Some(delta)),
            Err(_) => (Published::Taken, Some(delta)),
        }
    }

    /// Closes the frame to deltas (P2) and returns how many it has.
    pub fn freeze(self) -> usize {
        for (i, slot) in self.slots().iter().enumerate() {
            // AcqRel: as in `publish`, of which this is the competitor.
            match slot.compare_exchange(0, SEAL, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) | Err(SEAL) => return i,
                Err(_) => {}
            }
        }
        SLOTS
    }

    /// Address of the image equal to the base; 0 = none.
    pub fn disk(self) -> u64 {
        // Acquire: pairs with the CAS in `set_disk`.
        self.header().disk.load(Ordering::Acquire)
    }

    /// Changes the image address if it is still `from`.
    pub fn set_disk(self, from: u64, to: u64) -> bool {
        // AcqRel: pairs with the load in `disk`.
        self.header().disk.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Smallest LSN of a change in the base that is in no image.
    pub fn first_lsn(self) -> Lsn {
        Lsn(self.header().first_lsn)
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

    /// Whether it was used since the last call.
    pub fn take_clock(self) -> bool {
        // Relaxed: statistic.
        self.header().clock.swap(0, Ordering::Relaxed) != 0
    }

    /// Bytes of the frame and its deltas.
    pub fn bytes(self) -> usize {
        let mut total = HEADER + slot_area(self.kind()) + self.base().len();
        if self.kind() == FrameKind::Leaf {
            let (used, _) = self.used();
            for i in 0..used {
                let d = self.delta(i);
                total += DELTA_HEADER + d.key.len() + d.value.len();
            }
        }
        total
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
                let word = self.slots()[i].load(Ordering::Acquire);
                let d = self.delta(i);
                let size = DELTA_HEADER + d.key.len() + d.value.len();
                let ptr = std::ptr::with_exposed_provenance_mut::<u8>((word & ADDRESS_MASK) as usize);
                // SAFETY: published words hold non-null addresses.
                let ptr = unsafe { NonNull::new_unchecked(ptr) };
                // SAFETY: allocated with this size; unreachable as the caller promises.
                unsafe { arena.free(ptr, size) };
            }
        }
        let size = HEADER + slot_area(self.kind()) + self.base().len();
        // SAFETY: allocated with this size by `create`; unreachable as the caller promises.
        unsafe { arena.free(self.ptr.cast(), size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn put<'a>(arena: &'a Arena, key: &[u8], value: &[u8], lsn: u64) -> NewDelta<'a> {
        let delta = NewDelta::new(arena, DeltaKind::Put, key, value);
        delta.set_lsn(Lsn(lsn));
        delta
    }

    #[test]
    fn deltas_are_found_newest_first_and_memory_returns() {
        let arena = Arena::new();
        let frame = FrameRef::create(&arena, FrameKind::Leaf, b"base image", 0, Lsn(7));
        assert_eq!((frame.base(), frame.first_lsn(), frame.used()), (&b"base image"[..], Lsn(7), (0, false)));
        for (i, value) in [b"old", b"new"].into_iter().enumerate() {
            let (outcome, back) = frame.publish(i, 9, put(&arena, b"key", value, i as u64));
            assert!(matches!(outcome, Published::Installed) && back.is_none());
        }
        let found = frame.find_delta(2, 9, b"key").expect("published");
        assert_eq!((found.value, found.lsn, found.kind), (&b"new"[..], Lsn(1), DeltaKind::Put));
        assert!(frame.find_delta(2, 9, b"other").is_none(), "a fingerprint alone is no match");
        assert_eq!(frame.find_delta(1, 9, b"key").expect("older").value, b"old");
        // SAFETY: never reachable from a mapping table.
        unsafe { frame.free(&arena) };
        assert_eq!(arena.allocated(), 0, "frame and deltas are freed");
    }

    #[test]
    fn a_frozen_frame_takes_no_delta() {
        let arena = Arena::new();
        for filled in [0, 3, SLOTS] {
            let frame = FrameRef::create(&arena, FrameKind::Leaf, &[], 0, Lsn(0));
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
    fn image_address_changes_only_from_what_was_seen() {
        let arena = Arena::new();
        let frame = FrameRef::create(&arena, FrameKind::Inner, b"node", 5, Lsn(0));
        assert!(!frame.set_disk(4, 6) && frame.disk() == 5);
        assert!(frame.set_disk(5, 6) && frame.disk() == 6);
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
        let arena = Arc::new(Arena::new());
        for round in 0..rounds {
            let frame = FrameRef::create(&arena, FrameKind::Leaf, &[], 0, Lsn(0));
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
