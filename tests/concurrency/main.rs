//! Many threads at once: single keys are linearizable, and nothing is lost or done twice.
//!
//! # How it works
//!
//! `linearizable` records short histories of a few keys, while a neighbour keeps the pages around them
//! splitting, merging and leaving memory, and searches an explanation of each history (`checker`). The other
//! tests let threads race for something that must add up afterwards: counters, keys popped, values replaced,
//! trees created and dropped, flushes acknowledged.

mod checker;
#[path = "../common/mod.rs"]
mod common;
mod linearizable;

use common::{RaiseOnDrop, Random, Watchdog, block_on, on_threads, tiny, tiny_config};
use sled::testing::{CrashMode, SimStorage, check_invariants, counters, open_on};
use sled::{Db, Error, IVec, Result, Tree};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A database with tiny pages, little memory and its threads running.
fn busy_db(seed: u64) -> Result<Db> {
    open_on(SimStorage::new(), &tiny_config(), tiny(seed, true))
}

fn decode(value: &[u8]) -> u64 {
    u64::from_be_bytes(value.try_into().expect("eight bytes"))
}

#[test]
fn counters_updated_by_many_threads_add_up() -> Result<()> {
    const THREADS: usize = 4;
    const UPDATES: u64 = 12_000;
    const KEYS: u64 = 3;
    let dog = Watchdog::start("counters", 30);
    let db = busy_db(1)?;
    db.set_merge_operator(|_: &[u8], old: Option<&[u8]>, operand: &[u8]| {
        Some((old.map_or(0, decode) + decode(operand)).to_be_bytes().to_vec())
    });
    let plus_one = |old: Option<&[u8]>| Some((old.map_or(0, decode) + 1).to_be_bytes().to_vec());
    let seen = on_threads(THREADS, |thread| {
        let mut random = Random::new(thread as u64);
        let mut seen = Vec::new();
        for update in 0..UPDATES {
            let key = [b'c', u8::try_from(update % KEYS).expect("few keys")];
            let new = match random.below(4) {
                0 => db.update_and_fetch(key, plus_one)?.as_deref().map_or(0, decode),
                1 => db.fetch_and_update(key, plus_one)?.as_deref().map_or(0, decode) + 1,
                2 => db.merge(key, 1_u64.to_be_bytes())?.as_deref().map_or(0, decode),
                _ => loop {
                    let old = db.get(key)?;
                    let new = old.as_deref().map_or(0, decode) + 1;
                    if db.compare_and_swap(key, old, Some(&new.to_be_bytes()))?.is_ok() {
                        break new;
                    }
                },
            };
            seen.push((key[1], new));
            dog.kick();
        }
        Ok(seen)
    })?;
    // Every thread saw other counts, and together they saw all of them.
    let mut seen = seen.concat();
    seen.sort_unstable();
    let per_key = THREADS as u64 * UPDATES / KEYS;
    let expected = (0..KEYS).flat_map(|key| (1..=per_key).map(move |n| (u8::try_from(key).expect("few"), n)));
    assert!(seen.into_iter().eq(expected), "an update was lost or made twice");
    for key in 0..KEYS {
        let key = [b'c', u8::try_from(key).expect("few keys")];
        assert_eq!(db.get(key)?.as_deref().map(decode), Some(per_key));
    }
    check_invariants(&db)
}

#[test]
fn every_value_written_is_replaced_once_or_stays() -> Result<()> {
    const THREADS: usize = 4;
    const KEYS: u64 = 40;
    let dog = Watchdog::start("replaced values", 30);
    let db = busy_db(2)?;
    let start = Instant::now();
    let stop = AtomicBool::new(false);
    let rounds = on_threads(THREADS, |thread| {
        let _raise = RaiseOnDrop(&stop);
        let mut random = Random::new(thread as u64);
        let (mut written, mut replaced) = (Vec::new(), Vec::new());
        for n in 0.. {
            // One key gets most of the writes, so that reservations collide.
            let key = if random.one_in(2) { 0 } else { random.below(KEYS) }.to_be_bytes();
            let old = if random.one_in(4) {
                db.remove(key)?
            } else {
                let value = (thread as u64) << 32 | n;
                written.push(value);
                db.insert(key, value.to_be_bytes().to_vec())?
            };
            replaced.extend(old.as_deref().map(decode));
            dog.kick();
            // Acquire: pairs with the Release in `RaiseOnDrop`; whoever has done enough stops all.
            let collided = counters(&db).aborted_reservations > 0 && n >= 20_000;
            if collided || start.elapsed() > Duration::from_secs(40) || stop.load(Ordering::Acquire) {
                break;
            }
        }
        Ok((written, replaced))
    })?;
    let (mut written, mut gone): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
    for (w, r) in rounds {
        written.extend(w);
        gone.extend(r);
    }
    for value in db.iter().values() {
        gone.push(decode(&value?));
    }
    written.sort_unstable();
    gone.sort_unstable();
    assert_eq!(written.len(), gone.len(), "values written, and replaced, removed or still there");
    assert!(written == gone, "a value was replaced twice, or lost");
    assert!(counters(&db).aborted_reservations > 0, "no reservation was ever aborted");
    check_invariants(&db)
}

#[test]
fn keys_of_different_threads_do_not_disturb_each_other() -> Result<()> {
    const THREADS: usize = 4;
    const KEYS: u32 = 4_000;
    let dog = Watchdog::start("disjoint keys", 30);
    let medium = SimStorage::new();
    let db = open_on(medium.clone(), &tiny_config(), tiny(3, true))?;
    // Neighbouring keys belong to different threads; each goes over its own ones in an order of its own.
    let key = |thread: usize, n: u32| {
        let scattered = n * 1_237 % KEYS;
        (scattered * 4 + u32::try_from(thread).expect("few threads")).to_be_bytes()
    };
    let value = |key: &[u8]| [key, &vec![key[3]; usize::from(key[3] % 50)]].concat();
    // The multiplier has no factor in common with the number of keys.
    assert_eq!((0..KEYS).map(|n| key(0, n)).collect::<BTreeSet<_>>().len(), KEYS as usize);
    on_threads(THREADS, |thread| {
        let mut random = Random::new(thread as u64);
        for n in 0..KEYS {
            let new = key(thread, n);
            assert_eq!(db.insert(new, value(&new))?, None);
            let earlier = u32::try_from(random.below(u64::from(n) + 1)).expect("at most n");
            assert!(db.contains_key(key(thread, earlier))?, "a key inserted earlier is gone");
            dog.kick();
        }
        Ok(())
    })?;
    let check = |db: &Db, kept: &dyn Fn(u32) -> bool| -> Result<()> {
        let expected = || (0..KEYS * 4).filter(|n| kept(*n)).map(u32::to_be_bytes);
        let mut forwards = db.iter();
        let mut backwards: Vec<_> = db.iter().rev().collect::<Result<_>>()?;
        for key in expected() {
            let pair = forwards.next().transpose()?;
            assert_eq!(pair, Some((IVec::from(&key), value(&key).into())));
            assert_eq!(backwards.pop(), pair);
            assert_eq!(db.get(key)?, Some(value(&key).into()));
        }
        assert!(forwards.next().is_none() && backwards.is_empty(), "keys that nobody inserted");
        assert_eq!(db.len(), expected().count());
        check_invariants(db)
    };
    check(&db, &|_| true)?;
    // Long runs of neighbours go, so that nodes are merged.
    on_threads(THREADS, |thread| {
        for n in (0..KEYS * 4).filter(|n| n % 4 == u32::try_from(thread).expect("few") && n % 1_000 >= 20) {
            assert_eq!(db.remove(n.to_be_bytes())?, Some(value(&n.to_be_bytes()).into()));
            dog.kick();
        }
        Ok(())
    })?;
    check(&db, &|n| n % 1_000 < 20)?;
    drop(db);
    let db = open_on(medium, &tiny_config(), tiny(4, true))?;
    check(&db, &|n| n % 1_000 < 20)
}

#[test]
fn popping_threads_get_every_key_exactly_once() -> Result<()> {
    const THREADS: usize = 8;
    const KEYS: u32 = 100_000;
    let dog = Watchdog::start("pops", 60);
    let mut tuning = tiny(5, true);
    tuning.leaf_bytes = 1024;
    tuning.segment = 64 << 10;
    tuning.redo_buffer = 16 << 10;
    let db = open_on(SimStorage::new(), &tiny_config().cache_capacity(1 << 20), tuning)?;
    for n in 0..KEYS {
        db.insert(n.to_be_bytes(), n.to_le_bytes().to_vec())?;
        if n % 1_000 == 0 {
            dog.kick();
        }
    }
    let popped = on_threads(THREADS, |thread| {
        let mut popped: Vec<u32> = Vec::new();
        loop {
            let pair = if thread % 2 == 0 { db.pop_min()? } else { db.pop_max()? };
            let Some((key, value)) = pair else { return Ok(popped) };
            let n = u32::from_be_bytes(key[..].try_into().expect("four bytes"));
            assert_eq!(value, n.to_le_bytes(), "the value of another key");
            // Nobody inserts, so what a thread pops moves one way.
            let ordered =
                popped.last().is_none_or(|last| if thread % 2 == 0 { *last < n } else { *last > n });
            assert!(ordered, "{n} after {:?}", popped.last());
            popped.push(n);
            dog.kick();
        }
    })?;
    let mut all = popped.concat();
    all.sort_unstable();
    assert!(all.iter().copied().eq(0..KEYS), "{} keys popped, of {KEYS}", all.len());
    assert_eq!((db.len(), db.is_empty(), db.first()?), (0, true, None));
    let c = counters(&db);
    assert!(c.node_merges > 0, "an emptied tree shrinks");
    check_invariants(&db)
}

#[test]
fn reads_never_go_back() -> Result<()> {
    const KEYS: u64 = 2_000;
    const WRITES: u64 = 30_000;
    let dog = Watchdog::start("reads that never go back", 30);
    let db = busy_db(6)?;
    let published: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicBool::new(false);
    let value = |n: u64| [&n.to_be_bytes()[..], &[0; 90]].concat();
    for key in 0..KEYS {
        db.insert(key.to_be_bytes(), value(0))?;
    }
    on_threads(3, |thread| {
        let _raise = RaiseOnDrop(&stop);
        let mut random = Random::new(thread as u64);
        if thread == 0 {
            for n in 1..=WRITES {
                let key = random.below(KEYS);
                db.insert(key.to_be_bytes(), value(n))?;
                // Release: pairs with the Acquire below.
                published[usize::try_from(key).expect("few")].store(n, Ordering::Release);
                dog.kick();
            }
            return Ok(());
        }
        let mut seen = vec![0; published.len()];
        // Acquire: pairs with the Release in `RaiseOnDrop`.
        while !stop.load(Ordering::Acquire) {
            let key = random.below(KEYS);
            let place = usize::try_from(key).expect("few");
            // Acquire: pairs with the Release above.
            let least = published[place].load(Ordering::Acquire).max(seen[place]);
            let found = db.get(key.to_be_bytes())?.expect("never removed");
            seen[place] = decode(&found[..8]);
            assert!(seen[place] >= least, "key {key}: {} after {least}", seen[place]);
        }
        Ok(())
    })?;
    let c = counters(&db);
    assert!(c.evictions + c.page_outs > 0 && c.faults > 0, "everything stayed in memory: {c:?}");
    check_invariants(&db)
}

#[test]
fn flushes_of_several_threads_keep_what_they_acknowledge() -> Result<()> {
    const THREADS: usize = 3;
    const KEYS: u64 = 20_000;
    const CRASHES: u64 = 40;
    let dog = Watchdog::start("flushes", 30);
    let medium = SimStorage::new();
    let db = open_on(medium.clone(), &tiny_config(), tiny(7, true))?;
    let key = |thread: u64, n: u64| [thread.to_be_bytes(), n.to_be_bytes()].concat();
    // How many keys of each thread a flush has acknowledged.
    let acknowledged: Vec<AtomicU64> = (0..THREADS).map(|_| AtomicU64::new(0)).collect();
    let (stop, finished) = (AtomicBool::new(false), AtomicBool::new(false));
    let write = |thread: usize| -> Result<()> {
        let _raise = RaiseOnDrop(&finished);
        let mut random = Random::new(thread as u64);
        // Acquire: pairs with the Release in `RaiseOnDrop`.
        for n in (0..KEYS).take_while(|_| !stop.load(Ordering::Acquire)) {
            db.insert(key(thread as u64, n), vec![7; random.index(60)])?;
            if random.one_in(5) {
                db.flush()?;
                // Release: pairs with the Acquire in the crashing thread.
                acknowledged[thread].store(n + 1, Ordering::Release);
            }
            dog.kick();
        }
        Ok(())
    };
    // Acquire: pairs with the Release of the writers.
    let promises = || acknowledged.iter().map(|n| n.load(Ordering::Acquire)).collect::<Vec<u64>>();
    let crash = |seed: u64| -> Result<()> {
        // Read before the crash.
        let promised = promises();
        let modes =
            [CrashMode::DropUnsynced, CrashMode::KeepPrefix, CrashMode::RandomSubset, CrashMode::Torn];
        let mode = modes[usize::try_from(seed).expect("small") % modes.len()];
        let left = open_on(medium.crash(seed, mode), &tiny_config(), tiny(seed, false))?;
        check_invariants(&left)?;
        for (thread, promised) in promised.into_iter().enumerate() {
            let mut found = 0;
            for pair in left.scan_prefix((thread as u64).to_be_bytes()).keys() {
                assert_eq!(pair?, key(thread as u64, found), "a hole in what thread {thread} wrote");
                found += 1;
            }
            assert!(found >= promised, "thread {thread}: {found} keys after {promised} were flushed");
        }
        Ok(())
    };
    on_threads(THREADS + 1, |thread| {
        if thread < THREADS {
            return write(thread);
        }
        let _raise = RaiseOnDrop(&stop);
        for seed in 0..CRASHES {
            // Every crash comes after some more flushes. Acquire: pairs with the Release in `RaiseOnDrop`.
            while promises().iter().sum::<u64>() < 60 * (seed + 1) && !finished.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            crash(seed)?;
            dog.kick();
        }
        Ok(())
    })?;
    check_invariants(&db)
}

#[test]
fn asynchronous_flushes_all_end() -> Result<()> {
    let dog = Watchdog::start("asynchronous flushes", 5);
    let medium = SimStorage::new();
    let db = open_on(medium.clone(), &tiny_config(), tiny(8, true))?;
    on_threads(8, |thread| {
        for n in 0..25_u8 {
            db.insert([u8::try_from(thread).expect("few"), n], "v")?;
            // One that is never polled, and one that is.
            drop(db.flush_async());
            block_on(db.flush_async())?;
            dog.kick();
        }
        Ok(())
    })?;
    let left = open_on(medium.crash(0, CrashMode::DropUnsynced), &tiny_config(), tiny(8, false))?;
    assert_eq!(left.len(), 200);
    Ok(())
}

#[test]
fn ids_of_many_threads_are_all_different() -> Result<()> {
    let db = busy_db(9)?;
    let ids = on_threads(4, |_| (0..5_000).map(|_| db.generate_id()).collect::<Result<Vec<u64>>>())?;
    assert!(ids.iter().all(|ids| ids.is_sorted()), "each thread sees ids grow");
    let ids: BTreeSet<u64> = ids.into_iter().flatten().collect();
    assert!(ids.into_iter().eq(0..20_000), "each id once, without gaps");
    Ok(())
}

#[test]
fn a_tree_dropped_by_many_threads_is_dropped_once() -> Result<()> {
    let dog = Watchdog::start("dropping one tree", 30);
    let db = busy_db(10)?;
    for round in 0..200 {
        let tree = db.open_tree("t")?;
        assert_eq!(tree.insert("k", "v")?, None, "round {round}: a dropped tree came back");
        let dropped = on_threads(3, |_| db.drop_tree("t"))?;
        assert_eq!(dropped.iter().filter(|dropped| **dropped).count(), 1, "round {round}");
        assert_eq!(tree.get("k"), Err(Error::CollectionNotFound("t".into())));
        dog.kick();
    }
    check_invariants(&db)
}

#[test]
fn threads_that_open_one_name_get_one_tree() -> Result<()> {
    let dog = Watchdog::start("opening one name", 30);
    let db = busy_db(11)?;
    for round in 0..200_u32 {
        let name = round.to_be_bytes();
        let trees = on_threads(3, |thread| {
            let tree = db.open_tree(name)?;
            tree.insert([u8::try_from(thread).expect("few")], "v")?;
            Ok(tree)
        })?;
        for tree in trees {
            assert_eq!(tree.iter().keys().collect::<Result<Vec<_>>>()?, [[0], [1], [2]], "round {round}");
        }
        dog.kick();
    }
    assert_eq!(db.tree_names().len(), 201);
    check_invariants(&db)
}

#[test]
fn trees_opened_and_dropped_at_once_are_whole_or_gone() -> Result<()> {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    let dog = Watchdog::start("opening and dropping", 30);
    let medium = SimStorage::new();
    let db = open_on(medium.clone(), &tiny_config(), tiny(12, true))?;
    let gone = |name: &str| Error::CollectionNotFound(name.into());
    let handles: Mutex<Vec<(Tree, &str)>> = Mutex::new(Vec::new());
    on_threads(4, |thread| {
        let mut random = Random::new(thread as u64);
        for n in 0..400_u64 {
            let name = *random.pick(&NAMES);
            if random.one_in(3) {
                db.drop_tree(name)?;
                continue;
            }
            let tree = db.open_tree(name)?;
            for i in 0..random.below(20) {
                let key = [thread as u64, n, i].map(u64::to_be_bytes).concat();
                match tree.insert(&key, "v") {
                    Ok(old) => assert_eq!(old, None, "a key that was never written here"),
                    Err(error) => assert_eq!(error, gone(name)),
                }
                match tree.get(&key) {
                    Ok(found) => assert_eq!(found, Some("v".into()), "a write was lost, not refused"),
                    Err(error) => assert_eq!(error, gone(name)),
                }
            }
            handles.lock().expect("no check failed").push((tree, name));
            dog.kick();
        }
        Ok(())
    })?;
    check_invariants(&db)?;
    let names = db.tree_names();
    for name in NAMES {
        assert_eq!(db.drop_tree(name)?, names.contains(&name.into()), "{name}");
    }
    assert_eq!(db.tree_names(), ["__sled__default"]);
    for name in NAMES {
        assert!(db.open_tree(name)?.is_empty(), "{name} begins empty");
    }
    for (tree, name) in handles.into_inner().expect("no check failed") {
        assert_eq!(tree.first(), Err(gone(name)), "a handle of a dropped tree came back");
    }
    drop(db);
    let db = open_on(medium, &tiny_config(), tiny(12, true))?;
    let sizes: BTreeMap<IVec, usize> = db
        .tree_names()
        .into_iter()
        .map(|name| Ok((name.clone(), db.open_tree(name)?.len())))
        .collect::<Result<_>>()?;
    assert_eq!(sizes.into_values().collect::<Vec<_>>(), [0; 4]);
    check_invariants(&db)
}
