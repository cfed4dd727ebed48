//! Transactions and batches: serializable, atomic, run once when nobody interferes, harmless when they fail.
//!
//! # How it works
//!
//! `histories` runs thousands of short random schedules and has `checker` look for a serial order of each.
//! `conflicts` makes single conflicts happen for certain, by committing from inside a closure. `anomalies`
//! lets threads race for the named anomalies. `closures` is about what a closure may do and what is left
//! when it fails, `batches` about batches, `model` compares random programs and the events of subscribers
//! with maps in memory, `crashes` looks at what a power cut leaves, and `progress` is about starving, hanging
//! and users' code in the middle of a commit.
//!
//! `SLED_SOAK=<n>` runs n times as much of everything that is random.

mod anomalies;
mod batches;
mod checker;
mod closures;
#[path = "../common/mod.rs"]
mod common;
mod conflicts;
mod crashes;
mod histories;
mod model;
mod progress;

use common::{RaiseOnDrop, Random, done, on_threads, soak, tiny, tiny_config};
use sled::testing::{SimStorage, checkpoint, maintain, open_on};
use sled::{Db, IVec, Result, Tree};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// A database with tiny pages and little memory; with threads, or with foreground calls doing their work.
fn tiny_db(seed: u64, threads: bool) -> Result<Db> {
    open_on(SimStorage::new(), &tiny_config(), tiny(seed, threads))
}

/// Runs a closure while a neighbour keeps the pages of the tree splitting, merging and leaving memory, by
/// filling and emptying the ranges that start with these prefixes, and writes checkpoints.
fn beside_churn<T>(
    db: &Db,
    tree: &Tree,
    prefixes: &'static [&'static [u8]],
    run: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let raise = RaiseOnDrop(&stop);
        let neighbour = scope.spawn(|| churn(db, tree, prefixes, &stop));
        let answer = run();
        drop(raise);
        neighbour.join().expect("the neighbour does not panic")?;
        answer
    })
}

fn churn(db: &Db, tree: &Tree, prefixes: &[&[u8]], stop: &AtomicBool) -> Result<()> {
    let mut random = Random::new(0);
    // Acquire: pairs with the Release in `RaiseOnDrop`.
    while !stop.load(Ordering::Acquire) {
        let prefix = random.pick(prefixes);
        let key = |n: u64| [*prefix, &n.to_be_bytes()[4..]].concat();
        let (count, len) = (random.below(300), random.index(150));
        for n in 0..count {
            tree.insert(key(n), vec![1; len])?;
        }
        if random.one_in(2) {
            maintain(db)?;
        }
        for n in 0..count {
            tree.remove(key(n))?;
        }
        if random.one_in(8) {
            checkpoint(db)?;
        }
    }
    Ok(())
}

/// Eight bytes, or 0 when there is nothing.
fn decode(value: Option<impl AsRef<[u8]>>) -> u64 {
    value.map_or(0, |value| u64::from_be_bytes(value.as_ref()[..8].try_into().expect("eight bytes")))
}

fn encode(n: u64) -> IVec {
    IVec::from(&n.to_be_bytes())
}

/// A merge operator that adds numbers.
fn add(_: &[u8], old: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
    Some((decode(old) + decode(Some(operand))).to_be_bytes().to_vec())
}

fn contents(tree: &Tree) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    tree.iter().map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
}

/// Gives other threads a chance, in one of several ways or not at all.
fn dawdle(random: &mut Random) {
    match random.below(6) {
        0 | 1 => std::thread::yield_now(),
        2 => (0..random.below(400)).for_each(|_| std::hint::spin_loop()),
        _ => {}
    }
}
