//! Writes sealed buffers to redo segments, block by block, and follows the chain of segments.
//!
//! # How it works
//!
//! A redo segment's header names the segment that comes next and its nonce, chosen before there is anything
//! in it; recovery follows this chain and never searches. When a segment is opened for little (somebody
//! flushes often) and has no blocks on the medium, what is left of it is filled with zeros first, so that the syncs to come
//! have no metadata to commit.
//!
//! # Concurrency
//!
//! One writer, behind the lock of [`super::Log`]. A write that failed leaves it where it was: the next
//! attempt writes the same block to the same place.

use super::format::{BlockHeader, HEADER, SECTOR, SegmentHeader, SegmentKind, block_bytes};
use super::redo_scan::ScannedRedo;
use super::segment::Segments;
use crate::base::{Lsn, RedoPosition, fail};
use crate::error::Result;
use crate::storage::Storage;
use std::collections::VecDeque;
use std::sync::Arc;

/// A redo segment that was left behind.
#[derive(Clone, Copy, Debug)]
struct Full {
    number: u32,
    /// Where its last block ends.
    end: Lsn,
}

/// The place where the next block goes.
#[derive(Debug)]
pub struct RedoWriter {
    storage: Arc<dyn Storage>,
    segments: Arc<Segments>,
    /// Number and nonce of the open segment.
    open: (u32, u64),
    /// Where its next block goes; 0 = its header is not written yet.
    offset: usize,
    /// LSN of the next block.
    lsn: Lsn,
    /// Number and nonce of the segment after the open one, which its header names.
    next: (u32, u64),
    /// The open segment starts at a record, whatever came before.
    fresh: bool,
    /// The last segment of the recovered chain, which is to name the open one.
    link: Option<SegmentHeader>,
    /// Segments behind the open one that the redo tail is in, oldest first.
    full: VecDeque<Full>,
    /// What is left of the open segment has blocks on the medium.
    filled: bool,
    /// Scratch for one block.
    block: Vec<u8>,
    /// Blocks written. Statistic.
    blocks: u64,
}

impl RedoWriter {
    /// A writer for a new file: the stream starts at `lsn` in the segment `open`.
    pub fn new(storage: Arc<dyn Storage>, segments: Arc<Segments>, open: (u32, u64), lsn: Lsn) -> RedoWriter {
        let next = segments.open_redo();
        let (full, block) = (VecDeque::new(), Vec::new());
        let (offset, fresh, link, blocks, filled) = (0, true, None, 0, false);
        RedoWriter { storage, segments, open, offset, lsn, next, fresh, link, full, filled, block, blocks }
    }

    /// A writer that goes on where a recovered stream ended.
    pub fn resume(storage: Arc<dyn Storage>, segments: Arc<Segments>, found: &ScannedRedo) -> RedoWriter {
        let mut writer = RedoWriter::new(storage, segments, (0, 0), found.end);
        let full = found.chain.iter().map(|(number, end)| Full { number: *number, end: *end });
        writer.full = full.collect();
        // Whatever segment comes next gets a nonce of its own: blocks from before a crash may be left in the
        // one that the header names, and would fit.
        writer.link = Some(found.last);
        match found.resume {
            Some(offset) => {
                writer.full.pop_back();
                writer.open = (found.last.number, found.last.nonce);
                (writer.offset, writer.fresh) = (offset as usize, false);
            }
            None => writer.open = std::mem::replace(&mut writer.next, writer.segments.open_redo()),
        }
        writer
    }

    /// Where the stream is on the medium.
    pub fn position(&self) -> RedoPosition {
        let offset = u32::try_from(self.offset.max(SECTOR)).expect("segments are smaller than 4 GiB");
        RedoPosition { lsn: self.lsn, segment: self.open.0, offset, nonce: self.open.1 }
    }

    /// The segment after the open one, which has nothing in it.
    pub fn next(&self) -> u32 {
        self.next.0
    }

    /// LSN of the next block.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Blocks written.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Fills what is left of the open segment with zeros, if little is about to be written and it has no blocks.
    fn fill(&mut self, pending: usize) -> Result<()> {
        let size = self.segments.size();
        if self.filled || pending >= size / 4 {
            return Ok(());
        }
        let zeros = vec![0; size - self.offset];
        fail::check("zero garbage segment")?;
        self.storage.write_at(self.segments.offset(self.open.0) + self.offset as u64, &zeros)?;
        fail::check("zero garbage segment post")?;
        self.filled = true;
        Ok(())
    }

    /// Writes the header of the open segment if it is not there.
    pub fn start_segment(&mut self) -> Result<()> {
        if self.offset > 0 {
            return Ok(());
        }
        let (number, nonce) = self.open;
        let header = SegmentHeader {
            kind: SegmentKind::Redo,
            fresh: self.fresh,
            number,
            nonce,
            first: self.lsn.0,
            next: self.next,
        };
        self.filled = self.segments.recycled(number);
        let mut first = [0; SECTOR];
        first[..HEADER].copy_from_slice(&header.encode());
        fail::check("segment initial free zero")?;
        self.storage.write_at(self.segments.offset(number), &first)?;
        if let Some(link) = &self.link {
            // One sector, so it is torn whole or not at all (S2); the old name it replaces led nowhere.
            let mut sector = [0; SECTOR];
            sector[..HEADER].copy_from_slice(&SegmentHeader { next: self.open, ..*link }.encode());
            self.storage.write_at(self.segments.offset(link.number), &sector)?;
            self.link = None;
        }
        self.offset = SECTOR;
        Ok(())
    }

    /// Writes what is left of `bytes`, which start at `base` in the stream.
    ///
    /// # Errors
    /// What writing failed with; calling again with the same bytes goes on where this stopped.
    pub fn write(&mut self, base: Lsn, bytes: &[u8], stable: Lsn) -> Result<()> {
        let size = self.segments.size();
        loop {
            let rest = &bytes[(self.lsn.0 - base.0) as usize..];
            if rest.is_empty() {
                return Ok(());
            }
            if self.offset + SECTOR > size {
                self.storage.start_writing(self.segments.offset(self.open.0), size as u64);
                self.full.push_back(Full { number: self.open.0, end: self.lsn });
                self.open = std::mem::replace(&mut self.next, self.segments.open_redo());
                (self.offset, self.fresh) = (0, false);
            }
            self.start_segment()?;
            self.fill(rest.len())?;
            let payload = &rest[..rest.len().min(size - self.offset - HEADER)];
            let offset = self.segments.offset(self.open.0) + self.offset as u64;
            self.block.clear();
            self.block.resize(HEADER, 0);
            self.block.extend_from_slice(payload);
            let len = payload.len() as u32;
            BlockHeader { lsn: self.lsn, stable, nonce: self.open.1, offset, len }.seal(&mut self.block);
            self.block.resize(block_bytes(payload.len()), 0);
            fail::check("buffer write")?;
            self.storage.write_at(offset, &self.block)?;
            fail::check("buffer write post")?;
            self.offset += self.block.len();
            self.lsn = self.lsn.plus(payload.len() as u64);
            self.blocks += 1;
        }
    }

    /// Redo segments that end at or before a redo position, and do not have it; they are the caller's to
    /// drain.
    pub fn take_before(&mut self, redo: RedoPosition) -> Vec<u32> {
        let mut gone = Vec::new();
        // A position may be at the very end of a segment, which replay then starts in.
        let behind = |full: &&Full| full.end <= redo.lsn && full.number != redo.segment;
        while let Some(full) = self.full.front().filter(behind) {
            gone.push(full.number);
            self.full.pop_front();
        }
        gone
    }

    /// Segments that hold or are to hold the stream.
    pub fn segments(&self) -> usize {
        self.full.len() + 2
    }
}
