//! Builds leaf images.

use super::{HEADER, NO_HIGH, Value, record_head};
use crate::tree::common_prefix;
use crate::tree::inner::head;

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
        let (head, len) = record_head(front.len() + back.len(), value);
        self.records.extend_from_slice(&head[..len]);
        self.records.extend_from_slice(front);
        self.records.extend_from_slice(back);
        self.records.extend_from_slice(value.bytes());
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
