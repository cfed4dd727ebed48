//! What group commit promises to those who flush, and what it spares them, on the simulated medium.
//!
//! # How it works
//!
//! [`crowd`] lets threads wait for sure: a record is reserved and not completed, so that the first who flushes leads and
//! cannot write the buffer, until all others are seen to wait for it.

use super::*;
use crate::error::Error;
use crate::log::Log;
use crate::log::simulated::{RECORD, create, survivors, write};
use crate::storage::sim::{Fault, OpClass, SimStorage, Written};
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::AtomicU64;
use std::thread::{scope, yield_now};

/// Threads of a crowd.
const THREADS: u8 = if cfg!(miri) { 4 } else { 8 };
/// Bytes of a buffer, in records: more than a test writes.
const ROOM: usize = 64;

/// Returns when so many wait.
fn until_waiting(group: &GroupCommit, count: usize) {
    while group.state.lock().waiting.len() < count {
        yield_now();
    }
}

/// Returns when somebody leads.
fn until_leading(group: &GroupCommit) {
    while !group.state.lock().leading {
        yield_now();
    }
}

/// Nobody leads or waits.
fn assert_idle(group: &GroupCommit) {
    let state = group.state.lock();
    assert!(!state.leading && state.waiting.is_empty(), "{state:?}");
}

/// Threads 1 to `THREADS` write a record of that name and flush, one of them while all others wait for it; what each
/// flush returned.
fn crowd(log: &Log) -> Vec<Result<Lsn>> {
    scope(|scope| {
        let held = log.reserve(RECORD).expect("healthy");
        let flush = |name| move || if write(log, name) { log.flush() } else { panic!("it is healthy") };
        let threads: Vec<_> = (1..=THREADS).map(|name| scope.spawn(flush(name))).collect();
        until_waiting(&log.commits, usize::from(THREADS) - 1);
        drop(held);
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn everybody() -> Vec<u8> {
    (1..=THREADS).collect()
}

#[test]
fn those_who_flush_at_the_same_time_share_a_sync() {
    let medium = SimStorage::new();
    let log = create(&medium, ROOM);
    let before = log.syncs();
    let flushed = crowd(&log);
    assert!(flushed.iter().all(Result::is_ok), "{flushed:?}");
    assert_eq!(survivors(&medium), everybody());
    assert!((1..=2).contains(&(log.syncs() - before)), "one for the first and one for all others, or fewer");
    assert_idle(&log.commits);
}

#[test]
fn a_sync_that_fails_fails_all_who_wait_and_is_not_repeated() {
    let medium = SimStorage::new();
    let log = create(&medium, ROOM);
    let before = log.syncs();
    medium.fail(OpClass::Sync, 0, true, ErrorKind::Other);
    let flushed = crowd(&log);
    let first = log.stability.check().expect_err("L7");
    assert!(flushed.iter().all(|result| *result == Err(first.clone())), "{flushed:?}");
    assert_eq!(log.syncs() - before, 1, "L7");
    assert_eq!(log.flush(), Err(first), "L7");
    assert_idle(&log.commits);
}

#[test]
fn a_write_that_fails_once_fails_only_the_flush_that_met_it() {
    let medium = SimStorage::new();
    let log = create(&medium, ROOM);
    medium.fail(OpClass::Write, 0, true, ErrorKind::StorageFull);
    let flushed = crowd(&log);
    assert_eq!(flushed.iter().filter(|result| result.is_err()).count(), 1, "{flushed:?}");
    log.flush().expect("there is room again");
    assert_eq!(survivors(&medium), everybody(), "what is written is not lost by a flush that failed");
    assert_idle(&log.commits);
}

#[test]
fn while_writes_fail_each_who_waits_tries_and_fails_and_the_next_flush_works() {
    let medium = SimStorage::new();
    let log = create(&medium, ROOM);
    let (count, kind) = (u64::MAX, ErrorKind::StorageFull);
    medium.inject(Fault { class: Some(OpClass::Write), after: 0, count, kind, written: Written::Nothing });
    let flushed = crowd(&log);
    assert!(flushed.iter().all(Result::is_err), "{flushed:?}");
    assert_eq!(medium.injected(), u64::from(THREADS), "each tries for itself");
    assert_eq!(survivors(&medium), [0; 0]);
    medium.heal();
    log.flush().expect("there is room again");
    assert_eq!(survivors(&medium), everybody());
    assert_idle(&log.commits);
}

#[test]
fn what_a_flush_acknowledged_survives_a_crash_right_then() {
    const ROUNDS: u8 = if cfg!(miri) { 2 } else { 20 };
    let medium = SimStorage::new();
    // Buffers of so few records that writers drain, too.
    let log = create(&medium, 3);
    scope(|scope| {
        for thread in 0..4 {
            let (log, medium) = (&log, &medium);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let name = thread * ROUNDS + round;
                    assert!(write(log, name), "it is healthy");
                    log.flush().expect("it is healthy");
                    assert!(survivors(medium).contains(&name), "{name} is lost");
                }
            });
        }
    });
    assert_eq!(survivors(&medium), (0..4 * ROUNDS).collect::<Vec<_>>());
    assert_idle(&log.commits);
}

/// The end of the stream of whoever syncs in the tests below, who want this to be durable.
const END: Lsn = Lsn(9);

/// Syncs, which works.
fn sync(stability: &Stability) -> Result<Lsn> {
    stability.raise(END);
    Ok(END)
}

#[test]
fn a_leader_that_panics_leaves_the_lead_to_one_who_waits() {
    let (group, stability, syncs) = (GroupCommit::default(), Stability::new(Lsn(0)), AtomicU64::new(0));
    let panics = || {
        until_waiting(&group, usize::from(THREADS) - 1);
        // Without a message.
        resume_unwind(Box::new("a panic"))
    };
    let works = || {
        // Relaxed: of this test.
        syncs.fetch_add(1, Ordering::Relaxed);
        sync(&stability)
    };
    let first = || catch_unwind(AssertUnwindSafe(|| group.commit(&stability, Some(END), panics)));
    let other = || group.commit(&stability, Some(END), works);
    scope(|scope| {
        let first = scope.spawn(first);
        until_leading(&group);
        let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(other)).collect();
        for other in others {
            assert_eq!(other.join().expect("no panic"), Ok(END));
        }
        assert!(first.join().expect("caught").is_err());
    });
    // Relaxed: of this test.
    assert_eq!(syncs.load(Ordering::Relaxed), 1, "the first who waited serves the others");
    assert_idle(&group);
}

#[test]
fn nobody_serves_a_checkpoint_and_it_does_not_keep_others_from_being_served() {
    let (group, stability, syncs) = (GroupCommit::default(), Stability::new(Lsn(0)), AtomicU64::new(0));
    let waits_and_works = || {
        until_waiting(&group, 3);
        sync(&stability)
    };
    let works = || {
        // Relaxed: of this test.
        syncs.fetch_add(1, Ordering::Relaxed);
        sync(&stability)
    };
    let first = || group.commit(&stability, Some(END), waits_and_works);
    let checkpoint = || group.commit(&stability, None, works);
    let served = || group.commit(&stability, Some(END), || Err(Error::Unsupported("it leads".into())));
    scope(|scope| {
        let first = scope.spawn(first);
        until_leading(&group);
        let others = [scope.spawn(checkpoint), scope.spawn(checkpoint), scope.spawn(served)];
        for thread in others.into_iter().chain([first]) {
            assert_eq!(thread.join().expect("no panic"), Ok(END));
        }
    });
    // Relaxed: of this test.
    assert_eq!(syncs.load(Ordering::Relaxed), 2, "each of its own");
    assert_eq!(checkpoint(), Ok(END));
    // Relaxed: of this test.
    assert_eq!(syncs.load(Ordering::Relaxed), 3, "even when everything is durable");
    assert_idle(&group);
}

/// Whoever is alone is not to wait again and again for a crowd that does not come.
#[test]
fn gathering_in_vain_becomes_rare() {
    let (group, stability) = (GroupCommit::default(), Stability::new(Lsn(0)));
    let mut skipped = Vec::new();
    for lsn in 1.. {
        {
            let mut state = group.state.lock();
            // As if another came during each sync, and stayed away afterwards.
            (state.crowd, state.took) = (2, Duration::from_millis(1));
        }
        let before = group.state.lock().skips_left;
        let sync = || {
            stability.raise(Lsn(lsn));
            Ok(Lsn(lsn))
        };
        assert_eq!(group.commit(&stability, Some(Lsn(lsn)), sync), Ok(Lsn(lsn)));
        let state = group.state.lock();
        if before == 0 {
            skipped.push(state.skips_left);
            if skipped.len() == 8 {
                break;
            }
        } else {
            assert_eq!(state.skips_left, before - 1, "it does not gather");
        }
        assert_eq!(state.crowd, 1, "it was alone");
    }
    assert_eq!(skipped, [1, 3, 7, 15, 31, 63, 63, 63]);
}
