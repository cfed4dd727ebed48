//! Merges into one key by several threads at once: one of them makes those of all.
//!
//! # How it works
//!
//! Threads that change one value as fast as they can spend most of their time on finding that somebody else was faster.
//! A merge says what it wants without having seen the value, so somebody else can do it: who comes while another
//! thread is at a key of the same stripe leaves a request, and the other one makes all requests for a key in a single
//! write. Whoever waits takes over as soon as nobody is at it.
//!
//! # Concurrency
//!
//! A stripe is claimed by CAS, and never waited for by whoever holds it. An operator that merges itself does so without
//! stripes, so that threads in operators do not wait for each other here.
//!
//! # References
//!
//! Hendler, Incze, Shavit, Tzafrir, "Flat Combining and the Synchronization-Parallelism Tradeoff", SPAA 2010.

use crate::error::Result;
use crate::ivec::IVec;
use crossbeam_utils::{Backoff, CachePadded};
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const STRIPES: usize = 16;
/// Rounds of requests that a thread makes for others before it goes on with its own business.
const ROUNDS: usize = 8;

/// What became of a request.
#[derive(Debug)]
enum Made {
    /// This.
    Done(Result<Option<IVec>>),
    /// The operator panicked, for this one or another: whoever asked is to see for himself.
    Alone,
}

/// A merge that somebody waits for.
#[derive(Debug)]
struct Request {
    key: IVec,
    operand: IVec,
    made: Mutex<Option<Made>>,
    /// Set when `made` is there.
    ready: AtomicBool,
}

impl Request {
    fn answer(&self, made: Made) {
        *self.made.lock() = Some(made);
        // Release: pairs with the Acquire in `Combiner::wait`.
        self.ready.store(true, Ordering::Release);
    }
}

#[derive(Debug, Default)]
struct Stripe {
    claimed: AtomicBool,
    /// Number of requests. Written under their lock.
    waiting: AtomicUsize,
    requests: Mutex<Vec<Arc<Request>>>,
}

/// A claimed stripe.
struct Claim<'a>(&'a Stripe);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `claim`.
        self.0.claimed.store(false, Ordering::Release);
    }
}

impl Stripe {
    fn claim(&self) -> Option<Claim<'_>> {
        // Relaxed: a hint. Acquire: pairs with the Release in `Claim::drop`.
        let free = !self.claimed.load(Ordering::Relaxed) && !self.claimed.swap(true, Ordering::Acquire);
        free.then(|| Claim(self))
    }

    fn take(&self) -> Vec<Arc<Request>> {
        // Relaxed: a hint; whoever waits looks himself.
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let mut requests = self.requests.lock();
        // Relaxed: a hint.
        self.waiting.store(0, Ordering::Relaxed);
        std::mem::take(&mut *requests)
    }

    fn ask(&self, key: &[u8], operand: &[u8]) -> Arc<Request> {
        let (key, operand) = (IVec::from(key), IVec::from(operand));
        let (made, ready) = (Mutex::new(None), AtomicBool::new(false));
        let request = Arc::new(Request { key, operand, made, ready });
        let mut requests = self.requests.lock();
        requests.push(Arc::clone(&request));
        // Relaxed: a hint.
        self.waiting.store(requests.len(), Ordering::Relaxed);
        request
    }
}

/// Where the merges of a tree meet.
#[derive(Debug, Default)]
pub(super) struct Combiner {
    stripes: [CachePadded<Stripe>; STRIPES],
}

/// Merges operands into a key one after the other in one write, and returns the values that it had.
pub(super) type Merge<'a> = &'a dyn Fn(&[u8], &[&[u8]]) -> Result<Vec<Option<IVec>>>;

fn last(values: Result<Vec<Option<IVec>>>) -> Result<Option<IVec>> {
    values.map(|mut values| values.pop().expect("a value for each operand"))
}

impl Combiner {
    /// Merges an operand into a key, by `merge`, or lets another thread do it. `hash`: of the key.
    ///
    /// # Errors
    /// What `merge` failed with.
    pub(super) fn merge(
        &self,
        hash: u16,
        key: &[u8],
        operand: &[u8],
        merge: Merge<'_>,
    ) -> Result<Option<IVec>> {
        let stripe = &self.stripes[usize::from(hash) % STRIPES];
        if let Some(claim) = stripe.claim() {
            let result = last(merge(key, &[operand]));
            Self::serve(&claim, merge);
            return result;
        }
        let request = stripe.ask(key, operand);
        let backoff = Backoff::new();
        // Acquire: pairs with the Release in `Request::answer`.
        while !request.ready.load(Ordering::Acquire) {
            match stripe.claim() {
                Some(claim) => Self::serve(&claim, merge),
                None => backoff.snooze(),
            }
        }
        let made = request.made.lock().take();
        match made.expect("it is there before it is ready") {
            Made::Done(result) => result,
            Made::Alone => last(merge(key, &[operand])),
        }
    }

    /// Makes what others have asked for.
    fn serve(claim: &Claim<'_>, merge: Merge<'_>) {
        for _ in 0..ROUNDS {
            let mut requests = claim.0.take();
            if requests.is_empty() {
                return;
            }
            while let Some(first) = requests.first() {
                let key = first.key.clone();
                let same: Vec<_> = requests.extract_if(.., |request| request.key == key).collect();
                let operands: Vec<&[u8]> = same.iter().map(|request| &request.operand[..]).collect();
                // What it panicked with is for the one whose operand it was.
                match catch_unwind(AssertUnwindSafe(|| merge(&key, &operands))) {
                    Ok(Ok(values)) => {
                        let each = same.iter().zip(values);
                        each.for_each(|(request, value)| request.answer(Made::Done(Ok(value))));
                    }
                    Ok(Err(error)) => {
                        same.iter().for_each(|request| request.answer(Made::Done(Err(error.clone()))));
                    }
                    Err(_) => same.iter().for_each(|request| request.answer(Made::Alone)),
                }
            }
        }
    }
}
