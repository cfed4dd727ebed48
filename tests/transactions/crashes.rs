//! The power fails while several threads commit: each transaction is there as a whole or not at all.
//!
//! # How it works
//!
//! A number that all transactions share gives the order of the commits; each writes it into every tree, and an entry of
//! its own into one of them. What a crash at any moment leaves must be the work of the first so many commits, and of no
//! fewer than a flush has acknowledged. Crashes after every call of one thread, batches and aborts included, are in the
//! test of power loss.

use crate::common::{RaiseOnDrop, Random, Watchdog};
use crate::{decode, done, encode, on_threads, soak};
use sled::testing::{CrashMode, SimStorage, Tuning, check_invariants, open_on};
use sled::{Config, Db, Result, Transactional, Tree};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const MODES: [CrashMode; 6] = CrashMode::ALL;
const TREES: [&str; 3] = ["a", "b", "c"];
const NUMBER: &str = "number of the last commit";

type State = [BTreeMap<Vec<u8>, Vec<u8>>; 3];

fn open(medium: &SimStorage, redo_buffer: usize, threads: bool) -> Result<Db> {
    let config = Config::new().cache_capacity(64 << 10).flush_every_ms(None);
    let tuning =
        Tuning { leaf_bytes: 512, fanout: 4, redo_buffer, segment: 4096, redo_budget: 16 << 10, threads };
    open_on(medium.clone(), &config, tuning)
}

fn trees(db: &Db) -> Result<Vec<Tree>> {
    TREES.iter().map(|name| db.open_tree(name)).collect()
}

fn found(db: &Db) -> Result<State> {
    let mut state = State::default();
    for (name, map) in TREES.iter().zip(&mut state) {
        // Opening would create what a crash did not leave.
        if db.tree_names().iter().any(|there| *there == *name.as_bytes()) {
            for pair in db.open_tree(name)?.iter() {
                let (key, value) = pair?;
                map.insert(key.to_vec(), value.to_vec());
            }
        }
    }
    Ok(state)
}

#[test]
fn crashes_beside_committing_threads_leave_a_prefix() -> Result<()> {
    const THREADS: usize = 3;
    const CRASHES: u64 = 60;
    const PER_CRASH: u64 = 25;
    let dog = Watchdog::start("crashes beside committing threads", 30);
    let medium = SimStorage::new();
    let db = open(&medium, 256, true)?;
    let trees = trees(&db)?;
    let order = b"order";
    let entry = |number: u64| [&order[..], &number.to_be_bytes()].concat();
    // The last commit that a flush has acknowledged.
    let acknowledged = AtomicU64::new(0);
    // How far the writers may go before the next crash, so that there is never much to look at.
    let limit = AtomicU64::new(2 * PER_CRASH);
    let (stop, finished) = (AtomicBool::new(false), AtomicBool::new(false));
    let write = |thread: usize| -> Result<()> {
        let _raise = RaiseOnDrop(&finished);
        let mut random = Random::new(thread as u64);
        // Acquire: pairs with the Release in `RaiseOnDrop`.
        while !stop.load(Ordering::Acquire) {
            let len = if random.one_in(10) { 2_500 } else { random.index(60) };
            let home = random.index(3);
            let number = done(trees.transaction(|views| {
                let number = decode(views[0].get(NUMBER)?) + 1;
                // In all trees the number; the entry in one of them, the bytes in another one.
                for view in views {
                    view.insert(NUMBER, encode(number))?;
                }
                views[home].insert(&entry(number)[..], encode(thread as u64))?;
                let place = (number % 50).to_be_bytes();
                views[(home + 1) % 3].insert(place, vec![place[7]; len])?;
                Ok(number)
            }))?;
            // Relaxed: only says when to go on.
            let ahead = || number > limit.load(Ordering::Relaxed);
            if random.one_in(6) || ahead() {
                db.flush()?;
                // AcqRel: pairs with the Acquire below.
                acknowledged.fetch_max(number, Ordering::AcqRel);
            }
            // Acquire: pairs with the Release in `RaiseOnDrop`.
            while ahead() && !stop.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            dog.kick();
        }
        Ok(())
    };
    let crash = |seed: u64| -> Result<()> {
        // Acquire: pairs with the AcqRel above; read before the crash.
        let promised = acknowledged.load(Ordering::Acquire);
        let mode = MODES[usize::try_from(seed).expect("small") % MODES.len()];
        let left = open(&medium.crash(seed, mode), 256, false)?;
        check_invariants(&left)?;
        let state = found(&left)?;
        let numbers = state.each_ref().map(|map| decode(map.get(NUMBER.as_bytes())));
        assert_eq!(numbers, [numbers[0]; 3], "{mode:?}, seed {seed}: half of a transaction");
        assert!(numbers[0] >= promised, "{mode:?}, seed {seed}: {} of {promised} flushed", numbers[0]);
        let mut entries: Vec<&[u8]> =
            state.iter().flat_map(BTreeMap::keys).filter_map(|key| key.strip_prefix(&order[..])).collect();
        entries.sort_unstable();
        let expected = (1..=numbers[0]).map(u64::to_be_bytes);
        let same = expected.map(|n| n.to_vec()).eq(entries.iter().map(|n| n.to_vec()));
        assert!(same, "{mode:?}, seed {seed}: not a prefix");
        Ok(())
    };
    on_threads(THREADS + 1, |thread| {
        if thread < THREADS {
            return write(thread);
        }
        let _raise = RaiseOnDrop(&stop);
        for seed in 0..CRASHES * soak() {
            // Every crash comes after some more commits. Acquire: pairs with the AcqRel and `RaiseOnDrop`.
            let enough = || acknowledged.load(Ordering::Acquire) >= PER_CRASH * (seed + 1);
            while !enough() && !finished.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            // Relaxed: as above. The crash is looked at while they write.
            limit.store(PER_CRASH * (seed + 3), Ordering::Relaxed);
            crash(seed)?;
            dog.kick();
        }
        Ok(())
    })?;
    check_invariants(&db)
}
