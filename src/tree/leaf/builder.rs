//! Builds leaf images.

use super::{HEADER, Leaf, NO_HIGH, Value, record_head};
use crate::tree::common_prefix;
use crate::tree::inner::head;
use std::ops::Range;

/// Builds an image of a number of records that is known before, from whole keys in ascending order or from records of
/// other images.
#[derive(Debug)]
pub struct LeafBuilder<'a> {
    low: &'a [u8],
    high: Option<&'a [u8]>,
    prefix: usize,
    /// Number of records that there are to be.
    records: usize,
    /// Number of records that are there.
    len: usize,
    /// Without the fences.
    image: Vec<u8>,
}

impl<'a> LeafBuilder<'a> {
    /// A leaf for `[low, high)` with so many records, which have so many bytes in all, about: keys and values.
    pub fn new(low: &'a [u8], high: Option<&'a [u8]>, records: usize, bytes: usize) -> LeafBuilder<'a> {
        debug_assert!(high.is_none_or(|high| low < high), "T1: fences are in order");
        let prefix = high.map_or(0, |high| common_prefix(low, high));
        let start = HEADER + 5 * records;
        let fences = low.len() + high.map_or(0, <[u8]>::len);
        let mut image = Vec::with_capacity(start + 4 * records + bytes + fences);
        image.resize(start, 0);
        LeafBuilder { low, high, prefix, records, len: 0, image }
    }

    /// Appends a record, its key in two parts, and the key's fingerprint; keys ascend strictly and lie within the fences
    /// (T2).
    ///
    /// # Panics
    /// When all records are there that were announced.
    pub fn push(&mut self, front: &[u8], back: &[u8], fingerprint: u8, value: Value<'_>) {
        // What all keys share is left out, wherever the parts meet.
        let (front, back) = match front.get(self.prefix..) {
            Some(front) => (front, back),
            None => (&[][..], &back[self.prefix - front.len()..]),
        };
        let i = self.len;
        assert!(i < self.records, "there are as many records as were announced");
        let offset = self.next_offset();
        self.image[HEADER + i] = fingerprint;
        self.image[HEADER + self.records + 4 * i..][..4].copy_from_slice(&offset);
        let (head, len) = record_head(front.len() + back.len(), value);
        self.image.extend_from_slice(&head[..len]);
        self.image.extend_from_slice(front);
        self.image.extend_from_slice(back);
        self.image.extend_from_slice(value.bytes());
        self.len += 1;
    }

    /// Appends records of another image; as [`Self::push`] for each of them.
    ///
    /// # Panics
    /// As there.
    pub fn push_run(&mut self, leaf: Leaf<'_>, run: Range<usize>) {
        if leaf.prefix().len() != self.prefix {
            for i in run {
                let (suffix, value) = leaf.record(i);
                self.push(leaf.prefix(), suffix, leaf.fingerprint(i), value);
            }
            return;
        }
        let n = run.len();
        assert!(n <= self.records - self.len, "there are as many records as were announced");
        let starts = leaf.starts();
        let (start, end) = (starts.get(run.start), starts.get(run.end));
        let moved = u32::from_le_bytes(self.next_offset()).wrapping_sub(start as u32);
        let fingerprints = &mut self.image[HEADER + self.len..][..n];
        fingerprints.copy_from_slice(&leaf.bytes[HEADER + run.start..][..n]);
        let offsets = self.image[HEADER + self.records + 4 * self.len..][..4 * n].as_chunks_mut().0;
        for (to, from) in offsets.iter_mut().zip(&starts.offsets[run]) {
            *to = u32::from_le_bytes(*from).wrapping_add(moved).to_le_bytes();
        }
        self.image.extend_from_slice(&leaf.bytes[start..end]);
        self.len += n;
    }

    fn next_offset(&self) -> [u8; 4] {
        u32::try_from(self.image.len()).expect("a leaf is shorter than 4 GiB").to_le_bytes()
    }

    /// The image.
    ///
    /// # Panics
    /// When there are fewer records than were announced.
    pub fn finish(mut self) -> Vec<u8> {
        assert_eq!(self.len, self.records, "there are as many records as were announced");
        self.image.extend_from_slice(self.low);
        self.image.extend_from_slice(self.high.unwrap_or_default());
        let field = |n: usize| u32::try_from(n).expect("a leaf is shorter than 4 GiB").to_le_bytes();
        let high_len = self.high.map_or(NO_HIGH.to_le_bytes(), |high| field(high.len()));
        let total = field(self.image.len());
        let fields =
            [field(self.records), field(self.prefix), field(self.low.len()), high_len, [0; 4], total];
        self.image[..24].copy_from_slice(fields.as_flattened());
        let high_head = self.high.map_or(u64::MAX, head);
        self.image[24..HEADER].copy_from_slice(&high_head.to_le_bytes());
        self.image
    }
}
