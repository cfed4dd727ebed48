//! A process that writes is killed, again and again, on the same directory; what it was told is durable is there.
//!
//! This binary runs itself as the child. The child opens the database, checks it against what its predecessors
//! acknowledged, says so, and writes from several threads (`common_durability/lives.rs`) until it is killed with SIGKILL;
//! now and then it closes the database and opens it again meanwhile. Half of the kills are aimed at opening, at a
//! checkpoint or at closing. Acknowledgements go to a file, which survives the process, after a flush returned.
//!
//! A killed process leaves everything that it wrote in the caches of the system. So what one opening showed is there
//! for all that follow, flushed or not.

#![cfg(unix)]
#![cfg(not(miri))]

#[path = "../common_durability/mod.rs"]
mod common_durability;

use common_durability::lives::{Acks, Found, Life, PHASE_AT, THREADS, check};
use common_durability::{Random, Scratch, Watchdog, soak};
use sled::{Config, testing};
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const CHILD: &str = "SLED_CRASH_CHILD";
/// How often the child closes the database by itself, in milliseconds; not set: never.
const CLOSES: &str = "SLED_CRASH_CLOSES";
const SIGKILL: i32 = 9;

/// What the child is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening = 1,
    Writing = 2,
    Checkpoint = 3,
    Closing = 4,
}

fn config(directory: &Path) -> Config {
    // Small enough to page out, to clean and to make checkpoints within a life.
    Config::new().path(directory.join("database")).cache_capacity(1 << 20).segment_size(64 << 10)
}

/// Opens the database and checks it; nothing but its file is there.
fn open(directory: &Path, acks: &Acks) -> Result<(sled::Db, Found), String> {
    let db = config(directory).open().map_err(|e| format!("does not open: {e}"))?;
    let entries = std::fs::read_dir(directory.join("database")).map_err(|e| e.to_string())?;
    let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    if names != ["db"] {
        return Err(format!("left behind: {names:?}"));
    }
    let found = check(&db, acks)?;
    Ok((db, found))
}

/// One life of the child; only a kill ends it.
fn live(directory: &Path, closes: Option<Duration>) -> Result<(), String> {
    let acks = Acks::open(directory);
    loop {
        acks.set(PHASE_AT, Phase::Opening as u64);
        let (db, found) = open(directory, &acks)?;
        for (thread, count) in found.counts.iter().enumerate() {
            acks.set(8 * thread as u64, *count);
        }
        let life = Life::new(&db, &acks, &found);
        life.identify()?;
        acks.set(PHASE_AT, Phase::Writing as u64);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let life = &life;
                scope.spawn(move || life.write(thread).expect("a healthy disk"));
            }
            let begun = Instant::now();
            while closes.is_none_or(|after| begun.elapsed() < after) {
                std::thread::sleep(Duration::from_millis(7));
                acks.set(PHASE_AT, Phase::Checkpoint as u64);
                testing::checkpoint(&db).expect("a healthy disk");
                acks.set(PHASE_AT, Phase::Writing as u64);
            }
            // Relaxed: a hint.
            life.stop.store(true, Ordering::Relaxed);
        });
        acks.set(PHASE_AT, Phase::Closing as u64);
        drop(db);
    }
}

/// The child; does nothing unless it is called by the parent.
#[test]
fn child() {
    let Ok(directory) = std::env::var(CHILD) else { return };
    let closes = std::env::var(CLOSES).ok();
    let closes = closes.map(|text| Duration::from_millis(text.parse().expect("made by the parent")));
    // The input ends with the parent, so that no child outlives it.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(4);
    });
    if let Err(text) = live(Path::new(&directory), closes) {
        eprintln!("{text}");
        std::process::exit(3);
    }
}

fn spawn(directory: &Path, closes: Option<u64>) -> Child {
    let me = std::env::current_exe().expect("this runs");
    let mut command = Command::new(me);
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]).env(CHILD, directory);
    if let Some(after) = closes {
        command.env(CLOSES, after.to_string());
    }
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

/// Waits until the child is in a phase, if it has not ended.
fn wait_for(acks: &Acks, child: &mut Child, phase: Phase) -> Result<Duration, String> {
    const LIMIT: Duration = Duration::from_secs(10);
    let start = Instant::now();
    while acks.get(PHASE_AT) != phase as u64 {
        // An end is looked at by whoever kills it.
        if child.try_wait().map_err(|e| e.to_string())?.is_some() {
            break;
        }
        if start.elapsed() > LIMIT {
            child.kill().map_err(|e| e.to_string())?;
            return Err(format!("waiting for {phase:?} took more than {LIMIT:?}"));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(start.elapsed())
}

#[derive(Default, Debug)]
struct Tally {
    cycles: u64,
    /// Kills by what the child was doing then: starting, opening, writing, checkpoint, closing.
    killed_while: [u64; 5],
    checked_in_parent: u64,
    longest_open: Duration,
}

/// One life and its end; half of the ends are not while it writes and nothing else.
fn cycle(
    directory: &Path,
    random: &mut Random,
    tally: &mut Tally,
    opening: &mut Duration,
) -> Result<(), String> {
    let acks = Acks::open(directory);
    acks.set(PHASE_AT, 0);
    let aim = random.below(8);
    let closes = (aim == 3).then(|| 5 + random.below(40));
    let mut child = spawn(directory, closes);
    let mut moment = |below: u64| std::thread::sleep(Duration::from_micros(random.below(below)));
    match aim {
        0 | 1 => moment(opening.as_micros() as u64 * 5 / 4 + 500),
        2 => {
            wait_for(&acks, &mut child, Phase::Checkpoint)?;
            moment(4_000);
        }
        3 => {
            wait_for(&acks, &mut child, Phase::Closing)?;
            moment(4_000);
        }
        _ => {
            let took = wait_for(&acks, &mut child, Phase::Writing)?;
            *opening = (*opening * 7 + took) / 8;
            tally.longest_open = tally.longest_open.max(took);
            moment(70_000);
        }
    }
    kill(child)?;
    tally.killed_while[acks.get(PHASE_AT) as usize] += 1;
    // Now and then clean opens and closes in between, as other programs do it; the same is there each time.
    if random.below(20) == 0 {
        tally.checked_in_parent += 1;
        let first = open(directory, &acks)?.1;
        let second = open(directory, &acks)?.1;
        if (first.counts, first.checksum) != (second.counts, second.checksum) {
            return Err(format!("opened twice: {:?}, then {:?}", first.counts, second.counts));
        }
    }
    Ok(())
}

#[test]
fn what_was_flushed_survives_kills() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let cycles = 400 * soak();
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
        dog.begin(format!("cycle {}: {tally:?}", tally.cycles));
        if let Err(text) = cycle(&scratch.0, &mut random, &mut tally, &mut opening) {
            let kept = scratch.0.clone();
            std::mem::forget(scratch);
            panic!("cycle {} in {}: {text}", tally.cycles, kept.display());
        }
        tally.cycles += 1;
        dog.rest();
    }
    println!("{tally:?}");
    let [starting, opening, _, checkpoint, closing] = tally.killed_while;
    assert!(starting + opening >= cycles / 10, "too few kills while opening: {tally:?}");
    assert!(checkpoint + closing >= cycles / 15, "too few kills in checkpoints and while closing: {tally:?}");
}
