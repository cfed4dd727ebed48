//! Leaf images: the sorted records of one key range, the same bytes in memory and on disk.
//!
//! # Format
//!
//! All integers are little-endian. `n` is the number of records.
//!
//! | OFFSET | SIZE | FIELD |
//! |---|---|---|
//! | 0 | 4 | n |
//! | 4 | 4 | prefix length: bytes that every possible key of the range starts with |
//! | 8 | 4 | low fence length |
//! | 12 | 4 | high fence length, `u32::MAX` = no upper end |
//! | 16 | 4 | PID of the right sibling, 0 = none |
//! | 20 | 4 | length of the whole image |
//! | 24 | 8 | zero; a reader refuses anything else |
//! | 32 | n | fingerprints, one byte a record |
//! | . | 4 n | record offsets from the start of the image |
//! | . | . | records in key order |
//! | . | . | low fence, high fence |
//!
//! Record: key suffix length (u16, `0xFFFF` = a u32 follows the next field), value length (u16: 14 bits and
//! the kind in the top two), the key without the prefix, the value.
//!
//! # Invariants
//!
//! T2, and what [`Leaf::validate`] checks; an image from disk is validated before anything else reads it.

use super::common_prefix;
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
    /// A reference to a big value, opaque here.
    Big(&'a [u8]),
}

impl<'a> Value<'a> {
    fn bytes(self) -> &'a [u8] {
        match self {
            Value::Inline(b) | Value::Big(b) => b,
        }
    }

    fn kind(self) -> u16 {
        match self {
            Value::Inline(_) => 0,
            Value::Big(_) => 1,
        }
    }
}

/// One change to fold into a leaf; `None` removes the key.
pub type Change<'a> = (&'a [u8], Option<Value<'a>>);

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
    (hash >> 48) as u16
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

    /// Whether there is no record.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// PID of the right sibling, 0 = none.
    #[inline]
    pub fn right(self) -> u32 {
        self.field(16)
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

    #[inline]
    fn fingerprints(self) -> &'a [u8] {
        &self.bytes[HEADER..HEADER + self.len()]
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
        (&self.bytes[key], if kind == 0 { Value::Inline(value) } else { Value::Big(value) })
    }

    /// Looks `key`, which must be covered, up by its fingerprint.
    #[inline]
    pub fn find(self, key: &[u8], fingerprint: u16) -> Option<Value<'a>> {
        debug_assert!(self.covers(key), "T1: the descent ends at the leaf of the key");
        let suffix = &key[self.field(4) as usize..];
        let wanted = fingerprint as u8;
        // Sixteen at a time, in a shape that compiles to one SIMD compare.
        for (block, chunk) in self.fingerprints().chunks(16).enumerate() {
            let mut hits = 0_u32;
            for (i, f) in chunk.iter().enumerate() {
                hits |= u32::from(*f == wanted) << i;
            }
            while hits != 0 {
                let (found, value) = self.record(block * 16 + hits.trailing_zeros() as usize);
                if found == suffix {
                    return Some(value);
                }
                hits &= hits - 1;
            }
        }
        None
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
        if bytes[24..HEADER] != [0; 8] {
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
        let mut previous: Option<&[u8]> = None;
        for i in 0..leaf.len() {
            let at = leaf.offset(i);
            let spans = if at < records_at { None } else { leaf.spans(at, fences_at) };
            let Some((key, _, kind)) = spans else {
                return Err(Malformed("leaf record outside the image"));
            };
            let suffix = &bytes[key];
            if kind > 1 {
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
    right: u32,
    prefix: usize,
    fingerprints: Vec<u8>,
    offsets: Vec<u32>,
    records: Vec<u8>,
}

impl<'a> LeafBuilder<'a> {
    /// An empty leaf for `[low, high)`.
    pub fn new(low: &'a [u8], high: Option<&'a [u8]>, right: u32) -> LeafBuilder<'a> {
        debug_assert!(high.is_none_or(|high| low < high), "T1: fences are in order");
        let prefix = high.map_or(0, |high| common_prefix(low, high));
        let (fingerprints, offsets, records) = (Vec::new(), Vec::new(), Vec::new());
        LeafBuilder { low, high, right, prefix, fingerprints, offsets, records }
    }

    /// Appends a record; keys ascend strictly and lie within the fences (T2).
    pub fn push(&mut self, key: &[u8], value: Value<'_>) {
        let suffix = &key[self.prefix..];
        self.fingerprints.push(fingerprint(key) as u8);
        self.offsets.push(u32::try_from(self.records.len()).expect("a leaf is shorter than 4 GiB"));
        let bytes = value.bytes();
        assert!(bytes.len() <= MAX_INLINE, "longer values are big values");
        let short = suffix.len().min(LONG_KEY) as u16;
        self.records.extend_from_slice(&short.to_le_bytes());
        let value_field = bytes.len() as u16 | (value.kind() << KIND_SHIFT);
        self.records.extend_from_slice(&value_field.to_le_bytes());
        if usize::from(short) == LONG_KEY {
            let long = u32::try_from(suffix.len()).expect("keys are shorter than 4 GiB");
            self.records.extend_from_slice(&long.to_le_bytes());
        }
        self.records.extend_from_slice(suffix);
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
        image.extend_from_slice(&self.right.to_le_bytes());
        image.extend_from_slice(&field(total));
        image.extend_from_slice(&[0; 8]);
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

/// Calls `each` with every key and value of `leaf` after `changes`, in order.
///
/// `changes` are sorted by key, one for a key.
pub fn fold<'a>(leaf: Leaf<'a>, changes: &[Change<'a>], mut each: impl FnMut(&[u8], Value<'a>)) {
    let mut key = leaf.prefix().to_vec();
    let mut changes = changes.iter().peekable();
    for i in 0..leaf.len() {
        let (suffix, value) = leaf.record(i);
        key.truncate(leaf.prefix().len());
        key.extend_from_slice(suffix);
        while let Some((changed, new)) = changes.next_if(|(changed, _)| *changed < &key[..]) {
            if let Some(new) = new {
                each(changed, *new);
            }
        }
        match changes.next_if(|(changed, _)| *changed == &key[..]) {
            Some((_, Some(new))) => each(&key, *new),
            Some((_, None)) => {}
            None => each(&key, value),
        }
    }
    for (changed, new) in changes {
        if let Some(new) = new {
            each(changed, *new);
        }
    }
}

#[cfg(test)]
mod tests;
