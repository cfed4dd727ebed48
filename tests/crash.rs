//! A process that writes is killed, again and again, on the same directory; what it was told is durable is there.
//!
//! This binary runs itself as the child. The child opens the database, checks it against what its predecessors
//! acknowledged, says so, and writes from several threads until it is killed with SIGKILL. Half of the
//! kills come while it is opening. Acknowledgements go to a file, which survives the process, after a flush returned.
//!
//! Every thread writes numbered operations to a ring of keys of its own. That makes the contents tell how many of them
//! are there, and whether they are a prefix. A value also says how far every other thread had come when it was
//! written, which shows a hole between threads.

#![cfg(unix)]
#![cfg(not(miri))]

mod common_durability;

use common_durability::{Random, Scratch, Watchdog, block_on, bytes_of, mix, soak};
use sled::{Config, Db};
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const THREADS: usize = 4;
/// Keys of a thread; an operation later than this many overwrites.
const RING: u64 = 150;
const CHILD: &str = "SLED_CRASH_CHILD";
/// Offsets in the file of acknowledgements: a word per thread, then what the child is doing.
const PHASE_AT: u64 = 8 * THREADS as u64;
const OPENED: u64 = 2;
const SIGKILL: i32 = 9;

/// Operations of every thread, from the first on, that are there.
type Counts = [u64; THREADS];

struct Acks(File);

impl Acks {
    fn open(directory: &Path) -> Acks {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(directory.join("acks")).expect("a file can be created");
        if file.metadata().expect("open").len() == 0 {
            file.write_all_at(&[0; 64], 0).expect("there is room");
        }
        Acks(file)
    }

    fn get(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, at).expect("written when created");
        u64::from_le_bytes(word)
    }

    fn set(&self, at: u64, word: u64) {
        self.0.write_all_at(&word.to_le_bytes(), at).expect("there is room");
    }
}

fn key(thread: usize, number: u64) -> Vec<u8> {
    format!("{thread}/{:05}", number % RING).into_bytes()
}

/// Whether operation `number` of a thread removes; all others insert.
fn removes(number: u64) -> bool {
    number % 7 == 3
}

/// What operation `number` writes: itself, the life in which it ran, how far the others were, padding.
fn value(thread: usize, number: u64, life: u64, others: &Counts) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend(life.to_le_bytes());
    others.iter().for_each(|count| bytes.extend(count.to_le_bytes()));
    let seed = mix(number ^ (thread as u64) << 32 ^ life << 40);
    let padding = if number.is_multiple_of(61) { 20_000 } else { seed % 200 };
    bytes.extend(bytes_of(seed, padding as usize));
    bytes
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[8 * at..8 * at + 8].try_into().expect("eight bytes"))
}

fn tree_of(db: &Db, thread: usize) -> sled::Result<sled::Tree> {
    // Two trees of two threads each.
    db.open_tree(["left", "right"][thread % 2])
}

/// How many operations of each thread the database holds.
fn recover(db: &Db, acknowledged: &Counts) -> Result<(Counts, u64), String> {
    let mut counts = [0; THREADS];
    let mut last_life = 0;
    let mut seen = Vec::new();
    for (thread, count) in counts.iter_mut().enumerate() {
        let tree = tree_of(db, thread).map_err(|e| e.to_string())?;
        let mut slots = vec![None; RING as usize];
        for pair in tree.scan_prefix(format!("{thread}/")) {
            let (key, bytes) = pair.map_err(|e| format!("thread {thread}: {e}"))?;
            let slot: u64 = std::str::from_utf8(&key[2..]).expect("a key").parse().expect("a number");
            if bytes.len() < 8 * (2 + THREADS) {
                return Err(format!("thread {thread}: a value of {} bytes", bytes.len()));
            }
            let (number, life) = (word(&bytes, 0), word(&bytes, 1));
            let others: Counts = std::array::from_fn(|i| word(&bytes, 2 + i));
            if value(thread, number, life, &others) != *bytes || number % RING != slot {
                return Err(format!("thread {thread}: slot {slot} holds what nobody wrote"));
            }
            slots[slot as usize] = Some((number, life));
            seen.push((thread, number, others));
        }
        // The newest visible operation, and possibly removals after it.
        let visible = slots.iter().flatten().map(|(number, _)| number + 1).max().unwrap_or(0);
        let expected = |count: u64, slot: u64| {
            let newest = (count.saturating_sub(RING)..count).rev().find(|number| number % RING == slot);
            newest.filter(|number| !removes(*number))
        };
        let fits = |count: &u64| (0..RING).all(|s| slots[s as usize].map(|(n, _)| n) == expected(*count, s));
        let found: Vec<u64> = (visible..=visible + 1).filter(fits).collect();
        let least = acknowledged[thread];
        // Where a removal that changed nothing is in doubt, the acknowledgement decides.
        *count = *found.iter().rev().find(|count| **count >= least).ok_or_else(|| {
            let holes: Vec<String> = (0..RING)
                .filter(|s| slots[*s as usize].map(|(n, _)| n) != expected(visible, *s))
                .map(|s| format!("slot {s}: {:?} not {:?}", slots[s as usize], expected(visible, s)))
                .collect();
            format!(
                "thread {thread}: {visible} operations seen, {found:?} would fit, {least} acknowledged; {} holes: {}",
                holes.len(),
                holes[..holes.len().min(6)].join(", ")
            )
        })?;
        let mut by_number: Vec<(u64, u64)> = slots.iter().flatten().copied().collect();
        by_number.sort_unstable();
        if !by_number.is_sorted_by_key(|(_, life)| *life) {
            return Err(format!("thread {thread}: an operation of an earlier life came back"));
        }
        last_life = last_life.max(by_number.last().map_or(0, |(_, life)| *life));
    }
    for (thread, number, others) in seen {
        if let Some(other) = (0..THREADS).find(|other| others[*other] > counts[*other]) {
            return Err(format!(
                "hole: operation {number} of thread {thread} is there, which began after {} of thread {other}, \
                 of which {} are there",
                others[other], counts[other]
            ));
        }
    }
    Ok((counts, last_life))
}

fn config(directory: &Path) -> Config {
    // Small enough to page out, to clean and to make checkpoints within a life.
    Config::new().path(directory.join("database")).cache_capacity(1 << 20).segment_size(64 << 10)
}

/// One life of the child; only a kill ends it.
fn live(directory: &Path) -> Result<(), String> {
    let acks = Acks::open(directory);
    acks.set(PHASE_AT, 1);
    let acknowledged: Counts = std::array::from_fn(|i| acks.get(8 * i as u64));
    let db = config(directory).open().map_err(|e| format!("does not open: {e}"))?;
    let (counts, last_life) = recover(&db, &acknowledged)?;
    let started = acks.get(PHASE_AT + 8);
    let id = db.generate_id().map_err(|e| e.to_string())?;
    if started > id {
        return Err(format!("identifier {id} although {} was handed out", started - 1));
    }
    acks.set(PHASE_AT + 8, id + 1);
    acks.set(PHASE_AT, OPENED);
    let done: Arc<[AtomicU64; THREADS]> = Arc::new(counts.map(AtomicU64::new));
    std::thread::scope(|scope| {
        for (thread, first) in counts.into_iter().enumerate() {
            let (db, acks, done) = (&db, &acks, &done);
            scope.spawn(move || write(db, acks, done, (thread, first, last_life + 1)));
        }
    });
    unreachable!("the threads write until they are killed")
}

fn write(db: &Db, acks: &Acks, done: &[AtomicU64; THREADS], (thread, first, life): (usize, u64, u64)) {
    let tree = tree_of(db, thread).expect("opened before");
    let mut random = Random(life << 8 | thread as u64);
    for number in first.. {
        // Acquire: what another thread counted has returned before this operation begins.
        let others: Counts = std::array::from_fn(|i| done[i].load(Ordering::Acquire));
        if removes(number) {
            tree.remove(key(thread, number)).expect("a healthy disk");
        } else {
            tree.insert(key(thread, number), value(thread, number, life, &others)).expect("a healthy disk");
        }
        // Release: pairs with the Acquire above.
        done[thread].store(number + 1, Ordering::Release);
        if random.below(20) == 0 {
            let flushed = if thread == 3 { block_on(tree.flush_async()) } else { tree.flush() };
            flushed.expect("a healthy disk");
            acks.set(8 * thread as u64, number + 1);
        }
    }
}

/// The child; does nothing unless it is called by the parent.
#[test]
fn child() {
    let Ok(directory) = std::env::var(CHILD) else { return };
    // The input ends with the parent, so that no child outlives it.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(4);
    });
    if let Err(text) = live(Path::new(&directory)) {
        eprintln!("{text}");
        std::process::exit(3);
    }
}

fn spawn(directory: &Path) -> Child {
    let me = std::env::current_exe().expect("this runs");
    let mut command = Command::new(me);
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]).env(CHILD, directory);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).stdin(Stdio::piped());
    command.spawn().expect("processes can be started")
}

/// Kills the child; it must not have ended by itself.
fn kill(mut child: Child) -> Result<(), String> {
    let ended = child.try_wait().map_err(|e| e.to_string())?;
    if ended.is_none() {
        child.kill().map_err(|e| e.to_string())?;
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    match output.status.signal() {
        Some(SIGKILL) => Ok(()),
        _ => Err(format!(
            "the child ended: {}, {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

/// Waits until the child has opened and checked the database, or for `limit`.
fn wait_until_opened(acks: &Acks, child: &mut Child, limit: Duration) -> Result<Duration, String> {
    let start = Instant::now();
    while acks.get(PHASE_AT) != OPENED {
        // An end is looked at by whoever kills it.
        if child.try_wait().map_err(|e| e.to_string())?.is_some() {
            break;
        }
        if start.elapsed() > limit {
            child.kill().map_err(|e| e.to_string())?;
            return Err(format!("opening took more than {limit:?}"));
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    Ok(start.elapsed())
}

#[derive(Default, Debug)]
struct Tally {
    cycles: u64,
    killed_while_opening: u64,
    checked_in_parent: u64,
    longest_open: Duration,
}

#[test]
fn what_was_flushed_survives_kills() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let cycles = 300 * soak();
    let dog = Watchdog::new(Duration::from_secs(20));
    let mut random = Random(u64::from(std::process::id()));
    println!("seed {}", random.0);
    let mut scratch = Scratch::new("kill");
    let mut tally = Tally::default();
    // A moving average of how long opening takes, to aim at.
    let mut opening = Duration::from_millis(10);
    while tally.cycles < cycles {
        if random.below(40) == 0 {
            scratch = Scratch::new("kill");
        }
        let acks = Acks::open(&scratch.0);
        acks.set(PHASE_AT, 0);
        dog.begin(format!("cycle {}: {tally:?}", tally.cycles));
        let mut child = spawn(&scratch.0);
        let result = if random.below(2) == 0 {
            let span = opening.as_micros() as u64 * 5 / 4 + 500;
            std::thread::sleep(Duration::from_micros(random.below(span)));
            tally.killed_while_opening += u64::from(acks.get(PHASE_AT) != OPENED);
            kill(child)
        } else {
            wait_until_opened(&acks, &mut child, Duration::from_secs(10)).and_then(|took| {
                opening = (opening * 7 + took) / 8;
                tally.longest_open = tally.longest_open.max(took);
                std::thread::sleep(Duration::from_millis(5 + random.below(76)));
                kill(child)
            })
        };
        let result = result.and_then(|()| {
            // Now and then a clean open and close in between, as other programs do it.
            if random.below(25) > 0 {
                return Ok(());
            }
            tally.checked_in_parent += 1;
            let acknowledged: Counts = std::array::from_fn(|i| acks.get(8 * i as u64));
            let db = config(&scratch.0).open().map_err(|e| format!("does not open: {e}"))?;
            recover(&db, &acknowledged).map(drop)
        });
        if let Err(text) = result {
            let kept = scratch.0.clone();
            std::mem::forget(scratch);
            panic!("cycle {} in {}: {text}", tally.cycles, kept.display());
        }
        tally.cycles += 1;
        dog.rest();
    }
    println!("{tally:?}");
    assert!(tally.killed_while_opening >= cycles / 10, "too few kills while opening: {tally:?}");
}
