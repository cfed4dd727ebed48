//! The two background threads of an open database, and how they are woken.
//!
//! # How it works
//!
//! The *log writer* writes sealed buffers and flushes every so often while something is being written; when
//! that has ended, it has the file and the memory tidied once. The *maintenance* thread evicts, merges nodes, cleans,
//! makes checkpoints and has memory made ready when foreground operations say that something is due. Both sleep
//! without a timer when there is nothing to do.
//!
//! Retired memory is given back when the epoch moves on, which takes somebody who pins. When all are at rest
//! that is the maintenance thread, a few times in growing intervals; what a sleeping guard holds up then waits
//! for the next call. If memory is above the capacity, as what was in use could not be evicted, it looks on until
//! nobody uses anything, and evicts it then.
//!
//! If one of them panics, the log is poisoned with the cause: every later write says so, and nobody waits for
//! it.

#[cfg(all(test, loom))]
mod models;

use super::engine::Core;
use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::{Condvar, Mutex};
use crate::error::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A doorbell for one thread.
#[derive(Debug, Default)]
pub(super) struct Bell {
    state: Mutex<BellState>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct BellState {
    rung: bool,
    stop: bool,
}

/// What a thread was woken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    Rung,
    TimedOut,
    Stop,
}

impl Bell {
    /// Wakes the thread, or has it look again before it sleeps.
    pub(super) fn ring(&self) {
        let mut state = self.state.lock();
        if !state.rung {
            state.rung = true;
            self.rung.notify_one();
        }
    }

    fn stop(&self) {
        self.state.lock().stop = true;
        self.rung.notify_one();
    }

    /// Whether its thread is to end.
    fn is_stopping(&self) -> bool {
        self.state.lock().stop
    }

    fn wait(&self, until: Option<Instant>) -> Woken {
        let mut state = self.state.lock();
        loop {
            if state.stop {
                return Woken::Stop;
            }
            if std::mem::take(&mut state.rung) {
                return Woken::Rung;
            }
            match until {
                None => self.rung.wait(&mut state),
                Some(until) => {
                    if self.rung.wait_until(&mut state, until).timed_out() && !state.rung && !state.stop {
                        return Woken::TimedOut;
                    }
                }
            }
        }
    }
}

/// One who awaits a flush.
#[derive(Debug, Default)]
pub(super) struct FlushWaiter {
    state: Mutex<(Option<Result<u64>>, Option<Waker>)>,
}

impl FlushWaiter {
    /// The result, if it is there; otherwise the waker is called when it is.
    pub(super) fn poll(&self, waker: &Waker) -> Option<Result<u64>> {
        let mut state = self.state.lock();
        if state.0.is_none() {
            state.1 = Some(waker.clone());
        }
        state.0.clone()
    }

    fn is_finished(&self) -> bool {
        self.state.lock().0.is_some()
    }

    /// The first result counts.
    fn finish(&self, result: Result<u64>) {
        let waker = {
            let mut state = self.state.lock();
            state.0.get_or_insert(result);
            state.1.take()
        };
        // Code of the user's executor: no lock is held, and a panic in it is not ours.
        if let Some(waker) = waker
            && catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err()
        {
            log::error!("a waker that awaited a flush panicked");
        }
    }
}

/// What the threads and those who wake them share.
#[derive(Debug)]
pub(super) struct Signals {
    writer: Bell,
    maintenance: Bell,
    /// The log writer knows that there is something to flush. Set by whoever writes, cleared by the log
    /// writer.
    armed: AtomicBool,
    /// The file, or the memory, is to be tidied though nothing is due. Set by the log writer.
    tidy: AtomicBool,
    /// Who awaits a flush; `None` = the log writer is gone and nobody will be served.
    waiters: Mutex<Option<Vec<Arc<FlushWaiter>>>>,
}

impl Default for Signals {
    fn default() -> Signals {
        Signals {
            writer: Bell::default(),
            maintenance: Bell::default(),
            armed: AtomicBool::new(false),
            tidy: AtomicBool::new(false),
            waiters: Mutex::new(Some(Vec::new())),
        }
    }
}

impl Signals {
    /// A new buffer was begun: there is something to flush, or to write.
    pub(super) fn wrote(&self, backlog: u64) {
        // AcqRel: pairs with the swap in `rest`. One of the two is later: either that one, and then it sees the reservation
        // that was made before this; or this one, which finds `armed` cleared, and rings.
        if !self.armed.swap(true, Ordering::AcqRel) || backlog >= 2 {
            self.writer.ring();
        }
    }

    /// The log writer takes off its timers because nothing is being written; whether that is still so, as `is_quiet` says.
    /// If not, its bell has rung.
    fn rest(&self, is_quiet: impl FnOnce() -> bool) -> bool {
        // AcqRel: pairs with the swap in `wrote`, as said there.
        self.armed.swap(false, Ordering::AcqRel);
        let quiet = is_quiet();
        if !quiet {
            self.wrote(0);
        }
        quiet
    }

    /// Whether nothing was written since the log writer had the file tidied. Otherwise it has that done again.
    fn is_at_rest(&self) -> bool {
        // Relaxed: a hint.
        !self.armed.load(Ordering::Relaxed) && !self.maintenance.is_stopping()
    }

    /// Maintenance may be due.
    pub(super) fn maintain(&self) {
        self.maintenance.ring();
    }

    /// Asks the log writer for a flush; `None`: there is none any more.
    pub(super) fn await_flush(&self) -> Option<Arc<FlushWaiter>> {
        let waiter = Arc::new(FlushWaiter::default());
        self.waiters.lock().as_mut()?.push(Arc::clone(&waiter));
        self.writer.ring();
        Some(waiter)
    }

    /// Flushes if anybody awaits that.
    fn serve_waiters(&self, flush: &dyn Fn() -> Result<u64>) {
        // They stay listed until they were served: if the flush panics, whoever closes the list serves them.
        let waiters = self.waiters.lock().clone().unwrap_or_default();
        if !waiters.is_empty() {
            let result = flush();
            waiters.iter().for_each(|waiter| waiter.finish(result.clone()));
            if let Some(listed) = self.waiters.lock().as_mut() {
                listed.retain(|waiter| !waiter.is_finished());
            }
        }
    }

    /// The log writer has ended: those who wait are served here, and nobody waits any more.
    fn close_waiters(&self, flush: &dyn Fn() -> Result<u64>) {
        self.serve_waiters(flush);
        let late = self.waiters.lock().take().unwrap_or_default();
        late.iter().for_each(|waiter| waiter.finish(flush()));
    }
}

/// The running threads.
#[derive(Debug)]
pub(super) struct Threads {
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts both.
    ///
    /// # Errors
    /// `Io` when the system gives no thread.
    pub(super) fn start(core: &Arc<Core>, every: Option<Duration>) -> Result<Threads> {
        let mut threads = Threads { handles: Vec::new() };
        let started = threads
            .spawn("sled-log", core, move |core| writer_loop(core, every))
            .and_then(|()| threads.spawn("sled-maintenance", core, maintenance_loop));
        match started {
            Ok(()) => Ok(threads),
            Err(error) => {
                threads.stop(core);
                Err(error)
            }
        }
    }

    fn spawn(
        &mut self,
        name: &str,
        core: &Arc<Core>,
        work: impl FnOnce(&Core) + Send + 'static,
    ) -> Result<()> {
        let core = Arc::clone(core);
        let name = name.to_string();
        let handle = std::thread::Builder::new().name(name.clone()).spawn(move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(&core))) {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                core.poison(Error::ReportableBug(format!("the thread {name} panicked: {text}")));
                core.signals.close_waiters(&|| core.flush());
            }
        })?;
        self.handles.push(handle);
        Ok(())
    }

    /// Stops both and waits for them.
    pub(super) fn stop(&mut self, core: &Core) {
        core.signals.writer.stop();
        core.signals.maintenance.stop();
        for handle in self.handles.drain(..) {
            // The last handle may have been dropped by a waker, on the log writer itself. A panic was caught
            // inside.
            if handle.thread().id() != std::thread::current().id() {
                let _ = handle.join();
            }
        }
        core.signals.close_waiters(&|| core.flush());
    }
}

/// How often the log writer looks whether anything is still being written.
const TICK: Duration = Duration::from_millis(80);

fn writer_loop(core: &Core, every: Option<Duration>) {
    let signals = &core.signals;
    let log = core.forest.log();
    let mut tick_at: Option<Instant> = None;
    let mut flush_at: Option<Instant> = None;
    let mut seen_end = log.end();
    loop {
        let woken = signals.writer.wait(tick_at.into_iter().chain(flush_at).min());
        if woken == Woken::Stop {
            return;
        }
        signals.serve_waiters(&|| core.flush());
        // A failure stays where it is: whoever needs room or a flush meets it, too.
        let _ = log.drain();
        let now = Instant::now();
        // Acquire: pairs with the swap in `wrote`.
        if tick_at.is_none() && signals.armed.load(Ordering::Acquire) {
            tick_at = Some(now + TICK);
            flush_at = every.map(|every| now + every);
        }
        if flush_at.is_some_and(|at| at <= now) {
            if let Err(error) = core.flush() {
                log::error!("flushing in the background failed: {error}");
                core.config.latch_error(error);
            }
            flush_at = every.map(|every| now + every);
        }
        if tick_at.is_none_or(|at| at > now) {
            continue;
        }
        tick_at = Some(now + TICK);
        let end = log.end();
        let idle = end == std::mem::replace(&mut seen_end, end);
        let flushed = log.stability().stable() >= end || log.stability().check().is_err();
        if idle && (flushed || every.is_none()) {
            // Nothing is being written and nothing waits to be flushed: no more timers. What is written from
            // here on rings again.
            (tick_at, flush_at) = (None, None);
            if signals.rest(|| log.end() == end)
                && flushed
                && (core.forest.is_untidy() || log.has_spare(false) || core.forest.is_spread())
            {
                // Release: pairs with the swap in `maintenance_loop`.
                signals.tidy.store(true, Ordering::Release);
                signals.maintenance.ring();
            }
        }
    }
}

/// How soon the maintenance thread has the epoch move on for what waits for it; twice as long each time.
const EPOCH_TICK: Duration = Duration::from_millis(1);
/// After so many times, what sleeping guards hold up is left for when something else is due.
const EPOCH_TICKS: u32 = 11;
/// From which of them on it is seen whether nobody reads or writes any more, and what could not be evicted is tried again.
const QUIET_TICK: u32 = 8;

fn maintenance_loop(core: &Core) {
    let mut ticks = 0;
    // What could not be evicted was tried again when all was quiet.
    let mut tried = false;
    let mut activity = 0;
    // Where the log ended when all was tidied. As long as nothing is written, what gets through the epoch is given back.
    let mut tidied_at = None;
    loop {
        let log = core.forest.log();
        let resting = tidied_at == Some(log.end());
        // Others may have moved the epoch on, and what was freed by that is given back here.
        let has_more = || core.forest.waits_for_epoch() || resting && log.has_spare(true);
        let waits = ticks < EPOCH_TICKS && has_more() || !tried && core.forest.is_stuck();
        let tick = EPOCH_TICK * (1 << ticks.min(EPOCH_TICKS - 1));
        match core.signals.maintenance.wait(waits.then(|| Instant::now() + tick)) {
            Woken::Stop => return,
            Woken::Rung => (ticks, tried) = (0, false),
            Woken::TimedOut => {
                ticks = (ticks + 1).min(EPOCH_TICKS);
                core.forest.move_epoch();
                core.forest.forget_stuck();
                let before = std::mem::replace(&mut activity, core.forest.activity());
                if ticks >= QUIET_TICK && activity == before && !tried && core.forest.is_stuck() {
                    tried = true;
                    // What that frees waits for its epoch.
                    ticks = QUIET_TICK;
                    if let Err(error) = core.forest.evict_stuck() {
                        log::error!("making room failed, and is tried again when something is due: {error}");
                    }
                }
                if !core.forest.is_due() {
                    if resting && let Err(error) = log.give_back(true) {
                        log::error!("giving free segments back failed: {error}");
                    }
                    continue;
                }
            }
        }
        let mut done = core.forest.maintain();
        // That was nobody else.
        activity = core.forest.activity();
        // Acquire: pairs with the store in `writer_loop`.
        if core.signals.tidy.swap(false, Ordering::Acquire) {
            // A checkpoint is not for the memory, and a file that is tidy needs none.
            let tidied = match core.forest.is_untidy() {
                true => core.forest.settle(&|| core.signals.is_at_rest()),
                false => log.give_back(true),
            };
            done = done.and(tidied);
            core.forest.compact();
            tidied_at = Some(log.end());
        }
        if let Err(error) = done {
            log::error!("maintenance failed, and is tried again when something is due: {error}");
        }
    }
}
