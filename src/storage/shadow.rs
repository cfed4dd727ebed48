//! A file that is only read: what is written to it stays in memory, and is gone with it.
//!
//! Recovery writes: what it relies on once more, and pages that do not fit in the cache. With this below it, it runs on
//! a file that must not change. Blocks of 4096 bytes that differ from the file's are kept, and no others.

use super::Storage;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

const BLOCK: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub struct Shadow {
    below: Arc<dyn Storage>,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    len: u64,
    /// Length up to which the file below still counts: it shrinks when the file is cut.
    below_len: u64,
    /// What differs, by the offset of the block.
    blocks: BTreeMap<u64, Box<[u8]>>,
}

impl Shadow {
    /// A file that starts as the one below is.
    ///
    /// # Errors
    /// What asking for its length failed with.
    pub fn new(below: Arc<dyn Storage>) -> io::Result<Shadow> {
        let len = below.len()?;
        Ok(Shadow { below, state: RwLock::new(State { len, below_len: len, blocks: BTreeMap::new() }) })
    }

    /// Fills `buf` from the file below, and with zeros behind its end.
    fn read_below(&self, below_len: u64, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let there = below_len.saturating_sub(offset).min(buf.len() as u64) as usize;
        buf[there..].fill(0);
        if there > 0 { self.below.read_at(offset, &mut buf[..there]) } else { Ok(()) }
    }
}

impl Storage for Shadow {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let state = self.state.read();
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= state.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.read_below(state.below_len, offset, buf)?;
        for (at, block) in state.blocks.range(offset / BLOCK * BLOCK..end) {
            let (from, to) = ((*at).max(offset), (at + BLOCK).min(end));
            let within = &block[(from - at) as usize..(to - at) as usize];
            buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(within);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut state = self.state.write();
        let end = offset.checked_add(buf.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut at = offset / BLOCK * BLOCK;
        while at < end {
            let mut original = vec![0; BLOCK as usize];
            self.read_below(state.below_len, at, &mut original)?;
            let mut block = state.blocks.remove(&at).unwrap_or_else(|| original.clone().into());
            let (from, to) = (at.max(offset), (at + BLOCK).min(end));
            let new = &buf[(from - offset) as usize..(to - offset) as usize];
            block[(from - at) as usize..(to - at) as usize].copy_from_slice(new);
            if *block != *original {
                state.blocks.insert(at, block);
            }
            at += BLOCK;
        }
        state.len = state.len.max(end);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn is_new(&self) -> io::Result<bool> {
        self.below.is_new()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.read().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.write();
        if len < state.len {
            let cut = len / BLOCK * BLOCK;
            state.blocks.retain(|at, _| *at <= cut);
            if let Some(last) = state.blocks.get_mut(&cut) {
                last[(len - cut) as usize..].fill(0);
            }
            state.below_len = state.below_len.min(len);
        }
        state.len = len;
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<bool> {
        let end = offset.saturating_add(len);
        self.state.write().blocks.retain(|at, _| *at < offset || at + BLOCK > end);
        Ok(true)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.below.allocated()
    }

    fn path(&self) -> Option<&Path> {
        self.below.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sim::SimStorage;

    #[test]
    fn writes_are_seen_and_the_file_stays_as_it_is() {
        let below = SimStorage::new();
        below.write_at(0, &[7; 10_000]).expect("healthy");
        let shadow = Shadow::new(Arc::new(below.clone())).expect("opens");
        let mut model = vec![7; 10_000];
        let mut seed = 1_u64;
        for step in 0..if cfg!(miri) { 30 } else { 500_u64 } {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (at, len) = ((seed >> 33) as usize % 20_000, (seed >> 20) as usize % 6000);
            match step % 10 {
                0 => {
                    shadow.set_len(at as u64).expect("cuts");
                    model.resize(at, 0);
                }
                1 => {
                    let hole = shadow.punch_hole(model.len() as u64, 9000).expect("punches");
                    assert!(hole, "nothing there to lose");
                }
                _ => {
                    let value = if step % 3 == 0 { 7 } else { step as u8 };
                    shadow.write_at(at as u64, &vec![value; len]).expect("in memory");
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].fill(value);
                }
            }
            assert_eq!(shadow.len().expect("known"), model.len() as u64);
            let from = at.min(model.len());
            let mut found = vec![1; model.len() - from];
            shadow.read_at(from as u64, &mut found).expect("within the file");
            assert_eq!(found, model[from..], "step {step}");
        }
        let past = shadow.read_at(model.len() as u64, &mut [0]).expect_err("past the end");
        assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(below.contents(), [7; 10_000]);
    }
}
