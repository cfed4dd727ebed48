//! Operations decoded from bytes, on a database of tiny pages over a simulated medium, against a model.
//!
//! `cargo +nightly fuzz run ops_vs_model -- -detect_leaks=0 -timeout=5 -rss_limit_mb=1024`
//!
//! # How it works
//!
//! The model is a `BTreeMap` of what the database must hold now, the map of what was durable at the last
//! successful flush, and the list of changes since. Every answer is compared with the first. After a crash
//! the database must hold the second plus some prefix of the third: no hole, nothing invented.
//!
//! Calls of the medium fail when the input says so. A call of the database may fail only when one of the
//! medium's could have since the last open; a write that failed may or may not have happened, which the
//! crash that follows it tells.

#![no_main]

mod input;
mod model;

use input::{LONGEST, Op, Setup, Value};
use libfuzzer_sys::fuzz_target;
use model::{Change, Map, Model};
use sled::testing::{self, CrashMode, OpClass, SimStorage};
use sled::{Db, Error, IVec, Tree};
use std::io::ErrorKind;
use std::ops::Bound;

/// Name of the second tree; the first is the default one.
const OTHER: &str = "other";

/// The database is to be crashed: a call failed and its effect is not known.
struct Unclear;

type Outcome = std::result::Result<(), Unclear>;

struct State {
    setup: Setup,
    storage: SimStorage,
    /// `None` only while it is being opened again.
    open: Option<(Db, Tree)>,
    model: Model,
    /// Whether calls of the medium may have failed since the open, and of which kind.
    armed: Option<OpClass>,
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
        State { setup, storage, open, model: Model::default(), armed: None }
    }

    fn tree(&self, other: bool) -> &Tree {
        let (db, tree) = self.open.as_ref().expect("open between operations");
        if other { tree } else { db }
    }

    fn db(&self) -> &Db {
        &self.open.as_ref().expect("open between operations").0
    }

    /// The answer of a call that does not change data; `None` if it failed, as it was allowed to.
    fn answer<T>(&self, result: sled::Result<T>) -> Option<T> {
        match result {
            Ok(answer) => Some(answer),
            Err(Error::Io(_)) if self.armed.is_some() => None,
            Err(error) => panic!("{error:?} with {:?} failing", self.armed),
        }
    }

    /// The answer of a call that makes `change`; if it failed, the change may still come out of a crash.
    fn changed<T>(
        &mut self,
        result: sled::Result<T>,
        change: Option<Change>,
    ) -> std::result::Result<T, Unclear> {
        let answer = self.answer(result);
        if let Some(change) = change {
            self.model.apply(change);
        }
        answer.ok_or(Unclear)
    }

    fn put(&mut self, other: bool, key: &[u8], value: Option<Vec<u8>>) -> Outcome {
        let result = match &value {
            Some(value) => self.tree(other).insert(key, &value[..]),
            None => self.tree(other).remove(key),
        };
        let expected = self.model.get(other, key).cloned();
        let change = (expected != value).then(|| Change::Put(other, key.to_vec(), value));
        let old = self.changed(result, change)?;
        assert_eq!(old.as_deref(), expected.as_deref(), "previous value of {key:?}");
        Ok(())
    }

    fn pop(&mut self, other: bool, min: bool) -> Outcome {
        let result = if min { self.tree(other).pop_min() } else { self.tree(other).pop_max() };
        let tree = self.model.tree(other);
        let end = if min { tree.first_key_value() } else { tree.last_key_value() };
        let expected = end.map(|(key, value)| (key.to_vec(), value.to_vec()));
        let change = expected.as_ref().map(|(key, _)| Change::Put(other, key.clone(), None));
        let popped = self.changed(result, change)?;
        same(popped.as_ref(), expected.as_ref().map(|(key, value)| (&key[..], &value[..])));
        Ok(())
    }

    fn swap(&mut self, other: bool, key: &[u8], right: bool, new: Option<Vec<u8>>) -> Outcome {
        let current = self.model.get(other, key).cloned();
        let old = if right { current.clone() } else { Some(b"not what is there".to_vec()) };
        let result = self.tree(other).compare_and_swap(key, old.as_ref(), new.clone());
        let change = right.then(|| Change::Put(other, key.to_vec(), new.clone()));
        match self.changed(result, change)? {
            Ok(()) => assert!(right, "swapped {key:?} against {old:?}"),
            Err(refused) => {
                assert!(!right, "did not swap {key:?}");
                assert_eq!(refused.current.as_deref(), current.as_deref(), "current value of {key:?}");
                assert_eq!(refused.proposed.as_deref(), new.as_deref(), "proposed value of {key:?}");
            }
        }
        Ok(())
    }

    fn update(&mut self, other: bool, key: &[u8], new: Option<Vec<u8>>, fetch_old: bool) -> Outcome {
        let before = self.model.get(other, key).cloned();
        let tree = self.tree(other);
        let result = if fetch_old {
            tree.fetch_and_update(key, |_| new.clone())
        } else {
            tree.update_and_fetch(key, |_| new.clone())
        };
        let expected = if fetch_old { before } else { new.clone() };
        let answer = self.changed(result, Some(Change::Put(other, key.to_vec(), new)))?;
        assert_eq!(answer.as_deref(), expected.as_deref(), "answer of an update of {key:?}");
        Ok(())
    }

    fn merge(&mut self, other: bool, key: &[u8], operand: &[u8]) -> Outcome {
        let new = merge(key, self.model.get(other, key).map(Vec::as_slice), operand);
        let result = self.tree(other).merge(key, operand);
        let answer = self.changed(result, Some(Change::Put(other, key.to_vec(), new.clone())))?;
        assert_eq!(answer.as_deref(), new.as_deref(), "answer of a merge into {key:?}");
        Ok(())
    }

    fn drop_other(&mut self) -> Outcome {
        let result = self.db().drop_tree(OTHER);
        assert!(self.changed(result, Some(Change::DropOther))?, "it was there");
        let fresh = self.answer(self.db().open_tree(OTHER)).ok_or(Unclear)?;
        fresh.set_merge_operator(merge);
        let (db, dropped) = self.open.take().expect("open between operations");
        assert_eq!(dropped.get("k"), Err(Error::CollectionNotFound(OTHER.into())), "old handles stay dead");
        self.open = Some((db, fresh));
        Ok(())
    }

    fn neighbours(&self, other: bool, key: &[u8]) {
        let (tree, model) = (self.tree(other), self.model.tree(other));
        let below = model.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(key))).next_back();
        let above = model.range::<[u8], _>((Bound::Excluded(key), Bound::Unbounded)).next();
        let pair = |(key, value): (&&'_ [u8], &&'_ [u8])| (key.to_vec(), value.to_vec());
        for (result, expected) in [
            (tree.get_lt(key), below.map(pair)),
            (tree.get_gt(key), above.map(pair)),
            (tree.first(), model.first_key_value().map(pair)),
            (tree.last(), model.last_key_value().map(pair)),
        ] {
            if let Some(found) = self.answer(result) {
                same(found.as_ref(), expected.as_ref().map(|(key, value)| (&key[..], &value[..])));
            }
        }
    }

    /// Walks a range from both ends, as the bits of `turns` say, until they meet.
    fn range(&self, other: bool, from: Bound<Vec<u8>>, to: Bound<Vec<u8>>, turns: u8) {
        let model = self.model.tree(other);
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
        let mut expected = model.iter().filter(|(key, _)| inside(key));
        let mut found = self.tree(other).range((from.clone(), to.clone()));
        for turn in 0.. {
            let front = turns >> (turn % 8) & 1 == 0;
            let (found, expected) = if front {
                (found.next(), expected.next())
            } else {
                (found.next_back(), expected.next_back())
            };
            let Some(found) = self.answer(found.transpose()) else { return };
            same(found.as_ref(), expected.map(|(key, value)| (*key, *value)));
            if found.is_none() {
                return;
            }
        }
    }

    fn prefix(&self, other: bool, prefix: &[u8]) {
        let model = self.model.tree(other);
        let mut expected = model.iter().filter(|(key, _)| key.starts_with(prefix));
        for found in self.tree(other).scan_prefix(prefix) {
            let Some(found) = self.answer(found) else { return };
            same(Some(&found), expected.next().map(|(key, value)| (*key, *value)));
        }
        assert_eq!(expected.next(), None, "a record of prefix {prefix:?} is missing");
    }

    fn flush(&mut self) -> Outcome {
        if self.answer(self.db().flush()).is_some() {
            self.model.flushed();
            return Ok(());
        }
        self.storage.heal();
        let again = self.answer(self.db().flush());
        if matches!(self.armed, Some(OpClass::Sync)) {
            // C5: what a failed sync did to the medium is unknown; only a reopen may go on.
            assert!(again.is_none(), "a flush succeeded after a sync had failed");
        } else {
            assert!(again.is_some(), "C5: a flush succeeds once the medium does");
            self.model.flushed();
        }
        Err(Unclear)
    }

    /// `len` loads nothing that could fail.
    fn lengths(&self) {
        for other in [false, true] {
            assert_eq!(self.tree(other).len(), self.model.tree(other).len(), "number of records");
        }
    }

    /// Closes in good order and opens again.
    fn reopen(&mut self) {
        self.storage.heal();
        drop(self.open.take());
        self.open = Some(open(&self.storage, self.setup));
        let (db, other) = self.open.as_ref().expect("just opened");
        let found = contents(db, other);
        if self.armed.take().is_none() {
            assert_eq!(found, self.model.live, "a clean close keeps everything");
            self.model.flushed();
        } else {
            self.model.recovered(found);
        }
    }

    /// Stops as a crash does and opens what it left.
    fn crash(&mut self, mode: CrashMode, seed: u64) {
        let left = self.storage.crash(seed, mode);
        self.storage.set_power_cut_at(self.storage.ops());
        drop(self.open.take());
        self.storage = left;
        self.open = Some(open(&self.storage, self.setup));
        self.armed = None;
        let (db, other) = self.open.as_ref().expect("just opened");
        let found = contents(db, other);
        self.model.recovered(found);
        // A crash leaves what is on the medium: it cannot be lost again (C7).
        self.model.flushed();
    }

    fn step(&mut self, op: Op) -> Outcome {
        match op {
            Op::Insert(other, key, value) => self.put(other, &key.bytes(), Some(value.bytes()))?,
            Op::InsertMany(other, run, value) => {
                run.keys().try_for_each(|key| self.put(other, &key, Some(value.bytes())))?;
            }
            Op::Remove(other, key) => self.put(other, &key.bytes(), None)?,
            Op::RemoveMany(other, run) => run.keys().try_for_each(|key| self.put(other, &key, None))?,
            Op::Get(other, key) => {
                let key = key.bytes();
                if let Some(found) = self.answer(self.tree(other).get(&key)) {
                    assert_eq!(found.as_deref(), self.model.get(other, &key).map(Vec::as_slice), "{key:?}");
                }
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
            Op::DropOther => self.drop_other()?,
            Op::Flush => self.flush()?,
            Op::Maintain => self.answer(testing::maintain(self.db())).ok_or(Unclear)?,
            Op::Checkpoint => self.answer(testing::checkpoint(self.db())).ok_or(Unclear)?,
            Op::Invariants => {
                if self.answer(testing::check_invariants(self.db())).is_some() {
                    self.lengths();
                }
            }
            Op::Reopen => self.reopen(),
            Op::Crash(crash, seed) => self.crash(crash.mode(), u64::from(seed)),
            Op::Fail { failing, after, once } => {
                // Several kinds at once would leave open which one made a flush fail.
                if self.armed.is_none() {
                    self.storage.fail(failing.class(), u64::from(after), once, ErrorKind::Other);
                    self.armed = Some(failing.class());
                }
            }
            Op::Heal => self.storage.heal(),
        }
        Ok(())
    }
}

fn same(found: Option<&(IVec, IVec)>, expected: Option<(&[u8], &[u8])>) {
    assert_eq!(found.map(|(key, value)| (&key[..], &value[..])), expected);
}

fuzz_target!(|input: (Setup, Vec<Op>)| {
    let (setup, ops) = input;
    let mut state = State::new(setup);
    for op in ops.into_iter().take(200) {
        if state.step(op).is_err() {
            // The process dies of the error; the medium keeps what was written.
            state.crash(CrashMode::KeepAll, 0);
        }
    }
    state.reopen();
    testing::check_invariants(state.db()).expect("a healthy medium");
    state.lengths();
});
