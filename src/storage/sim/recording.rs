//! Recordings: every call with its effect, to be gone through again and crashed after any of them.

use super::{Call, CrashMode, Effect, Growth, Medium, SimStorage};
use std::fmt;

/// Every call of a stretch of time, and the medium at its begin.
pub struct Recording {
    pub(super) start: Medium,
    pub(super) first: u64,
    pub(super) calls: Vec<(Call, Effect)>,
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

    /// The medium as the next process finds it when this one was killed and the machine lives on: all is there, and
    /// what is not synced still is not.
    pub fn kill(&self) -> SimStorage {
        SimStorage::with(self.medium.clone())
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
