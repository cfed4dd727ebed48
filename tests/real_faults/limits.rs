//! Limits of the process: an error where one is met, and a whole database as soon as there is room again.

use crate::children::{Sequence, command, run};
use crate::common_durability::lives::Acks;
use crate::common_durability::{Scratch, Watchdog};
use crate::skipped;
use sled::{Config, Db, Error, Result};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

/// A user that nobody is.
pub const NOBODY: u32 = 54_321;

fn open(directory: &Path) -> Result<Db> {
    Config::new().path(directory).cache_capacity(1 << 20).segment_size(64 << 10).flush_every_ms(None).open()
}

/// Sets a soft limit; the one there was.
fn limit(resource: libc::__rlimit_resource_t, soft: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure lives until the call returns.
    assert_eq!(unsafe { libc::getrlimit(resource, &raw mut limit) }, 0);
    let old = limit.rlim_cur;
    limit.rlim_cur = soft.min(limit.rlim_max);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
    old
}

fn code(error: &Error) -> Option<i32> {
    match error {
        Error::Io(error) => error.raw_os_error(),
        _ => None,
    }
}

/// Becomes another user, with all threads.
pub fn become_nobody() {
    // SAFETY: no memory is passed.
    assert_eq!(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) }, 0);
}

/// Gives `directory` to the other user; `false`, and said so: only root can.
pub fn give_to_nobody(directory: &Path) -> bool {
    let given = std::os::unix::fs::chown(directory, Some(NOBODY), None);
    if let Err(error) = &given {
        skipped(format_args!("no other user: {error}"));
    }
    given.is_ok()
}

fn in_child(name: &str) {
    let scratch = Scratch::new("limits");
    let dog = Watchdog::new(Duration::from_secs(30));
    dog.begin(name);
    let said = run(command(&[], name, &scratch.0, ""));
    said.lines().filter(|line| line.starts_with("  ")).for_each(|line| println!("{line}"));
}

#[test]
fn a_file_that_may_not_grow_is_an_error_and_goes_on_when_it_may() {
    in_child("file size");
}

/// The write that meets the limit is short, the next one `EFBIG`.
pub fn file_size(directory: &Path) {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let path = directory.join("database");
    let mut acknowledged = 0;
    for round in 0..8 {
        let db = open(&path).expect("no limit");
        let mut sequence = Sequence::found(&db, acknowledged);
        sequence.steps(&db, 50);
        let len = std::fs::metadata(path.join("db")).expect("there").len();
        // Somewhere within a block.
        let old = limit(libc::RLIMIT_FSIZE, len + 3_000 + round * 12_345);
        let error = sequence.until_failure(&db, 50_000).expect("the limit is met");
        assert_eq!(code(&error), Some(libc::EFBIG), "{error}");
        sequence.is_readable(&db);
        limit(libc::RLIMIT_FSIZE, old);
        sequence.flush(&db).expect("no limit");
        if round % 2 == 0 {
            sequence.steps(&db, 100);
        } else {
            // Closing meets it.
            limit(libc::RLIMIT_FSIZE, 0);
        }
        sequence.is_readable(&db);
        acknowledged = sequence.acknowledged;
        drop(db);
        limit(libc::RLIMIT_FSIZE, 0);
        if let Err(error) = open(&path) {
            assert_eq!(code(&error), Some(libc::EFBIG), "{error}");
        }
        limit(libc::RLIMIT_FSIZE, old);
    }
    Sequence::found(&open(&path).expect("no limit"), acknowledged);
}

#[test]
fn without_descriptors_opening_is_an_error_and_what_is_open_goes_on() {
    in_child("descriptors");
}

pub fn descriptors(directory: &Path) {
    let db = open(&directory.join("first")).expect("no limit");
    let mut sequence = Sequence::found(&db, 0);
    // Whatever was inherited: no number below the last of these is free.
    let all: Vec<_> = (0..64).map(|_| File::open("/dev/null").expect("no limit")).collect();
    let used = all.last().expect("some").as_raw_fd() as u64 + 1;
    let mut refused = 0;
    for (name, more) in ["second", "third"].into_iter().flat_map(|name| (0..6).map(move |more| (name, more)))
    {
        let old = limit(libc::RLIMIT_NOFILE, used + more);
        let opened = open(&directory.join(name));
        sequence.steps(&db, 20);
        sequence.flush(&db).expect("nothing more is needed");
        sequence.is_readable(&db);
        limit(libc::RLIMIT_NOFILE, old);
        match opened {
            Ok(second) => Sequence::found(&second, 0).steps(&second, 5),
            Err(error) => {
                assert_eq!(code(&error), Some(libc::EMFILE), "{error}");
                refused += 1;
            }
        }
    }
    println!("  opening was refused {refused} times");
    assert!((2..12).contains(&refused), "refused {refused} times");
    for name in ["second", "third"] {
        open(&directory.join(name)).expect("no limit");
    }
}

#[test]
fn without_threads_opening_is_an_error_and_works_afterwards() {
    let scratch = Scratch::new("threads");
    if give_to_nobody(&scratch.0) {
        let said = run(command(&[], "threads", &scratch.0, ""));
        said.lines().filter(|line| line.starts_with("  ")).for_each(|line| println!("{line}"));
    }
}

pub fn threads(directory: &Path) {
    become_nobody();
    let path = directory.join("database");
    let threads = || std::fs::read_dir("/proc/self/task").expect("there is /proc").count() as u64;
    let before = threads();
    let mut refused = 0;
    let mut acknowledged = 0;
    for most in (before.saturating_sub(1)..before + 4).chain(before..before + 3) {
        let old = limit(libc::RLIMIT_NPROC, most);
        let opened = open(&path);
        limit(libc::RLIMIT_NPROC, old);
        match opened {
            Ok(db) => {
                let mut sequence = Sequence::found(&db, acknowledged);
                sequence.steps(&db, 20);
                acknowledged = sequence.acknowledged;
            }
            Err(error) => {
                assert_eq!(code(&error), Some(libc::EAGAIN), "{error}");
                refused += 1;
                assert!(within_a_moment(|| threads() == before), "a thread is left");
                // The lock is free, and nothing is lost.
                Sequence::found(&open(&path).expect("no limit"), acknowledged);
            }
        }
        assert!(within_a_moment(|| threads() == before), "a thread is left");
    }
    println!("  opening was refused {refused} times");
    // Not even one thread; the first only.
    assert!(refused >= 4, "refused {refused} times");
    assert!(acknowledged > 0, "never opened");
}

fn within_a_moment(what: impl Fn() -> bool) -> bool {
    crate::common_durability::within(Duration::from_secs(5), what)
}

/// Where memory is refused, the end of the process is allowed, a panic or anything half done is not.
#[test]
fn without_address_space_nothing_acknowledged_is_lost() {
    let scratch = Scratch::new("memory");
    let acks = Acks::open(&scratch.0);
    let dog = Watchdog::new(Duration::from_secs(30));
    let mut ends = [0; 3];
    for kibibytes in [0, 64, 256, 512, 1024, 2048, 3000, 4096, 6000, 8192, 16 << 10, 64 << 10, 512 << 10] {
        dog.begin(format!("{kibibytes} KiB of address space"));
        let output = command(&[], "memory", &scratch.0, &kibibytes.to_string()).output();
        let output = output.expect("processes can be started");
        let errors = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            ends[usize::from(said.contains("  refused"))] += 1;
        } else {
            let aborted =
                output.status.signal() == Some(libc::SIGABRT) && errors.contains("memory allocation");
            assert!(aborted, "{kibibytes} KiB: {}: {said}{errors}", output.status);
            ends[2] += 1;
        }
        let db = open(&scratch.0.join("database")).expect("no limit");
        Sequence::found(&db, acks.get(0));
    }
    println!("  {} runs went well, {} met an error, {} aborted", ends[0], ends[1], ends[2]);
    assert!(ends[0] > 0 && ends[1] + ends[2] > 0, "no limit was met, or each: {ends:?}");
}

pub fn memory(directory: &Path, kibibytes: &str) {
    let acks = Acks::open(directory);
    let statm = std::fs::read_to_string("/proc/self/statm").expect("there is /proc");
    let pages: u64 = statm.split(' ').next().expect("a field").parse().expect("a number");
    let more: u64 = kibibytes.parse().expect("a number");
    limit(libc::RLIMIT_AS, (pages * 4 + more) << 10);
    let written = open(&directory.join("database")).and_then(|db| {
        let mut sequence = Sequence::found(&db, acks.get(0));
        for _ in 0..400 {
            sequence.step(&db)?;
            acks.set(0, sequence.acknowledged);
        }
        Ok(())
    });
    match written {
        Ok(()) => println!("  all went well"),
        Err(error) => println!("  refused: {error}"),
    }
}
