//! Code of the user that panics: at any of its calls the operation is done or was never begun, and nothing is stuck.
//!
//! # How it works
//!
//! Keys, values, bounds, closures, operators and wakers of this file count their calls, and those of them where they are
//! dropped; the one that is armed unwinds. Each operation runs with each of its first calls armed on one database, and
//! without on another, which must then hold the same: at once, or once the operation was made again. Subscribers see what
//! happened, another thread goes on all the time, and memory is still given back at the end.

mod common_durability;

use common_durability::{Hooked, Watchdog, block_on, within};
use sled::testing::{OpClass, SimStorage, Tuning, check_invariants, memory_used, open_on};
use sled::transaction::{ConflictableTransactionError, TransactionError, Transactional as _};
use sled::{Batch, Config, Db, Event, IVec, Result, Subscriber, Tree};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

/// Calls of each operation that are armed, one at a time.
const CALLS: u64 = 20;

thread_local! {
    /// Calls until the one that unwinds; 0 = none does.
    static FUSE: Cell<u64> = const { Cell::new(0) };
}

struct Planned;

/// A call of the user's code.
fn call() {
    let left = FUSE.get();
    FUSE.set(left.saturating_sub(1));
    // A second panic while unwinding ends the process, as everywhere.
    if left == 1 && !std::thread::panicking() {
        resume_unwind(Box::new(Planned));
    }
}

/// Runs with a call armed; whether that was reached, and the answer if not.
fn armed<T>(at: u64, run: impl FnOnce() -> T) -> Option<T> {
    FUSE.set(at);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    FUSE.set(0);
    match outcome {
        Ok(answer) => Some(answer),
        Err(panic) => {
            assert!(panic.is::<Planned>(), "another panic than the planned one");
            None
        }
    }
}

/// Bytes of the user's own type.
#[derive(Clone)]
struct Mine(Vec<u8>);

impl AsRef<[u8]> for Mine {
    fn as_ref(&self) -> &[u8] {
        call();
        &self.0
    }
}

impl From<Mine> for IVec {
    fn from(mine: Mine) -> IVec {
        call();
        IVec::from(&*mine.0)
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        call();
    }
}

struct Between(Mine, Mine);

impl RangeBounds<Mine> for Between {
    fn start_bound(&self) -> Bound<&Mine> {
        call();
        Bound::Included(&self.0)
    }

    fn end_bound(&self) -> Bound<&Mine> {
        call();
        Bound::Excluded(&self.1)
    }
}

struct Fused;

impl Wake for Fused {
    fn wake(self: Arc<Fused>) {
        call();
    }
}

fn key(number: u64) -> Mine {
    Mine(format!("key {:02}", number % 30).into_bytes())
}

/// Sometimes one with an image of its own.
fn value(number: u64) -> Mine {
    Mine(vec![number as u8; if number.is_multiple_of(5) { 3000 } else { 40 }])
}

/// A database, two of its trees, and who watches them.
struct Subject {
    db: Db,
    trees: [Tree; 2],
    watching: [Subscriber; 2],
    seen: [BTreeMap<IVec, IVec>; 2],
    /// The operators have a copy of it, so it is theirs until the database is closed.
    open: Arc<()>,
}

impl Subject {
    fn new(medium: &SimStorage) -> Subject {
        let tuning = Tuning { leaf_bytes: 1024, redo_buffer: 64 << 10, ..Tuning::default() };
        let config = Config::new().flush_every_ms(Some(20)).cache_capacity(1 << 20);
        let db = open_on(medium.clone(), &config, tuning).expect("opens");
        let trees = ["one", "two"].map(|name| db.open_tree(name).expect("opens"));
        let open = Arc::new(());
        for tree in &trees {
            let open = Arc::clone(&open);
            tree.set_merge_operator(move |_: &[u8], old: Option<&[u8]>, operand: &[u8]| {
                call();
                let _ = &open;
                let bytes = [old.unwrap_or_default(), operand].concat();
                call();
                (bytes.len() < 200).then_some(bytes)
            });
        }
        let watching = [trees[0].watch_prefix(""), trees[1].watch_prefix("")];
        let seen = [0, 1].map(|i| contents(&trees[i]));
        Subject { db, trees, watching, seen, open }
    }

    fn contents(&self) -> [BTreeMap<IVec, IVec>; 2] {
        [contents(&self.trees[0]), contents(&self.trees[1])]
    }

    /// What the subscribers were told leads to what is there.
    fn was_told(&mut self, what: &str) {
        for (subscriber, seen) in self.watching.iter_mut().zip(&mut self.seen) {
            while let Ok(event) = subscriber.next_timeout(Duration::ZERO) {
                match event {
                    Event::Insert { key, value } => drop(seen.insert(key, value)),
                    Event::Remove { key } => drop(seen.remove(&key)),
                }
            }
        }
        assert!(self.seen == self.contents(), "{what}: the subscribers were told something else");
    }
}

impl Subject {
    /// Drops the last handles: if one was left behind somewhere, it stays open.
    fn close(self, what: &str) {
        let open = Arc::clone(&self.open);
        drop(self);
        assert_eq!(Arc::strong_count(&open), 1, "{what}: the database stays open");
    }
}

fn contents(tree: &Tree) -> BTreeMap<IVec, IVec> {
    tree.iter().collect::<Result<_>>().expect("readable")
}

type Operation = (&'static str, fn(&Subject, u64) -> Result<()>);

/// All that call code of the user, with a number that makes them do different things.
const OPERATIONS: [Operation; 20] = [
    ("insert", |s, n| s.trees[0].insert(key(n), value(n)).map(drop)),
    ("remove", |s, n| s.trees[0].remove(key(n / 2)).map(drop)),
    ("get", |s, n| s.trees[0].get(key(n)).map(drop)),
    ("contains_key", |s, n| s.trees[0].contains_key(key(n)).map(drop)),
    ("get_lt", |s, n| s.trees[0].get_lt(key(n)).map(drop)),
    ("get_gt", |s, n| s.trees[0].get_gt(key(n)).map(drop)),
    ("compare_and_swap", |s, n| {
        let old = s.trees[0].get(key(n))?.map(|bytes| Mine(bytes.to_vec()));
        s.trees[0].compare_and_swap(key(n), old, Some(value(n + 1))).map(drop)
    }),
    ("compare_and_swap that fails", |s, n| {
        s.trees[0].compare_and_swap(key(n), Some(Mine(vec![1, 2, 3])), Some(value(n))).map(drop)
    }),
    ("update_and_fetch", |s, n| {
        let update = |old: Option<&[u8]>| {
            call();
            old.is_none_or(|old| old.len() < 100).then(|| value(n))
        };
        s.trees[0].update_and_fetch(key(n), update).map(drop)
    }),
    ("fetch_and_update", |s, n| {
        let update = |_: Option<&[u8]>| {
            call();
            Some(value(n + 2))
        };
        s.trees[0].fetch_and_update(key(n), update).map(drop)
    }),
    ("merge", |s, n| s.trees[0].merge(key(n), Mine(vec![n as u8; 70])).map(drop)),
    ("range", |s, n| {
        s.trees[0].range(Between(key(n % 10), key(n % 10 + 15))).try_for_each(|pair| pair.map(drop))
    }),
    ("scan_prefix", |s, _| {
        s.trees[0].scan_prefix(Mine(b"key 1".to_vec())).try_for_each(|pair| pair.map(drop))
    }),
    ("batch", |s, n| {
        let mut batch = Batch::default();
        for other in 0..6 {
            batch.insert(key(n + other), value(n + other));
        }
        batch.remove(key(n + 7));
        s.trees[0].apply_batch(batch)
    }),
    ("transaction", |s, n| transaction(s, n, false)),
    ("transaction that merges", |s, n| transaction(s, n, true)),
    ("transaction that asks for a flush", |s, n| {
        let result = s.trees[0].transaction(|tree| {
            call();
            tree.insert(key(n), value(n))?;
            tree.flush();
            call();
            Ok::<_, ConflictableTransactionError<()>>(())
        });
        outcome(result)
    }),
    ("watch_prefix", |s, n| {
        drop(s.trees[0].watch_prefix(key(n)));
        Ok(())
    }),
    ("insert that wakes a subscriber", |s, n| {
        let mut subscriber = s.trees[0].watch_prefix("");
        let waker = Waker::from(Arc::new(Fused));
        let _ = Pin::new(&mut subscriber).poll(&mut Context::from_waker(&waker));
        s.trees[0].insert(key(n), value(n + 3)).map(drop)
    }),
    ("names", |s, n| {
        let tree = s.db.open_tree(Mine(format!("tree {}", n % 3).into_bytes()))?;
        tree.insert("k", "v")?;
        s.db.drop_tree(Mine(format!("tree {}", n % 3).into_bytes())).map(drop)
    }),
];

fn transaction(subject: &Subject, n: u64, merges: bool) -> Result<()> {
    let result = (&subject.trees[0], &subject.trees[1]).transaction(|(one, two)| {
        call();
        let old = one.get(key(n))?;
        one.insert(key(n + 1), value(n))?;
        call();
        two.insert(key(n), value(n + 1))?;
        // Unwinding out of here must not leave the view behind, either.
        drop(one.range(Between(key(1), key(2))));
        drop(one.scan_prefix(key(3)));
        if merges {
            two.merge(key(n + 2), Mine(vec![8; 60]))?;
            one.merge(key(n), Mine(vec![9; 60]))?;
        }
        if old.is_some() {
            two.remove(key(n + 3))?;
        }
        call();
        Ok::<_, ConflictableTransactionError<()>>(())
    });
    outcome(result)
}

fn outcome(result: std::result::Result<(), TransactionError<()>>) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(TransactionError::Storage(error)) => Err(error),
        Err(TransactionError::Abort(())) => unreachable!("nobody aborts"),
    }
}

#[test]
fn an_operation_whose_user_code_panics_is_done_or_was_never_begun() {
    let dog = Watchdog::new(Duration::from_secs(20));
    let (medium, other) = (SimStorage::new(), SimStorage::new());
    let (mut subject, mut twin) = (Subject::new(&medium), Subject::new(&other));
    let beside = subject.db.open_tree("beside").expect("opens");
    let (stop, steps) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut panics = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Relaxed: hints.
            while !stop.load(Ordering::Relaxed) {
                let step = steps.fetch_add(1, Ordering::Relaxed);
                beside.insert((step % 500).to_be_bytes(), step.to_be_bytes().as_slice()).expect("goes on");
            }
        });
        for round in 0..3 {
            for (number, (name, operation)) in OPERATIONS.iter().enumerate() {
                for at in 1..=CALLS {
                    let n = round * 1000 + at * 7 + number as u64;
                    let what = format!("{name}, call {at}, round {round}");
                    dog.begin(what.clone());
                    let before = subject.contents();
                    let answer = armed(at, || operation(&subject, n));
                    operation(&twin, n).expect("works");
                    let (found, expected) = (subject.contents(), twin.contents());
                    match answer {
                        Some(answer) => answer.unwrap_or_else(|e| panic!("{what}: {e}")),
                        None if found == expected => panics += 1,
                        None => {
                            panics += 1;
                            assert!(found == before, "{what}: half done");
                            operation(&subject, n).expect("works");
                        }
                    }
                    assert!(subject.contents() == expected, "{what}: another outcome");
                    subject.was_told(&what);
                    twin.was_told(&what);
                }
            }
        }
        let at = steps.load(Ordering::Relaxed);
        assert!(
            within(Duration::from_secs(5), || steps.load(Ordering::Relaxed) > at + 100),
            "a thread is stuck"
        );
        stop.store(true, Ordering::Relaxed);
    });
    println!("{panics} panics; {} operations beside", steps.load(Ordering::Relaxed));
    assert!(panics > 250, "{panics} panics");
    dog.begin("memory");
    gives_memory_back(&subject.db);
    check_invariants(&subject.db).expect("whole");
    let contents = subject.contents();
    subject.db.flush().expect("works");
    drop(beside);
    subject.close("all of them");
    dog.begin("opening again");
    assert!(Subject::new(&medium).contents() == contents, "another state after opening again");
}

#[test]
fn an_operation_whose_user_code_panics_leaves_no_handle() {
    let dog = Watchdog::new(Duration::from_secs(20));
    for (name, operation) in OPERATIONS {
        dog.begin(name);
        let subject = Subject::new(&SimStorage::new());
        for at in 1..=CALLS {
            let _ = armed(at, || operation(&subject, at));
        }
        subject.close(name);
    }
}

/// A guard that somebody left would hold up everything that is replaced from then on.
fn gives_memory_back(db: &Db) {
    let tree = db.open_tree("beside").expect("opens");
    let before = memory_used(db);
    for number in 0..60_000_u64 {
        tree.insert((number % 500).to_be_bytes(), vec![number as u8; 300]).expect("works");
    }
    let settled = || memory_used(db) < before + (2 << 20);
    assert!(within(Duration::from_secs(5), settled), "{before} bytes before, {} after", memory_used(db));
}

/// The thread that serves flushes has the waker called; its panic is nobody's.
#[test]
fn a_flush_whose_waker_panics_is_done() {
    let dog = Watchdog::new(Duration::from_secs(20));
    let medium = Hooked::default();
    // Slow enough that a flush is awaited.
    medium.before(|request| {
        if request.class == OpClass::Sync {
            std::thread::sleep(Duration::from_millis(3));
        }
    });
    let db = open_on(medium, &Config::new().flush_every_ms(None), Tuning::default()).expect("opens");
    struct Always(AtomicU64);
    impl Wake for Always {
        fn wake(self: Arc<Always>) {
            // Relaxed: a statistic.
            self.0.fetch_add(1, Ordering::Relaxed);
            resume_unwind(Box::new(Planned));
        }
    }
    let counted = Arc::new(Always(AtomicU64::new(0)));
    for round in 0..50_u64 {
        dog.begin(format!("round {round}"));
        db.insert("k", round.to_be_bytes().as_slice()).expect("works");
        let mut flush = Box::pin(db.flush_async());
        let waker = Waker::from(Arc::clone(&counted));
        if flush.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            continue;
        }
        // One that is woken at a good end, behind the one that panics.
        block_on(db.flush_async()).expect("works");
        let again = flush.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(again.is_ready(), "round {round}: not served");
    }
    db.insert("k", "goes on").expect("works");
    let panics = counted.0.load(Ordering::Relaxed);
    assert!(panics > 10, "{panics} panics");
}
