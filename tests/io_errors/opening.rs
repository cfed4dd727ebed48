//! Calls fail while a database is created, opened after a crash, or closed.

use super::common_durability::{Watchdog, open_tiny};
use super::model::Model;
use super::subject::{BUFFER, Base, check_reopened};
use super::workload::{Op, Workload};
use super::{OPS, attempt, is_honest, ways};
use sled::testing::{CrashMode, Fault, OpClass, SimStorage};
use std::time::Duration;

/// A medium with data in every form (images, big values, a redo tail), in the middle of a run.
fn populated(workload: Workload) -> (SimStorage, Model) {
    let mut subject = Base::of(workload).open();
    for op in workload.operations(OPS) {
        subject.perform(&op).expect("healthy").expect("healthy");
    }
    subject.perform(&Op::Flush).expect("healthy").expect("healthy");
    for op in &workload.operations(OPS + 20)[OPS..] {
        subject.perform(op).expect("healthy").expect("healthy");
    }
    (subject.medium.crash(0, CrashMode::Torn), subject.model)
}

/// Fails calls while `medium` is opened; opening it again healed must show `model`.
fn fail_opening(medium: &SimStorage, fault: Fault, model: &Model) -> Result<(), String> {
    let medium = medium.crash(0, CrashMode::KeepAll);
    medium.inject(fault);
    let opened = open_tiny(&medium, BUFFER);
    match &opened {
        Err(e) => is_honest(e, fault.kind)?,
        // It could do without the call that failed; what it shows must be right all the same.
        Ok(_) => {
            medium.heal();
            check_reopened(&medium, CrashMode::KeepAll, model)
                .map_err(|e| format!("opened in spite: {e}"))?;
        }
    }
    check_reopened(&medium, CrashMode::DropUnsynced, model)?;
    drop(opened);
    medium.heal();
    check_reopened(&medium, CrashMode::Torn, model)?;
    check_reopened(&medium, CrashMode::KeepAll, model)
}

#[test]
fn errors_while_opening_are_errors_and_lose_nothing() {
    let dog = Watchdog::new(Duration::from_secs(20));
    let mut failures = Vec::new();
    let mut media = vec![("a new database".to_string(), SimStorage::new(), Model::default())];
    for workload in Workload::ALL {
        let (medium, model) = populated(workload);
        media.push((format!("{workload:?}"), medium, model));
    }
    let mut runs = 0;
    for (name, medium, model) in media {
        let counting = medium.crash(0, CrashMode::KeepAll);
        let opened = open_tiny(&counting, BUFFER).expect("healthy");
        let calls = counting.ops();
        println!("{name}: opening takes {calls} calls");
        drop(opened);
        for n in 0..calls {
            for (count, kind, written) in ways(n) {
                let fault = Fault { class: None, after: n, count, kind, written };
                let what = format!("{name}: {fault:?}");
                runs += 1;
                attempt(&mut failures, &dog, what, || fail_opening(&medium, fault, &model));
            }
        }
    }
    println!("{runs} openings");
    assert!(failures.is_empty(), "failures:\n{}", failures.join("\n"));
}

/// Runs healthy, and fails when it is closed.
fn fail_closing(base: &Base, ops: &[Op], fault: Option<Fault>) -> Result<u64, String> {
    let mut subject = base.open();
    for op in ops {
        subject.perform(op)?.map_err(|e| format!("healthy: {e}"))?;
    }
    let before = subject.medium.ops();
    fault.into_iter().for_each(|fault| subject.medium.inject(fault));
    let (medium, model) = subject.close();
    let calls = medium.ops() - before;
    medium.heal();
    for mode in [CrashMode::DropUnsynced, CrashMode::Torn, CrashMode::KeepAll] {
        check_reopened(&medium, mode, &model)?;
    }
    Ok(calls)
}

#[test]
fn errors_while_closing_lose_nothing_that_was_flushed() {
    let dog = Watchdog::new(Duration::from_secs(20));
    let mut failures = Vec::new();
    for workload in Workload::ALL {
        let base = Base::of(workload);
        // Not right behind a flush or a checkpoint, so that there is something left to do.
        let ops = workload.operations(OPS - 3);
        let calls = fail_closing(&base, &ops, None).expect("healthy");
        println!("{workload:?}: closing takes {calls} calls");
        assert!(calls > 2, "closing has nothing to write");
        for n in 0..calls {
            for (count, kind, written) in ways(n) {
                for class in [None, Some(OpClass::Sync)] {
                    let fault = Fault { class, after: n, count, kind, written };
                    let what = format!("{workload:?}, closing: {fault:?}");
                    attempt(&mut failures, &dog, what, || fail_closing(&base, &ops, Some(fault)).map(drop));
                }
            }
        }
    }
    assert!(failures.is_empty(), "failures:\n{}", failures.join("\n"));
}
