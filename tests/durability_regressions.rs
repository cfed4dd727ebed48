//! Ways in which something acknowledged was once lost, or dead bytes once stayed alive.
//!
//! Each test puts a database on a simulated medium into the one state that was handled wrongly: by calling it
//! from a hook before a call of the medium, by letting that call fail, or by crashing at a chosen moment.
//! Then it opens what the medium holds, in the machine that failed or after a crash, and compares.

mod common_durability;

use common_durability::{Hooked, Random, Request, Watchdog, bytes_of, open_tiny, tiny, tiny_config, within};
use sled::testing::{
    CrashMode, OpClass, SimStorage, Storage, Tuning, check_invariants, checkpoint, counters, maintain,
    open_on, space,
};
use sled::transaction::{ConflictableTransactionResult, TransactionalTree};
use sled::{Config, Db, Error, IVec};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// As [`open_tiny`], but there are no checkpoints except those that are asked for.
fn open_quiet(medium: &(impl Storage + Clone)) -> sled::Result<Db> {
    open_on(medium.clone(), &tiny_config(), Tuning { redo_budget: 1 << 40, ..tiny(4096) })
}

fn value(db: &Db, key: &str) -> Option<Vec<u8>> {
    db.get(key).expect("works").map(|value| value.to_vec())
}

/// Whether the bytes are the image that a checkpoint writes last before its superblock.
fn is_directory_root(bytes: &[u8]) -> bool {
    bytes.starts_with(b"IMG1") && bytes[8] == 4
}

/// One test at a time: a guard that one of them pins holds back what another waits to see freed.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The checkpoint's redo position is the end of a full segment; what is written during it goes on in the next
/// one. The full segment has nothing to replay, but it is where replay begins: it must not be freed.
#[test]
fn a_checkpoint_at_a_segments_end_keeps_that_segment() {
    let _alone = alone();
    let medium = Hooked::default();
    let db = Arc::new(open_quiet(&medium).unwrap());
    let hooks = Arc::new(AtomicUsize::new(0));
    // A flush takes a sector and a segment has eight: some of the rounds meet its end.
    for round in 0..24_u32 {
        db.insert(round.to_be_bytes(), "v").unwrap();
        db.flush().unwrap();
        let (other, count) = (Arc::clone(&db), Arc::clone(&hooks));
        let during = move || {
            count.fetch_add(1, Ordering::SeqCst);
            other.insert("during", round.to_be_bytes()).unwrap();
            other.flush().unwrap();
        };
        medium.before_next(|request| is_directory_root(request.bytes), during);
        checkpoint(&db).unwrap();
        medium.unhook();
        for i in 0..34_u32 {
            db.insert("more", i.to_be_bytes()).unwrap();
            db.flush().unwrap();
        }
        let after = open_quiet(&medium.medium.crash(1, CrashMode::KeepAll))
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(after.get("during").unwrap(), Some(IVec::from(&round.to_be_bytes())), "round {round}");
        assert_eq!(after.get("more").unwrap(), Some(IVec::from(&33_u32.to_be_bytes())), "round {round}");
    }
    assert_eq!(hooks.load(Ordering::SeqCst), 24, "the hook did not meet the checkpoint");
}

/// After a failed sync the machine still shows what will never reach the medium. Who opens the database there
/// goes on from what is shown, so it has to be written once more.
#[test]
fn what_is_read_after_a_failed_sync_is_written_again() {
    let _alone = alone();
    for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll] {
        let medium = SimStorage::new();
        let db = open_tiny(&medium, 4096).unwrap();
        db.insert("a", "1").unwrap();
        db.flush().unwrap();
        db.insert("b", "2").unwrap();
        medium.fail(OpClass::Sync, 0, true, io::ErrorKind::Other);
        db.flush().unwrap_err();
        drop(db);
        medium.heal();
        let db = open_tiny(&medium, 4096).unwrap();
        let seen = value(&db, "b");
        db.insert("c", "3").unwrap();
        db.flush().unwrap();
        let after = open_tiny(&medium.crash(1, mode), 4096).unwrap();
        assert_eq!(value(&after, "a").as_deref(), Some(&b"1"[..]), "{mode:?}");
        assert_eq!(value(&after, "c").as_deref(), Some(&b"3"[..]), "{mode:?}: acknowledged after reopening");
        assert_eq!(value(&after, "b"), seen, "{mode:?}: it was read");
    }
}

/// The same, with big values, and a sync that fails at any point of a checkpoint: of its images, of its
/// superblock.
#[test]
fn what_is_read_after_a_failed_sync_of_a_checkpoint_is_written_again() {
    let _alone = alone();
    for failing in 0..4 {
        let medium = SimStorage::new();
        let db = open_tiny(&medium, 4096).unwrap();
        db.insert("a", bytes_of(1, 3000)).unwrap();
        db.flush().unwrap();
        db.insert("b", bytes_of(2, 3000)).unwrap();
        medium.fail(OpClass::Sync, failing, true, io::ErrorKind::Other);
        let failed = checkpoint(&db).is_err();
        assert!(failed || failing > 1, "a checkpoint syncs its images and its superblock");
        drop(db);
        medium.heal();
        let db = open_tiny(&medium, 4096).unwrap();
        let seen = value(&db, "b");
        db.insert("c", "3").unwrap();
        db.flush().unwrap();
        let crashed = medium.crash(1, CrashMode::DropUnsynced);
        checkpoint(&db).unwrap();
        for medium in [crashed, medium.crash(1, CrashMode::DropUnsynced)] {
            let after = open_tiny(&medium, 4096).unwrap();
            assert_eq!(value(&after, "a"), Some(bytes_of(1, 3000)), "sync {failing}");
            assert_eq!(value(&after, "b"), seen, "sync {failing}: it was read");
            assert_eq!(value(&after, "c").as_deref(), Some(&b"3"[..]), "sync {failing}: acknowledged");
        }
    }
}

/// A checkpoint begins while the record that raises the limit of identifiers is being synced. It must not
/// note the old limit and skip the record.
#[test]
fn an_identifier_given_out_around_a_checkpoint_does_not_come_back() {
    let _alone = alone();
    let medium = Hooked::default();
    let db = open_quiet(&medium).unwrap();
    db.insert("k", "v").unwrap();
    let given: Vec<u64> = std::thread::scope(|scope| {
        let (begin, begun) = std::sync::mpsc::channel();
        let during = move || {
            begin.send(()).unwrap();
            // Time for the checkpoint to come as far as it can.
            std::thread::sleep(Duration::from_millis(200));
        };
        medium.before_next(|request| request.class == OpClass::Sync, during);
        // Fewer than would raise the limit once more.
        let ids = scope.spawn(|| (0..2).map(|_| db.generate_id().unwrap()).collect());
        begun.recv().unwrap();
        checkpoint(&db).unwrap();
        ids.join().unwrap()
    });
    let crashed = medium.medium.crash(1, CrashMode::DropUnsynced);
    drop(db);
    for medium in [crashed, medium.medium] {
        let again = open_quiet(&medium).unwrap().generate_id().unwrap();
        assert!(given.iter().all(|id| *id < again), "{given:?} were given out, then {again}");
    }
}

/// Both superblock slots are written at creation. Were the first of them still of generation one when
/// something was acknowledged, then losing the second would silently give an empty database.
#[test]
fn the_first_generation_is_gone_before_anything_is_acknowledged() {
    let _alone = alone();
    let medium = SimStorage::new();
    medium.start_recording();
    drop(open_tiny(&medium, 4096).unwrap());
    let recording = medium.stop_recording().unwrap();
    let mut opened = 0;
    for calls in 0..=recording.calls().len() as u64 {
        let mut replay = recording.replay();
        replay.advance_to(calls);
        let crashed = replay.crash(0, CrashMode::KeepAll);
        let Ok(db) = open_tiny(&crashed, 4096) else { continue };
        opened += 1;
        db.insert("a", "1").unwrap();
        db.flush().unwrap();
        for slot in 0..2 {
            let mut bytes = crashed.crash(0, CrashMode::DropUnsynced).contents();
            bytes[slot * 4096..(slot + 1) * 4096].fill(0);
            if let Ok(db) = open_tiny(&SimStorage::holding(bytes), 4096) {
                let found = value(&db, "a");
                assert!(found.is_some(), "cut after {calls} calls, slot {slot} lost: silently empty");
            }
        }
    }
    assert!(opened > 0);
}

/// The system reports a failed write-back to one sync only: were two under way, the other would acknowledge.
#[test]
fn two_syncs_never_overlap() {
    let _alone = alone();
    let medium = Hooked::default();
    let db = open_quiet(&medium).unwrap();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, greatest) = (Arc::clone(&now), Arc::clone(&most));
    medium.before(move |request| {
        if request.class == OpClass::Sync {
            // Most of a sync is waiting; the call that follows is short.
            let others = counted.fetch_add(1, Ordering::SeqCst);
            greatest.fetch_max(others + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
            counted.fetch_sub(1, Ordering::SeqCst);
        }
    });
    std::thread::scope(|scope| {
        for writer in 0..2_u8 {
            let db = &db;
            scope.spawn(move || {
                for i in 0..150_u8 {
                    db.insert([writer, i], "v").unwrap();
                    db.flush().unwrap();
                }
            });
        }
        for _ in 0..60 {
            checkpoint(&db).unwrap();
            db.generate_id().unwrap();
        }
    });
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

/// Whether less than `bound` bytes are live after a few checkpoints. Other tests of this process hold the
/// epoch up now and then, so a few may be many.
fn lives_on_less(db: &Db, bound: u64) -> bool {
    let begun = Instant::now();
    loop {
        maintain(db).expect("works");
        checkpoint(db).expect("works");
        if space(db).0 < bound {
            return true;
        }
        if begun.elapsed() > Duration::from_secs(3) {
            return false;
        }
    }
}

/// The images of a dropped tree, big values too, are dead after it was freed: in this opening, after a crash
/// at any moment since, and after closing right behind the drop.
#[test]
fn a_dropped_tree_leaves_no_live_bytes() {
    let _alone = alone();
    let filled = || {
        let medium = SimStorage::new();
        let db = open_tiny(&medium, 4096).unwrap();
        let tree = db.open_tree("t").unwrap();
        for i in 0..200_u32 {
            tree.insert(i.to_be_bytes(), bytes_of(u64::from(i), 1900)).unwrap();
            tree.insert([b's', i as u8], bytes_of(u64::from(i), 60)).unwrap();
        }
        db.insert("x", "y").unwrap();
        db.flush().unwrap();
        checkpoint(&db).unwrap();
        drop(tree);
        db.drop_tree("t").unwrap();
        (medium, db)
    };
    let check = |db: &Db, when: &str| {
        assert!(lives_on_less(db, 20_000), "{when}: {} bytes live", space(db).0);
        assert_eq!(value(db, "x").as_deref(), Some(&b"y"[..]), "{when}");
    };

    let (_, db) = filled();
    check(&db, "without reopening");

    let (medium, db) = filled();
    drop(db);
    check(&open_tiny(&medium, 4096).unwrap(), "closed behind the drop");

    for steps in 0..4 {
        let (medium, db) = filled();
        db.flush().unwrap();
        for _ in 0..steps {
            maintain(&db).unwrap();
            checkpoint(&db).unwrap();
        }
        let crashed = medium.crash(1, CrashMode::DropUnsynced);
        check(&open_tiny(&crashed, 4096).unwrap(), &format!("crashed {steps} checkpoints after the drop"));
    }
}

/// The same with background threads and values of several pages: what is freed when closing is not forgotten.
#[test]
fn a_tree_dropped_before_closing_leaves_no_live_bytes() {
    let _alone = alone();
    for threads in [false, true] {
        let medium = SimStorage::new();
        let tuning = Tuning { threads, segment: 64 << 10, leaf_bytes: 2048, ..tiny(4096) };
        let open = || open_on(medium.clone(), &tiny_config(), tuning.clone()).unwrap();
        let db = open();
        let tree = db.open_tree("t").unwrap();
        for i in 0..200_u32 {
            tree.insert(i.to_be_bytes(), bytes_of(u64::from(i), 6000)).unwrap();
        }
        db.flush().unwrap();
        checkpoint(&db).unwrap();
        drop(tree);
        db.drop_tree("t").unwrap();
        for i in 0..6_u32 {
            db.insert(i.to_be_bytes(), bytes_of(u64::from(i), 60_000)).unwrap();
        }
        drop(db);
        let db = open();
        // One value that was written and not yet recorded when a checkpoint counted is counted again by replay.
        let twice = if threads { 60_000 } else { 0 };
        assert!(
            lives_on_less(&db, 6 * 60_000 + 50_000 + twice),
            "threads: {threads}: {} bytes live",
            space(&db).0
        );
    }
}

/// Values of several segments are replaced, and crashes come between: neither the old ones nor those that no
/// replay reached stay alive.
#[test]
fn long_values_replaced_over_crashes_do_not_pile_up() {
    let _alone = alone();
    let dog = Watchdog::new(Duration::from_secs(20));
    let mut medium = SimStorage::new();
    let mut seen = Vec::new();
    for round in 0..12_u64 {
        dog.begin(format!("round {round}"));
        let db = open_quiet(&medium).unwrap();
        let replace = |tag: u64| {
            for i in 0..4_u32 {
                db.insert(i.to_be_bytes(), bytes_of(tag, 20_000)).unwrap();
            }
        };
        replace(round);
        db.flush().unwrap();
        if round % 2 == 0 {
            checkpoint(&db).unwrap();
        }
        replace(round + 99);
        db.flush().unwrap();
        if round % 3 == 0 {
            checkpoint(&db).unwrap();
        }
        // Written, and lost again.
        replace(round + 999);
        medium = medium.crash(round, CrashMode::DropUnsynced);
        seen.push(space(&db).0);
    }
    let db = open_quiet(&medium).unwrap();
    for i in 0..4_u32 {
        assert_eq!(db.get(i.to_be_bytes()).unwrap(), Some(IVec::from(bytes_of(11 + 99, 20_000))));
    }
    checkpoint(&db).unwrap();
    checkpoint(&db).unwrap();
    let (live, used, _) = space(&db);
    assert!(live < 90_000, "{live} bytes live of {used}; before: {seen:?}");
}

/// Opening takes the newest superblock there is. When only the caches of the system have it, the one before it counts
/// after a power cut, and what that one refers to must not have been written over.
#[test]
fn what_an_older_superblock_refers_to_stays_until_the_newer_one_is_durable() {
    let _alone = alone();
    let mut opened = 0;
    for failing in 0..4 {
        let medium = SimStorage::new();
        let db = open_quiet(&medium).unwrap();
        for i in 0..200_u32 {
            db.insert((i % 20).to_be_bytes(), bytes_of(u64::from(i), 90)).unwrap();
        }
        checkpoint(&db).unwrap();
        db.insert("a", "1").unwrap();
        for i in 0..200_u32 {
            db.insert((i % 20).to_be_bytes(), bytes_of(u64::from(i) + 999, 90)).unwrap();
        }
        db.flush().unwrap();
        medium.fail(OpClass::Sync, failing, true, io::ErrorKind::Other);
        let failed = checkpoint(&db).is_err();
        drop(db);
        medium.heal();
        let db = open_quiet(&medium).unwrap();
        for i in 0..40_u32 {
            db.insert(["b".as_bytes(), &i.to_be_bytes()].concat(), bytes_of(u64::from(i), 3000)).unwrap();
        }
        for seed in 0..40 {
            let mode = [CrashMode::DropUnsynced, CrashMode::RandomSubset, CrashMode::Torn][seed as usize % 3];
            let after = open_quiet(&medium.crash(seed, mode));
            let after = after.unwrap_or_else(|error| panic!("sync {failing}, {mode:?} {seed}: {error}"));
            assert_eq!(value(&after, "a").as_deref(), Some(&b"1"[..]), "sync {failing}, {mode:?} {seed}");
            opened += usize::from(failed);
        }
    }
    assert!(opened >= 80, "two syncs of a checkpoint fail");
}

#[test]
fn a_big_value_said_to_be_where_none_can_be_harms_nothing_else() {
    const LENGTH: usize = 6000;
    let medium = SimStorage::new();
    let db = open_quiet(&medium).unwrap();
    let tree = db.open_tree("second").unwrap();
    tree.insert("big", vec![7; LENGTH]).unwrap();
    db.insert("other", "value").unwrap();
    checkpoint(&db).unwrap();
    drop((tree, db));
    let bytes = medium.contents();
    // The reference in its leaf: address, then length.
    let reference = (LENGTH as u64).to_le_bytes();
    let at = bytes.windows(8).rposition(|window| window == reference).expect("the leaf was written") - 8;
    let image =
        (0..at).rev().find(|at| at % 64 == 0 && bytes[*at..].starts_with(b"IMG1")).expect("in an image");
    let length = u32::from_le_bytes(bytes[image + 32..image + 36].try_into().unwrap()) as usize;
    // In a superblock, in the redo stream, past the end of the file, and as far away as an address can say.
    for address in [64 << 18 | 1, (8192 / 64 + 1) << 24 | 1, 1 << 50 | 1, u64::MAX >> 2] {
        let mut forged = bytes.clone();
        forged[at..at + 8].copy_from_slice(&u64::to_le_bytes(address));
        let sum = crc32fast::hash(&forged[image + 8..image + 64 + length]);
        forged[image + 4..image + 8].copy_from_slice(&sum.to_le_bytes());
        let medium = SimStorage::holding(forged);
        let db = open_quiet(&medium).unwrap();
        let tree = db.open_tree("second").unwrap();
        assert!(matches!(tree.get("big"), Err(Error::Corruption { .. })), "{address:#x}");
        tree.insert("fine", "value").unwrap();
        drop(tree);
        db.drop_tree("second").unwrap();
        checkpoint(&db).unwrap();
        maintain(&db).unwrap();
        assert_eq!(value(&db, "other").as_deref(), Some(&b"value"[..]));
    }
}

/// Has `hook` run before a call writes leaves for the `nth` time, counted from 0; how often that was.
fn before_nth_write_of_leaves(
    medium: &Hooked,
    nth: usize,
    hook: impl FnOnce() + Send + 'static,
) -> Arc<AtomicUsize> {
    let (writes, hooked) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let is_nth_write = move |request: common_durability::Request<'_>| {
        let is_leaf = request.bytes.starts_with(b"IMG1") && request.bytes[8] == 1;
        // Relaxed: one thread.
        is_leaf && writes.fetch_add(1, Ordering::Relaxed) == nth
    };
    let done = Arc::clone(&hooked);
    medium.before_next(is_nth_write, move || {
        hook();
        // Relaxed: one thread.
        done.fetch_add(1, Ordering::Relaxed);
    });
    hooked
}

/// The last leaf of a tree is split while a checkpoint goes through the leaves, and its parent was looked at before: what is
/// behind the new fence must be listed, too.
#[test]
fn a_checkpoint_lists_what_the_last_leaf_is_split_into() {
    let _alone = alone();
    let key = |number: u32| format!("key {number:05}");
    const KEYS: u32 = 800;
    let mut hooks = 0;
    for nth in 0..40 {
        let medium = Hooked::default();
        // As much memory as it takes, so that the hook, under locks of the checkpoint, need not evict.
        let config = tiny_config().cache_capacity(64 << 20);
        let tuning = Tuning { redo_budget: 1 << 40, ..tiny(4096) };
        let db = open_on(medium.clone(), &config, tuning.clone()).unwrap();
        for number in 0..KEYS {
            db.insert(key(number), &[1; 20][..]).unwrap();
        }
        let other = db.clone();
        let hooked = before_nth_write_of_leaves(&medium, nth, move || {
            // Before the last key, so that the last one goes to the right.
            for number in 0..30 {
                other.insert(format!("{} {number:02}", key(KEYS - 2)), &[2; 40][..]).unwrap();
            }
        });
        checkpoint(&db).unwrap();
        medium.unhook();
        db.flush().unwrap();
        // Relaxed: one thread.
        hooks += hooked.load(Ordering::Relaxed);
        let after = open_on(medium.medium.crash(0, CrashMode::DropUnsynced), &config, tuning).unwrap();
        for number in 0..KEYS {
            let found =
                after.get(key(number)).unwrap_or_else(|error| panic!("write {nth}, key {number}: {error}"));
            assert_eq!(found.as_deref(), Some(&[1; 20][..]), "write {nth}, key {number}");
        }
        assert_eq!(
            after.len(),
            KEYS as usize + if hooked.load(Ordering::Relaxed) > 0 { 30 } else { 0 },
            "write {nth}"
        );
    }
    assert!(hooks > 10, "calls write leaves: {hooks}");
}

/// Where images are compressed each is written by itself, and when one of them failed, nobody had the others.
#[test]
fn a_checkpoint_that_fails_leaves_no_live_bytes() {
    let _alone = alone();
    for compress in [false, cfg!(feature = "compression")] {
        let medium = SimStorage::new();
        let config = tiny_config().cache_capacity(64 << 20).use_compression(compress);
        let tuning = Tuning { redo_budget: 1 << 40, fanout: 64, ..tiny(64 << 10) };
        let db = open_on(medium.clone(), &config, tuning).unwrap();
        let overwrite = |round: u8| {
            for number in 0..2_000_u32 {
                db.insert(number.to_be_bytes(), &[round; 40][..]).unwrap();
            }
            db.flush().unwrap();
        };
        overwrite(0);
        checkpoint(&db).unwrap();
        let live = db.stats().live_bytes;
        let mut failures = 0;
        for round in 1..30_u8 {
            overwrite(round);
            medium.fail(OpClass::Write, 3 * u64::from(round), true, io::ErrorKind::StorageFull);
            failures += u32::from(checkpoint(&db).is_err());
            medium.heal();
        }
        overwrite(100);
        checkpoint(&db).unwrap();
        assert!(failures > if compress { 20 } else { 0 }, "{failures} of 29 checkpoints failed");
        let now = db.stats().live_bytes;
        assert!(now < live * 5 / 4, "{now} bytes are live, {live} before");
    }
}

/// A tree is dropped while a checkpoint goes through its leaves. What was written to it just before is replayed before the drop
/// is, and some of it is behind what the checkpoint has of it.
#[test]
fn what_was_written_to_a_tree_that_is_dropped_while_it_is_listed_is_replayed() {
    let _alone = alone();
    let key = |number: u32| format!("key {number:05}");
    let mut hooks = 0;
    for nth in 0..20 {
        let medium = Hooked::default();
        // As much memory as it takes, so that the hook, under locks of the checkpoint, need not evict.
        let config = tiny_config().cache_capacity(64 << 20);
        let tuning = Tuning { redo_budget: 1 << 40, ..tiny(4096) };
        let db = open_on(medium.clone(), &config, tuning.clone()).unwrap();
        let tree = db.open_tree("dropped").unwrap();
        for number in 0..800 {
            tree.insert(key(number), &[1; 20][..]).unwrap();
        }
        let other = db.clone();
        let hooked = before_nth_write_of_leaves(&medium, nth, move || {
            for number in 500..800 {
                tree.insert(key(number), &[2; 90][..]).unwrap();
            }
            other.drop_tree("dropped").unwrap();
        });
        checkpoint(&db).unwrap();
        medium.unhook();
        db.flush().unwrap();
        // Relaxed: one thread.
        hooks += hooked.load(Ordering::Relaxed);
        let after = open_on(medium.medium.crash(0, CrashMode::DropUnsynced), &config, tuning)
            .unwrap_or_else(|error| panic!("write {nth}: {error}"));
        check_invariants(&after).unwrap();
        let dropped = hooked.load(Ordering::Relaxed) > 0;
        assert_eq!(after.tree_names().contains(&sled::IVec::from("dropped")), !dropped, "write {nth}");
    }
    assert!(hooks > 10, "calls write leaves: {hooks}");
}

/// A crash leaves a file that ends within the first sector of the newest redo segment, and its header is there. Replay
/// went on in that segment, and the pages of the next checkpoint were given the same place.
#[test]
fn a_redo_segment_whose_first_sector_was_cut_short_is_not_used_twice() {
    let _alone = alone();
    let medium = SimStorage::new();
    let db = open_quiet(&medium).unwrap();
    let (mut segments, mut cut) = (0, 0);
    for round in 0..60_u32 {
        let before = medium.contents().len();
        db.insert(round.to_be_bytes(), vec![7; 60]).unwrap();
        db.flush().unwrap();
        let file = medium.contents();
        let start = file.len().saturating_sub(1) / 4096 * 4096;
        if before > start || !file[start..].starts_with(b"SEG1") {
            continue;
        }
        segments += 1;
        for sectors_end in [64, 128, 256, 448, 511] {
            let medium = SimStorage::holding(file[..start + sectors_end].to_vec());
            let db = open_quiet(&medium).unwrap();
            assert_eq!(db.len() as u32, round, "all that the segments before had");
            for key in 0..40_u32 {
                db.insert(key.to_le_bytes(), vec![8; 60]).unwrap();
            }
            let expected: Vec<_> = db.iter().collect::<sled::Result<_>>().unwrap();
            drop(db);
            let db = open_quiet(&medium).expect("what was closed opens again");
            assert_eq!(db.iter().collect::<sled::Result<Vec<_>>>().unwrap(), expected);
            cut += 1;
        }
    }
    assert!(segments > 2 && cut == 5 * segments, "{segments} segments");
}

/// Memory is short, so leaves are written again and again; a checkpoint frees what that leaves behind, and keeps the log
/// from before: leaves of which memory has the changes only are not written for it.
#[test]
fn a_checkpoint_that_keeps_the_log_loses_nothing() {
    let _alone = alone();
    let config = || Config::new().cache_capacity(64 << 10).flush_every_ms(None);
    let tuning = || Tuning { threads: false, redo_budget: 256 << 10, leaf_bytes: 2048, ..tiny(4096) };
    let mut kept = 0;
    for (seed, mode) in (0..12).zip([CrashMode::DropUnsynced, CrashMode::Torn].into_iter().cycle()) {
        let medium = SimStorage::new();
        let db = open_on(medium.clone(), &config(), tuning()).unwrap();
        let mut random = Random(seed);
        let mut expected = BTreeMap::new();
        for round in 0..20_000_u64 {
            let (key, value) = (random.below(2_000).to_be_bytes(), bytes_of(round, 40));
            let (before, tail) = (counters(&db).checkpoints, space(&db).2);
            if random.below(8) == 0 {
                db.remove(key).unwrap();
                expected.remove(&key);
            } else {
                db.insert(key, &value[..]).unwrap();
                expected.insert(key, value);
            }
            kept += u64::from(counters(&db).checkpoints > before && space(&db).2 >= tail && tail > 0);
        }
        db.flush().unwrap();
        let crashed = medium.crash(seed, mode);
        let check = |db: &Db, what: &str| {
            let found: Vec<_> = db.iter().map(|pair| pair.unwrap()).collect();
            let expected: Vec<(IVec, IVec)> =
                expected.iter().map(|(key, value)| (key.into(), IVec::from(&value[..]))).collect();
            assert!(found == expected, "seed {seed}: {what}");
            check_invariants(db).expect("sound");
        };
        check(&db, "before");
        drop(db);
        check(&open_on(crashed, &config(), tuning()).unwrap(), "after a power cut");
    }
    assert!(kept > 20, "{kept} checkpoints kept the log");
}

/// A transaction replaces a big value that the cleaner is moving, so that its segment counts as emptied. The leaf, whose
/// image has the old reference, becomes an overlay, and while the checkpoint folds that, somebody reads it, and so gives it
/// its image back. The old value must have died before its segment is used again, or it dies in place of a new one.
#[test]
fn an_overlay_that_is_read_while_a_checkpoint_folds_it_is_folded() {
    const TREES: u32 = 60;
    let _alone = alone();
    let medium = Hooked::default();
    let tuning = Tuning { redo_budget: 1 << 40, leaf_bytes: 2048, ..tiny(4096) };
    let db = Arc::new(open_on(medium.clone(), &tiny_config(), tuning).unwrap());
    let value = |i: u32| bytes_of(u64::from(i), 1800);
    let name = |i: u32| format!("tree {i}");
    for i in 0..TREES {
        // One leaf, large enough to become an overlay; and another big value in the segment of its own, to be removed.
        let tree = db.open_tree(name(i)).unwrap();
        (0..6).for_each(|n| drop(tree.insert([n], bytes_of(1, 200)).unwrap()));
        tree.insert("big", value(i)).unwrap();
        db.insert(i.to_be_bytes(), value(i)).unwrap();
    }
    checkpoint(&db).unwrap();
    let filler = db.open_tree("filler").unwrap();
    (0..200_u32).for_each(|n| drop(filler.insert(n.to_be_bytes(), bytes_of(1, 400)).unwrap()));
    (0..TREES).for_each(|i| drop(db.remove(i.to_be_bytes()).unwrap()));

    let is_image = |bytes: &[u8], kind| bytes.starts_with(b"IMG1") && bytes[8] == kind;
    let replaced = Arc::new(Mutex::new(None));
    let (other, of) = (Arc::clone(&db), Arc::clone(&replaced));
    let replace = move |bytes: &[u8]| {
        // Behind the header, the length of the key, and the key.
        let moved =
            (0..TREES).find(|i| bytes[64 + 4 + 3..].starts_with(&value(*i))).expect("of one of the trees");
        let tree = other.open_tree(name(moved)).unwrap();
        let new = |tree: &TransactionalTree| {
            tree.insert("big", "the new value")?;
            ConflictableTransactionResult::<(), ()>::Ok(())
        };
        let read = |i: u32| drop(other.open_tree(name(i)).unwrap().get([0]).unwrap());
        // All that has changes is written, so that what becomes an overlay is this leaf.
        (0..3).for_each(|_| filler.iter().for_each(|pair| drop(pair.unwrap())));
        tree.transaction(new).unwrap();
        let before = counters(&other);
        let mut others = (0..10).flat_map(|_| 0..TREES).filter(|i| *i != moved);
        while counters(&other).shrunk == before.shrunk {
            read(others.next().expect("the leaf makes room for others"));
        }
        assert_eq!(counters(&other).page_outs, before.page_outs, "nothing else has changes");
        *of.lock().unwrap() = Some(tree);
    };
    let (other, of) = (Arc::clone(&db), Arc::clone(&replaced));
    let read = move || {
        let before = counters(&other).overlay_faults;
        let tree = of.lock().unwrap().clone().expect("replaced before the checkpoint");
        let reader = std::thread::spawn(move || tree.get([3]).unwrap());
        // When it has read it may have to wait for the checkpoint.
        within(Duration::from_secs(1), || counters(&other).overlay_faults > before || reader.is_finished());
        reader
    };
    let (stage, readers) = (AtomicUsize::new(0), Arc::new(Mutex::new(Vec::new())));
    let reader = Arc::clone(&readers);
    medium.before(move |Request { bytes, .. }| {
        let next = |from| stage.compare_exchange(from, from + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        let folded = || bytes.windows(13).any(|part| part == b"the new value");
        if is_image(bytes, 2) && next(0) {
            replace(bytes);
            assert!(next(1));
        } else if is_image(bytes, 1) && folded() && next(2) {
            reader.lock().unwrap().push(read());
        }
    });
    checkpoint(&db).unwrap();
    medium.unhook();
    let reader = readers.lock().unwrap().pop().expect("the checkpoint folds the leaf");
    assert!(reader.join().expect("reads").is_some());

    // Uses again what was freed.
    let bigs = db.open_tree("bigs").unwrap();
    let value = |n: u32| bytes_of(1000 + u64::from(n), 1800);
    (0..2 * TREES).for_each(|n| drop(bigs.insert(n.to_be_bytes(), value(n)).unwrap()));
    let tree = replaced.lock().unwrap().take().expect("the cleaner moves a big value");
    let live = space(&db).0;
    (0..20).for_each(|n| drop(tree.insert([5], [n]).unwrap()));
    assert_eq!(space(&db).0, live, "nothing died by folding the leaf");
    assert_eq!(tree.get("big").unwrap().unwrap(), "the new value");
    (0..2 * TREES).step_by(2).for_each(|n| drop(bigs.remove(n.to_be_bytes()).unwrap()));
    checkpoint(&db).unwrap();
    (0..2 * TREES).for_each(|n| drop(tree.insert(n.to_be_bytes(), value(9)).unwrap()));
    for n in (1..2 * TREES).step_by(2) {
        assert!(bigs.get(n.to_be_bytes()).unwrap().unwrap() == value(n), "big value {n}");
    }
}
