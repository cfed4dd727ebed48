//! Damage is found, named, survived: `Db::verify`, `Db::salvage`, `read_only`, and what errors say.
//!
//! A small database with everything in it (several trees, inner nodes, big values, a transaction, a redo tail) is
//! changed in every single byte, one after the other, and in larger pieces.

#![cfg(not(miri))]

#[path = "../common_durability/mod.rs"]
mod common_durability;
mod damaged_and_changed;
mod every_byte;
mod forged;
mod left_over;
mod looking;
mod salvaging;
mod verifying;

use common_durability::{bytes_of, open_tiny, tiny, tiny_config};
use sled::testing::{CrashMode, SimStorage, checkpoint, open_on};
use sled::{Config, Damage, Db, Transactional};
use std::collections::BTreeMap;

pub const TREES: [&[u8]; 3] = [b"__sled__default", b"second", b"third"];

/// A key that a crash may have taken, as far as a damaged file can tell.
pub const LATER: &str = "later";

/// Pairs by tree and key.
pub type State = BTreeMap<(Vec<u8>, Vec<u8>), Vec<u8>>;

/// A file and what is in it.
pub struct Base {
    pub bytes: Vec<u8>,
    pub state: State,
}

/// A database, left with a redo tail or closed.
pub fn base(closed: bool) -> Base {
    let medium = SimStorage::new();
    let db = open_tiny(&medium, 1024).expect("healthy");
    let mut state = State::new();
    let mut set = |tree: usize, number: u64| {
        let key = format!("key {:03}", number % 60).into_bytes();
        let handle = db.open_tree(TREES[tree]).expect("healthy");
        // Now and then one that gets an image of its own.
        let value = bytes_of(number, if number.is_multiple_of(17) { 300 } else { 20 + number as usize % 30 });
        if number % 7 == 3 {
            handle.remove(&key).expect("healthy");
            state.remove(&(TREES[tree].to_vec(), key));
        } else {
            handle.insert(&key, &value[..]).expect("healthy");
            state.insert((TREES[tree].to_vec(), key), value);
        }
    };
    (0..150).for_each(|number| set(number as usize % 3, number * 13));
    checkpoint(&db).expect("healthy");
    (150..170).for_each(|number| set(number as usize % 3, number * 13));
    let trees = [db.open_tree(TREES[1]).expect("healthy"), db.open_tree(TREES[2]).expect("healthy")];
    (&trees[0], &trees[1])
        .transaction(|(a, b)| {
            a.insert("both", "a")?;
            b.insert("both", "b")?;
            Ok::<(), sled::transaction::ConflictableTransactionError<()>>(())
        })
        .expect("healthy");
    state.insert((TREES[1].to_vec(), b"both".to_vec()), b"a".to_vec());
    state.insert((TREES[2].to_vec(), b"both".to_vec()), b"b".to_vec());
    db.flush().expect("healthy");
    drop(trees);
    let bytes = if closed {
        drop(db);
        medium.contents()
    } else {
        // Two more flushes vouch for what was flushed before. Nothing vouches for them: they may be missing.
        for _ in 0..2 {
            db.insert(LATER, "value").expect("healthy");
            db.flush().expect("healthy");
        }
        medium.crash(0, CrashMode::DropUnsynced).contents()
    };
    Base { bytes, state }
}

pub fn read_only() -> Config {
    tiny_config().read_only(true)
}

pub fn open(bytes: &[u8], config: &Config) -> sled::Result<Db> {
    open_on(SimStorage::holding(bytes.to_vec()), config, tiny(1024))
}

/// Whether damage says that a key may be concerned.
pub fn covers(damage: &Damage, (tree, key): &(Vec<u8>, Vec<u8>)) -> bool {
    let of_tree = damage.tree.as_ref().is_none_or(|name| name == tree);
    let of_key = damage.keys.as_ref().is_none_or(|(low, high)| {
        &low[..] <= key.as_slice() && high.as_ref().is_none_or(|high| key.as_slice() < &high[..])
    });
    of_tree && of_key
}

/// Everything in a database but [`LATER`].
pub fn contents(db: &Db) -> State {
    let mut state = State::new();
    for name in db.tree_names() {
        let tree = db.open_tree(&name).expect("it was listed");
        for pair in tree.iter() {
            let (key, value) = pair.expect("healthy");
            if &key[..] != LATER.as_bytes() {
                state.insert((name.to_vec(), key.to_vec()), value.to_vec());
            }
        }
    }
    state
}

/// What can be read of some keys, and what the errors of the others say is damaged.
pub fn contents_of_readable(db: &Db, expected: &State) -> (State, Vec<Damage>) {
    let (mut found, mut damages) = (State::new(), Vec::new());
    for (name, key) in expected.keys() {
        match db.open_tree(name).expect("it is there").get(key) {
            Ok(Some(value)) => drop(found.insert((name.clone(), key.clone()), value.to_vec())),
            Ok(None) => panic!("{key:?} is missing without an error"),
            Err(error) => damages.push(error.damage().expect("known").clone()),
        }
    }
    (found, damages)
}
