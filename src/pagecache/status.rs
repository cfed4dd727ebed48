//! The status word of a transaction: it decides all of its intents at once.
//!
//! # States
//!
//! ```text
//! pending --begin_deciding--> deciding --commit--> committed(LSN)
//!    \---------abort-------------/ abort
//!                 v             v
//!                    aborted
//! ```
//!
//! Pending intents are invisible, and whoever wants to write a key that has one may abort its transaction. While its
//! owner is deciding, it validates what it read, and until that is over nobody may read past its intents. So those who
//! meet one give the owner a little time, and then abort it: nobody waits for a thread that sleeps.
//!
//! # Invariants
//!
//! - P8: a status leaves pending and deciding once, by one CAS, and never changes again.
//!
//! # Concurrency
//!
//! The CAS in [`Status::commit`] is the linearization point of all writes of a transaction.
//!
//! # References
//!
//! Status words that others may abort: Herlihy, Luchangco, Moir, Scherer, "Software Transactional Memory for
//! Dynamic-Sized Data Structures", PODC 2003, section 3.

use crate::base::Lsn;
use crate::base::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::Arc;

const PENDING: u64 = 0;
const DECIDING: u64 = 1;
const ABORTED: u64 = 2;
/// With the LSN above it.
const COMMITTED: u64 = 3;
const STATE_BITS: u32 = 2;

/// Looks at a status before the processor is given to others.
const SPINS: u32 = if cfg!(loom) { 0 } else { 60 };
/// How often it is given to others before the owner is aborted.
const YIELDS: u32 = if cfg!(loom) { 1 } else { 6 };
/// Naps without progress of a persistent owner before it is aborted after all.
#[cfg(not(loom))]
const NAPS: u32 = 400;

/// What a status says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is decided: the intents are invisible.
    Pending,
    /// The owner validates its reads.
    Deciding,
    /// The intents mean nothing.
    Aborted,
    /// The intents are changes, with this LSN.
    Committed(Lsn),
}

impl Outcome {
    /// Whether it may still change.
    pub fn is_open(self) -> bool {
        matches!(self, Outcome::Pending | Outcome::Deciding)
    }
}

/// Shared by a transaction and its intents.
#[derive(Debug)]
pub struct Status {
    /// State, and the LSN once committed. Any thread, by CAS.
    word: AtomicU64,
    /// Smaller is older.
    age: u64,
    /// The owner was aborted often: others are to have more patience.
    persistent: bool,
    /// Written by the owner, so that those who are patient see that it is not asleep.
    progress: AtomicU64,
}

impl Status {
    /// A pending status.
    pub fn new(age: u64, persistent: bool) -> Arc<Status> {
        Arc::new(Status { word: AtomicU64::new(PENDING), age, persistent, progress: AtomicU64::new(0) })
    }

    /// What it says now.
    #[inline]
    pub fn outcome(&self) -> Outcome {
        // SeqCst: pairs with the CASes below: acquires what the owner wrote before. In the total order, a reader who
        // finds a transaction pending precedes its `begin_deciding`, and so does every publish that precedes the
        // reader: the validation behind the fence there sees it.
        let word = self.word.load(Ordering::SeqCst);
        match word & ((1 << STATE_BITS) - 1) {
            PENDING => Outcome::Pending,
            DECIDING => Outcome::Deciding,
            ABORTED => Outcome::Aborted,
            _ => Outcome::Committed(Lsn(word >> STATE_BITS)),
        }
    }

    fn change(&self, from: u64, to: u64) -> bool {
        // SeqCst: as in `outcome`; of two transactions that read what the other writes, one sees the other decide.
        self.word.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// All intents are published; from now on nobody reads past them. `false`: aborted.
    pub fn begin_deciding(&self) -> bool {
        let begun = self.change(PENDING, DECIDING);
        // SeqCst: the loads of the validation that follows come after it in the total order, and see every publish
        // that precedes it.
        fence(Ordering::SeqCst);
        begun
    }

    /// Makes all intents changes in this instant; `false`: aborted.
    pub fn commit(&self, lsn: Lsn) -> bool {
        debug_assert!(lsn.0 < 1 << (64 - STATE_BITS), "an LSN has 62 bits");
        self.change(DECIDING, lsn.0 << STATE_BITS | COMMITTED)
    }

    /// Makes the intents mean nothing, unless they are changes already; whether it did.
    pub fn abort(&self) -> bool {
        self.change(PENDING, ABORTED) || self.change(DECIDING, ABORTED)
    }

    /// Whether the owner of this one, the younger, is to let another go first.
    pub fn gives_way_to(&self, other: &Status) -> bool {
        // Of one age, it only matters that not both do, or neither.
        (self.age, std::ptr::from_ref(self)) > (other.age, std::ptr::from_ref(other))
    }

    /// The owner is not asleep.
    pub fn note_progress(&self) {
        // Relaxed: a hint.
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives the owner a little time, then aborts it: what it says then is final.
    #[cold]
    pub fn settle(&self) -> Outcome {
        for i in 0..SPINS + YIELDS {
            let outcome = self.outcome();
            if !outcome.is_open() {
                return outcome;
            }
            if i < SPINS { std::hint::spin_loop() } else { yield_now() }
        }
        self.be_patient();
        self.abort();
        self.outcome()
    }

    /// Waits for a persistent owner as long as that makes progress.
    #[cfg(not(loom))]
    fn be_patient(&self) {
        let (mut seen, mut naps) = (0, 0);
        while self.persistent && naps < NAPS && self.outcome().is_open() {
            // Relaxed: a hint.
            let progress = self.progress.load(Ordering::Relaxed);
            naps = if progress == seen { naps + 1 } else { 0 };
            seen = progress;
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }

    #[cfg(loom)]
    fn be_patient(&self) {
        let _ = self.persistent;
    }
}

#[cfg(not(loom))]
fn yield_now() {
    std::thread::yield_now();
}

#[cfg(loom)]
fn yield_now() {
    loom::thread::yield_now();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_decided_once() {
        let status = Status::new(1, false);
        assert!(status.outcome().is_open());
        assert!(!status.commit(Lsn(1)), "not without deciding");
        assert!(status.begin_deciding() && !status.begin_deciding());
        assert!(status.commit(Lsn(5)));
        assert_eq!(status.outcome(), Outcome::Committed(Lsn(5)));
        assert!(!status.abort());
        assert_eq!(status.settle(), Outcome::Committed(Lsn(5)));
    }

    #[test]
    fn whoever_waits_too_long_aborts() {
        for (persistent, deciding) in [(false, false), (false, true), (true, false), (true, true)] {
            let status = Status::new(1, persistent);
            assert!(!deciding || status.begin_deciding());
            assert_eq!(status.settle(), Outcome::Aborted);
            assert!(!status.begin_deciding() && !status.commit(Lsn(1)) && !status.abort());
        }
    }
}
