//! This binary as a child of itself, and the simplest program that can be checked after any fault.

use crate::common_durability::bytes_of;
use crate::{audit, injected, limits, odd_paths, openers};
use sled::{Db, Error, Result};
use std::path::Path;
use std::process::Command;

const CHILD: &str = "SLED_FAULT_CHILD";
const DIRECTORY: &str = "SLED_FAULT_DIRECTORY";
const ARGUMENT: &str = "SLED_FAULT_ARGUMENT";

/// A command that runs a program of `child` below a directory; `before` goes first, for who is to watch it.
pub fn command(before: &[&str], name: &str, directory: &Path, argument: &str) -> Command {
    let me = std::env::current_exe().expect("this runs");
    let mut command = match before.split_first() {
        None => Command::new(me),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(me);
            command
        }
    };
    command.args(["--exact", "children::child", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, name).env(DIRECTORY, directory).env(ARGUMENT, argument);
    command
}

/// Runs it to its end, which must be a good one; what it said.
pub fn run(mut command: Command) -> String {
    let output = command.output().expect("processes can be started");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}{errors}", output.status);
    said
}

/// The children; does nothing unless it is called by a parent.
#[test]
fn child() {
    let Ok(name) = std::env::var(CHILD) else { return };
    let directory = std::env::var_os(DIRECTORY).expect("set by the parent");
    let argument = std::env::var(ARGUMENT).expect("set by the parent");
    let (directory, argument) = (Path::new(&directory), argument.as_str());
    match name.as_str() {
        "hold" => openers::hold(directory),
        "try" => openers::try_to_open(directory),
        "fork" => openers::fork(directory),
        "file size" => limits::file_size(directory),
        "descriptors" => limits::descriptors(directory),
        "threads" => limits::threads(directory),
        "memory" => limits::memory(directory, argument),
        "injected" => injected::injected(directory, argument),
        "audit" => audit::audit(directory),
        "other user" => odd_paths::other_user(directory),
        _ => panic!("no child {name}, {argument} below {}", directory.display()),
    }
}

/// Keys in order, and how far they are known to be durable.
pub struct Sequence {
    pub next: u64,
    pub acknowledged: u64,
}

impl Sequence {
    /// As it is in a database: all keys from the first on, none missing, at least those acknowledged.
    pub fn found(db: &Db, acknowledged: u64) -> Sequence {
        let mut next = 0_u64;
        for pair in db.iter() {
            let (key, value) = pair.expect("readable");
            assert_eq!(*key, next.to_be_bytes(), "a key is missing or too many");
            assert_eq!(*value, Sequence::value(next), "the value of {next}");
            next += 1;
        }
        assert!(next >= acknowledged, "{next} keys are there, {acknowledged} were acknowledged");
        Sequence { next, acknowledged }
    }

    fn value(number: u64) -> Vec<u8> {
        bytes_of(number, if number % 40 == 39 { 20_000 } else { 100 + number as usize % 7 * 90 })
    }

    /// Inserts the next key; every few are flushed. What fails is not counted, and tried again by the next step.
    pub fn step(&mut self, db: &Db) -> Result<()> {
        if self.next >= self.acknowledged + 5 {
            return self.flush(db);
        }
        db.insert(self.next.to_be_bytes(), Sequence::value(self.next))?;
        self.next += 1;
        Ok(())
    }

    pub fn flush(&mut self, db: &Db) -> Result<()> {
        db.flush()?;
        self.acknowledged = self.next;
        Ok(())
    }

    /// So many steps, none of which fails.
    pub fn steps(&mut self, db: &Db, count: u64) {
        (0..count).for_each(|_| self.step(db).expect("nothing is wrong"));
    }

    /// Steps until one fails.
    pub fn until_failure(&mut self, db: &Db, limit: u64) -> Option<Error> {
        (0..limit).find_map(|_| self.step(db).err())
    }

    /// All that was inserted can be read; in flight there is nothing.
    pub fn is_readable(&self, db: &Db) {
        let there = Sequence::found(db, self.next);
        assert_eq!(there.next, self.next, "more keys than were inserted");
        for number in [0, self.next / 2, self.next.saturating_sub(1)] {
            let value = db.get(number.to_be_bytes()).expect("reads go on");
            assert_eq!(value.is_some(), number < self.next);
        }
    }
}
