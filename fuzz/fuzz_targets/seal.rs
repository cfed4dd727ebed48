//! The structures in a file, and their checksums made right again.
//!
//! Offsets are those of the crate's `src/log/format.rs`.

use std::ops::Range;

/// Alignment of everything.
const GRAIN: usize = 64;

/// What a structure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Superblock,
    Segment,
    Block,
    Image,
}

/// Where a structure is, and what its checksum covers.
#[derive(Clone, Debug)]
pub struct Structure {
    pub kind: Kind,
    pub at: usize,
    pub covered: Range<usize>,
}

impl Structure {
    /// The structure at `at`, if one begins there and is whole.
    fn find(bytes: &[u8], at: usize) -> Option<Structure> {
        let b = &bytes[at..];
        let length = |field: usize| {
            let bytes = b.get(field..field + 4).and_then(|b| b.try_into().ok());
            bytes.map(|b| GRAIN.saturating_add(u32::from_le_bytes(b) as usize))
        };
        let (kind, covered) = match b.first_chunk::<4>()? {
            b"sled" => (Kind::Superblock, 16..512),
            b"SEG1" => (Kind::Segment, 8..64),
            b"REDO" => (Kind::Block, 8..length(40)?),
            b"IMG1" => (Kind::Image, 8..length(32)?),
            _ => return None,
        };
        (covered.end <= b.len()).then_some(Structure { kind, at, covered })
    }

    /// Makes the checksum right.
    pub fn seal(&self, bytes: &mut [u8]) {
        let structure = &mut bytes[self.at..];
        let crc = crc32fast::hash(&structure[self.covered.clone()]);
        let sum = if self.kind == Kind::Superblock { 12 } else { 4 };
        structure[sum..sum + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Every structure in a file.
pub fn structures(bytes: &[u8]) -> Vec<Structure> {
    (0..bytes.len()).step_by(GRAIN).filter_map(|at| Structure::find(bytes, at)).collect()
}

/// Makes every checksum right.
pub fn seal(bytes: &mut [u8]) {
    structures(bytes).iter().for_each(|structure| structure.seal(bytes));
}
