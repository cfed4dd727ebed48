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
use crate::base::Lsn;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::storage::Storage;
use std::collections::BTreeMap;
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
    /// Every whole redo block, by LSN.
    blocks: Vec<BlockHeader>,
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
    let mut remains = Remains { storage, superblock, images: BTreeMap::new(), blocks: Vec::new() };
    let mut at = SEGMENTS_AT;
    while at < len {
        let mut bytes = vec![0; size.min(len - at) as usize];
        read_what_can_be(&*remains.storage, at, &mut bytes);
        remains.search_segment(at, &bytes, len);
        at += size;
    }
    remains.blocks.sort_by_key(|block| (block.lsn, block.offset));
    if remains.images.is_empty() && remains.blocks.is_empty() && remains.superblock.is_none() {
        return Err(Error::Unsupported("nothing of a database of this kind is in the file".into()));
    }
    Ok(remains)
}

impl Remains {
    fn search_segment(&mut self, base: u64, bytes: &[u8], len: u64) {
        let number = bytes.get(12..16).map_or(0, |b| u32::from_le_bytes(b.try_into().expect("four bytes")));
        // A header that is whole rules out what an earlier use of the segment left.
        let header = SegmentHeader::decode(bytes, number);
        let nonce = header.map(|header| header.nonce);
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
                self.blocks.push(header);
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

    /// The payload of the whole image at an address, if it is of that kind and there.
    pub fn payload(&self, image: ImageAddr, kind: ImageKind) -> Option<Vec<u8>> {
        let found = self.images.get(&image.offset()).filter(|found| found.image == image)?;
        if found.header.kind != kind {
            return None;
        }
        let bytes = self.read(image.offset(), image.bytes())?;
        let (header, stored) = ImageHeader::decode(&bytes, found.header.nonce, image.offset())?;
        if header.compressed {
            super::compression::decompress(stored, header.raw)
        } else {
            Some(stored.to_vec())
        }
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
        for header in &self.blocks {
            let lsn = header.lsn;
            if lsn < from || next.is_some_and(|next| lsn < next) {
                continue;
            }
            let Some(bytes) = self.read(header.offset, (HEADER + header.len as usize) as u64) else {
                continue;
            };
            let Some((_, payload)) = BlockHeader::decode(&bytes, header.nonce, header.offset) else {
                continue;
            };
            if next != Some(lsn) {
                if let Some(end) = next.take() {
                    gap(end, header.offset);
                }
                records.restart();
                if !consists_of_records(lsn, payload, is_well_formed) {
                    continue;
                }
            }
            let one: EachRecord<'_> = &mut |lsn, kind, body| each(lsn, kind, body).map(|()| true);
            match records.feed(lsn, payload, one) {
                Ok(_) => next = Some(lsn.plus(payload.len() as u64)),
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
        let known = self.blocks.iter().map(|block| block.stable);
        known.chain(self.superblock.iter().map(|superblock| superblock.stable)).max().unwrap_or_default()
    }

    /// Damage in this file.
    pub fn damage(&self, offset: u64, len: u64, what: String) -> Damage {
        let file = self.storage.path().map(std::path::Path::to_path_buf);
        Damage { what, file, offset, len, tree: None, keys: None }
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
