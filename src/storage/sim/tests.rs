//! The simulated medium loses, tears, fails, fills up and replays as it says.

use super::medium::Random;
use super::*;

#[test]
fn only_synced_bytes_survive_a_power_cut() {
    let medium = SimStorage::new();
    medium.write_at(0, b"synced").expect("room");
    medium.sync_data().expect("healthy");
    medium.write_at(2, b"LOST").expect("room");
    assert_eq!(medium.contents(), b"syLOST");
    assert_eq!(medium.crash(1, CrashMode::DropUnsynced).contents(), b"synced");
    assert_eq!(medium.crash(1, CrashMode::KeepAll).contents(), b"syLOST");
}

#[test]
fn torn_writes_change_whole_sectors_only() {
    let medium = SimStorage::holding(vec![0; 4 * SECTOR]);
    medium.write_at(100, &[1; 3 * SECTOR]).expect("room");
    let mut torn = 0;
    for seed in 0..200 {
        let left = medium.crash(seed, CrashMode::Torn).contents();
        let written = |sector: usize| {
            let range = (sector * SECTOR).max(100)..((sector + 1) * SECTOR).min(100 + 3 * SECTOR);
            let ones = left[range.clone()].iter().filter(|b| **b == 1).count();
            assert!(ones == 0 || ones == range.len(), "sector {sector} is half written");
            ones > 0
        };
        let sectors = (0..4).filter(|s| written(*s)).count();
        torn += usize::from(sectors > 0 && sectors < 4);
        assert!(left[..100].iter().all(|b| *b == 0), "S3: bytes outside do not change");
    }
    assert!(torn > 20, "only {torn} of 200 crashes tore the write");
}

#[test]
fn random_subsets_reorder_and_prefixes_do_not() {
    let medium = SimStorage::new();
    for i in 0..8_u8 {
        medium.write_at(u64::from(i), &[i + 1]).expect("room");
    }
    let mut holes = 0;
    for seed in 0..100 {
        let subset = medium.crash(seed, CrashMode::RandomSubset).contents();
        holes += usize::from(subset.contains(&0));
        let prefix = medium.crash(seed, CrashMode::KeepPrefix).contents();
        assert!(prefix.iter().enumerate().all(|(i, b)| *b == i as u8 + 1));
    }
    assert!(holes > 20, "only {holes} of 100 crashes lost a write in the middle");
}

#[test]
fn failures_come_when_asked_and_change_nothing() {
    let medium = SimStorage::new();
    medium.fail(OpClass::Write, 1, true, io::ErrorKind::Other);
    medium.write_at(0, b"a").expect("the first succeeds");
    medium.write_at(1, b"b").expect_err("the second fails");
    assert_eq!(medium.contents(), b"a");
    medium.write_at(1, b"b").expect("it was to fail once");
    medium.fail(OpClass::Sync, 0, false, io::ErrorKind::Other);
    assert!(medium.sync_data().is_err() && medium.sync_data().is_err());
    assert_eq!(medium.crash(0, CrashMode::DropUnsynced).contents(), b"");
    medium.heal();
    medium.sync_data().expect("healed");
    medium.set_capacity(Some(2));
    let full = medium.write_at(2, b"c").expect_err("no room");
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    medium.write_at(0, b"x").expect("no growth");
    medium.set_power_cut_at(medium.ops());
    assert!(medium.read_at(0, &mut [0]).is_err() && medium.sync_data().is_err());
}

#[test]
fn reads_past_the_end_say_so() {
    let medium = SimStorage::holding(vec![7; 10]);
    let mut buf = [0; 4];
    medium.read_at(6, &mut buf).expect("within");
    assert_eq!(buf, [7; 4]);
    for offset in [7, 10, u64::MAX] {
        let error = medium.read_at(offset, &mut buf).expect_err("past the end");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "at {offset}");
    }
    medium.set_len(4).expect("cuts");
    medium.set_len(8).expect("extends");
    medium.punch_hole(0, 2).expect("punches");
    assert_eq!(medium.contents(), [0, 0, 7, 7, 0, 0, 0, 0]);
    assert_eq!((medium.len().expect("known"), medium.allocated().expect("known")), (8, PAGE as u64));
}

#[test]
fn a_failed_sync_gives_up_what_it_was_to_make_durable() {
    let medium = SimStorage::new();
    medium.write_at(0, b"abc").expect("room");
    medium.fail(OpClass::Sync, 0, true, io::ErrorKind::Other);
    medium.sync_data().expect_err("injected");
    assert_eq!(medium.injected(), 1);
    medium.write_at(3, b"d").expect("room");
    let maybe = (0..20).map(|seed| medium.crash(seed, CrashMode::RandomSubset).contents());
    assert!(maybe.into_iter().any(|left| left.starts_with(b"abc")), "it may have reached the medium");
    medium.sync_data().expect("the second succeeds");
    assert_eq!(medium.contents(), b"abcd", "reads see all of it");
    for mode in [CrashMode::DropUnsynced, CrashMode::KeepPrefix, CrashMode::RandomSubset, CrashMode::Torn] {
        assert_eq!(medium.crash(5, mode).contents(), b"\0\0\0d", "{mode:?}");
    }
    assert_eq!(
        medium.crash(5, CrashMode::KeepAll).contents(),
        b"abcd",
        "the process died, the cache did not"
    );
}

#[test]
fn a_replay_crashes_as_the_medium_did() {
    let medium = SimStorage::holding(vec![9; 5000]);
    medium.write_at(10, b"before").expect("room");
    medium.start_recording();
    let mut random = Random::new(3);
    let mut seen = vec![(medium.ops(), medium.crash(0, CrashMode::Torn).contents())];
    for i in 0..300_u64 {
        let at = random.next() % 20_000;
        match i % 7 {
            0 => medium.sync_data().expect("healthy"),
            1 => medium.set_len(20_000 + at).expect("room"),
            2 => assert!(medium.punch_hole(at, 6000).expect("punches")),
            3 if i % 3 == 0 => {
                medium.fail_any(0, true, io::ErrorKind::Other);
                medium.sync_data().expect_err("injected");
            }
            _ => medium.write_at(at, &vec![i as u8; (at % 5000) as usize]).expect("room"),
        }
        seen.push((medium.ops(), medium.crash(i + 1, CrashMode::Torn).contents()));
    }
    let recording = medium.stop_recording().expect("started");
    assert!(medium.stop_recording().is_none());
    assert!(recording.calls().zip(1..).all(|(call, number)| call.number == number));
    let mut replay = recording.replay();
    for (seed, (ops, contents)) in seen.iter().enumerate() {
        replay.advance_to(*ops);
        assert!(replay.crash(seed as u64, CrashMode::Torn).contents() == *contents, "after {ops} calls");
    }
}

#[test]
fn growth_may_show_zeros_or_old_bytes() {
    let medium = SimStorage::holding(vec![7; 2 * PAGE]);
    medium.write_at(2 * PAGE as u64, &vec![1; 8 * PAGE]).expect("room");
    let (mut zeros, mut old, mut new) = (0, 0, 0);
    for seed in 0..50 {
        let left = medium.crash(seed, CrashMode::Stale).contents();
        assert_eq!(left.len(), 10 * PAGE);
        assert!(left[..2 * PAGE].iter().all(|b| *b == 7), "S3: bytes outside do not change");
        for sector in left[2 * PAGE..].chunks(SECTOR) {
            assert!(sector.iter().all(|b| *b == sector[0]), "a sector is half written");
            match sector[0] {
                0 => zeros += 1,
                7 => old += 1,
                _ => new += 1,
            }
        }
    }
    assert!(zeros > 100 && old > 100 && new > 100, "{zeros} zero, {old} old, {new} new sectors");
}

#[test]
fn room_that_comes_back_can_be_used() {
    let medium = SimStorage::new();
    medium.set_capacity(Some(4096));
    medium.write_at(0, &[1; 4096]).expect("fits");
    assert_eq!(medium.set_len(5000).expect_err("full").kind(), io::ErrorKind::StorageFull);
    assert_eq!(medium.write_at(4000, &[1; 97]).expect_err("full").kind(), io::ErrorKind::StorageFull);
    medium.write_at(1 << 40, b"x").expect_err("a wild offset");
    medium.set_capacity(None);
    medium.write_at(4000, &[2; 1000]).expect("room again");
    assert_eq!(medium.write_at(1 << 40, b"x").expect_err("wild").kind(), io::ErrorKind::StorageFull);
    assert_eq!((medium.len().expect("known"), medium.allocated().expect("known")), (5000, 8192));
}

#[test]
fn a_failing_write_leaves_as_much_as_it_is_told() {
    for (written, left) in [(Written::Nothing, &b""[..]), (Written::Half, b"ab"), (Written::All, b"abcd")] {
        let medium = SimStorage::new();
        let kind = io::ErrorKind::StorageFull;
        medium.inject(Fault { class: Some(OpClass::Write), after: 0, count: 2, kind, written });
        for _ in 0..2 {
            assert_eq!(medium.write_at(0, b"abcd").expect_err("injected").kind(), kind);
        }
        assert_eq!(medium.contents(), left, "{written:?}");
        medium.write_at(0, b"abcd").expect("the burst is over");
        assert_eq!(medium.injected(), 2);
    }
    let medium = SimStorage::new();
    medium.set_capacity(Some(3));
    medium.write_at(1, b"abcd").expect_err("no room");
    assert_eq!(medium.contents(), b"\0ab", "what fits was written");
    let mut buf = [0; 2];
    medium.fail(OpClass::Read, 0, true, io::ErrorKind::Other);
    medium.read_at(0, &mut buf).expect_err("injected");
    assert!(buf != *b"\0a" && buf != [0; 2], "what a failed read leaves is not to be looked at");
}

#[test]
fn a_crash_keeps_the_sectors_that_it_is_told() {
    let medium = SimStorage::holding(vec![7; 2 * SECTOR]);
    medium.start_recording();
    medium.write_at(100, &[1; 2 * SECTOR]).expect("room");
    medium.write_at(3 * SECTOR as u64, &[2; SECTOR]).expect("room");
    let recording = medium.stop_recording().expect("started");
    let mut replay = recording.replay();
    replay.advance_to(medium.ops());
    assert_eq!(replay.unsynced().collect::<Vec<_>>(), [3, 1]);
    assert!(replay.is_growing());
    let middle = replay.crash_keeping(Growth::AsWritten, 0, |change, sector| (change, sector) == (0, 1));
    let left = middle.contents();
    assert_eq!(left.len(), 2 * SECTOR);
    assert!(left[..SECTOR].iter().all(|b| *b == 7) && left[SECTOR..].iter().all(|b| *b == 1));
    let second = medium.crash_keeping(Growth::Zeros, 0, |change, _| change == 1).contents();
    assert_eq!(second.len(), 4 * SECTOR);
    assert!(
        second[2 * SECTOR..3 * SECTOR].iter().all(|b| *b == 0)
            && second[3 * SECTOR..].iter().all(|b| *b == 2)
    );
    let all = medium.crash_keeping(Growth::AsWritten, 0, |_, _| true).contents();
    assert!(all == medium.contents(), "what is kept in all its sectors is whole");
    let stale = |seed| medium.crash_keeping(Growth::Stale, seed, |_, _| false).contents();
    assert_eq!(stale(3).len(), 4 * SECTOR);
    assert!((0..20).any(|seed| stale(seed)[2 * SECTOR..].contains(&7)), "old bytes may show");
}

#[test]
fn what_a_killed_process_wrote_is_seen_and_not_durable() {
    let medium = SimStorage::new();
    medium.start_recording();
    medium.write_at(0, b"a").expect("room");
    medium.sync_data().expect("healthy");
    medium.write_at(1, b"b").expect("room");
    let recording = medium.stop_recording().expect("started");
    let mut replay = recording.replay();
    replay.advance_to(medium.ops());
    let next = replay.kill();
    assert_eq!(next.contents(), b"ab");
    assert_eq!(next.crash(0, CrashMode::DropUnsynced).contents(), b"a");
    next.sync_data().expect("healthy");
    assert_eq!(next.crash(0, CrashMode::DropUnsynced).contents(), b"ab");
}
