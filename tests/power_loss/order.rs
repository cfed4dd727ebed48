//! In which order the medium is written: nothing that a crash needs is touched before its replacement is durable.
//!
//! At each sync of a run, the durable bytes are opened as after a crash, and what is read of them then says which
//! images are needed. Until the next sync, no write, cut or punched hole may change one of these bytes. A superblock
//! refers to what was written before it: when one is written, nothing else may wait for a sync (L9).

use super::common_durability::{Watchdog, open_tiny};
use super::explore::{SEGMENTS, record};
use super::ops::{DENSE, MANY, SHORT};
use super::run::{Run, alone, repeatable};
use super::state::fingerprint;
use sled::testing::{Call, CrashMode, Growth, OpClass, SimStorage};
use std::ops::Range;
use std::time::Duration;

/// What the bytes of an image begin with.
const IMAGE: &[u8] = b"IMG1";

/// The images that opening and reading all of a medium reads.
fn needed(medium: &SimStorage, redo_buffer: usize) -> Vec<Range<usize>> {
    let bytes = medium.contents();
    medium.start_recording();
    let db = open_tiny(medium, redo_buffer).expect("durable bytes open");
    fingerprint(&db).expect("durable bytes can be read");
    let recording = medium.stop_recording().expect("started above");
    drop(db);
    let ranges = recording.calls().filter(|call| call.class == OpClass::Read).map(|call| {
        let start = call.offset as usize;
        start..start + call.len as usize
    });
    // What replay evicted and read again is not durable yet, and not in `bytes`.
    ranges.filter(|range| bytes.get(range.clone()).is_some_and(|bytes| bytes.starts_with(IMAGE))).collect()
}

/// Looks at all that is written between two syncs; how many changes met how many needed images.
fn check_order(run: &Run, seed: u64, dog: &Watchdog) -> (usize, usize) {
    let calls = run.calls();
    let mut replay = run.recording.replay();
    let (mut changes, mut images) = (0, 0);
    for interval in calls.split_inclusive(|call| call.class == OpClass::Sync) {
        let first = interval.first().expect("no interval is empty").number;
        dog.begin(format!("seed {seed}, calls from {first}"));
        replay.advance_to(first);
        let durable = replay.crash(0, CrashMode::DropUnsynced);
        let before = durable.contents();
        // A medium of zeros is not a database yet.
        let blank = before.iter().all(|byte| *byte == 0);
        let needed = if blank { Vec::new() } else { needed(&durable, run.redo_buffer) };
        images += needed.len();
        let changing = |call: &&Call| matches!(call.class, OpClass::Write | OpClass::Resize);
        for (number, call) in interval.iter().filter(changing).enumerate() {
            changes += 1;
            replay.advance_to(call.number + 1);
            let after = replay.crash_keeping(Growth::AsWritten, 0, |change, _| change == number).contents();
            let touched =
                needed.iter().find(|range| after.get((*range).clone()) != Some(&before[(*range).clone()]));
            assert_eq!(touched, None, "seed {seed}: {call:?} changes an image that is needed");
            let superblock = call.class == OpClass::Write && call.offset < SEGMENTS;
            let changed = !after.starts_with(&before[..before.len().min(SEGMENTS as usize)]);
            assert!(
                !superblock || !changed || number == 0,
                "seed {seed}: {call:?} before {number} writes are durable"
            );
        }
    }
    (changes, images)
}

#[test]
fn nothing_that_a_crash_needs_is_overwritten_before_its_replacement_is_durable() {
    let _alone = alone();
    let dog = Watchdog::new(Duration::from_secs(30));
    for seed in [0, 1, SHORT, SHORT + 1, DENSE, MANY, MANY + 1] {
        let run = record(seed);
        let checked = repeatable(seed, || check_order(&run, seed, &dog));
        let (changes, images) = checked.expect("the order is kept (see above)");
        println!("seed {seed}: {changes} changes, {images} needed images");
        assert!(seed >= SHORT || changes > 500 && images > 2000, "{changes} changes, {images} needed images");
    }
}
