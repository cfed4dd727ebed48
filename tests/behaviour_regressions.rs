//! Ways in which a call once hung, ran its closure for ever, panicked, broke an order, or kept space.
//!
//! Each test makes the situation itself: closures that use the database while they decide, wakers that do
//! what they like, segments that are cleaned while their tree goes away, keys of megabytes, bounds of every
//! shape. Where nothing can be observed but that a call does not return, a watchdog ends the process.

mod common_durability;

use common_durability::{Hooked, Random, Watchdog, block_on, bytes_of, soak, within};
use sled::testing::{
    OpClass, SimStorage, Tuning, check_invariants, checkpoint, counters, maintain, open_on, space,
};
use sled::{Config, Db, IVec};
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

fn quiet() -> Config {
    Config::new().flush_every_ms(None)
}

fn in_memory() -> Db {
    open_on(SimStorage::new(), &quiet(), Tuning::default()).expect("works")
}

/// Calls of a closure in an update of `counter`, while `meanwhile` is done in each call.
fn calls_of_an_update(db: &Db, mut meanwhile: impl FnMut(u64)) -> u64 {
    let mut calls = 0;
    db.update_and_fetch("counter", |_| {
        calls += 1;
        assert!(calls < 100, "called over and over, though nobody else writes the key");
        meanwhile(calls);
        Some(b"x".to_vec())
    })
    .expect("works");
    calls
}

/// The closure fills the leaf that its own key is in, so that the frame it looked at is never the newest.
#[test]
fn a_closure_that_writes_beside_its_own_key_ends() {
    let db = in_memory();
    let calls = calls_of_an_update(&db, |call| {
        for i in 0..17 {
            db.insert(format!("log{i:02}"), format!("{call}")).unwrap();
        }
    });
    assert!(calls <= 2, "{calls} calls");
    assert_eq!(db.get("counter").unwrap(), Some("x".into()));
}

/// The same by replacing a big value, which folds the leaf at once.
#[test]
fn a_closure_that_replaces_a_big_value_beside_its_own_key_ends() {
    let db = in_memory();
    db.insert("snapshot", bytes_of(0, 5000)).unwrap();
    let calls = calls_of_an_update(&db, |call| {
        db.insert("snapshot", bytes_of(call, 5000)).unwrap();
    });
    assert!(calls <= 2, "{calls} calls");
}

/// The closure reads a table that does not fit into memory, so that its own leaf is evicted meanwhile.
#[test]
fn a_closure_that_reads_more_than_the_cache_holds_ends() {
    let config = quiet().cache_capacity(256 << 10);
    let db = open_on(SimStorage::new(), &config, Tuning::default()).unwrap();
    for i in 0..8000_u32 {
        db.insert(i.to_be_bytes(), bytes_of(u64::from(i), 200)).unwrap();
    }
    let calls = calls_of_an_update(&db, |_| assert!(db.iter().count() >= 8000));
    assert!(calls <= 10, "{calls} calls");
}

/// Others write neighbours of the key all the time. Nobody writes the key, so one call has to do.
#[test]
fn a_slow_closure_is_called_once_when_only_neighbours_change() {
    let db = in_memory();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut i = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                i += 1;
                db.insert([b'n', (i % 7) as u8], i.to_be_bytes().to_vec()).unwrap();
            }
        });
        let updated = catch_unwind(AssertUnwindSafe(|| {
            (0..5).map(|_| calls_of_an_update(&db, |_| std::thread::sleep(Duration::from_millis(2)))).max()
        }));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(updated.unwrap_or_else(|panic| resume_unwind(panic)), Some(1));
    });
}

/// But when the key itself changes, the closure sees the new value.
#[test]
fn a_closure_is_called_again_when_its_own_key_changed() {
    let db = in_memory();
    let mut seen = Vec::new();
    db.update_and_fetch("k", |old| {
        seen.push(old.map(<[u8]>::to_vec));
        if seen.len() < 3 {
            db.insert("k", vec![seen.len() as u8]).unwrap();
        }
        Some("end")
    })
    .unwrap();
    assert_eq!(seen, [None, Some(vec![1]), Some(vec![2])]);
    assert_eq!(db.get("k").unwrap(), Some("end".into()));
}

/// The image of a big value that was written for an attempt that failed, then the closure panics: it belongs
/// to nobody.
#[test]
fn panics_in_closures_leave_no_image_behind() {
    let db = open_on(SimStorage::new(), &quiet(), Tuning { threads: false, ..Tuning::default() }).unwrap();
    db.insert("k", "v").unwrap();
    for i in 0..100_u32 {
        let mut calls = 0;
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            db.update_and_fetch("k", |_| {
                calls += 1;
                if calls == 2 {
                    resume_unwind(Box::new("as planned"));
                }
                db.insert("k", i.to_be_bytes().to_vec()).unwrap();
                Some(bytes_of(0, 5000))
            })
        }));
        assert!(panicked.is_err());
    }
    for _ in 0..3 {
        checkpoint(&db).unwrap();
    }
    assert_eq!(db.get("k").unwrap(), Some(IVec::from(&99_u32.to_be_bytes())));
    let (live, used, _) = space(&db);
    assert!(live < 100_000, "{live} bytes live of {used}");
}

/// A tree is dropped at the n-th read of a cleaning that moves its images, or those of its big values.
#[test]
fn a_tree_may_be_dropped_while_its_segments_are_cleaned() {
    let dog = Watchdog::new(Duration::from_secs(10));
    for (values, keys) in [(60_usize, 2000_u32), (5000, 40)] {
        for read in (1..40).step_by(3) {
            dog.begin(format!("values of {values} bytes, dropped at read {read}"));
            drop_at_a_read_of_cleaning(values, keys, read);
        }
    }
}

fn drop_at_a_read_of_cleaning(values: usize, keys: u32, read: u32) {
    let medium = Hooked::default();
    let config = quiet().cache_capacity(64 << 10);
    let tuning = Tuning {
        threads: false,
        leaf_bytes: 512,
        fanout: 8,
        segment: 16384,
        redo_budget: 1 << 30,
        ..Tuning::default()
    };
    let db = open_on(medium.clone(), &config, tuning).expect("works");
    let tree = db.open_tree("t").expect("works");
    for i in 0..keys {
        tree.insert(i.to_be_bytes(), bytes_of(u64::from(i), values)).expect("works");
    }
    checkpoint(&db).expect("works");
    for i in (0..keys).filter(|i| i / 20 % 2 == 0 || values > 1000 && i % 3 != 2) {
        tree.remove(i.to_be_bytes()).expect("works");
    }
    drop(tree);

    let (begin, begun) = mpsc::channel();
    let (end, ended) = mpsc::channel();
    let (begin, ended) = (Mutex::new(begin), Mutex::new(ended));
    let reads = AtomicU64::new(0);
    medium.before(move |request| {
        if request.class == OpClass::Read && reads.fetch_add(1, Ordering::SeqCst) + 1 == u64::from(read) {
            let _ = begin.lock().expect("not poisoned").send(());
            // The dropper may have to wait for this thread.
            let _ = ended.lock().expect("not poisoned").recv_timeout(Duration::from_millis(20));
        }
    });
    // As a reader that sleeps would: the dropped tree is freed later.
    let pinned = sled::pin();
    std::thread::scope(|scope| {
        let db = &db;
        let dropper = scope.spawn(move || {
            // Or there are not so many reads, and the hook is gone.
            let _ = begun.recv();
            let dropped = db.drop_tree("t");
            let _ = end.send(());
            dropped
        });
        let cleaned = checkpoint(db);
        medium.unhook();
        assert_eq!(dropper.join().expect("works"), Ok(true));
        cleaned.expect("works");
    });
    drop(pinned);
    // Other tests of this process hold the epoch up now and then.
    let freed = || {
        maintain(&db).expect("works");
        checkpoint(&db).expect("works");
        space(&db).0 < 20_000
    };
    assert!(within(Duration::from_secs(5), freed), "{} bytes live", space(&db).0);
    db.insert("a", "b").expect("works");
    check_invariants(&db).expect("works");
}

/// Identifiers ascend over many threads, while checkpoints note how far they are, and over a reopening.
#[test]
fn identifiers_never_repeat() {
    let medium = SimStorage::new();
    let config = quiet().idgen_persist_interval(3);
    let open = || open_on(medium.clone(), &config, Tuning { threads: false, ..Tuning::default() }).unwrap();
    let mut all: Vec<u64> = Vec::new();
    for _ in 0..3 {
        let db = open();
        let before = all.iter().max().copied();
        let new: Vec<u64> = std::thread::scope(|scope| {
            let ids = || (0..200).map(|_| db.generate_id().unwrap()).collect::<Vec<_>>();
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(ids)).collect();
            for _ in 0..20 {
                checkpoint(&db).unwrap();
            }
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert!(new.iter().all(|id| Some(*id) > before), "after reopening they go on");
        all.extend(new);
    }
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task of a small executor: what is done when it is woken is up to the test.
struct Task {
    work: Mutex<Option<Work>>,
    woken: fn(&Arc<Task>),
}

impl Task {
    fn new(work: impl Future<Output = ()> + Send + 'static, woken: fn(&Arc<Task>)) -> Arc<Task> {
        Arc::new(Task { work: Mutex::new(Some(Box::pin(work))), woken })
    }

    /// Polls it; a finished one is let go.
    fn poll(self: &Arc<Task>) -> Poll<()> {
        let waker = Waker::from(Arc::clone(self));
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(future) = work.as_mut() else { return Poll::Ready(()) };
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            *work = None;
        }
        polled
    }
}

impl Wake for Task {
    fn wake(self: Arc<Task>) {
        (self.woken)(&self);
    }
}

/// A medium whose syncs take so long that a task is pending before its flush is done.
fn slow_medium() -> Hooked {
    let medium = Hooked::default();
    medium.before(|request| {
        if request.class == OpClass::Sync {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    medium
}

/// The thread that serves flushes goes on, and writes are not refused.
#[test]
fn a_waker_that_panics_harms_nobody_else() {
    let db = open_on(slow_medium(), &quiet(), Tuning::default()).unwrap();
    db.insert("k", "v").unwrap();
    let (other, third) = (db.clone(), db.clone());
    let flush = async move { drop(other.flush_async().await) };
    let task = Task::new(flush, |_| resume_unwind(Box::new("the executor is gone")));
    assert!(task.poll().is_pending());
    // Served in the same round, behind the one that panics.
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(block_on(third.flush_async())));
    assert!(receiver.recv_timeout(Duration::from_secs(5)).unwrap().is_ok());
    db.insert("k", "w").unwrap();
    let (sender, receiver) = mpsc::channel();
    let other = db.clone();
    std::thread::spawn(move || sender.send(block_on(other.flush_async())));
    assert!(receiver.recv_timeout(Duration::from_secs(5)).unwrap().is_ok());
}

/// Nobody but the waker has the task, and nobody but the task has the database: it is closed on its own
/// thread.
#[test]
fn a_waker_may_own_the_last_handle() {
    let medium = slow_medium();
    let db = open_on(medium.clone(), &quiet(), Tuning::default()).unwrap();
    db.insert("k", "v").unwrap();
    let work = async move {
        let _ = db.flush_async().await;
    };
    let task = Task::new(work, |_| ());
    assert!(task.poll().is_pending());
    let weak = Arc::downgrade(&task);
    drop(task);
    assert!(within(Duration::from_secs(5), || weak.strong_count() == 0), "the task is never let go");
    let open = || open_on(medium.clone(), &quiet(), Tuning::default()).unwrap();
    assert_eq!(open().get("k").unwrap(), Some("v".into()));
}

/// Some executors poll where they are woken, which is on the thread that serves flushes. The task writes,
/// flushes again and drops the last handle there.
#[test]
fn a_waker_may_poll_inline() {
    let medium = slow_medium();
    let db = open_on(medium.clone(), &quiet(), Tuning::default()).unwrap();
    let (sender, receiver) = mpsc::channel();
    let work = async move {
        for i in 0..5_u8 {
            db.insert([i], "v").unwrap();
            db.flush_async().await.unwrap();
            db.flush().unwrap();
        }
        drop(db);
        sender.send(()).unwrap();
    };
    let task = Task::new(work, |task| {
        let _ = task.poll();
    });
    assert!(task.poll().is_pending());
    drop(task);
    receiver.recv_timeout(Duration::from_secs(10)).expect("the task comes to its end");
    let db = open_on(medium, &quiet(), Tuning::default()).unwrap();
    assert_eq!(db.len(), 5);
}

/// Leaves hold at least one record however long it is, and separators of megabytes are kept short.
#[test]
fn keys_of_megabytes_are_keys() {
    let dog = Watchdog::new(Duration::from_secs(30));
    let db = in_memory();
    let key = |i: u32, len: usize| [&vec![0xAB; len][..], &i.to_be_bytes()].concat();
    let sizes = [(64 << 10, 150_u32), (4 << 20, 6)];
    for (len, count) in sizes {
        dog.begin(format!("keys of {len} bytes"));
        for i in 0..count {
            db.insert(key(i, len), i.to_be_bytes()).unwrap();
        }
        checkpoint(&db).unwrap();
        for i in 0..count {
            assert_eq!(db.get(key(i, len)).unwrap(), Some(IVec::from(&i.to_be_bytes())));
        }
    }
    dog.begin("a key of 100 MB that is not there");
    assert_eq!(db.remove(vec![7; 100_000_000]), Ok(None));
    dog.begin("walks");
    assert_eq!(db.len(), 156);
    check_invariants(&db).unwrap();
    assert_eq!(db.scan_prefix(vec![0xAB; 4 << 20]).count(), 6);
}

type Keys = Vec<Vec<u8>>;

/// A key near others: runs of equal bytes, of lengths around those of prefixes, and a tail of extremes.
fn near_key(random: &mut Random) -> Vec<u8> {
    let (lengths, bytes, tails) = ([0, 1, 7, 8, 9, 20], [0, 0xFF, 7], [0, 1, 0xFE, 0xFF]);
    let mut key = vec![bytes[random.below(3) as usize]; lengths[random.below(6) as usize]];
    for _ in 0..random.below(3) {
        key.push(tails[random.below(4) as usize]);
    }
    key
}

fn near_bound(random: &mut Random) -> Bound<Vec<u8>> {
    let key = near_key(random);
    match random.below(3) {
        0 => Bound::Unbounded,
        1 => Bound::Included(key),
        _ => Bound::Excluded(key),
    }
}

/// Unlike the one of the map, a range here may be inverted.
fn expected(model: &BTreeMap<Vec<u8>, u32>, (low, high): &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> Keys {
    let above = |key: &Vec<u8>| match low {
        Bound::Unbounded => true,
        Bound::Included(low) => key >= low,
        Bound::Excluded(low) => key > low,
    };
    let below = |key: &Vec<u8>| match high {
        Bound::Unbounded => true,
        Bound::Included(high) => key <= high,
        Bound::Excluded(high) => key < high,
    };
    model.keys().filter(|key| above(key) && below(key)).cloned().collect()
}

fn keys(pairs: impl Iterator<Item = sled::Result<(IVec, IVec)>>) -> Keys {
    pairs.map(|pair| pair.expect("works").0.to_vec()).collect()
}

/// Keys from the front and the back in any order, put together.
fn from_both_ends(mut iter: sled::Iter, random: &mut Random) -> Keys {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    loop {
        let (next, into) =
            if random.below(2) == 0 { (iter.next(), &mut front) } else { (iter.next_back(), &mut back) };
        let Some(pair) = next else { break };
        into.push(pair.expect("works").0.to_vec());
    }
    back.reverse();
    [front, back].concat()
}

/// Ranges, prefixes and neighbours agree with a map for bounds of every shape, inverted and empty ones
/// included, over leaves that split and merge all the time.
#[test]
fn bounds_of_every_shape_agree_with_a_map() {
    let tuning = Tuning { threads: false, leaf_bytes: 128, fanout: 3, ..Tuning::default() };
    let db = open_on(SimStorage::new(), &quiet(), tuning).unwrap();
    let mut model = BTreeMap::new();
    let mut random = Random(9);
    for step in 0..9000 * soak() as u32 {
        let key = near_key(&mut random);
        let old = if random.below(2) == 0 {
            assert_eq!(db.remove(&key).unwrap().is_some(), model.remove(&key).is_some());
            continue;
        } else {
            let old = db.insert(&key, step.to_be_bytes()).unwrap();
            (old, model.insert(key, step))
        };
        assert_eq!(old.0, old.1.map(|old| IVec::from(&old.to_be_bytes())));
        let bounds = (near_bound(&mut random), near_bound(&mut random));
        let want = expected(&model, &bounds);
        let range = || db.range::<Vec<u8>, _>(bounds.clone());
        assert_eq!(keys(range()), want, "{bounds:?}");
        assert_eq!(from_both_ends(range(), &mut random), want, "{bounds:?}, from both ends");
        let mut back = keys(range().rev());
        back.reverse();
        assert_eq!(back, want, "{bounds:?}, backwards");

        let at = near_key(&mut random);
        let want: Keys = model.keys().filter(|key| key.starts_with(&at)).cloned().collect();
        assert_eq!(keys(db.scan_prefix(&at)), want, "prefix {at:?}");
        let less = model.range::<Vec<u8>, _>(..&at).next_back().map(|(key, _)| key.clone());
        assert_eq!(db.get_lt(&at).unwrap().map(|pair| pair.0.to_vec()), less, "below {at:?}");
        let more = (Bound::Excluded(&at), Bound::Unbounded);
        let more = model.range::<Vec<u8>, _>(more).next().map(|(key, _)| key.clone());
        assert_eq!(db.get_gt(&at).unwrap().map(|pair| pair.0.to_vec()), more, "above {at:?}");
        assert_eq!(db.len(), model.len());
    }
    check_invariants(&db).unwrap();
}

/// Leaves that were split off are evicted before they are linked, while others split the same ones: nobody
/// may read what was there before.
#[test]
fn splits_race_with_eviction() {
    let tuning = Tuning {
        leaf_bytes: 512,
        fanout: 16,
        redo_buffer: 64 << 10,
        segment: 64 << 10,
        redo_budget: 1 << 20,
        threads: true,
    };
    let config = quiet().cache_capacity(64 << 10);
    let db = open_on(SimStorage::new(), &config, tuning).unwrap();
    let until = Instant::now() + Duration::from_secs(2 * soak());
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let db = &db;
            scope.spawn(move || {
                let dog = Watchdog::new(Duration::from_secs(10));
                let mut random = Random(thread * 77);
                let mut mine: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
                while Instant::now() < until {
                    let number = random.below(60);
                    let key = format!("{number:04}/{thread}").into_bytes();
                    dog.begin(format!("thread {thread}, key {number}"));
                    let (found, want) = match random.below(4) {
                        0 => (db.get(&key), mine.get(&key).cloned()),
                        1 => (db.remove(&key), mine.remove(&key)),
                        _ => {
                            let value = bytes_of(random.next(), 60 + random.below(68) as usize);
                            (db.insert(&key, &value[..]), mine.insert(key, value))
                        }
                    };
                    assert_eq!(found.unwrap().as_deref(), want.as_deref(), "thread {thread}, key {number}");
                }
            });
        }
    });
    let counters = counters(&db);
    assert!(counters.leaf_splits > 0 && counters.page_outs > 0, "{counters:?}");
    check_invariants(&db).unwrap();
}

/// Leaves are moved by the cleaner while the separators of their splits are still to be posted: all of it is
/// there, before and after a crash.
#[test]
fn cleaning_races_with_splits() {
    let tuning = Tuning {
        leaf_bytes: 512,
        fanout: 16,
        redo_buffer: 64 << 10,
        segment: 4096,
        redo_budget: 40 << 10,
        threads: true,
    };
    let config = quiet().cache_capacity(64 << 10);
    let medium = SimStorage::new();
    let db = open_on(medium.clone(), &config, tuning.clone()).unwrap();
    let until = Instant::now() + Duration::from_secs(2 * soak());
    std::thread::scope(|scope| {
        for thread in 0..6_u64 {
            let db = &db;
            scope.spawn(move || {
                let mut random = Random(thread * 77 + 5);
                while Instant::now() < until {
                    let group = random.below(40);
                    // Two threads split leaves far apart, one reads, the others keep memory and cleaner busy
                    // elsewhere.
                    let key = match thread {
                        0 | 1 => format!("a{group:03}/{:05}", random.below(99000)),
                        2 => {
                            db.get(format!("a{group:03}/00")).unwrap();
                            continue;
                        }
                        _ => format!("z{thread}{:04}", random.below(400)),
                    };
                    db.insert(key, bytes_of(random.next(), 60 + random.below(60) as usize)).unwrap();
                }
            });
        }
    });
    let counters = counters(&db);
    assert!(counters.cleaned_segments > 0 && counters.leaf_splits > 0, "{counters:?}");
    db.flush().unwrap();
    let all = |db: &Db| db.iter().collect::<sled::Result<Vec<_>>>().unwrap();
    let before = all(&db);
    check_invariants(&db).unwrap();
    let after = medium.crash(1, sled::testing::CrashMode::DropUnsynced);
    drop(db);
    let db = open_on(after, &config, tuning).unwrap();
    check_invariants(&db).unwrap();
    assert!(all(&db) == before, "the crash took something that was flushed");
}
