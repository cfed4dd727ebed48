//! The frame of a redo record, and taking records off the recovered stream.
//!
//! # Format
//!
//! The payloads of the redo blocks, one after the other, are one stream of bytes, and an LSN is a position in it. It
//! consists of records without gaps:
//!
//! | OFFSET | SIZE | FIELD | MEANING |
//! |---|---|---|---|
//! | 0 | 4 | length | bytes of the record, this frame included: at least 5, at most 2^30 |
//! | 4 | 1 | kind | 0 = padding, and the body is void, but for notes (`tree/length.rs`); others are in `tree/redo.rs` |
//! | 5 | length - 5 | body | |
//!
//! A record may continue over several blocks and segments, and so may its length. Nothing but the blocks' checksums
//! guards it. The LSN of a record is that of its first byte. The stream of a new database starts at LSN 64, and the redo
//! LSN of a superblock is always the start of a record.

use crate::base::Lsn;
use crate::error::{Error, Result};

/// What is called with position, kind and body of a record; `false` ends the stream at that record.
pub type EachRecord<'a> = &'a mut dyn FnMut(Lsn, u8, &[u8]) -> Result<bool>;

/// Bytes in front of a record's body.
pub const FRAME: usize = 5;
const PADDING: u8 = 0;
/// What the body of a padding begins with that says something. No record that was given up does: there is no tree of
/// that id, and no kind of change.
pub const NOTE: [u8; 4] = [0xFF; 4];

/// Writes the frame of a record that fills `bytes`.
#[inline]
pub fn frame(bytes: &mut [u8], kind: u8) {
    let len = u32::try_from(bytes.len()).expect("records are shorter than 1 GiB");
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    bytes[4] = kind;
}

/// Writes frame and mark of a note that fills `bytes`: a record that need not be understood.
pub fn frame_note(bytes: &mut [u8]) {
    frame(bytes, PADDING);
    bytes[FRAME..][..NOTE.len()].copy_from_slice(&NOTE);
}

/// Turns `len` claimed bytes into padding.
pub fn pad(bytes: &mut [u8], len: usize) {
    frame(&mut bytes[..len], PADDING);
}

/// Cuts a stream of blocks into records.
#[derive(Debug, Default)]
pub struct Records {
    /// The beginning of a record that is not whole yet.
    partial: Vec<u8>,
    /// Where `partial` starts.
    start: Lsn,
}

impl Records {
    /// A record that was begun is void: the stream starts anew at a record.
    pub fn restart(&mut self) {
        self.partial.clear();
    }

    /// Whether a record was begun and is not whole.
    pub fn is_partial(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Takes the next bytes of the stream and calls `each` with position, kind and body of every whole
    /// record, until it says `false`: then the position of that record, at which the stream ends.
    ///
    /// # Errors
    /// A length that no record has, or what `each` returns.
    pub fn feed(&mut self, lsn: Lsn, mut bytes: &[u8], each: EachRecord<'_>) -> Result<Option<Lsn>> {
        let mut at = lsn;
        if !self.partial.is_empty() {
            // Complete the frame first, then the body.
            for goal in [4, 0] {
                let goal = if goal == 0 { record_len(&self.partial, self.start)? } else { goal };
                let take = goal.saturating_sub(self.partial.len()).min(bytes.len());
                self.partial.extend_from_slice(&bytes[..take]);
                bytes = &bytes[take..];
                at = at.plus(take as u64);
                if self.partial.len() < goal {
                    return Ok(None);
                }
            }
            let goes_on = emit(self.start, &self.partial, each)?;
            self.partial.clear();
            if !goes_on {
                return Ok(Some(self.start));
            }
        }
        while !bytes.is_empty() {
            let len = if bytes.len() < 4 { usize::MAX } else { record_len(bytes, at)? };
            if bytes.len() < len {
                self.partial.extend_from_slice(bytes);
                self.start = at;
                return Ok(None);
            }
            if !emit(at, &bytes[..len], each)? {
                return Ok(Some(at));
            }
            bytes = &bytes[len..];
            at = at.plus(len as u64);
        }
        Ok(None)
    }
}

fn record_len(bytes: &[u8], lsn: Lsn) -> Result<usize> {
    let len = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes")) as usize;
    if (FRAME..=super::redo_buffer::MAX_RECORD).contains(&len) {
        Ok(len)
    } else {
        log::error!("redo record at LSN {} says it has {len} bytes", lsn.0);
        Err(Error::Corruption { at: None, bt: () })
    }
}

fn emit(lsn: Lsn, record: &[u8], each: EachRecord<'_>) -> Result<bool> {
    match record[4] {
        PADDING if !record[FRAME..].starts_with(&NOTE) => Ok(true),
        kind => each(lsn, kind, &record[FRAME..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_any_cut() {
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        for i in 0..20_u8 {
            let mut record = vec![i; FRAME + usize::from(i) * 3];
            frame(&mut record, 1 + i % 3);
            if i % 5 == 4 {
                let len = record.len();
                pad(&mut record, len);
            } else {
                expected.push((Lsn(100 + stream.len() as u64), 1 + i % 3, record[FRAME..].to_vec()));
            }
            stream.extend_from_slice(&record);
        }
        for step in (1..40).step_by(if cfg!(miri) { 9 } else { 1 }) {
            let mut records = Records::default();
            let mut found = Vec::new();
            let mut lsn = Lsn(100);
            for piece in stream.chunks(step) {
                let each = &mut |lsn, kind, body: &[u8]| {
                    found.push((lsn, kind, body.to_vec()));
                    Ok(true)
                };
                records.feed(lsn, piece, each).expect("well formed");
                lsn = lsn.plus(piece.len() as u64);
            }
            assert_eq!(found, expected, "cut every {step} bytes");
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_damage() {
        let mut records = Records::default();
        for bad in [0, 4, u32::MAX] {
            assert!(records.feed(Lsn(0), &bad.to_le_bytes(), &mut |_, _, _| Ok(true)).is_err());
        }
    }
}
