//! Every call of the medium fails, alone, in bursts and from then on; nothing panics, hangs, lies or gets lost.
//!
//! Workloads of a few hundred calls run once healthy, to count them. Then each runs with the n-th call of a class
//! failing, for every n, and is compared with a model that knows what an operation that failed may have left. What fails
//! is the medium (`Other`), has no room (`StorageFull`), or is interrupted; a failing write may have been short, or have
//! been complete for all that.
//!
//! - A failed write or resize is an error to somebody, acknowledges nothing, and may be retried once it can succeed.
//! - After a failed sync every later write and flush is the same error, and reads go on.
//! - A failed read is an error of that operation only: the same again gives the right answer.
//! - What was acknowledged is there after a reopening, whatever failed, and what was done at once is whole.
//!
//! `SLED_SOAK=n` tries every way to fail at every call.

#[path = "../common_durability/mod.rs"]
mod common_durability;

mod beside_checkpoints;
mod model;
mod opening;
mod subject;
mod workload;

use common_durability::{Random, Watchdog, bytes_of, soak};
use model::{Key, NAMES, Value};
use sled::Error;
use sled::testing::{CrashMode, Fault, OpClass, Written, counters};
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use subject::{Base, Subject, check_reopened};
use workload::{Op, Workload, key};

/// Operations of a run.
const OPS: usize = 180;
const FOREVER: u64 = u64::MAX;

/// Ways to fail: how often, with what, and what a write leaves.
const WAYS: [(u64, ErrorKind, Written); 7] = [
    (1, ErrorKind::Other, Written::Nothing),
    (FOREVER, ErrorKind::StorageFull, Written::Nothing),
    (4, ErrorKind::StorageFull, Written::Half),
    (1, ErrorKind::Interrupted, Written::Half),
    (4, ErrorKind::Other, Written::All),
    (FOREVER, ErrorKind::Other, Written::Half),
    (1, ErrorKind::Other, Written::All),
];

/// The ways to try at the n-th call: once, and by default one of the others by turns.
fn ways(n: u64) -> Vec<(u64, ErrorKind, Written)> {
    if soak() > 1 {
        return WAYS.to_vec();
    }
    let others = WAYS.len() as u64 - 1;
    vec![WAYS[0], WAYS[(1 + n % others) as usize]]
}

/// Calls of a class that the healthy workload makes.
fn calls_of(base: &Base, ops: &[Op], class: OpClass) -> u64 {
    let mut subject = base.open();
    subject.medium.start_recording();
    for op in ops {
        subject.perform(op).expect("healthy").expect("healthy");
    }
    let counters = counters(&subject.db);
    let (medium, _) = subject.close();
    let recording = medium.stop_recording().expect("started above");
    let count = recording.calls().filter(|call| call.class == class).count() as u64;
    println!("{class:?}: {count} calls; {counters:?}");
    count
}

/// The error of an operation must be what the medium said.
fn is_honest(error: &Error, kind: ErrorKind) -> Result<(), String> {
    match error {
        Error::Io(e) if e.kind() == kind => Ok(()),
        // A page that the medium does not give back.
        Error::Corruption { .. } if error.to_string().contains("injected failure") => Ok(()),
        other => Err(format!("the medium failed with {kind:?}, the operation with {other:?}")),
    }
}

/// What was to be done at once was done, or was not.
fn is_whole(subject: &mut Subject, op: &Op) -> Result<(), String> {
    let (Op::Batch(writes) | Op::Transaction(writes)) = op else { return Ok(()) };
    let puts: Vec<_> = writes.iter().filter(|(_, value)| value.is_some()).collect();
    let mut done = 0;
    for (key, value) in &puts {
        subject.get(key.clone())?.map_err(|e| format!("{key:?} cannot be read: {e}"))?;
        done += usize::from(subject.model.now[key][0] == *value);
    }
    if done != 0 && done != puts.len() {
        Err(format!("{done} of {} writes of {op:?}", puts.len()))
    } else {
        Ok(())
    }
}

/// The workload with failures in it.
fn run_failing(base: &Base, ops: &[Op], fault: Fault) -> Result<(), String> {
    let class = fault.class.expect("one class at a time");
    let mut subject = base.open();
    subject.medium.inject(fault);
    for (number, op) in ops.iter().enumerate() {
        let before = subject.medium.injected();
        let result = subject.perform(op)?;
        let injected = subject.medium.injected();
        if let Err(error) = result {
            if injected == 0 {
                return Err(format!("step {number} fails although nothing did: {error}"));
            }
            is_honest(&error, fault.kind).map_err(|e| format!("step {number}: {e}"))?;
            if class == OpClass::Read && fault.count == 1 {
                let again = subject.perform(op)?;
                again.map_err(|e| format!("{op:?}, which failed once, goes on failing: {e}"))?;
            }
            if class != OpClass::Read {
                is_whole(&mut subject, op)?;
            }
        }
        // Whoever was hit, the database goes on; that a later flush does not lie is checked by the crash.
        if class == OpClass::Sync && injected > before {
            poisoned(&mut subject, number)?;
            break;
        }
    }
    for mode in [CrashMode::DropUnsynced, CrashMode::Torn, CrashMode::KeepAll] {
        check_reopened(&subject.medium, mode, &subject.model)?;
    }
    if class != OpClass::Sync {
        if class != OpClass::Read {
            subject.read_all("while writes fail")?;
        }
        resumed(&mut subject)?;
    }
    // The failure may also hit, or go on during, the closing.
    let (medium, model) = subject.close();
    check_reopened(&medium, CrashMode::DropUnsynced, &model)?;
    check_reopened(&medium, CrashMode::KeepAll, &model)
}

/// Every kind of write, and of flush.
fn all_writes(subject: &Subject, salt: u64) -> Vec<Op> {
    let value = |n: u64| Some(bytes_of(90_000_000 + 100 * salt + n, 40));
    let mut ops = vec![
        Op::Put(key(0), value(0)),
        Op::Put(key(2), Some(bytes_of(salt, 3000))),
        Op::Swap(key(3), value(3)),
        Op::Merge(key(4), bytes_of(salt, 9)),
        Op::Batch(vec![(key(6), value(6)), (key(8), value(8))]),
        Op::Transaction(vec![(key(7), value(7)), (key(10), value(10))]),
        Op::OpenTree(format!("never {salt}").into_bytes()),
        Op::Flush,
        Op::FlushAsync,
        Op::Checkpoint,
    ];
    // Removing what is not there writes nothing.
    let there = |wanted: fn(usize) -> bool| {
        let exists =
            move |(at, values): &(&Key, &Vec<Value>)| wanted(at.0) && matches!(values[..], [Some(_)]);
        subject.model.now.iter().find(exists).map(|(at, _)| at.clone())
    };
    ops.push(Op::Put(there(|tree| tree != NAMES).expect("not everything was removed"), None));
    ops.extend(there(|tree| tree == NAMES).map(|(_, name)| Op::DropTree(name)));
    ops
}

/// After a failed sync, healed or not: no write, no flush, but every read.
fn poisoned(subject: &mut Subject, number: usize) -> Result<(), String> {
    for round in 0..2 {
        if subject.errors.is_empty() {
            // Nobody waited for the sync that failed; the next to write or flush is told.
            let told = subject.perform(&Op::Flush)?;
            told.err().ok_or("the failed sync is told to nobody")?;
        }
        for op in all_writes(subject, number as u64) {
            if subject.perform(&op)?.is_ok() {
                return Err(format!("round {round}: {op:?} succeeds after a failed sync"));
            }
        }
        // Some are reserved already.
        let ids: Result<Vec<_>, String> = (0..6).map(|_| subject.perform(&Op::GenerateId)).collect();
        if ids?.iter().all(Result::is_ok) {
            return Err(format!("round {round}: identifiers are handed out after a failed sync"));
        }
        drop(subject.perform(&Op::Maintain)?);
        if let Some(other) = subject.errors.iter().find(|error| **error != subject.errors[0]) {
            return Err(format!("round {round}: {other:?} after {:?}", subject.errors[0]));
        }
        subject.read_all("after a failed sync")?;
        subject.medium.heal();
    }
    Ok(())
}

/// After the failure ended: everything works again without a reopening.
fn resumed(subject: &mut Subject) -> Result<(), String> {
    subject.medium.heal();
    subject.read_all("after the failure ended")?;
    for op in all_writes(subject, 7) {
        subject.perform(&op)?.map_err(|e| format!("{op:?} after the failure ended: {e}"))?;
    }
    subject.read_all("after the failure ended and a checkpoint")?;
    subject.perform(&Op::Flush)?.map_err(|e| format!("no flush: {e}"))?;
    check_reopened(&subject.medium, CrashMode::DropUnsynced, &subject.model)
}

/// Runs `body`, a panic of which is a failure like any other, and collects what went wrong.
fn attempt(
    failures: &mut Vec<String>,
    dog: &Watchdog,
    what: String,
    body: impl FnOnce() -> Result<(), String>,
) {
    dog.begin(&what);
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => {}
        Ok(Err(text)) => failures.push(format!("{what}: {text}")),
        Err(_) => failures.push(format!("{what}: panics (see above)")),
    }
    dog.rest();
    assert!(failures.len() < 10, "failures:\n{}", failures.join("\n"));
}

fn fail_everywhere(class: OpClass) {
    let start = Instant::now();
    let dog = Watchdog::new(Duration::from_secs(20));
    let mut failures = Vec::new();
    let mut runs = 0;
    for workload in Workload::ALL {
        let (base, ops) = (Base::of(workload), workload.operations(OPS));
        let count = calls_of(&base, &ops, class);
        assert!(count > 0 || class == OpClass::Resize, "{workload:?} has nothing that could fail");
        // Every call up to 150, and a sample of those beyond.
        let step = if soak() > 1 { 1 } else { count.saturating_sub(150).div_ceil(60).max(1) };
        for n in (0..count.min(150)).chain((150..count).step_by(step as usize)) {
            for (count, kind, written) in ways(n) {
                runs += 1;
                let fault = Fault { class: Some(class), after: n, count, kind, written };
                let what = format!("{workload:?}: {fault:?}");
                attempt(&mut failures, &dog, what, || run_failing(&base, &ops, fault));
            }
        }
    }
    assert!(failures.is_empty(), "failures:\n{}", failures.join("\n"));
    println!("{class:?}: {runs} runs in {:?}", start.elapsed());
}

#[test]
fn a_failed_read_is_an_error_of_that_operation_only() {
    fail_everywhere(OpClass::Read);
}

#[test]
fn a_failed_write_may_be_retried() {
    fail_everywhere(OpClass::Write);
}

#[test]
fn after_a_failed_sync_nothing_is_written_and_everything_read() {
    fail_everywhere(OpClass::Sync);
}

#[test]
fn a_failed_resize_loses_nothing() {
    fail_everywhere(OpClass::Resize);
}

/// Keeps writing until there is no room, at `capacity` bytes.
fn fill_up(base: &Base, capacity: u64) -> Result<(), String> {
    let mut subject = base.open();
    subject.medium.set_capacity(Some(capacity));
    let mut random = Random(9);
    let mut full = None;
    for number in 0..20_000_u64 {
        // Ever more keys, so that cleaning cannot go on making room.
        let at = (number as usize % 2, format!("more {number:06}").into_bytes());
        let value = bytes_of(number, 200 + random.below(400) as usize);
        let mut result = subject.perform(&Op::Put(at, Some(value)))?;
        if number % 10 == 9 && result.is_ok() {
            result = subject.perform(&Op::Flush)?;
        }
        if let Err(e) = result {
            full = Some(e);
            break;
        }
    }
    is_honest(&full.ok_or("there is always room")?, ErrorKind::StorageFull)?;
    subject.read_all("when full")?;
    for n in 0..20 {
        // May fail or succeed, by what room there is left; neither panics nor lies.
        let value = (n % 3 > 0).then(|| bytes_of(n, 700));
        for op in [Op::Put((0, key(n).1), value), Op::Flush, Op::Maintain] {
            drop(subject.perform(&op)?);
        }
    }
    subject.read_all("when full for a while")?;
    check_reopened(&subject.medium, CrashMode::DropUnsynced, &subject.model)?;
    check_reopened(&subject.medium, CrashMode::KeepAll, &subject.model)?;
    // Opening while there is no room: an error or the data, and never a loss.
    let still_full = subject.medium.crash(3, CrashMode::DropUnsynced);
    still_full.set_capacity(Some(0));
    drop(common_durability::open_tiny(&still_full, subject::BUFFER));
    still_full.set_capacity(None);
    check_reopened(&still_full, CrashMode::KeepAll, &subject.model)?;
    subject.medium.set_capacity(None);
    resumed(&mut subject)
}

#[test]
fn a_full_medium_can_be_read_and_goes_on_when_there_is_room() {
    let dog = Watchdog::new(Duration::from_secs(20));
    let mut failures = Vec::new();
    let base = Base::of(Workload::BigValues);
    let least = base.open().medium.contents().len() as u64;
    for step in 0..40 * soak() {
        // Odd numbers too: a write that would have fitted but for some bytes.
        let capacity = least + 100 + step * 9973 / soak();
        attempt(&mut failures, &dog, format!("capacity {capacity}"), || fill_up(&base, capacity));
    }
    assert!(failures.is_empty(), "failures:\n{}", failures.join("\n"));
}
