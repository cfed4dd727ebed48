//! Addresses of images.
//!
//! # Format
//!
//! An [`ImageAddr`] is one number of 8 bytes, here from its lowest bit on; 0 = no image:
//!
//! | BIT | BITS | FIELD | MEANING |
//! |---|---|---|---|
//! | 0 | 24 | length | bytes that the image occupies, header and padding included, divided by 64 |
//! | 24 | 38 | offset | file offset of the image, divided by 64 |
//! | 62 | 2 | zero | in memory: tags of the mapping table |
//!
//! The image starts in the first segment of its run, whose number is thus (offset - 8192) / bytes of a segment; all of it
//! lies within the run. It is valid when its header says the same file offset and the nonce of that run, its header and
//! payload occupy just as many bytes, its kind is what is looked for, and its checksum is right.

use super::format::GRAIN;

const LEN_BITS: u32 = 24;
const OFFSET_BITS: u32 = 38;

/// Where an image is and how many bytes it occupies, header and padding included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageAddr(pub u64);

/// Where the last image that has an address starts at the latest, bytes: a file has at most 16 TiB.
pub const MAX_OFFSET: u64 = ((1 << OFFSET_BITS) - 1) * GRAIN as u64;

/// Longest image that has an address, bytes.
pub const MAX_IMAGE: u64 = ((1 << LEN_BITS) - 1) * GRAIN as u64;

impl ImageAddr {
    /// No image.
    pub const NONE: ImageAddr = ImageAddr(0);

    /// The address of an image; both are multiples of 64.
    ///
    /// # Panics
    /// When the file is longer than 16 TiB or the image than [`MAX_IMAGE`].
    pub fn new(offset: u64, bytes: u64) -> ImageAddr {
        let (at, len) = (offset / GRAIN as u64, bytes / GRAIN as u64);
        debug_assert!(offset.is_multiple_of(GRAIN as u64) && bytes.is_multiple_of(GRAIN as u64));
        assert!(at >> OFFSET_BITS == 0 && len >> LEN_BITS == 0, "image of {bytes} bytes at {offset}");
        ImageAddr((at << LEN_BITS) | len)
    }

    /// File offset of the image.
    pub fn offset(self) -> u64 {
        (self.0 >> LEN_BITS) * GRAIN as u64
    }

    /// Bytes that it occupies.
    pub fn bytes(self) -> u64 {
        (self.0 & ((1 << LEN_BITS) - 1)) * GRAIN as u64
    }

    /// Whether there is an image.
    pub fn is_some(self) -> bool {
        self.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_come_back() {
        for (offset, bytes) in [(8192, 64), (1 << 43, MAX_IMAGE), (8256, 4096), (MAX_OFFSET, 64)] {
            let address = ImageAddr::new(offset, bytes);
            assert_eq!((address.offset(), address.bytes()), (offset, bytes));
            assert_eq!(address.0 >> 62, 0);
        }
        assert!(!ImageAddr::NONE.is_some());
    }
}
