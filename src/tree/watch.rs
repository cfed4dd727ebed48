//! Who watches a tree, and the events that they have not fetched yet.
//!
//! # How it works
//!
//! A writer of a tree that is watched holds the tree's watch lock from its publication until its event is in the queues
//! of all subscribers whose prefix its key has: so all of them see the changes of a tree in the order of publication,
//! and a transaction, which holds the locks of all its trees while it commits, puts its events in together. A queue takes
//! what comes up to a bound of bytes; then it ends, and says that it lagged. So a writer never waits for a subscriber.
//!
//! # Concurrency
//!
//! Whether a tree is watched is one load, under the writer's guard. Whoever begins to watch says so, and then waits until
//! every guard has ended that was pinned before: after that no writer is left who does not know.

#[cfg(all(test, loom))]
mod models;

use crate::base::sync::atomic::{AtomicBool, Ordering};
use crate::base::sync::{Condvar, Mutex, MutexGuard, yield_now};
use crate::ivec::IVec;
use crossbeam_epoch::Guard;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Bytes of events, overhead included, that may wait for a subscriber.
const BOUND: usize = 32 << 20;
/// What an event costs besides the bytes of key and value.
const OVERHEAD: usize = 96;
/// How often beginning to watch looks whether the guards have ended, and from when on it sleeps in between: about a second
/// in all for one that does not end.
const LOOKS: u32 = 1000;
const LOOKS_AWAKE: u32 = 100;

/// A change to a tree, as a [`Subscriber`](crate::Subscriber) gets it.
///
/// # Examples
/// ```
/// # fn main() -> sled::Result<()> {
/// let db = sled::Config::new().temporary(true).open()?;
/// let mut subscriber = db.watch_prefix("");
/// db.insert("k", "v")?;
/// db.remove("k")?;
/// assert_eq!(subscriber.next(), Some(sled::Event::Insert { key: "k".into(), value: "v".into() }));
/// assert_eq!(subscriber.next(), Some(sled::Event::Remove { key: "k".into() }));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A key got a value.
    Insert {
        /// The key.
        key: IVec,
        /// All of its new value, also when that is the result of a merge.
        value: IVec,
    },
    /// A key has no value any more.
    Remove {
        /// The key.
        key: IVec,
    },
}

impl Event {
    /// Returns the key that was changed.
    ///
    /// # Examples
    /// ```
    /// let event = sled::Event::Remove { key: "k".into() };
    /// assert_eq!(*event.key(), "k");
    /// ```
    pub fn key(&self) -> &IVec {
        match self {
            Event::Insert { key, .. } | Event::Remove { key } => key,
        }
    }

    fn cost(&self) -> usize {
        OVERHEAD
            + match self {
                Event::Insert { key, value } => key.len() + value.len(),
                Event::Remove { key } => key.len(),
            }
    }
}

/// The subscribers of a tree.
#[derive(Debug, Default)]
pub struct Watchers {
    /// Whether there may be any. Written under the lock.
    any: AtomicBool,
    queues: Mutex<Queues>,
}

#[derive(Debug, Default)]
struct Queues {
    open: Vec<Arc<Queue>>,
    /// The tree is gone.
    ended: bool,
}

/// What one subscriber has not fetched yet.
#[derive(Debug)]
pub struct Queue {
    prefix: IVec,
    waiting: Mutex<Waiting>,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    /// What they cost.
    bytes: usize,
    waker: Option<Waker>,
    /// Nothing will be added.
    ended: bool,
    /// It ended because too much was waiting.
    lagged: bool,
}

/// The watch lock of a tree.
#[derive(Debug)]
pub struct Emitter<'a> {
    watchers: &'a Watchers,
    queues: MutexGuard<'a, Queues>,
}

/// Subscribers to be woken, when no lock is held.
#[derive(Debug, Default)]
#[must_use]
pub struct Wakes(Vec<Waker>);

impl Wakes {
    /// Wakes them.
    pub fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }
}

impl Watchers {
    /// The lock, to be held while something is published; `None`: nobody watches. Under a guard that stays
    /// pinned until then.
    #[inline]
    pub fn emitter(&self) -> Option<Emitter<'_>> {
        self.any().then(|| Emitter { watchers: self, queues: self.queues.lock() })
    }

    /// Whether anybody watches.
    #[inline]
    pub fn any(&self) -> bool {
        // Relaxed: ordered by the guard of the caller, as said for `emitter`.
        self.any.load(Ordering::Relaxed)
    }

    /// Begins to watch the keys with a prefix.
    pub fn watch(&self, prefix: IVec) -> Arc<Queue> {
        let queue = self.list(prefix);
        // A guard of this thread is not of a writer.
        if !crossbeam_epoch::is_pinned() {
            await_guards(crossbeam_epoch::pin);
        }
        queue
    }

    /// Lists a new queue, which those who write already may not see.
    fn list(&self, prefix: IVec) -> Arc<Queue> {
        let queue = Arc::new(Queue { prefix, waiting: Mutex::default(), ready: Condvar::new() });
        let mut queues = self.queues.lock();
        if queues.ended {
            queue.waiting.lock().ended = true;
            return queue;
        }
        queues.open.push(Arc::clone(&queue));
        // Relaxed: what orders it with writers is that their guards end.
        self.any.store(true, Ordering::Relaxed);
        queue
    }

    /// A subscriber is gone.
    pub fn forget(&self, queue: &Arc<Queue>) {
        let mut queues = self.queues.lock();
        queues.open.retain(|open| !Arc::ptr_eq(open, queue));
        self.note_any(&queues);
    }

    fn note_any(&self, queues: &Queues) {
        // Relaxed: a writer who sees the old value finds no queues.
        self.any.store(!queues.open.is_empty(), Ordering::Relaxed);
    }

    /// The tree is gone: so are the streams, once what they hold is fetched.
    pub fn end(&self) {
        let mut queues = self.queues.lock();
        queues.ended = true;
        let open = std::mem::take(&mut queues.open);
        self.note_any(&queues);
        drop(queues);
        let mut wakes = Wakes::default();
        for queue in open {
            let mut waiting = queue.waiting.lock();
            waiting.ended = true;
            wakes.0.extend(waiting.waker.take());
            queue.ready.notify_all();
        }
        wakes.wake();
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.end();
    }
}

impl Emitter<'_> {
    /// Puts an event into the queues of those who want it.
    pub fn emit(&mut self, event: &Event, wakes: &mut Wakes) {
        let mut lagged = false;
        for queue in self.queues.open.iter().filter(|queue| event.key().starts_with(&queue.prefix)) {
            let mut waiting = queue.waiting.lock();
            waiting.bytes += event.cost();
            if waiting.bytes > BOUND {
                (waiting.ended, waiting.lagged, lagged) = (true, true, true);
            } else {
                waiting.events.push_back(event.clone());
            }
            wakes.0.extend(waiting.waker.take());
            queue.ready.notify_all();
        }
        if lagged {
            self.queues.open.retain(|queue| !queue.waiting.lock().ended);
            self.watchers.note_any(&self.queues);
        }
    }
}

impl Waiting {
    fn take(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.bytes -= event.cost();
        Some(event)
    }
}

impl Queue {
    /// The next event, waiting for it until `deadline`; `None`: there will be none. An error: it is too late.
    ///
    /// # Errors
    /// The deadline has passed.
    pub fn next(&self, deadline: Option<Instant>) -> Result<Option<Event>, ()> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(event) = waiting.take() {
                return Ok(Some(event));
            }
            if waiting.ended {
                return Ok(None);
            }
            match deadline {
                None => self.ready.wait(&mut waiting),
                Some(deadline) => {
                    if Instant::now() >= deadline {
                        return Err(());
                    }
                    let _ = self.ready.wait_until(&mut waiting, deadline);
                }
            }
        }
    }

    /// The next event, if there is one; otherwise the task is woken when there is.
    pub fn poll(&self, context: &Context<'_>) -> Poll<Option<Event>> {
        // Whatever cloning or dropping a waker does, no lock is held.
        let waker = context.waker().clone();
        let mut waiting = self.waiting.lock();
        let event = waiting.take();
        if event.is_some() || waiting.ended {
            return Poll::Ready(event);
        }
        let before = waiting.waker.replace(waker);
        drop(waiting);
        drop(before);
        Poll::Pending
    }

    /// Whether it ended because too much was waiting.
    pub fn lagged(&self) -> bool {
        self.waiting.lock().lagged
    }
}

/// Returns when every guard has ended that was pinned before, or after a while if one does not end.
fn await_guards(pin: impl Fn() -> Guard) {
    let ended = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&ended);
    pin().defer(move || {
        // Release: pairs with the Acquire below.
        note.store(true, Ordering::Release);
    });
    for look in 0..LOOKS {
        // Acquire: pairs with the Release above.
        if ended.load(Ordering::Acquire) {
            return;
        }
        pin().flush();
        if look < LOOKS_AWAKE {
            yield_now();
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
