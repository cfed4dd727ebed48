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

use super::Storage;
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

/// Bytes in shared pages; a page that is not there is a hole and reads as zeros.
#[derive(Clone, Default)]
struct Bytes {
    len: usize,
    /// As many as `len` needs; bytes of the last one past `len` are zero.
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
}

impl Bytes {
    fn set_len(&mut self, len: usize) {
        if len < self.len {
            self.zero(len, self.len);
        }
        self.pages.resize(len.div_ceil(PAGE), None);
        self.len = len;
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        self.set_len(self.len.max(at + data.len()));
        for (page, within, part) in pieces(at, at + data.len()) {
            let bytes = self.pages[page].get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(bytes)[within..within + part.len()]
                .copy_from_slice(&data[part.start - at..part.end - at]);
        }
    }

    fn read(&self, at: usize, buf: &mut [u8]) {
        for (page, within, part) in pieces(at, at + buf.len()) {
            let into = &mut buf[part.start - at..part.end - at];
            match &self.pages[page] {
                Some(bytes) => into.copy_from_slice(&bytes[within..within + into.len()]),
                None => into.fill(0),
            }
        }
    }

    /// Whole pages become holes.
    fn zero(&mut self, start: usize, end: usize) {
        for (page, within, part) in pieces(start.min(self.len), end.min(self.len)) {
            if part.len() == PAGE {
                self.pages[page] = None;
            } else if let Some(bytes) = &mut self.pages[page] {
                Arc::make_mut(bytes)[within..within + part.len()].fill(0);
            }
        }
    }

    fn is_zero(&self) -> bool {
        self.pages.iter().flatten().all(|page| page.iter().all(|byte| *byte == 0))
    }

    fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.len];
        self.read(0, &mut all);
        all
    }

    fn allocated(&self) -> usize {
        self.pages.iter().flatten().count() * PAGE
    }
}

/// The range cut at page borders: page, offset within it, part of the range.
fn pieces(start: usize, end: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut at = start;
    std::iter::from_fn(move || {
        let part = at..((at / PAGE + 1) * PAGE).min(end);
        at = part.end;
        (part.start < part.end).then_some((part.start / PAGE, part.start % PAGE, part))
    })
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Arc<[u8]>),
    SetLen(usize),
    Punch(usize, usize),
}

impl Change {
    fn apply(&self, bytes: &mut Bytes) {
        match self {
            Change::Write(at, data) => bytes.write(*at, data),
            Change::SetLen(len) => bytes.set_len(*len),
            Change::Punch(at, len) => bytes.zero(*at, at.saturating_add(*len)),
        }
    }

    /// Sectors of the file that a write touches; the other changes have one part.
    fn sectors(&self) -> usize {
        match self {
            Change::Write(at, data) => (at + data.len()).div_ceil(SECTOR) - at / SECTOR,
            Change::SetLen(_) | Change::Punch(..) => 1,
        }
    }

    /// Applies what reaches the medium when the change is torn: of a write, the sectors to `keep`.
    fn apply_torn(&self, bytes: &mut Bytes, mut keep: impl FnMut(usize) -> bool) {
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

    fn print(&self) -> u64 {
        let Change::Write(_, data) = self else { return 0 };
        data.iter()
            .fold(0xCBF2_9CE4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
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

/// What a call did to the medium.
#[derive(Clone, Debug)]
enum Effect {
    Nothing,
    Changed(Change),
    Synced,
    SyncFailed,
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

/// The bytes, and what a crash may do to them.
#[derive(Clone, Default)]
struct Medium {
    /// What reads see.
    view: Bytes,
    /// What survives any crash.
    durable: Bytes,
    /// Changes since the last successful sync, each with whether a sync since has failed: no later one makes
    /// it durable then.
    unsynced: Vec<(Change, bool)>,
}

impl Medium {
    fn apply(&mut self, effect: &Effect) {
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

    fn crash(&self, seed: u64, mode: CrashMode) -> Bytes {
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
    fn crash_keeping(&self, growth: Growth, seed: u64, mut keep: impl FnMut(usize, usize) -> bool) -> Bytes {
        let mut bytes = self.durable.clone();
        self.grow(&mut bytes, growth, &mut Random::new(seed));
        for (i, (change, _)) in self.unsynced.iter().enumerate() {
            change.apply_torn(&mut bytes, |sector| keep(i, sector));
        }
        bytes
    }

    /// Gives `bytes` the length of the view, filled with zeros or with copies of other places of the file.
    fn grow(&self, bytes: &mut Bytes, growth: Growth, random: &mut Random) {
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
        let medium = Medium { view: bytes.clone(), durable: bytes, unsynced: Vec::new() };
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

/// Every call of a stretch of time, and the medium at its begin.
pub struct Recording {
    start: Medium,
    first: u64,
    calls: Vec<(Call, Effect)>,
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recording({} calls from number {})", self.calls.len(), self.first)
    }
}

impl Recording {
    /// The calls in their order; their numbers follow one another.
    pub fn calls(&self) -> impl ExactSizeIterator<Item = Call> + '_ {
        self.calls.iter().map(|(call, _)| *call)
    }

    /// The medium as it was when the recording began, to be led through the calls.
    pub fn replay(&self) -> Replay<'_> {
        Replay { recording: self, medium: self.start.clone(), done: 0 }
    }
}

/// A medium on its way through a recording.
pub struct Replay<'a> {
    recording: &'a Recording,
    medium: Medium,
    /// Calls carried out.
    done: usize,
}

impl fmt::Debug for Replay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replay({} of {:?})", self.done, self.recording)
    }
}

impl Replay<'_> {
    /// Carries out the calls numbered below `number` that are still to come. There is no way back.
    pub fn advance_to(&mut self, number: u64) {
        let calls = &self.recording.calls;
        while self.done < calls.len() && calls[self.done].0.number < number {
            self.medium.apply(&calls[self.done].1);
            self.done += 1;
        }
    }

    /// The medium as a crash after the calls carried out so far leaves it.
    pub fn crash(&self, seed: u64, mode: CrashMode) -> SimStorage {
        SimStorage::of(self.medium.crash(seed, mode))
    }

    /// Of each change that is not synced, in the order they were made, the sectors it touches.
    pub fn unsynced(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.medium.unsynced.iter().map(|(change, _)| change.sectors())
    }

    /// Whether the file is longer than what is durable of it.
    pub fn is_growing(&self) -> bool {
        self.medium.view.len > self.medium.durable.len
    }

    /// The medium as a crash leaves it that lets the sectors arrive for which `keep` says so, by the number of the
    /// change and of the sector within it. The seed chooses the old bytes.
    pub fn crash_keeping(
        &self,
        growth: Growth,
        seed: u64,
        keep: impl FnMut(usize, usize) -> bool,
    ) -> SimStorage {
        SimStorage::of(self.medium.crash_keeping(growth, seed, keep))
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
