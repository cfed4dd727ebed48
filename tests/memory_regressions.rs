//! Memory, or disk, that was once kept though nothing needed it any more, and calls that once took more than there is
//! to take.
//!
//! The tests run one at a time and in a process without others: memory is given back through an epoch that
//! all databases of a process share, and a busy neighbour holds it up.

mod common_durability;

use common_durability::{Random, Watchdog, bytes_of, within};
use sled::Config;
use sled::testing::{
    CrashMode, OpClass, SimStorage, Tuning, check_invariants, checkpoint, compact, counters, memory_used,
    open_on, space,
};
use sled::transaction::ConflictableTransactionError;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const CAPACITY: u64 = 1 << 20;
/// What is not evicted at rest: redo buffers, the table of pages, what other threads have retired and not yet
/// handed on.
const REST: u64 = 512 << 10;
/// What foreground calls may be ahead of the thread that evicts, and a bit.
const AHEAD: u64 = 5 << 20;

/// As a normal open, but redo buffers are small beside what is measured.
fn small_buffers() -> Tuning {
    Tuning { redo_buffer: 16 << 10, ..Tuning::default() }
}

/// Nothing writes, so nothing but the reads themselves can say that memory is full.
#[test]
fn reads_keep_to_the_capacity() {
    let _alone = alone();
    let config = Config::new().flush_every_ms(None).cache_capacity(CAPACITY);
    let db = open_on(SimStorage::new(), &config, small_buffers()).unwrap();
    let trees: Vec<_> = (0..150_u32).map(|i| db.open_tree(i.to_be_bytes()).unwrap()).collect();
    // Ten times the capacity, so that reads cannot stay below the bound by themselves.
    for (i, tree) in trees.iter().enumerate() {
        for j in 0..250_u64 {
            tree.insert(j.to_be_bytes(), bytes_of(i as u64 + j, 250)).unwrap();
        }
    }
    db.flush().unwrap();
    let at_rest = || memory_used(&db) < CAPACITY + REST;
    assert!(
        within(Duration::from_secs(5), at_rest),
        "{} bytes of {CAPACITY} after writing",
        memory_used(&db)
    );

    type Read = fn(&sled::Tree, [u8; 8]);
    let reads: [(&str, Read); 6] = [
        ("get", |tree, key| assert!(tree.get(key).unwrap().is_some())),
        ("contains_key", |tree, key| assert!(tree.contains_key(key).unwrap())),
        ("get_gt", |tree, key| drop(tree.get_gt(key).unwrap())),
        ("get_lt", |tree, key| drop(tree.get_lt(key).unwrap())),
        ("first", |tree, _| assert!(tree.first().unwrap().is_some())),
        ("last", |tree, _| assert!(tree.last().unwrap().is_some())),
    ];
    for (first, (name, read)) in (0..).zip(reads) {
        let faults = counters(&db).faults;
        let mut peak = 0;
        // Of the ends of trees there are few, and these are read for longer.
        for _ in 0..if matches!(name, "first" | "last") { 10 } else { 1 } {
            // Others than before: what was asked for stays without the leaf.
            for key in (first..250_u64).step_by(25) {
                for tree in &trees {
                    read(tree, key.to_be_bytes());
                    peak = peak.max(memory_used(&db));
                }
            }
        }
        assert!(counters(&db).faults > faults + 50, "{name} reads nothing from the medium");
        assert!(peak < CAPACITY + AHEAD, "{name}: {peak} bytes of {CAPACITY}");
        assert!(
            within(Duration::from_secs(5), at_rest),
            "{name}: {} bytes of {CAPACITY} at rest",
            memory_used(&db)
        );
    }
}

/// What could not be evicted is remembered, as trying again for every call would help nobody. Once that was for good.
#[test]
fn what_could_not_be_evicted_is_when_it_can() {
    let _alone = alone();
    let storage = SimStorage::new();
    let config = Config::new().flush_every_ms(None).cache_capacity(CAPACITY);
    let db = open_on(storage.clone(), &config, small_buffers()).unwrap();
    let value = |i: u32| bytes_of(u64::from(i), 250);
    for i in 0..40_000_u32 {
        db.insert(i.to_be_bytes(), value(i)).unwrap();
    }
    db.flush().unwrap();
    // Of leaves that few records are written to, what is on disk stays there, and without that they cannot be folded.
    for round in 0..4 {
        (0..20_000_u32).step_by(40).for_each(|i| drop(db.insert(i.to_be_bytes(), value(i + round))));
    }
    storage.fail(OpClass::Read, 0, false, ErrorKind::Other);
    for seed in 0..4 {
        (0..20_000_u32).step_by(40).for_each(|i| drop(db.insert(i.to_be_bytes(), bytes_of(seed, 1_500))));
    }
    // As long as somebody reads it is not tried again.
    let mut stuck = 0;
    for round in 0..700 {
        // Some are in memory.
        (0..20_000_u32).step_by(400).for_each(|i| drop(db.get(i.to_be_bytes())));
        std::thread::sleep(Duration::from_millis(1));
        if round == 650 {
            stuck = memory_used(&db);
            storage.heal();
        }
    }
    assert!(stuck > CAPACITY + REST, "{stuck} bytes");
    assert!(
        within(Duration::from_secs(10), || memory_used(&db) < CAPACITY + REST),
        "{} bytes of {CAPACITY} at rest, {stuck} before",
        memory_used(&db)
    );
}

/// Without a write that would wake maintenance.
#[test]
fn a_dropped_tree_gives_its_memory_back() {
    let _alone = alone();
    let db = open_on(SimStorage::new(), &Config::new().flush_every_ms(None), small_buffers()).unwrap();
    let tree = db.open_tree("t").unwrap();
    for i in 0..20_000_u32 {
        tree.insert(i.to_be_bytes(), bytes_of(u64::from(i), 200)).unwrap();
    }
    let before = memory_used(&db);
    drop(tree);
    db.drop_tree("t").unwrap();
    assert!(
        within(Duration::from_secs(5), || memory_used(&db) < before / 4),
        "{} bytes of {before}",
        memory_used(&db)
    );
}

/// Memory is short, so each leaf is written and read again before it has enough changes to be folded. Once that was the only
/// time when leaves were split, so that they grew to many times their size, and each change cost as much. And a leaf was
/// written for each change.
#[test]
fn random_writes_neither_make_leaves_grow_nor_write_one_each() {
    let _alone = alone();
    // Changes that take little of a leaf, and some that take much.
    for (records, len) in [(60_000, 100), (8_000, 1500)] {
        let config = Config::new().flush_every_ms(None).cache_capacity(CAPACITY);
        let tuning = Tuning { threads: false, ..small_buffers() };
        let db = open_on(SimStorage::new(), &config, tuning).unwrap();
        let key = |number: u64| bytes_of(number, 16);
        for number in 0..records {
            db.insert(key(number), bytes_of(number, len)).unwrap();
        }
        let before = counters(&db);
        let mut random = Random(7);
        for _ in 0..records {
            let number = random.below(records);
            db.insert(key(number), bytes_of(number + 1, len)).unwrap();
        }
        let after = counters(&db);
        let page_outs = after.page_outs - before.page_outs;
        assert!(after.shrunk > before.shrunk && after.overlays_folded > before.overlays_folded, "{after:?}");
        assert!(page_outs < records * 2 / 3, "{page_outs} pages were written for {records} changes");
        let leaves = after.leaf_splits + after.root_splits;
        let (live, ..) = space(&db);
        assert!(live / leaves < 10 << 10, "leaves of {} bytes", live / leaves);
        check_invariants(&db).expect("sound");
        for number in (0..records).step_by(97) {
            let value = db.get(key(number)).unwrap().expect("inserted");
            let possible = [number, number + 1].map(|seed| bytes_of(seed, len));
            assert!(possible.iter().any(|possible| *value == possible[..]), "record {number}");
        }
    }
}

/// Once each attempt to write to it brought it into memory, and making room took it away before the next.
#[test]
fn a_leaf_that_is_larger_than_memory_can_be_written_to() {
    let _alone = alone();
    let dog = Watchdog::new(Duration::from_secs(20));
    dog.begin("a long key");
    let config = Config::new().flush_every_ms(None).cache_capacity(64 << 10);
    let tuning = Tuning { threads: false, leaf_bytes: 512, ..small_buffers() };
    let db = open_on(SimStorage::new(), &config, tuning).unwrap();
    let tree = db.open_tree("long").unwrap();
    tree.insert(bytes_of(1, 300_000), "long").unwrap();
    for round in 0..40_u32 {
        // Fills memory with something else.
        for other in 0..50_u32 {
            db.insert((round * 50 + other).to_be_bytes(), bytes_of(7, 100)).unwrap();
        }
        assert!(tree.insert(round.to_be_bytes(), "short").unwrap().is_none());
    }
    assert!(counters(&db).shrunk > 0);
    assert_eq!((tree.len(), tree.iter().filter(|pair| pair.is_ok()).count()), (41, 41));
}

/// Everything that may have a page at the same time: writers, transactions, checkpoints, and then replay.
#[test]
fn pages_that_are_moved_while_they_are_used_keep_every_record() {
    let _alone = alone();
    let _watchdog = Watchdog::new(Duration::from_secs(300));
    // Huge pages, and no eviction.
    let config = Config::new().flush_every_ms(None).cache_capacity(256 << 20);
    let medium = SimStorage::new();
    let db = open_on(medium.clone(), &config, Tuning { threads: false, ..Tuning::default() }).unwrap();
    let key = |who: u64, i: u64| (i << 1 | who).to_be_bytes();
    let mut models: [HashMap<u64, (u64, usize)>; 2] = Default::default();
    for era in 0..10_u64 {
        let work = |who: u64, model: &mut HashMap<u64, (u64, usize)>| {
            let mut random = Random(era << 1 | who);
            // Large ones in every other era, so that in the next there is something to be moved.
            let longest = if era.is_multiple_of(2) { 1000 } else { 200 };
            for round in 0..15_000 {
                let (i, seed) = (random.below(10_000), era << 32 | round);
                let len = random.below(longest) as usize;
                let value = bytes_of(seed, len);
                let found = match round % 4 {
                    0 => db.remove(key(who, i)).unwrap(),
                    1 => {
                        let found = db.transaction(|db| {
                            let found = db.remove(&key(who, i)[..])?;
                            db.insert(&key(who, i)[..], &value[..])?;
                            Ok::<_, ConflictableTransactionError<()>>(found)
                        });
                        found.unwrap()
                    }
                    _ => db.insert(key(who, i), &value[..]).unwrap(),
                };
                let old = if round % 4 == 0 { model.remove(&i) } else { model.insert(i, (seed, len)) };
                let old = old.map(|(seed, len)| bytes_of(seed, len));
                assert_eq!(found.as_deref(), old.as_deref(), "what was written last");
            }
        };
        let written = AtomicBool::new(false);
        let until_written = |step: &dyn Fn()| {
            while !written.load(Ordering::Relaxed) {
                step();
            }
        };
        std::thread::scope(|s| {
            let [first, second] = &mut models;
            let writers = [s.spawn(|| work(0, first)), s.spawn(|| work(1, second))];
            s.spawn(|| until_written(&|| compact(&db)));
            s.spawn(|| until_written(&|| checkpoint(&db).unwrap()));
            for writer in writers {
                writer.join().unwrap();
            }
            written.store(true, Ordering::Relaxed);
        });
        db.flush().unwrap();
        check_invariants(&db).unwrap();
        let again = open_on(medium.crash(era, CrashMode::DropUnsynced), &config, Tuning::default()).unwrap();
        for db in [&db, &again] {
            assert_eq!(db.len(), models.iter().map(HashMap::len).sum::<usize>());
            for (who, model) in models.iter().enumerate() {
                for (i, (seed, len)) in model {
                    let found = db.get(key(who as u64, *i)).unwrap();
                    assert_eq!(found.as_deref(), Some(&bytes_of(*seed, *len)[..]), "era {era}");
                }
            }
        }
    }
    let moved = counters(&db).moved_frames;
    assert!(moved > 1000, "{moved} pages were moved");
}

/// Segments are free when the epoch has moved on, and that is when the pages are freed that the checkpoint has replaced. They
/// were kept where there were more of those than a few calls free.
#[test]
fn the_log_of_many_leaves_is_given_back_by_the_checkpoint_that_ends_it() {
    let _alone = alone();
    let tuning = Tuning {
        leaf_bytes: 128,
        segment: 64 << 10,
        redo_budget: 1 << 40,
        threads: false,
        ..Tuning::default()
    };
    let db = open_on(SimStorage::new(), &Config::new().flush_every_ms(None), tuning).unwrap();
    for number in 0..50_000_u64 {
        let key = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
        db.insert(key, bytes_of(number, 30)).unwrap();
    }
    db.flush().unwrap();
    let logged = db.stats().redo_tail_bytes;
    checkpoint(&db).unwrap();
    let (on_disk, images) = (db.size_on_disk().unwrap(), db.stats().live_bytes);
    assert!(on_disk < images + logged / 4, "{on_disk} bytes on disk, {images} of images, {logged} logged");
}
