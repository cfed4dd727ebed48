//! Runs a program on a database and on the model, and compares after every step.

use crate::common::{Key, Pair, Random, Value, Watchdog, block_on, crc32, tiny, tiny_config};
use crate::ops::{During, Edit, Ending, Global, Guess, Op, Over, Point, Whole};
use crate::state::{Bytes, Change, Map, Model, NAMES, State, brief};
use sled::testing::{
    Counters, CrashMode, SimStorage, check_invariants, checkpoint, counters, maintain, open_on,
};
use sled::{Config, Db, Error, IVec, Iter, Mode, Tree};
use std::collections::BTreeMap;
use std::ops::Bound;

/// How often each rare path ran, over all programs.
pub type Totals = BTreeMap<&'static str, u64>;

fn list(c: &Counters) -> [(&'static str, u64); 20] {
    [
        ("consolidations", c.consolidations),
        ("leaf_splits", c.leaf_splits),
        ("inner_splits", c.inner_splits),
        ("root_splits", c.root_splits),
        ("node_merges", c.node_merges),
        ("inner_merges", c.inner_merges),
        ("root_collapses", c.root_collapses),
        ("evictions", c.evictions),
        ("page_outs", c.page_outs),
        ("faults", c.faults),
        ("shrunk", c.shrunk),
        ("overlay_faults", c.overlay_faults),
        ("excerpted", c.excerpted),
        ("checkpoints", c.checkpoints),
        ("cleaned_segments", c.cleaned_segments),
        ("moved_images", c.moved_images),
        ("big_values_written", c.big_values_written),
        ("redo_blocks", c.redo_blocks),
        ("syncs", c.syncs),
        ("segments_freed", c.segments_freed),
    ]
}

type Operator = fn(&[u8], Option<&[u8]>, &[u8]) -> Option<Vec<u8>>;

/// The merge operator of a tree; the last tree has none.
fn operator(tree: usize) -> Option<Operator> {
    match tree {
        0 | 1 => Some(concat),
        2 => Some(concat_or_forget),
        _ => None,
    }
}

fn concat(_key: &[u8], old: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
    // Values that merges made huge start again.
    let old = old.filter(|old| old.len() < 100_000).unwrap_or_default();
    Some([old, operand].concat())
}

fn concat_or_forget(key: &[u8], old: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
    let new = concat(key, old, operand)?;
    (new.len() % 3 != 0).then_some(new)
}

/// A database, its model, and what a program remembers between steps.
pub struct Run {
    random: Random,
    config: Config,
    storage: SimStorage,
    /// `None` only while one handle ends and the next begins.
    db: Option<Db>,
    handles: [Option<Tree>; 4],
    /// Handles of dropped trees, with their names.
    dead: Vec<(Tree, usize)>,
    model: Model,
    /// Ids below this one were handed out.
    next_id: u64,
    totals: Totals,
}

/// Runs a program to its end; counts are added to `totals`.
pub fn run(seed: u64, program: &[Op], totals: &mut Totals, dog: &Watchdog) {
    let mut run = Run::new(seed);
    for op in program {
        run.step(op);
        dog.kick();
    }
    run.check_everything();
    run.ending(&Ending::Reopen);
    run.check_everything();
    run.close();
    for (name, count) in run.totals {
        *totals.entry(name).or_default() += count;
    }
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut random = Random::new(seed);
        let mode = *random.pick(&[Mode::LowSpace, Mode::HighThroughput]);
        let compress = cfg!(feature = "compression") && random.one_in(2);
        let cache = *random.pick(&[32 << 10, 64 << 10]);
        let config = tiny_config().cache_capacity(cache).mode(mode).use_compression(compress);
        let mut run = Run {
            random,
            config,
            storage: SimStorage::new(),
            db: None,
            handles: [const { None }; 4],
            dead: Vec::new(),
            model: Model::new(),
            next_id: 0,
            totals: Totals::new(),
        };
        run.open();
        assert!(!run.db().was_recovered(), "a new database");
        run
    }

    fn open(&mut self) {
        // Sizes of pages may change from one open to the next.
        let tuning = tiny(self.random.next(), false);
        let opened = open_on(self.storage.clone(), &self.config, tuning);
        self.db = Some(opened.expect("opening never fails after a clean close or a crash"));
    }

    /// Drops all handles; the counts are kept.
    fn close(&mut self) {
        self.handles = [const { None }; 4];
        self.dead.clear();
        if let Some(db) = self.db.take() {
            for (name, count) in list(&counters(&db)) {
                *self.totals.entry(name).or_default() += count;
            }
        }
    }

    fn db(&self) -> &Db {
        self.db.as_ref().expect("between steps a handle is open")
    }

    /// The handle of a tree, which is created when it does not exist.
    fn tree(&mut self, tree: usize) -> Tree {
        if let Some(handle) = &self.handles[tree] {
            return handle.clone();
        }
        let db = self.db();
        let handle = if tree == 0 { (**db).clone() } else { db.open_tree(NAMES[tree]).expect("opens") };
        assert_eq!(handle.name(), NAMES[tree]);
        if let Some(operator) = operator(tree) {
            handle.set_merge_operator(operator);
        }
        self.handles[tree] = Some(handle.clone());
        if self.model.tree(tree).is_none() {
            self.model.change(Change::Create(tree));
        }
        handle
    }

    fn map(&self, tree: usize) -> &Map {
        self.model.tree(tree).expect("`tree` created it")
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Point(tree, key, point) => self.point(*tree, &key.bytes(), point),
            Op::Walk(tree, over, turns) => self.walk(*tree, over, *turns),
            Op::Whole(tree, whole) => self.whole(*tree, whole),
            Op::Global(global) => self.global(global),
            Op::Ending(ending) => self.ending(ending),
        }
    }

    /// Brings a key of the model to a value, as a change of its own unless nothing changes.
    fn set(&mut self, tree: usize, key: &[u8], value: Option<&[u8]>) {
        if self.map(tree).get(key).map(|v| &v[..]) != value {
            self.model.change(Change::Put(tree, key.into(), value.map(Into::into)));
        }
    }

    fn point(&mut self, tree: usize, key: &[u8], point: &Point) {
        let handle = self.tree(tree);
        let old = self.map(tree).get(key).cloned();
        let old = old.as_deref();
        match point {
            Point::Insert(value) => {
                let value = value.bytes();
                same(handle.insert(key, &value[..]), old, "insert");
                self.set(tree, key, Some(&value));
            }
            Point::Get => same(handle.get(key), old, "get"),
            Point::Contains => assert_eq!(handle.contains_key(key), Ok(old.is_some())),
            Point::Remove => {
                same(handle.remove(key), old, "remove");
                self.set(tree, key, None);
            }
            Point::Cas(guess, new) => self.compare_and_swap(tree, key, *guess, *new),
            Point::UpdateAndFetch(edit) => {
                let new = edited(old, *edit);
                same(
                    handle.update_and_fetch(key, |old| edited(old, *edit)),
                    new.as_deref(),
                    "update_and_fetch",
                );
                self.set(tree, key, new.as_deref());
            }
            Point::FetchAndUpdate(edit) => {
                let new = edited(old, *edit);
                same(handle.fetch_and_update(key, |old| edited(old, *edit)), old, "fetch_and_update");
                self.set(tree, key, new.as_deref());
            }
            Point::Merge(value) => self.merge(tree, key, *value),
            Point::Below => {
                let expected =
                    self.map(tree).range::<[u8], _>((Bound::Unbounded, Bound::Excluded(key))).next_back();
                same_pair(handle.get_lt(key), expected, "get_lt");
            }
            Point::Above => {
                let expected =
                    self.map(tree).range::<[u8], _>((Bound::Excluded(key), Bound::Unbounded)).next();
                same_pair(handle.get_gt(key), expected, "get_gt");
            }
        }
    }

    fn compare_and_swap(&mut self, tree: usize, key: &[u8], guess: Guess, new: Option<Value>) {
        let handle = self.tree(tree);
        let old = self.map(tree).get(key).cloned();
        let expected = match guess {
            Guess::Right => old.clone(),
            Guess::Absent => None,
            Guess::Wrong => Some(Bytes::from(&b"no value is this"[..])),
        };
        let new = new.map(Value::bytes);
        let answer = handle.compare_and_swap(key, expected.as_deref(), new.as_deref());
        match answer.expect("no storage error") {
            Ok(()) => {
                assert!(expected == old, "swapped although the value is {:?}", old.as_deref().map(brief));
                self.set(tree, key, new.as_deref());
            }
            Err(rejected) => {
                assert!(expected != old, "not swapped although the value is as expected");
                same(Ok(rejected.current), old.as_deref(), "current");
                same(Ok(rejected.proposed), new.as_deref(), "proposed");
            }
        }
    }

    fn merge(&mut self, tree: usize, key: &[u8], value: Value) {
        let handle = self.tree(tree);
        let operand = value.bytes();
        let Some(operator) = operator(tree) else {
            let refused = handle.merge(key, operand);
            assert!(matches!(refused, Err(Error::Unsupported(_))), "merged without an operator");
            return;
        };
        let new = operator(key, self.map(tree).get(key).map(|v| &v[..]), &operand);
        same(handle.merge(key, operand), new.as_deref(), "merge");
        self.set(tree, key, new.as_deref());
    }

    fn walk(&mut self, tree: usize, over: &Over, turns: u64) {
        let handle = self.tree(tree);
        let map = self.map(tree);
        match over {
            Over::All => {
                let expected = map.iter().collect();
                walk(|| handle.iter(), expected, turns);
            }
            Over::Range(from, to) => {
                let (from, to) = (from.map(Key::bytes), to.map(Key::bytes));
                let inside = (from.as_ref().map(|k| &k[..]), to.as_ref().map(|k| &k[..]));
                let expected = map.iter().filter(|(key, _)| contains(inside, key)).collect();
                walk(|| handle.range::<&[u8], _>(inside), expected, turns);
            }
            Over::Prefix(key, cut) => {
                let mut prefix = key.bytes();
                prefix.truncate(usize::from(*cut));
                let expected = map.iter().filter(|(key, _)| key.starts_with(&prefix)).collect();
                walk(|| handle.scan_prefix(&prefix), expected, turns);
            }
        }
    }

    fn whole(&mut self, tree: usize, whole: &Whole) {
        let handle = self.tree(tree);
        match whole {
            Whole::First => same_pair(handle.first(), self.map(tree).first_key_value(), "first"),
            Whole::Last => same_pair(handle.last(), self.map(tree).last_key_value(), "last"),
            Whole::PopMin => self.pop(tree, false),
            Whole::PopMax => self.pop(tree, true),
            Whole::Len => assert_eq!(handle.len(), self.map(tree).len()),
            Whole::IsEmpty => assert_eq!(handle.is_empty(), self.map(tree).is_empty()),
            Whole::Checksum => assert_eq!(handle.checksum(), Ok(checksum(0, self.map(tree)))),
            Whole::Clear => {
                handle.clear().expect("clears");
                // Not one step: a crash may find the first keys removed and the others not.
                for key in self.map(tree).keys().cloned().collect::<Vec<_>>() {
                    self.set(tree, &key, None);
                }
            }
            Whole::Fill(from, count, len) => {
                for n in *from..from + count {
                    let value = Value { len: *len, tag: u32::from(n ^ count) };
                    self.point(tree, &Key::Short(n).bytes(), &Point::Insert(value));
                }
            }
            Whole::Thin(from, count) => {
                for n in *from..from + count {
                    self.point(tree, &Key::Short(n).bytes(), &Point::Remove);
                }
            }
            Whole::Drain(count, back) => (0..*count).for_each(|_| self.pop(tree, *back)),
            Whole::Open => {
                let again = self.db().open_tree(NAMES[tree]).expect("opens");
                assert_eq!((again.name(), again.len()), (handle.name(), handle.len()));
            }
            Whole::Drop => self.drop_tree(tree),
        }
    }

    fn pop(&mut self, tree: usize, back: bool) {
        let handle = self.tree(tree);
        let map = self.map(tree);
        let expected = if back { map.last_key_value() } else { map.first_key_value() };
        same_pair(if back { handle.pop_max() } else { handle.pop_min() }, expected, "pop");
        if let Some(key) = expected.map(|(key, _)| key.clone()) {
            self.set(tree, &key, None);
        }
    }

    fn drop_tree(&mut self, tree: usize) {
        if tree == 0 {
            let refused = self.db().drop_tree(NAMES[0]);
            assert!(matches!(refused, Err(Error::Unsupported(_))), "dropped the default tree");
            return;
        }
        assert_eq!(self.db().drop_tree(NAMES[tree]), Ok(true));
        assert_eq!(self.db().drop_tree(NAMES[tree]), Ok(false));
        self.model.change(Change::Drop(tree));
        if let Some(handle) = self.handles[tree].take() {
            self.dead.push((handle, tree));
        }
        self.dead_handles();
    }

    /// Handles of dropped trees fail, whatever has happened to the name since.
    fn dead_handles(&self) {
        for (handle, tree) in &self.dead {
            let gone = Error::CollectionNotFound(NAMES[*tree].into());
            assert_eq!(handle.name(), NAMES[*tree]);
            assert_eq!(handle.get([0, 1]).err(), Some(gone.clone()));
            assert_eq!(handle.insert([0, 1], "dead").err(), Some(gone.clone()));
            assert_eq!(handle.pop_min().err(), Some(gone.clone()));
            let ended: Vec<_> = handle.iter().take(3).collect();
            assert_eq!(ended, [Err(gone)], "one error, then the end");
        }
    }

    fn global(&mut self, global: &Global) {
        let db = self.db().clone();
        match global {
            Global::TreeNames => self.tree_names(),
            Global::Checksum => {
                let mut trees: Vec<_> = NAMES.iter().zip(self.model.now()).collect();
                trees.sort_by_key(|(name, _)| **name);
                let expected = trees.into_iter().filter_map(|(name, map)| Some((name, map.as_ref()?)));
                let expected = expected.fold(0, |crc, (name, map)| checksum(crc32(crc, name), map));
                assert_eq!(db.checksum(), Ok(expected));
            }
            Global::GenerateId => {
                let id = db.generate_id().expect("makes an id");
                assert!(id >= self.next_id, "id {id} after id {}", self.next_id - 1);
                self.next_id = id + 1;
            }
            Global::Flush => {
                db.flush().expect("flushes");
                assert_eq!(db.flush(), Ok(0), "a flush left something");
                self.model.flushed();
            }
            Global::FlushAsync => {
                let handle = self.tree(1);
                block_on(handle.flush_async()).expect("flushes");
                self.model.flushed();
            }
            Global::Maintain => maintain(&db).expect("maintains"),
            Global::Checkpoint => checkpoint(&db).expect("makes a checkpoint"),
            Global::CheckInvariants => check_invariants(&db).expect("holds its invariants"),
            Global::DeadHandles => self.dead_handles(),
        }
    }

    fn tree_names(&self) {
        let mut names = self.db().tree_names();
        names.sort();
        let existing = NAMES.iter().zip(self.model.now()).filter(|(_, map)| map.is_some());
        let mut expected: Vec<&[u8]> = existing.map(|(name, _)| *name).collect();
        expected.sort_unstable();
        assert_eq!(names, expected);
    }

    fn ending(&mut self, ending: &Ending) {
        match ending {
            Ending::Reopen => {
                self.close();
                self.model.flushed();
                self.open();
                assert!(self.db().was_recovered(), "opened again");
            }
            Ending::Crash(mode, seed, flush) => {
                if *flush {
                    self.db().flush().expect("flushes");
                    self.model.flushed();
                }
                self.crash(*mode, *seed);
            }
            Ending::PowerCut(during, after, mode, seed) => {
                let cut =
                    if matches!(during, During::Recovery) { u64::MAX } else { self.storage.ops() + after };
                self.storage.set_power_cut_at(cut);
                self.interrupted(*during, *after, *mode, *seed);
                self.crash(*mode, *seed);
            }
        }
    }

    /// Does what the power cut, already set, interrupts.
    fn interrupted(&mut self, during: During, after: u64, mode: CrashMode, seed: u64) {
        let db = self.db().clone();
        match during {
            During::Insert(key, value) => {
                let handle = self.tree(0);
                // Whether it succeeds or not: the last step that a crash may find or not find.
                let _ = handle.insert(key.bytes(), value.bytes());
                self.set(0, &key.bytes(), Some(&value.bytes()));
            }
            During::Flush => {
                if db.flush().is_ok() {
                    self.model.flushed();
                }
            }
            During::Maintain => drop(maintain(&db)),
            During::Checkpoint => drop(checkpoint(&db)),
            During::Close => {
                drop(db);
                self.close();
            }
            During::Recovery => {
                drop(db);
                let left = self.storage.crash(seed, mode);
                self.close();
                left.set_power_cut_at(left.ops() + after);
                drop(open_on(left.clone(), &self.config, tiny(seed, false)));
                self.storage = left;
            }
        }
    }

    /// Loses the power, and goes on with what is found then.
    fn crash(&mut self, mode: CrashMode, seed: u64) {
        let left = self.storage.crash(seed, mode);
        self.close();
        self.storage = left;
        self.open();
        // When nothing can have been lost, some runs go on without touching a page.
        if !self.model.is_durable() || self.random.one_in(4) {
            let found = self.everything();
            if let Err(text) = self.model.recovered(found) {
                panic!("{text}");
            }
        }
    }

    /// What the database holds.
    fn everything(&self) -> State {
        let mut state = [const { None }; 4];
        for name in self.db().tree_names() {
            let place = NAMES.iter().position(|n| name == *n).expect("only trees of this program exist");
            let tree = self.db().open_tree(&name).expect("opens");
            let pairs = tree.iter().map(|pair| pair.expect("no storage error"));
            state[place] = Some(pairs.map(|(key, value)| (key[..].into(), value[..].into())).collect());
        }
        state
    }

    fn check_everything(&mut self) {
        check_invariants(self.db()).expect("holds its invariants");
        self.tree_names();
        for tree in 0..NAMES.len() {
            if self.model.tree(tree).is_some() {
                self.walk(tree, &Over::All, 0);
                self.whole(tree, &Whole::Len);
            }
        }
    }
}

fn edited(old: Option<&[u8]>, edit: Edit) -> Option<Vec<u8>> {
    match edit {
        Edit::Append(byte) => Some([old.unwrap_or_default(), &[byte]].concat()),
        Edit::Set(value) => Some(value.bytes()),
        Edit::Delete => None,
        Edit::Keep => old.map(<[u8]>::to_vec),
    }
}

fn checksum(so_far: u32, map: &Map) -> u32 {
    map.iter().fold(so_far, |crc, (key, value)| crc32(crc32(crc, key), value))
}

/// Like `RangeBounds::contains`, which std has for sized keys only.
fn contains((from, to): (Bound<&[u8]>, Bound<&[u8]>), key: &[u8]) -> bool {
    let after = match from {
        Bound::Included(from) => key >= from,
        Bound::Excluded(from) => key > from,
        Bound::Unbounded => true,
    };
    let before = match to {
        Bound::Included(to) => key <= to,
        Bound::Excluded(to) => key < to,
        Bound::Unbounded => true,
    };
    after && before
}

/// Walks from both ends, by the bits of `turns`, until they meet; then once more through the shortcuts.
fn walk(start: impl Fn() -> Iter, expected: Vec<(&Bytes, &Bytes)>, turns: u64) {
    let (mut front, mut back) = (0, expected.len());
    let mut iter = start();
    for step in 0.. {
        let forwards = turns.rotate_right(step) & 1 == 0;
        let got = if forwards { iter.next() } else { iter.next_back() };
        let place = match (front < back, forwards) {
            (false, _) => None,
            (true, true) => Some(front),
            (true, false) => Some(back - 1),
        };
        same_pair(got.transpose(), place.map(|i| expected[i]), "iterator");
        match place {
            None => break,
            Some(_) if forwards => front += 1,
            Some(_) => back -= 1,
        }
    }
    assert!(iter.next().is_none() && iter.next_back().is_none(), "the ends met and went on");
    match turns % 3 {
        0 => same_pair(start().last().transpose(), expected.last().copied(), "last"),
        1 => {
            let keys = start().keys().map(|key| key.expect("no storage error"));
            assert!(keys.eq(expected.iter().map(|(key, _)| &key[..])), "keys");
        }
        _ => {
            let values = start().values().rev().map(|value| value.expect("no storage error"));
            assert!(values.eq(expected.iter().rev().map(|(_, value)| &value[..])), "values");
        }
    }
}

fn same(got: sled::Result<Option<IVec>>, expected: Option<&[u8]>, what: &str) {
    let got = got.expect("no storage error");
    let text = |value: Option<&[u8]>| value.map_or("nothing".to_string(), brief);
    assert!(got.as_deref() == expected, "{what}: {}, expected {}", text(got.as_deref()), text(expected));
}

fn same_pair(got: sled::Result<Option<Pair>>, expected: Option<(&Bytes, &Bytes)>, what: &str) {
    let got = got.expect("no storage error");
    same(Ok(got.as_ref().map(|(key, _)| key.clone())), expected.map(|(key, _)| &key[..]), what);
    same(Ok(got.map(|(_, value)| value)), expected.map(|(_, value)| &value[..]), what);
}
