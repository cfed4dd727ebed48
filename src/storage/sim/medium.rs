//! What was written, what of it is durable, and what a crash leaves.

use super::bytes::{Bytes, pieces};
use super::{CrashMode, Growth, SECTOR};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(usize, Arc<[u8]>),
    SetLen(usize),
    Punch(usize, usize),
}

impl Change {
    pub(super) fn apply(&self, bytes: &mut Bytes) {
        match self {
            Change::Write(at, data) => bytes.write(*at, data),
            Change::SetLen(len) => bytes.set_len(*len),
            Change::Punch(at, len) => bytes.zero(*at, at.saturating_add(*len)),
        }
    }

    /// Sectors of the file that a write touches; the other changes have one part.
    pub(super) fn sectors(&self) -> usize {
        match self {
            Change::Write(at, data) => (at + data.len()).div_ceil(SECTOR) - at / SECTOR,
            Change::SetLen(_) | Change::Punch(..) => 1,
        }
    }

    /// Applies what reaches the medium when the change is torn: of a write, the sectors to `keep`.
    pub(super) fn apply_torn(&self, bytes: &mut Bytes, mut keep: impl FnMut(usize) -> bool) {
        let Change::Write(at, data) = self else {
            if keep(0) {
                self.apply(bytes);
            }
            return;
        };
        for sector in 0..self.sectors() {
            let border = |n: usize| ((at / SECTOR + n) * SECTOR).saturating_sub(*at).min(data.len());
            if keep(sector) {
                bytes.write(at + border(sector), &data[border(sector)..border(sector + 1)]);
            }
        }
    }

    pub(super) fn print(&self) -> u64 {
        let Change::Write(_, data) = self else { return 0 };
        data.iter()
            .fold(0xCBF2_9CE4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
    }
}

/// A small generator (xorshift64), so that a seed repeats a crash.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..4 {
            random.next();
        }
        random
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn coin(&mut self) -> bool {
        self.next() >> 40 & 1 == 0
    }
}

/// What a call did to the medium.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    Nothing,
    Changed(Change),
    Synced,
    SyncFailed,
}

/// The bytes, and what a crash may do to them.
#[derive(Clone, Default)]
pub(super) struct Medium {
    /// What reads see.
    pub(super) view: Bytes,
    /// What survives any crash.
    pub(super) durable: Bytes,
    /// Changes since the last successful sync, each with whether a sync since has failed: no later one makes
    /// it durable then.
    pub(super) unsynced: Vec<(Change, bool)>,
}

impl Medium {
    pub(super) fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Nothing => {}
            Effect::Changed(change) => {
                change.apply(&mut self.view);
                self.unsynced.push((change.clone(), false));
            }
            Effect::Synced => {
                let kept = self.unsynced.drain(..).filter(|(_, given_up)| !given_up);
                kept.for_each(|(change, _)| change.apply(&mut self.durable));
            }
            Effect::SyncFailed => self.unsynced.iter_mut().for_each(|(_, given_up)| *given_up = true),
        }
    }

    pub(super) fn crash(&self, seed: u64, mode: CrashMode) -> Bytes {
        let mut random = Random::new(seed);
        let mut bytes = self.durable.clone();
        let prefix = random.next() as usize % (self.unsynced.len() + 1);
        if mode == CrashMode::KeepAll {
            return self.view.clone();
        }
        if mode == CrashMode::Stale {
            self.grow(&mut bytes, Growth::Stale, &mut random);
        }
        for (i, (change, _)) in self.unsynced.iter().enumerate() {
            match mode {
                CrashMode::DropUnsynced | CrashMode::KeepAll => {}
                CrashMode::KeepPrefix => {
                    if i < prefix {
                        change.apply(&mut bytes);
                    }
                }
                CrashMode::RandomSubset => {
                    if random.coin() {
                        change.apply(&mut bytes);
                    }
                }
                CrashMode::Torn | CrashMode::Stale => {
                    if random.coin() {
                        let whole = !matches!(change, Change::Write(..));
                        change.apply_torn(&mut bytes, |_| whole || random.coin());
                    }
                }
            }
        }
        bytes
    }

    /// What is left when the sectors of the unsynced changes arrive that are to be kept.
    pub(super) fn crash_keeping(
        &self,
        growth: Growth,
        seed: u64,
        mut keep: impl FnMut(usize, usize) -> bool,
    ) -> Bytes {
        let mut bytes = self.durable.clone();
        self.grow(&mut bytes, growth, &mut Random::new(seed));
        for (i, (change, _)) in self.unsynced.iter().enumerate() {
            change.apply_torn(&mut bytes, |sector| keep(i, sector));
        }
        bytes
    }

    /// Gives `bytes` the length of the view, filled with zeros or with copies of other places of the file.
    pub(super) fn grow(&self, bytes: &mut Bytes, growth: Growth, random: &mut Random) {
        let sectors = self.durable.len / SECTOR;
        let start = bytes.len;
        if growth == Growth::AsWritten {
            return;
        }
        bytes.set_len(self.view.len.max(start));
        if growth == Growth::Zeros {
            return;
        }
        for (_, _, part) in pieces(start, bytes.len) {
            if sectors > 0 && random.coin() {
                let from = random.next() as usize % sectors * SECTOR;
                let mut old = vec![0; part.len().min(self.durable.len - from)];
                self.durable.read(from, &mut old);
                bytes.write(part.start, &old);
            }
        }
    }
}
