//! Finds every whole structure in a file, wherever it is, without believing what should lead there.
//!
//! For a file whose superblocks, directory or redo stream are damaged. Each structure says for which place and nonce it
//! was written, and has a checksum, so a search meets those that were once written as they are, and nothing else. Which
//! of them count any more is for the layers above to find out.

use super::address::{ImageAddr, MAX_IMAGE, MAX_OFFSET};
use super::format::{
    BlockHeader, COPY_AT, GRAIN, HEADER, ImageHeader, ImageKind, MAGIC, SECTOR, SEGMENT_SIZES, SEGMENTS_AT,
    SLOTS_AT, SegmentHeader, SegmentKind, Superblock, image_bytes,
};
use super::record::{EachRecord, Records};
use crate::base::{Lsn, RedoPosition};
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::storage::Storage;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is called with position, kind and body of a record.
pub type EachFound<'a> = &'a mut dyn FnMut(Lsn, u8, &[u8]) -> Result<()>;

/// A whole image.
#[derive(Clone, Copy, Debug)]
pub struct FoundImage {
    /// Where it is.
    pub image: ImageAddr,
    /// What it says of itself.
    pub header: ImageHeader,
}

/// What is left of a file.
pub struct Remains {
    storage: Arc<dyn Storage>,
    /// The newest superblock, if both slots have one: otherwise the missing one may have been newer.
    pub superblock: Option<Superblock>,
    /// Every whole image, by offset.
    pub images: BTreeMap<u64, FoundImage>,
    /// Every whole redo block, by offset.
    blocks: BTreeMap<u64, BlockHeader>,
    /// The whole header of every redo segment that has one, by number.
    redo: BTreeMap<u32, SegmentHeader>,
    /// Bytes of a segment.
    segment: u64,
}

impl std::fmt::Debug for Remains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remains({} images, {} blocks)", self.images.len(), self.blocks.len())
    }
}

/// Fills `bytes` from a place in the file; what cannot be read is zeros.
fn read_what_can_be(storage: &dyn Storage, offset: u64, bytes: &mut [u8]) {
    if storage.read_at(offset, bytes).is_ok() {
        return;
    }
    for (i, part) in bytes.chunks_mut(SECTOR).enumerate() {
        if storage.read_at(offset + (i * SECTOR) as u64, part).is_err() {
            part.fill(0);
        }
    }
}

/// The newest superblock if both slots have one, and the size of a segment if any copy tells.
///
/// # Errors
/// `Unsupported` when a whole copy is of another version: what it says of the rest is not known.
fn find_superblock(storage: &dyn Storage) -> Result<(Option<Superblock>, Option<u32>)> {
    let mut later = None;
    let slots = SLOTS_AT.map(|at| {
        let copies = [at, at + COPY_AT].map(|offset| {
            let mut sector = [0; SECTOR];
            read_what_can_be(storage, offset, &mut sector);
            let copy = Superblock::decode(&sector);
            if sector.starts_with(MAGIC) {
                later = later.take().or(copy.as_ref().err().cloned());
            }
            copy.ok().flatten().filter(|copy| copy.slot() == at)
        });
        copies.into_iter().flatten().max_by_key(|copy| copy.generation)
    });
    if let Some(later) = later {
        return Err(later);
    }
    let size = slots.iter().flatten().map(|copy| copy.segment).next();
    let newest = match slots {
        [Some(a), Some(b)] if a.generation.abs_diff(b.generation) == 1 => {
            Some(if a.generation > b.generation { a } else { b })
        }
        _ => None,
    };
    Ok((newest, size))
}

/// The size of a segment as the segments' own numbers tell: the one that most of them agree on.
fn guess_segment_size(storage: &dyn Storage, len: u64) -> Option<u32> {
    let mut votes = BTreeMap::<u32, usize>::new();
    let step = *SEGMENT_SIZES.start() as usize;
    for offset in (SEGMENTS_AT..len.saturating_sub(HEADER as u64)).step_by(step) {
        let mut bytes = [0; HEADER];
        read_what_can_be(storage, offset, &mut bytes);
        let number = u32::from_le_bytes(bytes[12..16].try_into().expect("four bytes"));
        if number == 0 || SegmentHeader::decode(&bytes, number).is_none() {
            continue;
        }
        let size = (offset - SEGMENTS_AT) / u64::from(number);
        if let Ok(size) = u32::try_from(size)
            && SEGMENT_SIZES.contains(&size)
            && size.is_multiple_of(*SEGMENT_SIZES.start())
        {
            *votes.entry(size).or_default() += 1;
        }
    }
    votes.into_iter().max_by_key(|(_, count)| *count).map(|(size, _)| size)
}

/// Searches a file.
///
/// # Errors
/// What asking for its length failed with; `Unsupported` when nothing of ours is in it, or it is of a later version, or
/// compressed and that is not built in.
pub fn search(storage: Arc<dyn Storage>) -> Result<Remains> {
    let len = storage.len()?;
    let (superblock, size) = find_superblock(&*storage)?;
    if superblock.as_ref().is_some_and(|found| found.compressed) && !cfg!(feature = "compression") {
        return Err(Error::Unsupported("a compressed database needs the cargo feature `compression`".into()));
    }
    let size = match size.or_else(|| guess_segment_size(&*storage, len)) {
        Some(size) => u64::from(size),
        // One segment, or none with a header: any size will do to go through it.
        None => u64::from(*SEGMENT_SIZES.start()),
    };
    let (images, blocks, redo) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut remains = Remains { storage, superblock, images, blocks, redo, segment: size };
    let mut at = SEGMENTS_AT;
    while at < len {
        let mut bytes = vec![0; size.min(len - at) as usize];
        read_what_can_be(&*remains.storage, at, &mut bytes);
        remains.search_segment(at, &bytes, len);
        at += size;
    }
    if remains.images.is_empty() && remains.blocks.is_empty() && remains.superblock.is_none() {
        return Err(Error::Unsupported("nothing of a database of this kind is in the file".into()));
    }
    Ok(remains)
}

impl Remains {
    fn search_segment(&mut self, base: u64, bytes: &[u8], len: u64) {
        let number = bytes.get(12..16).map_or(0, |b| u32::from_le_bytes(b.try_into().expect("four bytes")));
        // A header that is whole, and of this place, rules out what an earlier use of the segment left.
        let header = SegmentHeader::decode(bytes, number).filter(|_| self.range(number, 1).0 == base);
        let nonce = header.map(|header| header.nonce);
        if let Some(header) = header.filter(|header| header.kind == SegmentKind::Redo) {
            self.redo.insert(header.number, header);
        }
        let is_redo = header.is_none_or(|header| header.kind == SegmentKind::Redo);
        let has_images = header.is_none_or(|header| header.kind != SegmentKind::Redo);
        let mut at = HEADER;
        // A checksum that is wrong costs reading what may be an image; a forged file is not to cost more than this.
        let mut patience = 8 * bytes.len();
        while at + HEADER <= bytes.len() && patience > 0 {
            let offset = base + at as u64;
            if is_redo
                && at.is_multiple_of(SECTOR)
                && let Some((header, _)) = BlockHeader::find(&bytes[at..], offset)
                && nonce.is_none_or(|nonce| nonce == header.nonce)
            {
                self.blocks.insert(offset, header);
                at += super::format::block_bytes(header.len as usize);
                continue;
            }
            let image = match ImageHeader::peek(&bytes[at..]).filter(|_| has_images) {
                Some(header) => {
                    // Only the first image of a run is longer than a segment.
                    let longest = if at == HEADER { u64::MAX } else { (bytes.len() - at) as u64 };
                    patience = patience.saturating_sub((header.stored as usize).min(bytes.len()));
                    self.image_at(&bytes[at..], offset, len).filter(|found| found.image.bytes() <= longest)
                }
                None => None,
            };
            match image.filter(|found| nonce.is_none_or(|nonce| nonce == found.header.nonce)) {
                Some(found) => {
                    patience += found.header.stored as usize;
                    self.images.insert(offset, found);
                    at += usize::try_from(found.image.bytes()).unwrap_or(usize::MAX).min(bytes.len());
                }
                None => at += GRAIN,
            }
        }
    }

    /// The whole image at an offset, of which `bytes` is the beginning.
    fn image_at(&self, bytes: &[u8], offset: u64, len: u64) -> Option<FoundImage> {
        let header = ImageHeader::peek(bytes).filter(|header| header.offset == offset)?;
        let occupied = image_bytes(header.stored as usize) as u64;
        if occupied > MAX_IMAGE
            || offset > MAX_OFFSET
            || offset + HEADER as u64 + u64::from(header.stored) > len
        {
            return None;
        }
        let whole = if let Ok(stored) = usize::try_from(occupied)
            && let Some(all) = bytes.get(..stored)
        {
            ImageHeader::decode(all, header.nonce, offset).is_some()
        } else {
            self.read(offset, occupied)
                .is_some_and(|all| ImageHeader::decode(&all, header.nonce, offset).is_some())
        };
        whole.then(|| FoundImage { image: ImageAddr::new(offset, occupied), header })
    }

    fn read(&self, offset: u64, bytes: u64) -> Option<Vec<u8>> {
        let there = self.storage.len().ok()?.saturating_sub(offset).min(bytes);
        let mut all = vec![0; usize::try_from(there).ok()?];
        self.storage.read_at(offset, &mut all).ok()?;
        Some(all)
    }

    /// File offset of a segment, and of where the run of so many segments that starts there ends.
    pub fn range(&self, number: u32, units: u32) -> (u64, u64) {
        let at = |number: u64| SEGMENTS_AT + number * self.segment;
        (at(u64::from(number)), at(u64::from(number) + u64::from(units)))
    }

    /// File offset of the segment that a place is in.
    pub fn segment_of(&self, offset: u64) -> u64 {
        offset - offset.saturating_sub(SEGMENTS_AT) % self.segment
    }

    /// The whole image at an address, if it is there with that nonce.
    pub fn find(&self, image: ImageAddr, nonce: u64) -> Option<&FoundImage> {
        let found = self.images.get(&image.offset())?;
        (found.image == image && found.header.nonce == nonce).then_some(found)
    }

    /// The payload of the whole image at an address, if it is of that kind, and there with that nonce.
    pub fn payload(&self, image: ImageAddr, kind: ImageKind, nonce: u64) -> Option<Vec<u8>> {
        self.find(image, nonce).filter(|found| found.header.kind == kind)?;
        let bytes = self.read(image.offset(), image.bytes())?;
        let (header, stored) = ImageHeader::decode(&bytes, nonce, image.offset())?;
        if header.compressed {
            super::compression::decompress(stored, header.raw)
        } else {
            Some(stored.to_vec())
        }
    }

    /// The segment of the chain behind one, if its header is whole.
    fn next(&self, header: &SegmentHeader) -> Option<&SegmentHeader> {
        self.redo.get(&header.next.0).filter(|next| next.nonce == header.next.1)
    }

    /// The blocks of the redo stream from a position on, as far as the chain of segments can be followed.
    fn chain(&self, from: RedoPosition) -> Vec<BlockHeader> {
        let mut blocks = Vec::new();
        let mut seen = BTreeSet::new();
        let (mut segment, mut start) = ((from.segment, from.nonce), u64::from(from.offset));
        while seen.insert(segment.0) {
            let (base, end) = self.range(segment.0, 1);
            let here = self.blocks.range(base + start..end.max(base + start)).map(|(_, block)| *block);
            blocks.extend(here.filter(|block| block.nonce == segment.1));
            // The blocks of a segment without a whole header are its own all the same, but where it goes on is unknown.
            let Some(header) = self.redo.get(&segment.0).filter(|header| header.nonce == segment.1) else {
                break;
            };
            (segment, start) = (header.next, 0);
        }
        blocks.sort_by_key(|block| block.lsn);
        blocks
    }

    /// The blocks of the stream, in order, and where it is not sure any more that they belong to it.
    fn stream(&self) -> (Vec<BlockHeader>, Lsn) {
        let Some(superblock) = &self.superblock else { return (self.blocks_from(Lsn(0)), Lsn::MAX) };
        let mut blocks = self.chain(superblock.redo);
        let ends = blocks.iter().map(|block| self.end_of(block).unwrap_or(block.lsn));
        let end = ends.max().unwrap_or(superblock.redo.lsn);
        if end >= self.stable() {
            return (blocks, Lsn::MAX);
        }
        // Something durable is missing: whatever may be it is taken.
        let known: BTreeSet<u64> = blocks.iter().map(|block| block.offset).collect();
        blocks.extend(self.blocks_from(end).into_iter().filter(|block| !known.contains(&block.offset)));
        (blocks, end)
    }

    /// All blocks from a position on, in order.
    fn blocks_from(&self, from: Lsn) -> Vec<BlockHeader> {
        let mut blocks: Vec<_> = self.blocks.values().copied().filter(|block| block.lsn >= from).collect();
        blocks.sort_by_key(|block| (block.lsn, block.offset));
        blocks
    }

    /// Where what counts of a block ends; `None`: nothing of it counts, as a recovery ended the stream before it, and went
    /// on in another segment.
    fn end_of(&self, block: &BlockHeader) -> Option<Lsn> {
        let end = block.lsn.plus(u64::from(block.len));
        let next = self.header_of(block).and_then(|header| self.next(header));
        let end = next.map_or(end, |next| end.min(Lsn(next.first)));
        (end > block.lsn).then_some(end)
    }

    /// The header of the segment that a block is in, if it is whole.
    fn header_of(&self, block: &BlockHeader) -> Option<&SegmentHeader> {
        let number = (self.segment_of(block.offset) - SEGMENTS_AT) / self.segment;
        let header = self.redo.get(&u32::try_from(number).ok()?)?;
        (header.nonce == block.nonce).then_some(header)
    }

    /// Calls `each` with position, kind and body of the records from `from` on that can be found, in order, and `gap`
    /// with the position up to which the stream is whole, and a place in the file behind it, whenever something is
    /// missing there.
    ///
    /// Behind a gap a record can begin anywhere. It goes on at the next block that consists of whole records.
    ///
    /// # Errors
    /// What `each` returns.
    pub fn records(
        &self,
        from: Lsn,
        is_well_formed: &dyn Fn(u8, &[u8]) -> bool,
        each: EachFound<'_>,
        gap: &mut dyn FnMut(Lsn, u64),
    ) -> Result<()> {
        let mut records = Records::default();
        // Where the stream goes on; `None`: behind a gap, or it is not known where it begins.
        let mut next = (from > Lsn(0)).then_some(from);
        let (blocks, mut unsure) = self.stream();
        for header in &blocks {
            let lsn = header.lsn;
            if lsn < from || next.is_some_and(|next| lsn < next) {
                continue;
            }
            let Some(end) = self.end_of(header) else { continue };
            let Some(bytes) = self.read(header.offset, (HEADER + header.len as usize) as u64) else {
                continue;
            };
            let Some((_, payload)) = BlockHeader::decode(&bytes, header.nonce, header.offset) else {
                continue;
            };
            let payload = &payload[..(end.0 - lsn.0) as usize];
            let is_first = header.offset == self.segment_of(header.offset) + SECTOR as u64;
            if is_first && self.header_of(header).is_some_and(|header| header.fresh) {
                // A recovery ended the stream here: a record that was begun is void.
                records.restart();
            }
            if next != Some(lsn) || lsn >= unsure {
                if let Some(end) = next.take() {
                    gap(end, header.offset);
                }
                unsure = Lsn::MAX;
                records.restart();
                if !consists_of_records(lsn, payload, is_well_formed) {
                    continue;
                }
            }
            let one: EachRecord<'_> = &mut |lsn, kind, body| each(lsn, kind, body).map(|()| true);
            match records.feed(lsn, payload, one) {
                Ok(_) => next = Some(end),
                Err(Error::Corruption { .. }) => {
                    records.restart();
                    gap(lsn, header.offset);
                    next = None;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(end) = next.filter(|end| *end < self.stable()) {
            gap(end, 0);
        }
        Ok(())
    }

    /// What is known to have been durable.
    fn stable(&self) -> Lsn {
        let known = self.blocks.values().map(|block| block.stable);
        known.chain(self.superblock.iter().map(|superblock| superblock.stable)).max().unwrap_or_default()
    }

    /// Damage in this file.
    pub fn damage(&self, offset: u64, len: u64, what: &str) -> Damage {
        super::damage_at(&*self.storage, offset, len, what)
    }
}

/// Whether a payload begins with a record and holds well-formed ones only; the last one may go on behind it.
fn consists_of_records(lsn: Lsn, payload: &[u8], is_well_formed: &dyn Fn(u8, &[u8]) -> bool) -> bool {
    let mut records = Records::default();
    let mut any = false;
    let each: EachRecord<'_> = &mut |_, kind, body| {
        any = true;
        if is_well_formed(kind, body) { Ok(true) } else { Err(Error::Corruption { at: None, bt: () }) }
    };
    records.feed(lsn, payload, each).is_ok() && any
}
