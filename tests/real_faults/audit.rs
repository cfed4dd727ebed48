//! Which calls of the system a database makes: those that durability needs, none beside them, none while idle.

use crate::children::command;
use crate::common_durability::strace::{Syscall, parse};
use crate::common_durability::{Scratch, Watchdog, bytes_of};
use crate::injected::has_strace;
use sled::Config;
use std::collections::HashSet;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

const FLUSHES: usize = 60;
/// After this long nothing is left to do.
const REST: Duration = Duration::from_millis(5500);
const IDLE: Duration = Duration::from_secs(3);

/// A call of its own in the log, and nothing that another thread prints comes between.
fn mark(text: &str) {
    std::io::stderr().write_all(format!("mark {text}\n").as_bytes()).expect("somebody reads it");
}

/// The child that is watched.
pub fn audit(directory: &Path) {
    mark("begin");
    let config = Config::new().path(directory.join("new/database"));
    let db = config.open().expect("nothing is wrong");
    mark("opened");
    for number in 0..FLUSHES {
        mark(&format!("insert {number}"));
        // Text, to be found in what is written.
        db.insert(number.to_be_bytes(), format!("record {number} of the audit").as_bytes()).expect("works");
        db.flush().expect("works");
        mark(&format!("flushed {number}"));
    }
    for number in 0..300_u64 {
        db.insert(number.to_be_bytes(), bytes_of(number, 400)).expect("works");
    }
    std::thread::sleep(REST);
    mark("idle");
    std::thread::sleep(IDLE);
    mark("busy");
    db.insert("last", "record at the end of the audit").expect("works");
    mark("close");
    drop(db);
    mark("closed");
    drop(config.open().expect("its lock is free"));
    mark("end");
}

struct Log {
    calls: Vec<Syscall>,
    file: String,
}

impl Log {
    fn at(&self, text: &str) -> usize {
        let text = format!("\"mark {text}\\n\"");
        let found =
            self.calls.iter().find(|call| call.text.starts_with("write(2") && call.text.contains(&text));
        found.unwrap_or_else(|| panic!("the log has no {text}")).began
    }

    /// Those that began and ended between two marks.
    fn between(&self, from: &str, to: &str) -> Vec<&Syscall> {
        let (from, to) = (self.at(from), self.at(to));
        self.calls.iter().filter(|call| call.began > from && call.ended < to).collect()
    }
}

#[test]
fn a_database_makes_the_calls_it_needs_and_no_others() {
    if !has_strace() {
        return;
    }
    let scratch = Scratch::new("audit");
    let dog = Watchdog::new(Duration::from_secs(60));
    dog.begin("audit");
    let log = scratch.0.join("log");
    let before = ["strace", "-f", "-y", "-s", "1000", "-o", log.to_str().expect("text")];
    let output = command(&before, "audit", &scratch.0, "").output().expect("it was started before");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let calls = parse(&std::fs::read_to_string(&log).expect("written by strace"));
    let file = format!("<{}>", scratch.0.join("new/database/db").display());
    let log = Log { calls, file };
    flushes(&log);
    idle(&log);
    closing(&log);
    paths(&log, &scratch.0);
}

/// The record is in one write, and the sync that follows it is done before the flush returns.
fn flushes(log: &Log) {
    let mut plain = 0;
    for number in 0..FLUSHES {
        let calls = log.between(&format!("insert {number}"), &format!("flushed {number}"));
        let writes: Vec<_> = calls.iter().filter(|call| call.is(&["pwrite64"], &log.file)).collect();
        let syncs: Vec<_> = calls.iter().filter(|call| call.is(&["fdatasync", "fsync"], &log.file)).collect();
        let text = format!("record {number} of the audit");
        let holder = writes.iter().find(|call| call.text.contains(&text));
        let holder = holder.unwrap_or_else(|| panic!("flush {number} wrote no record: {calls:?}"));
        assert_eq!(syncs.len(), 1, "flush {number}: {syncs:?}");
        let covered = holder.worked() && syncs[0].worked() && writes.iter().all(|w| w.ended < syncs[0].began);
        assert!(covered, "flush {number}: {calls:?}");
        let others = calls.iter().filter(|call| call.text.contains(&log.file)).count();
        plain += usize::from(others == 2);
    }
    println!("{plain} of {FLUSHES} flushes were one pwrite64 and one fdatasync");
    // The first one fills the segment, and starts it.
    assert!(plain >= FLUSHES - 2, "only {plain} of {FLUSHES} flushes were one write and one sync");
}

fn idle(log: &Log) {
    let sleeping = |call: &&&Syscall| call.is(&["clock_nanosleep", "nanosleep", "restart_syscall"], "");
    let (slept, others): (Vec<_>, Vec<_>) = {
        let calls = log.between("idle", "busy");
        let slept = calls.iter().filter(sleeping).count();
        (vec![slept], calls.into_iter().filter(|call| !sleeping(&call)).collect())
    };
    assert!(others.is_empty(), "while idle: {others:?}");
    assert_eq!(slept, [1], "who else sleeps with a timer");
    // Nor does any thread wait with a timeout meanwhile.
    let busy = log.at("busy");
    let across = log.calls.iter().filter(|call| call.began < log.at("idle") && call.ended > busy);
    for call in across {
        assert!(!call.is(&["futex"], "tv_sec"), "a timer in an idle database: {call:?}");
    }
}

/// Everything is synced before the file is closed, and closing gives up the lock.
fn closing(log: &Log) {
    let calls = log.between("close", "closed");
    let last = |names: &[&str]| calls.iter().rfind(|call| call.is(names, &log.file));
    let write = last(&["pwrite64"]).expect("the last record is written");
    let sync = last(&["fdatasync", "fsync"]).expect("and synced");
    let close = last(&["close"]).expect("and closed");
    assert!(write.ended < sync.began && sync.ended < close.began, "{write:?}, {sync:?}, {close:?}");
    assert!(calls.iter().any(|call| call.text.contains("record at the end of the audit")));
    let released = last(&["flock"]).is_some_and(|call| call.text.contains("LOCK_UN"));
    assert!(released, "the lock is given up");
    let mut locked = log.between("begin", "opened").into_iter().filter(|call| call.is(&["flock"], &log.file));
    assert!(locked.next_back().is_some_and(|call| call.text.contains("LOCK_EX|LOCK_NB") && call.worked()));
}

/// No path outside of the directory, no descriptor that a new process would get.
fn paths(log: &Log, root: &Path) {
    const BY_PATH: [&str; 17] = [
        "open",
        "openat",
        "openat2",
        "creat",
        "mkdir",
        "mkdirat",
        "unlink",
        "unlinkat",
        "rename",
        "renameat",
        "renameat2",
        "link",
        "linkat",
        "symlink",
        "symlinkat",
        "truncate",
        "chmod",
    ];
    let calls = log.between("begin", "end");
    let touched: Vec<_> = calls.into_iter().filter(|call| call.is(&BY_PATH, "")).collect();
    let root = root.join("new").display().to_string();
    let mut strange = HashSet::new();
    for call in &touched {
        let path = call.text.split('"').nth(1).expect("a path");
        let ours = path.starts_with(&root) || root.starts_with(path) && call.text.contains("O_RDONLY");
        // What the standard library and the allocator look at, and do not change.
        let looks =
            (path.starts_with("/proc/") || path.starts_with("/sys/")) && call.text.contains("O_RDONLY");
        if !ours && !looks {
            strange.insert(path);
        }
        let opens = call.text.starts_with("open");
        assert!(!opens || call.text.contains("O_CLOEXEC"), "inherited by every new process: {call:?}");
    }
    assert!(strange.is_empty(), "touched outside of the directory: {strange:?}");
    assert!(touched.len() > 3, "{touched:?}");
}
