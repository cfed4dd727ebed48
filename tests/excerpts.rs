//! Where memory is short, leaves on disk are read record by record (`tree/excerpt.rs`): that it happens, that nothing is
//! written for it, and what it must not do to the shape of the tree.

mod common_durability;

use common_durability::{Random, bytes_of};
use sled::testing::{CrashMode, SimStorage, Tuning, check_invariants, checkpoint, counters, open_on, space};
use sled::{Config, Db};
use std::collections::BTreeMap;

const CAPACITY: u64 = 256 << 10;

fn config() -> Config {
    Config::new().flush_every_ms(None).cache_capacity(CAPACITY)
}

fn tuning() -> Tuning {
    Tuning { threads: false, redo_buffer: 16 << 10, ..Tuning::default() }
}

fn open() -> Db {
    open_on(SimStorage::new(), &config(), tuning()).expect("works")
}

#[test]
fn records_that_are_used_often_stay_without_their_leaves() {
    let db = open();
    for i in 0..30_000_u64 {
        db.insert(i.to_be_bytes(), bytes_of(i, 100)).unwrap();
    }
    checkpoint(&db).unwrap();
    // Two records of each leaf, far apart in it; four times as many leaves as fit into memory.
    let hot: Vec<u64> = (0..9_000).step_by(30).collect();
    let read =
        || hot.iter().for_each(|i| assert_eq!(db.get(i.to_be_bytes()).unwrap().unwrap(), bytes_of(*i, 100)));
    (0..3).for_each(|_| read());
    let before = counters(&db);
    (0..5).for_each(|_| read());
    let after = counters(&db);
    assert!(after.excerpted > 0, "{after:?}");
    let reads = after.faults + after.overlay_faults - before.faults - before.overlay_faults;
    assert!(reads < 100, "{reads} reads of what is in memory");
    assert_eq!(after.page_outs, before.page_outs, "a copy is not written");
    // What is gone, and what was never there, is as good.
    for i in &hot {
        assert!(db.remove(i.to_be_bytes()).unwrap().is_some() && db.get(i.to_be_bytes()).unwrap().is_none());
        assert!(db.get([&i.to_be_bytes()[..], b"x"].concat()).unwrap().is_none());
    }
    assert_eq!((db.len(), db.iter().count()), (30_000 - hot.len(), 30_000 - hot.len()));
    check_invariants(&db).unwrap();
}

/// Each leaf gets a few new keys, is written, and gets some more. An excerpt has not the size of its leaf, by which who
/// writes to that would know.
#[test]
fn leaves_that_only_grow_are_split() {
    for (records, len) in [(8_000, 1000), (40_000, 100)] {
        let db = open();
        for number in 0..records {
            db.insert(bytes_of(number, 16), bytes_of(number, len)).unwrap();
        }
        let (live, ..) = space(&db);
        let size = live / db.verify().unwrap().leaves;
        assert!(size < 10 << 10, "leaves of {size} bytes");
    }
}

/// Keys that are new lie side by side, too, though the image has none of them.
#[test]
fn who_adds_keys_one_behind_the_other_reads_the_leaf_once() {
    let db = open();
    let mut random = Random(1);
    let mut next = vec![0_u64; 1000];
    let mut add = |points: u64| {
        for _ in 0..points / 10 {
            let series = random.below(1000);
            for _ in 0..10 {
                let number = &mut next[series as usize];
                db.insert([series.to_be_bytes(), number.to_be_bytes()].concat(), bytes_of(*number, 50))
                    .unwrap();
                *number += 1;
            }
        }
    };
    add(40_000);
    let before = counters(&db);
    add(20_000);
    let after = counters(&db);
    let reads = after.faults + after.overlay_faults - before.faults - before.overlay_faults;
    // Less than four for each ten that come together.
    assert!(reads < 8_000, "{reads} reads for 20000 points");
}

/// Everything that a point write can do, in leaves of a few records, with crashes.
#[test]
fn excerpts_say_what_the_leaf_says() {
    for seed in 0..6 {
        let mut random = Random(seed);
        let tuning =
            Tuning { leaf_bytes: 1000, fanout: 6, segment: 16 << 10, redo_budget: 64 << 10, ..tuning() };
        let config = Config::new().flush_every_ms(None).cache_capacity(32 << 10);
        let mut medium = SimStorage::new();
        let mut model = BTreeMap::new();
        let mut excerpted = 0;
        for era in 0..3 {
            let db = open_on(medium.clone(), &config, tuning.clone()).unwrap();
            assert_eq!(db.len(), model.len());
            for round in 0..6_000_u64 {
                let key = (random.below(4000) as u32 * 7).to_be_bytes();
                let len = if era == 2 && random.below(50) == 0 { 20_000 } else { random.below(30) };
                let value = bytes_of(round, len as usize);
                let old = model.get(&key).cloned();
                let found = match random.below(6) {
                    0 => {
                        model.remove(&key);
                        db.remove(key).unwrap()
                    }
                    1 => {
                        model.insert(key, value.clone());
                        db.insert(key, &value[..]).unwrap()
                    }
                    2 => {
                        let swapped = db.compare_and_swap(key, old.as_deref(), Some(&value[..])).unwrap();
                        assert!(swapped.is_ok(), "seed {seed}, era {era}, round {round}");
                        model.insert(key, value.clone());
                        old.as_deref().map(Into::into)
                    }
                    _ => db.get(key).unwrap(),
                };
                assert_eq!(found.as_deref(), old.as_deref(), "seed {seed}, era {era}, round {round}");
                if random.below(1000) == 0 {
                    checkpoint(&db).unwrap();
                }
            }
            excerpted += counters(&db).excerpted;
            db.flush().unwrap();
            medium = medium.crash(seed, CrashMode::ALL[random.below(6) as usize]);
            check_invariants(&db).unwrap();
            assert!(db.verify().unwrap().damages.is_empty());
            let pairs =
                db.iter().map(|pair| pair.unwrap()).map(|(key, value)| (key.to_vec(), value.to_vec()));
            assert!(pairs.eq(model.iter().map(|(key, value)| (key.to_vec(), value.clone()))));
        }
        assert!(excerpted > 20, "{excerpted}");
    }
}
