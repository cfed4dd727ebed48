//! What runs while calls fail: a few hundred seeded operations of a kind.

use super::common_durability::{Random, bytes_of};
use super::model::{Key, TREES, Value};

/// An operation, complete with what it writes, so that it can be tried again.
#[derive(Clone, Debug)]
pub enum Op {
    Put(Key, Value),
    Get(Key),
    Scan(usize),
    /// From what is there.
    Swap(Key, Value),
    /// Appends.
    Merge(Key, Vec<u8>),
    /// All of one tree.
    Batch(Vec<(Key, Value)>),
    Transaction(Vec<(Key, Value)>),
    OpenTree(Vec<u8>),
    DropTree(Vec<u8>),
    GenerateId,
    Flush,
    FlushAsync,
    Maintain,
    Checkpoint,
}

/// A kind of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Values with images of their own, replaced often.
    BigValues,
    /// More small values than the cache has room for: leaves are written and read again all the time.
    Evicting,
    /// Batches, transactions, merges and swaps.
    Commits,
    /// Trees come and go, identifiers are handed out.
    Trees,
}

impl Workload {
    pub const ALL: [Workload; 4] =
        [Workload::BigValues, Workload::Evicting, Workload::Commits, Workload::Trees];

    fn keys(self) -> u64 {
        match self {
            Workload::Evicting => 1200,
            _ => 60,
        }
    }

    /// What is there before.
    pub fn preparation(self) -> Vec<Op> {
        let len = if self == Workload::Evicting { 90 } else { 1500 };
        (0..self.keys()).map(|i| Op::Put(key(i), Some(bytes_of(i, len)))).collect()
    }

    /// The operations of a run.
    pub fn operations(self, count: usize) -> Vec<Op> {
        let mut random = Random(5 + self as u64);
        (0..count).map(|number| self.operation(number, &mut random)).collect()
    }

    fn operation(self, number: usize, random: &mut Random) -> Op {
        let at = key(random.below(self.keys()));
        match number % 30 {
            9 | 29 => return Op::Flush,
            19 => return Op::FlushAsync,
            14 => return Op::Maintain,
            24 if number % 60 == 24 => return Op::Checkpoint,
            25 => return Op::Scan(at.0),
            _ => {}
        }
        match (self, number % 10) {
            (_, 0 | 7) => Op::Get(at),
            (_, 2) => Op::Put(at, None),
            (Workload::Commits, 1 | 4) => Op::Batch(self.writes(number, random, Some(at.0))),
            (Workload::Commits, 3 | 6) => Op::Transaction(self.writes(number, random, None)),
            (Workload::Commits, 5) => Op::Merge(at, bytes_of(number as u64, 50)),
            (Workload::Commits, 8) => Op::Swap(at, Some(self.value(number, random))),
            (Workload::Trees, 1 | 4) => Op::OpenTree(name(random)),
            (Workload::Trees, 3 | 6) => Op::DropTree(name(random)),
            (Workload::Trees, 5 | 8) => Op::GenerateId,
            (Workload::Evicting, 1 | 4) => Op::Get(at),
            _ => Op::Put(at, Some(self.value(number, random))),
        }
    }

    fn writes(self, number: usize, random: &mut Random, only: Option<usize>) -> Vec<(Key, Value)> {
        let count = if number % 60 == 21 { 40 } else { 2 + random.below(6) };
        let keys: std::collections::BTreeSet<Key> = (0..count)
            .map(|_| key(random.below(self.keys())))
            .map(|(tree, key)| (only.unwrap_or(tree), key))
            .collect();
        let value = |(n, key): (usize, Key)| {
            let value = (random.below(5) > 0).then(|| self.value(number * 100 + n, random));
            (key, value)
        };
        keys.into_iter().enumerate().map(value).collect()
    }

    /// No two are equal.
    fn value(self, number: usize, random: &mut Random) -> Vec<u8> {
        let len = match (self, random.below(25)) {
            (Workload::Evicting, _) => random.below(110),
            (_, 0) => 5000,
            _ => random.below(400),
        };
        bytes_of(number as u64 + 1_000_000, 8 + len as usize)
    }
}

/// The tree alternates.
pub fn key(i: u64) -> Key {
    (i as usize % TREES.len(), format!("some key {i:04}").into_bytes())
}

fn name(random: &mut Random) -> Vec<u8> {
    format!("extra {}", random.below(6)).into_bytes()
}
