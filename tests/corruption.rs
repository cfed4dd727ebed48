//! Files that are damaged, cut, mixed up, foreign or forged: an error or the right data, never anything else.
//!
//! A small database is built, once closed and once left with a redo tail. Thousands of mutants of its file are opened.
//! Whatever can be read must be right, and what is missing must be missed by an error; only what the file itself
//! cannot know, the last moments before a crash, may be gone. No mutant makes the database panic, hang or
//! allocate more than 64 MiB. Forged files, with every checksum right, promise the latter only.
//!
//! `SLED_SOAK` goes through every byte.

#![cfg_attr(feature = "measure_allocs", allow(dead_code))]
#![cfg(not(miri))]

mod common_durability;

use common_durability::{Random, Scratch, Watchdog, bytes_of, files_below, open_tiny, soak, tiny};
use sled::testing::{CrashMode, SimStorage, check_invariants, checkpoint, maintain, salvage};
use sled::{Config, Db, Error};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const BOUND: usize = 64 << 20;
const BUFFER: usize = 1024;
const BLOCK: usize = 4096;
const SECTOR: usize = 512;
const DEFAULT: &str = "__sled__default";
const TREES: [&str; 3] = [DEFAULT, "second", "third"];

/// Counts what is allocated.
struct Counting;

static CURRENT: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Relaxed: statistic.
        let now = CURRENT.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // Relaxed: statistic.
        CURRENT.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.dealloc(pointer, layout) }
    }
}

// With `measure_allocs` the crate has one, and nothing is bounded here.
#[cfg_attr(not(feature = "measure_allocs"), global_allocator)]
static ALLOCATOR: Counting = Counting;

/// Panics of any thread.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// One test at a time, since allocations and panics are counted for the process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    static HOOKED: std::sync::Once = std::sync::Once::new();
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    HOOKED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // Relaxed: statistic.
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(info);
        }));
    });
    guard
}

/// Runs `body` on a mutant: no panic on any thread, no allocation beyond the bound, no hang.
fn attempt(
    failures: &mut Vec<String>,
    dog: &Watchdog,
    what: String,
    body: impl FnOnce() -> Result<(), String>,
) {
    // Relaxed: statistics.
    let panics = PANICS.load(Ordering::Relaxed);
    let before = CURRENT.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    dog.begin(&what);
    let result = catch_unwind(AssertUnwindSafe(body));
    dog.rest();
    // Relaxed: statistics.
    let grown = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    if let Ok(Err(text)) = &result {
        failures.push(format!("{what}: {text}"));
    }
    if result.is_err() || PANICS.load(Ordering::Relaxed) > panics {
        failures.push(format!("{what}: panics (see above)"));
    }
    if grown > BOUND {
        failures.push(format!("{what}: allocates {grown} bytes"));
    }
    assert!(failures.len() < 10, "failures:\n{}", failures.join("\n"));
}

type State = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

/// A file, and what may be read from it and from its mutants.
struct Base {
    name: &'static str,
    bytes: Vec<u8>,
    /// The same file some time ago.
    older: Vec<u8>,
    /// States after every operation since the last checkpoint; the last one is what is in `bytes`.
    states: Vec<State>,
    /// The first of them that a damaged sector may fall back to; later flushes vouch for it.
    vouched: usize,
}

/// One step of the history that both bases share; says so when it was a flush.
fn step(db: &Db, state: &mut State, number: u64) -> bool {
    let mut random = Random(number);
    let (tree, key) = (random.below(3) as usize, format!("key {:05}", random.below(700)).into_bytes());
    let handle = db.open_tree(TREES[tree]).expect("healthy");
    if random.below(5) == 0 {
        handle.remove(&key).expect("healthy");
        state.remove(&(tree, key));
    } else {
        let len = if random.below(40) == 0 { 6000 } else { random.below(120) };
        let value = bytes_of(number, len as usize);
        handle.insert(&key, &value[..]).expect("healthy");
        state.insert((tree, key), value);
    }
    number % 40 == 39 && db.flush().is_ok()
}

/// A database with images, big values, freed and reused segments, and a redo tail unless it is closed.
fn build(closed: bool) -> Base {
    let medium = SimStorage::new();
    let db = open_tiny(&medium, BUFFER).expect("healthy");
    let mut state = State::new();
    for number in 0..1600 {
        step(&db, &mut state, number);
        if number % 400 == 399 {
            checkpoint(&db).expect("healthy");
            maintain(&db).expect("healthy");
        }
    }
    db.flush().expect("healthy");
    let older = medium.contents();
    checkpoint(&db).expect("healthy");
    let mut states = vec![state.clone()];
    let mut flushes = Vec::new();
    // 1600 and these end with a flush.
    for number in 1600..1760 {
        let flushed = step(&db, &mut state, number);
        states.push(state.clone());
        if flushed {
            flushes.push(states.len() - 1);
        }
    }
    let vouched = flushes[flushes.len() - 2];
    if !closed {
        let bytes = medium.crash(0, CrashMode::DropUnsynced).contents();
        return Base { name: "crashed", bytes, older, states, vouched };
    }
    drop(db);
    Base { name: "closed", bytes: medium.contents(), older, states: vec![state], vouched: 0 }
}

/// How far a mutant may fall back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Damage {
    /// Within one sector.
    Sector,
    /// Of any size.
    Wide,
}

/// What could be read: the pairs, the keys that gave errors, and whether there was an error at all.
struct Found {
    state: State,
    unreadable: BTreeSet<(usize, Vec<u8>)>,
    errors: usize,
}

/// More items than this from a scan of a small database: it does not end.
const ENDLESS: usize = 100_000;

/// Reads everything, in every way.
fn read(db: &Db, base: &Base) -> Result<Found, String> {
    let mut found = Found { state: State::new(), unreadable: BTreeSet::new(), errors: 0 };
    let names: Vec<Vec<u8>> = db.tree_names().iter().map(|name| name.to_vec()).collect();
    for name in &names {
        if !TREES.iter().any(|tree| tree.as_bytes() == &name[..]) {
            return Err(format!("there is a tree {:?}", String::from_utf8_lossy(name)));
        }
    }
    for (number, name) in TREES.iter().enumerate() {
        if !names.iter().any(|found| found == name.as_bytes()) {
            continue;
        }
        let Ok(tree) = db.open_tree(name) else {
            found.errors += 1;
            found.unreadable.extend(base.keys().filter(|key| key.0 == number).cloned());
            continue;
        };
        for key in base.keys().filter(|key| key.0 == number) {
            match tree.get(&key.1) {
                Ok(Some(value)) => drop(found.state.insert(key.clone(), value.to_vec())),
                Ok(None) => {}
                Err(_) => {
                    found.errors += 1;
                    found.unreadable.insert(key.clone());
                }
            }
        }
        let points = found.state.range((number, Vec::new())..(number + 1, Vec::new()));
        let points: Vec<_> = points.map(|(key, value)| (key.1.clone(), value.clone())).collect();
        scan(tree.iter(), &points, &mut found, number)?;
        let reversed: Vec<_> = points.into_iter().rev().collect();
        scan(tree.iter().rev(), &reversed, &mut found, number)?;
    }
    Ok(found)
}

/// A scan up to its first error shows what the point reads showed.
fn scan(
    pairs: impl Iterator<Item = sled::Result<(sled::IVec, sled::IVec)>>,
    points: &[(Vec<u8>, Vec<u8>)],
    found: &mut Found,
    tree: usize,
) -> Result<(), String> {
    let mut expected = points.iter();
    for (count, pair) in pairs.enumerate() {
        let Ok((key, value)) = pair else {
            found.errors += 1;
            return Ok(());
        };
        let Some((next, right)) = expected.next() else {
            return Err(format!("a scan of tree {tree} shows {:?} besides", String::from_utf8_lossy(&key)));
        };
        if *next != *key || *right != *value {
            let keys = [&next[..], &key[..]].map(String::from_utf8_lossy);
            return Err(format!("a scan of tree {tree} shows {:?} instead of {:?}", keys[1], keys[0]));
        }
        if count > ENDLESS {
            return Err(format!("a scan of tree {tree} does not end"));
        }
    }
    match expected.next() {
        Some((key, _)) => Err(format!("a scan of tree {tree} leaves out {:?}", String::from_utf8_lossy(key))),
        None => Ok(()),
    }
}

/// Verifies a file and salvages what is in it, which end without a panic, whatever they find.
fn look_over(bytes: &[u8]) {
    if let Ok(db) = open_tiny(&SimStorage::holding(bytes.to_vec()), BUFFER) {
        let _ = db.verify();
    }
    let to = open_tiny(&SimStorage::new(), BUFFER).expect("healthy");
    if salvage(SimStorage::holding(bytes.to_vec()), &to, &tiny(BUFFER)).is_ok() {
        check_invariants(&to).expect("what was salvaged is whole");
    }
}

impl Base {
    /// Every key that ever was.
    fn keys(&self) -> impl Iterator<Item = &(usize, Vec<u8>)> {
        let (first, last) = (&self.states[0], &self.states[self.states.len() - 1]);
        first.keys().chain(last.keys().filter(|key| !first.contains_key(*key)))
    }

    /// What was read is a state that the damage allows, as far as it could be read.
    fn judge(&self, found: &Found, damage: Damage) -> Result<(), String> {
        let from = if damage == Damage::Sector { self.vouched } else { 0 };
        let readable = |key: &&(usize, Vec<u8>)| !found.unreadable.contains(key);
        let same = |state: &State, key: &(usize, Vec<u8>)| state.get(key) == found.state.get(key);
        let fits = |state: &&State| self.keys().filter(readable).all(|key| same(state, key));
        if self.states[from..].iter().rev().any(|state| fits(&state)) {
            return Ok(());
        }
        let last = &self.states[self.states.len() - 1];
        let wrong: Vec<_> = self.keys().filter(readable).filter(|key| !same(last, key)).collect();
        let earlier = self.states[..from].iter().rev().any(|state| fits(&state));
        let text = wrong.iter().take(4).map(|key| {
            let sizes = [last, &found.state].map(|state| state.get(*key).map(Vec::len));
            format!("{:?}: {:?} instead of {:?}", String::from_utf8_lossy(&key.1), sizes[1], sizes[0])
        });
        Err(format!(
            "{} keys differ, {} errors, an earlier state: {earlier}; {}",
            wrong.len(),
            found.errors,
            text.collect::<Vec<_>>().join(", ")
        ))
    }

    /// Opens a mutant twice and checks what it shows.
    fn check(&self, bytes: Vec<u8>, damage: Damage, seed: u64) -> Result<(), String> {
        if seed.is_multiple_of(8) {
            look_over(&bytes);
        }
        let medium = SimStorage::holding(bytes);
        for round in ["first", "second"] {
            let db = match open_tiny(&medium, BUFFER) {
                Ok(db) => db,
                Err(Error::Corruption { .. } | Error::Unsupported(_) | Error::Io(_)) => continue,
                Err(e) => return Err(format!("{round} open: {e:?}")),
            };
            let found = read(&db, self).map_err(|text| format!("{round} open: {text}"))?;
            self.judge(&found, damage).map_err(|text| format!("{round} open: {text}"))?;
            // What works on its own in the background must not turn damage into absence.
            if seed.is_multiple_of(4) {
                let _ = (check_invariants(&db), maintain(&db), checkpoint(&db), maintain(&db));
                let found = read(&db, self).map_err(|text| format!("{round} open, maintained: {text}"))?;
                self.judge(&found, damage).map_err(|text| format!("{round} open, maintained: {text}"))?;
            }
        }
        Ok(())
    }
}

/// A mutant, and how it came about.
fn mutate(base: &Base, random: &mut Random) -> (Vec<u8>, Damage, String) {
    let mut bytes = base.bytes.clone();
    let len = bytes.len();
    // Half of the damage hits where something is; the rest of a small file is mostly zeros.
    let mut at = random.below(len as u64) as usize;
    if random.below(2) == 0 {
        at = (at..len).find(|at| bytes[*at] != 0).unwrap_or(at);
    }
    let blocks = len / BLOCK;
    let other = random.below(blocks as u64) as usize * BLOCK;
    let block = (at / BLOCK).min(blocks - 1) * BLOCK;
    let sector = at / SECTOR * SECTOR;
    let sector_end = (sector + SECTOR).min(len);
    match random.below(12) {
        0..3 => {
            let bit = random.below(8);
            bytes[at] ^= 1 << bit;
            (bytes, Damage::Sector, format!("bit {bit} of byte {at} flipped"))
        }
        3 => {
            let end = (at + 8).min(sector_end);
            bytes[at..end].fill(0xFF);
            (bytes, Damage::Sector, format!("bytes {at}..{end} all ones"))
        }
        4 => {
            bytes[sector..sector_end].fill(0);
            (bytes, Damage::Sector, format!("sector at {sector} zeroed"))
        }
        5 => {
            let end = (at + 64).min(sector_end);
            let noise = bytes_of(random.next(), end - at);
            bytes[at..end].copy_from_slice(&noise);
            (bytes, Damage::Sector, format!("bytes {at}..{end} random"))
        }
        6 => {
            bytes[block..(block + BLOCK)].fill(0);
            (bytes, Damage::Wide, format!("block at {block} zeroed"))
        }
        7 => {
            // Of an empty file nobody can know that it was more.
            let end = if random.below(2) == 0 { at } else { block }.max(1);
            bytes.truncate(end);
            (bytes, Damage::Wide, format!("cut at {end}"))
        }
        8 => {
            let copy = bytes[other..other + BLOCK].to_vec();
            bytes.copy_within(block..block + BLOCK, other);
            bytes[block..block + BLOCK].copy_from_slice(&copy);
            (bytes, Damage::Wide, format!("blocks at {block} and {other} swapped"))
        }
        9 => {
            bytes.copy_within(other..other + BLOCK, block);
            (bytes, Damage::Wide, format!("block at {block} is that at {other}"))
        }
        10 => {
            let old = if random.below(2) == 0 { block..block + BLOCK } else { sector..sector_end };
            let stale = base.older.get(old.clone()).map(<[u8]>::to_vec);
            bytes[old.clone()].copy_from_slice(&stale.unwrap_or(vec![0; old.len()]));
            (bytes, Damage::Wide, format!("bytes {old:?} as they once were"))
        }
        _ => {
            let end = block + random.below(16) as usize * BLOCK;
            let end = end.min(len);
            let noise = bytes_of(random.next(), end - block);
            bytes[block..end].copy_from_slice(&noise);
            bytes.extend(bytes_of(3, random.below(9000) as usize));
            (bytes, Damage::Wide, format!("bytes {block}..{end} random, and more at the end"))
        }
    }
}

#[test]
fn what_is_not_damaged_is_accepted() {
    let _alone = alone();
    for base in [build(true), build(false)] {
        let db = open_tiny(&SimStorage::holding(base.bytes.clone()), BUFFER).expect("not damaged");
        let found = read(&db, &base).expect("not damaged");
        assert_eq!(found.errors, 0);
        assert!(found.state == base.states[base.states.len() - 1], "{}: all of it", base.name);
        println!("{}: {} bytes, {} keys", base.name, base.bytes.len(), found.state.len());
    }
}

#[test]
fn damage_is_an_error_or_does_not_matter() {
    let _alone = alone();
    let dog = Watchdog::new(Duration::from_secs(10));
    let mut failures = Vec::new();
    for base in [build(true), build(false)] {
        for number in 0..2000 * soak() {
            let (bytes, damage, what) = mutate(&base, &mut Random(number));
            attempt(&mut failures, &dog, format!("{} {number}: {what}", base.name), || {
                base.check(bytes, damage, number)
            });
        }
    }
    assert!(failures.is_empty(), "failures:\n{}", failures.join("\n"));
}

/// In each structure every byte once, and all bytes in soak mode.
#[test]
fn no_byte_is_unguarded() {
    let _alone = alone();
    let dog = Watchdog::new(Duration::from_secs(10));
    let mut failures = Vec::new();
    for base in [build(true), build(false)] {
        let all: Vec<usize> = if soak() > 1 {
            (0..base.bytes.len()).collect()
        } else {
            // Every byte of both superblocks, the first byte of every 512, and every 397th of the others.
            let counts = |at: &usize| {
                matches!(at, 0..512 | 4096..4608)
                    || at.is_multiple_of(SECTOR)
                    || at.is_multiple_of(397) && base.bytes[*at] != 0
            };
            (0..base.bytes.len()).filter(counts).collect()
        };
        for at in all {
            let mut bytes = base.bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            attempt(&mut failures, &dog, format!("{}: byte {at} flipped", base.name), || {
                base.check(bytes, Damage::Sector, at as u64)
            });
        }
    }
    assert!(failures.is_empty(), "failures:\n{}", failures.join("\n"));
}

#[test]
fn damaged_files_on_disk_are_errors_or_right() {
    let _alone = alone();
    let dog = Watchdog::new(Duration::from_secs(10));
    let scratch = Scratch::new("damaged");
    let config = |name: &str| Config::new().path(scratch.0.join(name)).cache_capacity(4 << 20);
    let mut state = State::new();
    let db = config("base").open().expect("a healthy disk");
    for number in 0..3000 {
        step(&db, &mut state, number);
    }
    drop(db);
    let bytes = std::fs::read(scratch.0.join("base/db")).expect("the one file");
    let base = Base { name: "disk", older: vec![0; bytes.len()], bytes, states: vec![state], vouched: 0 };
    let mut failures = Vec::new();
    for number in 0..100 * soak() {
        let (bytes, damage, what) = mutate(&base, &mut Random(number));
        std::fs::create_dir_all(scratch.0.join("mutant")).expect("a healthy disk");
        std::fs::write(scratch.0.join("mutant/db"), bytes).expect("a healthy disk");
        attempt(&mut failures, &dog, format!("disk {number}: {what}"), || {
            for _ in 0..2 {
                if let Ok(db) = config("mutant").open() {
                    base.judge(&read(&db, &base)?, damage)?;
                }
            }
            Ok(())
        });
    }
    assert!(failures.is_empty(), "failures:\n{}", failures.join("\n"));
}

/// Names and contents.
type Files = Vec<(&'static str, Vec<u8>)>;

/// Directories that are no database of this crate and version: what they hold.
fn foreign() -> Vec<(&'static str, Files)> {
    let padded = |start: &[u8], len: usize| {
        let mut bytes = start.to_vec();
        bytes.extend(bytes_of(start.len() as u64, len - start.len()));
        bytes
    };
    let conf = b"segment_size: 524288\nuse_compression: false\nversion: 0.34\nvQ\xC1\x07\0\0\0".to_vec();
    let old = |db: Vec<u8>| {
        vec![
            ("conf", conf.clone()),
            ("db", db),
            ("blobs/1234", bytes_of(5, 3000)),
            ("snap.0000000000001F40", bytes_of(6, 300)),
        ]
    };
    // A segment of sled 0.34: checksum and inverted numbers, then messages.
    let mut segment = bytes_of(7, 20);
    segment.extend(bytes_of(8, 4000));
    segment.resize(512 << 10, 0);
    vec![
        ("an SQLite file", vec![("db", padded(b"SQLite format 3\0\x10\0\x01\x01\0\x40\x20\x20", 8192))]),
        ("an ELF file", vec![("db", padded(b"\x7FELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3E\0", 20_000))]),
        ("text", vec![("db", b"hello, I am a note\n".to_vec())]),
        ("garbage", vec![("db", bytes_of(1, 30_000))]),
        ("a directory of sled 0.34", old(segment)),
        ("a fresh directory of sled 0.34", vec![("conf", conf.clone()), ("db", Vec::new())]),
    ]
}

#[test]
fn foreign_files_are_refused_and_not_touched() {
    let _alone = alone();
    let dog = Watchdog::new(Duration::from_secs(10));
    let mut failures = Vec::new();
    for (name, files) in foreign() {
        let scratch = Scratch::new("foreign");
        for (file, bytes) in &files {
            let path = scratch.0.join(file);
            std::fs::create_dir_all(path.parent().expect("below the directory")).expect("a healthy disk");
            std::fs::write(path, bytes).expect("a healthy disk");
        }
        let before = files_below(&scratch.0);
        attempt(&mut failures, &dog, name.to_string(), || {
            match Config::new().path(&scratch.0).open() {
                Err(Error::Unsupported(_)) => {}
                Err(e) => return Err(format!("refused with another error: {e:?}")),
                Ok(_) => return Err("accepted".into()),
            }
            if files_below(&scratch.0) == before { Ok(()) } else { Err("it was changed".into()) }
        });
    }
    assert!(failures.is_empty(), "failures:\n{}", failures.join("\n"));
}

#[test]
fn an_empty_file_is_refused() {
    let _alone = alone();
    for len in [0, 100, 512, 4096, 8192, 100_000] {
        let scratch = Scratch::new("empty");
        std::fs::write(scratch.0.join("db"), vec![0; len]).expect("a healthy disk");
        // A file gets its name only when it is a database, so this is what is left of one.
        match Config::new().path(&scratch.0).open() {
            Ok(_) => panic!("{len} zeros are a database"),
            Err(e) => assert!(matches!(e, Error::Corruption { .. }), "{len} zeros: {e}"),
        }
        let left = std::fs::read(scratch.0.join("db")).expect("still there");
        assert!(left == vec![0; len], "{len} zeros were refused and changed");
    }
}

/// Offsets of the format version and of the checksum in a superblock, and the slots.
const VERSION_AT: usize = 8;
const SUM_AT: usize = 508;
const SLOTS: [usize; 2] = [0, 4096];
/// Offset of the second copy in a slot.
const COPY: usize = 2048;
const MAGIC: &[u8] = b"sledbwt\n";

#[test]
fn a_newer_version_is_refused_and_not_touched() {
    let _alone = alone();
    let base = build(true);
    if !base.bytes.starts_with(MAGIC) {
        println!("skipped: the superblock does not begin as this test expects");
        return;
    }
    for slots in [&SLOTS[..1], &SLOTS[1..], &SLOTS[..]] {
        let mut bytes = base.bytes.clone();
        for at in slots.iter().flat_map(|slot| [*slot, slot + COPY]) {
            bytes[at + VERSION_AT..][..4].copy_from_slice(&99_u32.to_le_bytes());
            let sum = crc32(&bytes[at..at + SUM_AT]);
            bytes[at + SUM_AT..][..4].copy_from_slice(&sum.to_le_bytes());
        }
        let medium = SimStorage::holding(bytes.clone());
        match open_tiny(&medium, BUFFER) {
            Err(Error::Unsupported(_)) => {}
            other => panic!("slots at {slots:?}: {:?}", other.map(drop)),
        }
        assert!(medium.contents() == bytes, "slots at {slots:?}: the file was changed");
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0_u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// A structure in the file: where it is, where its checksum is within it, and what that covers.
fn structures(bytes: &[u8]) -> Vec<(usize, usize, std::ops::Range<usize>)> {
    let mut found = Vec::new();
    for at in (0..bytes.len().saturating_sub(64)).step_by(64) {
        let length = |field: usize| {
            u32::from_le_bytes(bytes[at + field..at + field + 4].try_into().expect("four bytes")) as usize
        };
        let (sum, covered) = match &bytes[at..at + 4] {
            b"sled" if bytes[at..].starts_with(MAGIC) => (SUM_AT, 0..SUM_AT),
            b"SEG1" => (4, 8..64),
            b"REDO" => (4, 8..64_usize.saturating_add(length(40))),
            b"IMG1" => (4, 8..64_usize.saturating_add(length(32))),
            _ => continue,
        };
        if at + covered.end <= bytes.len() {
            found.push((at, sum, covered));
        }
    }
    found
}

/// Changes a field or some payload of a structure and makes its checksum right again.
fn forge(bytes: &mut [u8], random: &mut Random) -> String {
    let all = structures(bytes);
    let (at, sum, covered) = all[random.below(all.len() as u64) as usize].clone();
    let limit = if random.below(3) > 0 { covered.end.min(128) } else { covered.end };
    let field = covered.start + random.below((limit - covered.start) as u64) as usize;
    // Fields are aligned; what they hold is small, huge, off by a little, or the place of something else.
    let width = [1, 2, 4, 8][random.below(4) as usize];
    let field = (field / width * width).max(covered.start).min(covered.end - width.min(covered.len()));
    let target = all[random.below(all.len() as u64) as usize].0 as u64;
    let mut old = [0; 8];
    old[..width].copy_from_slice(&bytes[at + field..at + field + width]);
    let old = u64::from_le_bytes(old);
    let new = match random.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => old.wrapping_add(1),
        3 => old.wrapping_sub(1),
        4 => target,
        5 => target / 64,
        6 => u64::MAX >> random.below(64),
        _ => random.next(),
    };
    bytes[at + field..at + field + width].copy_from_slice(&new.to_le_bytes()[..width]);
    // A length that was changed moves the end of what the checksum covers.
    for (start, sum, covered) in structures(bytes).into_iter().filter(|(start, ..)| *start == at) {
        let crc = crc32(&bytes[start + covered.start..start + covered.end]);
        bytes[start + sum..start + sum + 4].copy_from_slice(&crc.to_le_bytes());
    }
    format!("{width} bytes at {at}+{field} (sum at {sum}) were {old:#x}, are {new:#x}")
}

#[test]
fn forged_files_neither_panic_nor_hang() {
    let _alone = alone();
    let dog = Watchdog::new(Duration::from_secs(10));
    let mut failures = Vec::new();
    for base in [build(true), build(false)] {
        if structures(&base.bytes).is_empty() {
            println!("skipped: no structure that this test knows");
            return;
        }
        let all = structures(&base.bytes);
        let right = all.iter().filter(|(at, sum, covered)| {
            let stored = &base.bytes[at + sum..at + sum + 4];
            stored == crc32(&base.bytes[at + covered.start..at + covered.end]).to_le_bytes()
        });
        let right = right.count();
        println!("{}: {} structures, {right} with the right checksum", base.name, all.len());
        assert!(right * 2 > all.len(), "this test does not know the format");
        for number in 0..2000 * soak() {
            let mut random = Random(number);
            let mut bytes = base.bytes.clone();
            let forged: Vec<String> = (0..1 + number % 3).map(|_| forge(&mut bytes, &mut random)).collect();
            let what = format!("{} {number}: {}", base.name, forged.join("; "));
            attempt(&mut failures, &dog, what, || {
                if number % 4 == 0 {
                    look_over(&bytes);
                }
                let medium = SimStorage::holding(bytes);
                for _ in 0..2 {
                    let Ok(db) = open_tiny(&medium, BUFFER) else { continue };
                    for name in db.tree_names() {
                        let Ok(tree) = db.open_tree(name) else { continue };
                        let _ = (tree.get("key 00001"), tree.first(), tree.last());
                        let _ = (tree.insert("key 00077", "new"), tree.remove("key 00078"));
                        if tree.iter().take(ENDLESS).take_while(Result::is_ok).count() == ENDLESS
                            || tree.iter().rev().take(ENDLESS).take_while(Result::is_ok).count() == ENDLESS
                        {
                            return Err("a scan does not end".into());
                        }
                    }
                    let _ = (check_invariants(&db), maintain(&db), db.flush(), checkpoint(&db));
                }
                Ok(())
            });
        }
    }
    assert!(failures.is_empty(), "failures:\n{}", failures.join("\n"));
}
