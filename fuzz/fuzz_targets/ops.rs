//! Operations on a database of tiny pages over a simulated medium, against a model.
//!
//! # How it works
//!
//! The model is a `BTreeMap` of what the database must hold now, the map of what was durable at the last
//! successful flush, and the list of changes since. Every answer is compared with the first. After a crash
//! the database must hold the second plus some prefix of the third: no hole, nothing invented.
//!
//! Calls of the medium fail when the input says so, one or a burst of them, or the medium is full. A call of the
//! database may fail only when one of the medium's could have since the last open, and then it changed
//! nothing. What follows depends on which calls of the medium failed (C5): after a sync, nothing is written
//! before the next open; after any other, everything goes on when the medium does.

use super::input::{Failing, LONGEST, Op, Run, Setup, Value};
use super::model::{Change, Map, Model, Put};
use arbitrary::Arbitrary;
use sled::testing::{self, CrashMode, OpClass, SimStorage};
use sled::transaction::{TransactionError, TransactionResult, Transactional, abort};
use sled::{Batch, Db, Error, IVec, Tree};
use std::ops::Bound;

/// Name of the second tree; the first is the default one.
const OTHER: &str = "other";

/// A database and what is done with it.
#[derive(Arbitrary, Debug)]
pub struct Input {
    setup: Setup,
    ops: Vec<Op>,
}

/// `None`: a call failed, as it was allowed to.
type Answer<T> = Option<T>;

struct State {
    setup: Setup,
    storage: SimStorage,
    /// `None` only while it is being opened again.
    open: Option<(Db, Tree)>,
    model: Model,
    /// Whether calls of the medium may have failed since the open.
    armed: bool,
    /// Whether a call of the database failed since the open and a sync of the medium had: nothing is written then.
    poisoned: bool,
    /// The largest identifier handed out, over all opens.
    last_id: Option<u64>,
}

fn merge(_: &[u8], old: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
    let merged = [old.unwrap_or_default(), operand].concat();
    (merged.len() < LONGEST).then_some(merged)
}

fn open(storage: &SimStorage, setup: Setup) -> (Db, Tree) {
    let opened = testing::open_on(storage.clone(), &setup.config(), setup.tuning());
    let db = opened.expect("the medium is healthy at open");
    let other = db.open_tree(OTHER).expect("the medium is healthy at open");
    db.set_merge_operator(merge);
    other.set_merge_operator(merge);
    (db, other)
}

fn contents(db: &Db, other: &Tree) -> Map {
    let mut map = Map::new();
    for (tree, flag) in [(&**db, false), (other, true)] {
        for pair in tree {
            let (key, value) = pair.expect("a healthy medium");
            map.insert((flag, key.to_vec()), value.to_vec());
        }
    }
    map
}

impl State {
    fn new(setup: Setup) -> State {
        let storage = SimStorage::new();
        let open = Some(open(&storage, setup));
        storage.start_recording();
        let model = Model::default();
        State { setup, storage, open, model, armed: false, poisoned: false, last_id: None }
    }

    fn tree(&self, other: bool) -> &Tree {
        let (db, tree) = self.open.as_ref().expect("open between operations");
        if other { tree } else { db }
    }

    fn db(&self) -> &Db {
        &self.open.as_ref().expect("open between operations").0
    }

    fn heal(&self) {
        self.storage.heal();
        self.storage.set_capacity(None);
    }

    /// Notes whether a sync has failed since this was last asked.
    fn note_failed_syncs(&mut self) {
        let recording = self.storage.stop_recording().expect("it records since the open");
        self.storage.start_recording();
        self.poisoned |= recording.calls().any(|call| call.failed && call.class == OpClass::Sync);
    }

    /// The answer of a call that does not change data.
    fn answer<T>(&mut self, result: sled::Result<T>) -> Answer<T> {
        match result {
            Ok(answer) => Some(answer),
            Err(Error::Io(_)) if self.armed => {
                self.note_failed_syncs();
                None
            }
            Err(error) if self.armed && is_unreadable(&error) => None,
            Err(error) => panic!("{error:?}, armed: {}", self.armed),
        }
    }

    /// The answer of a call that makes `change`, or, if it failed, nothing.
    fn changed<T>(&mut self, result: sled::Result<T>, change: Option<Change>) -> Answer<T> {
        let answer = self.answer(result)?;
        if let Some(change) = change {
            let refused = self.poisoned && self.model.alters(&change);
            assert!(!refused, "C5: {change:?} was accepted after a sync had failed");
            self.model.apply(change);
        }
        Some(answer)
    }

    fn put(&mut self, other: bool, key: &[u8], value: Option<Vec<u8>>) -> Answer<()> {
        let result = match &value {
            Some(value) => self.tree(other).insert(key, &value[..]),
            None => self.tree(other).remove(key),
        };
        let expected = self.model.get(other, key).cloned();
        let change = (expected != value).then(|| Change::of(other, key, value));
        let old = self.changed(result, change)?;
        assert_eq!(old.as_deref(), expected.as_deref(), "previous value of {key:?}");
        Some(())
    }

    fn pop(&mut self, other: bool, min: bool) -> Answer<()> {
        let result = if min { self.tree(other).pop_min() } else { self.tree(other).pop_max() };
        let tree = self.model.tree(other);
        let end = if min { tree.first_key_value() } else { tree.last_key_value() };
        let expected = end.map(|(key, value)| (key.to_vec(), value.to_vec()));
        let change = expected.as_ref().map(|(key, _)| Change::of(other, key, None));
        let popped = self.changed(result, change)?;
        same(popped.as_ref(), expected.as_ref().map(|(key, value)| (&key[..], &value[..])));
        Some(())
    }

    fn swap(&mut self, other: bool, key: &[u8], right: bool, new: Option<Vec<u8>>) -> Answer<()> {
        let current = self.model.get(other, key).cloned();
        let old = if right { current.clone() } else { Some(b"not what is there".to_vec()) };
        let result = self.tree(other).compare_and_swap(key, old.as_ref(), new.clone());
        let change = right.then(|| Change::of(other, key, new.clone()));
        match self.changed(result, change)? {
            Ok(()) => assert!(right, "swapped {key:?} against {old:?}"),
            Err(refused) => {
                assert!(!right, "did not swap {key:?}");
                assert_eq!(refused.current.as_deref(), current.as_deref(), "current value of {key:?}");
                assert_eq!(refused.proposed.as_deref(), new.as_deref(), "proposed value of {key:?}");
            }
        }
        Some(())
    }

    fn update(&mut self, other: bool, key: &[u8], new: Option<Vec<u8>>, fetch_old: bool) -> Answer<()> {
        let before = self.model.get(other, key).cloned();
        let tree = self.tree(other);
        let result = if fetch_old {
            tree.fetch_and_update(key, |_| new.clone())
        } else {
            tree.update_and_fetch(key, |_| new.clone())
        };
        let expected = if fetch_old { before } else { new.clone() };
        let answer = self.changed(result, Some(Change::of(other, key, new)))?;
        assert_eq!(answer.as_deref(), expected.as_deref(), "answer of an update of {key:?}");
        Some(())
    }

    fn merge(&mut self, other: bool, key: &[u8], operand: &[u8]) -> Answer<()> {
        let new = merge(key, self.model.get(other, key).map(Vec::as_slice), operand);
        let result = self.tree(other).merge(key, operand);
        let answer = self.changed(result, Some(Change::of(other, key, new.clone())))?;
        assert_eq!(answer.as_deref(), new.as_deref(), "answer of a merge into {key:?}");
        Some(())
    }

    /// Removes every so manieth key of a run and inserts the others.
    fn batch(&mut self, other: bool, run: Run, value: &[u8], every: u8) -> Answer<()> {
        let (mut batch, mut puts) = (Batch::default(), Vec::new());
        for (key, i) in run.keys().zip(0_u8..) {
            if i % (every % 4 + 2) == 0 {
                batch.remove(key);
                puts.push((other, key.to_vec(), None));
            } else {
                batch.insert(key, value);
                puts.push((other, key.to_vec(), Some(value.to_vec())));
            }
        }
        let result = self.tree(other).apply_batch(batch);
        self.changed(result, Some(Change::Put(puts)))
    }

    /// Reads a key, inserts `puts` in both trees, and reads what it wrote.
    fn transaction(&mut self, read: &[u8], puts: Vec<Put>, aborting: bool) -> Answer<()> {
        let before = self.model.get(false, read).cloned();
        let result: TransactionResult<_, ()> =
            (self.tree(false), self.tree(true)).transaction(|(one, two)| {
                let seen = one.get(read)?;
                for (other, key, value) in &puts {
                    let tree = if *other { two } else { one };
                    match value {
                        Some(value) => drop(tree.insert(&key[..], &value[..])?),
                        None => drop(tree.remove(&key[..])?),
                    }
                    assert_eq!(tree.get(key)?.as_deref(), value.as_deref(), "a transaction sees its writes");
                }
                if aborting { abort(()) } else { Ok(seen) }
            });
        let (result, change) = match result {
            Ok(seen) => (Ok(Some(seen)), Some(Change::Put(puts))),
            Err(TransactionError::Abort(())) => (Ok(None), None),
            Err(TransactionError::Storage(error)) => (Err(error), None),
        };
        let answer = self.changed(result, change)?;
        assert_eq!(answer.is_none(), aborting, "a closure's end is the transaction's");
        if let Some(seen) = answer {
            assert_eq!(seen.as_deref(), before.as_deref(), "read of {read:?} in a transaction");
        }
        Some(())
    }

    /// Identifiers never come twice, whatever happened in between.
    fn generate_id(&mut self) -> Answer<()> {
        let result = self.db().generate_id();
        let id = self.answer(result)?;
        assert!(self.last_id.is_none_or(|last| last < id), "{id} after {:?}", self.last_id);
        self.last_id = Some(id);
        Some(())
    }

    /// Drops the second tree and creates it again. When that fails half way, the process dies of it.
    fn drop_other(&mut self) {
        let dropped = self.db().drop_tree(OTHER);
        let dropped = self.answer(dropped).inspect(|dropped| assert!(dropped, "it was there"));
        assert!(dropped.is_none() || !self.poisoned, "C5: a tree was dropped after a sync had failed");
        self.model.apply(Change::DropOther);
        let fresh = dropped.map(|_| self.db().open_tree(OTHER));
        let Some(fresh) = fresh.and_then(|fresh| self.answer(fresh)) else {
            return self.crash(CrashMode::KeepAll, 0, None);
        };
        fresh.set_merge_operator(merge);
        let (db, old) = self.open.take().expect("open between operations");
        assert_eq!(old.get("k"), Err(Error::CollectionNotFound(OTHER.into())), "old handles stay dead");
        self.open = Some((db, fresh));
    }

    fn neighbours(&mut self, other: bool, key: &[u8]) {
        let (tree, model) = (self.tree(other), self.model.tree(other));
        let below = model.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(key))).next_back();
        let above = model.range::<[u8], _>((Bound::Excluded(key), Bound::Unbounded)).next();
        let ends = [below, above, model.first_key_value(), model.last_key_value()];
        let expected = ends.map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())));
        let found = [tree.get_lt(key), tree.get_gt(key), tree.first(), tree.last()];
        for (result, expected) in found.into_iter().zip(expected) {
            if let Some(found) = self.answer(result) {
                same(found.as_ref(), expected.as_ref().map(|(key, value)| (&key[..], &value[..])));
            }
        }
    }

    /// Walks a range from both ends, as the bits of `turns` say, until they meet.
    fn range(&mut self, other: bool, from: Bound<Vec<u8>>, to: Bound<Vec<u8>>, turns: u8) {
        let model = self.model.live.clone();
        let inside = |key: &[u8]| {
            (match &from {
                Bound::Included(from) => key >= &from[..],
                Bound::Excluded(from) => key > &from[..],
                Bound::Unbounded => true,
            }) && match &to {
                Bound::Included(to) => key <= &to[..],
                Bound::Excluded(to) => key < &to[..],
                Bound::Unbounded => true,
            }
        };
        let of_tree = model.iter().filter(|((tree, key), _)| *tree == other && inside(key));
        let mut expected = of_tree.map(|((_, key), value)| (&key[..], &value[..]));
        let mut found = self.tree(other).range((from.clone(), to.clone()));
        for turn in 0.. {
            let front = turns >> (turn % 8) & 1 == 0;
            let (found, expected) = if front {
                (found.next(), expected.next())
            } else {
                (found.next_back(), expected.next_back())
            };
            let Some(found) = self.answer(found.transpose()) else { return };
            same(found.as_ref(), expected);
            if found.is_none() {
                return;
            }
        }
    }

    fn prefix(&mut self, other: bool, prefix: &[u8]) {
        let model = self.model.live.clone();
        let of_tree = model.iter().filter(|((tree, key), _)| *tree == other && key.starts_with(prefix));
        let mut expected = of_tree.map(|((_, key), value)| (&key[..], &value[..]));
        for found in self.tree(other).scan_prefix(prefix) {
            let Some(found) = self.answer(found) else { return };
            same(Some(&found), expected.next());
        }
        assert_eq!(expected.next(), None, "a record of prefix {prefix:?} is missing");
    }

    /// A flush that fails because of anything but a sync succeeds once the medium does.
    fn flush(&mut self) {
        for healed in [false, true] {
            let result = self.db().flush();
            let failed = self.answer(result).is_none();
            if !failed {
                assert!(!self.poisoned, "C5: a flush succeeded after a sync had failed");
                return self.model.flushed();
            }
            assert!(!healed || self.poisoned, "C5: a flush succeeds once the medium does");
            self.heal();
        }
    }

    /// `len` loads nothing that could fail.
    fn lengths(&self) {
        for other in [false, true] {
            assert_eq!(self.tree(other).len(), self.model.tree(other).len(), "number of records");
        }
    }

    /// Opens, after an attempt that may have failed, and returns what is there.
    fn open_again(&mut self, attempt: Option<Failing>) -> Map {
        if let Some(failing) = attempt {
            failing.arm(&self.storage);
            match testing::open_on(self.storage.clone(), &self.setup.config(), self.setup.tuning()) {
                Ok(_) | Err(Error::Io(_)) => {}
                Err(error) if is_unreadable(&error) => {}
                Err(error) => panic!("an attempt to open with {failing:?}: {error:?}"),
            }
            self.heal();
        }
        self.open = Some(open(&self.storage, self.setup));
        self.storage.start_recording();
        (self.armed, self.poisoned) = (false, false);
        let (db, other) = self.open.as_ref().expect("just opened");
        contents(db, other)
    }

    /// Closes in good order and opens again.
    fn reopen(&mut self, attempt: Option<Failing>) {
        self.heal();
        drop(self.open.take());
        self.note_failed_syncs();
        let poisoned = self.poisoned;
        let found = self.open_again(attempt);
        if poisoned {
            return self.model.recovered(found);
        }
        assert_eq!(found, self.model.live, "a clean close keeps everything");
        self.model.flushed();
    }

    /// Stops as a crash does and opens what it left.
    fn crash(&mut self, mode: CrashMode, seed: u64, attempt: Option<Failing>) {
        let left = self.storage.crash(seed, mode);
        self.storage.set_power_cut_at(self.storage.ops());
        drop(self.open.take());
        self.storage = left;
        let found = self.open_again(attempt);
        self.model.recovered(found);
        // A crash leaves what is on the medium: it cannot be lost again (C7).
        self.model.flushed();
    }

    /// One operation; whatever it answers was compared.
    fn step(&mut self, op: Op) -> Answer<()> {
        match op {
            Op::Insert(other, key, value) => self.put(other, &key.bytes(), Some(value.bytes()))?,
            Op::InsertMany(other, run, value) => {
                run.keys().try_for_each(|key| self.put(other, &key, Some(value.bytes())))?;
            }
            Op::Remove(other, key) => self.put(other, &key.bytes(), None)?,
            Op::RemoveMany(other, run) => run.keys().try_for_each(|key| self.put(other, &key, None))?,
            Op::Get(other, key) => {
                let key = key.bytes();
                let found = self.tree(other).get(&key);
                let found = self.answer(found)?;
                assert_eq!(found.as_deref(), self.model.get(other, &key).map(Vec::as_slice), "{key:?}");
            }
            Op::Swap { other, key, right, new } => {
                self.swap(other, &key.bytes(), right, new.map(Value::bytes))?
            }
            Op::Update { other, key, new, fetch_old } => {
                self.update(other, &key.bytes(), new.map(Value::bytes), fetch_old)?;
            }
            Op::Merge(other, key, value) => self.merge(other, &key.bytes(), &value.bytes())?,
            Op::PopMin(other) => self.pop(other, true)?,
            Op::PopMax(other) => self.pop(other, false)?,
            Op::Neighbours(other, key) => self.neighbours(other, &key.bytes()),
            Op::Range { other, from, to, exclude_from, include_to, turns } => {
                let (from, to) = (from.bytes(), to.bytes());
                let from = if exclude_from { Bound::Excluded(from) } else { Bound::Included(from) };
                let to = if include_to { Bound::Included(to) } else { Bound::Excluded(to) };
                self.range(other, from, to, turns);
            }
            Op::Prefix(other, key) => self.prefix(other, &key.bytes()),
            Op::Batch(other, run, value, every) => self.batch(other, run, &value.bytes(), every)?,
            Op::Transaction { read, first, second, value, abort } => {
                let one = first.keys().map(|key| (false, key.to_vec(), Some(value.bytes())));
                let two = second.keys().zip(0_u8..);
                let two = two.map(|(key, i)| (true, key.to_vec(), (i % 3 > 0).then(|| value.bytes())));
                self.transaction(&read.bytes(), one.chain(two).collect(), abort)?;
            }
            Op::GenerateId => self.generate_id()?,
            Op::DropOther => self.drop_other(),
            Op::Flush => self.flush(),
            Op::Maintain => {
                let result = testing::maintain(self.db());
                self.answer(result)?;
            }
            Op::Checkpoint => {
                let result = testing::checkpoint(self.db());
                self.answer(result)?;
            }
            Op::Invariants => {
                let result = testing::check_invariants(self.db());
                self.answer(result)?;
                self.lengths();
            }
            Op::Reopen(attempt) => self.reopen(attempt),
            Op::Crash(crash, seed, attempt) => self.crash(crash.mode(), u64::from(seed), attempt),
            Op::Fail(failing) => {
                failing.arm(&self.storage);
                self.armed = true;
            }
            Op::Capacity(sectors) => {
                let length = self.storage.contents().len() as u64;
                self.storage.set_capacity(Some(length + 512 * u64::from(sectors)));
                self.armed = true;
            }
            Op::Heal => self.heal(),
        }
        Some(())
    }
}

fn same(found: Option<&(IVec, IVec)>, expected: Option<(&[u8], &[u8])>) {
    assert_eq!(found.map(|(key, value)| (&key[..], &value[..])), expected);
}

/// Whether the medium was told not to give a page back.
fn is_unreadable(error: &Error) -> bool {
    error.is_corruption() && error.to_string().contains("injected failure")
}

/// Carries the operations out and compares every answer.
pub fn run(input: Input) {
    let mut state = State::new(input.setup);
    for op in input.ops.into_iter().take(200) {
        // One that failed, as it was allowed to, changed nothing.
        let _ = state.step(op);
    }
    state.reopen(None);
    testing::check_invariants(state.db()).expect("a healthy medium");
    state.lengths();
}
