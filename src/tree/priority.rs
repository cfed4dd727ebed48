//! Priority for a transaction that others keep from committing.
//!
//! # How it works
//!
//! An optimistic transaction starves when something that it reads is written in every run. After some runs it claims
//! the priority of its trees: from then on whoever wants to write to one of them lets it go first, as long as it is seen to
//! get on. So nobody waits for a thread that sleeps, nor for ever; and as nobody counts on it, the claim may be refused, or
//! ignored by those who were writing already.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// Between two looks.
const NAP: Duration = Duration::from_micros(50);
/// How long whoever has the priority may seem to sleep.
const ASLEEP: Duration = Duration::from_millis(20);
/// How long a write waits at most.
const LONGEST: Duration = Duration::from_secs(1);

/// Who has the priority.
#[derive(Debug)]
pub struct Holder {
    thread: ThreadId,
    /// Written by the holder.
    progress: AtomicU64,
    /// It has given the priority back.
    is_over: AtomicBool,
}

impl Holder {
    /// The holder gets on.
    pub fn note_progress(&self) {
        // Relaxed: a hint.
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

/// The priority of a tree.
#[derive(Debug, Default)]
pub struct Priority {
    /// Whether somebody has it. Written under the lock.
    is_claimed: AtomicBool,
    holder: Mutex<Option<Arc<Holder>>>,
}

impl Priority {
    /// Lets a transaction that has the priority go first. Not under a guard.
    #[inline]
    pub fn give_way(&self) {
        // Relaxed: a hint.
        if self.is_claimed.load(Ordering::Relaxed) {
            self.wait();
        }
    }

    #[cold]
    fn wait(&self) {
        let Some(holder) = self.holder.lock().clone() else { return };
        if holder.thread == std::thread::current().id() {
            return;
        }
        let start = Instant::now();
        let (mut seen, mut since) = (0, start);
        // Relaxed: hints.
        while !holder.is_over.load(Ordering::Relaxed) {
            let progress = holder.progress.load(Ordering::Relaxed);
            let now = Instant::now();
            if progress != seen {
                (seen, since) = (progress, now);
            }
            if now - since > ASLEEP || now - start > LONGEST {
                return;
            }
            std::thread::sleep(NAP);
        }
    }

    /// Takes the priority for this thread, unless somebody else has it.
    pub fn claim(&self, holder: &Arc<Holder>) {
        let mut current = self.holder.lock();
        if current.is_none() {
            *current = Some(Arc::clone(holder));
            // Relaxed: a hint.
            self.is_claimed.store(true, Ordering::Relaxed);
        }
    }

    /// Gives the priority back, if `holder` has it.
    pub fn release(&self, holder: &Arc<Holder>) {
        let mut current = self.holder.lock();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, holder)) {
            *current = None;
            // Relaxed: a hint.
            self.is_claimed.store(false, Ordering::Relaxed);
        }
    }
}

impl Holder {
    /// This thread, as a holder.
    pub fn new() -> Arc<Holder> {
        let thread = std::thread::current().id();
        Arc::new(Holder { thread, progress: AtomicU64::new(0), is_over: AtomicBool::new(false) })
    }

    /// It will not get on any more: nobody is to wait.
    pub fn end(&self) {
        // Relaxed: a hint.
        self.is_over.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_wait_while_the_holder_gets_on_and_not_when_it_sleeps() {
        let priority = Priority::default();
        let holder = Holder::new();
        priority.claim(&holder);
        priority.give_way();
        std::thread::scope(|s| {
            // It sleeps.
            s.spawn(|| priority.give_way()).join().expect("no panic");
            let other = s.spawn(|| {
                priority.give_way();
                assert!(holder.is_over.load(Ordering::Relaxed), "it got on all the time");
            });
            for _ in 0..100 {
                holder.note_progress();
                std::thread::sleep(Duration::from_micros(200));
            }
            holder.end();
            other.join().expect("no panic");
        });
        let second = Holder::new();
        priority.claim(&second);
        priority.release(&second);
        assert!(priority.is_claimed.load(Ordering::Relaxed), "the first has it");
        priority.release(&holder);
        assert!(!priority.is_claimed.load(Ordering::Relaxed));
    }
}
