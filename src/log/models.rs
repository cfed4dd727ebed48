//! Models of group commit, for the model checker: what a flush promises, and how it fails.
//!
//! # How it works
//!
//! The code of the first ones is the layer's own, down to the simulated medium. Each thread writes a record and flushes;
//! when that says that it worked, a crash at that moment must leave the record. Those of three threads run
//! [`GroupCommit`] over a stream and a medium of one number each. One who is left waiting fails any of them.

use super::Log;
use super::group_commit::GroupCommit;
use super::simulated::{RECORD, create, write};
use super::stability::Stability;
use crate::base::Lsn;
use crate::base::sync::{atomic, check};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::storage::sim::{CrashMode, Fault, OpClass, SimStorage, Written};
use loom::thread::spawn;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Where the redo stream is: in the first segment.
const STREAM: (u64, usize) = (8192, 4096);

/// Whether a power cut would leave the record.
fn is_durable(medium: &SimStorage, name: u8) -> bool {
    let mut stream = vec![0; STREAM.1];
    medium.crash(0, CrashMode::DropUnsynced).read_at(STREAM.0, &mut stream).expect("there");
    stream.windows(3).any(|bytes| bytes == [1, 0xA5, name])
}

/// Two who write and flush, one of whom drains before, as the log writer does; whether each flush worked.
fn two_who_flush(medium: &SimStorage, log: &Arc<Log>) -> [bool; 2] {
    let work = |name: u8| {
        let (medium, log) = (medium.clone(), Arc::clone(log));
        move || {
            let written = write(&log, name);
            if name == 2 {
                // What fails is met again by the flush.
                let _ = log.drain();
            }
            let flushed = log.flush().is_ok();
            assert!(written || !flushed, "nothing is written, so nothing is promised");
            assert!(!flushed || is_durable(&medium, name), "what a flush promised is lost");
            flushed
        }
    };
    let other = spawn(work(2));
    let own = work(1)();
    [own, other.join().expect("no panic")]
}

#[test]
fn what_was_flushed_is_durable() {
    static SHARED: AtomicBool = AtomicBool::new(false);
    check(4, || {
        let medium = SimStorage::new();
        let log = create(&medium, 4);
        let before = log.syncs();
        assert_eq!(two_who_flush(&medium, &log), [true, true]);
        // Relaxed: of this test.
        SHARED.fetch_or(log.syncs() == before + 1, Ordering::Relaxed);
    });
    assert!(SHARED.load(Ordering::Relaxed), "no two ever shared a sync");
}

/// Whoever waits while a sync fails is not left waiting, and is not told that its record is durable.
#[test]
fn a_failed_sync_fails_all_who_wait() {
    check(4, || {
        let medium = SimStorage::new();
        let log = create(&medium, 4);
        medium.fail(OpClass::Sync, 0, true, ErrorKind::Other);
        assert_eq!(two_who_flush(&medium, &log), [false, false]);
        assert!(log.reserve(RECORD).is_err() && log.flush().is_err(), "L7: nothing is written any more");
    });
}

/// Whoever syncs for a superblock meanwhile is not told that it is durable either: the system reports a failure once.
#[test]
fn a_failed_sync_fails_a_superblock_and_a_flush() {
    check(4, || {
        let medium = SimStorage::new();
        let log = create(&medium, 4);
        assert!(write(&log, 1) && log.flush().is_ok());
        medium.fail(OpClass::Sync, 0, true, ErrorKind::Other);
        let other = {
            let log = Arc::clone(&log);
            spawn(move || log.seal_end().is_ok())
        };
        let flushed = write(&log, 2) && log.flush().is_ok();
        let sealed = other.join().expect("no panic");
        assert_eq!((flushed, sealed), (false, false), "L7");
    });
}

/// As the first, when buffers are so small that writers drain, too.
#[test]
fn what_was_flushed_through_full_buffers_is_durable() {
    check(4, || {
        let medium = SimStorage::new();
        let log = create(&medium, 1);
        assert!(write(&log, 3) && write(&log, 4));
        assert_eq!(two_who_flush(&medium, &log), [true, true]);
    });
}

/// A write that fails fails the flush that met it, which is not the other's business.
#[test]
fn a_failed_write_fails_one_and_loses_nothing() {
    check(4, || {
        let medium = SimStorage::new();
        let log = create(&medium, 4);
        let (class, kind) = (Some(OpClass::Write), ErrorKind::StorageFull);
        medium.inject(Fault { class, after: 0, count: 1, kind, written: Written::Half });
        let flushed = two_who_flush(&medium, &log);
        // Neither, if it was one who drained.
        assert!(flushed[0] || flushed[1], "there is room again");
        log.flush().expect("there is room again");
        assert!(is_durable(&medium, 1) && is_durable(&medium, 2), "nothing is lost");
    });
}

/// What happens to a sync of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Works,
    Fails,
    Panics,
}

/// A stream whose bytes are records, and a medium that holds it up to some byte.
struct Stream {
    group: GroupCommit,
    stability: Stability,
    /// The end of the stream.
    written: atomic::AtomicU64,
    /// What is on the medium.
    synced: AtomicU64,
    /// What happens to the first sync.
    first: Fate,
    syncs: AtomicU64,
    /// Somebody syncs.
    busy: atomic::AtomicBool,
}

impl Stream {
    fn new(first: Fate) -> Arc<Stream> {
        Arc::new(Stream {
            group: GroupCommit::default(),
            stability: Stability::new(Lsn(0)),
            written: atomic::AtomicU64::new(0),
            synced: AtomicU64::new(0),
            first,
            syncs: AtomicU64::new(0),
            busy: atomic::AtomicBool::new(false),
        })
    }

    fn sync(&self) -> Result<Lsn> {
        // Relaxed: the medium is not to order anything, here and below.
        assert!(!self.busy.swap(true, atomic::Ordering::Relaxed), "L10: two lead");
        // Relaxed: those whom the lead is to serve are ordered before it.
        let end = self.written.load(atomic::Ordering::Relaxed);
        self.busy.store(false, atomic::Ordering::Relaxed);
        let fate = if self.syncs.fetch_add(1, Ordering::Relaxed) == 0 { self.first } else { Fate::Works };
        match fate {
            Fate::Works => {}
            Fate::Fails => return Err(Error::Unsupported("the first sync".into())),
            // Without a message.
            Fate::Panics => resume_unwind(Box::new("the first sync")),
        }
        self.synced.fetch_max(end, Ordering::Relaxed);
        self.stability.raise(Lsn(end));
        Ok(Lsn(end))
    }

    /// Writes a record and flushes; whether that worked.
    fn flush(&self) -> bool {
        // Relaxed: as in `sync`.
        let goal = self.written.fetch_add(1, atomic::Ordering::Relaxed) + 1;
        let flush = || self.group.commit(&self.stability, Some(Lsn(goal)), || self.sync());
        let flushed = matches!(catch_unwind(AssertUnwindSafe(flush)), Ok(Ok(stable)) if stable >= Lsn(goal));
        assert!(!flushed || self.synced.load(Ordering::Relaxed) >= goal, "what a flush promised is lost");
        flushed
    }

    /// Writes a record and syncs by itself, as a checkpoint does; whether that worked.
    fn checkpoint(&self) -> bool {
        // Relaxed: as in `sync`.
        let end = self.written.fetch_add(1, atomic::Ordering::Relaxed) + 1;
        let mut own = false;
        let sync = || {
            own = true;
            self.sync()
        };
        let stable = self.group.commit(&self.stability, None, sync);
        assert!(own, "nobody serves a checkpoint");
        assert!(stable.is_err() || self.synced.load(Ordering::Relaxed) >= end, "what it promised is lost");
        stable.is_ok()
    }
}

/// Runs three threads; how many of them worked, and in how many syncs.
fn three(stream: &Arc<Stream>, own: fn(&Stream) -> bool) -> (usize, u64) {
    let others: [_; 2] = std::array::from_fn(|_| {
        let stream = Arc::clone(stream);
        spawn(move || stream.flush())
    });
    let own = own(stream);
    let others = others.map(|other| other.join().expect("caught"));
    let worked = others.into_iter().chain([own]).filter(|worked| *worked).count();
    // All are gone: the next one leads, at once.
    assert!(stream.flush(), "somebody leads who is gone");
    (worked, stream.syncs.load(Ordering::Relaxed) - 1)
}

#[test]
fn three_who_flush_share_syncs_and_all_are_served() {
    static FEWEST: AtomicU64 = AtomicU64::new(u64::MAX);
    static MOST: AtomicU64 = AtomicU64::new(0);
    check(3, || {
        let (worked, syncs) = three(&Stream::new(Fate::Works), Stream::flush);
        assert_eq!(worked, 3);
        // Relaxed: of this test.
        FEWEST.fetch_min(syncs, Ordering::Relaxed);
        MOST.fetch_max(syncs, Ordering::Relaxed);
    });
    assert_eq!((FEWEST.load(Ordering::Relaxed), MOST.load(Ordering::Relaxed)), (1, 3), "of what is possible");
}

/// Of three who flush, one meets the first sync, which does not work.
fn two_of_three_work(first: Fate) {
    check(3, move || {
        let (worked, syncs) = three(&Stream::new(first), Stream::flush);
        assert_eq!(worked, 2, "each of those who wait tries for itself");
        assert!(syncs >= 2);
    });
}

#[test]
fn a_sync_that_fails_leaves_nobody_waiting() {
    two_of_three_work(Fate::Fails);
}

#[test]
fn a_leader_that_panics_leaves_nobody_waiting() {
    two_of_three_work(Fate::Panics);
}

#[test]
fn a_checkpoint_leads_among_those_who_flush() {
    check(3, || {
        let (worked, _) = three(&Stream::new(Fate::Works), Stream::checkpoint);
        assert_eq!(worked, 3);
    });
}
