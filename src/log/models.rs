//! Models of group commit, for the model checker: what a flush promises, and how it fails.
//!
//! # How it works
//!
//! The code is the layer's own, down to the simulated medium. Each thread writes a record and flushes; when that says
//! that it worked, a crash at that moment must leave the record.

use super::{Log, LogOptions, initial_contents};
use crate::base::sync::check;
use crate::storage::Storage;
use crate::storage::sim::{CrashMode, OpClass, SimStorage};
use loom::thread::spawn;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a record: its frame and two that tell it from others.
const RECORD: usize = 7;
/// Where the redo stream is: in the first segment.
const STREAM: (u64, usize) = (8192, 4096);

/// A new log whose buffers have room for so many records.
fn create(medium: &SimStorage, records: usize) -> Arc<Log> {
    medium.write_at(0, &initial_contents(4096, false)).expect("a healthy medium");
    let options =
        LogOptions { redo_buffer: records * RECORD, volatile: false, read_only: false, compression: None };
    let log = Log::open(Arc::new(medium.clone()), options).expect("just made");
    assert!(log.replay(&mut |_, _, _| Ok(true)).expect("just made"), "it is new");
    Arc::new(log)
}

/// Writes a record; `false`: the log is poisoned.
fn write(log: &Log, name: u8) -> bool {
    let Ok(mut space) = log.reserve(RECORD) else { return false };
    let bytes = space.bytes();
    super::record::frame(bytes, 1);
    bytes[5..].copy_from_slice(&[0xA5, name]);
    space.complete();
    true
}

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
