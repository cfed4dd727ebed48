//! A database on a medium that fails, with the model of what it may hold.

use super::common_durability::{block_on, open_tiny};
use super::model::{Key, Model, NAMES, TREES, Value};
use super::workload::{Op, Workload};
use sled::testing::{CrashMode, SimStorage, check_invariants, checkpoint, maintain};
use sled::{Batch, Db, Error, Transactional, Tree};

pub const BUFFER: usize = 512;

/// A database under test; the trees are opened when it is healthy.
pub struct Subject {
    pub medium: SimStorage,
    pub db: Db,
    trees: [Tree; TREES.len()],
    pub model: Model,
    /// What calls of any kind returned.
    pub errors: Vec<Error>,
}

fn trees(db: &Db) -> sled::Result<[Tree; TREES.len()]> {
    Ok([db.open_tree(TREES[0])?, db.open_tree(TREES[1])?])
}

/// A medium and what it durably holds, to begin many runs from.
pub struct Base {
    medium: SimStorage,
    model: Model,
}

impl Base {
    /// What a workload begins with: enough to read from the medium what does not fit into the cache.
    pub fn of(workload: Workload) -> Base {
        let medium = SimStorage::new();
        let db = open_tiny(&medium, BUFFER).expect("healthy");
        let mut subject = Subject::on(medium, db, Model::default()).expect("healthy");
        for op in workload.preparation() {
            subject.perform(&op).expect("healthy").expect("healthy");
        }
        subject.perform(&Op::Flush).expect("healthy").expect("healthy");
        let Subject { medium, db, trees, model, .. } = subject;
        drop((db, trees));
        Base { medium: medium.crash(0, CrashMode::DropUnsynced), model }
    }

    /// An opened copy.
    pub fn open(&self) -> Subject {
        let medium = self.medium.crash(0, CrashMode::KeepAll);
        let db = open_tiny(&medium, BUFFER).expect("healthy");
        Subject::on(medium, db, self.model.clone()).expect("healthy")
    }
}

impl Subject {
    pub fn on(medium: SimStorage, db: Db, model: Model) -> sled::Result<Subject> {
        let trees = trees(&db)?;
        Ok(Subject { medium, db, trees, model, errors: Vec::new() })
    }

    fn note<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(e) = &result {
            self.errors.push(e.clone());
        }
        result
    }

    /// Closes it; what is left of it.
    pub fn close(self) -> (SimStorage, Model) {
        let Subject { medium, db, trees, model, .. } = self;
        drop((db, trees));
        (medium, model)
    }

    /// Carries out an operation. The outer error is a lie of the database, the inner one its honest failure.
    pub fn perform(&mut self, op: &Op) -> Result<Result<(), Error>, String> {
        let result = match op {
            Op::Get(key) => return self.get(key.clone()),
            Op::Scan(tree) => return self.scan(*tree),
            Op::Put(key, value) => self.commit(&[(key.clone(), value.clone())], |subject| {
                let tree = &subject.trees[key.0];
                match value {
                    Some(value) => tree.insert(&key.1, &value[..]).map(drop),
                    None => tree.remove(&key.1).map(drop),
                }
            }),
            Op::Swap(key, value) => {
                if let Err(e) = self.get(key.clone())? {
                    return Ok(Err(e));
                }
                let old = self.model.now[key][0].clone();
                self.commit(&[(key.clone(), value.clone())], |subject| {
                    let tree = &subject.trees[key.0];
                    let swapped = tree.compare_and_swap(&key.1, old.as_deref(), value.as_deref())?;
                    swapped.map_err(|_| Error::ReportableBug("the value was just read".into()))
                })
            }
            Op::Merge(key, operand) => {
                if let Err(e) = self.get(key.clone())? {
                    return Ok(Err(e));
                }
                let old = self.model.now[key][0].clone().unwrap_or_default();
                // Never longer than a few of them.
                let keep = old.len().min(200);
                let new = Some([&old[..keep], operand].concat());
                self.commit(&[(key.clone(), new)], |subject| {
                    let tree = &subject.trees[key.0];
                    tree.set_merge_operator(|_: &[u8], old: Option<&[u8]>, operand: &[u8]| {
                        let old = old.unwrap_or_default();
                        Some([&old[..old.len().min(200)], operand].concat())
                    });
                    tree.merge(&key.1, operand).map(drop)
                })
            }
            Op::Batch(writes) => self.commit(writes, |subject| {
                let mut batch = Batch::default();
                for ((_, key), value) in writes {
                    match value {
                        Some(value) => batch.insert(&key[..], &value[..]),
                        None => batch.remove(&key[..]),
                    }
                }
                subject.trees[writes[0].0.0].apply_batch(batch)
            }),
            Op::Transaction(writes) => self.commit(writes, |subject| {
                let done = subject.trees[..].transaction(|views| {
                    for ((tree, key), value) in writes {
                        match value {
                            Some(value) => views[*tree].insert(&key[..], &value[..])?,
                            None => views[*tree].remove(&key[..])?,
                        };
                    }
                    Ok::<_, sled::transaction::ConflictableTransactionError<()>>(())
                });
                done.map_err(|e| match e {
                    sled::transaction::TransactionError::Storage(e) => e,
                    sled::transaction::TransactionError::Abort(()) => unreachable!("nobody aborts"),
                })
            }),
            Op::OpenTree(name) => self.commit(&[((NAMES, name.clone()), Some(Vec::new()))], |subject| {
                subject.db.open_tree(name).map(drop)
            }),
            Op::DropTree(name) => {
                self.commit(&[((NAMES, name.clone()), None)], |subject| subject.db.drop_tree(name).map(drop))
            }
            Op::GenerateId => match self.db.generate_id() {
                Ok(id) if self.model.last_id.is_some_and(|last| id <= last) => {
                    return Err(format!("identifier {id} comes after {:?}", self.model.last_id));
                }
                Ok(id) => {
                    self.model.last_id = Some(id);
                    Ok(())
                }
                Err(e) => Err(e),
            },
            Op::Flush | Op::FlushAsync => {
                let flushed = match op {
                    Op::Flush => self.db.flush(),
                    _ => block_on(self.db.flush_async()),
                };
                if flushed.is_ok() {
                    self.model.flushed();
                }
                flushed.map(drop)
            }
            Op::Maintain => maintain(&self.db),
            Op::Checkpoint => checkpoint(&self.db),
        };
        Ok(self.note(result))
    }

    /// Has `body` do all of the writes at once, and notes whether it says that it did.
    fn commit(
        &mut self,
        writes: &[(Key, Value)],
        body: impl FnOnce(&Subject) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let result = body(self);
        self.model.committed(writes, result.is_ok());
        result
    }

    fn find(&self, key: &Key) -> Result<Value, Error> {
        if key.0 == NAMES {
            return Ok(self.db.tree_names().iter().any(|name| name[..] == key.1).then(Vec::new));
        }
        Ok(self.trees[key.0].get(&key.1)?.map(|value| value.to_vec()))
    }

    /// Reads a key.
    pub fn get(&mut self, key: Key) -> Result<Result<(), Error>, String> {
        let result = self.find(&key);
        match self.note(result) {
            Ok(found) => self.model.read(key, found).map(Ok),
            Err(e) => Ok(Err(e)),
        }
    }

    /// Reads a tree from end to end. What it finds must be what the model says of the keys that are certain.
    fn scan(&mut self, tree: usize) -> Result<Result<(), Error>, String> {
        let pairs: Result<Vec<_>, Error> = self.trees[tree].iter().collect();
        let pairs = match self.note(pairs) {
            Ok(pairs) => pairs,
            Err(e) => return Ok(Err(e)),
        };
        let mut found = pairs.iter().map(|(key, value)| ((tree, key.to_vec()), value.to_vec()));
        let expected = self.model.now.iter().filter(|((number, _), _)| *number == tree);
        let mut next = found.next();
        for (key, values) in expected {
            let here = next.take_if(|(found, _)| found == key).map(|(_, value)| value);
            if !values.contains(&here) {
                return Err(format!("a scan has {here:?} at {key:?}"));
            }
            if here.is_some() {
                next = found.next();
            }
        }
        next.map_or(Ok(Ok(())), |(key, _)| Err(format!("a scan has {key:?}, which never was")))
    }

    /// Every key, all of which must be readable.
    pub fn read_all(&mut self, when: &str) -> Result<(), String> {
        let keys: Vec<Key> = self.model.now.keys().cloned().collect();
        for key in keys {
            self.get(key.clone())?.map_err(|e| format!("{when}: {key:?} cannot be read: {e}"))?;
        }
        for tree in 0..TREES.len() {
            self.scan(tree)?.map_err(|e| format!("{when}: the scan fails: {e}"))?;
        }
        Ok(())
    }
}

/// Checks that a crash of `medium` holds what `model` says.
pub fn check_reopened(medium: &SimStorage, mode: CrashMode, model: &Model) -> Result<(), String> {
    let after = medium.crash(7, mode);
    let says = |e: &dyn std::fmt::Display| format!("{mode:?}: {e}");
    let db = open_tiny(&after, BUFFER).map_err(|e| format!("{mode:?}: does not open: {e}"))?;
    let names: Vec<Vec<u8>> = db.tree_names().iter().map(|name| name.to_vec()).collect();
    let trees = trees(&db).map_err(|e| says(&e))?;
    let mut there = 0;
    let found = model.compare(|key| match key.0 {
        NAMES => Ok(names.contains(&key.1).then(Vec::new)),
        tree => {
            let found = trees[tree].get(&key.1).map_err(|e| format!("{key:?}: {e}"))?;
            there += usize::from(found.is_some());
            Ok(found.map(|value| value.to_vec()))
        }
    });
    found.map_err(|e| says(&e))?;
    let counted: usize = trees.iter().map(|tree| tree.iter().filter(Result::is_ok).count()).sum();
    if counted != there {
        return Err(format!("{mode:?}: {counted} keys instead of {there}"));
    }
    let id = db.generate_id().map_err(|e| says(&e))?;
    if model.last_id.is_some_and(|last| id <= last) {
        return Err(format!("{mode:?}: identifier {id} after {:?}", model.last_id));
    }
    check_invariants(&db).map_err(|e| says(&e))
}
