//! Structures of a file changed on purpose, with every checksum right.
//!
//! # How it works
//!
//! The input says which file of `histories.rs` it is, and which numbers and bytes of which structures change. Then every
//! checksum is made right, so that what lies is read, and the file is opened and used. A lie may cost data, or be
//! an error; there is never a panic, a hang, or (by the limits of the fuzzer) an allocation out of proportion.

use super::histories::{TREES, files, open};
use super::seal::{Kind, Structure, seal, structures};
use arbitrary::Arbitrary;
use sled::testing::{self, SimStorage};
use sled::transaction::{ConflictableTransactionResult, Transactional};
use sled::{Batch, Db, Error, Result, Tree};
use std::ops::Range;

/// More items than this from a scan of a small database: it does not end.
const ENDLESS: usize = 100_000;
const KINDS: [Kind; 4] = [Kind::Superblock, Kind::Segment, Kind::Block, Kind::Image];
/// Bytes of a header.
const HEADER: usize = 64;

/// The file and what is done to it.
#[derive(Arbitrary, Debug)]
pub struct Input {
    file: u8,
    forgeries: Vec<Forgery>,
    key: [u8; 2],
}

/// Numbers are folded into what there is.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Forgery {
    /// A field of a header, aligned to its width, at which the payload begins if `payload`.
    Field { kind: u8, which: u8, payload: bool, at: u16, width: u8, value: Number },
    /// Bytes anywhere in a structure.
    Bytes { kind: u8, which: u8, at: u16, bytes: [u8; 4], count: u8 },
    /// The payload of a structure becomes that of another; the header stays as far as it fits.
    Payload { kind: u8, from: u8, to: u8 },
    /// The whole structure is copied over another.
    Copy { kind: u8, from: u8, to: u8 },
    /// A structure is gone.
    Erase { kind: u8, which: u8 },
    /// The file ends early.
    Truncate { sectors: u8 },
}

/// What a field becomes.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Exact(u64),
    Add(i8),
    /// All ones below this bit.
    Mask(u8),
    /// The place of a structure, as an offset, a number of a segment, or an address.
    Offset {
        kind: u8,
        which: u8,
    },
    Segment {
        kind: u8,
        which: u8,
    },
    Address {
        which: u8,
        grains: u8,
    },
    /// The nonce of a segment.
    Nonce {
        which: u8,
    },
}

fn pick(all: &[Structure], kind: u8, which: u8) -> Option<&Structure> {
    let kind = KINDS[usize::from(kind) % KINDS.len()];
    let of_kind: Vec<&Structure> = all.iter().filter(|structure| structure.kind == kind).collect();
    of_kind.get(usize::from(which) % of_kind.len().max(1)).copied()
}

fn number(bytes: &[u8], at: Range<usize>) -> u64 {
    let mut padded = [0; 8];
    padded[..at.len()].copy_from_slice(&bytes[at]);
    u64::from_le_bytes(padded)
}

impl Number {
    fn value(self, old: u64, all: &[Structure], bytes: &[u8]) -> Option<u64> {
        let place = |kind, which| pick(all, kind, which).map(|structure| structure.at as u64);
        Some(match self {
            Number::Exact(value) => value,
            Number::Add(by) => old.wrapping_add_signed(i64::from(by)),
            Number::Mask(bits) => u64::MAX.checked_shr(u32::from(bits % 65)).unwrap_or(0),
            Number::Offset { kind, which } => place(kind, which)?,
            Number::Segment { kind, which } => place(kind, which)?.checked_sub(8192)? / 4096,
            Number::Address { which, grains } => (place(3, which)? / 64) << 24 | u64::from(grains),
            Number::Nonce { which } => {
                let at = place(1, which)? as usize + 16;
                number(bytes, at..at + 8)
            }
        })
    }
}

impl Forgery {
    /// Changes the bytes; `None`: there is nothing of this kind in them.
    fn apply(self, bytes: &mut Vec<u8>) -> Option<()> {
        let all = structures(bytes);
        match self {
            Forgery::Field { kind, which, payload, at, width, value } => {
                let structure = pick(&all, kind, which)?;
                let width = [1, 2, 4, 8][usize::from(width % 4)];
                let covered = if payload && structure.covered.end > HEADER + width {
                    HEADER..structure.covered.end
                } else {
                    structure.covered.start..structure.covered.end.min(128)
                };
                // Fields of payloads are anywhere.
                let step = if payload { 1 } else { width };
                let slots = covered.len().checked_sub(width)? / step + 1;
                let at = structure.at + covered.start + usize::from(at) % slots * step;
                let new = value.value(number(bytes, at..at + width), &all, bytes)?;
                bytes[at..at + width].copy_from_slice(&new.to_le_bytes()[..width]);
            }
            Forgery::Bytes { kind, which, at, bytes: new, count } => {
                let structure = pick(&all, kind, which)?;
                let start = structure.covered.start + usize::from(at) % structure.covered.len();
                let end = (start + usize::from(count % 4) + 1).min(structure.covered.end);
                let at = structure.at + start..structure.at + end;
                let length = at.len();
                bytes[at].copy_from_slice(&new[..length]);
            }
            Forgery::Payload { kind, from, to } => {
                let (from, to) = (pick(&all, kind, from)?, pick(&all, kind, to)?);
                let length = from.covered.end.min(to.covered.end).checked_sub(HEADER)?;
                let start = from.at + HEADER;
                bytes.copy_within(start..start + length, to.at + HEADER);
            }
            Forgery::Copy { kind, from, to } => {
                let (from, to) = (pick(&all, kind, from)?, pick(&all, kind, to)?);
                let length = from.covered.end.min(to.covered.end);
                bytes.copy_within(from.at..from.at + length, to.at);
            }
            Forgery::Erase { kind, which } => bytes[pick(&all, kind, which)?.at..][..HEADER].fill(0),
            Forgery::Truncate { sectors } => {
                let length = bytes.len().checked_sub(512 * usize::from(sectors)).filter(|left| *left > 0)?;
                bytes.truncate(length);
            }
        }
        Some(())
    }
}

/// The answer, or `None` for an error that damage may cause.
fn honest<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(answer) => Some(answer),
        Err(Error::Corruption { .. } | Error::Unsupported(_) | Error::Io(_)) => None,
        Err(error) => panic!("{error:?} is not what a lie causes"),
    }
}

/// Reads and writes a tree; all errors are fine.
fn use_tree(tree: &Tree, key: [u8; 2]) {
    let ends = |count: usize| assert!(count < ENDLESS, "a scan does not end");
    ends(tree.iter().take(ENDLESS).take_while(Result::is_ok).count());
    ends(tree.iter().rev().take(ENDLESS).take_while(Result::is_ok).count());
    let (_, _) = (honest(tree.get(key)), honest(tree.get_lt(key)));
    let (_, _) = (honest(tree.insert(key, "new")), honest(tree.remove([key[1], key[0]])));
    let mut batch = Batch::default();
    (0..16).for_each(|i| batch.insert([key[0], i], vec![i; usize::from(i) * 20]));
    honest(tree.apply_batch(batch));
    (0..16).for_each(|i| drop(honest(tree.insert([i, key[1]], vec![i; 60]))));
}

fn use_database(db: &Db, key: [u8; 2]) {
    let trees: Vec<Tree> = TREES.iter().filter_map(|name| honest(db.open_tree(name))).collect();
    trees.iter().for_each(|tree| use_tree(tree, key));
    if let [one, two, ..] = &trees[..] {
        // What fails does so with an error.
        let _ = (one, two).transaction(|(one, two)| {
            let value = one.get(key)?.unwrap_or_default();
            two.insert(key, value)?;
            one.remove([key[0], 1])?;
            ConflictableTransactionResult::<(), ()>::Ok(())
        });
    }
    honest(db.generate_id());
    // What is wrong with a forged tree is a `ReportableBug`.
    let _ = testing::check_invariants(db);
    honest(testing::maintain(db));
    honest(db.flush());
    honest(testing::checkpoint(db));
    honest(db.drop_tree(TREES[1]));
    honest(testing::maintain(db));
    let _ = testing::check_invariants(db);
}

/// Forges the file and uses it twice, as the first use writes.
pub fn run(input: Input) {
    let files = files();
    let mut bytes = files[usize::from(input.file) % files.len()].clone();
    // Those that do not fit the file do nothing.
    let _ = input.forgeries.iter().take(6).filter_map(|forgery| forgery.apply(&mut bytes)).count();
    seal(&mut bytes);
    let medium = SimStorage::holding(bytes);
    if let Some(db) = honest(open(&medium, 8192)) {
        use_database(&db, input.key);
    }
    // What the use has written is read once more.
    if let Some(db) = honest(open(&medium, 8192)) {
        let _ = testing::check_invariants(&db);
        honest(testing::checkpoint(&db));
    }
}
