//! Every framing byte on disk: superblocks, segment headers, redo blocks and image headers.
//!
//! # Format
//!
//! This is version 1, and it is frozen: what a file of version 1 means never changes. The whole of it is written
//! down where each structure is coded, and `tests/format_reader.py` was written from these comments alone:
//!
//! | WHAT | WHERE |
//! |---|---|
//! | file, superblocks, segments, frames of blocks and images | here |
//! | addresses of images | `log/address.rs` |
//! | compressed payloads | `log/compression.rs` |
//! | redo stream: from blocks to records, where it ends | `log/redo_scan.rs`, `log/record.rs` |
//! | redo records: from changes to trees | `tree/redo.rs` |
//! | directory: trees and their leaves | `pagecache/directory.rs` |
//! | leaves, references to big values | `tree/leaf.rs` |
//! | big values | at the end of this section |
//!
//! All that counts is in the file `db` of the database's directory. `db.new` is a file that was not given that name
//! yet, and is void. Who has the database open holds an exclusive `flock` on `db`.
//!
//! - Integers are unsigned and little-endian, of 1 to 8 bytes; nothing is aligned beyond what is said.
//! - CRC-32 is that of zlib and Ethernet: polynomial 0x04C11DB7, reflected, initially and finally inverted. It
//!   tells accidents, not forgery.
//! - "Zero" says what a field must hold: a reader refuses anything else. Bytes that belong to no structure (what is left
//!   of a slot, behind the padding of the last block or image in a segment, of a free segment, the padding itself) are
//!   ignored, and may be left from anything.
//!
//! ## The file
//!
//! | OFFSET | SIZE | WHAT |
//! |---|---|---|
//! | 0 | 4096 | superblock slot 1, for odd generations |
//! | 4096 | 4096 | superblock slot 2, for even generations |
//! | 8192 + i s | s | segment number i, of the s bytes that the superblock says |
//!
//! A file may end anywhere, also within a segment: what would follow was never written. It has at most 16 TiB.
//!
//! A segment is free, or of the redo stream, or of a run of one or more neighbouring segments that holds images. Each
//! use has a *nonce*, a random number that is not 0 and no earlier use had. Blocks and images say for which file
//! offset and which nonce they were written, under their checksum, and are valid nowhere else: bytes which moved, or were
//! left by an earlier use, never pass. In one use of a segment a place gets one block or image, so offset and nonce also
//! tell which one it is. What refers to one knows the nonce from elsewhere:
//!
//! ```text
//! superblock --> root image of the directory --> runs, and chunks of the directory --> leaves --> big values
//!       \------> redo segment --> next redo segment --> ..       --> big values
//! ```
//!
//! ## Superblock
//!
//! 512 bytes, twice in each slot: at its start, and 2048 bytes further on.
//!
//! | OFFSET | SIZE | FIELD | MEANING |
//! |---|---|---|---|
//! | 0 | 8 | magic | `sledbwt\n` |
//! | 8 | 4 | version | 1 |
//! | 12 | 4 | flags | bit 0: images may be compressed; the others are zero |
//! | 16 | 8 | generation | one more than that of the superblock before |
//! | 24 | 4 | segment | bytes of a segment: a multiple of 4096, at least 4096, at most 16 MiB |
//! | 28 | 4 | zero | |
//! | 32 | 8 | root offset | file offset of the directory's root image; with the next 0 = no directory |
//! | 40 | 8 | root bytes | bytes that it occupies, header and padding included |
//! | 48 | 8 | root nonce | nonce of the run that it is in; that run ends where the root does, or later |
//! | 56 | 8 | redo LSN | where replay starts |
//! | 64 | 4 | redo segment | number of the segment in which the stream is at the redo LSN |
//! | 68 | 4 | redo offset | offset in that segment of the block that starts with the redo LSN; a multiple of 512, at least 512 |
//! | 72 | 8 | redo nonce | nonce of that segment |
//! | 80 | 8 | stable LSN | all before it was durable when this was written: the stream does not end earlier |
//! | 88 | 8 | id floor | `generate_id` may have handed out identifiers below; redo records may raise it |
//! | 96 | 412 | zero | |
//! | 508 | 4 | sum | CRC-32 of bytes 0..508 |
//!
//! A copy is *whole* when its magic and sum are right. Which superblock counts:
//!
//! 1. In each slot it is the whole copy with the larger generation, of those whose generation belongs into that slot.
//! 2. When both slots have one, and their generations follow each other, the later one counts.
//! 3. When the first slot has generation 1, and the second has none, the database was being created: nothing is in it,
//!    and there are no segments yet. (Generation 1 with a root offset and redo nonce of 0 is all that a file starts with,
//!    in one copy. Generations 2 and 3 follow before anything can be written.)
//! 4. Otherwise a whole copy of another version, with unknown flags, with something in a "zero", or with segments of another
//!    size than those said above means `Unsupported`; so does a first slot with another magic, when the second has no
//!    whole copy either. Anything else is `Corruption`: slots are written in turn, so one without a whole copy may have been
//!    the newer one.
//!
//! **Versions.** Every later version keeps the places of the four copies, magic, version, the sum at 508, and that whoever
//! does not know the version or a flag writes nothing and says `Unsupported`. Everything else may differ. A build reads
//! all versions up to its own; the files in `tests/golden` hold it to that.
//!
//! ## Segment header
//!
//! 64 bytes at the start of a redo segment or of a run. In a redo segment blocks start 512 bytes further on; in a run
//! the first image starts behind the header.
//!
//! | OFFSET | SIZE | FIELD | MEANING |
//! |---|---|---|---|
//! | 0 | 4 | magic | `SEG1` |
//! | 4 | 4 | sum | CRC-32 of bytes 8..64 |
//! | 8 | 1 | kind | 1 redo, 2 leaves and the directory, 3 big values |
//! | 9 | 1 | fresh | redo: 1 = the stream starts here at a record, and one that was begun before is void; others: 0 |
//! | 10 | 2 | zero | |
//! | 12 | 4 | number | of this segment |
//! | 16 | 8 | nonce | of this use of the segment or run |
//! | 24 | 8 | first | redo: LSN of the first block; others: how many segments the run has |
//! | 32 | 4 | next | redo: number of the next segment; others: 0 |
//! | 36 | 4 | zero | |
//! | 40 | 8 | next nonce | redo: nonce of the next segment; others: 0 |
//! | 48 | 16 | zero | |
//!
//! ## Redo block
//!
//! At a multiple of 512 from the segment's start, padded to one. It ends within its segment.
//!
//! | OFFSET | SIZE | FIELD | MEANING |
//! |---|---|---|---|
//! | 0 | 4 | magic | `REDO` |
//! | 4 | 4 | sum | CRC-32 of bytes 8..64 and the payload |
//! | 8 | 8 | LSN | position in the stream of the first byte of the payload |
//! | 16 | 8 | stable LSN | all before it was durable when this block was sealed |
//! | 24 | 8 | nonce | of the segment |
//! | 32 | 8 | offset | file offset of this block |
//! | 40 | 4 | length | bytes of the payload, at least 1 |
//! | 44 | 20 | zero | |
//! | 64 | length | payload | a piece of the redo stream |
//!
//! ## Image
//!
//! At a multiple of 64, padded to one. It ends within its run.
//!
//! | OFFSET | SIZE | FIELD | MEANING |
//! |---|---|---|---|
//! | 0 | 4 | magic | `IMG1` |
//! | 4 | 4 | sum | CRC-32 of bytes 8..64 and the payload as stored |
//! | 8 | 1 | kind | 1 leaf, 2 big value, 3 directory chunk, 4 directory root |
//! | 9 | 1 | compressed | 1 = the payload is a zstd frame |
//! | 10 | 2 | zero | |
//! | 12 | 4 | tree | id of the tree, 0 for the directory |
//! | 16 | 8 | offset | file offset of this image |
//! | 24 | 8 | nonce | of the run |
//! | 32 | 4 | stored | bytes of the payload as stored |
//! | 36 | 4 | raw | bytes of the payload when not compressed; the same if it is not |
//! | 40 | 8 | all before | LSN: the image holds every change of its keys before this; 0 = not known |
//! | 48 | 8 | none from | LSN: the image holds no change at or behind this; 0 = not known |
//! | 56 | 8 | zero | |
//! | 64 | stored | payload | |
//!
//! Leaves and the directory are in runs of kind 2, big values in runs of kind 3. A run of several segments has one image.
//!
//! The payload of a big value: the length of the key as 4 bytes, the key, the value. It is never compressed.
//!
//! Opening a file does not need "all before" and "none from". They put images in order for whoever recovers what is left
//! of a file whose directory is damaged.
//!
//! ## Limits
//!
//! An image has at most 1 GiB - 64 bytes (`log/address.rs`), a redo record 1 GiB, a key that is written 32 MiB. No
//! generation, LSN or bound of identifiers is above 2^60: a superblock with a larger one is not whole. Whoever
//! reads compares each length with what it lies in before believing it.

use crate::base::{Lsn, RedoPosition};
use crate::error::{Error, Result};

/// Unit in which a medium may tear a write (S2).
pub const SECTOR: usize = 512;
/// Alignment of images; addresses count in it.
pub const GRAIN: usize = 64;
/// Where the first segment starts.
pub const SEGMENTS_AT: u64 = 8192;
/// Offsets of the two superblock slots; odd generations go to the first.
pub const SLOTS_AT: [u64; 2] = [0, 4096];
/// Offset of the second copy in a slot.
pub const COPY_AT: u64 = 2048;
/// Bytes of segment, block and image headers.
pub const HEADER: usize = 64;
/// Offset of the checksum in a superblock.
const SUM_AT: usize = SECTOR - 4;
/// First position in a new redo stream; 0 stands for "none".
pub const FIRST_LSN: Lsn = Lsn(64);

/// What every file of ours starts with.
pub const MAGIC: &[u8; 8] = b"sledbwt\n";
const VERSION: u32 = 1;
const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"SEG1");
const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"REDO");
const IMAGE_MAGIC: u32 = u32::from_le_bytes(*b"IMG1");
/// What grows by bytes or by ones (LSNs, generations, identifiers) never comes near this: what says so was not written by
/// us, and would overflow.
pub const LARGEST: u64 = 1 << 60;
/// Smallest and largest size of a segment, bytes.
pub const SEGMENT_SIZES: std::ops::RangeInclusive<u32> = 4096..=(16 << 20);

fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn get64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Whether fields that have no meaning yet are as they must be.
fn are_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// One more at each checkpoint.
    pub generation: u64,
    /// Bytes of a segment.
    pub segment: u32,
    /// Whether images may be compressed.
    pub compressed: bool,
    /// File offset and stored bytes of the directory's root image; (0, 0) = none.
    pub root: (u64, u64),
    /// Nonce of the root's segment.
    pub root_nonce: u64,
    /// Where replay starts.
    pub redo: RedoPosition,
    /// The stream reached at least this far.
    pub stable: Lsn,
    /// Identifiers below may have been handed out.
    pub id_floor: u64,
}

impl Superblock {
    /// The sector to write.
    pub fn encode(&self) -> [u8; SECTOR] {
        let mut b = [0; SECTOR];
        b[..8].copy_from_slice(MAGIC);
        put32(&mut b, 8, VERSION);
        put32(&mut b, 12, u32::from(self.compressed));
        put64(&mut b, 16, self.generation);
        put32(&mut b, 24, self.segment);
        put64(&mut b, 32, self.root.0);
        put64(&mut b, 40, self.root.1);
        put64(&mut b, 48, self.root_nonce);
        put64(&mut b, 56, self.redo.lsn.0);
        put32(&mut b, 64, self.redo.segment);
        put32(&mut b, 68, self.redo.offset);
        put64(&mut b, 72, self.redo.nonce);
        put64(&mut b, 80, self.stable.0);
        put64(&mut b, 88, self.id_floor);
        let crc = crc32fast::hash(&b[..SUM_AT]);
        put32(&mut b, SUM_AT, crc);
        b
    }

    /// The offset of the slot to write.
    pub fn slot(&self) -> u64 {
        SLOTS_AT[(self.generation + 1) as usize % 2]
    }

    /// Reads one copy. `Ok(None)`: blank, or the checksum or a number is wrong.
    ///
    /// # Errors
    /// `Unsupported`: another version, or no file of ours.
    pub fn decode(b: &[u8; SECTOR]) -> Result<Option<Superblock>> {
        if &b[..8] != MAGIC {
            return if are_zero(b) {
                Ok(None)
            } else {
                Err(Error::Unsupported("not a database of this kind".into()))
            };
        }
        if crc32fast::hash(&b[..SUM_AT]) != get32(b, SUM_AT) {
            return Ok(None);
        }
        if get32(b, 8) != VERSION {
            return Err(Error::Unsupported(format!(
                "format version {} (this build reads version {VERSION})",
                get32(b, 8)
            )));
        }
        let (flags, segment) = (get32(b, 12), get32(b, 24));
        if flags > 1 || !are_zero(&b[28..32]) || !are_zero(&b[96..SUM_AT]) {
            return Err(Error::Unsupported(format!(
                "flags {flags:#x} or fields that version {VERSION} does not have"
            )));
        }
        if !SEGMENT_SIZES.contains(&segment) || !segment.is_multiple_of(4096) {
            return Err(Error::Unsupported(format!(
                "segments of {segment} bytes, which version {VERSION} does not have"
            )));
        }
        let redo = RedoPosition {
            lsn: Lsn(get64(b, 56)),
            segment: get32(b, 64),
            offset: get32(b, 68),
            nonce: get64(b, 72),
        };
        let (generation, stable, id_floor) = (get64(b, 16), Lsn(get64(b, 80)), get64(b, 88));
        if generation.max(redo.lsn.0).max(stable.0).max(id_floor) > LARGEST {
            return Ok(None);
        }
        Ok(Some(Superblock {
            generation,
            segment,
            compressed: flags & 1 == 1,
            root: (get64(b, 32), get64(b, 40)),
            root_nonce: get64(b, 48),
            redo,
            stable,
            id_floor,
        }))
    }
}

/// What a segment is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SegmentKind {
    /// Redo blocks.
    Redo = 1,
    /// Images of leaves and of the directory.
    Leaves = 2,
    /// Images of big values.
    Big = 3,
}

/// The header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// What it is used for.
    pub kind: SegmentKind,
    /// The redo stream starts here at a record.
    pub fresh: bool,
    /// Number of the segment.
    pub number: u32,
    /// Nonce of this use of the segment.
    pub nonce: u64,
    /// Redo: LSN of the first block; others: segments of the run.
    pub first: u64,
    /// Redo: number and nonce of the next segment.
    pub next: (u32, u64),
}

impl SegmentHeader {
    /// The bytes to write.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut b = [0; HEADER];
        put32(&mut b, 0, SEGMENT_MAGIC);
        b[8] = self.kind as u8;
        b[9] = u8::from(self.fresh);
        put32(&mut b, 12, self.number);
        put64(&mut b, 16, self.nonce);
        put64(&mut b, 24, self.first);
        put32(&mut b, 32, self.next.0);
        put64(&mut b, 40, self.next.1);
        let crc = crc32fast::hash(&b[8..]);
        put32(&mut b, 4, crc);
        b
    }

    /// The header in `b`, if there is a whole one of segment `number`.
    pub fn decode(b: &[u8], number: u32) -> Option<SegmentHeader> {
        if b.len() < HEADER || get32(b, 0) != SEGMENT_MAGIC || crc32fast::hash(&b[8..HEADER]) != get32(b, 4) {
            return None;
        }
        if b[9] > 1 || ![10..12, 36..40, 48..HEADER].into_iter().all(|zero| are_zero(&b[zero])) {
            return None;
        }
        let kind = match b[8] {
            1 => SegmentKind::Redo,
            2 => SegmentKind::Leaves,
            3 => SegmentKind::Big,
            _ => return None,
        };
        let header = SegmentHeader {
            kind,
            fresh: b[9] == 1,
            number: get32(b, 12),
            nonce: get64(b, 16),
            first: get64(b, 24),
            next: (get32(b, 32), get64(b, 40)),
        };
        (header.number == number).then_some(header)
    }
}

/// The header of a redo block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// Position of the first byte of the payload.
    pub lsn: Lsn,
    /// What was durable when the block was sealed.
    pub stable: Lsn,
    /// Nonce of the segment.
    pub nonce: u64,
    /// File offset of the block.
    pub offset: u64,
    /// Bytes of the payload.
    pub len: u32,
}

/// Bytes that a block with `len` bytes of payload occupies.
pub const fn block_bytes(len: usize) -> usize {
    (HEADER + len).next_multiple_of(SECTOR)
}

impl BlockHeader {
    /// Fills in the header in front of a payload: `block` is header and payload.
    pub fn seal(&self, block: &mut [u8]) {
        block[..HEADER].fill(0);
        put32(block, 0, BLOCK_MAGIC);
        put64(block, 8, self.lsn.0);
        put64(block, 16, self.stable.0);
        put64(block, 24, self.nonce);
        put64(block, 32, self.offset);
        put32(block, 40, self.len);
        let crc = crc32fast::hash(&block[8..HEADER + self.len as usize]);
        put32(block, 4, crc);
    }

    /// The whole block at the start of `b`, if one of this place is there, in whatever use of the segment.
    pub fn find(b: &[u8], offset: u64) -> Option<(BlockHeader, &[u8])> {
        if b.len() < HEADER || get32(b, 0) != BLOCK_MAGIC {
            return None;
        }
        Self::decode(b, get64(b, 24), offset)
    }

    /// The whole block at the start of `b`, if one of this segment and place is there.
    pub fn decode(b: &[u8], nonce: u64, offset: u64) -> Option<(BlockHeader, &[u8])> {
        if b.len() < HEADER || get32(b, 0) != BLOCK_MAGIC || !are_zero(&b[44..HEADER]) {
            return None;
        }
        let header = BlockHeader {
            lsn: Lsn(get64(b, 8)),
            stable: Lsn(get64(b, 16)),
            nonce: get64(b, 24),
            offset: get64(b, 32),
            len: get32(b, 40),
        };
        let payload = b.get(HEADER..HEADER.checked_add(header.len as usize)?)?;
        let whole = header.nonce == nonce
            && header.offset == offset
            && crc32fast::hash(&b[8..HEADER + payload.len()]) == get32(b, 4);
        whole.then_some((header, payload))
    }
}

/// What an image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ImageKind {
    /// A leaf.
    Leaf = 1,
    /// A big value behind its key.
    Big = 2,
    /// A part of the leaf directory.
    Chunk = 3,
    /// The list of the directory's parts.
    Root = 4,
}

/// Which changes of its tree and range an image holds. Recovery does not need it; it puts images that no directory
/// lists in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Holds {
    /// Every change before this.
    pub all_before: Lsn,
    /// None from here on.
    pub none_from: Lsn,
}

/// The header of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// What it holds.
    pub kind: ImageKind,
    /// Whether the payload is compressed.
    pub compressed: bool,
    /// The tree it belongs to, 0 for the directory.
    pub tree: u32,
    /// File offset of the image.
    pub offset: u64,
    /// Nonce of the segment.
    pub nonce: u64,
    /// Bytes of the payload as stored.
    pub stored: u32,
    /// Bytes of the payload when not compressed.
    pub raw: u32,
    /// Which changes it holds.
    pub holds: Holds,
}

/// Bytes that an image with `stored` bytes of payload occupies.
pub const fn image_bytes(stored: usize) -> usize {
    (HEADER + stored).next_multiple_of(GRAIN)
}

impl ImageHeader {
    /// Fills in the header in front of a payload: `image` starts with header and payload.
    pub fn seal(&self, image: &mut [u8]) {
        image[..HEADER].fill(0);
        put32(image, 0, IMAGE_MAGIC);
        image[8] = self.kind as u8;
        image[9] = u8::from(self.compressed);
        put32(image, 12, self.tree);
        put64(image, 16, self.offset);
        put64(image, 24, self.nonce);
        put32(image, 32, self.stored);
        put32(image, 36, self.raw);
        put64(image, 40, self.holds.all_before.0);
        put64(image, 48, self.holds.none_from.0);
        let crc = crc32fast::hash(&image[8..HEADER + self.stored as usize]);
        put32(image, 4, crc);
    }

    /// The header at the start of `b` if its fields can be those of an image; the checksum is not looked at.
    pub fn peek(b: &[u8]) -> Option<ImageHeader> {
        if b.len() < HEADER || get32(b, 0) != IMAGE_MAGIC {
            return None;
        }
        let (stored, raw) = (get32(b, 32), get32(b, 36));
        if b[9] > 1 || (b[9] == 0 && stored != raw) || !are_zero(&b[10..12]) || !are_zero(&b[56..HEADER]) {
            return None;
        }
        let kind = match b[8] {
            1 => ImageKind::Leaf,
            2 => ImageKind::Big,
            3 => ImageKind::Chunk,
            4 => ImageKind::Root,
            _ => return None,
        };
        Some(ImageHeader {
            kind,
            compressed: b[9] == 1,
            tree: get32(b, 12),
            offset: get64(b, 16),
            nonce: get64(b, 24),
            stored,
            raw,
            holds: Holds { all_before: Lsn(get64(b, 40)), none_from: Lsn(get64(b, 48)) },
        })
    }

    /// The whole image at the start of `b`, if the one of this segment and place is there.
    pub fn decode(b: &[u8], nonce: u64, offset: u64) -> Option<(ImageHeader, &[u8])> {
        let header = Self::peek(b)?;
        let payload = b.get(HEADER..HEADER.checked_add(header.stored as usize)?)?;
        let whole = header.nonce == nonce
            && header.offset == offset
            && crc32fast::hash(&b[8..HEADER + payload.len()]) == get32(b, 4);
        whole.then_some((header, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            generation: 7,
            segment: 4096,
            compressed: true,
            root: (8256, 128),
            root_nonce: 0x1122_3344_5566_7788,
            redo: RedoPosition { lsn: Lsn(99), segment: 3, offset: 512, nonce: 5 },
            stable: Lsn(1000),
            id_floor: 42,
        }
    }

    #[test]
    fn superblock_has_the_documented_bytes() {
        let b = sample().encode();
        assert_eq!(&b[..12], b"sledbwt\n\x01\0\0\0");
        assert_eq!(&b[12..32], &[1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&b[32..48], &[0x40, 0x20, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&b[48..56], &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(&b[56..72], &[99, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 2, 0, 0]);
        assert_eq!(&b[72..96], &[5, 0, 0, 0, 0, 0, 0, 0, 0xE8, 3, 0, 0, 0, 0, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0]);
        assert!(b[96..508].iter().all(|byte| *byte == 0));
        assert_eq!(b[508..], crc32fast::hash(&b[..508]).to_le_bytes());
        assert_eq!(Superblock::decode(&b).expect("ours"), Some(sample()));
    }

    #[test]
    fn constants_are_those_of_the_specification() {
        assert_eq!((MAGIC, VERSION), (b"sledbwt\n", 1));
        assert_eq!((SECTOR, GRAIN, HEADER, SUM_AT), (512, 64, 64, 508));
        assert_eq!((SLOTS_AT, COPY_AT, SEGMENTS_AT), ([0, 4096], 2048, 8192));
        assert_eq!(SEGMENT_SIZES, 4096..=16 * 1024 * 1024);
        assert_eq!(FIRST_LSN, Lsn(64));
        assert_eq!(sample().slot(), 0, "odd generations");
        assert_eq!((block_bytes(1), block_bytes(448), block_bytes(449)), (512, 512, 1024));
        assert_eq!((image_bytes(1), image_bytes(64), image_bytes(65)), (128, 128, 192));
        assert_eq!(super::super::address::MAX_IMAGE, (1 << 30) - 64);
        assert_eq!(super::super::address::MAX_OFFSET, (1 << 44) - 64);
        assert_eq!(super::super::redo_buffer::MAX_RECORD, 1 << 30);
    }

    #[test]
    fn superblock_damage_and_strangers_are_told_apart() {
        let good = sample().encode();
        for at in (8..SECTOR).step_by(if cfg!(miri) { 499 } else { 1 }) {
            let mut bad = good;
            bad[at] ^= 4;
            assert_eq!(Superblock::decode(&bad).expect("ours, damaged"), None, "byte {at}");
        }
        assert_eq!(Superblock::decode(&[0; SECTOR]).expect("blank"), None);
        assert!(matches!(Superblock::decode(&[b'S'; SECTOR]), Err(Error::Unsupported(_))));
        for huge in [
            Superblock { generation: LARGEST + 1, ..sample() },
            Superblock { stable: Lsn(u64::MAX), ..sample() },
            Superblock { id_floor: u64::MAX, ..sample() },
            Superblock { redo: RedoPosition { lsn: Lsn(1 << 62), ..sample().redo }, ..sample() },
        ] {
            assert_eq!(Superblock::decode(&huge.encode()).expect("ours, forged"), None);
        }
        for at in [0, 8, 12, 28, 31, 96, 507] {
            let mut newer = good;
            newer[at] ^= 0x42;
            let crc = crc32fast::hash(&newer[..508]);
            put32(&mut newer, 508, crc);
            let found = Superblock::decode(&newer);
            assert!(matches!(found, Err(Error::Unsupported(_))), "byte {at}: {found:?}");
        }
    }

    /// So that a later version can give them a meaning without being misread.
    #[test]
    fn reserved_bytes_are_zero_or_refused() {
        fn refused(
            good: &[u8],
            sum: std::ops::Range<usize>,
            reserved: &[usize],
            is_whole: fn(&[u8]) -> bool,
        ) {
            assert!(is_whole(good));
            for at in reserved {
                let mut bad = good.to_vec();
                bad[*at] = 0x42;
                let crc = crc32fast::hash(&bad[sum.clone()]);
                put32(&mut bad, 4, crc);
                assert!(!is_whole(&bad), "byte {at}");
            }
        }
        let (kind, next) = (SegmentKind::Leaves, (0, 0));
        let segment = SegmentHeader { kind, fresh: false, number: 6, nonce: 9, first: 1, next };
        let reserved = [9, 10, 11, 36, 39, 48, 63];
        refused(&segment.encode(), 8..64, &reserved, |b| SegmentHeader::decode(b, 6).is_some());
        let mut b = [0; HEADER + 2];
        BlockHeader { lsn: Lsn(64), stable: Lsn(3), nonce: 5, offset: 8704, len: 2 }.seal(&mut b);
        refused(&b, 8..66, &[44, 63], |b| BlockHeader::decode(b, 5, 8704).is_some());
        let kind = ImageKind::Leaf;
        let mut b = [0; HEADER + 2];
        let image = ImageHeader {
            kind,
            compressed: false,
            tree: 4,
            offset: 8256,
            nonce: 5,
            stored: 2,
            raw: 2,
            holds: Holds::default(),
        };
        image.seal(&mut b);
        let reserved = [9, 10, 11, 36, 56, 63];
        refused(&b, 8..66, &reserved[..], |b| ImageHeader::decode(b, 5, 8256).is_some());
    }

    #[test]
    fn headers_have_the_documented_bytes_and_bind_their_place() {
        let segment = SegmentHeader {
            kind: SegmentKind::Redo,
            fresh: true,
            number: 6,
            nonce: 9,
            first: 77,
            next: (8, 10),
        };
        let b = segment.encode();
        assert_eq!(&b[..4], b"SEG1");
        assert_eq!(&b[8..24], &[1, 1, 0, 0, 6, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&b[24..48], &[77, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(SegmentHeader::decode(&b, 6), Some(segment));
        assert_eq!(SegmentHeader::decode(&b, 7), None);

        let block = BlockHeader { lsn: Lsn(64), stable: Lsn(3), nonce: 5, offset: 8704, len: 2 };
        let mut b = vec![0; HEADER + 2];
        b[HEADER..].copy_from_slice(b"hi");
        block.seal(&mut b);
        assert_eq!(&b[..4], b"REDO");
        assert_eq!(&b[8..24], &[64, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(BlockHeader::decode(&b, 5, 8704), Some((block, &b"hi"[..])));
        assert_eq!(BlockHeader::decode(&b, 6, 8704), None);
        assert_eq!(BlockHeader::decode(&b, 5, 9216), None);
        assert_eq!(BlockHeader::decode(&b[..65], 5, 8704), None);

        let image = ImageHeader {
            kind: ImageKind::Big,
            compressed: false,
            tree: 4,
            offset: 8256,
            nonce: 5,
            stored: 3,
            raw: 3,
            holds: Holds { all_before: Lsn(6), none_from: Lsn(7) },
        };
        let mut b = vec![0; image_bytes(3)];
        b[HEADER..HEADER + 3].copy_from_slice(b"abc");
        image.seal(&mut b);
        assert_eq!(&b[..4], b"IMG1");
        assert_eq!(&b[8..16], &[2, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(&b[40..64], &[6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(ImageHeader::decode(&b, 5, 8256), Some((image, &b"abc"[..])));
        assert_eq!(ImageHeader::decode(&b, 5, 8320), None);
        for at in 4..HEADER + 3 {
            let mut bad = b.clone();
            bad[at] ^= 1;
            assert_eq!(ImageHeader::decode(&bad, 5, 8256), None, "byte {at}");
        }
    }
}
