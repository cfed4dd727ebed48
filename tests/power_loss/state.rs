//! The model: the contents of all trees, the steps between them, and a fingerprint that does not depend on order.

use super::common_durability::{hash, mix};
use sled::Db;
use std::collections::BTreeMap;

/// The tree that is always there.
pub const DEFAULT: &str = "__sled__default";

/// Keys and their values.
pub type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

/// The trees that exist, with their contents.
pub type State = BTreeMap<Vec<u8>, Pairs>;

/// What happens to one key or tree.
#[derive(Clone, Debug)]
pub enum Change {
    /// A key has a new value, or (`None`) none.
    Put(&'static str, Vec<u8>, Option<Vec<u8>>),
    /// A tree is there, empty.
    Create(&'static str),
    /// A tree is gone.
    Drop(&'static str),
}

/// Changes of which a crash leaves all or none.
pub type Step = Vec<Change>;

/// A new database.
pub fn empty() -> State {
    State::from([(DEFAULT.as_bytes().to_vec(), Pairs::new())])
}

fn pair_print(tree: &[u8], key: &[u8], value: &[u8]) -> u64 {
    mix(hash(hash(hash(1, tree), key), value))
}

fn tree_print(tree: &[u8]) -> u64 {
    mix(hash(2, tree))
}

/// The fingerprint of a state: a sum over its parts.
pub fn print_of(state: &State) -> u64 {
    let trees = state.iter().map(|(name, pairs)| {
        let pairs = pairs.iter().map(|(key, value)| pair_print(name, key, value));
        pairs.fold(tree_print(name), u64::wrapping_add)
    });
    trees.fold(0, u64::wrapping_add)
}

/// Carries a step out and gives the fingerprint after it, from the one before.
pub fn apply(state: &mut State, mut print: u64, step: &Step) -> u64 {
    for change in step {
        print = match change {
            Change::Put(tree, key, value) => {
                let name = tree.as_bytes();
                let pairs = state.get_mut(name).expect("only trees that are there are written");
                let old = match value {
                    Some(value) => pairs.insert(key.clone(), value.clone()),
                    None => pairs.remove(key),
                };
                let part = |value: &[u8]| pair_print(name, key, value);
                print
                    .wrapping_sub(old.as_deref().map_or(0, part))
                    .wrapping_add(value.as_deref().map_or(0, part))
            }
            Change::Create(tree) => {
                state.insert(tree.as_bytes().to_vec(), Pairs::new());
                print.wrapping_add(tree_print(tree.as_bytes()))
            }
            Change::Drop(tree) => {
                let gone = state.remove_entry(tree.as_bytes());
                print.wrapping_sub(print_of(&State::from_iter(gone)))
            }
        };
    }
    print
}

/// The step from one state to another; `names` are all names of trees.
pub fn step_between(from: &State, to: &State, names: &[&'static str]) -> Step {
    let mut step = Step::new();
    for name in names {
        let (old, new) = (from.get(name.as_bytes()), to.get(name.as_bytes()));
        match (old, new) {
            (None, Some(_)) => step.push(Change::Create(name)),
            (Some(_), None) => step.push(Change::Drop(name)),
            _ => {}
        }
        let (Some(new), old) = (new, old.cloned().unwrap_or_default()) else { continue };
        let gone = old.keys().filter(|key| !new.contains_key(*key));
        step.extend(gone.map(|key| Change::Put(name, key.clone(), None)));
        let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(value));
        step.extend(changed.map(|(key, value)| Change::Put(name, key.clone(), Some(value.clone()))));
    }
    step
}

/// What a database holds.
pub fn contents(db: &Db) -> sled::Result<State> {
    let mut state = State::new();
    for name in db.tree_names() {
        let pairs = db.open_tree(&name)?.iter().map(|pair| pair.map(|(k, v)| (k.to_vec(), v.to_vec())));
        state.insert(name.to_vec(), pairs.collect::<sled::Result<_>>()?);
    }
    Ok(state)
}

/// The fingerprint of what a database holds.
pub fn fingerprint(db: &Db) -> sled::Result<u64> {
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

/// How two states differ, in words.
pub fn differences(expected: &State, found: &State) -> String {
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
