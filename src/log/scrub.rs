//! Reads what a crash would be recovered from, and reports what is damaged: superblocks, headers of runs, redo blocks.
//!
//! Images are read by the layers above, which know whose they are.

use super::format::{
    BlockHeader, COPY_AT, HEADER, SECTOR, SEGMENTS_AT, SLOTS_AT, SegmentHeader, SegmentKind, Superblock,
    block_bytes,
};
use super::record::{EachRecord, Records};
use super::{ImageAddr, Log};
use crate::base::Lsn;
use crate::damage::Damage;
use crate::error::{Error, Result};
use std::collections::HashSet;

/// Asked now and then, with how many bytes were read and what was found; `false` ends the check.
pub type GoOn<'a> = &'a mut dyn FnMut(u64, &[Damage]) -> bool;

/// How much was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes.
    pub bytes: u64,
    /// Trees.
    pub trees: u64,
    /// Leaves of trees.
    pub leaves: u64,
    /// Records in leaves.
    pub records: u64,
    /// Big values.
    pub big_values: u64,
}

/// What a check has read and found so far.
pub struct Findings<'a> {
    /// How much was read.
    pub counts: Counts,
    /// What is damaged.
    pub damages: Vec<Damage>,
    /// Whether it was ended before the end.
    pub cancelled: bool,
    /// What is in `damages`.
    known: HashSet<Damage>,
    go_on: GoOn<'a>,
}

impl std::fmt::Debug for Findings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Findings({:?}, {} damages)", self.counts, self.damages.len())
    }
}

impl<'a> Findings<'a> {
    /// Nothing yet.
    pub fn new(go_on: GoOn<'a>) -> Findings<'a> {
        let (counts, damages, known) = (Counts::default(), Vec::new(), HashSet::new());
        Findings { counts, damages, cancelled: false, known, go_on }
    }

    /// Notes that so many bytes were read, and asks whether to go on. Not under a lock: who is asked may do anything.
    ///
    /// # Errors
    /// When not; then `cancelled` is set.
    pub fn read(&mut self, bytes: u64) -> Result<()> {
        self.counts.bytes += bytes;
        if !self.cancelled && (self.go_on)(self.counts.bytes, &self.damages) {
            return Ok(());
        }
        self.cancelled = true;
        Err(Error::Unsupported("the check was cancelled".into()))
    }

    /// Notes damage, or a place that cannot be read.
    pub fn note(&mut self, damage: Damage) {
        if self.known.insert(damage.clone()) {
            log::error!("{damage}");
            self.damages.push(damage);
        }
    }
}

impl Log {
    /// Gives damage that knows no place that of an image.
    pub fn placed(&self, image: ImageAddr, error: Error) -> Error {
        match error {
            Error::Corruption { at: None, .. } => {
                self.damage(image.offset(), image.bytes(), "malformed leaf directory")
            }
            other => other,
        }
    }

    /// What is damaged when reading a place failed, or that it cannot be read.
    ///
    /// # Errors
    /// Any other error.
    pub fn unreadable(&self, offset: u64, len: u64, error: Error) -> Result<Damage> {
        if let Some(known) = error.damage() {
            return Ok(known.clone());
        }
        match error {
            Error::Io(error) => Ok(self.damage_at(offset, len, &format!("cannot be read ({error})"))),
            Error::Corruption { .. } => Ok(self.damage_at(offset, len, "damaged")),
            other => Err(other),
        }
    }

    /// As many of the bytes at a place as the file has, or that they cannot be read.
    fn read_at_most(&self, offset: u64, len: usize) -> std::result::Result<Vec<u8>, Box<Damage>> {
        let read = || {
            let there = self.storage.len()?.saturating_sub(offset).min(len as u64);
            let mut bytes = vec![0; there as usize];
            self.storage.read_at(offset, &mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|error: std::io::Error| {
            Box::new(self.damage_at(offset, len as u64, &format!("cannot be read ({error})")))
        })
    }

    /// Checks both copies in both superblock slots.
    ///
    /// # Errors
    /// Only when the check was cancelled.
    pub fn scrub_superblocks(&self, found: &mut Findings<'_>) -> Result<()> {
        // Not written meanwhile.
        let current = self.superblock.lock();
        for at in SLOTS_AT {
            for offset in [at, at + COPY_AT] {
                match self.read_at_most(offset, SECTOR) {
                    Ok(bytes) => {
                        let sector = bytes.as_slice().try_into().ok();
                        let copy = sector.and_then(|sector| Superblock::decode(sector).ok()).flatten();
                        // The two slots have generations that follow each other.
                        let whole = copy.is_some_and(|copy| {
                            copy == *current || copy.generation + 1 == current.generation && copy.slot() == at
                        });
                        if !whole {
                            found.note(self.damage_at(offset, SECTOR as u64, "damaged copy of a superblock"));
                        }
                    }
                    Err(damage) => found.note(*damage),
                }
            }
        }
        drop(current);
        found.read(SEGMENTS_AT)
    }

    /// Checks the headers of all runs with live images. No checkpoint is made meanwhile.
    pub fn scrub_headers(&self, found: &mut Findings<'_>) {
        for (number, run) in self.segments.runs() {
            if run.live == 0 {
                continue;
            }
            let offset = self.segments.offset(number);
            // Until the next checkpoint the count of big values may have some twice, after a crash.
            if run.kind == SegmentKind::Leaves && run.live > run.used {
                let what = format!("{} live bytes in a run of {}", run.live, run.used);
                found.note(self.damage_at(offset, run.used, &what));
            }
            match self.read_at_most(offset, HEADER) {
                Ok(bytes) => {
                    let whole = SegmentHeader::decode(&bytes, number)
                        .is_some_and(|header| header.kind == run.kind && header.nonce == run.nonce);
                    if !whole {
                        found.note(self.damage_at(offset, HEADER as u64, "damaged header of a segment"));
                    }
                }
                Err(damage) => found.note(*damage),
            }
            found.counts.bytes += HEADER as u64;
        }
    }

    /// Checks the redo stream from where replay would start up to what is durable, and calls `each` with its records.
    /// No checkpoint is made meanwhile.
    ///
    /// # Errors
    /// What `each` returns and is no damage.
    pub fn scrub_redo(&self, found: &mut Findings<'_>, each: EachRecord<'_>) -> Result<()> {
        let (position, goal) = (self.superblock().redo, self.stability.stable());
        let (mut records, mut seen) = (Records::default(), HashSet::new());
        let (mut segment, mut at, mut lsn) =
            ((position.segment, position.nonce), position.offset as usize, position.lsn);
        // Where the stream is known to go on, in case it does not.
        let mut place = (self.segments.offset(segment.0), HEADER);
        while lsn < goal {
            let base = self.segments.offset(segment.0);
            let bytes = match self.read_at_most(base, self.segments.size()) {
                Ok(bytes) => bytes,
                Err(damage) => {
                    found.note(*damage);
                    return Ok(());
                }
            };
            let header = SegmentHeader::decode(&bytes, segment.0)
                .filter(|header| header.kind == SegmentKind::Redo && header.nonce == segment.1);
            // The first one may start before the position, which is in it.
            let is_first = seen.is_empty();
            let is_next = |header: &SegmentHeader| {
                is_first || header.first == lsn.0 || header.fresh && header.first < lsn.0
            };
            let Some(header) = header.filter(is_next).filter(|_| seen.insert(segment.0)) else { break };
            if header.fresh && !is_first {
                // Where a recovery ended the stream it may have been within a block, at a record that was not to count.
                lsn = Lsn(header.first);
                records.restart();
            }
            while let Some((block, payload)) = bytes
                .get(at..)
                .and_then(|b| BlockHeader::decode(b, header.nonce, base + at as u64))
                .filter(|(block, payload)| block.lsn == lsn && !payload.is_empty())
            {
                let len = block_bytes(payload.len());
                if let Err(error) = records.feed(lsn, payload, each) {
                    found.note(self.unreadable(base + at as u64, len as u64, error)?);
                    records.restart();
                }
                lsn = block.lsn.plus(payload.len() as u64);
                at += len;
            }
            found.counts.bytes += bytes.len() as u64;
            let is_block = bytes.get(at..at + 4) == Some(b"REDO");
            let next = self.segments.offset(header.next.0);
            place = if is_block { (base + at as u64, SECTOR) } else { (next, HEADER) };
            (segment, at) = (header.next, SECTOR);
        }
        if lsn < goal {
            let what = format!(
                "damaged redo block, behind which {} bytes of the log cannot be found",
                goal.0 - lsn.0
            );
            found.note(self.damage_at(place.0, place.1 as u64, &what));
        }
        Ok(())
    }
}
