//! A small database whose bytes are damaged before it is opened.
//!
//! # How it works
//!
//! The input says how the database is built, whether it is closed or killed, and which damage is done.
//! Then it is opened and read. Allowed are an error at open, an error for a key, and the right data;
//! never a wrong value, a panic, a hang, or (by the limits above) an allocation out of proportion.
//! Damage cannot forge a checksum: bits are flipped, bytes overwritten with one value, sectors moved.
//!
//! What is right is a prefix of the inserts. Damage to one sector leaves a witness of every insert that
//! was flushed before the last flush, or checkpointed: with such damage, these must not be missing.

use arbitrary::Arbitrary;
use sled::testing::{self, CrashMode, SimStorage, Tuning};
use sled::{Config, Db, Error, IVec};
use std::collections::BTreeMap;

const SECTOR: usize = 512;

/// Inserts that are followed by one flush.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Round {
    first_key: u8,
    keys: u8,
    value_length: u16,
    checkpoint: bool,
}

/// How the database is built and what happens to its bytes.
#[derive(Arbitrary, Debug)]
pub struct Input {
    rounds: Vec<Round>,
    closed: bool,
    damages: Vec<Damage>,
}

/// Places are folded into the file, sectors likewise.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Damage {
    FlipBit { at: u32, bit: u8 },
    Fill { at: u32, length: u16, byte: u8 },
    CopySectors { from: u16, to: u16, count: u8 },
    SwapSectors(u16, u16),
    Truncate(u32),
    Extend { length: u16, byte: u8 },
}

type Pair = (Vec<u8>, Vec<u8>);

struct Built {
    bytes: Vec<u8>,
    /// In their order; a later one replaces an earlier one of the same key.
    inserts: Vec<Pair>,
    /// How many of `inserts` have a witness apart from themselves.
    witnessed: usize,
}

fn open(medium: &SimStorage) -> sled::Result<Db> {
    let tuning = Tuning {
        leaf_bytes: 512,
        fanout: 3,
        redo_buffer: 256,
        segment: 4096,
        redo_budget: 8192,
        threads: false,
    };
    testing::open_on(medium.clone(), &Config::new().cache_capacity(1 << 20).flush_every_ms(None), tuning)
}

fn build(rounds: &[Round], closed: bool) -> Built {
    let medium = SimStorage::new();
    let db = open(&medium).expect("an empty medium");
    db.flush().expect("a healthy medium");
    let (mut inserts, mut witnessed) = (Vec::new(), 0);
    for (number, round) in (0_u8..8).zip(rounds) {
        if round.keys % 64 > 0 {
            // A flush that has something to write vouches for those before it.
            witnessed = inserts.len();
        }
        for i in 0..round.keys % 64 {
            let key = vec![round.first_key.wrapping_add(i)];
            let value = vec![number ^ i; usize::from(round.value_length % 2000)];
            db.insert(&key, &value[..]).expect("a healthy medium");
            inserts.push((key, value));
        }
        db.flush().expect("a healthy medium");
        if round.checkpoint {
            testing::checkpoint(&db).expect("a healthy medium");
            witnessed = inserts.len();
        }
    }
    let left = medium.crash(0, CrashMode::KeepAll);
    drop(db);
    if closed {
        return Built { bytes: medium.contents(), witnessed: inserts.len(), inserts };
    }
    Built { bytes: left.contents(), inserts, witnessed }
}

impl Damage {
    fn apply(self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        let place = |at: u32| at as usize % length;
        let sector = |number: u16| usize::from(number) % length.div_ceil(SECTOR) * SECTOR;
        match self {
            Damage::FlipBit { at, bit } => bytes[place(at)] ^= 1 << (bit % 8),
            Damage::Fill { at, length: run, byte } => {
                let at = place(at);
                bytes[at..(at + usize::from(run)).min(length)].fill(byte);
            }
            Damage::CopySectors { from, to, count } => {
                let (from, to) = (sector(from), sector(to));
                let run = (usize::from(count % 16) * SECTOR).min(length - from.max(to));
                bytes.copy_within(from..from + run, to);
            }
            Damage::SwapSectors(a, b) => {
                let (low, high) = (sector(a).min(sector(b)), sector(a).max(sector(b)));
                let run = SECTOR.min(length - high).min(high - low);
                let (left, right) = bytes.split_at_mut(high);
                left[low..low + run].swap_with_slice(&mut right[..run]);
            }
            // A file of no bytes is a new database.
            Damage::Truncate(to) => bytes.truncate(place(to).max(1)),
            Damage::Extend { length: by, byte } => bytes.resize(length + usize::from(by), byte),
        }
    }
}

/// Whether the two differ in one sector at most.
fn differ_locally(old: &[u8], new: &[u8]) -> bool {
    let changed = old.chunks(SECTOR).zip(new.chunks(SECTOR)).filter(|(old, new)| old != new);
    old.len() == new.len() && changed.count() <= 1
}

/// What a database answers: for each key a value, none, or an error; and a scan, up to its first error.
struct Answers {
    points: Vec<Option<Option<IVec>>>,
    scan: Vec<(IVec, IVec)>,
    scan_failed: bool,
}

impl Answers {
    fn of(db: &Db) -> Answers {
        let points = (0..=u8::MAX).map(|key| honest(db.get([key]))).collect();
        let (mut scan, mut scan_failed) = (Vec::new(), false);
        for pair in db.iter() {
            match honest(pair) {
                Some(pair) => scan.push(pair),
                None => {
                    scan_failed = true;
                    break;
                }
            }
        }
        Answers { points, scan, scan_failed }
    }

    /// Whether nothing but errors tells them from those of `state`.
    fn fit(&self, state: &BTreeMap<&[u8], &[u8]>) -> bool {
        let points = self.points.iter().zip(0..=u8::MAX).all(|(found, key)| {
            found.as_ref().is_none_or(|found| found.as_deref() == state.get(&[key][..]).copied())
        });
        let scan = self.scan.iter().zip(state).all(|((k, v), (key, value))| k == key && v == value);
        let complete = self.scan.len() == state.len() || self.scan_failed && self.scan.len() < state.len();
        points && scan && complete
    }
}

/// The answer, or `None` for an error that damage may cause.
fn honest<T>(result: sled::Result<T>) -> Option<T> {
    match result {
        Ok(answer) => Some(answer),
        Err(Error::Corruption { .. } | Error::Unsupported(_) | Error::Io(_)) => None,
        Err(error) => panic!("{error:?} is not what damage causes"),
    }
}

/// Panics unless the answers fit a prefix of the inserts that is not shorter than `least`.
fn check(db: &Db, inserts: &[Pair], least: usize) {
    let answers = Answers::of(db);
    let mut state = BTreeMap::new();
    let fits = (0..=inserts.len()).any(|length| {
        if let Some((key, value)) = length.checked_sub(1).map(|last| &inserts[last]) {
            state.insert(&key[..], &value[..]);
        }
        length >= least && answers.fit(&state)
    });
    assert!(
        fits,
        "{} records are no prefix of {} inserts from {least} on",
        answers.scan.len(),
        inserts.len()
    );
}

/// Builds, damages, opens and compares.
pub fn run(input: Input) {
    let Built { bytes, inserts, witnessed } = build(&input.rounds, input.closed);
    let mut damaged = bytes.clone();
    input.damages.iter().take(8).for_each(|damage| damage.apply(&mut damaged));
    // Zeros are what a creation leaves that was cut short.
    if damaged.iter().all(|byte| *byte == 0) {
        return;
    }
    let least = match () {
        () if damaged == bytes => inserts.len(),
        () if differ_locally(&bytes, &damaged) => witnessed,
        () => 0,
    };
    let medium = SimStorage::holding(damaged.clone());
    match honest(open(&medium)) {
        Some(db) => check(&db, &inserts, least),
        None => assert!(damaged != bytes, "an undamaged database opens"),
    }
    // The first open and close destroyed no evidence.
    if let Some(db) = honest(open(&medium)) {
        check(&db, &inserts, least);
    }
}
