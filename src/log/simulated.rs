//! What tests and models of group commit share: a log on the simulated medium, and records that tell their names.

use super::{Log, LogOptions, initial_contents, record};
use crate::storage::Storage;
use crate::storage::sim::SimStorage;
use std::sync::Arc;

/// Bytes of a record: its frame and two that tell it from others.
pub const RECORD: usize = 7;

/// The log of a new medium, or of one that holds what `create` began.
fn open(medium: &SimStorage, records: usize, names: &mut Vec<u8>) -> (Log, bool) {
    let options =
        LogOptions { redo_buffer: records * RECORD, volatile: false, read_only: false, compression: None };
    let log = Log::open(Arc::new(medium.clone()), options).expect("a healthy medium");
    let each: record::EachRecord<'_> = &mut |_, _, body| {
        names.push(body[1]);
        Ok(true)
    };
    let fresh = log.replay(each).expect("a healthy medium");
    (log, fresh)
}

/// A new log whose buffers have room for so many records.
pub fn create(medium: &SimStorage, records: usize) -> Arc<Log> {
    medium.write_at(0, &initial_contents(4096, false)).expect("a healthy medium");
    let (log, fresh) = open(medium, records, &mut Vec::new());
    assert!(fresh, "it is new");
    Arc::new(log)
}

/// Writes a record; `false`: the log is poisoned.
pub fn write(log: &Log, name: u8) -> bool {
    let Ok(mut space) = log.reserve(RECORD) else { return false };
    let bytes = space.bytes();
    record::frame(bytes, 1);
    bytes[5..].copy_from_slice(&[0xA5, name]);
    space.complete();
    true
}

/// The names of the records that are replayed after a power cut at this moment, in order.
#[cfg(not(loom))]
pub fn survivors(medium: &SimStorage) -> Vec<u8> {
    let mut names = Vec::new();
    let crashed = medium.crash(0, crate::storage::sim::CrashMode::DropUnsynced);
    open(&crashed, 64, &mut names);
    names.sort_unstable();
    names
}
