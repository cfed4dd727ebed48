//! Several processes and one database: one has it, the others are told at once, and its end gives it free at once.
//!
//! The lock is an `flock`, which belongs to the open file. A forked process has a copy of that until it calls `exec` or
//! ends: its end releases nothing, nor does it closing the copy; closing the database does, whoever has copies.

use crate::children::{Sequence, command, run};
use crate::common_durability::lives::Acks;
use crate::common_durability::{Scratch, Watchdog, within};
use sled::{Config, Db, Result};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn open(directory: &Path) -> Result<Db> {
    Config::new().path(directory.join("database")).segment_size(64 << 10).open()
}

/// The child that has it open and writes, until its input ends.
pub fn hold(directory: &Path) {
    let acks = Acks::open(directory);
    std::thread::spawn(|| {
        let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
        std::process::exit(0);
    });
    let db = open(directory).expect("nobody has it");
    let mut sequence = Sequence::found(&db, acks.get(0));
    loop {
        sequence.step(&db).expect("nothing is wrong");
        acks.set(0, sequence.acknowledged);
    }
}

/// The child that says whether it can open.
pub fn try_to_open(directory: &Path) {
    match open(directory) {
        Ok(_) => println!("it opens"),
        Err(error) => println!("refused: {error}"),
    }
}

fn is_locked(outcome: Result<Db>) {
    let text = outcome.expect_err("somebody has it open").to_string();
    assert!(text.contains("could not acquire lock"), "{text}");
}

/// Whether another process is refused.
fn others_are_refused(directory: &Path) {
    let said = run(command(&[], "try", directory, ""));
    assert!(said.contains("refused: IO error: could not acquire lock"), "{said}");
}

fn spawn_holder(directory: &Path) -> Child {
    let mut command = command(&[], "hold", directory, "");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("processes can be started")
}

fn signal(child: &Child, signal: i32) {
    let id = i32::try_from(child.id()).expect("a process id");
    // SAFETY: no memory is passed; the child was not waited for yet, so the id is its own.
    assert_eq!(unsafe { libc::kill(id, signal) }, 0);
}

#[test]
fn a_database_that_another_process_has_is_refused_until_that_is_killed() {
    let scratch = Scratch::new("holder");
    let acks = Acks::open(&scratch.0);
    let dog = Watchdog::new(Duration::from_secs(20));
    for round in 0..3 {
        dog.begin(format!("round {round}"));
        let before = acks.get(0);
        let mut child = spawn_holder(&scratch.0);
        assert!(within(Duration::from_secs(10), || acks.get(0) > before), "the holder does not write");
        is_locked(open(&scratch.0));
        // A holder that sleeps has it no less.
        signal(&child, libc::SIGSTOP);
        is_locked(open(&scratch.0));
        let slept_at = acks.get(0);
        signal(&child, libc::SIGCONT);
        assert!(within(Duration::from_secs(10), || acks.get(0) > slept_at + 5), "the holder does not go on");
        is_locked(open(&scratch.0));
        child.kill().expect("it runs");
        child.wait().expect("it was killed");
        let db = open(&scratch.0).expect("its holder is gone");
        Sequence::found(&db, acks.get(0));
    }
}

#[test]
fn processes_that_were_forked_neither_release_nor_keep_the_lock() {
    let scratch = Scratch::new("fork");
    let dog = Watchdog::new(Duration::from_secs(20));
    dog.begin("forking");
    run(command(&[], "fork", &scratch.0, ""));
    Sequence::found(&open(&scratch.0).expect("all are gone"), 60);
}

/// Forks a process that does nothing but end, at once or when it is killed.
fn fork_one(stays: bool) -> libc::pid_t {
    // SAFETY: the new process calls nothing but async-signal-safe functions.
    let id = unsafe { libc::fork() };
    assert!(id >= 0, "processes can be started");
    if id == 0 {
        // SAFETY: plain system calls; the process is gone with its parent.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if stays {
                loop {
                    libc::pause();
                }
            }
            libc::_exit(0);
        }
    }
    id
}

fn wait_for(id: libc::pid_t) {
    // SAFETY: no status is asked for.
    assert_eq!(unsafe { libc::waitpid(id, std::ptr::null_mut(), 0) }, id);
}

/// The child that forks.
pub fn fork(directory: &Path) {
    let db = open(directory).expect("nobody has it");
    let mut sequence = Sequence::found(&db, 0);
    sequence.steps(&db, 60);
    wait_for(fork_one(false));
    others_are_refused(directory);
    sequence.steps(&db, 60);
    let staying = fork_one(true);
    others_are_refused(directory);
    drop(db);
    let db = open(directory).expect("closed, whatever a forked process has a copy of");
    sequence.steps(&db, 60);
    // SAFETY: no memory is passed; it was not waited for yet.
    assert_eq!(unsafe { libc::kill(staying, libc::SIGKILL) }, 0);
    wait_for(staying);
    others_are_refused(directory);
    sequence.flush(&db).expect("nothing is wrong");
}

/// A process that is being started has copies of all descriptors for a moment.
#[test]
fn a_program_that_starts_processes_can_close_and_open_at_once() {
    let scratch = Scratch::new("starting");
    let dog = Watchdog::new(Duration::from_secs(60));
    dog.begin("starting processes");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // Relaxed: a hint.
                while !stop.load(Ordering::Relaxed) {
                    Command::new("true").status().expect("processes can be started");
                }
            });
        }
        let outcome: Result<()> = (0..150_u32).try_for_each(|number| {
            // Every tenth one is new.
            let directory = scratch.0.join((number / 10).to_string());
            std::fs::create_dir_all(&directory).expect("there is room");
            open(&directory)?.insert("k", number.to_be_bytes().as_slice()).map(drop)
        });
        // Relaxed: a hint.
        stop.store(true, Ordering::Relaxed);
        outcome.expect("it was closed before");
    });
}
