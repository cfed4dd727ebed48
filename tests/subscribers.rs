//! What subscribers are promised: every change, once, in the order of the writes, and no harm from slow ones.
//!
//! # How it works
//!
//! Values carry numbers that their writers got from the database, so that the order of the writes of a key is
//! known, whoever wrote. Nothing here depends on time but watchdogs. `SLED_SOAK=<n>` runs n times as much.

mod common;

use common::{RaiseOnDrop, Random, Watchdog, block_on, done, on_threads, soak, tiny, tiny_config};
use sled::testing::{SimStorage, Tuning, checkpoint, maintain, memory_used, open_on};
use sled::transaction::{TransactionError, TransactionResult, abort};
use sled::{Batch, Config, Db, Event, IVec, Result, Subscriber, Transactional, Tree};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

fn tiny_db(seed: u64, threads: bool) -> Result<Db> {
    open_on(SimStorage::new(), &tiny_config(), tiny(seed, threads))
}

fn decode(value: Option<impl AsRef<[u8]>>) -> u64 {
    value.map_or(0, |value| u64::from_be_bytes(value.as_ref()[..8].try_into().expect("eight bytes")))
}

fn encode(n: u64) -> IVec {
    IVec::from(&n.to_be_bytes())
}

fn insert(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Event {
    Event::Insert { key: key.as_ref().into(), value: value.as_ref().into() }
}

fn remove(key: impl AsRef<[u8]>) -> Event {
    Event::Remove { key: key.as_ref().into() }
}

/// Events that have arrived; the stream must not have ended.
fn arrived(subscriber: &mut Subscriber) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        match subscriber.next_timeout(Duration::ZERO) {
            Ok(event) => events.push(event),
            Err(RecvTimeoutError::Timeout) => return events,
            Err(RecvTimeoutError::Disconnected) => panic!("the stream ended"),
        }
    }
}

#[test]
fn what_changes_something_is_told_and_nothing_else() -> Result<()> {
    let db = tiny_db(0, false)?;
    db.set_merge_operator(|_: &[u8], old: Option<&[u8]>, operand: &[u8]| {
        (operand != b"remove").then(|| old.map_or(operand.to_vec(), <[u8]>::to_vec))
    });
    db.insert("before", "v")?;
    let mut all = db.watch_prefix("");
    let mut expect = |events: &[Event]| assert_eq!(arrived(&mut all), events);
    let none: Option<&[u8]> = None;
    db.insert("k", "1")?;
    db.insert("k", "2")?;
    expect(&[insert("k", "1"), insert("k", "2")]);
    db.insert("k", "2")?;
    db.remove("absent")?;
    db.get("k")?;
    db.flush()?;
    expect(&[]);
    db.remove("k")?;
    db.remove("k")?;
    expect(&[remove("k")]);
    // Swaps always tell when they happen.
    db.compare_and_swap("k", none, Some("1"))?.expect("absent");
    db.compare_and_swap("k", Some("1"), Some("1"))?.expect("the same");
    db.compare_and_swap("k", Some("2"), Some("3"))?.expect_err("another");
    db.compare_and_swap("k", Some("1"), none)?.expect("there");
    db.compare_and_swap("k", none, none)?.expect("absent");
    expect(&[insert("k", "1"), insert("k", "1"), remove("k"), remove("k")]);
    db.update_and_fetch("k", |_| Some("1"))?;
    db.fetch_and_update("k", |_| Some("1"))?;
    db.update_and_fetch("k", |_| None::<&[u8]>)?;
    db.update_and_fetch("k", |_| None::<&[u8]>)?;
    expect(&[insert("k", "1"), insert("k", "1"), remove("k"), remove("k")]);
    // So do merges, with the value that comes of them.
    db.merge("k", "1")?;
    db.merge("k", "2")?;
    db.merge("k", "remove")?;
    db.merge("k", "remove")?;
    expect(&[insert("k", "1"), insert("k", "1"), remove("k"), remove("k")]);
    db.insert("a", "1")?;
    db.insert("z", "1")?;
    db.pop_min()?;
    db.pop_max()?;
    expect(&[insert("a", "1"), insert("z", "1"), remove("a"), remove("z")]);
    db.clear()?;
    expect(&[remove("before")]);
    let large = vec![7; 100_000];
    db.insert("large", &large[..])?;
    expect(&[insert("large", &large)]);
    Ok(())
}

#[test]
fn batches_and_transactions_are_told_in_one_piece_and_in_key_order() -> Result<()> {
    let db = tiny_db(1, false)?;
    let tree = db.open_tree("tree")?;
    db.set_merge_operator(|_: &[u8], old: Option<&[u8]>, operand: &[u8]| {
        Some([old.unwrap_or_default(), operand].concat())
    });
    db.insert("same", "1")?;
    db.insert("gone", "1")?;
    let (mut first, mut second) = (db.watch_prefix(""), tree.watch_prefix(""));
    let mut batch = Batch::default();
    for (key, value) in [("z", "1"), ("a", "1"), ("m", "1"), ("same", "1"), ("a", "2")] {
        batch.insert(key, value);
    }
    batch.remove("gone");
    batch.remove("absent");
    batch.insert("back", "1");
    batch.remove("back");
    db.apply_batch(batch)?;
    let expected = [insert("a", "2"), remove("gone"), insert("m", "1"), insert("z", "1")];
    assert_eq!(arrived(&mut first), expected);
    db.apply_batch(Batch::default())?;
    done((&*db, &tree).transaction(|(a, b)| {
        a.insert("y", "1")?;
        b.insert("2", "v")?;
        a.insert("b", "1")?;
        b.insert("1", "v")?;
        a.insert("same", "1")?;
        a.remove("absent")?;
        a.remove("a")?;
        a.insert("m", "2")?;
        a.insert("m", "1")?;
        a.insert("b", "2")?;
        a.merge("n", "x")?;
        a.merge("n", "y")?;
        a.merge("same", "")?;
        Ok(())
    }))?;
    let expected = [remove("a"), insert("b", "2"), insert("n", "xy"), insert("same", "1"), insert("y", "1")];
    assert_eq!(arrived(&mut first), expected);
    assert_eq!(arrived(&mut second), [insert("1", "v"), insert("2", "v")]);
    // Nothing of those that do not commit.
    let aborted: TransactionResult<(), &str> = (&*db, &tree).transaction(|(a, b)| {
        a.insert("never", "1")?;
        b.insert("never", "1")?;
        abort("on purpose")
    });
    assert_eq!(aborted, Err(TransactionError::Abort("on purpose")));
    let runs = std::cell::Cell::new(0);
    done(db.transaction(|view| {
        runs.set(runs.get() + 1);
        view.get("conflict")?;
        view.insert("run", format!("{}", runs.get()).as_str())?;
        if runs.get() == 1 {
            db.insert("conflict", "1")?;
        }
        Ok(())
    }))?;
    assert_eq!(arrived(&mut first), [insert("conflict", "1"), insert("run", "2")]);
    assert_eq!(arrived(&mut second), []);
    Ok(())
}

#[test]
fn prefixes_choose_what_is_told() -> Result<()> {
    let db = tiny_db(2, false)?;
    let tree = db.open_tree("tree")?;
    let prefixes: [&[u8]; 8] =
        [b"", b"a", b"ab", b"b", &[0xFF], &[0xFF, 0xFF], &[0], b"a longer one than all of them"];
    let mut subscribers: Vec<(&[u8], Subscriber)> =
        prefixes.iter().map(|prefix| (*prefix, db.watch_prefix(prefix))).collect();
    let keys: [&[u8]; 10] =
        [b"", b"a", b"aa", b"ab", b"abc", b"b", &[0xFE, 0xFF], &[0xFF], &[0xFF, 0xFF, 0xFF], &[0, 0]];
    for key in keys {
        db.insert(key, "v")?;
        tree.insert(key, "not of this tree")?;
    }
    let mut batch = Batch::default();
    keys.iter().for_each(|key| batch.remove(*key));
    db.apply_batch(batch)?;
    for (prefix, subscriber) in &mut subscribers {
        let within = |key: &&&[u8]| key.starts_with(prefix);
        let mut expected: Vec<Event> = keys.iter().filter(within).map(|key| insert(key, "v")).collect();
        let mut removed: Vec<&&[u8]> = keys.iter().filter(within).collect();
        removed.sort();
        expected.extend(removed.into_iter().map(remove));
        assert_eq!(arrived(subscriber), expected, "{prefix:?}");
    }
    Ok(())
}

#[test]
fn handles_of_one_tree_share_their_subscribers() -> Result<()> {
    let db = tiny_db(3, false)?;
    let (a, b) = (db.open_tree("tree")?, db.clone().open_tree("tree")?);
    let mut of_tree = a.watch_prefix("");
    let mut of_default = db.open_tree("__sled__default")?.watch_prefix("");
    b.insert("k", "v")?;
    db.clone().insert("k", "v")?;
    assert_eq!(arrived(&mut of_tree), [insert("k", "v")]);
    assert_eq!(arrived(&mut of_default), [insert("k", "v")]);
    Ok(())
}

/// Changes a key in one of many ways; the new number must follow the old one.
fn count_up(tree: &Tree, key: &[u8], random: &mut Random) -> Result<()> {
    let next = |old: Option<&[u8]>| Some(encode(decode(old) + 1));
    match random.below(5) {
        0 => drop(tree.update_and_fetch(key, next)?),
        1 => drop(tree.fetch_and_update(key, next)?),
        2 => drop(tree.merge(key, encode(1))?),
        3 => loop {
            let old = tree.get(key)?;
            let new = next(old.as_deref());
            if tree.compare_and_swap(key, old, new)?.is_ok() {
                break;
            }
        },
        _ => done(tree.transaction(|view| {
            let old = decode(view.get(key)?);
            view.insert(key, encode(old + 1))?;
            Ok(())
        }))?,
    }
    Ok(())
}

#[test]
fn every_subscriber_sees_every_change_of_a_key_in_order() -> Result<()> {
    const WRITERS: usize = 3;
    const READERS: usize = 3;
    const KEYS: u8 = 4;
    let each = 4_000 * soak();
    let dog = Watchdog::start("order of events", 30);
    let db = tiny_db(4, true)?;
    db.set_merge_operator(|_: &[u8], old: Option<&[u8]>, operand: &[u8]| {
        Some((decode(old) + decode(Some(operand))).to_be_bytes().to_vec())
    });
    let writing = AtomicU64::new(WRITERS as u64);
    let watching: Vec<_> = (0..READERS).map(|_| std::sync::Mutex::new(db.watch_prefix("k"))).collect();
    on_threads(WRITERS + READERS, |thread| {
        let mut random = Random::new(thread as u64);
        if thread < WRITERS {
            for n in 0..each {
                let key = [b'k', u8::try_from(random.below(u64::from(KEYS))).expect("few keys")];
                count_up(&db, &key, &mut random)?;
                // Pages change their shape meanwhile, and events of others pass by.
                db.insert([b'l', random.next() as u8], vec![0; random.index(100)])?;
                if n % 1_000 == 999 {
                    if n % 2_000 == 999 { checkpoint(&db)? } else { maintain(&db)? }
                }
                dog.kick();
            }
            // Release: pairs with the Acquire below.
            writing.fetch_sub(1, Ordering::Release);
            return Ok(());
        }
        let mut subscriber = watching[thread - WRITERS].lock().expect("one thread each");
        let mut seen: BTreeMap<IVec, u64> = BTreeMap::new();
        let mut total = 0;
        loop {
            // Acquire: pairs with the Release above. Before looking: what was written by then has arrived.
            let over = writing.load(Ordering::Acquire) == 0;
            let event = match thread % 3 {
                0 => subscriber.next_timeout(Duration::from_millis(1)).ok(),
                1 => subscriber.next_timeout(Duration::ZERO).ok(),
                _ => match Pin::new(&mut *subscriber).poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(event) => Some(event.expect("the database is open")),
                    Poll::Pending => None,
                },
            };
            match event {
                Some(Event::Insert { key, value }) => {
                    let last = seen.entry(key.clone()).or_default();
                    assert_eq!(decode(Some(value)), *last + 1, "key {key:?}");
                    *last += 1;
                    total += 1;
                }
                Some(event) => panic!("nobody removes: {event:?}"),
                None if over => break,
                None => std::thread::yield_now(),
            }
        }
        assert_eq!(total, each * WRITERS as u64, "events");
        for (key, last) in seen {
            assert_eq!(decode(db.get(key)?), last);
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn events_of_commits_of_many_threads_stay_together_and_in_order() -> Result<()> {
    const WRITERS: usize = 4;
    const KEYS: u8 = 12;
    let each = 500 * soak();
    let dog = Watchdog::start("events of commits", 30);
    let db = tiny_db(5, true)?;
    let mut subscribers = [db.watch_prefix(""), db.watch_prefix("")];
    on_threads(WRITERS, |thread| {
        let mut random = Random::new(thread as u64);
        for n in 0..each {
            let stamp = encode((thread as u64) << 32 | n);
            let keys: Vec<u8> = (0..KEYS).filter(|_| random.one_in(2)).collect();
            if thread % 2 == 0 {
                let mut batch = Batch::default();
                keys.iter().rev().for_each(|key| batch.insert([*key], &stamp));
                db.apply_batch(batch)?;
            } else {
                done(db.transaction(|view| {
                    for key in keys.iter().rev() {
                        view.insert([*key], &stamp)?;
                    }
                    Ok(())
                }))?;
            }
            dog.kick();
        }
        Ok(())
    })?;
    let all = subscribers.each_mut().map(arrived);
    for events in &all {
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        let stamp = |event: &Event| match event {
            Event::Insert { value, .. } => decode(Some(value)),
            Event::Remove { .. } => panic!("nobody removes"),
        };
        let groups = events.chunk_by(|a, b| stamp(a) == stamp(b));
        for group in groups {
            assert!(group.is_sorted_by(|a, b| a.key() < b.key()), "not in key order: {group:?}");
            let (thread, n) = (stamp(&group[0]) >> 32, stamp(&group[0]) & 0xFFFF_FFFF);
            // A commit whose events are torn apart comes twice, one thread's commits come in its order.
            let before = last.insert(thread, n);
            assert!(before.is_none_or(|before| before < n), "thread {thread}: {n} after {before:?}");
        }
        // The last event of each key is its value.
        let state: BTreeMap<&IVec, u64> = events.iter().map(|event| (event.key(), stamp(event))).collect();
        for (key, value) in state {
            assert_eq!(decode(db.get(key)?), value);
        }
    }
    let per_key = |events: &[Event], key: u8| -> Vec<Event> {
        events.iter().filter(|event| *event.key() == [key]).cloned().collect()
    };
    for key in 0..KEYS {
        assert_eq!(per_key(&all[0], key), per_key(&all[1], key), "two orders of key {key}");
    }
    Ok(())
}

#[test]
fn whoever_watches_and_then_reads_misses_nothing() -> Result<()> {
    const KEYS: u8 = 8;
    let dog = Watchdog::start("watching, then reading", 30);
    let db = tiny_db(6, true)?;
    let stop = AtomicBool::new(false);
    on_threads(3, |thread| {
        let _raise = RaiseOnDrop(&stop);
        let mut random = Random::new(thread as u64);
        if thread < 2 {
            // Each key has one writer, so its values ascend.
            let mut n = 0;
            // Acquire: pairs with the Release in `RaiseOnDrop`.
            while !stop.load(Ordering::Acquire) {
                n += 1;
                let key = u8::try_from(random.below(u64::from(KEYS / 2))).expect("small") * 2 + thread as u8;
                if random.one_in(8) {
                    let mut batch = Batch::default();
                    (0..KEYS).filter(|k| k % 2 == thread as u8).for_each(|k| batch.insert([k], encode(n)));
                    db.apply_batch(batch)?;
                } else {
                    db.insert([key], encode(n))?;
                }
            }
            return Ok(());
        }
        for _ in 0..2_000 * soak() {
            let mut subscriber = db.watch_prefix("");
            let mut known: BTreeMap<IVec, u64> = BTreeMap::new();
            for pair in db.iter() {
                let (key, value) = pair?;
                known.insert(key, decode(Some(value)));
            }
            std::thread::yield_now();
            // What is there now was there when it was read, or is told; if not yet, before its write returns.
            let now: Vec<(IVec, IVec)> = db.iter().collect::<Result<_>>()?;
            let reached = |known: &BTreeMap<IVec, u64>| {
                now.iter().all(|(key, value)| known.get(key).is_some_and(|n| *n >= decode(Some(value))))
            };
            while !reached(&known) {
                let event = subscriber.next().expect("the database is open");
                let Event::Insert { key, value } = event else { panic!("nobody removes") };
                let known = known.entry(key).or_default();
                *known = decode(Some(value)).max(*known);
            }
            dog.kick();
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_subscriber_that_never_reads_blocks_nobody() -> Result<()> {
    let dog = Watchdog::start("a subscriber that never reads", 5);
    let db = tiny_db(7, true)?;
    let idle = db.watch_prefix("");
    for n in 0..5_000_u64 {
        db.insert(n.to_be_bytes(), encode(n))?;
        dog.kick();
    }
    done(db.transaction(|view| {
        view.insert("transaction", "v")?;
        Ok(())
    }))?;
    let mut batch = Batch::default();
    batch.insert("batch", "v");
    db.apply_batch(batch)?;
    let mut late = db.watch_prefix("");
    db.flush()?;
    dog.kick();
    // From a third thread, while somebody writes.
    on_threads(2, |thread| {
        if thread == 0 {
            return (0..1_000_u64).try_for_each(|n| db.insert(n.to_be_bytes(), "x").map(drop));
        }
        for _ in 0..100 {
            drop(db.watch_prefix(""));
        }
        Ok(())
    })?;
    let mut idle = idle;
    for n in 0..5_000_u64 {
        assert_eq!(idle.next(), Some(insert(n.to_be_bytes(), n.to_be_bytes())));
    }
    assert_eq!((idle.next(), idle.next()), (Some(insert("transaction", "v")), Some(insert("batch", "v"))));
    drop(idle);
    assert_eq!(arrived(&mut late).len(), 1_000);
    Ok(())
}

#[test]
fn a_subscriber_that_lags_too_far_behind_is_told_so() -> Result<()> {
    const LIMIT: u64 = 32 << 20;
    let dog = Watchdog::start("lagging behind", 60);
    let db = open_on(SimStorage::new(), &Config::new().flush_every_ms(None), Tuning::default())?;
    let (mut slow, mut quick) = (db.watch_prefix(""), db.watch_prefix("k"));
    let other = db.watch_prefix("other");
    let value = |n: u64| vec![n as u8; 100_000];
    let writes = 500_u64;
    for n in 0..writes {
        db.insert([b"k", &n.to_be_bytes()[..]].concat(), value(n))?;
        assert!(quick.next_timeout(Duration::ZERO).is_ok());
        if n * 100_000 < LIMIT / 2 {
            assert!(!slow.lagged(), "after {n} writes");
        }
        dog.kick();
    }
    assert!(!quick.lagged() && !other.lagged(), "those that have nothing waiting");
    // What comes is the beginning, without a hole; then the stream ends for good.
    let mut got = 0;
    for event in slow.by_ref() {
        assert_eq!(event, insert([b"k", &u64::to_be_bytes(got)[..]].concat(), value(got)));
        got += 1;
        dog.kick();
    }
    assert!(slow.lagged(), "after {got} events");
    assert!(got < writes && got * 100_000 <= LIMIT + (1 << 20), "{got} events were kept");
    db.insert("k", "later")?;
    assert_eq!(slow.next(), None);
    assert_eq!(slow.next_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected));
    assert_eq!(block_on(&mut slow), None);
    assert_eq!(quick.next(), Some(insert("k", "later")), "the others go on");
    // Many small events fill it too.
    let lazy = db.watch_prefix("");
    let mut n = 0_u64;
    while !lazy.lagged() {
        db.insert("small", encode(n))?;
        n += 1;
        assert!(n < LIMIT, "no limit on the number of events");
        if n.is_multiple_of(10_000) {
            dog.kick();
        }
    }
    Ok(())
}

#[test]
fn the_stream_ends_with_its_tree() -> Result<()> {
    let dog = Watchdog::start("ends of streams", 10);
    let db = tiny_db(8, true)?;
    for end in 0..3 {
        let name = format!("tree {end}");
        let tree = db.open_tree(&name)?;
        let mut subscriber = tree.watch_prefix("");
        tree.insert("k", "v")?;
        tree.insert("l", "v")?;
        db.drop_tree(&name)?;
        // What is waiting comes first, also by handles that outlive the tree.
        assert_eq!(subscriber.next(), Some(insert("k", "v")));
        assert_eq!(subscriber.next_timeout(Duration::ZERO), Ok(insert("l", "v")));
        for _ in 0..3 {
            match end {
                0 => assert_eq!(subscriber.next(), None),
                1 => assert_eq!(
                    subscriber.next_timeout(Duration::from_secs(100)),
                    Err(RecvTimeoutError::Disconnected)
                ),
                _ => assert_eq!(block_on(&mut subscriber), None),
            }
        }
        assert!(!subscriber.lagged());
        // A new tree of that name has subscribers of its own; one of the old tree ends at once.
        let again = db.open_tree(&name)?;
        let mut of_new = again.watch_prefix("");
        again.insert("new", "v")?;
        assert_eq!(of_new.next(), Some(insert("new", "v")));
        assert_eq!(subscriber.next(), None);
        assert_eq!(tree.watch_prefix("").next(), None, "of a tree that is gone");
        dog.kick();
    }
    Ok(())
}

#[test]
fn the_stream_ends_with_the_database() -> Result<()> {
    let dog = Watchdog::start("streams of a closed database", 10);
    for kind in 0..3 {
        let medium = SimStorage::new();
        let db = open_on(medium.clone(), &tiny_config(), tiny(9, true))?;
        let tree = db.open_tree("tree")?;
        let (mut of_db, mut of_tree) = (db.watch_prefix(""), tree.watch_prefix(""));
        db.insert("k", "v")?;
        tree.insert("k", "v")?;
        std::thread::scope(|scope| {
            // One that is waiting when it happens.
            let waiting = scope.spawn(|| {
                let mut events = Vec::new();
                loop {
                    let event = match kind {
                        0 => of_db.next(),
                        1 => of_db.next_timeout(Duration::from_secs(100)).ok(),
                        _ => block_on(&mut of_db),
                    };
                    match event {
                        Some(event) => events.push(event),
                        None => return events,
                    }
                }
            });
            for _ in 0..50 {
                std::thread::yield_now();
            }
            // A subscriber does not keep the database open; a handle of a tree does.
            drop(db);
            tree.insert("l", "v").expect("open");
            drop(tree);
            assert_eq!(waiting.join().expect("no panic"), [insert("k", "v")]);
        });
        assert_eq!(of_tree.next(), Some(insert("k", "v")));
        assert_eq!(of_tree.next(), Some(insert("l", "v")));
        assert_eq!((of_tree.next(), of_tree.next()), (None, None));
        let again = open_on(medium, &tiny_config(), tiny(9, true))?;
        again.insert("k", "w")?;
        assert_eq!((of_tree.next(), again.len()), (None, 1));
        dog.kick();
    }
    Ok(())
}

#[test]
fn waiting_with_a_timeout_can_be_repeated() -> Result<()> {
    let dog = Watchdog::start("timeouts", 10);
    let db = tiny_db(10, true)?;
    let mut subscriber = db.watch_prefix("");
    for n in 0..50_u64 {
        assert_eq!(subscriber.next_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
        // What is not told leaves nothing behind.
        db.remove("absent")?;
        db.insert("k", encode(n))?;
        db.insert("k", encode(n))?;
        db.compare_and_swap("k", Some("wrong"), Some("x"))?.expect_err("another value");
        assert_eq!(subscriber.next_timeout(Duration::ZERO), Ok(insert("k", n.to_be_bytes())));
        assert_eq!(subscriber.next_timeout(Duration::from_micros(n)), Err(RecvTimeoutError::Timeout));
        dog.kick();
    }
    // A time that no clock reaches.
    db.insert("k", "now")?;
    assert_eq!(subscriber.next_timeout(Duration::MAX), Ok(insert("k", "now")));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| subscriber.next_timeout(Duration::MAX));
        std::thread::yield_now();
        db.insert("k", "later").expect("open");
        assert_eq!(waiting.join().expect("no panic"), Ok(insert("k", "later")));
    });
    Ok(())
}

/// A waker that unparks a thread, and counts.
struct Counting {
    thread: std::thread::Thread,
    wakes: AtomicU64,
}

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        // Release: pairs with the Acquire of whoever waits for it.
        self.wakes.fetch_add(1, Ordering::Release);
        self.thread.unpark();
    }
}

impl Counting {
    fn new() -> Arc<Counting> {
        Arc::new(Counting { thread: std::thread::current(), wakes: AtomicU64::new(0) })
    }
}

/// Polls, with a new waker each time, and sleeps until the waker of the last poll was woken.
fn next_by_waker(subscriber: &mut Subscriber) -> Option<Event> {
    loop {
        let counting = Counting::new();
        let waker = Waker::from(Arc::clone(&counting));
        if let Poll::Ready(event) = Pin::new(&mut *subscriber).poll(&mut Context::from_waker(&waker)) {
            return event;
        }
        // Acquire: pairs with the Release in `wake`. A wake-up that is lost is a hang.
        while counting.wakes.load(Ordering::Acquire) == 0 {
            std::thread::park();
        }
    }
}

#[test]
fn no_wake_up_is_lost() -> Result<()> {
    let dog = Watchdog::start("wake-ups", 10);
    let db = tiny_db(11, true)?;
    let rounds = 10_000 * soak();
    let asked = AtomicU64::new(0);
    let subscriber = std::sync::Mutex::new(db.watch_prefix("k"));
    on_threads(2, |thread| {
        let mut random = Random::new(thread as u64);
        if thread == 0 {
            // Always one event, exactly when the other one is about to wait for it, or a little later.
            for n in 1..=rounds {
                // Acquire: pairs with the Release below.
                while asked.load(Ordering::Acquire) < n {
                    std::hint::spin_loop();
                    std::thread::yield_now();
                }
                (0..random.below(300)).for_each(|_| std::hint::spin_loop());
                db.insert("k", encode(n))?;
            }
            return Ok(());
        }
        let mut subscriber = subscriber.lock().expect("one thread");
        for n in 1..=rounds {
            // Release: pairs with the Acquire above.
            asked.store(n, Ordering::Release);
            (0..random.below(300)).for_each(|_| std::hint::spin_loop());
            let event = match n % 4 {
                0 => block_on(&mut *subscriber),
                1 => subscriber.next(),
                2 => subscriber.next_timeout(Duration::from_secs(100)).ok(),
                _ => next_by_waker(&mut subscriber),
            };
            assert_eq!(event, Some(insert("k", n.to_be_bytes())));
            dog.kick();
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn the_waker_of_the_last_poll_is_woken() -> Result<()> {
    let db = tiny_db(12, false)?;
    let mut subscriber = db.watch_prefix("");
    let wakers: Vec<Arc<Counting>> = (0..3).map(|_| Counting::new()).collect();
    let mut poll = |n: usize| {
        let waker = Waker::from(Arc::clone(&wakers[n]));
        Pin::new(&mut subscriber).poll(&mut Context::from_waker(&waker))
    };
    // Acquire: pairs with the Release in `wake`.
    let woken = |n: usize| wakers[n].wakes.load(Ordering::Acquire);
    assert_eq!((poll(0), poll(1), poll(2)), (Poll::Pending, Poll::Pending, Poll::Pending));
    db.insert("k", "1")?;
    assert!(woken(2) >= 1, "the last one is not woken");
    assert_eq!(poll(0), Poll::Ready(Some(insert("k", "1"))));
    assert_eq!(poll(0), Poll::Pending);
    // By every kind of write, and not by what is not told.
    let before = woken(0);
    db.insert("k", "1")?;
    db.remove("absent")?;
    assert_eq!(poll(0), Poll::Pending);
    let mut batch = Batch::default();
    batch.insert("k", "2");
    batch.insert("l", "2");
    db.apply_batch(batch)?;
    assert!(woken(0) > before);
    assert_eq!(
        (poll(1), poll(1)),
        (Poll::Ready(Some(insert("k", "2"))), Poll::Ready(Some(insert("l", "2"))))
    );
    assert_eq!(poll(1), Poll::Pending);
    let before = woken(1);
    done(db.transaction(|view| {
        view.remove("k")?;
        Ok(())
    }))?;
    assert!(woken(1) > before);
    assert_eq!((poll(1), poll(1)), (Poll::Ready(Some(remove("k"))), Poll::Pending));
    // The end wakes, too.
    let before = woken(1);
    drop(db);
    assert!(woken(1) > before);
    assert_eq!((poll(2), poll(2)), (Poll::Ready(None), Poll::Ready(None)));
    Ok(())
}

#[test]
fn a_waker_that_panics_or_writes_harms_nobody_else() -> Result<()> {
    struct Writes(Db, AtomicBool);
    impl Wake for Writes {
        fn wake(self: Arc<Self>) {
            // Relaxed: one thread.
            if !self.1.swap(true, Ordering::Relaxed) {
                self.0.insert("by the waker", "v").expect("open");
            }
        }
    }
    let dog = Watchdog::start("wakers that write", 5);
    let db = tiny_db(13, true)?;
    let (mut first, mut second) = (db.watch_prefix(""), db.watch_prefix(""));
    let waker = Waker::from(Arc::new(Writes(db.clone(), AtomicBool::new(false))));
    assert_eq!(Pin::new(&mut first).poll(&mut Context::from_waker(&waker)), Poll::Pending);
    db.insert("k", "v")?;
    dog.kick();
    let expected = [insert("k", "v"), insert("by the waker", "v")];
    assert_eq!((arrived(&mut first), arrived(&mut second)), (expected.to_vec(), expected.to_vec()));
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            std::panic::panic_any("on purpose");
        }
    }
    let waker = Waker::from(Arc::new(Panics));
    assert_eq!(Pin::new(&mut first).poll(&mut Context::from_waker(&waker)), Poll::Pending);
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| db.insert("x", "v")));
    dog.kick();
    // It was applied or it was not; whoever watches knows which.
    assert_eq!(db.get("x")?.is_some(), !arrived(&mut second).is_empty());
    arrived(&mut first);
    db.insert("y", "v")?;
    assert_eq!(arrived(&mut second), [insert("y", "v")]);
    assert_eq!(arrived(&mut first), [insert("y", "v")]);
    Ok(())
}

#[test]
fn subscribers_that_are_gone_leave_nothing_behind() -> Result<()> {
    let dog = Watchdog::start("many subscribers", 30);
    let db = tiny_db(14, true)?;
    let resident = || -> Option<u64> {
        let text = std::fs::read_to_string("/proc/self/statm").ok()?;
        Some(text.split(' ').nth(1)?.parse::<u64>().ok()? * 4096)
    };
    let mut make = |n: u64| -> Result<()> {
        let long = [&n.to_be_bytes()[..], &[7; 4_000]].concat();
        let subscribers = [db.watch_prefix(&long), db.watch_prefix(n.to_be_bytes()), db.watch_prefix("")];
        db.insert("k", encode(n))?;
        if n.is_multiple_of(2) {
            drop(subscribers);
        } else {
            std::thread::scope(|scope| scope.spawn(|| drop(subscribers)).join()).expect("no panic");
        }
        dog.kick();
        Ok(())
    };
    (0..1_000).try_for_each(&mut make)?;
    let (before, used) = (resident(), memory_used(&db));
    (1_000..11_000).try_for_each(&mut make)?;
    if let (Some(before), Some(after)) = (before, resident()) {
        // All prefixes would be 40 MB. A sanitizer keeps what was freed.
        assert!(cfg!(crossbeam_sanitize) || after < before + (24 << 20), "{before} bytes, then {after}");
    }
    assert!(memory_used(&db) < used + (1 << 20));
    // Nobody is left to be told.
    let mut last = db.watch_prefix("");
    db.insert("k", "end")?;
    assert_eq!(last.next(), Some(insert("k", "end")));
    Ok(())
}

#[test]
fn subscribers_come_and_go_while_threads_write() -> Result<()> {
    let dog = Watchdog::start("subscribers that come and go", 30);
    let db = tiny_db(15, true)?;
    let stop = AtomicBool::new(false);
    on_threads(4, |thread| {
        let _raise = RaiseOnDrop(&stop);
        let mut random = Random::new(thread as u64);
        if thread < 2 {
            let mut n = 0;
            // Acquire: pairs with the Release in `RaiseOnDrop`.
            while !stop.load(Ordering::Acquire) {
                n += 1;
                let key = [b'a' + thread as u8, random.below(4) as u8];
                match random.below(4) {
                    0 => drop(db.remove(key)?),
                    1 => done(db.transaction(|view| {
                        view.insert(key, encode(n))?;
                        view.insert([key[0], 9], encode(n))?;
                        Ok(())
                    }))?,
                    _ => drop(db.insert(key, encode(n))?),
                }
            }
            return Ok(());
        }
        let mut open: Vec<(Subscriber, u64)> = Vec::new();
        for _ in 0..3_000 * soak() {
            match random.below(3) {
                0 => open.push((db.watch_prefix([b'a' + random.below(2) as u8]), 0)),
                1 if !open.is_empty() => drop(open.swap_remove(random.index(open.len()))),
                _ => {
                    for (subscriber, last) in &mut open {
                        // One writer per prefix: its numbers ascend, and a transaction has one number.
                        for event in arrived(subscriber) {
                            if let Event::Insert { value, .. } = event {
                                let n = decode(Some(value));
                                assert!(n >= *last, "{n} after {last}");
                                *last = n;
                            }
                        }
                    }
                }
            }
            if open.len() > 20 {
                open.clear();
            }
            dog.kick();
        }
        Ok(())
    })?;
    Ok(())
}
