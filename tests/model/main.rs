//! Random programs of all operations, on a database and on maps in memory.
//!
//! # How it works
//!
//! proptest writes programs (`ops`) over four trees and shrinks those that fail. `runner` compares every
//! answer with the model (`state`), through reopens, crashes and power cuts on a simulated medium. Pages,
//! buffers and memory are tiny and there are no threads, so a few hundred operations reach every rare path;
//! the last assertion is that they did.
//!
//! `PROPTEST_CASES=<n>` sets the number of programs. `SLED_SOAK=<seconds>` runs much longer programs, one
//! seed after the other from `SLED_SEED=<n>` on; the seed of a failure is in the output.

#[path = "../common/mod.rs"]
mod common;
mod ops;
mod runner;
mod state;

use common::Watchdog;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};
use runner::Totals;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

/// Programs of the normal run; each of the threads takes its part.
const PROGRAMS: u32 = 2_000;
const THREADS: u32 = 2;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number is asked for"))
}

/// Writes, runs and, when they fail, shrinks a number of programs.
fn check(programs: u32, totals: &Mutex<Totals>, dog: &Watchdog) {
    let config = Config {
        cases: programs,
        max_shrink_time: 60_000,
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&ops::program(1..150), |(seed, program)| {
        let mut counted = Totals::new();
        runner::run(seed, &program, &mut counted, dog);
        let mut totals = totals.lock().expect("nothing panics while it holds the lock");
        counted.into_iter().for_each(|(name, count)| *totals.entry(name).or_default() += count);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn every_operation_agrees_with_the_model() {
    let programs = number("PROPTEST_CASES").map_or(PROGRAMS, |n| u32::try_from(n).expect("fits"));
    let totals = Mutex::new(Totals::new());
    let dog = Watchdog::start("model", 60);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| check(programs.div_ceil(THREADS), &totals, &dog));
        }
    });
    let totals = totals.into_inner().expect("all threads returned");
    println!("{totals:#?}");
    if programs >= PROGRAMS {
        let never: Vec<_> = totals.iter().filter(|(_, count)| **count == 0).collect();
        assert!(never.is_empty() && !totals.is_empty(), "paths that never ran: {never:?}");
    }
}

#[test]
fn long_programs_agree_with_the_model_as_long_as_asked() {
    let Some(seconds) = number("SLED_SOAK") else { return };
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let first = number("SLED_SEED").unwrap_or_else(clock);
    let dog = Watchdog::start("long model programs", 60);
    let start = Instant::now();
    let mut totals = Totals::new();
    for seed in first.. {
        println!("SLED_SEED={seed}");
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut writer = TestRunner::new_with_rng(Config::default(), random);
        let program = ops::program(2_000..10_000).new_tree(&mut writer).expect("every program is allowed");
        let (seed, program) = program.current();
        runner::run(seed, &program, &mut totals, &dog);
        if start.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
    }
    println!("{totals:#?}");
}
