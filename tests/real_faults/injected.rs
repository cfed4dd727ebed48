//! `strace` makes calls of the child fail, one at a time: the error is told, and what was acknowledged before is there.
//!
//! `when=k` counts per thread. The child works on one thread and has its timer off, so its k-th call is met; a thread of
//! the database may meet its own.

use crate::children::{Sequence, command};
use crate::common_durability::lives::Acks;
use crate::common_durability::{Scratch, Watchdog, block_on, soak};
use crate::skipped;
use sled::{Config, Db, Error, Result, testing};
use std::fmt::Display;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Steps of the parent before, and of the child.
const STEPS: u64 = 60;

fn open(directory: &Path) -> Result<Db> {
    // Little cache, so that there is something to read; the bound does not go below this.
    let config = Config::new().path(directory.join("database")).cache_capacity(64 << 10);
    config.segment_size(64 << 10).flush_every_ms(None).open()
}

/// Whether `strace` can make calls fail here.
pub fn has_strace() -> bool {
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "-e", "inject=fdatasync:error=EIO:when=1", "true"]);
    match command.output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            skipped(String::from_utf8_lossy(&output.stderr).trim());
            false
        }
        Err(error) => {
            skipped(format_args!("strace cannot be started: {error}"));
            false
        }
    }
}

/// Runs a child whose calls fail as `inject` says; what it saw. Then everything acknowledged is there.
fn run_injected(directory: &Path, inject: &str, mode: &str) -> String {
    let file = directory.join("database/db");
    let file = file.to_str().expect("text");
    let (calls, _) = inject.split_once(':').expect("calls, then what happens to them");
    let (trace, inject) = (format!("trace={calls}"), format!("inject={inject}"));
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", file, "-e", &trace, "-e", &inject];
    let output = command(&strace, "injected", directory, mode).output().expect("it was started before");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{inject}: {}\n{said}{errors}", output.status);
    let acks = Acks::open(directory);
    let db = open(directory).unwrap_or_else(|e| panic!("{inject}: does not open: {e}"));
    let mut sequence = Sequence::found(&db, acks.get(0));
    sequence.steps(&db, 5);
    acks.set(0, sequence.acknowledged);
    // Little to recover, so that most of the next one's calls come later.
    testing::checkpoint(&db).expect("nothing is wrong");
    said.lines().filter_map(|line| line.strip_prefix("  ")).collect::<Vec<_>>().join(", ")
}

/// Runs one for each of the calls; what each saw.
fn each(name: &str, inject: &str, mode: &str, calls: impl IntoIterator<Item = impl Display>) -> Vec<String> {
    if !has_strace() {
        return Vec::new();
    }
    let scratch = Scratch::new(name);
    let dog = Watchdog::new(Duration::from_secs(40));
    let acks = Acks::open(&scratch.0);
    let db = open(&scratch.0).expect("nothing is wrong");
    let mut sequence = Sequence::found(&db, 0);
    sequence.steps(&db, STEPS * 5);
    acks.set(0, sequence.acknowledged);
    testing::checkpoint(&db).expect("nothing is wrong");
    drop(db);
    let run = |call: String| {
        let inject = format!("{inject}:when={call}");
        dog.begin(format!("{name}: {inject}"));
        run_injected(&scratch.0, &inject, mode)
    };
    let seen: Vec<String> = calls.into_iter().map(|call| run(call.to_string())).collect();
    println!("{inject}: {seen:?}");
    seen
}

fn count(seen: &[String], what: &str) -> usize {
    seen.iter().filter(|said| said.contains(what)).count()
}

/// The child.
pub fn injected(directory: &Path, mode: &str) {
    let acks = Acks::open(directory);
    let db = match open(directory) {
        Ok(db) => db,
        Err(error) => return println!("\n  refused: {error}"),
    };
    println!("\n  open");
    let read = db.iter().try_fold(0, |count, pair| pair.map(|_| count + 1));
    let mut sequence = match read {
        Ok(next) => Sequence { next, acknowledged: acks.get(0) },
        Err(error) => {
            assert_eq!(mode, "passing", "met {error}");
            println!("  read again after {error}");
            Sequence::found(&db, acks.get(0))
        }
    };
    for _ in 0..STEPS {
        match (sequence.step(&db), mode) {
            (Ok(()), _) => acks.set(0, sequence.acknowledged),
            (Err(error), "final") => return is_final(&db, &mut sequence, &error),
            (Err(error), "passing") => {
                println!("  step {} met {error}", sequence.next);
                sequence.step(&db).expect("it passes");
            }
            (Err(error), _) => panic!("met {error}"),
        }
    }
    sequence.flush(&db).expect("nothing is wrong any more");
    acks.set(0, sequence.acknowledged);
    if mode == "resizing" {
        resize(&db);
    }
}

/// Needs room, and gives it back.
fn resize(db: &Db) {
    let other = db.open_tree("other").expect("no resize");
    for number in 0..60_u64 {
        other.insert(number.to_be_bytes(), vec![7; 20_000]).expect("no resize");
    }
    db.drop_tree("other").expect("no resize");
    for _ in 0..4 {
        if let Err(error) = testing::checkpoint(db) {
            println!("  checkpoint met {error}");
        }
    }
    testing::checkpoint(db).expect("it passes");
}

/// Whatever writes says the same, reads go on.
fn is_final(db: &Db, sequence: &mut Sequence, error: &Error) {
    println!("  final: {error}");
    let acknowledged = sequence.acknowledged;
    for _ in 0..3 {
        assert_eq!(&db.insert("k", "v").expect_err("a write"), error);
        assert_eq!(&db.remove(0_u64.to_be_bytes()).expect_err("a write"), error);
        assert_eq!(&db.flush().expect_err("a flush"), error);
        assert_eq!(&block_on(db.flush_async()).expect_err("a flush"), error);
        assert_eq!(&db.open_tree("new").expect_err("a write"), error);
        assert_eq!(&db.global_error().expect_err("known"), error);
        sequence.is_readable(db);
    }
    assert_eq!(sequence.acknowledged, acknowledged);
}

#[test]
fn a_failed_sync_is_told_for_ever_and_takes_nothing_acknowledged() {
    let seen = each("sync-eio", "fdatasync,fsync:error=EIO", "final", 1..=6 * soak());
    if !seen.is_empty() {
        assert!(count(&seen, "final: IO error: Input/output error") >= 4, "{seen:?}");
    }
    let seen = each("sync-enospc", "fdatasync,fsync:error=ENOSPC", "final", 2..=3);
    assert_eq!(count(&seen, "final: IO error: No space left"), seen.len(), "{seen:?}");
}

#[test]
fn a_failed_write_is_told_and_passes() {
    let mut met = 0;
    for (name, error) in [("write-eio", "EIO"), ("write-enospc", "ENOSPC"), ("write-edquot", "EDQUOT")] {
        let seen =
            each(name, &format!("pwrite64:error={error}"), "passing", (1..=6 * soak()).map(|k| k * 2 - 1));
        met += count(&seen, "met IO error");
        if seen.is_empty() {
            return;
        }
    }
    // A write that writes nothing.
    let seen = each("write-nothing", "pwrite64:retval=0", "passing", [3, 5, 8]);
    met += count(&seen, "met IO error: failed to write whole buffer");
    assert!(met >= 8, "{met} met a failed write");
}

#[test]
fn interrupted_calls_are_made_again() {
    for (name, calls) in [("intr-write", "pwrite64"), ("intr-read", "pread64"), ("intr-sync", "fdatasync")] {
        if !has_strace() {
            return;
        }
        let scratch = Scratch::new(name);
        let dog = Watchdog::new(Duration::from_secs(40));
        dog.begin(name);
        let mut sequence = Sequence { next: 0, acknowledged: 0 };
        sequence.steps(&open(&scratch.0).expect("nothing is wrong"), STEPS);
        Acks::open(&scratch.0).set(0, sequence.acknowledged);
        let seen = run_injected(&scratch.0, &format!("{calls}:error=EINTR:when=2+2"), "none");
        assert_eq!(seen, "open", "{calls}");
    }
}

#[test]
fn a_failed_read_is_an_error_of_that_call_only() {
    let seen = each("read-eio", "pread64:error=EIO", "passing", [1, 2, 4, 7, 9, 12, 20, 40]);
    if !seen.is_empty() {
        assert!(count(&seen, "Input/output error") >= 4, "{seen:?}");
        assert!(count(&seen, "read again") >= 1, "none while reading: {seen:?}");
    }
}

#[test]
fn a_file_that_cannot_be_cut_or_extended_loses_nothing() {
    let seen = each("resize-eio", "ftruncate,fallocate:error=EIO", "resizing", 1..=3);
    if !seen.is_empty() {
        assert!(count(&seen, "met IO error: Input/output error") >= 1, "{seen:?}");
        // Holes are not possible everywhere; that is no error.
        let seen = each("no-holes", "fallocate:error=EOPNOTSUPP", "resizing", ["1+"]);
        assert_eq!(seen, ["open"]);
    }
}
