//! What the bytes of an input mean: sizes of the database, keys, values and operations.
//!
//! Every sequence of bytes means something, and numbers are folded into the ranges that matter.

use arbitrary::Arbitrary;
use sled::Config;
use sled::testing::{CrashMode, OpClass, SimStorage, Tuning};
use std::io::ErrorKind;

/// Longest value: larger than a leaf of any tuning below, so that big values occur.
pub const LONGEST: usize = 3000;
/// `None`: all kinds.
const CLASSES: [Option<OpClass>; 5] =
    [Some(OpClass::Read), Some(OpClass::Write), Some(OpClass::Sync), Some(OpClass::Resize), None];

/// Sizes of the database, as indexes.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Setup {
    leaf: u8,
    fanout: u8,
    small_cache: bool,
}

impl Setup {
    pub fn tuning(self) -> Tuning {
        Tuning {
            leaf_bytes: [256, 512, 1024][usize::from(self.leaf % 3)],
            fanout: [3, 4, 8][usize::from(self.fanout % 3)],
            redo_buffer: 256,
            segment: 4096,
            redo_budget: 8192,
            threads: false,
        }
    }

    pub fn config(self) -> Config {
        let cache = if self.small_cache { 16 << 10 } else { 16 << 20 };
        Config::new().cache_capacity(cache).flush_every_ms(None).idgen_persist_interval(4)
    }
}

/// An index into the crashes.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Crash(u8);

impl Crash {
    pub fn mode(self) -> CrashMode {
        CrashMode::ALL[usize::from(self.0) % CrashMode::ALL.len()]
    }
}

/// Which calls of the medium fail: a kind, how many of them succeed before, one or all that follow, and how.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Failing {
    class: u8,
    after: u8,
    once: bool,
    full: bool,
}

impl Failing {
    pub fn arm(self, medium: &SimStorage) {
        let kind = if self.full { ErrorKind::StorageFull } else { ErrorKind::Other };
        let after = u64::from(self.after % 64);
        match CLASSES[usize::from(self.class) % CLASSES.len()] {
            Some(class) => medium.fail(class, after, self.once, kind),
            None => medium.fail_any(after, self.once, kind),
        }
    }
}

/// The first number and how many follow.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Run {
    first: u8,
    length: u8,
}

impl Run {
    /// At most 64 one-byte keys, ascending but for one turn.
    pub fn keys(self) -> impl Iterator<Item = [u8; 1]> {
        (0..self.length % 64).map(move |i| [self.first.wrapping_add(i)])
    }
}

/// A key: few enough to be met again, some of them long, with a long common prefix, or empty.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Key {
    shape: u8,
    number: u8,
}

impl Key {
    pub fn bytes(self) -> Vec<u8> {
        match self.shape % 8 {
            0 if self.number == 0 => Vec::new(),
            0..=4 => vec![self.number],
            5 => [&[b'p'; 40][..], &[self.number]].concat(),
            6 => vec![0xFF; usize::from(self.number % 8)],
            _ => vec![self.number % 4; 300 + usize::from(self.number)],
        }
    }
}

/// A value of one repeated byte.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Value {
    length: u16,
    fill: u8,
}

impl Value {
    pub fn bytes(self) -> Vec<u8> {
        // Mostly short: the length comes from the low byte unless the high one is large.
        let length =
            if self.length < 0xE000 { usize::from(self.length % 64) } else { usize::from(self.length) };
        vec![self.fill; length % LONGEST]
    }
}

/// One step; the `bool` says whether it is in the second tree.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Op {
    Insert(bool, Key, Value),
    InsertMany(bool, Run, Value),
    Remove(bool, Key),
    RemoveMany(bool, Run),
    Get(bool, Key),
    Swap {
        other: bool,
        key: Key,
        right: bool,
        new: Option<Value>,
    },
    Update {
        other: bool,
        key: Key,
        new: Option<Value>,
        fetch_old: bool,
    },
    Merge(bool, Key, Value),
    PopMin(bool),
    PopMax(bool),
    Neighbours(bool, Key),
    Range {
        other: bool,
        from: Key,
        to: Key,
        exclude_from: bool,
        include_to: bool,
        turns: u8,
    },
    Prefix(bool, Key),
    Batch(bool, Run, Value, u8),
    Transaction {
        read: Key,
        first: Run,
        second: Run,
        value: Value,
        abort: bool,
    },
    GenerateId,
    DropOther,
    Flush,
    Maintain,
    Checkpoint,
    Invariants,
    /// The failure is that of an attempt to open before the one that counts.
    Reopen(Option<Failing>),
    Crash(Crash, u8, Option<Failing>),
    Fail(Failing),
    /// So many sectors are left.
    Capacity(u8),
    Heal,
}
