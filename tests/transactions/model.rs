//! Random programs of transactions, batches and plain operations over two trees, against maps in memory; the
//! events of a subscriber to each tree are compared too.

use crate::common::{Random, Watchdog, tiny, tiny_config};
use crate::soak;
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use sled::testing::{SimStorage, check_invariants, checkpoint, counters, maintain, open_on};
use sled::transaction::{TransactionError, TransactionResult, TransactionalIter, TransactionalTree, abort};
use sled::{Batch, Db, Event, IVec, Subscriber, Transactional, Tree};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

const PROGRAMS: u32 = 2_000;

/// Index into [`KEYS`].
type Key = usize;
type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Number of different keys: prefixes of each other, ends of the order, many in one leaf, long equal starts.
const KEYS: usize = 40;

fn key(n: Key) -> Vec<u8> {
    let last = u8::try_from(n).expect("few keys");
    match n {
        0 => Vec::new(),
        1..4 => vec![0; n],
        4..8 => vec![0xFF; n - 3],
        8..24 => vec![b'm', last],
        24..32 => [&[b'p'; 120][..], &[last]].concat(),
        _ => format!("user/{n}/name").into_bytes(),
    }
}

/// One of a few values, so that equal ones are written again.
fn value(n: u8) -> Vec<u8> {
    let len = match n % 8 {
        0 => 0,
        1..6 => usize::from(n % 8) * 9,
        6 => 150,
        _ => 2_500,
    };
    vec![n; len]
}

#[derive(Clone, Debug)]
enum Inner {
    Get(Key),
    Contains(Key),
    Insert(Key, u8),
    Remove(Key),
    Merge(Key, u8),
    Batch(Vec<(Key, Option<u8>)>),
    /// Bounds, and from which ends to take; then everything that is left.
    Range(Bound<Key>, Bound<Key>, Vec<bool>),
    Prefix(Key, bool),
    First,
    Last,
    Lt(Key),
    Gt(Key),
}

#[derive(Clone, Debug)]
enum Op {
    /// What is done to which tree, and whether it aborts; the number says in what shape it is called.
    Transaction(Vec<(bool, Inner)>, bool, u8),
    Batch(bool, Vec<(Key, Option<u8>)>),
    Insert(bool, Key, u8),
    Remove(bool, Key),
    Merge(bool, Key, u8),
    Swap(bool, Key, bool, Option<u8>),
    Maintain,
    Checkpoint,
    Reopen,
}

fn bound() -> impl Strategy<Value = Bound<Key>> {
    prop_oneof![
        (0..KEYS).prop_map(Bound::Included),
        (0..KEYS).prop_map(Bound::Excluded),
        Just(Bound::Unbounded)
    ]
}

fn batch() -> impl Strategy<Value = Vec<(Key, Option<u8>)>> {
    prop::collection::vec((0..KEYS, prop::option::weighted(0.7, 0..16_u8)), 0..12)
}

fn inner() -> impl Strategy<Value = Inner> {
    prop_oneof![
        4 => (0..KEYS).prop_map(Inner::Get),
        2 => (0..KEYS).prop_map(Inner::Contains),
        8 => (0..KEYS, 0..16_u8).prop_map(|(k, v)| Inner::Insert(k, v)),
        5 => (0..KEYS).prop_map(Inner::Remove),
        3 => (0..KEYS, 0..16_u8).prop_map(|(k, v)| Inner::Merge(k, v)),
        1 => batch().prop_map(Inner::Batch),
        4 => (bound(), bound(), prop::collection::vec(any::<bool>(), 0..8))
            .prop_map(|(a, b, ends)| Inner::Range(a, b, ends)),
        2 => (0..KEYS, any::<bool>()).prop_map(|(k, back)| Inner::Prefix(k, back)),
        1 => Just(Inner::First),
        1 => Just(Inner::Last),
        1 => (0..KEYS).prop_map(Inner::Lt),
        1 => (0..KEYS).prop_map(Inner::Gt),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let tree = any::<bool>;
    prop_oneof![
        10 => (prop::collection::vec((tree(), inner()), 0..14), prop::bool::weighted(0.15), 0..5_u8)
            .prop_map(|(ops, aborts, shape)| Op::Transaction(ops, aborts, shape)),
        3 => (tree(), batch()).prop_map(|(t, b)| Op::Batch(t, b)),
        3 => (tree(), 0..KEYS, 0..16_u8).prop_map(|(t, k, v)| Op::Insert(t, k, v)),
        2 => (tree(), 0..KEYS).prop_map(|(t, k)| Op::Remove(t, k)),
        1 => (tree(), 0..KEYS, 0..16_u8).prop_map(|(t, k, v)| Op::Merge(t, k, v)),
        1 => (tree(), 0..KEYS, tree(), prop::option::of(0..16_u8))
            .prop_map(|(t, k, right, v)| Op::Swap(t, k, right, v)),
        1 => Just(Op::Maintain),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Reopen),
    ]
}

/// Concatenates, up to a length; an operand that is empty removes.
fn merged(old: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
    let mut new = [old.unwrap_or_default(), operand].concat();
    new.truncate(300);
    (!operand.is_empty()).then_some(new)
}

fn merge_operator(_: &[u8], old: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
    merged(old, operand)
}

fn put(map: &mut Map, key: &[u8], value: Option<Vec<u8>>) -> Option<Vec<u8>> {
    match value {
        Some(value) => map.insert(key.to_vec(), value),
        None => map.remove(key),
    }
}

/// What a transaction or batch is doing to one tree of the model.
#[derive(Clone)]
struct Overlay {
    map: Map,
    /// Keys that were written.
    written: BTreeSet<Vec<u8>>,
    /// Keys that were merged into, and whether nothing else was done to them.
    merged: BTreeMap<Vec<u8>, bool>,
}

impl Overlay {
    fn new(map: &Map) -> Overlay {
        Overlay { map: map.clone(), written: BTreeSet::new(), merged: BTreeMap::new() }
    }

    fn write(&mut self, key: &[u8], value: Option<Vec<u8>>) -> Option<Vec<u8>> {
        self.written.insert(key.to_vec());
        self.merged.entry(key.to_vec()).and_modify(|only| *only = false);
        put(&mut self.map, key, value)
    }

    fn merge(&mut self, key: &[u8], operand: &[u8]) {
        let new = merged(self.map.get(key).map(Vec::as_slice), operand);
        let only = !self.written.contains(key);
        self.written.insert(key.to_vec());
        let merged = self.merged.entry(key.to_vec()).or_insert(only);
        *merged &= only || *merged;
        put(&mut self.map, key, new);
    }

    fn batch(&mut self, ops: &[(Key, Option<u8>)]) {
        for (k, v) in ops {
            self.write(&key(*k), v.map(value));
        }
    }

    /// The events of the commit, in order; those that are not certain have `false`.
    fn events(&self, before: &Map) -> Vec<(Event, bool)> {
        let changed = self.written.iter().filter_map(|key| {
            let new = self.map.get(key);
            let differs = new != before.get(key);
            let certain = differs || self.merged.get(key) == Some(&true);
            (differs || self.merged.contains_key(key)).then(|| (event(key, new), certain))
        });
        changed.collect()
    }
}

fn event(key: &[u8], value: Option<&Vec<u8>>) -> Event {
    let key = IVec::from(key);
    match value {
        Some(value) => Event::Insert { key, value: IVec::from(&value[..]) },
        None => Event::Remove { key },
    }
}

fn batch_of(ops: &[(Key, Option<u8>)]) -> Batch {
    let mut batch = Batch::default();
    for (k, v) in ops {
        match v {
            Some(v) => batch.insert(key(*k), value(*v)),
            None => batch.remove(key(*k)),
        }
    }
    batch
}

type Attempt<T> = Result<T, sled::transaction::UnabortableTransactionError>;

fn owned(pair: Option<(IVec, IVec)>) -> Option<(Vec<u8>, Vec<u8>)> {
    pair.map(|(key, value)| (key.to_vec(), value.to_vec()))
}

fn cloned(pair: Option<(&Vec<u8>, &Vec<u8>)>) -> Option<(Vec<u8>, Vec<u8>)> {
    pair.map(|(key, value)| (key.clone(), value.clone()))
}

/// Takes from the ends as told, then the rest from the front.
fn drain(mut iter: TransactionalIter, ends: &[bool], expected: Vec<(Vec<u8>, Vec<u8>)>) -> Attempt<()> {
    let mut expected = std::collections::VecDeque::from(expected);
    for back in ends {
        let (found, wanted) = match back {
            true => (iter.next_back(), expected.pop_back()),
            false => (iter.next(), expected.pop_front()),
        };
        assert_eq!(owned(found.transpose()?), wanted);
    }
    for wanted in expected {
        assert_eq!(owned(iter.next().transpose()?), Some(wanted));
    }
    assert!(iter.next().is_none() && iter.next_back().is_none());
    Ok(())
}

fn perform(view: &TransactionalTree, model: &mut Overlay, op: &Inner) -> Attempt<()> {
    let equal = |found: Option<IVec>, expected: Option<Vec<u8>>| {
        assert_eq!(found.map(|v| v.to_vec()), expected, "{op:?}");
    };
    match op {
        Inner::Get(k) => equal(view.get(key(*k))?, model.map.get(&key(*k)).cloned()),
        Inner::Contains(k) => assert_eq!(view.contains_key(key(*k))?, model.map.contains_key(&key(*k))),
        Inner::Insert(k, v) => {
            equal(view.insert(key(*k), value(*v))?, model.write(&key(*k), Some(value(*v))));
        }
        Inner::Remove(k) => equal(view.remove(key(*k))?, model.write(&key(*k), None)),
        Inner::Merge(k, v) => {
            view.merge(key(*k), value(*v))?;
            model.merge(&key(*k), &value(*v));
        }
        Inner::Batch(ops) => {
            view.apply_batch(&batch_of(ops))?;
            model.batch(ops);
        }
        Inner::Range(low, high, ends) => {
            let bounds = (low.map(key), high.map(key));
            let within = |k: &[u8]| {
                let above = match &bounds.0 {
                    Bound::Included(low) => k >= &low[..],
                    Bound::Excluded(low) => k > &low[..],
                    Bound::Unbounded => true,
                };
                let below = match &bounds.1 {
                    Bound::Included(high) => k <= &high[..],
                    Bound::Excluded(high) => k < &high[..],
                    Bound::Unbounded => true,
                };
                above && below
            };
            let expected = model.map.iter().filter(|(k, _)| within(k));
            let expected = expected.map(|(k, v)| (k.clone(), v.clone())).collect();
            drain(view.range::<Vec<u8>, _>(bounds.clone()), ends, expected)?;
        }
        Inner::Prefix(k, back) => {
            let prefix = &key(*k)[..key(*k).len().min(3)];
            let expected = model.map.iter().filter(|(k, _)| k.starts_with(prefix));
            let expected = expected.map(|(k, v)| (k.clone(), v.clone())).collect();
            drain(view.scan_prefix(prefix), &[*back; 50], expected)?;
        }
        Inner::First => assert_eq!(owned(view.first()?), cloned(model.map.first_key_value())),
        Inner::Last => assert_eq!(owned(view.last()?), cloned(model.map.last_key_value())),
        Inner::Lt(k) => {
            assert_eq!(owned(view.get_lt(key(*k))?), cloned(model.map.range(..key(*k)).next_back()));
        }
        Inner::Gt(k) => {
            let above = (Bound::Excluded(key(*k)), Bound::Unbounded);
            assert_eq!(owned(view.get_gt(key(*k))?), cloned(model.map.range(above).next()));
        }
    }
    Ok(())
}

/// The database, the model, and who watches.
struct World {
    db: Db,
    trees: [Tree; 2],
    subscribers: [Subscriber; 2],
    maps: [Map; 2],
}

impl World {
    fn open(medium: &SimStorage, seed: u64, maps: [Map; 2]) -> World {
        let db = open_on(medium.clone(), &tiny_config(), tiny(seed, false)).expect("a healthy medium");
        let trees = ["one", "two"].map(|name| db.open_tree(name).expect("healthy"));
        trees.iter().for_each(|tree| tree.set_merge_operator(merge_operator));
        let subscribers = [trees[0].watch_prefix(""), trees[1].watch_prefix("")];
        World { db, trees, subscribers, maps }
    }

    /// Compares with what has arrived, and nothing more may have.
    fn expect_events(&mut self, tree: usize, expected: Vec<(Event, bool)>) {
        let subscriber = &mut self.subscribers[tree];
        let next = |subscriber: &mut Subscriber| match subscriber.next_timeout(Duration::ZERO) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the stream ended"),
        };
        let mut found = next(subscriber);
        for (event, certain) in expected {
            if found.as_ref() == Some(&event) {
                found = next(subscriber);
            } else {
                assert!(!certain, "{found:?} instead of {event:?}");
            }
        }
        assert_eq!(found, None, "an event too many");
    }

    fn commit(&mut self, overlays: [Overlay; 2]) {
        for (tree, overlay) in overlays.into_iter().enumerate() {
            let events = overlay.events(&self.maps[tree]);
            self.maps[tree] = overlay.map;
            self.expect_events(tree, events);
        }
    }

    fn transaction(&mut self, ops: &[(bool, Inner)], aborts: bool, shape: u8) {
        let start = [Overlay::new(&self.maps[0]), Overlay::new(&self.maps[1])];
        let only = ops.iter().all(|(tree, _)| !tree);
        let after = RefCell::new(None);
        let body = |views: &[TransactionalTree]| {
            assert!(after.take().is_none(), "run once");
            let mut overlays = start.clone();
            for (tree, op) in ops {
                let tree = usize::from(*tree);
                perform(&views[tree], &mut overlays[tree], op)?;
            }
            after.replace(Some(overlays));
            if aborts { abort(()) } else { Ok(()) }
        };
        let [a, b] = &self.trees;
        let answer: TransactionResult<(), ()> = match shape {
            0 if only => a.transaction(|view| body(std::slice::from_ref(view))),
            1 => (a, b).transaction(|(a, b)| body(&[a.clone(), b.clone()])),
            2 => (b, a).transaction(|(b, a)| body(&[a.clone(), b.clone()])),
            // More than one view of a tree: every other one is used.
            3 => [a, b, a, b][..].transaction(|views| body(&[views[2].clone(), views[1].clone()])),
            _ => self.trees[..].transaction(|views| body(views)),
        };
        let overlays = after.take().expect("it ran");
        if aborts {
            assert_eq!(answer, Err(TransactionError::Abort(())));
            (0..2).for_each(|tree| self.expect_events(tree, Vec::new()));
        } else {
            assert_eq!(answer, Ok(()));
            self.commit(overlays);
        }
    }

    fn step(&mut self, op: &Op, medium: &SimStorage, seed: u64) {
        let model = |map: &Map, key: &[u8]| map.get(key).cloned();
        let plain = |value: Option<IVec>| value.map(|value| value.to_vec());
        match op {
            Op::Transaction(ops, aborts, shape) => self.transaction(ops, *aborts, *shape),
            Op::Batch(tree, ops) => {
                let tree = usize::from(*tree);
                let mut overlays = [Overlay::new(&self.maps[0]), Overlay::new(&self.maps[1])];
                overlays[tree].batch(ops);
                self.trees[tree].apply_batch(batch_of(ops)).expect("healthy");
                self.commit(overlays);
            }
            Op::Insert(tree, k, v) => {
                let (tree, k, v) = (usize::from(*tree), key(*k), value(*v));
                let old = model(&self.maps[tree], &k);
                assert_eq!(plain(self.trees[tree].insert(&k, &v[..]).expect("healthy")), old);
                let expected = (old.as_ref() != Some(&v)).then(|| (event(&k, Some(&v)), true));
                self.maps[tree].insert(k, v);
                self.expect_events(tree, expected.into_iter().collect());
            }
            Op::Remove(tree, k) => {
                let (tree, k) = (usize::from(*tree), key(*k));
                let old = self.maps[tree].remove(&k);
                assert_eq!(plain(self.trees[tree].remove(&k).expect("healthy")), old);
                let expected = old.map(|_| (event(&k, None), true));
                self.expect_events(tree, expected.into_iter().collect());
            }
            Op::Merge(tree, k, v) => {
                let (tree, k, v) = (usize::from(*tree), key(*k), value(*v));
                let new = merged(self.maps[tree].get(&k).map(Vec::as_slice), &v);
                assert_eq!(plain(self.trees[tree].merge(&k, &v).expect("healthy")), new);
                self.expect_events(tree, vec![(event(&k, new.as_ref()), true)]);
                put(&mut self.maps[tree], &k, new);
            }
            Op::Swap(tree, k, right, v) => {
                let (tree, k, new) = (usize::from(*tree), key(*k), v.map(value));
                let old = if *right { model(&self.maps[tree], &k) } else { Some(b"no value".to_vec()) };
                let answer = self.trees[tree].compare_and_swap(&k, old, new.as_deref()).expect("healthy");
                assert_eq!(answer.is_ok(), *right);
                if *right {
                    self.expect_events(tree, vec![(event(&k, new.as_ref()), true)]);
                    put(&mut self.maps[tree], &k, new);
                } else {
                    self.expect_events(tree, Vec::new());
                }
            }
            Op::Maintain => maintain(&self.db).expect("healthy"),
            Op::Checkpoint => checkpoint(&self.db).expect("healthy"),
            Op::Reopen => self.reopen(medium, seed),
        }
    }

    fn reopen(&mut self, medium: &SimStorage, seed: u64) {
        // The streams of the old database end with it; the medium can have one database only.
        let old = std::mem::replace(self, World::open(&SimStorage::new(), seed, Default::default()));
        let World { db, trees, subscribers, maps } = old;
        drop((db, trees));
        for mut subscriber in subscribers {
            assert_eq!(subscriber.next(), None);
        }
        *self = World::open(medium, seed, maps);
        self.compare();
    }

    fn compare(&self) {
        check_invariants(&self.db).expect("whole");
        for (tree, map) in self.trees.iter().zip(&self.maps) {
            let found = tree.iter().map(|pair| pair.map(|(k, v)| (k.to_vec(), v.to_vec())));
            assert_eq!(found.collect::<sled::Result<Map>>().expect("healthy"), *map);
            assert_eq!(tree.len(), map.len());
        }
    }
}

#[test]
fn random_programs_agree_with_maps() {
    let dog = Watchdog::start("model of transactions", 60);
    let splits = std::cell::Cell::new((0, 0, 0));
    let config = Config {
        cases: PROGRAMS * u32::try_from(soak()).expect("not that long"),
        max_shrink_time: 60_000,
        failure_persistence: None,
        ..Config::default()
    };
    let programs = (any::<u64>(), prop::collection::vec(op(), 1..60));
    let outcome = TestRunner::new(config).run(&programs, |(seed, program)| {
        let medium = SimStorage::new();
        let mut world = World::open(&medium, seed, Default::default());
        let mut random = Random::new(seed);
        for op in &program {
            world.step(op, &medium, random.next());
        }
        world.compare();
        let c = counters(&world.db);
        let (a, b, d) = splits.get();
        splits.set((a + c.leaf_splits + c.root_splits, b + c.node_merges, d + c.big_values_written));
        dog.kick();
        Ok::<(), TestCaseError>(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    let (splits, merges, large) = splits.get();
    println!("{splits} splits, {merges} node merges, {large} big values");
    assert!(splits > 0 && merges > 0 && large > 0, "paths that never ran");
}
