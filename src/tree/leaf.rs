//! Leaf images: the sorted records of one key range, the same bytes in memory and on disk.
//!
//! # Format
//!
//! The payload of an image of kind 1 (`log/format.rs`). Integers are little-endian, nothing is aligned:
//!
//! | OFFSET | SIZE | FIELD | MEANING |
//! |---|---|---|---|
//! | 0 | 4 | n | number of records, 0 or more |
//! | 4 | 4 | p | length of the prefix: bytes of the low fence that every key of the leaf starts with |
//! | 8 | 4 | l | length of the low fence |
//! | 12 | 4 | h | length of the high fence; 0xFFFFFFFF = there is none: no upper end |
//! | 16 | 4 | zero | |
//! | 20 | 4 | total | length of the payload |
//! | 24 | 8 | head | first 8 bytes of the high fence, zeros behind a shorter one, from the last to the first; 0xFF each without a fence |
//! | 32 | n | fingerprints | of each record, see below |
//! | 32 + n | 4 n | offsets | of each record, from the start of the payload |
//! | 32 + 5 n | . | records | one after the other, in the order of their keys |
//! | total - h - l | l | low fence | smallest key that the leaf may have |
//! | total - h | h | high fence | smallest key that it may not have any more |
//!
//! The directory says the same fences. Keys ascend strictly as byte strings, and lie within the fences. p is 0 without a
//! high fence, otherwise at most what both fences share at their start. A record:
//!
//! | SIZE | FIELD | MEANING |
//! |---|---|---|
//! | 2 | key length | bytes of the key without the prefix; 0xFFFF = as the long key length says |
//! | 2 | value | low 14 bits: v, bytes of the value; top 2 bits: 0 = the value itself, 1 = reference to a big value; 2 is in memory only |
//! | 4 or 0 | long key length | only behind a key length of 0xFFFF |
//! | . | key | without the prefix |
//! | v | value | |
//!
//! A reference to a big value, v = 16; the image's payload is in `log/format.rs`:
//!
//! | OFFSET | SIZE | FIELD | MEANING |
//! |---|---|---|---|
//! | 0 | 8 | image | its address, see `log/address.rs`; of kind 2, in a run of kind 3 |
//! | 8 | 8 | length | bytes of the value |
//!
//! The fingerprint of a key is a byte that point reads look for, and made as follows; numbers have 64 bits, what overflows
//! is dropped, and K is 0x9E3779B97F4A7C15:
//!
//! 1. Begin with the length of the key, times K.
//! 2. For each 8 whole bytes of the key, as a little-endian number: exclusive or, times K, rotate left by 29 bits.
//! 3. The 0 to 7 bytes that are left, filled up with zeros to 8: exclusive or, times K.
//! 4. The 16 highest bits of that; 0xFFFF becomes 0xFFFE. The fingerprint is the lower byte of these two.
//!
//! An *overlay* holds what changed in a page that was not read: a key that it does not have is looked for in the
//! page's image. Overlays are never on disk.
//!
//! # Invariants
//!
//! T2, and what [`Leaf::validate`] checks; an image from disk is validated before anything else reads it.

#![allow(unsafe_code)]

mod builder;
mod value;

pub use builder::LeafBuilder;
pub use value::{BigRef, Value};

use super::common_prefix;
use super::inner::head;
use crate::base::prefetch;
use std::cmp::Ordering;
use std::ops::Range;

const HEADER: usize = 32;
const NO_HIGH: u32 = u32::MAX;
const LONG_KEY: usize = 0xFFFF;
const KIND_SHIFT: u32 = 14;

/// Bytes of a record that a point read asks for at once; more come by themselves, as they are read in order.
const RECORD_FIRST: usize = 512;

/// Bytes of a run of records that are asked for at once; as above.
const RUN_FIRST: usize = 1024;

/// Bytes of fences that are asked for at once.
const FENCES_FIRST: usize = 128;

/// Longest value that a record holds inline, bytes.
pub const MAX_INLINE: usize = (1 << KIND_SHIFT) - 1;

/// What is wrong with an image, for the corruption error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// The fingerprint of a key, for leaf images (low byte) and delta slots (both).
#[inline]
pub fn fingerprint(key: &[u8]) -> u16 {
    // Multiply-and-fold over 8-byte words; the length tells zero-padded tails apart.
    const K: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut hash = (key.len() as u64).wrapping_mul(K);
    let mut words = key.chunks_exact(8);
    for word in &mut words {
        let word = u64::from_le_bytes(word.try_into().expect("chunks of eight"));
        hash = (hash ^ word).wrapping_mul(K).rotate_left(29);
    }
    let mut tail = [0; 8];
    // A copy of no bytes would be a call all the same.
    if !words.remainder().is_empty() {
        tail[..words.remainder().len()].copy_from_slice(words.remainder());
    }
    hash = (hash ^ u64::from_le_bytes(tail)).wrapping_mul(K);
    // The greatest is what marks several keys in a slot.
    ((hash >> 48) as u16).min(u16::MAX - 1)
}

/// Which of sixteen bytes equal `wanted`, as bits; one SIMD compare where there is one.
#[inline]
fn equal_bytes(bytes: &[u8; 16], wanted: u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_set1_epi8};
        // SAFETY: sixteen bytes are readable; the load has no alignment to keep; SSE2 is part of x86-64.
        let found = unsafe { _mm_loadu_si128(bytes.as_ptr().cast::<__m128i>()) };
        // SAFETY: SSE2 is part of x86-64.
        let mask = unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(found, _mm_set1_epi8(wanted.cast_signed()))) };
        mask.cast_unsigned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        bytes.iter().enumerate().fold(0, |hits, (i, b)| hits | (u32::from(*b == wanted) << i))
    }
}

/// The shortest byte string `s` with `left < s <= right`; `left < right` must hold.
pub fn separator<'a>(left: &[u8], right: &'a [u8]) -> &'a [u8] {
    debug_assert!(left < right, "T2: keys ascend");
    &right[..(common_prefix(left, right) + 1).min(right.len())]
}

/// Where the key suffix and the value of the record at `at` lie, and the value's kind; `None` when they do not lie
/// within `end`.
#[inline]
pub(super) fn spans(bytes: &[u8], at: usize, end: usize) -> Option<(Range<usize>, Range<usize>, u16)> {
    let head = bytes.get(at..at + 4)?;
    let mut key_len = usize::from(u16::from_le_bytes([head[0], head[1]]));
    let value = u16::from_le_bytes([head[2], head[3]]);
    let mut key_at = at + 4;
    if key_len == LONG_KEY {
        let long = bytes.get(key_at..key_at + 4)?;
        key_len = u32::from_le_bytes(long.try_into().ok()?) as usize;
        key_at += 4;
    }
    let value_at = key_at.checked_add(key_len)?;
    let value_end = value_at.checked_add(usize::from(value) & MAX_INLINE)?;
    (value_end <= end).then_some((key_at..value_at, value_at..value_end, value >> KIND_SHIFT))
}

/// The head of a record and the key's length if that is long, before the key; the number of its bytes.
#[inline]
pub(super) fn record_head(key_len: usize, value: Value<'_>) -> ([u8; 8], usize) {
    let bytes = value.bytes();
    assert!(bytes.len() <= MAX_INLINE, "longer values are big values");
    let short = key_len.min(LONG_KEY) as u16;
    let value_field = bytes.len() as u16 | (value.kind() << KIND_SHIFT);
    let long = u32::try_from(key_len).expect("keys are shorter than 4 GiB");
    let mut head = [0; 8];
    head[..2].copy_from_slice(&short.to_le_bytes());
    head[2..4].copy_from_slice(&value_field.to_le_bytes());
    head[4..].copy_from_slice(&long.to_le_bytes());
    (head, if usize::from(short) == LONG_KEY { 8 } else { 4 })
}

/// A leaf image.
#[derive(Clone, Copy, Debug)]
pub struct Leaf<'a> {
    bytes: &'a [u8],
}

/// Where the records of a leaf start, in its image.
#[derive(Clone, Copy, Debug)]
pub struct Starts<'a> {
    offsets: &'a [[u8; 4]],
    end: usize,
}

impl Starts<'_> {
    /// Where record `i` starts; for the number of records, where they end.
    #[inline]
    pub fn get(self, i: usize) -> usize {
        self.offsets.get(i).map_or(self.end, |offset| u32::from_le_bytes(*offset) as usize)
    }
}

impl<'a> Leaf<'a> {
    /// An image that was built here or was validated before.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Leaf<'a> {
        Leaf { bytes }
    }

    #[inline]
    fn field(self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    /// Number of records.
    #[inline]
    pub fn len(self) -> usize {
        self.field(0) as usize
    }

    /// Whether the key lies past the range: its page was split and this is the left part.
    #[inline]
    pub fn is_past(self, key: &[u8]) -> bool {
        let high = u64::from_le_bytes(self.bytes[24..HEADER].try_into().expect("eight bytes"));
        // The head decides for most keys, without a look at the far end of the image.
        match head(key).cmp(&high) {
            Ordering::Equal => self.high().is_some_and(|high| key >= high),
            order => order.is_gt(),
        }
    }

    fn high_len(self) -> usize {
        match self.field(12) {
            NO_HIGH => 0,
            len => len as usize,
        }
    }

    fn fences_at(self) -> usize {
        self.bytes.len() - self.high_len() - self.field(8) as usize
    }

    /// Smallest key of the range.
    #[inline]
    pub fn low(self) -> &'a [u8] {
        &self.bytes[self.fences_at()..self.bytes.len() - self.high_len()]
    }

    /// First key past the range; `None` = the range has no upper end.
    #[inline]
    pub fn high(self) -> Option<&'a [u8]> {
        (self.field(12) != NO_HIGH).then(|| &self.bytes[self.bytes.len() - self.high_len()..])
    }

    /// Whether it has all keys: its tree has no other leaf.
    pub fn is_only(self) -> bool {
        self.low().is_empty() && self.high().is_none()
    }

    /// Bytes of the records, header and fences not counted: what decides about splits and merges.
    pub fn payload(self) -> usize {
        self.fences_at() - HEADER
    }

    /// Whether `key` belongs to this leaf.
    #[inline]
    pub fn covers(self, key: &[u8]) -> bool {
        key >= self.low() && self.high().is_none_or(|high| key < high)
    }

    /// What every key of the range starts with.
    #[inline]
    pub fn prefix(self) -> &'a [u8] {
        &self.low()[..self.field(4) as usize]
    }

    fn offset(self, i: usize) -> usize {
        self.field(HEADER + self.len() + 4 * i) as usize
    }

    /// Where each record starts in the image, and where the last one ends.
    #[inline]
    pub fn starts(self) -> Starts<'a> {
        let table = &self.bytes[HEADER + self.len()..HEADER + 5 * self.len()];
        Starts { offsets: table.as_chunks().0, end: self.fences_at() }
    }

    /// Bytes of the image.
    #[inline]
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Record `i`: the key without the prefix, and the value.
    #[inline]
    pub fn record(self, i: usize) -> (&'a [u8], Value<'a>) {
        let spans = spans(self.bytes, self.offset(i), self.bytes.len());
        let (key, value, kind) = spans.expect("a validated image has records within it");
        let value = &self.bytes[value];
        let value = match kind {
            0 => Value::Inline(value),
            1 => Value::Big(value),
            _ => Value::Gone,
        };
        (&self.bytes[key], value)
    }

    /// The key of record `i` without the prefix.
    #[inline]
    pub fn suffix(self, i: usize) -> &'a [u8] {
        let at = self.offset(i);
        match usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])) {
            LONG_KEY => self.record(i).0,
            len => &self.bytes[at + 4..at + 4 + len],
        }
    }

    /// Asks the memory for records, at most so many bytes of them, and waits for none of it.
    #[inline(always)]
    fn prefetch_records(self, run: Range<usize>, most: usize) {
        let starts = self.starts();
        let (start, end) = (starts.get(run.start), starts.get(run.end));
        prefetch(self.bytes.as_ptr().wrapping_add(start), end.saturating_sub(start).min(most));
    }

    /// The fingerprint of record `i`.
    #[inline]
    pub fn fingerprint(self, i: usize) -> u8 {
        self.bytes[HEADER + i]
    }

    /// Looks `key`, which must be covered, up by its fingerprint.
    #[inline]
    pub fn find(self, key: &[u8], fingerprint: u16) -> Option<Value<'a>> {
        debug_assert!(self.covers(key), "T1: the descent ends at the leaf of the key");
        let suffix = &key[self.field(4) as usize..];
        let mut block = 0;
        loop {
            let mut hits = self.matches(block, fingerprint as u8);
            while hits != 0 {
                let i = block + hits.trailing_zeros() as usize;
                self.prefetch_records(i..i + 1, RECORD_FIRST);
                let (found, value) = self.record(i);
                if found == suffix {
                    return Some(value);
                }
                hits &= hits - 1;
            }
            block += 64;
            if block >= self.len() {
                return None;
            }
        }
    }

    /// Which of the 64 records from `block` on have the fingerprint, as bits.
    #[inline(always)]
    fn matches(self, block: usize, wanted: u8) -> u64 {
        let left = self.len() - block;
        let mask = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
        let at = HEADER + block;
        match self.bytes.get(at..at + 64) {
            // All of them at once, whatever is behind the last: where a leaf ends is hard to predict.
            Some(some) => {
                let sixteens = some.as_chunks().0.iter().enumerate();
                let hits = |(i, sixteen)| u64::from(equal_bytes(sixteen, wanted)) << (16 * i);
                sixteens.map(hits).fold(0, |all, hits| all | hits) & mask
            }
            None => {
                let each = self.bytes[at..at + left].iter().enumerate();
                each.fold(0, |hits, (i, f)| hits | (u64::from(*f == wanted) << i))
            }
        }
    }

    /// Index of the first record whose key is not below `key`.
    pub fn lower_bound(self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|i| i)
    }

    /// Index of the record of `key`; without one, of the first whose key is above it.
    ///
    /// # Errors
    /// That is what it is.
    pub fn search(self, key: &[u8]) -> Result<usize, usize> {
        let prefix = self.prefix();
        match key[..key.len().min(prefix.len())].cmp(prefix) {
            Ordering::Less => Err(0),
            Ordering::Greater => Err(self.len()),
            Ordering::Equal => self.search_in(0..self.len(), &key[prefix.len()..]),
        }
    }

    /// As [`Self::search`], for a key without the prefix and among some records.
    ///
    /// # Errors
    /// As there.
    pub fn search_in(self, within: Range<usize>, suffix: &[u8]) -> Result<usize, usize> {
        let Range { start: mut low, end: mut high } = within;
        let starts = self.starts();
        // The first bytes decide for most keys.
        let wanted = head(suffix);
        while low < high {
            let middle = low + (high - low) / 2;
            let order = self.compare_first(starts.get(middle), wanted);
            match order.unwrap_or_else(|| self.suffix(middle).cmp(suffix)) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// Whether the value of record `i` is a reference to a big value.
    #[inline]
    pub fn is_reference(self, i: usize) -> bool {
        let value = self.bytes[self.offset(i)..]
            .first_chunk()
            .map_or(0, |[_, _, low, high]| u16::from_le_bytes([*low, *high]));
        value >> KIND_SHIFT == 1
    }

    /// How the key of a record compares to one that starts like this; `None`: its first bytes do not tell.
    #[inline(always)]
    fn compare_first(self, at: usize, wanted: u64) -> Option<Ordering> {
        let record = self.bytes.get(at..at + 12)?;
        let len = u16::from_le_bytes([record[0], record[1]]);
        let first = u64::from_be_bytes(*record[4..].first_chunk()?);
        let tells = first != wanted && len >= 8 && usize::from(len) != LONG_KEY;
        tells.then(|| first.cmp(&wanted))
    }

    /// Asks the memory for the records that a search looks at first, and waits for none of them.
    #[inline]
    pub fn prefetch_search(self) {
        let (starts, n) = (self.starts(), self.len());
        for middle in [n / 2, n / 4, n / 4 * 3, n / 8, n / 8 * 3, n / 8 * 5, n / 8 * 7] {
            prefetch(self.bytes.as_ptr().wrapping_add(starts.get(middle)), 1);
        }
    }

    /// Asks the memory for the fences, and waits for none of them.
    #[inline]
    pub fn prefetch_fences(self) {
        let at = self.fences_at();
        prefetch(self.bytes.as_ptr().wrapping_add(at), (self.bytes.len() - at).min(FENCES_FIRST));
        // They may end in one more line.
        prefetch(self.bytes.as_ptr().wrapping_add(self.bytes.len().saturating_sub(1)), 1);
    }

    /// Asks the memory for the first records of a run, and waits for none of them.
    #[inline]
    pub fn prefetch_run(self, run: Range<usize>) {
        self.prefetch_records(run, RUN_FIRST);
    }

    /// Checks everything that the other methods rely on, so that none of them panics.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn validate(bytes: &[u8]) -> Result<Leaf<'_>, Malformed> {
        if bytes.len() < HEADER {
            return Err(Malformed("leaf image shorter than its header"));
        }
        let leaf = Leaf { bytes };
        if leaf.field(20) as usize != bytes.len() {
            return Err(Malformed("leaf image of another length than it says"));
        }
        if leaf.field(16) != 0 {
            return Err(Malformed("leaf image of an unknown kind"));
        }
        let records = leaf.len().checked_mul(5).and_then(|index| index.checked_add(HEADER));
        let fences = (leaf.field(8) as usize).checked_add(leaf.high_len());
        let ends = records.zip(fences.and_then(|len| bytes.len().checked_sub(len)));
        let Some((records_at, fences_at)) = ends.filter(|(start, end)| start <= end) else {
            return Err(Malformed("leaf index or fences outside the image"));
        };
        let prefix = leaf.field(4) as usize;
        let low = leaf.low();
        let shared = leaf.high().map_or(0, |high| common_prefix(low, high));
        if prefix > low.len() || prefix > shared {
            return Err(Malformed("leaf prefix longer than what its fences share"));
        }
        if leaf.high().is_some_and(|high| high <= low) {
            return Err(Malformed("leaf fences not in order"));
        }
        let high_head = leaf.high().map_or(u64::MAX, head);
        if bytes[24..HEADER] != high_head.to_le_bytes() {
            return Err(Malformed("leaf with a wrong head of its high fence"));
        }
        let mut previous: Option<&[u8]> = None;
        let mut end = records_at;
        for i in 0..leaf.len() {
            let at = leaf.offset(i);
            let spans = if at < records_at { None } else { spans(bytes, at, fences_at) };
            let Some((key, value, kind)) = spans else {
                return Err(Malformed("leaf record outside the image"));
            };
            if at != end {
                return Err(Malformed("leaf record not right behind the one before"));
            }
            end = value.end;
            let suffix = &bytes[key];
            if kind > 1 || (kind == 1 && value.len() != BigRef::LEN) {
                return Err(Malformed("leaf record of an unknown kind"));
            }
            let below = suffix < &low[prefix..];
            let above = leaf.high().is_some_and(|high| suffix >= &high[prefix..]);
            if below || above || previous.is_some_and(|p| p >= suffix) {
                return Err(Malformed("leaf keys not in order within the fences"));
            }
            previous = Some(suffix);
        }
        if end != fences_at {
            return Err(Malformed("leaf with a gap behind its records"));
        }
        Ok(leaf)
    }
}

#[cfg(test)]
mod tests;
