//! Goes through the crashes of a run, counts them, and names the one that fails so that it can be repeated.
//!
//! A case is `SEED:CALLS:VARIANT`: the run of the seed crashes after so many calls, and [`Variant`] says what arrives.
//! `SEED:CALLS:VARIANT:CALLS:VARIANT` crashes a second time, while what the first crash left is opened or soon after.
//! With `SLED_CRASH=<case>` in the environment, the test that the case is from does nothing else.

use super::check::check;
use super::common_durability::{Watchdog, hash, mix, open_tiny};
use super::ops::{Plan, operations};
use super::run::{Run, alone, repeatable, run};
use super::state::{contents, empty, print_of};
use super::variants::{Effort, Variant};
use sled::testing::{Call, CrashMode, OpClass, Replay, SimStorage};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Where the segments begin; the superblocks are in front.
pub const SEGMENTS: u64 = 8192;

/// The calls that make an empty medium a database. On a disk the file has no name before they are done, so nobody opens
/// what a process left that was killed between them.
const CREATION: usize = 2;

/// A crash, and perhaps a second one.
#[derive(Clone, Debug)]
pub struct Case {
    seed: u64,
    calls: u64,
    variant: Variant,
    again: Option<(u64, Variant)>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.seed, self.calls, self.variant)?;
        self.again.iter().try_for_each(|(calls, variant)| write!(f, ":{calls}:{variant}"))
    }
}

impl Case {
    fn parse(text: &str) -> Option<Case> {
        let parts: Vec<&str> = text.trim().split(':').collect();
        let crash = |calls: &str, variant: &str| Some((calls.parse().ok()?, variant.parse().ok()?));
        let (first, again) = match parts[..] {
            [_, calls, variant] => (crash(calls, variant)?, None),
            [_, calls, variant, second, other] => (crash(calls, variant)?, Some(crash(second, other)?)),
            _ => return None,
        };
        let (calls, variant) = first;
        Some(Case { seed: parts[0].parse().ok()?, calls, variant, again })
    }

    fn from_environment() -> Option<Case> {
        let text = std::env::var("SLED_CRASH").ok()?;
        Some(Case::parse(&text).unwrap_or_else(|| panic!("SLED_CRASH={text} is no case")))
    }

    /// What chance decides about it, nonces included.
    fn salt(&self) -> u64 {
        hash(7, self.to_string().as_bytes())
    }

    /// The case with a second crash.
    fn then(&self, calls: u64, variant: Variant) -> Case {
        Case { again: Some((calls, variant)), ..self.clone() }
    }

    /// Ends the test with the line that repeats the case.
    fn failed(&self, why: &str) -> ! {
        panic!("what is left {why}\nrepeat: SLED_CRASH={self} cargo test --test power_loss\n");
    }
}

/// What was tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub runs: u64,
    pub calls: u64,
    /// Calls that returned an error.
    pub failed: u64,
    /// Calls after which the power failed.
    pub points: u64,
    /// Media that were opened after one crash.
    pub states: u64,
    pub recoveries: u64,
    /// Media that were opened after two crashes.
    pub twice: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.runs += other.runs;
        self.calls += other.calls;
        self.failed += other.failed;
        self.points += other.points;
        self.states += other.states;
        self.recoveries += other.recoveries;
        self.twice += other.twice;
    }
}

/// What to do with the run of each seed.
#[derive(Clone, Copy, Debug)]
pub struct Exploration {
    /// The power fails at every so-many-th point.
    pub every: usize,
    pub once: Effort,
    /// After every so-many-th of them it fails again, at each call of the recovery and what comes after it.
    pub recover_every: usize,
    pub twice: Effort,
}

/// The run of a seed: the same calls with the same bytes whenever it is made.
pub fn record(seed: u64) -> Run {
    let recorded =
        repeatable(seed, || run(&SimStorage::new(), Plan::of(seed).redo_buffer, empty(), operations(seed)));
    recorded.unwrap_or_else(|_| panic!("the run of seed {seed} failed without any crash"))
}

impl Exploration {
    /// Tries everything for the runs of these seeds, or the case in the environment if it is of one of them.
    pub fn explore(&self, what: &str, seeds: Range<u64>) -> Tally {
        let _alone = alone();
        let dog = Watchdog::new(Duration::from_secs(30));
        if let Some(case) = Case::from_environment() {
            if seeds.contains(&case.seed) {
                println!("repeating {case}");
                self.repeat(&case, &dog);
            }
            return Tally::default();
        }
        let start = Instant::now();
        let mut all = Tally::default();
        for seed in seeds {
            let tally = self.explore_seed(seed, &dog);
            all += tally;
        }
        println!("{what}: {all:?} in {:?}", start.elapsed());
        all
    }

    fn explore_seed(&self, seed: u64, dog: &Watchdog) -> Tally {
        dog.begin(format!("the run of seed {seed}"));
        let run = record(seed);
        let points = run.crash_points().into_iter().skip(seed as usize % self.every).step_by(self.every);
        let calls = run.calls();
        // Of every third superblock, the point behind its write.
        let is_superblock = |call: &&Call| call.class == OpClass::Write && call.offset < SEGMENTS;
        let superblocks: BTreeSet<u64> = calls
            .iter()
            .skip(CREATION)
            .filter(is_superblock)
            .map(|call| call.number + 1)
            .skip(seed as usize % 3)
            .step_by(3)
            .collect();
        let failed = calls.iter().filter(|call| call.failed).count() as u64;
        let mut tally = Tally { runs: 1, calls: calls.len() as u64, failed, ..Tally::default() };
        let mut replay = run.recording.replay();
        for (number, calls) in points.enumerate() {
            replay.advance_to(calls);
            tally.points += 1;
            let mut variants = self.once.variants(&replay, mix(seed ^ calls << 16));
            variants.retain(|variant| *variant != Variant::Killed || calls >= CREATION as u64);
            for variant in &variants {
                let case = Case { seed, calls, variant: variant.clone(), again: None };
                tally.states += 1;
                look(&run, &replay, &case, dog);
            }
            // Between a superblock and its sync nobody knows which one counts.
            let between = superblocks.contains(&calls);
            if between || number % self.recover_every == seed as usize % self.recover_every {
                let chosen = mix(calls) as usize;
                // Every other time the process dies and the machine lives on until the second crash.
                let variant = match chosen % 2 {
                    0 if calls >= CREATION as u64 => Variant::Killed,
                    _ if between => Variant::Killed,
                    _ => variants[chosen / 2 % variants.len()].clone(),
                };
                let case = Case { seed, calls, variant, again: None };
                tally.recoveries += 1;
                tally.twice += self.recover(&run, &replay, &case, dog);
            }
        }
        dog.rest();
        tally
    }

    /// Crashes at each call of the recovery of a case and of what comes after it; how many media that gave.
    fn recover(&self, run: &Run, replay: &Replay<'_>, case: &Case, dog: &Watchdog) -> u64 {
        let more = go_on(run, replay, case, dog);
        let mut states = 0;
        let mut replay = more.recording.replay();
        for calls in more.crash_points() {
            replay.advance_to(calls);
            for variant in self.twice.variants(&replay, mix(case.salt() ^ calls)) {
                states += 1;
                look(&more, &replay, &case.then(calls, variant), dog);
            }
        }
        states
    }

    fn repeat(&self, case: &Case, dog: &Watchdog) {
        let run = record(case.seed);
        let mut replay = run.recording.replay();
        replay.advance_to(case.calls);
        let Some((calls, _)) = case.again else { return look(&run, &replay, case, dog) };
        let more = go_on(&run, &replay, &Case { again: None, ..case.clone() }, dog);
        let mut replay = more.recording.replay();
        replay.advance_to(calls);
        look(&more, &replay, case, dog);
    }
}

/// Opens what the last crash of a case leaves, and ends the test if it is not what was promised.
fn look(run: &Run, replay: &Replay<'_>, case: &Case, dog: &Watchdog) {
    dog.begin(format!("SLED_CRASH={case}"));
    let (calls, variant) = case.again.as_ref().map_or((case.calls, &case.variant), |(c, v)| (*c, v));
    let medium = variant.crash(replay);
    let checked = repeatable(case.salt(), || check(run, &medium, calls, case.salt()));
    match checked {
        Ok(Ok(())) => {}
        Ok(Err(why)) => case.failed(&why),
        Err(_) => case.failed("makes the database panic"),
    }
}

/// Opens what the first crash of a case left and goes on a little, recorded.
fn go_on(run: &Run, replay: &Replay<'_>, case: &Case, dog: &Watchdog) -> Run {
    dog.begin(format!("SLED_CRASH={case}, and on"));
    let medium = case.variant.crash(replay);
    let more = repeatable(case.salt(), || {
        let db =
            open_tiny(&medium.crash(0, CrashMode::KeepAll), run.redo_buffer).map_err(|e| e.to_string())?;
        let found = contents(&db).map_err(|e| e.to_string())?;
        drop(db);
        let count = run.fits(print_of(&found), case.calls).ok_or("is no legal state")?;
        let ops = run.afterwards(&found, count, case.salt() >> 32);
        Ok::<_, String>(super::run::run(&medium, run.redo_buffer, found, ops))
    });
    match more {
        Ok(Ok(mut more)) => {
            if case.variant == Variant::Killed {
                more.older = run.legal(case.calls);
            }
            more
        }
        Ok(Err(why)) => case.failed(&why),
        Err(_) => case.failed("makes the database panic when it goes on"),
    }
}
