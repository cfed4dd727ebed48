//! Reads the redo stream back: follows the chain, tells a torn tail from damage.
//!
//! # How it works
//!
//! From the redo position on, blocks are read until one is not whole. If the next segment of the chain starts
//! at exactly that LSN, the stream goes on there (the segment was full, or an earlier recovery ended it).
//! Otherwise the stream ends, and the question is whether it should. Every block says what was durable when
//! it was sealed, and so does the superblock: if any whole block further on in this segment or in the chain,
//! or the superblock, knows of a stable LSN past the end, then a durable block is damaged and opening fails.
//! If none does, nothing that was acknowledged is missing: a torn tail. A record that refers to an image
//! which is not there ends the stream in the same way.
//!
//! # Format
//!
//! Reading starts at the superblock's redo position: a segment, its nonce, an offset and an LSN. The segment must have a
//! whole header of kind redo with that nonce; otherwise the file is damaged. Then, for each segment:
//!
//! 1. Blocks are taken one after the other as long as each is whole, has the LSN that is expected next, and has a payload.
//!    The next block is expected behind the padding of this one, and its LSN is that of this one plus its length. A
//!    record with a big value whose image is not valid ends the stream at the record: neither it nor what follows
//!    counts, and the expected LSN is the record's.
//! 2. The next segment, by the header's number, counts if it has a whole redo header with the nonce that this one's
//!    header names, was not read before, and its first LSN is the expected one. Its blocks start at 512. If it is
//!    *fresh*, what was collected of a record that is not whole is dropped: recovery ended the stream there once.
//! 3. Otherwise the stream ends at the expected LSN; what was collected of a record that is not whole is void.
//!
//! Then the stable LSN of the superblock, and that of every whole block (at a multiple of 512, of the right nonce and
//! offset) behind the end in the last segment and in all segments of the chain behind it, must not be greater than the
//! end. The chain is followed as in 2, whatever LSN a segment begins with; in the first one without a whole header, blocks
//! are looked for all the same.
//!
//! What a file cannot tell: the end of a flush is noted by whatever is written next, a block or a superblock. When
//! exactly what the last flush before a crash wrote is damaged too, that looks like a torn tail.

use super::format::{BlockHeader, SECTOR, SegmentHeader, SegmentKind};
use super::record::{EachRecord, Records};
use super::segment::Segments;
use crate::base::{Lsn, RedoPosition};
use crate::error::{Error, Result};
use crate::storage::Storage;
use std::collections::BTreeSet;

/// Where the stream ended.
#[derive(Debug)]
pub struct ScannedRedo {
    /// LSN behind the last whole block.
    pub end: Lsn,
    /// Segments of the stream and the LSN at which each ends.
    pub chain: Vec<(u32, Lsn)>,
    /// The header of the last one.
    pub last: SegmentHeader,
    /// Offset in the last segment at which the stream may go on; `None` = only in a new segment, as
    /// something else is there.
    pub resume: Option<u32>,
}

struct Scan<'a> {
    storage: &'a dyn Storage,
    segments: &'a Segments,
    file_len: u64,
}

/// The header at the start of a segment, if it is the redo segment of that number and nonce. Where the file ends within
/// the first sector nothing is behind it, and it is none.
fn redo_header(bytes: &[u8], (number, nonce): (u32, u64)) -> Option<SegmentHeader> {
    let header = SegmentHeader::decode(bytes.get(..SECTOR)?, number)?;
    (header.kind == SegmentKind::Redo && header.nonce == nonce).then_some(header)
}

impl Scan<'_> {
    /// The bytes of a segment, as far as the file goes, and its header if it is the redo segment of that
    /// nonce.
    fn load(&self, place: (u32, u64)) -> Result<Option<(SegmentHeader, Vec<u8>)>> {
        let bytes = self.bytes(place.0)?;
        Ok(redo_header(&bytes, place).map(|header| (header, bytes)))
    }

    /// The bytes of a segment, as far as the file goes.
    fn bytes(&self, number: u32) -> Result<Vec<u8>> {
        let offset = self.segments.offset(number);
        let len = self.file_len.saturating_sub(offset).min(self.segments.size() as u64);
        let mut bytes = vec![0; len as usize];
        self.storage.read_at(offset.min(self.file_len), &mut bytes)?;
        Ok(bytes)
    }

    /// Takes the segments of the chain, so that replay, which may page out, writes to none of them.
    fn adopt_chain(&self, first: SegmentHeader) -> Result<Vec<u32>> {
        let mut adopted = Vec::new();
        let mut header = first;
        while self.segments.adopt_redo(header.number) {
            adopted.push(header.number);
            let mut sector = [0; SECTOR];
            let offset = self.segments.offset(header.next.0);
            if offset + SECTOR as u64 > self.file_len {
                break;
            }
            self.storage.read_at(offset, &mut sector)?;
            let Some(next) = redo_header(&sector, header.next) else { break };
            header = next;
        }
        Ok(adopted)
    }

    /// The largest stable LSN that a whole block at or past `from` knows of.
    fn latest_stable(&self, number: u32, nonce: u64, bytes: &[u8], from: usize) -> Option<Lsn> {
        let base = self.segments.offset(number);
        let block = |at: usize| BlockHeader::decode(&bytes[at..], nonce, base + at as u64);
        (from..bytes.len()).step_by(SECTOR).filter_map(block).map(|(header, _)| header.stable).max()
    }
}

/// Gives damage without a place that of the block in which it was found.
fn placed(storage: &dyn Storage, offset: u64, error: Error) -> Error {
    match error {
        Error::Corruption { at: None, .. } => super::damage(storage, offset, 0, "malformed redo record"),
        other => other,
    }
}

/// Reads the stream from `position` and calls `each` with position, kind and body of every record.
///
/// # Errors
/// `Corruption` when a block that was durable is damaged; what reading or `each` failed with.
pub fn scan(
    storage: &dyn Storage,
    segments: &Segments,
    position: RedoPosition,
    stable: Lsn,
    each: EachRecord<'_>,
) -> Result<ScannedRedo> {
    let scan = Scan { storage, segments, file_len: storage.len()? };
    let mut records = Records::default();
    let mut chain = Vec::new();
    let mut seen = BTreeSet::from([position.segment]);
    let damaged = |offset: u64, what: &str| Err(super::damage(storage, offset, 0, what));
    let start = segments.offset(position.segment);
    let Some((mut header, mut bytes)) = scan.load((position.segment, position.nonce))? else {
        return damaged(start, "no redo segment where the checkpoint says one is");
    };
    let adopted = scan.adopt_chain(header)?;
    if adopted.is_empty() {
        return damaged(start, "the redo stream starts in a segment that holds images");
    }
    let mut at = position.offset as usize;
    let mut lsn = position.lsn;
    if !at.is_multiple_of(SECTOR) || at < SECTOR {
        return damaged(start, "impossible redo position");
    }
    let mut cut;
    loop {
        let base = segments.offset(header.number);
        cut = None;
        while let Some((block, payload)) =
            bytes.get(at..).and_then(|b| BlockHeader::decode(b, header.nonce, base + at as u64))
        {
            if block.lsn != lsn || payload.is_empty() {
                break;
            }
            cut =
                records.feed(lsn, payload, each).map_err(|error| placed(storage, base + at as u64, error))?;
            lsn = cut.unwrap_or(lsn.plus(payload.len() as u64));
            if cut.is_some() {
                break;
            }
            at += super::format::block_bytes(payload.len());
        }
        chain.push((header.number, lsn));
        let next = if seen.insert(header.next.0) { scan.load(header.next)? } else { None };
        let Some((next_header, next_bytes)) = next else { break };
        if next_header.first != lsn.0 {
            break;
        }
        if next_header.fresh {
            records.restart();
        }
        (header, bytes, at) = (next_header, next_bytes, SECTOR);
    }
    // What is left of this segment and of the chain behind it was written after the end, if it is whole.
    let rest = scan.latest_stable(header.number, header.nonce, &bytes, at.min(bytes.len()));
    let mut known = rest.max(Some(stable));
    let mut later = header.next;
    let mut clean = rest.is_none() && cut.is_none();
    // A segment whose header is damaged still has blocks with the nonce that the one before it names.
    let headless = |(number, nonce): (u32, u64)| -> Result<Option<Lsn>> {
        Ok(scan.latest_stable(number, nonce, &scan.bytes(number)?, SECTOR))
    };
    while let Some((next, bytes)) = scan.load(later)? {
        clean = false;
        known = known.max(scan.latest_stable(next.number, next.nonce, &bytes, SECTOR));
        later = next.next;
        if !seen.insert(later.0) {
            break;
        }
    }
    let found = headless(later)?;
    clean &= found.is_none();
    known = known.max(found);
    if known.is_some_and(|known| known > lsn) {
        let offset = segments.offset(header.number) + at as u64;
        return damaged(offset, "damaged redo block, known to have been durable");
    }
    for number in adopted {
        if chain.iter().all(|(used, _)| *used != number) {
            segments.abandon_redo(number);
        }
    }
    let resume = (clean && !records.is_partial()).then_some(at as u32);
    Ok(ScannedRedo { end: lsn, chain, last: header, resume })
}
