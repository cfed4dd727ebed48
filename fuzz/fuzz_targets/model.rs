//! What the database must hold now, and what it may hold after a crash.
//!
//! - C1: everything before the last successful flush is there after a crash.
//! - C2: of what came later a prefix is there, in the order in which it was done.

use std::collections::BTreeMap;

/// (tree, key) -> value; the tree is `false` for the default one.
pub type Map = BTreeMap<(bool, Vec<u8>), Vec<u8>>;

/// The tree, the key and what it gets: a value or none.
pub type Put = (bool, Vec<u8>, Option<Vec<u8>>);

/// One atomic change of the database.
#[derive(Clone, Debug)]
pub enum Change {
    /// A batch or a transaction has several, anything else one.
    Put(Vec<Put>),
    DropOther,
}

impl Change {
    /// Of one key.
    pub fn of(other: bool, key: &[u8], value: Option<Vec<u8>>) -> Change {
        Change::Put(vec![(other, key.to_vec(), value)])
    }

    fn apply(&self, map: &mut Map) {
        match self {
            Change::Put(puts) => {
                for (other, key, value) in puts {
                    match value {
                        Some(value) => drop(map.insert((*other, key.clone()), value.clone())),
                        None => drop(map.remove(&(*other, key.clone()))),
                    }
                }
            }
            Change::DropOther => map.retain(|(other, _), _| !other),
        }
    }
}

/// What the database must hold, and what a crash may leave of it.
#[derive(Default)]
pub struct Model {
    pub live: Map,
    durable: Map,
    /// From `durable` to `live`.
    pending: Vec<Change>,
}

impl Model {
    /// Adds a change.
    pub fn apply(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.pending.push(change);
    }

    /// Whether a change would leave another state.
    pub fn alters(&self, change: &Change) -> bool {
        let mut after = self.live.clone();
        change.apply(&mut after);
        after != self.live
    }

    /// The value of a key.
    pub fn get(&self, other: bool, key: &[u8]) -> Option<&Vec<u8>> {
        self.live.get(&(other, key.to_vec()))
    }

    /// The pairs of one tree.
    pub fn tree(&self, other: bool) -> BTreeMap<&[u8], &[u8]> {
        let pairs = self.live.iter().filter(|((tree, _), _)| *tree == other);
        pairs.map(|((_, key), value)| (&key[..], &value[..])).collect()
    }

    /// Everything that was done is durable.
    pub fn flushed(&mut self) {
        self.durable = self.live.clone();
        self.pending.clear();
    }

    /// Accepts what an open found after a crash, if it is a prefix.
    pub fn recovered(&mut self, found: Map) {
        let mut state = self.durable.clone();
        // The longest prefix: a shorter one with the same outcome would forget states on the way.
        let mut prefix = (state == found).then_some(0);
        for (i, change) in self.pending.iter().enumerate() {
            change.apply(&mut state);
            if state == found {
                prefix = Some(i + 1);
            }
        }
        let Some(prefix) = prefix else {
            panic!("C1, C2: {found:?} is no prefix of {:?} after {:?}", self.pending, self.durable);
        };
        self.pending.truncate(prefix);
        self.live = found;
    }
}
