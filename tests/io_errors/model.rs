//! What every key may hold after some operations failed, now and after a crash.

use std::collections::BTreeMap;

/// Number of the tree and key. Tree [`NAMES`] stands for the list of trees: its keys are names.
pub type Key = (usize, Vec<u8>);
/// `None`: the key is not there.
pub type Value = Option<Vec<u8>>;

/// The trees that hold keys.
pub const TREES: [&str; 2] = ["one", "two"];
/// The number that stands for the list of trees.
pub const NAMES: usize = TREES.len();

#[derive(Clone, Default)]
pub struct Model {
    /// Values that may be read now: one, or two after an operation failed. The last one is the newest.
    pub now: BTreeMap<Key, Vec<Value>>,
    /// Values that may be found after a crash: the acknowledged ones and everything tried since.
    pub later: BTreeMap<Key, Vec<Value>>,
    /// What batches and transactions put since the last flush, as far as nothing else was tried on the key since:
    /// all or nothing of each is there.
    commits: Vec<BTreeMap<Key, Value>>,
    /// The last identifier that was handed out.
    pub last_id: Option<u64>,
}

impl Model {
    fn wrote(&mut self, key: &Key, value: &Value, returned: bool) {
        let now = self.now.entry(key.clone()).or_insert_with(|| vec![None]);
        if returned {
            now.clear();
        }
        now.push(value.clone());
        self.later.entry(key.clone()).or_insert_with(|| vec![None]).push(value.clone());
    }

    /// Notes what was tried at once, and whether it was acknowledged.
    pub fn committed(&mut self, writes: &[(Key, Value)], returned: bool) {
        for (key, value) in writes {
            self.wrote(key, value, returned);
            self.commits.iter_mut().for_each(|commit| drop(commit.remove(key)));
        }
        self.commits.retain(|commit| commit.len() > 1);
        let puts = writes.iter().filter(|(_, value)| value.is_some());
        self.commits.push(puts.cloned().collect());
    }

    pub fn flushed(&mut self) {
        self.later = self.now.clone();
        // What was not acknowledged and not looked at may still be either, but all of it.
        self.commits.retain(|commit| commit.keys().all(|key| self.now[key].len() > 1));
    }

    /// Notes what a key holds now, if it may.
    pub fn read(&mut self, key: Key, value: Value) -> Result<(), String> {
        let now = self.now.entry(key.clone()).or_insert_with(|| vec![None]);
        if !now.contains(&value) {
            let expected: String = now.iter().map(show).collect();
            return Err(format!("{key:?} reads as {}, not {expected}", show(&value)));
        }
        *now = vec![value];
        Ok(())
    }

    /// Compares with what is found after a crash.
    pub fn compare(&self, mut find: impl FnMut(&Key) -> Result<Value, String>) -> Result<(), String> {
        let mut all = BTreeMap::new();
        for (key, values) in &self.later {
            let found = find(key)?;
            if !values.contains(&found) {
                let expected: String = values.iter().map(show).collect();
                return Err(format!("{key:?} is {} not one of {expected}", show(&found)));
            }
            all.insert(key, found);
        }
        for commit in &self.commits {
            let there = commit.iter().filter(|(key, value)| all[key] == **value).count();
            if there != 0 && there != commit.len() {
                return Err(format!("{there} of {} changes that were made at once are there", commit.len()));
            }
        }
        Ok(())
    }
}

fn show(value: &Value) -> String {
    value
        .as_ref()
        .map_or("nothing, ".into(), |v| format!("{} bytes {:02x?}.., ", v.len(), &v[..v.len().min(4)]))
}
