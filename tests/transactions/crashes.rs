//! The power fails after every call of a run: each transaction and each batch is there as a whole or not at
//! all.
//!
//! # How it works
//!
//! As in the test of power loss, a run of one thread is recorded and the medium rebuilt as a crash after each
//! call leaves it. Every commit writes its number into each tree it touches, so what is found says how many
//! commits it must be the contents after; the contents of all trees are compared by a fingerprint. A second
//! test crashes while several threads commit, where a shared number gives the order of the commits.

use crate::common::{RaiseOnDrop, Random, Watchdog};
use crate::{decode, done, encode, on_threads, soak};
use sled::testing::{
    CrashMode, OpClass, SimStorage, Tuning, check_invariants, checkpoint, counters, maintain, open_on,
};
use sled::{Batch, Config, Db, Result, Transactional, Tree};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
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

fn print_of(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// What one commit does to the trees: the last operation on a key counts.
#[derive(Clone)]
struct Commit {
    /// By batch, on the first tree it touches.
    batch: bool,
    writes: Vec<(usize, Vec<u8>, Option<Vec<u8>>)>,
}

fn commit(random: &mut Random, number: u64) -> Commit {
    let batch = random.one_in(3);
    let first = random.index(3);
    let mut touched = vec![first];
    if !batch {
        touched.extend((0..3).filter(|tree| *tree != first && random.one_in(2)));
    }
    let mut writes = Vec::new();
    let count = if random.one_in(12) { 40 } else { 1 + random.index(8) };
    for n in 0..count {
        let key = format!("key/{:03}", random.below(70)).into_bytes();
        let len = match random.below(20) {
            0 => 2_000 + random.index(6_000),
            1 => 500 + random.index(1_500),
            _ => random.index(60),
        };
        let tag = u8::try_from((number + n as u64) % 251).expect("small");
        let value = (!random.one_in(4)).then(|| vec![tag; len]);
        writes.push((*random.pick(&touched), key, value));
    }
    for tree in touched {
        writes.push((tree, NUMBER.into(), Some(number.to_be_bytes().to_vec())));
    }
    Commit { batch, writes }
}

impl Commit {
    fn on(&self, state: &mut State) {
        for (tree, key, value) in &self.writes {
            match value {
                Some(value) => state[*tree].insert(key.clone(), value.clone()),
                None => state[*tree].remove(key),
            };
        }
    }

    fn run(&self, trees: &[Tree]) -> Result<()> {
        if self.batch {
            let mut batch = Batch::default();
            for (_, key, value) in &self.writes {
                match value {
                    Some(value) => batch.insert(&key[..], &value[..]),
                    None => batch.remove(&key[..]),
                }
            }
            return trees[self.writes[0].0].apply_batch(batch);
        }
        done(trees.transaction(|views| {
            for (tree, key, value) in &self.writes {
                match value {
                    Some(value) => views[*tree].insert(&key[..], &value[..])?,
                    None => views[*tree].remove(&key[..])?,
                };
            }
            Ok(())
        }))
    }
}

/// Runs, records and crashes everywhere; the modes take turns, `passes` of them at each point.
fn crash_everywhere(seed: u64, passes: usize, dog: &Watchdog) -> Result<()> {
    const COMMITS: u64 = 220;
    let mut random = Random::new(seed);
    let redo_buffer = *random.pick(&[256, 512, 1024]);
    let medium = SimStorage::new();
    medium.start_recording();
    let mut db = open(&medium, redo_buffer, false)?;
    let mut handles = trees(&db)?;
    let mut state = State::default();
    let mut prints = vec![print_of(&state)];
    // Calls of the medium when each commit began; calls and commits when a flush had returned.
    let (mut begun, mut flushed) = (Vec::new(), vec![(0, 0)]);
    for number in 1..=COMMITS {
        begun.push(medium.ops());
        let commit = commit(&mut random, number);
        commit.run(&handles)?;
        commit.on(&mut state);
        prints.push(print_of(&state));
        let mut promised = true;
        match random.below(40) {
            0..4 => drop(db.flush()?),
            4 => {
                drop((db, handles));
                db = open(&medium, redo_buffer, false)?;
                handles = trees(&db)?;
            }
            5 => (promised, ()) = (false, checkpoint(&db)?),
            6 => (promised, ()) = (false, maintain(&db)?),
            _ => promised = false,
        }
        if promised {
            flushed.push((medium.ops(), number));
        }
    }
    assert_eq!(found(&db)?, state, "the run itself went wrong");
    println!("seed {seed}: {:?}", counters(&db));
    drop((db, handles));
    let recording = medium.stop_recording().expect("started above");
    let points: Vec<u64> =
        recording.calls().filter(|call| call.class != OpClass::Read).map(|call| call.number + 1).collect();
    let check = |left: &SimStorage, calls: u64, what: &str| -> Result<u64> {
        let db = open(left, redo_buffer, false)?;
        let state = found(&db)?;
        let number = state.iter().map(|map| decode(map.get(NUMBER.as_bytes()))).max().expect("three trees");
        let reached = usize::try_from(number).expect("few commits");
        assert_eq!(print_of(&state), prints[reached], "{what}: not the contents after {number} commits");
        let lower = flushed[flushed.partition_point(|(ended, _)| *ended <= calls).max(1) - 1].1;
        let upper = begun.partition_point(|begun| *begun < calls) as u64;
        assert!(number >= lower, "{what}: {number} commits, although {lower} were flushed");
        assert!(number <= upper.max(lower), "{what}: {number} commits, of which {upper} had begun");
        if calls.is_multiple_of(7) {
            check_invariants(&db)?;
        }
        Ok(number)
    };
    let threads = 2;
    let states = AtomicU64::new(0);
    on_threads(threads, |thread| {
        let mut replay = recording.replay();
        let half = points.len().div_ceil(threads);
        for (n, calls) in points.iter().enumerate().skip(thread * half).take(half) {
            replay.advance_to(*calls);
            for pass in 0..passes {
                let mode = MODES[(n + pass) % MODES.len()];
                let what = format!("seed {seed}, {mode:?} after {calls} calls");
                let left = replay.crash(seed ^ calls << 3 ^ pass as u64, mode);
                let number = check(&left, *calls, &what)?;
                // A second crash, before anything new was flushed, changes nothing.
                if n % 5 == 0 {
                    let again = check(&left.crash(*calls, CrashMode::DropUnsynced), *calls, &what)?;
                    assert_eq!(again, number, "{what}: after a second crash");
                }
                // Relaxed: statistic.
                states.fetch_add(1, Ordering::Relaxed);
                dog.kick();
            }
        }
        Ok(())
    })?;
    println!("seed {seed}: {} calls, {} states", points.len(), states.into_inner());
    Ok(())
}

#[test]
fn after_any_crash_each_commit_is_whole_or_gone() -> Result<()> {
    let dog = Watchdog::start("crashes of transactions", 30);
    for seed in 0..6 * soak() {
        crash_everywhere(seed, if soak() > 1 { MODES.len() } else { 1 }, &dog)?;
    }
    Ok(())
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
