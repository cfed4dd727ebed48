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

use super::common_prefix;
use super::inner::head;
use crate::pagecache::ImageAddr;
use std::cmp::Ordering;
use std::ops::Range;

const HEADER: usize = 32;
const NO_HIGH: u32 = u32::MAX;
const LONG_KEY: usize = 0xFFFF;
const KIND_SHIFT: u32 = 14;

/// Longest value that a record holds inline, bytes.
pub const MAX_INLINE: usize = (1 << KIND_SHIFT) - 1;

/// What a record says about its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// The value itself.
    Inline(&'a [u8]),
    /// A reference to a big value: [`BigRef`].
    Big(&'a [u8]),
    /// The key is gone; in overlays only.
    Gone,
}

/// Where a big value is and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BigRef {
    /// Its image.
    pub image: ImageAddr,
    /// Bytes of the value.
    pub len: u64,
}

impl BigRef {
    /// Bytes of a reference.
    pub const LEN: usize = 16;

    /// As bytes of a record.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[..8].copy_from_slice(&self.image.0.to_le_bytes());
        b[8..].copy_from_slice(&self.len.to_le_bytes());
        b
    }

    /// From bytes of a record, which were validated or built here.
    pub fn decode(b: &[u8]) -> BigRef {
        let word = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"));
        BigRef { image: ImageAddr(word(0)), len: word(8) }
    }
}

impl<'a> Value<'a> {
    fn bytes(self) -> &'a [u8] {
        match self {
            Value::Inline(b) | Value::Big(b) => b,
            Value::Gone => &[],
        }
    }

    fn kind(self) -> u16 {
        match self {
            Value::Inline(_) => 0,
            Value::Big(_) => 1,
            Value::Gone => 2,
        }
    }
}

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
    tail[..words.remainder().len()].copy_from_slice(words.remainder());
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

/// A leaf image.
#[derive(Clone, Copy, Debug)]
pub struct Leaf<'a> {
    bytes: &'a [u8],
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
        head(key) >= high && self.high().is_some_and(|high| key >= high)
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

    /// Where the key suffix and the value of the record at `at` lie, and the value's kind;
    /// `None` when they do not lie within `end`.
    #[inline]
    fn spans(self, at: usize, end: usize) -> Option<(Range<usize>, Range<usize>, u16)> {
        let head = self.bytes.get(at..at + 4)?;
        let mut key_len = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let value = u16::from_le_bytes([head[2], head[3]]);
        let mut key_at = at + 4;
        if key_len == LONG_KEY {
            let long = self.bytes.get(key_at..key_at + 4)?;
            key_len = u32::from_le_bytes(long.try_into().ok()?) as usize;
            key_at += 4;
        }
        let value_at = key_at.checked_add(key_len)?;
        let value_end = value_at.checked_add(usize::from(value) & MAX_INLINE)?;
        (value_end <= end).then_some((key_at..value_at, value_at..value_end, value >> KIND_SHIFT))
    }

    /// Record `i`: the key without the prefix, and the value.
    #[inline]
    pub fn record(self, i: usize) -> (&'a [u8], Value<'a>) {
        let spans = self.spans(self.offset(i), self.bytes.len());
        let (key, value, kind) = spans.expect("a validated image has records within it");
        let value = &self.bytes[value];
        let value = match kind {
            0 => Value::Inline(value),
            1 => Value::Big(value),
            _ => Value::Gone,
        };
        (&self.bytes[key], value)
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
        let wanted = fingerprint as u8;
        let mut block = 0;
        while block < self.len() {
            let mut hits = self.matches(block, wanted);
            while hits != 0 {
                let (found, value) = self.record(block + hits.trailing_zeros() as usize);
                if found == suffix {
                    return Some(value);
                }
                hits &= hits - 1;
            }
            block += 16;
        }
        None
    }

    /// Which of the sixteen records from `block` on have the fingerprint, as bits.
    #[inline]
    fn matches(self, block: usize, wanted: u8) -> u32 {
        let left = self.len() - block;
        let mask = if left >= 16 { 0xFFFF } else { (1 << left) - 1 };
        let at = HEADER + block;
        match self.bytes.get(at..at + 16) {
            Some(sixteen) => equal_bytes(sixteen.try_into().expect("sixteen bytes"), wanted) & mask,
            None => {
                let each = self.bytes[at..at + left].iter().enumerate();
                each.fold(0, |hits, (i, f)| hits | (u32::from(*f == wanted) << i))
            }
        }
    }

    /// Index of the first record whose key is not below `key`.
    pub fn lower_bound(self, key: &[u8]) -> usize {
        let prefix = self.prefix();
        match key[..key.len().min(prefix.len())].cmp(prefix) {
            Ordering::Less => return 0,
            Ordering::Greater => return self.len(),
            Ordering::Equal => {}
        }
        let suffix = &key[prefix.len()..];
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.record(middle).0 < suffix {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
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
        for i in 0..leaf.len() {
            let at = leaf.offset(i);
            let spans = if at < records_at { None } else { leaf.spans(at, fences_at) };
            let Some((key, value, kind)) = spans else {
                return Err(Malformed("leaf record outside the image"));
            };
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
        Ok(leaf)
    }
}

/// Builds an image from whole keys in ascending order.
#[derive(Debug)]
pub struct LeafBuilder<'a> {
    low: &'a [u8],
    high: Option<&'a [u8]>,
    prefix: usize,
    fingerprints: Vec<u8>,
    offsets: Vec<u32>,
    records: Vec<u8>,
}

impl<'a> LeafBuilder<'a> {
    /// An empty leaf for `[low, high)`.
    pub fn new(low: &'a [u8], high: Option<&'a [u8]>) -> LeafBuilder<'a> {
        debug_assert!(high.is_none_or(|high| low < high), "T1: fences are in order");
        let prefix = high.map_or(0, |high| common_prefix(low, high));
        let (fingerprints, offsets, records) = (Vec::new(), Vec::new(), Vec::new());
        LeafBuilder { low, high, prefix, fingerprints, offsets, records }
    }

    /// As [`Self::new`], with room for records of so many bytes in all.
    pub fn with_capacity(
        low: &'a [u8],
        high: Option<&'a [u8]>,
        records: usize,
        bytes: usize,
    ) -> LeafBuilder<'a> {
        let mut builder = LeafBuilder::new(low, high);
        builder.fingerprints.reserve(records);
        builder.offsets.reserve(records);
        builder.records.reserve(bytes + 4 * records);
        builder
    }

    /// Appends a record, its key in two parts, and the key's fingerprint; keys ascend strictly and lie within the fences
    /// (T2).
    pub fn push(&mut self, front: &[u8], back: &[u8], fingerprint: u8, value: Value<'_>) {
        // What all keys share is left out, wherever the parts meet.
        let (front, back) = match front.get(self.prefix..) {
            Some(front) => (front, back),
            None => (&[][..], &back[self.prefix - front.len()..]),
        };
        self.fingerprints.push(fingerprint);
        self.offsets.push(u32::try_from(self.records.len()).expect("a leaf is shorter than 4 GiB"));
        let bytes = value.bytes();
        assert!(bytes.len() <= MAX_INLINE, "longer values are big values");
        let suffix_len = front.len() + back.len();
        let short = suffix_len.min(LONG_KEY) as u16;
        self.records.extend_from_slice(&short.to_le_bytes());
        let value_field = bytes.len() as u16 | (value.kind() << KIND_SHIFT);
        self.records.extend_from_slice(&value_field.to_le_bytes());
        if usize::from(short) == LONG_KEY {
            let long = u32::try_from(suffix_len).expect("keys are shorter than 4 GiB");
            self.records.extend_from_slice(&long.to_le_bytes());
        }
        self.records.extend_from_slice(front);
        self.records.extend_from_slice(back);
        self.records.extend_from_slice(bytes);
    }

    /// Bytes that the image would have now.
    pub fn image_len(&self) -> usize {
        let fences = self.low.len() + self.high.map_or(0, <[u8]>::len);
        HEADER + 5 * self.offsets.len() + self.records.len() + fences
    }

    /// The image.
    pub fn finish(self) -> Vec<u8> {
        let total = self.image_len();
        let field = |n: usize| u32::try_from(n).expect("a leaf is shorter than 4 GiB").to_le_bytes();
        let mut image = Vec::with_capacity(total);
        image.extend_from_slice(&field(self.offsets.len()));
        image.extend_from_slice(&field(self.prefix));
        image.extend_from_slice(&field(self.low.len()));
        image.extend_from_slice(&self.high.map_or(NO_HIGH.to_le_bytes(), |high| field(high.len())));
        image.extend_from_slice(&[0; 4]);
        image.extend_from_slice(&field(total));
        let high_head = self.high.map_or(u64::MAX, head);
        image.extend_from_slice(&high_head.to_le_bytes());
        image.extend_from_slice(&self.fingerprints);
        let start = HEADER + 5 * self.offsets.len();
        for offset in &self.offsets {
            image.extend_from_slice(&field(start + *offset as usize));
        }
        image.extend_from_slice(&self.records);
        image.extend_from_slice(self.low);
        image.extend_from_slice(self.high.unwrap_or_default());
        debug_assert_eq!(image.len(), total, "the length that was announced");
        image
    }
}

#[cfg(test)]
mod tests;
