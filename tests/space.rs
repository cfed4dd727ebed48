//! Disk, memory, threads and system calls stay within what is promised, on real files.
//!
//! - Overwritten and removed data gives its space back without a call and without a reopening.
//! - A database much larger than its cache needs the cache and a little more.
//! - Without work there is no I/O, no processor time, no waking up.
//! - A flush is a sync after the write, and creation syncs the directories: seen from outside, with strace.
//!
//! One test runs at a time. What is measured of a process runs in a child, which is this binary again.

#![cfg(target_os = "linux")]
#![cfg(not(miri))]

mod common_durability;

use common_durability::strace::{Syscall, parse};
use common_durability::{Random, Scratch, bytes_of, soak};
use sled::testing::{Tuning, counters, memory_used};
use sled::{Config, Db};
use std::collections::HashSet;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const CHILD: &str = "SLED_SPACE_CHILD";

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of the blocks that the files of a directory occupy.
fn disk_usage(directory: &Path) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("an entry");
        let metadata = entry.metadata().expect("readable");
        sum += if metadata.is_dir() { disk_usage(&entry.path()) } else { metadata.blocks() * 512 };
    }
    sum
}

/// Waits, without calling the database, until its directory has shrunk to `bound`.
fn rests_at(directory: &Path, bound: u64, what: &str) -> u64 {
    let start = Instant::now();
    loop {
        let used = disk_usage(directory);
        if used <= bound {
            println!("{what}: {used} bytes on disk after {:?}", start.elapsed());
            return used;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: {used} bytes on disk, not {bound}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What the database says of its size is what the system says.
fn size_is_right(db: &Db, directory: &Path, what: &str) {
    let (said, used) = (db.size_on_disk().expect("healthy"), disk_usage(directory));
    let off = said.abs_diff(used);
    // Background work may go on between the two; less than a segment is no difference.
    assert!(off * 20 <= used || off < MIB, "{what}: size_on_disk is {said}, the files occupy {used}");
}

#[test]
fn overwritten_and_removed_records_give_their_space_back() {
    const RECORDS: u64 = 50_000;
    let _alone = alone();
    let scratch = Scratch::new("overwrites");
    let db = Config::new().path(&scratch.0).open().expect("a healthy disk");
    let key = |number: u64| format!("{:024}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).into_bytes();
    let live: u64 = (0..RECORDS).map(|number| key(number)[..24].len() as u64 + 100).sum();
    let mut peak = 0;
    for round in 0..11 {
        for number in 0..RECORDS {
            db.insert(&key(number)[..24], bytes_of(round << 32 | number, 100)).expect("healthy");
        }
        peak = peak.max(disk_usage(&scratch.0));
    }
    db.flush().expect("healthy");
    println!("{live} bytes live, {peak} bytes on disk at the peak");
    size_is_right(&db, &scratch.0, "just overwritten");
    rests_at(&scratch.0, live * 3 / 2, "overwritten ten times");
    size_is_right(&db, &scratch.0, "overwritten");
    for number in 0..RECORDS {
        let old = db.get(&key(number)[..24]).expect("healthy");
        assert_eq!(old.as_deref(), Some(&bytes_of(10 << 32 | number, 100)[..]), "record {number}");
    }
    for number in 0..RECORDS {
        db.remove(&key(number)[..24]).expect("healthy");
    }
    db.flush().expect("healthy");
    assert_eq!(db.len(), 0);
    rests_at(&scratch.0, MIB, "removed");
    println!("{:?}", counters(&db));
    drop(db);
    assert!(disk_usage(&scratch.0) <= MIB, "closing does not make it grow again");
    let db = Config::new().path(&scratch.0).open().expect("a healthy disk");
    assert!(db.is_empty());
}

/// A record in the log that removes something is short beside what it removes, so that the log says little about it.
#[test]
fn long_records_that_are_removed_give_their_space_back() {
    let _alone = alone();
    for (records, len) in [(20_000, 1_500), (5_000, 5_000), (300, 100_000)] {
        let scratch = Scratch::new("long");
        let db = Config::new().path(&scratch.0).open().expect("a healthy disk");
        let key = |number: u64| number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
        for round in 0..2 {
            for number in 0..records {
                db.insert(key(number), bytes_of(round << 32 | number, len)).expect("healthy");
            }
        }
        let live = records * (len as u64 + 8);
        rests_at(&scratch.0, live * 13 / 10, "overwritten");
        for number in records / 10..records {
            db.remove(key(number)).expect("healthy");
        }
        rests_at(&scratch.0, live / 10 * 3 / 2 + MIB / 2, "90 % removed");
        for number in 0..records / 10 {
            let value = db.get(key(number)).expect("healthy");
            assert_eq!(value.as_deref(), Some(&bytes_of(1 << 32 | number, len)[..]), "record {number}");
            db.remove(key(number)).expect("healthy");
        }
        rests_at(&scratch.0, MIB, "all removed");
    }
}

#[test]
fn one_big_value_overwritten_needs_a_few_copies() {
    let _alone = alone();
    let scratch = Scratch::new("big");
    let db = Config::new().path(&scratch.0).open().expect("a healthy disk");
    let mut peak = 0;
    for round in 0..300 {
        db.insert("big", bytes_of(round, 1_000_000)).expect("healthy");
        if round % 10 == 9 {
            db.flush().expect("healthy");
        }
        peak = peak.max(disk_usage(&scratch.0));
    }
    db.flush().expect("healthy");
    assert!(peak <= 32 * MIB, "{peak} bytes on disk at the peak");
    println!("{peak} bytes on disk at the peak");
    rests_at(&scratch.0, 8 * MIB, "one big value");
    assert_eq!(db.get("big").expect("healthy").as_deref(), Some(&bytes_of(299, 1_000_000)[..]));
    db.remove("big").expect("healthy");
    db.flush().expect("healthy");
    rests_at(&scratch.0, MIB, "big value removed");
    size_is_right(&db, &scratch.0, "big value removed");
}

#[test]
fn many_small_trees_are_small_and_go_away() {
    const TREES: u64 = 20_000;
    let _alone = alone();
    let scratch = Scratch::new("trees");
    let db = Config::new().path(&scratch.0).open().expect("a healthy disk");
    for number in 0..TREES {
        let tree = db.open_tree(format!("tree {number}")).expect("healthy");
        for key in 0..5_u64 {
            tree.insert(key.to_be_bytes(), bytes_of(number << 3 | key, 100)).expect("healthy");
        }
    }
    db.flush().expect("healthy");
    let full = rests_at(&scratch.0, 64 * MIB, "twenty thousand trees");
    size_is_right(&db, &scratch.0, "twenty thousand trees");
    for number in (0..TREES).step_by(997) {
        let tree = db.open_tree(format!("tree {number}")).expect("healthy");
        assert_eq!(
            tree.get(3_u64.to_be_bytes()).expect("healthy"),
            Some(bytes_of(number << 3 | 3, 100).into())
        );
    }
    for number in 0..TREES {
        assert!(db.drop_tree(format!("tree {number}")).expect("healthy"));
    }
    db.flush().expect("healthy");
    rests_at(&scratch.0, (full / 2).min(16 * MIB), "all trees dropped");
    assert_eq!(db.tree_names().len(), 1);
}

/// Runs one of the measurements below in a process of its own.
fn in_child(name: &str, directory: &Path) {
    let me = std::env::current_exe().expect("this runs");
    let mut command = Command::new(me);
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, format!("{name}:{}", directory.display()));
    let output = command.output().expect("processes can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter(|line| line.starts_with("  ")).for_each(|line| println!("{line}"));
    assert!(
        output.status.success(),
        "{name}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn child() {
    let Ok(what) = std::env::var(CHILD) else { return };
    let (name, directory) = what.split_once(':').expect("made by the parent");
    let directory = Path::new(directory);
    match name {
        "memory" => measure_memory(directory),
        "idle" => measure_idle(directory),
        _ => write_and_flush(directory),
    }
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("there is /proc");
    let pages: u64 = statm.split(' ').nth(1).expect("a field").parse().expect("a number");
    pages * 4096
}

/// The highest value of something, looked at every few milliseconds.
struct Peak {
    highest: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Peak {
    fn of(look: impl Fn() -> u64 + Send + 'static) -> Peak {
        let (highest, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (max, end) = (highest.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            // Relaxed: the join below orders everything.
            while !end.load(Ordering::Relaxed) {
                max.fetch_max(look(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Peak { highest, ended, thread }
    }

    fn end(self) -> u64 {
        // Relaxed: the join orders everything.
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic");
        self.highest.load(Ordering::Relaxed)
    }
}

const CACHE: u64 = 4 * MIB;

fn small_cache(directory: &Path) -> Db {
    Config::new().path(directory).cache_capacity(CACHE).open().expect("a healthy disk")
}

/// Runs a phase; neither what the database counts nor what the system sees may pass the bound.
fn phase<T>(name: &str, db: &Db, base: u64, data: u64, body: impl FnOnce(&Db) -> T) -> T {
    let bound = CACHE + 32 * MIB + data / 200;
    let own = Peak::of({
        let db = db.clone();
        move || memory_used(&db)
    });
    let whole = Peak::of(resident);
    let start = Instant::now();
    let result = body(db);
    let (own, whole) = (own.end(), whole.end().saturating_sub(base));
    println!("  {name}: {own} bytes counted, {whole} resident, of {bound}; {:?}", start.elapsed());
    assert!(own <= bound, "{name}: counts {own} bytes of memory, not {bound}");
    assert!(whole <= bound, "{name}: {whole} more bytes resident, not {bound}");
    result
}

/// Data of twenty times the cache: filled, counted, scanned, read at random, closed and opened again.
fn measure_memory(directory: &Path) {
    const RECORDS: u64 = 400_000;
    let data = RECORDS * (16 + 184);
    let base = resident();
    let key = |number: u64| format!("{:016x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).into_bytes();
    let db = small_cache(directory);
    phase("fill", &db, base, data, |db| {
        for number in 0..RECORDS {
            db.insert(key(number), bytes_of(number, 184)).expect("healthy");
        }
        db.flush().expect("healthy");
    });
    assert_eq!(phase("len", &db, base, data, |db| db.len()) as u64, RECORDS);
    let scan = |db: &Db| db.iter().inspect(|pair| assert!(pair.is_ok(), "{pair:?}")).count() as u64;
    assert_eq!(phase("scan", &db, base, data, scan), RECORDS);
    let read = |db: &Db| {
        let mut random = Random(4);
        for _ in 0..50_000 {
            let number = random.below(RECORDS);
            let found = db.get(key(number)).expect("healthy");
            assert_eq!(found.as_deref(), Some(&bytes_of(number, 184)[..]), "record {number}");
        }
    };
    phase("read", &db, base, data, read);
    drop(db);
    let db = small_cache(directory);
    phase("read after opening", &db, base, data, read);
    assert_eq!(phase("scan after opening", &db, base, data, scan), RECORDS);
    println!("  {:?}", counters(&db));
    // Without a clean close: the tail is in memory until it is written out.
    phase("overwrite", &db, base, data, |db| {
        for number in 0..RECORDS / 4 {
            db.insert(key(number * 4), bytes_of(number * 4, 184)).expect("healthy");
        }
        db.flush().expect("healthy");
    });
    std::process::exit(0);
}

#[test]
fn memory_is_the_cache_and_a_little() {
    let _alone = alone();
    let scratch = Scratch::new("memory");
    in_child("memory", &scratch.0);
    // The child ended without closing; opening replays within the same bounds.
    let start = Instant::now();
    let db = small_cache(&scratch.0);
    println!("  opening after the end of the process took {:?}", start.elapsed());
    assert_eq!(db.get(format!("{:016x}", 0)).expect("healthy"), Some(bytes_of(0, 184).into()));
}

/// Ids of the threads of this process.
fn threads() -> HashSet<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("there is /proc");
    tasks.map(|task| task.expect("an entry").file_name().into_string().expect("a number")).collect()
}

fn field(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or("0");
    line.rsplit([' ', '\t']).next().expect("a field").parse().expect("a number")
}

/// Processor time of a thread of this process in ticks of 10 ms.
fn ticks(task: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{task}/stat")).expect("there is /proc");
    let fields = stat.rsplit_once(')').expect("the name ends").1.split(' ').skip(12).take(2);
    fields.map(|field| field.parse::<u64>().expect("a number")).sum()
}

fn measure_idle(directory: &Path) {
    let before = threads();
    let db = Config::new().path(directory).cache_capacity(8 << 20).open().expect("a healthy disk");
    for round in 0..4 {
        for number in 0..30_000_u64 {
            db.insert(number.to_be_bytes(), bytes_of(round << 32 | number, 120)).expect("healthy");
        }
    }
    // Something for the background: not flushed, cleaning and a checkpoint due.
    for number in 0..20_000_u64 {
        db.remove(number.to_be_bytes()).expect("healthy");
    }
    let ours: Vec<String> = threads().difference(&before).cloned().collect();
    println!("  {} threads while at work", ours.len());
    assert!(ours.len() <= 2, "{} threads of the database", ours.len());
    std::thread::sleep(Duration::from_secs(5));
    let look = || {
        let ours = threads().difference(&before).cloned().collect::<Vec<_>>();
        let switches = ours
            .iter()
            .map(|task| field(&format!("/proc/self/task/{task}/status"), "voluntary_ctxt_switches:"));
        (
            field("/proc/self/io", "write_bytes:"),
            field("/proc/self/io", "syscw:"),
            ours.iter().map(|task| ticks(task)).sum::<u64>(),
            switches.sum::<u64>(),
        )
    };
    let first = look();
    std::thread::sleep(Duration::from_secs(3));
    let last = look();
    println!("  idle: {first:?}, three seconds later {last:?} (bytes, writes, ticks, wake-ups)");
    assert_eq!(first.0, last.0, "bytes written while idle");
    assert!(last.2 - first.2 <= 1, "{} ticks of processor time while idle", last.2 - first.2);
    assert!(last.3.saturating_sub(first.3) <= 3, "{} wake-ups while idle", last.3 - first.3);
    assert!(threads().difference(&before).count() <= 2);
    drop(db);
    // A thread that was joined may take a moment to leave /proc.
    let start = Instant::now();
    while threads().difference(&before).count() > 0 {
        assert!(start.elapsed() < Duration::from_secs(2), "threads go on after closing");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn without_work_nothing_happens() {
    let _alone = alone();
    let scratch = Scratch::new("idle");
    in_child("idle", &scratch.0);
}

#[test]
fn opening_and_closing_many_times_leaves_nothing() {
    let _alone = alone();
    let scratch = Scratch::new("cycles");
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("there is /proc").count();
    let cycle = |number: u64| {
        let db = small_cache(&scratch.0);
        db.insert(number.to_be_bytes(), "value").expect("healthy");
        drop(db.iter());
    };
    (0..50).for_each(cycle);
    let (fds, memory) = (descriptors(), resident());
    (50..50 + 250 * soak()).for_each(cycle);
    let (fds_after, grown) = (descriptors(), resident().saturating_sub(memory));
    println!("  {fds} descriptors before, {fds_after} after; {grown} more bytes resident");
    assert!(fds_after <= fds, "{fds_after} descriptors, {fds} before");
    assert!(grown < 16 * MIB, "{grown} bytes leaked");
    assert!(disk_usage(&scratch.0) < 4 * MIB, "{} bytes on disk", disk_usage(&scratch.0));
}

const FLUSHES: usize = 50;

/// What strace watches: marks on standard error around every insert and flush.
fn write_and_flush(directory: &Path) {
    let db = Config::new().path(directory.join("new/database")).open().expect("a healthy disk");
    // Formatted first, so that a mark is one call.
    let mark = |text: String| std::io::stderr().write_all(text.as_bytes()).expect("somebody reads it");
    mark("mark opened\n".into());
    for number in 0..FLUSHES {
        mark(format!("mark begin {number}\n"));
        db.insert(number.to_be_bytes(), bytes_of(number as u64, 100)).expect("healthy");
        db.flush().expect("healthy");
        mark(format!("mark flushed {number}\n"));
    }
    std::process::exit(0);
}

#[test]
fn a_flush_is_a_sync_after_the_write() {
    const WRITES: [&str; 5] = ["pwrite64", "write", "writev", "pwritev", "pwritev2"];
    const SYNCS: [&str; 2] = ["fdatasync", "fsync"];
    let _alone = alone();
    let scratch = Scratch::new("strace");
    let log = scratch.0.join("log");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-s", "40", "-e"]);
    command
        .arg("trace=openat,mkdir,write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,ftruncate,fallocate");
    command.arg("-o").arg(&log).arg(std::env::current_exe().expect("this runs"));
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, format!("flush:{}", scratch.0.display()));
    let output = match command.output() {
        Ok(output) => output,
        Err(e) => {
            println!("skipped: strace cannot be started: {e}");
            return;
        }
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    if !errors.contains("mark opened") && errors.contains("ptrace") {
        println!("skipped: strace may not trace here: {errors}");
        return;
    }
    assert!(output.status.success(), "{}: {errors}", output.status);
    let calls = parse(&std::fs::read_to_string(&log).expect("written by strace"));
    let mark = |text: String| {
        let found = calls.iter().find(|call| call.text.starts_with("write(2") && call.text.contains(&text));
        found.unwrap_or_else(|| panic!("the log has no {text:?}"))
    };
    let (directory, file) = (scratch.0.join("new/database"), scratch.0.join("new/database/db"));
    let (directory, file) = (format!("<{}>", directory.display()), format!("<{}>", file.display()));
    for number in 0..FLUSHES {
        let begin = mark(format!("mark begin {number}\\n"));
        let flushed = mark(format!("mark flushed {number}\\n"));
        let within = |call: &&Syscall| call.began > begin.ended && call.ended < flushed.began;
        let wrote = calls.iter().filter(within).find(|call| call.is(&WRITES, &file) && call.worked());
        let wrote = wrote.unwrap_or_else(|| panic!("flush {number} returned without a write"));
        let synced = calls
            .iter()
            .filter(within)
            .find(|call| call.is(&SYNCS, &file) && call.worked() && call.began > wrote.ended);
        assert!(synced.is_some(), "flush {number} returned without a sync after the write");
    }
    // The file is there after a power cut only when the directories that lead to it are.
    let opened = mark("mark opened".into()).began;
    let parent = format!("<{}>", scratch.0.join("new").display());
    for synced in [directory, parent, format!("<{}>", scratch.0.display())] {
        let found =
            calls.iter().find(|call| call.is(&["fsync"], &synced) && call.worked() && call.ended < opened);
        assert!(found.is_some(), "{synced} was not synced before opening returned");
    }
    let syncs = calls.iter().filter(|call| call.is(&SYNCS, &file)).count();
    println!("  {} calls, {syncs} syncs of the file for {FLUSHES} flushes", calls.len());
    assert!(syncs <= 2 * FLUSHES + 20, "{syncs} syncs for {FLUSHES} flushes");
}

/// The sizes of a normal open are what these tests are about.
#[test]
fn tests_of_space_use_normal_sizes() {
    assert!(Tuning::default().threads);
}
