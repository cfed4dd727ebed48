//! What a leaf says about a key.

use crate::pagecache::ImageAddr;

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
    /// What a record has of it.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Value::Inline(b) | Value::Big(b) => b,
            Value::Gone => &[],
        }
    }

    /// The number in its record.
    pub(super) fn kind(self) -> u16 {
        match self {
            Value::Inline(_) => 0,
            Value::Big(_) => 1,
            Value::Gone => 2,
        }
    }
}
