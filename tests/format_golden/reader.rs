//! The reader in Python lists what the engine does.
//!
//! It was written from the specification, so where the two differ one of the three is wrong. Without `python3` nothing is
//! compared, and the output says so.

use crate::common::{Key, Random, Scratch, Value, done, soak, tiny, tiny_config};
use crate::listing::list;
use crate::{directory_with, golden_bytes, golden_listing};
use sled::testing::{CrashMode, SimStorage, Tuning, checkpoint, counters, open_on};
use sled::transaction::TransactionalTree;
use sled::{Batch, Config, Db, Result, Transactional, Tree};
use std::path::Path;
use std::process::{Command, Output};

/// Exit statuses of the reader.
const DAMAGED: i32 = 1;
const UNSUPPORTED: i32 = 2;

/// Runs the reader on a directory; `None`: there is no Python.
fn run(directory: &Path) -> Option<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format_reader.py");
    match Command::new("python3").arg(script).arg(directory).output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped, as python3 does not run: {error}");
            None
        }
    }
}

/// The reader lists just this.
fn check(directory: &Path, expected: &str, what: &str) {
    let Some(output) = run(directory) else { return };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {complaint}");
    let listed = String::from_utf8(output.stdout).expect("JSON lines of ASCII");
    for (number, (listed, expected)) in (1..).zip(listed.lines().zip(expected.lines())) {
        assert_eq!(listed, expected, "{what}, line {number}");
    }
    assert_eq!(listed.lines().count(), expected.lines().count(), "{what}");
}

fn check_status(directory: &Path, expected: i32, what: &str) {
    let Some(output) = run(directory) else { return };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(expected), "{what}: {complaint}");
    assert!(
        complaint.starts_with("damaged: ") || complaint.starts_with("unsupported: "),
        "{what}: {complaint}"
    );
}

/// The reader refuses what the engine does, and for the same kind of reason.
pub fn check_refused(directory: &Scratch, damaged: bool, what: &str) {
    check_status(directory.path(), if damaged { DAMAGED } else { UNSUPPORTED }, what);
}

#[test]
fn the_reader_lists_the_golden_databases() {
    for name in ["closed", "crashed", "torn"] {
        check(directory_with(name, &golden_bytes(name)).path(), &golden_listing(name), name);
    }
}

#[test]
fn the_reader_lists_compressed_pages_or_says_that_it_cannot() {
    let directory = directory_with("packed", &golden_bytes("compressed"));
    let Some(output) = run(directory.path()) else { return };
    if output.status.success() {
        return check(directory.path(), &golden_listing("compressed"), "compressed");
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(UNSUPPORTED), "{complaint}");
    assert!(complaint.contains("zstd"), "{complaint}");
}

fn any_key(random: &mut Random) -> Vec<u8> {
    let n = random.below(2000) as u16;
    let key = match random.below(60) {
        0 => Key::Empty,
        1 => Key::Long(70_000, n % 2),
        2..6 => Key::Byte(n as u8),
        6..9 => Key::AllFf(n % 50),
        9..12 => Key::Zeros(n as u8),
        12..20 => Key::TrailingFf(n as u8, n % 12),
        20..35 => Key::SharedPrefix(n),
        _ => Key::Short(n),
    };
    key.bytes()
}

fn any_value(random: &mut Random) -> Vec<u8> {
    let len = match random.below(100) {
        0 => 5_000 + random.below(60_000),
        1..5 => 2_000 + random.below(200),
        5..15 => 0,
        _ => random.below(150),
    };
    Value { len: len as u32, tag: random.next() as u32 }.bytes()
}

/// One random change of any kind.
fn step(db: &Db, trees: &[Tree; 2], random: &mut Random) -> Result<()> {
    let tree = &trees[random.index(2)];
    let key = any_key(random);
    match random.below(40) {
        0..25 => drop(tree.insert(key, any_value(random))?),
        25..33 => drop(tree.remove(key)?),
        33..36 => drop(tree.merge(key, any_value(random))?),
        36 => drop(db.generate_id()?),
        37 => {
            let mut batch = Batch::default();
            (0..random.below(20)).for_each(|_| batch.insert(any_key(random), any_value(random)));
            batch.remove(key);
            tree.apply_batch(batch)?;
        }
        38 => {
            let (one, two) = (any_value(random), any_value(random));
            let change = |(a, b): &(TransactionalTree, TransactionalTree)| {
                a.insert(&key[..], &one[..])?;
                b.remove(&key[..])?;
                b.insert(&b"both"[..], &two[..])?;
                Ok(())
            };
            done((&trees[0], &trees[1]).transaction(change))?;
        }
        _ => {
            let name = [random.below(3) as u8];
            db.open_tree(name)?.insert(key, any_value(random))?;
            if random.one_in(2) {
                db.drop_tree(name)?;
            }
        }
    }
    Ok(())
}

/// Pages and segments have their normal sizes; a power cut, a checkpoint and a close leave files to be read.
#[test]
fn the_reader_lists_random_databases() -> Result<()> {
    for seed in 0..3 * soak() {
        let mut random = Random::new(seed);
        let medium = SimStorage::new();
        let tuning = Tuning { threads: false, ..Tuning::default() };
        let open = || {
            open_on(
                medium.clone(),
                &Config::new().cache_capacity(1 << 20).flush_every_ms(None),
                tuning.clone(),
            )
        };
        let mut splits = 0;
        for round in 0..3 {
            let db = open()?;
            let trees = [db.open_tree("first")?, db.open_tree("second")?];
            for tree in &trees {
                tree.set_merge_operator(|_: &[u8], old: Option<&[u8]>, operand: &[u8]| {
                    let old = old.unwrap_or_default();
                    Some([operand, &old[..old.len().min(100)]].concat())
                });
            }
            for number in 0..3000 {
                step(&db, &trees, &mut random)?;
                if number == 1500 {
                    checkpoint(&db)?;
                }
            }
            db.flush()?;
            let expected = list(&db)?;
            let left = medium.crash(0, CrashMode::DropUnsynced).contents();
            check(
                directory_with("left", &left).path(),
                &expected,
                &format!("seed {seed}, round {round}, crashed"),
            );
            let seen = counters(&db);
            splits += seen.leaf_splits + seen.root_splits;
            drop((trees, db));
            let closed = directory_with("left", &medium.contents());
            check(closed.path(), &expected, &format!("seed {seed}, round {round}, closed"));
        }
        assert!(splits > 20, "seed {seed}: {splits} splits are too few to prove much");
    }
    Ok(())
}

/// Power cuts end the stream in every way, also in the middle of what an earlier recovery left: what the engine recovers
/// is what the specification says.
#[test]
fn the_reader_recovers_what_the_engine_does_after_power_cuts() -> Result<()> {
    for seed in 0..2 * soak() {
        let mut random = Random::new(seed);
        let mut medium = SimStorage::new();
        // Checkpoints are rare, so that a stream has been cut more than once.
        let tuning = Tuning { redo_budget: 1 << 20, ..tiny(seed, false) };
        let open = |medium: &SimStorage| open_on(medium.clone(), &tiny_config(), tuning.clone());
        for round in 0..12 {
            let db = open(&medium)?;
            let trees = [db.open_tree("first")?, db.open_tree("second")?];
            for tree in &trees {
                tree.set_merge_operator(|_: &[u8], _: Option<&[u8]>, operand: &[u8]| Some(operand.to_vec()));
            }
            for _ in 0..random.below(120) {
                step(&db, &trees, &mut random)?;
                if random.one_in(20) {
                    db.flush()?;
                }
            }
            // What is torn most often: a record that goes on in the next segment, and one with a big value.
            let mut batch = Batch::default();
            (0..random.below(100)).for_each(|n| batch.insert(n.to_be_bytes(), vec![7; 40]));
            trees[0].apply_batch(batch)?;
            trees[1].insert("last", vec![round; 300])?;
            let mode = *random.pick(&CrashMode::ALL);
            let left = medium.crash(random.next(), mode);
            drop((trees, db));
            let bytes = left.contents();
            let db = open(&left)?;
            let expected = list(&db)?;
            // Not closed either: that might make a checkpoint.
            medium = left.crash(0, CrashMode::KeepAll);
            drop(db);
            let what = format!("seed {seed}, round {round}, {mode:?}");
            check(directory_with("cut", &bytes).path(), &expected, &what);
        }
    }
    Ok(())
}

/// A record of which the first blocks are there, and behind it what was written after a recovery.
#[test]
fn a_record_cut_by_a_crash_is_void_for_the_reader_as_well() -> Result<()> {
    let open = |medium: &SimStorage| open_on(medium.clone(), &tiny_config(), tiny(0, false));
    let medium = SimStorage::new();
    let db = open(&medium)?;
    db.insert("before", "it")?;
    db.flush()?;
    let before = medium.contents();
    // Longer than a segment.
    let mut batch = Batch::default();
    (0..100_u8).for_each(|n| batch.insert([n], vec![n; 40]));
    db.apply_batch(batch)?;
    db.flush()?;
    let mut bytes = medium.crash(0, CrashMode::KeepAll).contents();
    let is_block = |bytes: &[u8], at: usize| bytes[at..].starts_with(b"REDO");
    let is_new = |at: &usize| is_block(&bytes, *at) && !(*at < before.len() && is_block(&before, *at));
    let blocks: Vec<usize> = (8192..bytes.len()).step_by(512).filter(is_new).collect();
    assert!(blocks.len() > 1, "the record is in one block");
    bytes[blocks[blocks.len() - 1]..][..512].fill(0);
    let cut = SimStorage::holding(bytes.clone());
    let db = open(&cut)?;
    assert_eq!(db.len(), 1, "the batch is void");
    check(directory_with("cut", &bytes).path(), &list(&db)?, "cut");
    db.insert("after", "it")?;
    db.flush()?;
    let left = cut.crash(0, CrashMode::KeepAll).contents();
    let expected = list(&db)?;
    check(directory_with("after", &left).path(), &expected, "after");
    let again = open(&SimStorage::holding(left))?;
    assert_eq!((again.len(), list(&again)?), (2, expected));
    Ok(())
}

/// A real file, written by the threads of a normal open.
#[test]
fn the_reader_lists_a_database_on_disk_when_nobody_has_it_open() -> Result<()> {
    let directory = Scratch::new("ondisk");
    let db = Config::new().path(directory.path()).open()?;
    let mut random = Random::new(9);
    for _ in 0..5000 {
        db.insert(any_key(&mut random), any_value(&mut random))?;
    }
    check_status(directory.path(), UNSUPPORTED, "in use");
    let expected = list(&db)?;
    drop(db);
    check(directory.path(), &expected, "closed");
    Ok(())
}

/// Damages a file somewhere; what was done.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let at = random.index(bytes.len());
    match random.below(8) {
        0 => {
            bytes.truncate(at);
            format!("cut to {at} bytes")
        }
        1 => {
            let sector = at / 512 * 512;
            let end = (sector + 512).min(bytes.len());
            bytes[sector..end].fill(0);
            format!("zeros from {sector} to {end}")
        }
        2 => {
            let (from, to) = (random.index(bytes.len()) / 512 * 512, at / 512 * 512);
            let len = 512.min(bytes.len() - from.max(to));
            bytes.copy_within(from..from + len, to);
            format!("{len} bytes from {from} to {to}")
        }
        _ => {
            // Most bytes of a small file are void.
            let at = (at..bytes.len()).find(|at| bytes[*at] != 0).unwrap_or(at);
            bytes[at] ^= 1 << random.below(8);
            format!("a bit of byte {at}")
        }
    }
}

/// Where the reader and the engine differ about damage, the specification does not say what is damage.
#[test]
fn the_reader_and_the_engine_agree_about_damaged_files() -> Result<()> {
    let mut refused = 0;
    let rounds = 40 * soak();
    for seed in 0..rounds {
        let mut random = Random::new(seed);
        let name = *random.pick(&["closed", "crashed", "torn"]);
        let mut bytes = golden_bytes(name);
        let what = format!("seed {seed}: {name}, {}", damage(&mut bytes, &mut random));
        let directory = directory_with("damaged", &bytes);
        // First the reader: the engine may write.
        let Some(output) = run(directory.path()) else { return Ok(()) };
        let complaint = String::from_utf8_lossy(&output.stderr);
        match crate::config(&directory).open().and_then(|db| list(&db)) {
            Ok(listing) => {
                assert!(output.status.success(), "{what}: the engine accepts it: {complaint}");
                assert!(String::from_utf8_lossy(&output.stdout) == listing, "{what}: listed in another way");
            }
            Err(error) => {
                let damaged = matches!(error, sled::Error::Corruption { .. });
                let expected = if damaged { DAMAGED } else { UNSUPPORTED };
                assert_eq!(output.status.code(), Some(expected), "{what}: {error}; {complaint}");
                refused += 1;
            }
        }
    }
    println!("{refused} of {rounds} are refused");
    assert!(refused > rounds / 10 && refused < rounds * 9 / 10, "{refused} of {rounds} are refused");
    Ok(())
}
