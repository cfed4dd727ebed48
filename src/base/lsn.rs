//! `Lsn`, a logical position in the redo stream, and where on disk the stream is at one.

/// Logical byte position in the redo stream; strictly increasing, never a file offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Past every position.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// The position `bytes` further on.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }
}

/// Where the redo stream is at an LSN: the block that starts with it is at, or would be put at, this place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RedoPosition {
    /// The position in the stream.
    pub lsn: Lsn,
    /// Number of the segment.
    pub segment: u32,
    /// Offset in the segment.
    pub offset: u32,
    /// Nonce of the segment.
    pub nonce: u64,
}
