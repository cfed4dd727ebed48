//! A medium in memory that loses power, tears writes, fails calls and fills up.
//!
//! # How it works
//!
//! Writes go to a volatile view and to a list of what is not synced yet. A sync moves the list into the
//! durable bytes. A crash builds the durable bytes plus whatever part of the list survives, as S2 allows.
//! Bytes live in shared pages, so that a crash costs a pointer per page and not a copy of the file.
//! It is also the storage of platforms without files.
//!
//! A crash is chosen by a [`CrashMode`] and a seed, or change by change and sector by sector. As every sector
//! arrives or not on its own, what reordering could leave is among that: of two writes to a sector, the later
//! one is lost.
//!
//! A *failed* sync does what Linux does: reads go on to see the writes it was to make durable, but no later
//! sync makes them durable, not even a successful one. Until then they may still have reached the medium.
//!
//! A recording keeps every call with its effect; a replay of it crashes after any of them, in any mode,
//! without another run. It shares the bytes of the writes with the list, so that memory stays linear in what
//! was written.

mod bytes;
mod medium;
mod recording;

pub use recording::{Recording, Replay};

use super::Storage;
use bytes::Bytes;
use medium::{Change, Effect, Medium};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// A medium is never longer than this: a wild offset is an error and not a huge allocation.
const LIMIT: u64 = 1 << 36;

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
    /// As `Torn`, but the file has its full length: what did not arrive of its growth shows zeros or old
    /// bytes.
    Stale,
}

impl CrashMode {
    /// Every one.
    pub const ALL: [CrashMode; 6] = [
        CrashMode::DropUnsynced,
        CrashMode::Torn,
        CrashMode::KeepPrefix,
        CrashMode::RandomSubset,
        CrashMode::Stale,
        CrashMode::KeepAll,
    ];
}

/// What a crash shows where changes let the file grow that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// The file is as long as what arrived needs.
    AsWritten,
    /// It has its full length; what did not arrive is zeros.
    Zeros,
    /// It has its full length; what did not arrive is old bytes of the file, or zeros.
    Stale,
}

/// How much of a failing write reaches the file all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing.
    Nothing,
    /// The first half: the transfer was short, and what was left of it failed.
    Half,
    /// Everything.
    All,
}

/// Calls that are to fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which calls; `None`: all of them.
    pub class: Option<OpClass>,
    /// Calls among those that still succeed.
    pub after: u64,
    /// Calls among those that fail then.
    pub count: u64,
    /// What they fail with.
    pub kind: io::ErrorKind,
    /// What those of them that write leave.
    pub written: Written,
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

/// A recorded call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Calls of the medium before this one.
    pub number: u64,
    /// What it was.
    pub class: OpClass,
    /// Where its range began; the new length for `set_len`, 0 for a sync.
    pub offset: u64,
    /// Bytes of its range; 0 for `set_len` and a sync.
    pub len: u64,
    /// It returned an error.
    pub failed: bool,
    /// Identifies the bytes that it wrote; 0 for other calls.
    pub print: u64,
}

/// A call that fails, and what it does all the same.
struct Failed {
    error: io::Error,
    left: Effect,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed { error, left: Effect::Nothing }
    }
}

#[derive(Default)]
struct State {
    medium: Medium,
    /// At most one per class, and one for all classes.
    failures: Vec<Fault>,
    /// Calls that failed because they were to.
    injected: u64,
    capacity: Option<u64>,
    /// Calls so far, failed ones included.
    ops: u64,
    /// From this call on the power is off.
    power_cut_at: Option<u64>,
    recording: Option<Recording>,
}

impl State {
    fn powered(&self) -> io::Result<()> {
        match self.power_cut_at {
            Some(cut) if self.ops > cut => Err(io::Error::other("the power is off")),
            _ => Ok(()),
        }
    }

    /// Takes the failure that this call was to meet.
    fn injected(&mut self, class: OpClass) -> Option<Fault> {
        let mut hit = None;
        for (i, failure) in self.failures.iter_mut().enumerate() {
            if failure.class.is_some_and(|of| of != class) {
                continue;
            }
            match failure.after.checked_sub(1) {
                Some(left) => failure.after = left,
                None => hit = Some(i),
            }
        }
        let failure = &mut self.failures[hit?];
        let fault = *failure;
        failure.count = failure.count.saturating_sub(1);
        if failure.count == 0 {
            self.failures.remove(hit?);
        }
        self.injected += 1;
        Some(fault)
    }

    /// What a call that is to fail does before.
    fn spoiled(class: OpClass, wanted: Result<Effect, Failed>, written: Written) -> Effect {
        match (class, wanted, written) {
            (OpClass::Sync, _, _) => Effect::SyncFailed,
            (_, Ok(Effect::Changed(Change::Write(at, data))), Written::Half) if data.len() > 1 => {
                Effect::Changed(Change::Write(at, data[..data.len() / 2].into()))
            }
            (_, Ok(effect @ Effect::Changed(Change::Write(..))), Written::All) => effect,
            _ => Effect::Nothing,
        }
    }

    /// How long the file may grow.
    fn limit(&self) -> u64 {
        self.capacity.unwrap_or(LIMIT).min(LIMIT)
    }

    /// The end of a range that may grow the file.
    fn room(&self, offset: u64, len: u64) -> io::Result<usize> {
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        if end > self.medium.view.len as u64 && end > self.limit() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        position(end)
    }
}

/// The simulated medium; clones share it.
#[derive(Clone, Default)]
pub struct SimStorage(Arc<Mutex<State>>);

impl fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        let Medium { view, unsynced, .. } = &state.medium;
        write!(f, "SimStorage({} bytes, {} unsynced changes)", view.len, unsynced.len())
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
        let mut paged = Bytes::default();
        paged.write(0, &bytes);
        SimStorage::of(paged)
    }

    fn of(bytes: Bytes) -> SimStorage {
        SimStorage::with(Medium { view: bytes.clone(), durable: bytes, unsynced: Vec::new() })
    }

    fn with(medium: Medium) -> SimStorage {
        SimStorage(Arc::new(Mutex::new(State { medium, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts, fails or carries out a call, and records it.
    fn call(
        &self,
        class: OpClass,
        (offset, len): (u64, u64),
        body: impl FnOnce(&State) -> Result<Effect, Failed>,
    ) -> io::Result<()> {
        let mut state = self.state();
        let number = state.ops;
        state.ops += 1;
        let (effect, result) = match state.powered().map(|()| state.injected(class)) {
            Err(off) => (Effect::Nothing, Err(off)),
            Ok(None) => match body(&state) {
                Ok(effect) => (effect, Ok(())),
                Err(Failed { error, left }) => (left, Err(error)),
            },
            Ok(Some(fault)) => {
                let error = io::Error::new(fault.kind, format!("injected failure {}", state.injected));
                (State::spoiled(class, body(&state), fault.written), Err(error))
            }
        };
        state.medium.apply(&effect);
        if let Some(recording) = &mut state.recording {
            let print = if let Effect::Changed(change) = &effect { change.print() } else { 0 };
            let call = Call { number, class, offset, len, failed: result.is_err(), print };
            recording.calls.push((call, effect));
        }
        result
    }

    /// Calls so far.
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// Makes calls of `class` fail after `after` more of them succeeded, once or from then on.
    ///
    /// Replaces an earlier failure of the class.
    pub fn fail(&self, class: OpClass, after: u64, once: bool, kind: io::ErrorKind) {
        let count = if once { 1 } else { u64::MAX };
        self.inject(Fault { class: Some(class), after, count, kind, written: Written::Nothing });
    }

    /// Makes calls of any class fail after `after` more of them, once or from then on.
    pub fn fail_any(&self, after: u64, once: bool, kind: io::ErrorKind) {
        let count = if once { 1 } else { u64::MAX };
        self.inject(Fault { class: None, after, count, kind, written: Written::Nothing });
    }

    /// Makes calls fail. Replaces an earlier failure of the class.
    pub fn inject(&self, fault: Fault) {
        let mut state = self.state();
        state.failures.retain(|other| other.class != fault.class);
        state.failures.push(fault);
    }

    /// Ends injected failures.
    pub fn heal(&self) {
        self.state().failures.clear();
    }

    /// Calls that have failed because they were to.
    pub fn injected(&self) -> u64 {
        self.state().injected
    }

    /// Limits the length; growing past it fails with `StorageFull`. `None` = no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Cuts the power at call number `op`: it and all later ones fail and change nothing.
    pub fn set_power_cut_at(&self, op: u64) {
        self.state().power_cut_at = Some(op);
    }

    /// What reads see now.
    pub fn contents(&self) -> Vec<u8> {
        self.state().medium.view.to_vec()
    }

    /// The medium as a crash at this moment leaves it; this one goes on unchanged.
    pub fn crash(&self, seed: u64, mode: CrashMode) -> SimStorage {
        SimStorage::of(self.state().medium.crash(seed, mode))
    }

    /// As [`Replay::crash_keeping`].
    pub fn crash_keeping(
        &self,
        growth: Growth,
        seed: u64,
        keep: impl FnMut(usize, usize) -> bool,
    ) -> SimStorage {
        SimStorage::of(self.state().medium.crash_keeping(growth, seed, keep))
    }

    /// Records every call from now on; forgets an earlier recording.
    pub fn start_recording(&self) {
        let mut state = self.state();
        let (start, first) = (state.medium.clone(), state.ops);
        state.recording = Some(Recording { start, first, calls: Vec::new() });
    }

    /// Ends the recording; `None` when there is none.
    pub fn stop_recording(&self) -> Option<Recording> {
        self.state().recording.take()
    }
}

impl Storage for SimStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let read = self.call(OpClass::Read, (offset, buf.len() as u64), |state| {
            let view = &state.medium.view;
            let end = offset.checked_add(buf.len() as u64);
            if end.is_none_or(|end| end > view.len as u64) {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            view.read(position(offset)?, buf);
            Ok(Effect::Nothing)
        });
        if read.is_err() {
            // Whoever looks at it nevertheless is to be found out.
            buf.fill(0xA5);
        }
        read
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.call(OpClass::Write, (offset, buf.len() as u64), |state| {
            let write = |at: usize, buf: &[u8]| Effect::Changed(Change::Write(at, buf.into()));
            match state.room(offset, buf.len() as u64) {
                Ok(end) => Ok(write(end - buf.len(), buf)),
                // As much as fits has been written when the system says that there is no room.
                Err(error) => {
                    let fits = usize::try_from(state.limit().saturating_sub(offset)).unwrap_or(0);
                    let left = if fits == 0 || fits >= buf.len() {
                        Effect::Nothing
                    } else {
                        write(position(offset)?, &buf[..fits])
                    };
                    Err(Failed { error, left })
                }
            }
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.call(OpClass::Sync, (0, 0), |_| Ok(Effect::Synced))
    }

    /// Nothing was ever written, or only the length of the first write has reached the medium.
    fn is_new(&self) -> io::Result<bool> {
        Ok(self.state().medium.view.is_zero())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().medium.view.len as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call(OpClass::Resize, (len, 0), |state| Ok(Effect::Changed(Change::SetLen(state.room(len, 0)?))))
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<bool> {
        if len == 0 {
            // As the system does.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.call(OpClass::Resize, (offset, len), |_| {
            Ok(Effect::Changed(Change::Punch(position(offset)?, position(len)?)))
        })?;
        Ok(true)
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.state().medium.view.allocated() as u64)
    }
}

#[cfg(test)]
mod tests;
