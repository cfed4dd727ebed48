//! The ring of I/O buffers that redo records are reserved in, filled and completed.
//!
//! # How it works
//!
//! A reservation is one CAS on the header of the current buffer, which adds the record's length and one
//! writer. Filling needs no lock, as ranges are disjoint. Completing takes the writer off. A buffer that is
//! full, or that somebody wants on the medium, is *sealed*: its header takes no more reservations, and a new
//! buffer becomes current. When the last writer of a sealed buffer has left, its bytes are final and are
//! written out in order. A record longer than a buffer gets one of its own, sealed from the start.
//!
//! # States of a buffer
//!
//! ```text
//! empty --open--> open --seal--> sealed --last leave--> final --drained--> empty
//!   \--------- reserve_oversized -------^
//! ```
//!
//! # Invariants
//!
//! - L3: a byte of a buffer is written only by the reservation it belongs to, and read only when the buffer
//!   is final.
//! - L4: buffers are contiguous: the LSN at which one ends is the base of the next.
//! - L5: a buffer becomes current again only after it was drained.
//!
//! # Format
//!
//! What is in the buffers is the redo stream (`log/record.rs`), byte for byte. How it is cut into buffers and blocks
//! means nothing to a reader.
//!
//! # References
//!
//! LLAMA (Levandoski, Lomet, Sengupta, VLDB 2013), section 5, "Log-structured store buffers".

#![allow(unsafe_code)]

use crate::base::Lsn;
use crate::base::sync::atomic::{AtomicU64, Ordering, fence};
use crate::base::sync::{Backoff, Mutex, Watches};
use crossbeam_utils::CachePadded;
use std::cell::UnsafeCell;
use std::time::Duration;

const SEALED: u64 = 1 << 63;
const WRITER: u64 = 1 << 32;
const USED: u64 = WRITER - 1;

/// Longest record, bytes.
pub const MAX_RECORD: usize = 1 << 30;

/// Sealed flag, number of writers and used bytes in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header(u64);

impl Header {
    fn sealed(self) -> bool {
        self.0 & SEALED != 0
    }

    fn writers(self) -> u64 {
        (self.0 & !SEALED) >> 32
    }

    fn used(self) -> usize {
        (self.0 & USED) as usize
    }

    fn with_writer(self, len: usize) -> Header {
        Header(self.0 + WRITER + len as u64)
    }
}

#[derive(Debug)]
struct Buffer {
    /// CAS by reservations, `fetch_sub` by completions, `fetch_or` by the sealer.
    header: AtomicU64,
    /// LSN of the first byte. Written by `rotate` before the buffer becomes current.
    base: AtomicU64,
    /// L3. A cell for each byte, as nobody may have a reference to those of others.
    bytes: UnsafeCell<Box<[UnsafeCell<u8>]>>,
    /// Accesses to `bytes`.
    watches: Watches,
}

// SAFETY: `bytes` is shared as L3 says: disjoint ranges while there are writers, read-only when final. The
// boxed slice is replaced only between final and current, when nobody can reserve in it: by `drained` before
// it says that the buffer is, or by `reserve_oversized` after that, under the rotation mutex.
unsafe impl Sync for Buffer {}

/// The ring.
#[derive(Debug)]
pub struct Ring {
    buffers: Box<[CachePadded<Buffer>]>,
    capacity: usize,
    /// Sequence number of the current buffer; buffer `n` is at `n % buffers.len()`.
    current: CachePadded<AtomicU64>,
    /// Buffers with smaller sequence numbers are drained.
    drained: CachePadded<AtomicU64>,
    /// Serializes rotations.
    rotation: Mutex<()>,
    /// Reservations turned into padding. Statistic.
    aborted: AtomicU64,
}

/// What asking for a reservation gave.
#[derive(Debug)]
pub enum Reserved<'a> {
    /// Space that is ours.
    Space(Reservation<'a>),
    /// The next buffer has not been drained: drain, then ask again.
    Full,
}

/// Claimed space; a record that is not completed becomes padding when this is dropped.
#[derive(Debug)]
pub struct Reservation<'a> {
    ring: &'a Ring,
    buffer: &'a Buffer,
    start: usize,
    len: usize,
    lsn: Lsn,
}

/// A sealed buffer whose writers have left.
#[derive(Debug)]
pub struct Final<'a> {
    /// LSN of the first byte.
    pub base: Lsn,
    /// The records.
    pub bytes: &'a [u8],
}

/// A buffer of zeros, whose memory is touched only as it is used.
fn zeros(len: usize) -> Box<[UnsafeCell<u8>]> {
    let bytes = Box::into_raw(vec![0_u8; len].into_boxed_slice());
    // SAFETY: from `into_raw`, and a cell has the layout of what is in it.
    unsafe { Box::from_raw(bytes as *mut [UnsafeCell<u8>]) }
}

impl Ring {
    /// `count` buffers of `capacity` bytes, the first of them current with base `start`.
    pub fn new(count: usize, capacity: usize, start: Lsn) -> Ring {
        assert!(count >= 3, "an oversized record needs a buffer between two others");
        let buffer = || {
            CachePadded::new(Buffer {
                header: AtomicU64::new(SEALED),
                base: AtomicU64::new(0),
                bytes: UnsafeCell::new(zeros(capacity)),
                watches: Watches::new(capacity),
            })
        };
        let buffers: Box<[_]> = (0..count).map(|_| buffer()).collect();
        // Relaxed, Release: nobody else has the ring yet; as in `open`.
        buffers[0].base.store(start.0, Ordering::Relaxed);
        buffers[0].header.store(0, Ordering::Release);
        Ring {
            buffers,
            capacity,
            current: CachePadded::new(AtomicU64::new(0)),
            drained: CachePadded::new(AtomicU64::new(0)),
            rotation: Mutex::new(()),
            aborted: AtomicU64::new(0),
        }
    }

    fn buffer(&self, sequence: u64) -> &Buffer {
        &self.buffers[(sequence % self.buffers.len() as u64) as usize]
    }

    /// Claims `len` bytes.
    #[inline]
    pub fn reserve(&self, len: usize) -> Reserved<'_> {
        debug_assert!(len > 0 && len <= MAX_RECORD, "a record has bytes, and not too many");
        if len > self.capacity {
            return self.reserve_oversized(len);
        }
        loop {
            // Acquire: pairs with the Release in `open`, so base and header are those of this buffer or a
            // later one.
            let sequence = self.current.load(Ordering::Acquire);
            let buffer = self.buffer(sequence);
            // Relaxed: the CAS below orders.
            let seen = Header(buffer.header.load(Ordering::Relaxed));
            if seen.sealed() || seen.used() + len > self.capacity {
                if !self.rotate(sequence) {
                    return Reserved::Full;
                }
                continue;
            }
            let claimed = seen.with_writer(len);
            // Acquire: pairs with the Release store in `open`, so the buffer's base is seen, even when it was
            // recycled since `sequence` was read. Relaxed on failure: looked at again.
            let swap =
                buffer.header.compare_exchange_weak(seen.0, claimed.0, Ordering::Acquire, Ordering::Relaxed);
            if swap.is_ok() {
                // Relaxed: ordered by the Acquire above; stays as it is while there is a writer (L5).
                let base = Lsn(buffer.base.load(Ordering::Relaxed));
                let start = seen.used();
                return Reserved::Space(Reservation {
                    ring: self,
                    buffer,
                    start,
                    len,
                    lsn: base.plus(start as u64),
                });
            }
        }
    }

    /// Seals buffer `sequence` if it is still current and opens the next. `false`: that one is not drained.
    fn rotate(&self, sequence: u64) -> bool {
        let _rotation = self.rotation.lock();
        // Relaxed: changed only under the mutex.
        if self.current.load(Ordering::Relaxed) != sequence {
            return true;
        }
        if !self.is_drained(sequence + 1) {
            return false;
        }
        let end = self.seal(sequence);
        self.open(sequence + 1, end);
        true
    }

    /// Whether the buffer that `sequence` is to use is free (L5).
    fn is_drained(&self, sequence: u64) -> bool {
        // Acquire: pairs with the Release in `drained`, so the writer is done with the bytes.
        sequence < self.drained.load(Ordering::Acquire) + self.buffers.len() as u64
    }

    /// Under the rotation mutex: closes a buffer to reservations and returns where it ends (L4).
    fn seal(&self, sequence: u64) -> Lsn {
        let buffer = self.buffer(sequence);
        // AcqRel: no pair is relied on, as rotations are ordered by the mutex and bytes by `leave`.
        let before = Header(buffer.header.fetch_or(SEALED, Ordering::AcqRel));
        debug_assert!(!before.sealed(), "a buffer is sealed once");
        // Relaxed: written under the rotation mutex.
        Lsn(buffer.base.load(Ordering::Relaxed)).plus(before.used() as u64)
    }

    fn open(&self, sequence: u64, base: Lsn) {
        let buffer = self.buffer(sequence);
        // Relaxed: the header's Release publishes it.
        buffer.base.store(base.0, Ordering::Relaxed);
        // Release: pairs with the Acquire CAS in `reserve`.
        buffer.header.store(0, Ordering::Release);
        // Release: pairs with the Acquire in `reserve`.
        self.current.store(sequence, Ordering::Release);
    }

    fn reserve_oversized(&self, len: usize) -> Reserved<'_> {
        let _rotation = self.rotation.lock();
        // Relaxed: changed only under the mutex.
        let sequence = self.current.load(Ordering::Relaxed);
        if !self.is_drained(sequence + 2) {
            return Reserved::Full;
        }
        let lsn = self.seal(sequence);
        let buffer = self.buffer(sequence + 1);
        // SAFETY: drained and not current, so nobody has a reservation in it or reads it (L3, L5); the
        // rotation mutex keeps everybody else from opening it.
        unsafe { *buffer.bytes.get() = zeros(len) };
        // Relaxed: the header's Release publishes it.
        buffer.base.store(lsn.0, Ordering::Relaxed);
        // Release: pairs with the Acquire in `take_final`.
        buffer.header.store(SEALED + WRITER + len as u64, Ordering::Release);
        self.open(sequence + 2, lsn.plus(len as u64));
        Reserved::Space(Reservation { ring: self, buffer, start: 0, len, lsn })
    }

    /// Where the stream ends now, reservations included.
    pub fn end(&self) -> Lsn {
        let backoff = Backoff::new();
        loop {
            // Acquire: pairs with the Release in `open`.
            let sequence = self.current.load(Ordering::Acquire);
            let buffer = self.buffer(sequence);
            // Acquire: pairs with the Release in `open`, which the CASes of reservations continue, so the
            // base is of this use of the buffer or a later one. Reservations made before the call are seen,
            // by coherence.
            let header = Header(buffer.header.load(Ordering::Acquire));
            // Relaxed: ordered by the Acquire above and the fence below.
            let base = Lsn(buffer.base.load(Ordering::Relaxed));
            // Acquire: keeps the look at `current` behind those at the fields, which are of one buffer only
            // if it is current still.
            fence(Ordering::Acquire);
            if !header.sealed() && self.current.load(Ordering::Acquire) == sequence {
                return base.plus(header.used() as u64);
            }
            backoff.snooze();
        }
    }

    /// Where the stream ends, if every reservation before that was completed; `None`: some were not, just now.
    pub fn quiet_end(&self) -> Option<Lsn> {
        // Acquire: pairs with the Release in `open`.
        let sequence = self.current.load(Ordering::Acquire);
        let buffer = self.buffer(sequence);
        // Acquire: pairs with the Release in `open`, as in `end`, and with that in `Reservation::leave`, so what was
        // completed is seen.
        let header = Header(buffer.header.load(Ordering::Acquire));
        // Relaxed: ordered by the Acquire above and the fence below.
        let base = Lsn(buffer.base.load(Ordering::Relaxed));
        // Acquire: as in `end`.
        fence(Ordering::Acquire);
        let is_quiet = |sequence| {
            // Acquire: as above. One that is used again already was completed, and may only seem not to be.
            Header(self.buffer(sequence).header.load(Ordering::Acquire)).writers() == 0
        };
        let quiet = !header.sealed()
            && header.writers() == 0
            && self.current.load(Ordering::Acquire) == sequence
            && (self.first_undrained()..sequence).all(is_quiet);
        quiet.then(|| base.plus(header.used() as u64))
    }

    /// Seals the current buffer unless it is empty, and says below which sequence number all are sealed.
    /// The caller drains; `None`: drain what is sealed, then ask again.
    pub fn seal_current(&self) -> Option<u64> {
        // Acquire: pairs with the Release in `open`.
        let sequence = self.current.load(Ordering::Acquire);
        // Acquire: pairs as in `end`.
        let header = Header(self.buffer(sequence).header.load(Ordering::Acquire));
        if !header.sealed() && header.used() == 0 {
            return Some(sequence);
        }
        self.rotate(sequence).then(|| self.sealed())
    }

    /// Buffers with smaller sequence numbers are sealed.
    pub fn sealed(&self) -> u64 {
        // Acquire: pairs with the Release in `open`.
        self.current.load(Ordering::Acquire)
    }

    /// Waits for the writers of a sealed buffer and returns its bytes. Only the holder of the log's writer
    /// lock calls this, with the first sequence number that is not drained.
    pub fn take_final(&self, sequence: u64) -> Final<'_> {
        let buffer = self.buffer(sequence);
        let backoff = Backoff::new();
        let header = loop {
            // Acquire: pairs with the Release in `Reservation::leave`, so the bytes are seen.
            let header = Header(buffer.header.load(Ordering::Acquire));
            debug_assert!(header.sealed(), "only sealed buffers are drained");
            if header.writers() == 0 {
                break header;
            }
            if backoff.is_completed() {
                // A writer was descheduled between its reservation and its publication.
                std::thread::sleep(Duration::from_micros(50));
            } else {
                backoff.snooze();
            }
        };
        // SAFETY: sealed and without writers, so nobody writes the bytes until `drained` says so (L3, L5).
        let bytes = unsafe { &*buffer.bytes.get() };
        buffer.watches.read(0..header.used());
        let start = UnsafeCell::raw_get(bytes[..header.used()].as_ptr());
        // SAFETY: within the slice, initialised, and written by nobody, as above.
        let bytes = unsafe { std::slice::from_raw_parts(start, header.used()) };
        // Relaxed: stays as it is until the buffer is drained.
        Final { base: Lsn(buffer.base.load(Ordering::Relaxed)), bytes }
    }

    /// The bytes of buffer `sequence` are written out. Only the holder of the log's writer lock calls this.
    pub fn drained(&self, sequence: u64) {
        let buffer = self.buffer(sequence);
        // SAFETY: final (`take_final` came before), its only reader is our caller, which is done, and not yet
        // drained, so that nobody can reserve in it (L5).
        let bytes = unsafe { &mut *buffer.bytes.get() };
        if bytes.len() != self.capacity {
            *bytes = zeros(self.capacity);
        }
        // Release: pairs with the Acquire in `is_drained`.
        self.drained.store(sequence + 1, Ordering::Release);
    }

    /// Sequence number of the first buffer that is not drained.
    pub fn first_undrained(&self) -> u64 {
        // Acquire: pairs with the Release in `drained`.
        self.drained.load(Ordering::Acquire)
    }

    /// Reservations that were turned into padding.
    pub fn aborted(&self) -> u64 {
        // Relaxed: statistic.
        self.aborted.load(Ordering::Relaxed)
    }

    /// Bytes of the buffers.
    pub fn bytes(&self) -> u64 {
        (self.buffers.len() * self.capacity) as u64
    }
}

impl Reservation<'_> {
    /// Position of the first byte.
    #[inline]
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Whether the buffer is new, so that the one before it waits to be written.
    #[inline]
    pub fn is_first(&self) -> bool {
        self.start == 0
    }

    /// The claimed bytes; they hold what an earlier use left.
    #[inline]
    pub fn bytes(&mut self) -> &mut [u8] {
        self.buffer.watches.written(self.start..self.start + self.len);
        // SAFETY: a reservation has its range to itself while it lives (L3); the boxed slice is not replaced
        // while the buffer has a writer (L5).
        let bytes = unsafe { &*self.buffer.bytes.get() };
        let start = UnsafeCell::raw_get(bytes.as_ptr());
        // SAFETY: the range lies within the buffer, as `reserve` checked.
        let at = unsafe { start.add(self.start) };
        // SAFETY: initialised when the buffer was made; ours alone (L3).
        unsafe { std::slice::from_raw_parts_mut(at, self.len) }
    }

    /// The record is whole and what it describes is visible.
    #[inline]
    pub fn complete(self) {
        self.leave();
        std::mem::forget(self);
    }

    fn leave(&self) {
        // Release: pairs with the Acquire in `take_final`.
        let before = Header(self.buffer.header.fetch_sub(WRITER, Ordering::Release));
        debug_assert!(before.writers() > 0, "a reservation leaves once");
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let len = self.len;
        super::record::pad(self.bytes(), len);
        // Relaxed: statistic.
        self.ring.aborted.fetch_add(1, Ordering::Relaxed);
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn fill(ring: &Ring, byte: u8, len: usize) -> Option<Lsn> {
        match ring.reserve(len) {
            Reserved::Full => None,
            Reserved::Space(mut space) => {
                let lsn = space.lsn();
                space.bytes().fill(byte);
                space.complete();
                Some(lsn)
            }
        }
    }

    fn drain(ring: &Ring, out: &mut Vec<u8>) {
        while ring.first_undrained() < ring.sealed() {
            let sequence = ring.first_undrained();
            let done = ring.take_final(sequence);
            out.extend_from_slice(done.bytes);
            ring.drained(sequence);
        }
    }

    #[test]
    fn records_come_out_in_order_of_their_lsns() {
        let ring = Ring::new(3, 64, Lsn(10));
        let mut out = Vec::new();
        let mut expected = Vec::new();
        for i in 0..200_u8 {
            let len = [5, 64, 300, 1][i as usize % 4];
            let lsn = loop {
                match fill(&ring, i, len) {
                    Some(lsn) => break lsn,
                    None => drain(&ring, &mut out),
                }
            };
            assert_eq!(lsn.0, 10 + expected.len() as u64);
            expected.extend(std::iter::repeat_n(i, len));
            assert_eq!(ring.end().0, 10 + expected.len() as u64);
        }
        while ring.seal_current().is_none() {
            drain(&ring, &mut out);
        }
        drain(&ring, &mut out);
        assert!(out == expected);
        let at_rest = ring.sealed();
        assert_eq!(ring.seal_current(), Some(at_rest), "an empty buffer is not sealed");
    }

    #[test]
    fn racing_writers_and_a_drainer_lose_nothing() {
        let each = if cfg!(miri) { 60 } else { 20_000_u32 };
        let ring = Ring::new(4, 256, Lsn(64));
        let stop = AtomicBool::new(false);
        let mut out = Vec::new();
        std::thread::scope(|s| {
            let write = |who: u32| {
                let ring = &ring;
                move || {
                    for n in 0..each {
                        let len = if n % 97 == 0 { 700 } else { 16 + (n % 5) as usize * 8 };
                        loop {
                            let Reserved::Space(mut space) = ring.reserve(len) else {
                                std::thread::yield_now();
                                continue;
                            };
                            let lsn = space.lsn().0;
                            let bytes = space.bytes();
                            bytes.fill(0);
                            bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
                            bytes[4..8].copy_from_slice(&(who << 24 | n).to_le_bytes());
                            bytes[8..16].copy_from_slice(&lsn.to_le_bytes());
                            space.complete();
                            break;
                        }
                    }
                }
            };
            let writers = [s.spawn(write(1)), s.spawn(write(2))];
            let drainer = s.spawn(|| {
                let mut out = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    ring.seal_current();
                    drain(&ring, &mut out);
                    std::thread::yield_now();
                }
                ring.seal_current();
                drain(&ring, &mut out);
                out
            });
            writers.into_iter().for_each(|w| w.join().expect("a writer panicked"));
            stop.store(true, Ordering::Relaxed);
            out = drainer.join().expect("the drainer panicked");
        });
        let mut at = 0;
        let mut next = [0_u32; 3];
        while at < out.len() {
            let word = |from: usize| u32::from_le_bytes(out[at + from..at + from + 4].try_into().expect("4"));
            let (who, n) = (word(4) >> 24, word(4) & 0xFF_FFFF);
            assert_eq!(u64::from(word(8)), 64 + at as u64, "a record is where its LSN says");
            assert_eq!(n, next[who as usize], "one writer's records keep their order");
            next[who as usize] += 1;
            at += word(0) as usize;
        }
        assert_eq!(next, [0, each, each]);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::base::sync::check;
    use crate::log::record::{frame, pad};
    use loom::thread::spawn;
    use std::sync::Arc;

    /// Bytes of a record: its frame, which holds a name for it, and its LSN.
    const RECORD: usize = 6;
    const START: Lsn = Lsn(9);

    /// The ring and what was drained, under the log's writer lock.
    struct Log {
        ring: Ring,
        out: Mutex<Vec<u8>>,
    }

    /// Drains what is sealed.
    fn drain(log: &Log) {
        let mut out = log.out.lock();
        while log.ring.first_undrained() < log.ring.sealed() {
            let sequence = log.ring.first_undrained();
            let done = log.ring.take_final(sequence);
            assert_eq!(done.base, START.plus(out.len() as u64), "L4");
            out.extend_from_slice(done.bytes);
            log.ring.drained(sequence);
        }
    }

    /// Reserves a record, and fills and completes it, or drops the reservation: padding.
    fn write(log: &Log, name: u8, complete: bool) {
        loop {
            let Reserved::Space(mut space) = log.ring.reserve(RECORD) else {
                drain(log);
                continue;
            };
            if !complete {
                return;
            }
            let lsn = space.lsn().0 as u8;
            let bytes = space.bytes();
            frame(bytes, name);
            bytes[RECORD - 1] = lsn;
            return space.complete();
        }
    }

    /// Two writers with so many records each, the last of the second dropped, and somebody who flushes.
    fn writers_and_a_flusher(per_buffer: usize, counts: [u8; 2]) {
        let ring = Ring::new(3, per_buffer * RECORD, START);
        let log = Arc::new(Log { ring, out: Mutex::new(Vec::new()) });
        let writers = [0, 1].map(|who| {
            let log = Arc::clone(&log);
            let count = counts[usize::from(who)];
            spawn(move || {
                for n in 0..count {
                    write(&log, 0x80 | who << 4 | n, who == 0 || n + 1 < count);
                }
            })
        });
        let total = usize::from(counts[0] + counts[1]) * RECORD;
        log.ring.seal_current();
        drain(&log);
        writers.into_iter().for_each(|w| w.join().expect("a writer panicked"));
        let ring = &log.ring;
        assert_eq!(ring.end(), START.plus(total as u64));
        assert_eq!(ring.aborted(), 1);
        while ring.seal_current().is_none_or(|below| ring.first_undrained() < below) {
            drain(&log);
        }
        let out = log.out.lock();
        assert_eq!(out.len(), total);

        let mut next = [0; 2];
        let mut padding = [0; RECORD];
        pad(&mut padding, RECORD);
        for (i, record) in out.chunks(RECORD).enumerate() {
            if record[..RECORD - 1] == padding[..RECORD - 1] {
                // The reservation that was dropped.
                next[1] += 1;
                continue;
            }
            let who = usize::from(record[4] >> 4 & 1);
            let mut expected = [0; RECORD];
            frame(&mut expected, 0x80 | (who as u8) << 4 | next[who]);
            expected[RECORD - 1] = START.plus((i * RECORD) as u64).0 as u8;
            assert_eq!(record, expected, "record {i}");
            next[who] += 1;
        }
        assert_eq!(next, counts, "nothing is lost, nothing comes twice");
    }

    #[test]
    fn buffers_of_one_record_are_reused() {
        check(2, || writers_and_a_flusher(1, [4, 1]));
    }

    #[test]
    fn buffers_of_two_records_are_shared() {
        check(2, || writers_and_a_flusher(2, [2, 2]));
    }
}
