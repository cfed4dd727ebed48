//! Runs operations on a recorded medium, and knows what a crash after any call of it must and may leave.

use super::common_durability::{Hooked, Request, block_on, bytes_of, mix, open_tiny};
use super::ops::{NAMES, Op, Write, merged};
use super::state::{DEFAULT, State, Step, apply, contents, print_of, step_between};
use sled::testing::{Call, OpClass, Recording, SimStorage, checkpoint, maintain, seed_nonces};
use sled::transaction::{ConflictableTransactionError, TransactionError};
use sled::{Batch, Db, Error, Transactional, Tree};
use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is known of a recorded run.
pub struct Run {
    pub ops: Vec<Op>,
    /// The contents before the first operation.
    before: State,
    /// What happened, step by step.
    steps: Vec<Step>,
    pub redo_buffer: usize,
    pub recording: Recording,
    /// From the fingerprint of the contents to the numbers of steps after which they were such, ascending.
    pub counts: HashMap<u64, Vec<usize>>,
    /// Of each operation: calls of the medium when it began, and steps when it had ended.
    begun: Vec<(u64, usize)>,
    /// Calls when a flush had returned, and how many steps came before it and with it.
    flushed: Vec<(u64, usize)>,
    /// Calls when an identifier had been handed out, and which.
    pub ids: Vec<(u64, u64)>,
    /// Fingerprints that may still be found until something is synced: the medium came from a killed process, and the
    /// machine had not written it yet.
    pub older: HashSet<u64>,
}

/// Opens the medium, runs the operations, closes it, and records all of that.
pub fn run(medium: &SimStorage, redo_buffer: usize, before: State, ops: Vec<Op>) -> Run {
    medium.start_recording();
    let hooked = Hooked::on(medium.clone());
    let mut db = open_tiny(&hooked, redo_buffer).expect("a healthy medium");
    let (mut begun, mut flushed, mut ids) = (Vec::new(), vec![(0, 0)], Vec::new());
    let mut state = before.clone();
    let mut print = print_of(&state);
    let mut counts = HashMap::from([(print, vec![0])]);
    let mut steps: Vec<Step> = Vec::new();
    let fails = ops.iter().any(|op| matches!(op, Op::Fail(_)));
    for op in &ops {
        let calls = medium.ops();
        // What a failed sync undid may have been the tree's creation.
        if !op.trees().iter().all(|tree| state.contains_key(tree.as_bytes())) {
            continue;
        }
        let mut has_flushed = op.flushes();
        let mut more = op.steps(&state);
        match op {
            Op::GenerateId => {
                let id = insist(fails, |_| db.generate_id());
                assert!(ids.last().is_none_or(|(_, last)| id > *last), "id {id} came again");
                ids.push((medium.ops(), id));
            }
            Op::Flush => drop(insist(fails, |_| db.flush())),
            Op::FlushAsync => drop(insist(fails, |_| block_on(db.flush_async()))),
            Op::Checkpoint => insist(fails, |_| checkpoint(&db)),
            Op::Maintain => insist(fails, |_| maintain(&db)),
            Op::Fail(fault) => medium.inject(*fault),
            Op::FailSync(after) => {
                medium.fail(OpClass::Sync, *after, true, ErrorKind::Other);
                let result = checkpoint(&db).and_then(|()| db.flush());
                drop(db);
                medium.heal();
                db = open_tiny(&hooked, redo_buffer).expect("healthy");
                has_flushed = result.is_ok();
                // Which of the steps it has is known now; the others are undone.
                let found = contents(&db).expect("healthy");
                let lower = flushed.last().expect("one was there before the first").1;
                let known = counts.get(&print_of(&found)).and_then(|counts| counts.last());
                assert!(
                    known.is_some_and(|count| *count >= lower),
                    "what was flushed is lost by a failed sync"
                );
                more = vec![step_between(&state, &found, &NAMES)];
            }
            Op::Reopen => {
                // Nobody is told what closing failed with.
                medium.heal();
                drop(db);
                db = open_tiny(&hooked, redo_buffer).expect("healthy");
            }
            Op::CheckpointBeside(writes, flush) => {
                let calls = checkpoint_beside(&db, &hooked, writes, *flush);
                flushed.extend(flush.then_some((calls, steps.len() + writes.len())));
            }
            op => insist(fails, |again| write(&db, op, &state, again)),
        }
        for step in more {
            print = apply(&mut state, print, &step);
            steps.push(step);
            counts.entry(print).or_default().push(steps.len());
        }
        begun.push((calls, steps.len()));
        if has_flushed {
            flushed.push((medium.ops(), steps.len()));
        }
    }
    medium.heal();
    assert_eq!(contents(&db).expect("healthy"), state, "the run itself went wrong");
    drop(db);
    flushed.push((medium.ops(), steps.len()));
    let recording = medium.stop_recording().expect("started above");
    Run { ops, before, steps, redo_buffer, recording, counts, begun, flushed, ids, older: HashSet::new() }
}

/// Tries until it succeeds where calls fail, which `body` is told from the second time on; once where they do not.
fn insist<T>(fails: bool, mut body: impl FnMut(bool) -> sled::Result<T>) -> T {
    for again in [false].into_iter().chain([true; 30]) {
        match body(again) {
            Ok(done) => return done,
            Err(Error::Io(_)) if fails => {}
            Err(error) => panic!("a healthy medium, and {error}"),
        }
    }
    panic!("failures end, and this goes on failing");
}

/// Makes a checkpoint, and before its last image is written these writes; calls of the medium when they had returned.
fn checkpoint_beside(db: &Db, hooked: &Hooked, writes: &[Write], flush: bool) -> u64 {
    let ended = Arc::new(AtomicU64::new(0));
    let (calls, medium, other, writes) = (ended.clone(), hooked.medium.clone(), db.clone(), writes.to_vec());
    let is_root = |request: Request<'_>| request.bytes.starts_with(b"IMG1") && request.bytes[8] == 4;
    hooked.before_next(is_root, move || {
        for (tree, key, value) in writes {
            let tree = other.open_tree(tree).expect("healthy");
            match value {
                Some(value) => tree.insert(key, value).expect("healthy"),
                None => tree.remove(key).expect("healthy"),
            };
        }
        if flush {
            other.flush().expect("healthy");
        }
        // Release: pairs with the Acquire below.
        calls.store(medium.ops(), Ordering::Release);
    });
    checkpoint(db).expect("healthy");
    hooked.unhook();
    // Acquire: pairs with the Release above.
    let ended = ended.load(Ordering::Acquire);
    assert!(ended > 0, "a checkpoint writes a root");
    ended
}

/// Carries out an operation that writes; what it returns must be what `state`, from before it, says, unless it is done
/// again.
fn write(db: &Db, op: &Op, state: &State, again: bool) -> sled::Result<()> {
    let tree = |name: &str| db.open_tree(name);
    let old = |name: &str, key: &[u8]| state[name.as_bytes()].get(key).map(|v| &v[..]);
    match op {
        Op::Insert(name, key, value) => {
            let found = tree(name)?.insert(key, &value[..])?;
            assert!(again || found.as_deref() == old(name, key), "{op:?}");
        }
        Op::Remove(name, key) => {
            let found = tree(name)?.remove(key)?;
            assert!(again || found.as_deref() == old(name, key), "{op:?}");
        }
        Op::Swap(name, key, expected, new) => {
            let swapped = tree(name)?.compare_and_swap(key, expected.as_ref(), new.as_deref())?;
            assert_eq!(swapped.is_ok(), old(name, key) == expected.as_deref(), "{op:?}");
        }
        Op::Update(name, key, value) => drop(tree(name)?.update_and_fetch(key, |_| Some(&value[..]))?),
        Op::Merge(name, key, operand) => {
            let tree = tree(name)?;
            tree.set_merge_operator(merged);
            let new = tree.merge(key, operand)?;
            assert_eq!(new.map(|v| v.to_vec()), merged(key, old(name, key), operand), "{op:?}");
        }
        Op::Batch(writes) => {
            let mut batch = Batch::default();
            for (_, key, value) in writes {
                match value {
                    Some(value) => batch.insert(&key[..], &value[..]),
                    None => batch.remove(&key[..]),
                }
            }
            tree(writes[0].0)?.apply_batch(batch)?;
        }
        Op::Transaction(_, aborts) => transact(db, op, *aborts, (!again).then_some(state))?,
        Op::PopMin(name) => {
            let first = state[name.as_bytes()].first_key_value().map(|(key, _)| &key[..]);
            assert_eq!(tree(name)?.pop_min()?.map(|(key, _)| key).as_deref(), first, "{op:?}");
        }
        Op::PopMax(name) => {
            let last = state[name.as_bytes()].last_key_value().map(|(key, _)| &key[..]);
            assert_eq!(tree(name)?.pop_max()?.map(|(key, _)| key).as_deref(), last, "{op:?}");
        }
        Op::Clear(name) => tree(name)?.clear()?,
        Op::OpenTree(name) => drop(tree(name)?),
        Op::DropTree(name) => {
            let existed = db.drop_tree(name)?;
            assert!(again || existed == state.contains_key(name.as_bytes()), "{op:?}");
        }
        other => unreachable!("{other:?} writes nothing"),
    }
    Ok(())
}

/// Carries out a transaction that reads each key before it writes it.
fn transact(db: &Db, op: &Op, aborts: bool, state: Option<&State>) -> sled::Result<()> {
    let Op::Transaction(writes, _) = op else { unreachable!("called for transactions") };
    let names = op.trees();
    let trees: Vec<Tree> = names.iter().map(|name| db.open_tree(name)).collect::<sled::Result<_>>()?;
    let result = trees.transaction(|views| {
        for (name, key, value) in writes {
            let view = &views[names.binary_search(name).expect("among its trees")];
            let old = view.get(key)?;
            if let Some(state) = state {
                assert_eq!(old.as_deref(), state[name.as_bytes()].get(key).map(|v| &v[..]), "{op:?}");
            }
            match value {
                Some(value) => view.insert(&key[..], &value[..])?,
                None => view.remove(&key[..])?,
            };
        }
        if aborts { Err(ConflictableTransactionError::Abort(())) } else { Ok(()) }
    });
    match result {
        Ok(()) if !aborts => Ok(()),
        Err(TransactionError::Abort(())) if aborts => Ok(()),
        Err(TransactionError::Storage(error)) => Err(error),
        other => panic!("{op:?} ended with {other:?}"),
    }
}

impl Run {
    /// Numbers of the calls after which the medium differs from before, plus one: how many calls came until then.
    pub fn crash_points(&self) -> Vec<u64> {
        let changing = self.recording.calls().filter(|call| call.class != OpClass::Read);
        let first = self.recording.calls().next().map(|call| call.number);
        first.into_iter().chain(changing.map(|call| call.number + 1)).collect()
    }

    /// Steps that must, and that may, be found after a crash when `calls` calls were done.
    pub fn bounds(&self, calls: u64) -> (usize, usize) {
        let flushed = self.flushed.partition_point(|(ended, _)| *ended <= calls);
        let lower = self.flushed[flushed.max(1) - 1].1;
        let begun = self.begun.partition_point(|(begun, _)| *begun < calls);
        // A flush with nothing to do makes no call, and has returned as soon as it began.
        (lower, begun.checked_sub(1).map_or(0, |last| self.begun[last].1).max(lower))
    }

    /// Fingerprints that may be found after a crash then.
    pub fn legal(&self, calls: u64) -> HashSet<u64> {
        let (lower, upper) = self.bounds(calls);
        let legal = |counts: &[usize]| counts.iter().any(|count| (lower..=upper).contains(count));
        self.counts.iter().filter(|(_, counts)| legal(counts)).map(|(print, _)| *print).collect()
    }

    /// Whether the contents may be those from before the process was killed that wrote last.
    pub fn is_older(&self, print: u64, calls: u64) -> bool {
        let mut syncs = self.recording.calls().filter(|call| call.class == OpClass::Sync && !call.failed);
        self.older.contains(&print) && syncs.next().is_none_or(|sync| calls <= sync.number)
    }

    /// The number of steps after which the contents were such and may be after a crash then.
    pub fn fits(&self, print: u64, calls: u64) -> Option<usize> {
        let (lower, upper) = self.bounds(calls);
        self.counts.get(&print)?.iter().copied().find(|count| (lower..=upper).contains(count))
    }

    /// The model after `count` steps.
    pub fn model(&self, count: usize) -> State {
        let mut state = self.before.clone();
        for step in &self.steps[..count] {
            apply(&mut state, 0, step);
        }
        state
    }

    /// What happens after a recovery that found `count` steps, until the next crash: first operations that the crash
    /// undid, with other values of the same length, so that what is left of the old ones in the log lies where it
    /// would fit.
    pub fn afterwards(&self, found: &State, count: usize, salt: u64) -> Vec<Op> {
        let other = |value: &[u8]| bytes_of(mix(salt ^ value.len() as u64), value.len());
        let quiet = |op: &&Op| {
            !op.flushes()
                && !matches!(
                    op,
                    Op::Checkpoint | Op::CheckpointBeside(..) | Op::Maintain | Op::DropTree(_) | Op::Fail(_)
                )
        };
        let there = |op: &&Op| op.trees().iter().all(|tree| found.contains_key(tree.as_bytes()));
        let first = self.begun.partition_point(|(_, ended)| *ended <= count);
        let undone = self.ops[first..].iter().filter(quiet).filter(there).take(2 + salt as usize % 9);
        let mut ops: Vec<Op> = undone
            .map(|op| match op {
                Op::Insert(tree, key, value) => Op::Insert(tree, key.clone(), other(value)),
                Op::Update(tree, key, value) => Op::Update(tree, key.clone(), other(value)),
                op => op.clone(),
            })
            .collect();
        ops.insert((1 + salt as usize % 2).min(ops.len()), Op::Flush);
        let key = |n: u64| format!("key/{:03}", (salt + n * 37) % 160).into_bytes();
        ops.extend([
            Op::Insert(DEFAULT, key(0), bytes_of(salt, 20)),
            Op::GenerateId,
            Op::Insert(DEFAULT, key(1), bytes_of(salt, 200)),
            Op::Flush,
            Op::Remove(DEFAULT, key(0)),
            Op::OpenTree(NAMES[6]),
            Op::Insert(NAMES[6], key(2), bytes_of(salt, 300)),
        ]);
        ops
    }

    /// The calls as they were made, with what they wrote.
    pub fn calls(&self) -> Vec<Call> {
        self.recording.calls().collect()
    }
}

/// One test at a time: what a guard of another database holds back is freed at another moment.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `body` on a thread that has pinned no guard yet, with nothing left to be freed by others, and with nonces
/// that follow from `seed`: whatever it does to a medium, it does again when it is called again. `Err`: it panicked.
pub fn repeatable<T: Send>(seed: u64, body: impl FnOnce() -> T + Send) -> std::thread::Result<T> {
    std::thread::scope(|scope| {
        let drained = scope.spawn(drain).join();
        drained.and_then(|()| {
            let seeded = move || {
                seed_nonces(Some(mix(seed)));
                body()
            };
            scope.spawn(seeded).join()
        })
    })
}

/// Frees what waits for guards that have ended.
fn drain() {
    let freed = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&freed);
    crossbeam_epoch::pin().defer(move || flag.store(true, Ordering::Release));
    // Acquire: pairs with the Release above. What is deferred is freed in order.
    while !freed.load(Ordering::Acquire) {
        crossbeam_epoch::pin().flush();
    }
}
