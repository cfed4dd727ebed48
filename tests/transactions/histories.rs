//! Thousands of short random schedules of transactions, batches and plain operations, each checked.
//!
//! # How it works
//!
//! A round sets a few hot keys of up to three trees, lets three to six threads do some operations each, reads
//! everything once more, and has the checker look at what everybody saw. A neighbour keeps the pages around
//! the hot keys changing their shape, as in the test of single keys.
//!
//! Values are lists of numbers, each given out once, and padding of a length that now and then changes. Every
//! attempt of a closure writes numbers of its own. Per round and key one thread may write without looking,
//! by batch, and one removal may happen: then the checker always knows which write was seen.

use crate::checker::{Key, Op, Seen, Step, check, overlaps};
use crate::common::{Random, Watchdog};
use crate::{beside_churn, dawdle, on_threads, soak, tiny_db};
use sled::testing::{check_invariants, counters};
use sled::transaction::{
    ConflictableTransactionResult, TransactionError, TransactionalTree, UnabortableTransactionError, abort,
};
use sled::{Batch, Db, IVec, Result, Transactional, Tree};
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Rounds of the normal run.
const ROUNDS: u64 = 4_000;
/// Hot keys of each tree: these many in each of the groups.
const PER_GROUP: u8 = 3;
const GROUPS: [u8; 2] = *b"mp";
const PER_TREE: u8 = PER_GROUP * 2;

fn bytes(key: Key) -> [u8; 2] {
    let within = key % PER_TREE;
    [GROUPS[usize::from(within / PER_GROUP)], within % PER_GROUP]
}

fn tree_of(key: Key) -> usize {
    usize::from(key / PER_TREE)
}

/// A count, the numbers, and zeros.
fn pack(list: &[u64], padding: usize) -> Vec<u8> {
    let count = u8::try_from(list.len()).expect("short lists");
    let numbers = list.iter().flat_map(|n| n.to_be_bytes());
    std::iter::once(count).chain(numbers).chain(std::iter::repeat_n(0, padding)).collect()
}

fn unpack(value: &[u8]) -> Vec<u64> {
    let (numbers, _) = value[1..].as_chunks::<8>();
    numbers[..usize::from(value[0])].iter().map(|n| u64::from_be_bytes(*n)).collect()
}

fn unpack_seen(value: Option<impl AsRef<[u8]>>) -> Seen {
    value.map(|value| unpack(value.as_ref()))
}

/// The value with one number more; the padding stays.
fn appended(old: Option<&[u8]>, number: u64) -> Vec<u8> {
    let Some(old) = old else { return pack(&[number], 0) };
    let mut list = unpack(old);
    let padding = old.len() - 1 - 8 * list.len();
    list.push(number);
    pack(&list, padding)
}

fn append_operator(_: &[u8], old: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
    Some(appended(old, u64::from_be_bytes(operand.try_into().expect("a number"))))
}

/// What a transaction is going to do.
#[derive(Clone, Debug)]
enum Plan {
    Get(Key),
    Contains(Key),
    Insert(Key),
    Remove(Key),
    Merge(Key),
    /// By an inner batch.
    Batch(Key),
    /// All keys of the group of this key, from the front or from the back.
    Scan(Key, bool),
    /// Keys of the group from this one to the last, or up to this one.
    Part(Key, bool),
    /// The first, or the last, key of its group.
    End(Key, bool),
}

/// What the threads of a round share.
struct Round<'a> {
    trees: &'a [Tree],
    clock: &'a AtomicU64,
    /// Numbers that nobody has written.
    numbers: &'a AtomicU64,
    threads: usize,
    /// Per key, whether it was there when the round began; only then it may be removed, once.
    present: &'a [bool],
}

impl Round<'_> {
    fn now(&self) -> u64 {
        // SeqCst: the order of these steps, over all threads, is what the checker goes by.
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn number(&self) -> u64 {
        // Relaxed: only has to differ.
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn keys(&self) -> u8 {
        u8::try_from(self.present.len()).expect("few keys")
    }

    /// Whether this thread may remove the key and write it without looking.
    fn owns(&self, thread: usize, key: Key) -> bool {
        usize::from(key) % self.threads == thread
    }
}

/// One run of a closure.
struct Attempt {
    end: u64,
    steps: Vec<Step>,
}

/// Notes what a run of a closure does, also when it ends early.
struct Recorder<'a> {
    round: &'a Round<'a>,
    attempts: &'a RefCell<Vec<Attempt>>,
    steps: RefCell<Vec<Step>>,
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        let attempt = Attempt { end: self.round.now(), steps: self.steps.take() };
        self.attempts.borrow_mut().push(attempt);
    }
}

impl Recorder<'_> {
    fn note(&self, step: Step) {
        self.steps.borrow_mut().push(step);
    }

    /// Notes the keys from `first` to `last` as a scan found them: what it did not bring is not there.
    fn note_scan(&self, first: Key, last: Key, backwards: bool, mut found: Vec<(IVec, IVec)>) {
        if backwards {
            found.reverse();
        }
        assert!(found.is_sorted_by(|a, b| a.0 < b.0), "a scan out of order: {found:?}");
        let mut found = found.into_iter().peekable();
        for key in first..=last {
            let here = found.next_if(|(k, _)| *k == bytes(key));
            self.note(Step::Read(key, unpack_seen(here.map(|(_, value)| value))));
        }
        assert_eq!(found.next(), None, "a scan left its bounds");
    }

    fn follow(
        &self,
        plan: &Plan,
        views: &[TransactionalTree],
        padding: usize,
    ) -> std::result::Result<(), UnabortableTransactionError> {
        let group = |key: Key| (key - key % PER_GROUP, key - key % PER_GROUP + PER_GROUP - 1);
        match *plan {
            Plan::Get(key) => {
                self.note(Step::Read(key, unpack_seen(views[tree_of(key)].get(bytes(key))?)));
            }
            Plan::Contains(key) => {
                if !views[tree_of(key)].contains_key(bytes(key))? {
                    self.note(Step::Read(key, None));
                }
            }
            Plan::Insert(key) => {
                let number = self.round.number();
                let old = views[tree_of(key)].insert(&bytes(key)[..], pack(&[number], padding))?;
                self.note(Step::Read(key, unpack_seen(old)));
                self.note(Step::Put(key, number));
            }
            Plan::Remove(key) => {
                let old = unpack_seen(views[tree_of(key)].remove(&bytes(key)[..])?);
                let there = old.is_some();
                self.note(Step::Read(key, old));
                if there {
                    self.note(Step::Remove(key));
                }
            }
            Plan::Merge(key) => {
                let number = self.round.number();
                views[tree_of(key)].merge(bytes(key), number.to_be_bytes())?;
                self.note(Step::Append(key, number));
            }
            Plan::Batch(key) => {
                let number = self.round.number();
                let mut batch = Batch::default();
                batch.insert(&bytes(key)[..], pack(&[number], padding));
                views[tree_of(key)].apply_batch(&batch)?;
                self.note(Step::Put(key, number));
            }
            Plan::Scan(key, backwards) => {
                let all = views[tree_of(key)].scan_prefix(&bytes(key)[..1]);
                let found: std::result::Result<Vec<_>, _> =
                    if backwards { all.rev().collect() } else { all.collect() };
                self.note_scan(group(key).0, group(key).1, backwards, found?);
            }
            Plan::Part(key, from_here) => {
                let (first, last) = group(key);
                let (first, last) = if from_here { (key, last) } else { (first, key) };
                let found: std::result::Result<Vec<_>, _> =
                    views[tree_of(key)].range(bytes(first)..=bytes(last)).collect();
                self.note_scan(first, last, false, found?);
            }
            Plan::End(key, front) => {
                let (first, last) = group(key);
                let [letter, _] = bytes(key);
                let found = if front {
                    views[tree_of(key)].get_gt([letter])?
                } else {
                    views[tree_of(key)].get_lt([letter, 0xFF])?
                };
                // What is not of the group says that the group is empty.
                match found.filter(|(k, _)| k[0] == letter) {
                    Some((k, value)) if front => self.note_scan(first, first + k[1], false, vec![(k, value)]),
                    Some((k, value)) => self.note_scan(first + k[1], last, false, vec![(k, value)]),
                    None => self.note_scan(first, last, false, Vec::new()),
                }
            }
        }
        Ok(())
    }
}

/// Some operations of one thread.
struct Thread<'a> {
    round: &'a Round<'a>,
    number: usize,
    random: Random,
    ops: Vec<Op>,
    /// Keys of its own whose removal it has tried.
    removed: Vec<Key>,
}

impl Thread<'_> {
    fn key(&mut self) -> Key {
        // One tree and group in most cases, so that threads meet.
        let keys = if self.random.one_in(3) { self.round.keys() } else { PER_GROUP };
        u8::try_from(self.random.below(u64::from(keys))).expect("few keys")
    }

    fn may_remove(&mut self, key: Key) -> bool {
        let may = self.round.owns(self.number, key)
            && self.round.present[usize::from(key)]
            && !self.removed.contains(&key);
        if may {
            self.removed.push(key);
        }
        may
    }

    fn note(&mut self, name: &'static str, begin: u64, steps: Vec<Step>) {
        let end = self.round.now();
        self.ops.push(Op { name, thread: self.number, begin, end, committed: true, steps });
    }

    fn plans(&mut self) -> Vec<Plan> {
        let count = 2 + self.random.below(4);
        let mut plans: Vec<Plan> = Vec::new();
        for _ in 0..count {
            let key = self.key();
            let flip = self.random.one_in(2);
            plans.push(match self.random.below(20) {
                0..6 => Plan::Get(key),
                6 => Plan::Contains(key),
                7..11 => Plan::Insert(key),
                11..14 => Plan::Merge(key),
                14 => Plan::Scan(key, flip),
                15 => Plan::Part(key, flip),
                16 => Plan::End(key, flip),
                17 if self.round.owns(self.number, key) => Plan::Batch(key),
                18 if self.may_remove(key) => Plan::Remove(key),
                _ => Plan::Get(key),
            });
        }
        plans
    }

    fn transaction(&mut self) -> Result<()> {
        let plans = self.plans();
        let (aborts, shape) = (self.random.one_in(10), self.random.below(4));
        let random = Random::new(self.random.next());
        let round = self.round;
        let attempts = RefCell::new(Vec::new());
        let body = |views: &[TransactionalTree]| -> ConflictableTransactionResult<(), ()> {
            let recorder = Recorder { round, attempts: &attempts, steps: RefCell::default() };
            let mut random = random.clone();
            for plan in &plans {
                recorder.follow(plan, views, random.index(4) * 25)?;
                dawdle(&mut random);
            }
            if aborts { abort(()) } else { Ok(()) }
        };
        let begin = round.now();
        let trees = round.trees;
        let result = match (shape, trees) {
            (_, [tree]) => tree.transaction(|view| body(std::slice::from_ref(view))),
            (0, [a, b]) => (a, b).transaction(|(a, b)| body(&[a.clone(), b.clone()])),
            (0, [a, b, c]) => (a, b, c).transaction(|(a, b, c)| body(&[a.clone(), b.clone(), c.clone()])),
            (1, _) => trees.iter().collect::<Vec<_>>()[..].transaction(|views| body(views)),
            _ => trees.transaction(|views| body(views)),
        };
        let end = round.now();
        let committed = match result {
            Ok(()) => true,
            Err(TransactionError::Abort(())) => false,
            Err(TransactionError::Storage(error)) => return Err(error),
        };
        assert_eq!(committed, !aborts, "aborted exactly when asked to");
        let attempts = attempts.into_inner();
        let last = attempts.len().checked_sub(1).expect("the closure ran");
        let mut since = begin;
        for (number, attempt) in attempts.into_iter().enumerate() {
            let committed = committed && number == last;
            let (name, begin, end) = match committed {
                true => ("transaction", begin, end),
                false => ("attempt", since, attempt.end),
            };
            since = attempt.end;
            self.ops.push(Op { name, thread: self.number, begin, end, committed, steps: attempt.steps });
        }
        Ok(())
    }

    fn batch(&mut self) -> Result<()> {
        let mut batches = vec![Batch::default(); self.round.trees.len()];
        let mut steps = vec![Vec::new(); self.round.trees.len()];
        for key in 0..self.round.keys() {
            if !self.round.owns(self.number, key) || self.random.one_in(3) {
                continue;
            }
            if self.random.one_in(4) && self.may_remove(key) {
                // Nobody else removes it, so it is there.
                batches[tree_of(key)].remove(&bytes(key)[..]);
                steps[tree_of(key)].push(Step::Remove(key));
            } else {
                let number = self.round.number();
                batches[tree_of(key)].insert(&bytes(key)[..], pack(&[number], self.random.index(4) * 25));
                steps[tree_of(key)].push(Step::Put(key, number));
            }
        }
        for (tree, (batch, steps)) in batches.into_iter().zip(steps).enumerate() {
            let begin = self.round.now();
            self.round.trees[tree].apply_batch(batch)?;
            self.note("batch", begin, steps);
        }
        Ok(())
    }

    fn plain(&mut self) -> Result<()> {
        let key = self.key();
        let tree = &self.round.trees[tree_of(key)];
        let number = self.round.number();
        let put = |list: Seen| vec![Step::Read(key, list), Step::Put(key, number)];
        let added = |list: Seen| {
            let mut list = list.expect("nothing removes here");
            assert_eq!(list.pop(), Some(number), "the own number is not last");
            let old = (!list.is_empty()).then_some(list);
            vec![Step::Read(key, old), Step::Append(key, number)]
        };
        let value = pack(&[number], self.random.index(4) * 25);
        let begin = self.round.now();
        match self.random.below(8) {
            0..3 => {
                let seen = unpack_seen(tree.get(bytes(key))?);
                self.note("get", begin, vec![Step::Read(key, seen)]);
            }
            3 => {
                let old = unpack_seen(tree.insert(bytes(key), value)?);
                self.note("insert", begin, put(old));
            }
            4 => {
                let new = tree.update_and_fetch(bytes(key), |old| Some(appended(old, number)))?;
                self.note("update_and_fetch", begin, added(unpack_seen(new)));
            }
            5 => {
                let new = tree.merge(bytes(key), number.to_be_bytes())?;
                self.note("merge", begin, added(unpack_seen(new)));
            }
            6 => {
                let old = tree.get(bytes(key))?;
                let seen = unpack_seen(old.as_ref());
                self.note("get", begin, vec![Step::Read(key, seen.clone())]);
                let begin = self.round.now();
                match tree.compare_and_swap(bytes(key), old, Some(value))? {
                    Ok(()) => self.note("compare_and_swap", begin, put(seen)),
                    Err(failed) => {
                        let seen = unpack_seen(failed.current);
                        self.note("failed compare_and_swap", begin, vec![Step::Read(key, seen)]);
                    }
                }
            }
            _ if self.may_remove(key) => {
                let old = unpack_seen(tree.remove(bytes(key))?);
                assert!(old.is_some(), "key {key} was there, and only this thread removes it");
                self.note("remove", begin, vec![Step::Read(key, old), Step::Remove(key)]);
            }
            _ => {
                let there = tree.contains_key(bytes(key))?;
                let steps = if there { Vec::new() } else { vec![Step::Read(key, None)] };
                self.note("contains_key", begin, steps);
            }
        }
        Ok(())
    }

    fn run(mut self, count: u64) -> Result<Vec<Op>> {
        for _ in 0..count {
            match self.random.below(10) {
                0 => self.batch()?,
                1..5 => self.plain()?,
                _ => self.transaction()?,
            }
            dawdle(&mut self.random);
        }
        Ok(self.ops)
    }
}

/// Brings every key to a state of this round; the first operation of the history.
fn prepare(round: &Round<'_>, random: &mut Random) -> Result<Op> {
    let begin = round.now();
    let mut steps = Vec::new();
    for key in 0..round.keys() {
        let tree = &round.trees[tree_of(key)];
        if round.present[usize::from(key)] {
            let number = round.number();
            tree.insert(bytes(key), pack(&[number], random.index(4) * 25))?;
            steps.push(Step::Put(key, number));
        } else {
            tree.remove(bytes(key))?;
            steps.push(Step::Remove(key));
        }
    }
    Ok(Op { name: "setup", thread: usize::MAX, begin, end: round.now(), committed: true, steps })
}

/// What one round showed.
#[derive(Debug, Default)]
struct Tally {
    rounds: u64,
    ops: usize,
    attempts: usize,
    overlaps: usize,
    /// What closures saw although it never was, in runs that did not commit.
    mixed: Vec<String>,
}

fn round(trees: &[Tree], seed: u64, numbers: &AtomicU64, tally: &mut Tally) -> Result<()> {
    let mut random = Random::new(seed);
    let trees = &trees[..1 + random.index(trees.len())];
    let threads = 3 + random.index(4);
    let keys = trees.len() * usize::from(PER_TREE);
    let present: Vec<bool> = (0..keys).map(|_| !random.one_in(4)).collect();
    let clock = AtomicU64::new(0);
    let round = Round { trees, clock: &clock, numbers, threads, present: &present };
    let mut history = vec![prepare(&round, &mut random)?];
    let count = 2 + random.below(4);
    let all = on_threads(threads, |number| {
        let random = Random::new(seed << 4 | number as u64);
        Thread { round: &round, number, random, ops: Vec::new(), removed: Vec::new() }.run(count)
    })?;
    history.extend(all.into_iter().flatten());
    let begin = round.now();
    let steps = (0..round.keys()).map(|key| {
        let value = trees[tree_of(key)].get(bytes(key))?;
        Ok(Step::Read(key, unpack_seen(value)))
    });
    let steps = steps.collect::<Result<_>>()?;
    history.push(Op { name: "end", thread: usize::MAX, begin, end: round.now(), committed: true, steps });
    if let Err(wrong) = check(&history) {
        // Is it only what runs have seen that were thrown away?
        let committed: Vec<Op> = history.iter().filter(|op| op.committed).cloned().collect();
        if let Err(wrong) = check(&committed) {
            panic!("seed {seed}: {wrong}");
        }
        tally.mixed.push(format!("seed {seed}: {wrong}"));
    }
    tally.rounds += 1;
    tally.ops += history.len();
    tally.attempts += history.iter().filter(|op| !op.committed).count();
    tally.overlaps += overlaps(&history);
    Ok(())
}

fn rare_paths_left(db: &Db) -> Vec<&'static str> {
    let c = counters(db);
    let paths = [
        ("consolidations", c.consolidations),
        ("leaf_splits", c.leaf_splits),
        ("node_merges", c.node_merges),
        ("evictions", c.evictions),
        ("page_outs", c.page_outs),
        ("faults", c.faults),
        ("checkpoints", c.checkpoints),
    ];
    paths.into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect()
}

#[test]
fn random_schedules_are_strictly_serializable() -> Result<()> {
    let dog = Watchdog::start("histories", 30);
    let db = tiny_db(1, true)?;
    let mut trees = Vec::new();
    for name in ["a", "b", "c"] {
        let tree = db.open_tree(name)?;
        tree.set_merge_operator(append_operator);
        trees.push(tree);
    }
    let numbers = AtomicU64::new(1);
    let mut tally = Tally::default();
    let start = Instant::now();
    // Between the groups too, but no scan crosses that.
    beside_churn(&db, &trees[0], &[b"l", b"n", b"o", b"q"], || {
        for seed in 0.. {
            round(&trees, seed, &numbers, &mut tally)?;
            dog.kick();
            let enough = tally.rounds >= ROUNDS * soak() && rare_paths_left(&db).is_empty();
            if enough || tally.rounds >= ROUNDS && start.elapsed() > Duration::from_secs(60 * soak()) {
                break;
            }
        }
        Ok(())
    })?;
    let mixed = std::mem::take(&mut tally.mixed);
    println!("{tally:?} in {:?}: {:?}", start.elapsed(), counters(&db));
    assert!(mixed.is_empty(), "runs that saw what never was, {}:\n{}", mixed.len(), mixed[0]);
    assert!(tally.overlaps > tally.ops / 4, "hardly anything ran at the same time");
    assert_eq!(rare_paths_left(&db), [""; 0], "paths that never ran beside the histories");
    check_invariants(&db)
}
