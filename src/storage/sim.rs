//! A medium in memory that loses power, tears writes, fails calls and fills up.
//!
//! # How it works
//!
//! Writes go to a volatile view and to a list of what is not synced yet. A sync moves the list into the
//! durable bytes. A crash builds the durable bytes plus whatever part of the list survives, as S2 allows.
//! It is also the storage of platforms without files.

use super::Storage;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// What a crash leaves of the writes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashMode {
    /// Nothing.
    DropUnsynced,
    /// Everything: the process died, the machine did not.
    KeepAll,
    /// Those before some point in time.
    KeepPrefix,
    /// Any subset, each whole.
    RandomSubset,
    /// Any subset, each torn at multiples of 512 bytes.
    Torn,
}

/// A kind of call, to choose which ones fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpClass {
    /// `read_at`.
    Read,
    /// `write_at`.
    Write,
    /// `sync_data`.
    Sync,
    /// `set_len` and `punch_hole`.
    Resize,
}

#[derive(Clone, Copy, Debug)]
struct Failure {
    class: OpClass,
    /// Calls of the class that still succeed.
    after: u64,
    once: bool,
    kind: io::ErrorKind,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Punch(usize, usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(at, data) => {
                bytes.resize(bytes.len().max(at + data.len()), 0);
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            Change::SetLen(len) => bytes.resize(*len, 0),
            Change::Punch(at, len) => {
                let end = (at + len).min(bytes.len());
                bytes[(*at).min(end)..end].fill(0);
            }
        }
    }

    /// The parts of the change that reach the medium when it is torn: each sector on its own.
    fn torn(&self, random: &mut Random) -> Vec<Change> {
        let Change::Write(at, data) = self else { return vec![self.clone()] };
        let mut kept = Vec::new();
        let mut start = 0;
        while start < data.len() {
            let end = ((at + start) / SECTOR * SECTOR + SECTOR - at).min(data.len());
            if random.coin() {
                kept.push(Change::Write(at + start, data[start..end].to_vec()));
            }
            start = end;
        }
        kept
    }
}

/// A small generator (xorshift64), so that a seed repeats a crash.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..4 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn coin(&mut self) -> bool {
        self.next() >> 40 & 1 == 0
    }
}

#[derive(Default)]
struct State {
    /// What reads see.
    view: Vec<u8>,
    /// What survives any crash.
    durable: Vec<u8>,
    unsynced: Vec<Change>,
    failure: Option<Failure>,
    capacity: Option<u64>,
    /// Calls so far, failed ones included.
    ops: u64,
    /// From this call on the power is off.
    power_cut_at: Option<u64>,
}

impl State {
    fn enter(&mut self, class: OpClass) -> io::Result<()> {
        let op = self.ops;
        self.ops += 1;
        if self.power_cut_at.is_some_and(|cut| op >= cut) {
            return Err(io::Error::other("the power is off"));
        }
        if let Some(failure) = &mut self.failure
            && failure.class == class
        {
            if failure.after > 0 {
                failure.after -= 1;
            } else {
                let error = io::Error::new(failure.kind, "injected failure");
                if failure.once {
                    self.failure = None;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.view);
        self.unsynced.push(change);
    }
}

/// The simulated medium; clones share it.
#[derive(Clone, Default)]
pub struct SimStorage(Arc<Mutex<State>>);

impl fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "SimStorage({} bytes, {} unsynced changes)", state.view.len(), state.unsynced.len())
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "offset beyond memory"))
}

impl SimStorage {
    /// An empty medium.
    pub fn new() -> SimStorage {
        SimStorage::default()
    }

    /// A medium that durably holds `bytes`.
    pub fn holding(bytes: Vec<u8>) -> SimStorage {
        let state = State { view: bytes.clone(), durable: bytes, ..State::default() };
        SimStorage(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls so far.
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// Makes calls of `class` fail after `after` more of them succeeded, once or from then on.
    pub fn fail(&self, class: OpClass, after: u64, once: bool, kind: io::ErrorKind) {
        self.state().failure = Some(Failure { class, after, once, kind });
    }

    /// Ends injected failures.
    pub fn heal(&self) {
        self.state().failure = None;
    }

    /// Limits the length; a write past it fails with `StorageFull`. `None` = no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Cuts the power at call number `op`: it and all later ones fail and change nothing.
    pub fn set_power_cut_at(&self, op: u64) {
        self.state().power_cut_at = Some(op);
    }

    /// What reads see now.
    pub fn contents(&self) -> Vec<u8> {
        self.state().view.clone()
    }

    /// The medium as a crash at this moment leaves it; this one goes on unchanged.
    pub fn crash(&self, seed: u64, mode: CrashMode) -> SimStorage {
        let state = self.state();
        let mut random = Random::new(seed);
        let mut bytes = state.durable.clone();
        let prefix = random.next() as usize % (state.unsynced.len() + 1);
        for (i, change) in state.unsynced.iter().enumerate() {
            match mode {
                CrashMode::DropUnsynced => {}
                CrashMode::KeepAll => change.apply(&mut bytes),
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
                CrashMode::Torn => {
                    if random.coin() {
                        change.torn(&mut random).iter().for_each(|part| part.apply(&mut bytes));
                    }
                }
            }
        }
        SimStorage::holding(bytes)
    }
}

impl Storage for SimStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        state.enter(OpClass::Read)?;
        let at = position(offset)?;
        let end = at.checked_add(buf.len());
        let found = end.and_then(|end| state.view.get(at..end)).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.enter(OpClass::Write)?;
        let at = position(offset)?;
        let end = at.checked_add(buf.len()).ok_or(io::ErrorKind::InvalidInput)?;
        if end > state.view.len() && state.capacity.is_some_and(|capacity| end as u64 > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.change(Change::Write(at, buf.to_vec()));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        state.enter(OpClass::Sync)?;
        let State { durable, unsynced, .. } = &mut *state;
        unsynced.drain(..).for_each(|change| change.apply(durable));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().view.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.enter(OpClass::Resize)?;
        if len > state.view.len() as u64 && state.capacity.is_some_and(|capacity| len > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.change(Change::SetLen(position(len)?));
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<bool> {
        let mut state = self.state();
        state.enter(OpClass::Resize)?;
        state.change(Change::Punch(position(offset)?, position(len)?));
        Ok(true)
    }

    fn allocated(&self) -> io::Result<u64> {
        let state = self.state();
        let pages = state.view.chunks(PAGE).filter(|page| page.iter().any(|byte| *byte != 0));
        Ok((pages.count() * PAGE) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_synced_bytes_survive_a_power_cut() {
        let medium = SimStorage::new();
        medium.write_at(0, b"synced").expect("room");
        medium.sync_data().expect("healthy");
        medium.write_at(2, b"LOST").expect("room");
        assert_eq!(medium.contents(), b"syLOST");
        assert_eq!(medium.crash(1, CrashMode::DropUnsynced).contents(), b"synced");
        assert_eq!(medium.crash(1, CrashMode::KeepAll).contents(), b"syLOST");
    }

    #[test]
    fn torn_writes_change_whole_sectors_only() {
        let medium = SimStorage::holding(vec![0; 4 * SECTOR]);
        medium.write_at(100, &[1; 3 * SECTOR]).expect("room");
        let mut torn = 0;
        for seed in 0..200 {
            let left = medium.crash(seed, CrashMode::Torn).contents();
            let written = |sector: usize| {
                let range = (sector * SECTOR).max(100)..((sector + 1) * SECTOR).min(100 + 3 * SECTOR);
                let ones = left[range.clone()].iter().filter(|b| **b == 1).count();
                assert!(ones == 0 || ones == range.len(), "sector {sector} is half written");
                ones > 0
            };
            let sectors = (0..4).filter(|s| written(*s)).count();
            torn += usize::from(sectors > 0 && sectors < 4);
            assert!(left[..100].iter().all(|b| *b == 0), "S3: bytes outside do not change");
        }
        assert!(torn > 20, "only {torn} of 200 crashes tore the write");
    }

    #[test]
    fn random_subsets_reorder_and_prefixes_do_not() {
        let medium = SimStorage::new();
        for i in 0..8_u8 {
            medium.write_at(u64::from(i), &[i + 1]).expect("room");
        }
        let mut holes = 0;
        for seed in 0..100 {
            let subset = medium.crash(seed, CrashMode::RandomSubset).contents();
            holes += usize::from(subset.contains(&0));
            let prefix = medium.crash(seed, CrashMode::KeepPrefix).contents();
            assert!(prefix.iter().enumerate().all(|(i, b)| *b == i as u8 + 1));
        }
        assert!(holes > 20, "only {holes} of 100 crashes lost a write in the middle");
    }

    #[test]
    fn failures_come_when_asked_and_change_nothing() {
        let medium = SimStorage::new();
        medium.fail(OpClass::Write, 1, true, io::ErrorKind::Other);
        medium.write_at(0, b"a").expect("the first succeeds");
        medium.write_at(1, b"b").expect_err("the second fails");
        assert_eq!(medium.contents(), b"a");
        medium.write_at(1, b"b").expect("it was to fail once");
        medium.fail(OpClass::Sync, 0, false, io::ErrorKind::Other);
        assert!(medium.sync_data().is_err() && medium.sync_data().is_err());
        assert_eq!(medium.crash(0, CrashMode::DropUnsynced).contents(), b"");
        medium.heal();
        medium.sync_data().expect("healed");
        medium.set_capacity(Some(2));
        let full = medium.write_at(2, b"c").expect_err("no room");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        medium.write_at(0, b"x").expect("no growth");
        medium.set_power_cut_at(medium.ops());
        assert!(medium.read_at(0, &mut [0]).is_err() && medium.sync_data().is_err());
    }

    #[test]
    fn reads_past_the_end_say_so() {
        let medium = SimStorage::holding(vec![7; 10]);
        let mut buf = [0; 4];
        medium.read_at(6, &mut buf).expect("within");
        assert_eq!(buf, [7; 4]);
        for offset in [7, 10, u64::MAX] {
            let error = medium.read_at(offset, &mut buf).expect_err("past the end");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "at {offset}");
        }
        medium.set_len(4).expect("cuts");
        medium.set_len(8).expect("extends");
        medium.punch_hole(0, 2).expect("punches");
        assert_eq!(medium.contents(), [0, 0, 7, 7, 0, 0, 0, 0]);
        assert_eq!((medium.len().expect("known"), medium.allocated().expect("known")), (8, PAGE as u64));
    }
}
