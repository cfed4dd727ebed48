//! The power fails after every single call of long runs; what is found afterwards is what was promised.
//!
//! The run of a seed, some hundred operations of every kind over several trees, is recorded once. Then the medium is
//! rebuilt as a crash after call k leaves it, for every k and in many ways that unsynced writes may survive: every
//! subset where there are few, seeded ones where there are more, torn at sectors, with zeros or old bytes where the
//! file grew. What is left is opened.
//!
//! - The contents are those after some number of steps, a prefix over all trees together. A batch or a transaction is
//!   one step.
//! - The prefix has every step before the last flush that returned by then, and none not begun by then.
//! - Opening again, and crashing again at any call while opening or soon after, changes nothing of that.
//! - An identifier that was handed out is never handed out again.
//!
//! States are compared by a fingerprint that does not depend on order, so that a table leads from the contents to
//! the number of steps. All of it happens on one thread at a time and repeats exactly: a failure prints the line
//! `SLED_CRASH=...` that leads to it. `SLED_SOAK=n` makes n times as many runs.

#[path = "../common_durability/mod.rs"]
mod common_durability;

mod check;
mod explore;
mod ops;
mod order;
mod run;
mod state;
mod variants;

use common_durability::{mix, soak};
use explore::{Exploration, Tally, record};
use ops::{DENSE, FAILING, FAILING_SYNCS, MANY, SHORT};
use run::alone;
use sled::testing::OpClass;
use std::process::Command;
use variants::Effort;

/// What is to be tried at least, unless one case is repeated.
fn assert_enough(tally: Tally, states: u64, twice: u64) {
    let is_enough = tally.states >= states && tally.twice >= twice;
    assert!(is_enough || std::env::var("SLED_CRASH").is_ok(), "only {tally:?}");
}

#[test]
fn any_crash_leaves_a_prefix_with_all_that_was_flushed() {
    let exploration = Exploration {
        every: 1,
        once: Effort { subsets: 3, tears: 0, random: 1 },
        recover_every: 120,
        twice: Effort { subsets: 1, tears: 0, random: 1 },
    };
    assert_enough(exploration.explore("long runs", 0..2 * soak()), 5000, 1000);
}

#[test]
fn any_crash_of_many_different_runs_leaves_a_prefix() {
    let exploration = Exploration {
        every: 16,
        once: Effort { subsets: 3, tears: 1, random: 2 },
        recover_every: 32,
        twice: Effort { subsets: 1, tears: 0, random: 1 },
    };
    assert_enough(exploration.explore("many runs", MANY..MANY + 64 * soak()), 5000, 1000);
}

#[test]
fn a_small_database_survives_any_crash_of_its_creation() {
    let exploration = Exploration {
        every: 1,
        once: Effort { subsets: 4, tears: 2, random: 4 },
        recover_every: 4,
        twice: Effort { subsets: 2, tears: 0, random: 1 },
    };
    assert_enough(exploration.explore("short runs", SHORT..SHORT + 8 * soak()), 1000, 1000);
}

#[test]
fn whatever_subset_of_few_writes_arrives_is_recovered() {
    let exploration = Exploration {
        every: 1,
        once: Effort { subsets: 7, tears: 3, random: 1 },
        recover_every: 20,
        twice: Effort { subsets: 3, tears: 1, random: 0 },
    };
    assert_enough(exploration.explore("dense runs", DENSE..DENSE + 2 * soak()), 5000, 1000);
}

/// What failed and was done again is as it would have been without; a crash comes in between, too.
#[test]
fn a_crash_after_failed_calls_leaves_a_prefix() {
    let exploration = Exploration {
        every: 2,
        once: Effort { subsets: 4, tears: 0, random: 2 },
        recover_every: 24,
        twice: Effort { subsets: 1, tears: 0, random: 1 },
    };
    let tally = exploration.explore("failing runs", FAILING..FAILING + 9 * soak());
    assert_enough(tally, 3000, 500);
    assert!(tally.failed > 50 || tally.runs == 0, "{tally:?}");
}

/// After a failed sync the machine shows what no later sync makes durable. What is acknowledged after opening it there
/// is durable with all that it came after.
#[test]
fn a_crash_after_failed_syncs_leaves_what_was_flushed_since() {
    let exploration = Exploration {
        every: 1,
        once: Effort { subsets: 3, tears: 0, random: 2 },
        recover_every: 40,
        twice: Effort { subsets: 1, tears: 0, random: 1 },
    };
    let tally = exploration.explore("runs with failing syncs", FAILING_SYNCS..FAILING_SYNCS + 6 * soak());
    assert_enough(tally, 3000, 500);
    assert!(tally.failed >= 25 || tally.runs == 0, "{tally:?}");
}

/// A number that stands for all calls of a run and their bytes.
fn print_of_calls(seed: u64) -> u64 {
    record(seed).calls().iter().fold(0, |print, call| {
        let result = [call.class as u64, call.offset, call.len, u64::from(call.failed), call.print];
        result.iter().fold(print, |print, number| mix(print ^ number))
    })
}

#[test]
fn a_seed_repeats_every_call_with_the_same_bytes() {
    const CHILD: &str = "SLED_PRINT_OF_CALLS";
    const SEEDS: [u64; 7] = [0, 1, SHORT, DENSE, FAILING, FAILING_SYNCS, MANY];
    let _alone = alone();
    if let Ok(expected) = std::env::var(CHILD) {
        assert_eq!(format!("{:?}", SEEDS.map(print_of_calls)), expected, "in another process");
        return;
    }
    for seed in SEEDS {
        let [first, again] = [seed, seed].map(|seed| record(seed).calls());
        assert!(
            first
                .iter()
                .filter(|call| call.class == OpClass::Write)
                .all(|call| call.failed || call.print != 0)
        );
        let differs = first.iter().zip(&again).position(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}: the first call that differs");
        assert_eq!(first.len(), again.len(), "seed {seed}");
    }
    assert_ne!(print_of_calls(SHORT), print_of_calls(SHORT + 1), "another seed is another run");
    // Another process has other addresses and other keys of its hash maps.
    let mut child = Command::new(std::env::current_exe().expect("this program"));
    child.args(["--exact", "a_seed_repeats_every_call_with_the_same_bytes"]);
    let output = child.env(CHILD, format!("{:?}", SEEDS.map(print_of_calls))).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
