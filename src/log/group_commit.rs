//! Group commit: those who want something durable at the same time share a sync.
//!
//! # How it works
//!
//! ```text
//!  joins --its goal is durable-----------------------------------> served
//!   | |                                                              ^
//!   | +--somebody leads--> waits --end: the sync reached its goal----+
//!   |                        |                                       |
//!   |                        | end: it is the first not served       |
//!   |                        v                                       |
//!   +---nobody leads-----> leads --gather, sync, end-----------------+--> or the error
//! ```
//!
//! Who leads syncs for all. When that is done it tells those who waited meanwhile and are served, and hands the lead to
//! the first who is not: those who came while the medium was busy share the next sync. One who is served needs no lock
//! to leave, so it is not held up by the next sync. A sync that fails or panics serves nobody: each of those who wait
//! leads in turn, and tries for itself.
//!
//! Those whom a sync has served often come back soon, but one after the other, and the first would sync for itself
//! alone. So a leader gathers: it waits for as many as were there at the end of the last sync, but only for part of the
//! time that this one took. One who was alone then does not wait, and where syncs take no time nobody does. When not as
//! many come, the next leaders do not gather: one at first, then three, seven, and so on until one does not in vain.
//!
//! # Invariants
//!
//! - L10: `leading` is set exactly while one thread leads or was told to. Whoever is in `waiting` came while it was set,
//!   and the end of a lead takes it out or hands on to another lead: nobody waits with nobody to end that.
//! - L11: whoever is in `waiting` waits to be told, and who takes it out tells it, once: that it is served, only if the
//!   stable LSN has reached its goal (L6), or that it leads.
//!
//! # Concurrency
//!
//! A flush takes effect when the stable LSN is raised to its goal or beyond, which only a leader does. Whoever waits is
//! told in the order in which it came, so a checkpoint, which nobody serves, leads when those before it have. The lock of
//! the state is innermost, and free while somebody syncs.
//!
//! # References
//!
//! Group commit: DeWitt, Katz, Olken, Shapiro, Stonebraker, Wood, "Implementation Techniques for Main Memory Database
//! Systems", SIGMOD 1984, in the section on recovery.

use super::stability::Stability;
use crate::base::Lsn;
use crate::base::sync::atomic::{AtomicU8, Ordering};
use crate::base::sync::{Mutex, Thread, current, park, yield_now};
use crate::error::Result;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Gathering takes at most so long.
const PATIENCE: Duration = Duration::from_micros(200);
/// Gathering does not pay when a sync takes less.
const QUICK: Duration = Duration::from_micros(8);
/// After gathering in vain at most so many leaders do not.
const MAX_SKIPS: u32 = 63;

/// Who syncs for whom; at first nobody leads.
#[derive(Debug, Default)]
pub struct GroupCommit {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// L10.
    leading: bool,
    /// L11. In the order in which they came.
    waiting: VecDeque<Arc<Waiter>>,
    /// How many there were when the last lead ended: who led, and who waited.
    crowd: usize,
    /// How long the last sync took; zero where there is no clock.
    took: Duration,
    /// How many leaders do not gather after one did in vain.
    skips: u32,
    /// How many of them are still to come.
    skips_left: u32,
}

/// One who waits.
#[derive(Debug)]
struct Waiter {
    /// What is to be durable; `None`: it is to lead.
    goal: Option<Lsn>,
    thread: Thread,
    /// `NOTHING` while it is in `waiting` (L11).
    told: AtomicU8,
}

const NOTHING: u8 = 0;
const SERVED: u8 = 1;
const LEADS: u8 = 2;

impl Waiter {
    /// The calling thread.
    fn new(goal: Option<Lsn>) -> Waiter {
        Waiter { goal, thread: current(), told: AtomicU8::new(NOTHING) }
    }

    /// Told by whoever took it out.
    fn tell(&self, what: u8) {
        // Release: pairs with the Acquire in `wait`.
        self.told.store(what, Ordering::Release);
        self.thread.unpark();
    }

    /// Returns what the calling thread, which is this one, was told.
    fn wait(&self) -> u8 {
        loop {
            // Acquire: pairs with the Release in `tell`, so one who is served sees the stable LSN that serves it, and one
            // who leads sees what those wrote who wait for it.
            match self.told.load(Ordering::Acquire) {
                // May return without a reason.
                NOTHING => park(),
                told => return told,
            }
        }
    }
}

/// The calling thread leads, until this is dropped: a panic ends it, too.
struct Lead<'a> {
    group: &'a GroupCommit,
    stability: &'a Stability,
    /// When its sync began.
    start: Option<Instant>,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.group.end(self.stability.stable(), self.start);
    }
}

/// What time it is; `None` where nobody knows.
fn now() -> Option<Instant> {
    (!cfg!(any(loom, target_family = "wasm"))).then(Instant::now)
}

impl GroupCommit {
    /// Returns when everything below `goal` is durable, by this thread's `sync` or another's; with `None` always by this
    /// thread's, at once or as soon as those have led who came before. Returns the stable LSN.
    ///
    /// `sync` makes everything durable that was written when it is called, and raises the stable LSN accordingly.
    ///
    /// # Errors
    /// What `sync` failed with, if this thread led.
    pub fn commit(
        &self,
        stability: &Stability,
        goal: Option<Lsn>,
        sync: impl FnOnce() -> Result<Lsn>,
    ) -> Result<Lsn> {
        let Some(mut lead) = self.join(stability, goal) else {
            let stable = stability.stable();
            debug_assert!(goal.is_some_and(|goal| goal <= stable), "L11");
            return Ok(stable);
        };
        if goal.is_some() {
            self.gather();
        }
        lead.start = now();
        sync()
    }

    /// Waits until the goal is durable, which is `None`, or the calling thread leads.
    fn join<'a>(&'a self, stability: &'a Stability, goal: Option<Lsn>) -> Option<Lead<'a>> {
        let mut state = self.state.lock();
        if goal.is_some_and(|goal| goal <= stability.stable()) {
            return None;
        }
        if state.leading {
            let own = Arc::new(Waiter::new(goal));
            state.waiting.push_back(Arc::clone(&own));
            drop(state);
            if own.wait() == SERVED {
                return None;
            }
        } else {
            debug_assert!(state.waiting.is_empty(), "L10");
            state.leading = true;
        }
        Some(Lead { group: self, stability, start: None })
    }

    /// The leader waits for those who are likely to come, but not for long.
    fn gather(&self) {
        let (crowd, limit) = {
            let mut state = self.state.lock();
            if state.waiting.len() + 1 >= state.crowd || state.took < QUICK {
                return;
            }
            if state.skips_left > 0 {
                state.skips_left -= 1;
                return;
            }
            (state.crowd, PATIENCE.min(state.took / 2))
        };
        let Some(start) = now() else { return };
        let came = loop {
            yield_now();
            if self.state.lock().waiting.len() + 1 >= crowd {
                break true;
            }
            if start.elapsed() >= limit {
                break false;
            }
        };
        let mut state = self.state.lock();
        state.skips = if came { 0 } else { MAX_SKIPS.min(state.skips * 2 + 1) };
        state.skips_left = state.skips;
    }

    /// Ends a lead that began to sync at `start`: tells those who are served, and who leads next.
    fn end(&self, stable: Lsn, start: Option<Instant>) {
        let took = start.map_or(Duration::ZERO, |start| start.elapsed());
        let (next, served) = {
            let mut state = self.state.lock();
            debug_assert!(state.leading, "L10");
            state.crowd = state.waiting.len() + 1;
            state.took = took;
            let is_served = |waiter: &Arc<Waiter>| waiter.goal.is_some_and(|goal| goal <= stable);
            let (served, unserved): (Vec<_>, Vec<_>) = state.waiting.drain(..).partition(is_served);
            state.waiting = unserved.into();
            let next = state.waiting.pop_front();
            state.leading = next.is_some();
            (next, served)
        };
        // Others wait for it.
        if let Some(next) = next {
            next.tell(LEADS);
        }
        for waiter in served {
            waiter.tell(SERVED);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
