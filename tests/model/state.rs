//! The model: maps in memory, and every state since the last flush.
//!
//! # How it works
//!
//! A crash may lose what was not flushed, but only from the end: what is found afterwards must be the durable
//! state plus the first so many changes, in the order they were made. `Model::recovered` walks these
//! states with a count of the keys that differ from what was found, so one step costs one comparison.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The trees of a program; the first is the default tree.
pub const NAMES: [&[u8]; 4] = [b"__sled__default", b"", b"forgetful", &[b'n'; 300]];

/// A key or a value.
pub type Bytes = Arc<[u8]>;
/// The content of one tree.
pub type Map = BTreeMap<Bytes, Bytes>;
/// The content of every tree that exists, by its place in `NAMES`.
pub type State = [Option<Map>; 4];

/// One step from a state to the next; never half done after a crash.
#[derive(Clone, Debug)]
pub enum Change {
    /// A key has a new value, or (`None`) is gone.
    Put(usize, Bytes, Option<Bytes>),
    /// A tree is there, empty.
    Create(usize),
    /// A tree is gone.
    Drop(usize),
}

/// What the database must hold now, and what a crash may leave of it.
pub struct Model {
    now: State,
    durable: State,
    since: Vec<Change>,
}

impl Model {
    /// A new database: the default tree, empty.
    pub fn new() -> Model {
        let state = [Some(Map::new()), None, None, None];
        Model { now: state.clone(), durable: state, since: Vec::new() }
    }

    /// The content of a tree, if it exists.
    pub fn tree(&self, tree: usize) -> Option<&Map> {
        self.now[tree].as_ref()
    }

    /// The whole content.
    pub fn now(&self) -> &State {
        &self.now
    }

    /// True when a crash can lose nothing.
    pub fn is_durable(&self) -> bool {
        self.since.is_empty()
    }

    /// Makes one change.
    pub fn change(&mut self, change: Change) {
        apply(&mut self.now, &change);
        self.since.push(change);
    }

    /// Whatever was changed so far survives from here on.
    pub fn flushed(&mut self) {
        for change in self.since.drain(..) {
            apply(&mut self.durable, &change);
        }
    }

    /// Goes on with what was found after a crash; in words why that cannot be.
    pub fn recovered(&mut self, found: State) -> Result<(), String> {
        let mut candidate = self.durable.clone();
        let mut differences = difference(&candidate, &found);
        let mut closest = (differences, 0, describe(&candidate, &found));
        for (i, change) in self.since.iter().enumerate() {
            if differences == 0 {
                break;
            }
            let before = touched(&candidate, &found, change);
            apply(&mut candidate, change);
            differences = differences - before + touched(&candidate, &found, change);
            if differences < closest.0 {
                closest = (differences, i + 1, describe(&candidate, &found));
            }
        }
        if differences != 0 {
            let (count, step, example) = closest;
            let steps = self.since.len();
            return Err(format!(
                "no prefix of the {steps} changes since the flush was recovered; \
                 after {step} of them {count} keys differ: {example}"
            ));
        }
        self.durable = found.clone();
        self.now = found;
        self.since.clear();
        Ok(())
    }
}

fn apply(state: &mut State, change: &Change) {
    match change {
        Change::Put(tree, key, value) => {
            let map = state[*tree].as_mut().expect("only trees that exist are written");
            match value {
                Some(value) => map.insert(Arc::clone(key), Arc::clone(value)),
                None => map.remove(key),
            };
        }
        Change::Create(tree) => state[*tree] = Some(Map::new()),
        Change::Drop(tree) => state[*tree] = None,
    }
}

/// How many keys differ, a tree that is not there counting as one more.
fn difference(a: &State, b: &State) -> usize {
    a.iter().zip(b).map(|(a, b)| tree_difference(a.as_ref(), b.as_ref())).sum()
}

fn tree_difference(a: Option<&Map>, b: Option<&Map>) -> usize {
    let keys = |map: Option<&Map>, other: Option<&Map>| {
        let differs = |(key, value): &(&Bytes, &Bytes)| other.and_then(|o| o.get(*key)) != Some(*value);
        map.map_or(0, |map| map.iter().filter(differs).count())
    };
    let extra = |(key, _): &(&Bytes, &Bytes)| !a.is_some_and(|a| a.contains_key(*key));
    let only_in_b = b.map_or(0, |b| b.iter().filter(extra).count());
    keys(a, b) + only_in_b + usize::from(a.is_some() != b.is_some())
}

/// The part of `difference` that a change can affect.
fn touched(a: &State, b: &State, change: &Change) -> usize {
    match change {
        Change::Put(tree, key, _) => {
            let get = |state: &State| state[*tree].as_ref().and_then(|map| map.get(key)).cloned();
            usize::from(get(a) != get(b))
        }
        Change::Create(tree) | Change::Drop(tree) => tree_difference(a[*tree].as_ref(), b[*tree].as_ref()),
    }
}

/// The first difference, in words.
fn describe(expected: &State, found: &State) -> String {
    for (tree, (a, b)) in expected.iter().zip(found).enumerate() {
        if a.is_some() != b.is_some() {
            return format!("tree {tree} exists: {}, expected: {}", b.is_some(), a.is_some());
        }
        let (Some(a), Some(b)) = (a, b) else { continue };
        for key in a.keys().chain(b.keys()) {
            if a.get(key) != b.get(key) {
                let text = |map: &Map| map.get(key).map_or("nothing".to_string(), |value| brief(value));
                return format!("tree {tree}, key {}: {}, expected {}", brief(key), text(b), text(a));
            }
        }
    }
    "none".to_string()
}

/// A key or value for a message.
pub fn brief(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(12)];
    format!("{} bytes {start:02x?}", bytes.len())
}

fn put(key: &[u8], value: Option<&[u8]>) -> Change {
    Change::Put(0, key.into(), value.map(Into::into))
}

#[test]
fn recovery_finds_prefixes_and_nothing_else() {
    let steps = [
        put(b"a", Some(b"1")),
        Change::Create(1),
        put(b"b", Some(b"2")),
        put(b"a", Some(b"3")),
        put(b"b", None),
        Change::Drop(1),
    ];
    let after = |kept: &[usize]| {
        let mut model = Model::new();
        kept.iter().for_each(|i| model.change(steps[*i].clone()));
        model.now().clone()
    };
    let check = |found: State, flush_at: usize| {
        let mut model = Model::new();
        for (i, step) in steps.iter().enumerate() {
            if i == flush_at {
                model.flushed();
            }
            model.change(step.clone());
        }
        model.recovered(found)
    };
    for n in 0..=steps.len() {
        let prefix: Vec<usize> = (0..n).collect();
        assert_eq!(check(after(&prefix), 0), Ok(()), "the first {n} changes");
        let lost = n < 3;
        assert_eq!(check(after(&prefix), 3).is_err(), lost, "the first {n} changes, three of them flushed");
    }
    for holes in [&[1][..], &[1, 2], &[0, 2], &[0, 1, 2, 3, 5]] {
        let text = check(after(holes), 0).expect_err("a change before a recovered one is missing");
        assert!(text.contains("no prefix of the 6 changes"), "{text}");
    }
}
