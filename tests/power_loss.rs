//! The power fails after every single call of a long run; what is found afterwards is what was promised.
//!
//! A run of some thousand operations over several trees is recorded once. Then the medium is rebuilt as a crash
//! after call k leaves it, for every k and in every way that unsynced writes may survive, and opened.
//!
//! - The contents are those after some number of operations: a prefix, over all trees together.
//! - The prefix has every operation before the last flush that returned by then, and none not begun by then.
//! - Opening again, and crashing again while opening or soon after, changes nothing of that.
//! - An identifier that was handed out is never handed out again.
//!
//! States are compared by a fingerprint that does not depend on order, so that a table leads from the contents to
//! the number of operations. `SLED_SOAK=n` runs n seeds to the end; by default the later passes are cut by time.

mod common_durability;

use common_durability::{Random, Watchdog, block_on, bytes_of, hash, mix, open_tiny, soak};
use sled::Db;
use sled::testing::{
    CrashMode, OpClass, Recording, Replay, SimStorage, check_invariants, checkpoint, maintain,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MODES: [CrashMode; 6] = CrashMode::ALL;
const DEFAULT: &str = "__sled__default";
const TREES: [&str; 6] = [DEFAULT, "b", "c", "d", "comes and goes", "too"];
/// The trees from here on are opened and dropped now and then.
const FIRST_TRANSIENT: u64 = 4;

/// The trees that exist, with their contents.
type State = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

#[derive(Clone, Debug)]
enum Op {
    Insert(&'static str, Vec<u8>, Vec<u8>),
    Remove(&'static str, Vec<u8>),
    Swap(&'static str, Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>),
    Update(&'static str, Vec<u8>, Vec<u8>),
    PopMin(&'static str),
    PopMax(&'static str),
    OpenTree(&'static str),
    DropTree(&'static str),
    GenerateId,
    Flush,
    FlushAsync,
    Checkpoint,
    Maintain,
    Reopen,
}

fn pair_print(tree: &[u8], key: &[u8], value: &[u8]) -> u64 {
    mix(hash(hash(hash(1, tree), key), value))
}

fn tree_print(tree: &[u8]) -> u64 {
    mix(hash(2, tree))
}

fn print_of(state: &State) -> u64 {
    let trees = state.iter().map(|(name, pairs)| {
        let pairs = pairs.iter().map(|(key, value)| pair_print(name, key, value));
        pairs.fold(tree_print(name), u64::wrapping_add)
    });
    trees.fold(0, u64::wrapping_add)
}

/// Carries `op` out on the model and gives the fingerprint after it, from the one before.
fn apply(state: &mut State, print: u64, op: &Op) -> u64 {
    fn put(state: &mut State, tree: &str, key: &[u8], value: Option<&[u8]>) -> u64 {
        let pairs = state.get_mut(tree.as_bytes()).expect("only trees that are there are written");
        let old = match value {
            Some(value) => pairs.insert(key.to_vec(), value.to_vec()),
            None => pairs.remove(key),
        };
        let print = |value: &[u8]| pair_print(tree.as_bytes(), key, value);
        value.map_or(0, print).wrapping_sub(old.as_deref().map_or(0, print))
    }
    let change = match op {
        Op::Insert(tree, key, value) | Op::Update(tree, key, value) => put(state, tree, key, Some(value)),
        Op::Remove(tree, key) => put(state, tree, key, None),
        Op::Swap(tree, key, old, new) if state[tree.as_bytes()].get(key) == old.as_ref() => {
            put(state, tree, key, new.as_deref())
        }
        Op::PopMin(tree) => match state[tree.as_bytes()].first_key_value() {
            Some((key, _)) => put(state, tree, &key.clone(), None),
            None => 0,
        },
        Op::PopMax(tree) => match state[tree.as_bytes()].last_key_value() {
            Some((key, _)) => put(state, tree, &key.clone(), None),
            None => 0,
        },
        Op::OpenTree(tree) if !state.contains_key(tree.as_bytes()) => {
            state.insert(tree.as_bytes().to_vec(), BTreeMap::new());
            tree_print(tree.as_bytes())
        }
        Op::DropTree(tree) => {
            let gone = state.remove(tree.as_bytes()).map(|pairs| (tree.as_bytes().to_vec(), pairs));
            0_u64.wrapping_sub(print_of(&State::from_iter(gone)))
        }
        _ => 0,
    };
    print.wrapping_add(change)
}

fn value(random: &mut Random) -> Vec<u8> {
    let len = match random.below(100) {
        0 => random.below(64 << 10),
        1..5 => 500 + random.below(3000),
        5..10 => 0,
        _ => random.below(100),
    };
    bytes_of(random.next(), len as usize)
}

fn key(random: &mut Random) -> Vec<u8> {
    // Long shared prefixes, keys that are prefixes of others, and one in eight far from all.
    match random.below(8) {
        0 => bytes_of(random.below(40), 3 + random.below(30) as usize % 4 * 9),
        _ => format!("key/{:03}", random.below(160)).into_bytes(),
    }
}

/// Operations, made up along the way of the model so that swaps and drops often take effect.
fn operations(seed: u64, count: usize) -> Vec<Op> {
    let mut random = Random(seed);
    let mut state = empty();
    let mut ops: Vec<Op> = TREES[1..FIRST_TRANSIENT as usize].iter().map(|tree| Op::OpenTree(tree)).collect();
    for op in &ops {
        apply(&mut state, 0, op);
    }
    while ops.len() < count {
        let tree = TREES[random.below(TREES.len() as u64) as usize];
        let transient = TREES[(FIRST_TRANSIENT + random.below(2)) as usize];
        let exists = state.contains_key(tree.as_bytes());
        let op = match random.below(1000) {
            0..30 => Op::Flush,
            30..40 => Op::FlushAsync,
            40..46 => Op::Checkpoint,
            46..60 => Op::Maintain,
            60..62 => Op::Reopen,
            62..80 => Op::GenerateId,
            80..92 => Op::DropTree(transient),
            92..120 => Op::OpenTree(transient),
            _ if !exists => Op::OpenTree(tree),
            120..135 => Op::PopMin(tree),
            135..150 => Op::PopMax(tree),
            150..200 => {
                let key = key(&mut random);
                let old = state[tree.as_bytes()].get(&key).filter(|_| random.below(5) > 0).cloned();
                let new = (random.below(4) > 0).then(|| value(&mut random));
                Op::Swap(tree, key, old, new)
            }
            200..230 => Op::Update(tree, key(&mut random), value(&mut random)),
            230..430 => Op::Remove(tree, key(&mut random)),
            _ => Op::Insert(tree, key(&mut random), value(&mut random)),
        };
        apply(&mut state, 0, &op);
        ops.push(op);
    }
    ops
}

fn empty() -> State {
    State::from([(DEFAULT.as_bytes().to_vec(), BTreeMap::new())])
}

/// What is known of a recorded run.
struct Run {
    ops: Vec<Op>,
    /// The contents before the first operation.
    before: State,
    redo_buffer: usize,
    recording: Recording,
    /// From the fingerprint of the contents to the numbers of operations after which they were such, ascending.
    counts: HashMap<u64, Vec<usize>>,
    /// Calls of the medium when an operation began, ascending.
    begun: Vec<u64>,
    /// Calls when a flush had returned, and how many operations came before it and with it.
    flushed: Vec<(u64, usize)>,
    /// Calls when an identifier had been handed out, and which.
    ids: Vec<(u64, u64)>,
}

/// Opens the medium, runs the operations, closes it, and records all of that.
fn run(medium: &SimStorage, redo_buffer: usize, before: State, ops: Vec<Op>) -> Run {
    medium.start_recording();
    let mut db = open_tiny(medium, redo_buffer).expect("a healthy medium");
    let (mut begun, mut flushed, mut ids) = (Vec::new(), vec![(0, 0)], Vec::new());
    let mut state = before.clone();
    let mut print = print_of(&state);
    let mut counts = HashMap::from([(print, vec![0])]);
    for (number, op) in ops.iter().enumerate() {
        begun.push(medium.ops());
        let tree = |name: &str| db.open_tree(name).expect("healthy");
        match op {
            Op::Insert(name, key, value) => {
                let old = tree(name).insert(key, &value[..]).expect("healthy");
                assert_eq!(
                    old.as_deref(),
                    state[name.as_bytes()].get(key).map(|v| &v[..]),
                    "operation {number}"
                );
            }
            Op::Remove(name, key) => {
                let old = tree(name).remove(key).expect("healthy");
                assert_eq!(
                    old.as_deref(),
                    state[name.as_bytes()].get(key).map(|v| &v[..]),
                    "operation {number}"
                );
            }
            Op::Swap(name, key, old, new) => {
                let fits = state[name.as_bytes()].get(key) == old.as_ref();
                let swapped =
                    tree(name).compare_and_swap(key, old.as_ref(), new.as_deref()).expect("healthy");
                assert_eq!(swapped.is_ok(), fits, "operation {number}");
            }
            Op::Update(name, key, value) => {
                tree(name).update_and_fetch(key, |_| Some(&value[..])).expect("healthy");
            }
            Op::PopMin(name) => drop(tree(name).pop_min().expect("healthy")),
            Op::PopMax(name) => drop(tree(name).pop_max().expect("healthy")),
            Op::OpenTree(name) => drop(tree(name)),
            Op::DropTree(name) => {
                let existed = db.drop_tree(name).expect("healthy");
                assert_eq!(existed, state.contains_key(name.as_bytes()), "operation {number}");
            }
            Op::GenerateId => {
                let id = db.generate_id().expect("healthy");
                assert!(ids.last().is_none_or(|(_, last)| id > *last), "id {id} came again");
                ids.push((medium.ops(), id));
            }
            Op::Flush => drop(db.flush().expect("healthy")),
            Op::FlushAsync => drop(block_on(db.flush_async()).expect("healthy")),
            Op::Checkpoint => checkpoint(&db).expect("healthy"),
            Op::Maintain => maintain(&db).expect("healthy"),
            Op::Reopen => {
                drop(db);
                db = open_tiny(medium, redo_buffer).expect("healthy");
            }
        }
        print = apply(&mut state, print, op);
        counts.entry(print).or_default().push(number + 1);
        if matches!(op, Op::Flush | Op::FlushAsync | Op::Reopen) {
            flushed.push((medium.ops(), number + 1));
        }
    }
    assert_eq!(contents(&db).expect("healthy"), state, "the run itself went wrong");
    drop(db);
    flushed.push((medium.ops(), ops.len()));
    let recording = medium.stop_recording().expect("started above");
    Run { ops, before, redo_buffer, recording, counts, begun, flushed, ids }
}

fn contents(db: &Db) -> sled::Result<State> {
    let mut state = State::new();
    for name in db.tree_names() {
        let pairs = db.open_tree(&name)?.iter().map(|pair| pair.map(|(k, v)| (k.to_vec(), v.to_vec())));
        state.insert(name.to_vec(), pairs.collect::<sled::Result<_>>()?);
    }
    Ok(state)
}

fn fingerprint(db: &Db) -> sled::Result<u64> {
    let mut print = 0_u64;
    for name in db.tree_names() {
        print = print.wrapping_add(tree_print(&name));
        for pair in db.open_tree(&name)?.iter() {
            let (key, value) = pair?;
            print = print.wrapping_add(pair_print(&name, &key, &value));
        }
    }
    Ok(print)
}

impl Run {
    /// Numbers of the calls after which the medium differs from before, plus one: how many calls came until then.
    fn crash_points(&self) -> Vec<u64> {
        let changing = self.recording.calls().filter(|call| call.class != OpClass::Read);
        let first = self.recording.calls().next().map(|call| call.number);
        first.into_iter().chain(changing.map(|call| call.number + 1)).collect()
    }

    /// Operations that must, and that may, be found after a crash when `calls` calls were done.
    fn bounds(&self, calls: u64) -> (usize, usize) {
        let flushed = self.flushed.partition_point(|(ended, _)| *ended <= calls);
        let lower = self.flushed[flushed.max(1) - 1].1;
        // A flush with nothing to do makes no call, and has returned as soon as it began.
        (lower, self.begun.partition_point(|begun| *begun < calls).max(lower))
    }

    /// The model after `count` operations.
    fn model(&self, count: usize) -> State {
        let mut state = self.before.clone();
        for op in &self.ops[..count] {
            apply(&mut state, 0, op);
        }
        state
    }

    /// Opens what a crash after `calls` calls left and checks it; gives the fingerprint found, and whether all is well.
    fn check(&self, medium: &SimStorage, calls: u64) -> Result<u64, String> {
        let db = open_tiny(medium, self.redo_buffer).map_err(|e| format!("does not open: {e}"))?;
        let print = fingerprint(&db).map_err(|e| format!("cannot be read: {e}"))?;
        let (lower, upper) = self.bounds(calls);
        let found = self.counts.get(&print).map_or(&[][..], |counts| counts);
        if !found.iter().any(|count| (lower..=upper).contains(count)) {
            let differs = contents(&db).map(|found| {
                let [low, high] = [lower, upper].map(|count| differences(&self.model(count), &found));
                format!("\nagainst the least that must be there: {low}\nagainst the most that may: {high}")
            });
            return Err(format!(
                "has the contents after {found:?} operations, not after {lower}..={upper}{}",
                differs.unwrap_or_else(|e| e.to_string())
            ));
        }
        let handed_out = self.ids[..self.ids.partition_point(|(ended, _)| *ended <= calls)].last();
        let id = db.generate_id().map_err(|e| format!("gives no identifier: {e}"))?;
        if let Some((_, last)) = handed_out
            && id <= *last
        {
            return Err(format!("gives identifier {id} although {last} was handed out"));
        }
        if calls % 8 == 3 {
            check_invariants(&db).map_err(|e| format!("breaks an invariant: {e}"))?;
        }
        match calls % 4 {
            0 => drop(db),
            // Without closing: nothing since the recovery has to have reached the medium, except the identifier.
            1 => return self.check_again(&medium.crash(calls, CrashMode::DropUnsynced), print, id),
            2 => return self.check_again(&medium.crash(calls, CrashMode::Torn), print, id),
            _ => return Ok(print),
        }
        self.check_again(medium, print, id)
    }

    fn check_again(&self, medium: &SimStorage, print: u64, last: u64) -> Result<u64, String> {
        let db = open_tiny(medium, self.redo_buffer).map_err(|e| format!("does not open again: {e}"))?;
        let again = fingerprint(&db).map_err(|e| format!("cannot be read again: {e}"))?;
        let id = db.generate_id().map_err(|e| format!("gives no identifier again: {e}"))?;
        match () {
            () if again != print => Err("shows something else when opened again".to_string()),
            () if id <= last => Err(format!("gives identifier {id} after {last} when opened again")),
            () => Ok(print),
        }
    }
}

fn differences(expected: &State, found: &State) -> String {
    let mut text = String::new();
    let mut count = 0;
    let mut note = |what: String| {
        count += 1;
        if count <= 8 {
            text += &format!("\n  {what}");
        }
    };
    for (name, pairs) in expected {
        let tree = String::from_utf8_lossy(name);
        let Some(others) = found.get(name) else {
            note(format!("tree {tree:?} is missing"));
            continue;
        };
        for (key, value) in pairs {
            let key_text = String::from_utf8_lossy(key);
            match others.get(key) {
                Some(other) if other == value => {}
                Some(other) => {
                    note(format!("{tree:?} {key_text:?}: {} bytes instead of {}", other.len(), value.len()))
                }
                None => note(format!("{tree:?} {key_text:?} is missing")),
            }
        }
        others
            .keys()
            .filter(|key| !pairs.contains_key(*key))
            .for_each(|key| note(format!("{tree:?} {:?} is there", String::from_utf8_lossy(key))));
    }
    found
        .keys()
        .filter(|name| !expected.contains_key(*name))
        .for_each(|name| note(format!("tree {:?} is there", String::from_utf8_lossy(name))));
    format!("{count} differences{text}")
}

/// Calls `visit` with a replay led to each of the points, in as many threads as there are processors;
/// stops at `deadline`. Failures are collected, at most ten.
fn for_each_crash(
    run: &Run,
    points: &[u64],
    deadline: Instant,
    visit: impl Fn(&Replay<'_>, u64, &Watchdog) -> Result<(), String> + Sync,
) {
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().min(8));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for part in points.chunks(points.len().div_ceil(threads).max(1)) {
            let (visit, failures) = (&visit, &failures);
            scope.spawn(move || {
                let dog = Watchdog::new(Duration::from_secs(10));
                let mut replay = run.recording.replay();
                for calls in part {
                    let failed = failures.lock().expect("nobody panics with it").len();
                    if Instant::now() > deadline || failed >= 10 {
                        return;
                    }
                    replay.advance_to(*calls);
                    if let Err(text) = visit(&replay, *calls, &dog) {
                        failures.lock().expect("nobody panics with it").push(text);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("nobody panicked with it");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

const NEVER: Duration = Duration::from_secs(1 << 30);

/// Passes over all crash points with a different mode each; the first pass is never cut short.
fn crash_everywhere(run: &Run, seed: u64, time: Duration) {
    /// Rounds of a later pass, so that one cut short has still been everywhere.
    const ROUNDS: usize = 8;
    let points = run.crash_points();
    let states = AtomicU64::new(0);
    let start = Instant::now();
    let visit = |pass: usize, replay: &Replay<'_>, calls: u64, dog: &Watchdog| {
        let mode = MODES[(calls as usize + pass) % MODES.len()];
        let crash_seed = mix(seed ^ calls << 8 ^ pass as u64);
        dog.begin(format!("seed {seed}, crash after {calls} calls, {mode:?} {crash_seed}"));
        // Relaxed: statistic.
        states.fetch_add(1, Ordering::Relaxed);
        let checked = run.check(&replay.crash(crash_seed, mode), calls);
        dog.rest();
        checked.map(drop).map_err(|text| {
            format!("seed {seed}: what {mode:?} (seed {crash_seed}) leaves after {calls} calls {text}")
        })
    };
    for_each_crash(run, &points, start + NEVER, |replay, calls, dog| visit(0, replay, calls, dog));
    let (passes, deadline) =
        if soak() > 1 { (3 * MODES.len(), start + NEVER) } else { (MODES.len(), start + time) };
    for pass in 1..passes {
        for round in 0..ROUNDS {
            let points: Vec<u64> = points.iter().skip(round).step_by(ROUNDS).copied().collect();
            for_each_crash(run, &points, deadline, |replay, calls, dog| visit(pass, replay, calls, dog));
        }
    }
    println!(
        "seed {seed}: {} operations, {} calls, {} crash points, {} states in {:?}",
        run.ops.len(),
        run.recording.calls().len(),
        points.len(),
        states.into_inner(),
        start.elapsed()
    );
}

/// What happens after a recovery, until the next crash: first the operations that the crash undid, with other
/// values of the same length, so that what is left of the old ones in the log lies where it would fit.
fn afterwards(run: &Run, count: usize, calls: u64) -> Vec<Op> {
    let other = |value: &[u8]| bytes_of(mix(calls ^ value.len() as u64), value.len());
    let quiet =
        |op: &&Op| !matches!(op, Op::Checkpoint | Op::Maintain | Op::Reopen | Op::Flush | Op::FlushAsync);
    let undone = run.ops[count..].iter().filter(quiet).take(2 + calls as usize % 9);
    let mut ops: Vec<Op> = undone
        .map(|op| match op {
            Op::Insert(tree, key, value) => Op::Insert(tree, key.clone(), other(value)),
            Op::Update(tree, key, value) => Op::Update(tree, key.clone(), other(value)),
            op => op.clone(),
        })
        .collect();
    ops.insert((1 + calls as usize % 2).min(ops.len()), Op::Flush);
    let key = |n: u64| format!("key/{:03}", (calls + n * 37) % 160).into_bytes();
    ops.extend([
        Op::Insert(DEFAULT, key(0), bytes_of(calls, 20)),
        Op::GenerateId,
        Op::Insert(DEFAULT, key(1), bytes_of(calls, 200)),
        Op::Flush,
        Op::Remove(DEFAULT, key(0)),
        Op::OpenTree("after"),
        Op::Insert("after", key(2), bytes_of(calls, 300)),
    ]);
    ops
}

/// At every `step`-th point: recovers, goes on a little, and crashes again at each call of that.
fn crash_in_recovery(run: &Run, seed: u64, step: usize, time: Duration) {
    const ROUNDS: usize = 8;
    let points: Vec<u64> = run.crash_points().into_iter().step_by(step).collect();
    let (recoveries, states) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    let deadline = start + if soak() > 1 { NEVER } else { time };
    let visit = |replay: &Replay<'_>, calls: u64, dog: &Watchdog| {
        let first_seed = mix(seed ^ calls);
        let mode = MODES[first_seed as usize % MODES.len()];
        let first = format!("seed {seed}: after {mode:?} (seed {first_seed}) at {calls} calls");
        dog.begin(&first);
        let medium = replay.crash(first_seed, mode);
        let look = |medium: &SimStorage| open_tiny(medium, run.redo_buffer).and_then(|db| contents(&db));
        let before = look(&medium.crash(0, CrashMode::KeepAll)).map_err(|e| format!("{first}: {e}"))?;
        let (lower, upper) = run.bounds(calls);
        let counts = run.counts.get(&print_of(&before)).map_or(&[][..], |counts| counts);
        let count = counts.iter().find(|count| (lower..=upper).contains(*count));
        let count =
            *count.ok_or_else(|| format!("{first}: after {counts:?} operations, not {lower}..={upper}"))?;
        let more = self::run(&medium, run.redo_buffer, before, afterwards(run, count, calls));
        let mut replay = more.recording.replay();
        for again in more.crash_points() {
            replay.advance_to(again);
            let again_seed = mix(first_seed ^ again);
            let mode = MODES[again_seed as usize % MODES.len()];
            dog.begin(format!("{first}, again {mode:?} after {again} calls"));
            // Relaxed: statistic.
            states.fetch_add(1, Ordering::Relaxed);
            let failed = more.check(&replay.crash(again_seed, mode), again).err();
            if let Some(text) = failed {
                return Err(format!("{first}, what {mode:?} leaves {again} calls after opening {text}"));
            }
        }
        dog.rest();
        // Relaxed: statistic.
        recoveries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    for round in 0..ROUNDS {
        let points: Vec<u64> = points.iter().skip(round).step_by(ROUNDS).copied().collect();
        for_each_crash(run, &points, deadline, visit);
    }
    println!(
        "seed {seed}: {} recoveries, {} states in {:?}",
        recoveries.into_inner(),
        states.into_inner(),
        start.elapsed()
    );
}

#[test]
fn any_crash_leaves_a_prefix_with_all_that_was_flushed() {
    for seed in 0..soak() {
        let redo_buffer = [256, 1024, 512][seed as usize % 3];
        let run = run(&SimStorage::new(), redo_buffer, empty(), operations(seed, 2000));
        crash_everywhere(&run, seed, Duration::from_secs(45));
        let step = (run.crash_points().len() / 250).clamp(1, 20);
        crash_in_recovery(&run, seed, step, Duration::from_secs(35));
    }
}

#[test]
fn a_small_database_survives_any_crash_of_its_creation() {
    // Every call counts here: creation, the first flush, the first close, the second open.
    for seed in 0..8 * soak() {
        let mut ops = operations(1000 + seed, 40);
        ops.insert(10, Op::Flush);
        ops.insert(25, Op::Reopen);
        let run = run(&SimStorage::new(), 256 << (seed % 4), empty(), ops);
        for pass in 0..MODES.len() as u64 {
            for_each_crash(&run, &run.crash_points(), Instant::now() + NEVER, |replay, calls, dog| {
                let mode = MODES[(calls + pass) as usize % MODES.len()];
                dog.begin(format!("seed {seed}, crash after {calls} calls, {mode:?}"));
                let checked = run.check(&replay.crash(mix(calls), mode), calls);
                dog.rest();
                checked.map(drop).map_err(|text| format!("seed {seed}: {mode:?} after {calls} calls {text}"))
            });
        }
        crash_in_recovery(&run, seed, 1, Duration::from_secs(2));
    }
}
