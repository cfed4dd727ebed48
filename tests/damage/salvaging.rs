//! `Db::salvage` on damage of every size, and on the disk.

use super::common_durability::{Random, Scratch, bytes_of, files_below, soak};
use super::{State, TREES, base, contents, covers};
use sled::testing::{SimStorage, salvage};
use sled::{Config, Error};
use std::io;

fn new() -> sled::Db {
    let config = Config::new().flush_every_ms(None).cache_capacity(1 << 20);
    sled::testing::open_on(SimStorage::new(), &config, super::tiny(4096)).expect("healthy")
}

#[test]
fn what_is_whole_is_copied_whole() {
    for closed in [false, true] {
        let base = base(closed);
        let to = new();
        let result =
            salvage(SimStorage::holding(base.bytes.clone()), &to, &super::tiny(1024)).expect("whole");
        assert!(result.is_whole(), "{result:?}");
        assert_eq!((result.trees, result.records), (3, base.state.len() as u64 + u64::from(!closed)));
        assert_eq!(contents(&to), base.state);
        // And is durable.
        drop(to);
    }
}

/// Without superblocks, and without anything in front of the images.
#[test]
fn without_superblocks_everything_is_found() {
    for closed in [false, true] {
        let base = base(closed);
        for (what, range) in [("first slot", 0..4096), ("second slot", 4096..8192), ("both", 0..8192)] {
            let mut bytes = base.bytes.clone();
            bytes[range].fill(0xEE);
            let to = new();
            let result =
                salvage(SimStorage::holding(bytes), &to, &super::tiny(1024)).expect("there are images");
            assert!(result.may_be_older, "{what}");
            let found = contents(&to);
            let all = base.state.iter().all(|(place, value)| found.get(place) == Some(value));
            assert!(all, "{what}, closed {closed}: {} of {}", found.len(), base.state.len());
        }
    }
}

#[test]
fn larger_damage_costs_what_it_hits() {
    for closed in [false, true] {
        let base = base(closed);
        for seed in 0..400 * soak() {
            let mut random = Random(seed);
            let mut bytes = base.bytes.clone();
            let len = 1 << random.below(14);
            let at = random.below((bytes.len() - len) as u64) as usize;
            match random.below(3) {
                0 => bytes[at..at + len].fill(0),
                1 => bytes[at..at + len].copy_from_slice(&bytes_of(seed, len)),
                _ => bytes.truncate(at),
            }
            let cut = bytes.len() < base.bytes.len();
            let to = new();
            let result = match salvage(SimStorage::holding(bytes), &to, &super::tiny(1024)) {
                Ok(result) => result,
                Err(error) => {
                    assert!(cut && at < 3 * 4096, "seed {seed}: {error}");
                    continue;
                }
            };
            let found: State = contents(&to);
            for (place, value) in &base.state {
                let said = result.may_be_older || result.lost.iter().any(|damage| covers(damage, place));
                // Of a crash it is not known where the log ended, when all that was written later is damaged, too.
                let fine = found.get(place) == Some(value) || said || !closed;
                assert!(fine, "seed {seed}: {place:?}: {:?}", result.lost);
            }
            for place in found.keys() {
                assert!(
                    TREES.contains(&&place.0[..]) || place.0.starts_with(b"salvaged tree"),
                    "seed {seed}"
                );
            }
        }
    }
}

#[test]
fn a_damaged_directory_on_disk_is_salvaged_and_left_alone() {
    let scratch = Scratch::new("salvage");
    let (from, to) = (scratch.0.join("from"), scratch.0.join("to"));
    {
        let db = Config::new().path(&from).cache_capacity(1 << 20).open().expect("healthy");
        for number in 0..30_000_u64 {
            db.insert(number.to_be_bytes(), bytes_of(number, 100)).expect("healthy");
        }
        let other = db.open_tree("other").expect("healthy");
        other.insert("big", bytes_of(7, 3 << 20)).expect("healthy");
        assert!(db.generate_id().expect("healthy") == 0);
    }
    let path = from.join("db");
    let mut bytes = std::fs::read(&path).expect("there");
    // In the middle of the leaves.
    let at = bytes.len() / 2;
    bytes[at..at + 100].fill(0);
    std::fs::write(&path, &bytes).expect("writable");
    let before = files_below(&from);
    let result = sled::Db::salvage(&from, &to).expect("most of it is whole");
    assert_eq!(files_below(&from), before, "not touched");
    assert!(!result.may_be_older);
    let lost = &result.lost;
    assert!(
        lost.iter().all(|damage| damage.file.as_deref() == Some(&*path) && damage.offset > 0),
        "{lost:?}"
    );
    let db = sled::open(&to).expect("healthy");
    assert_eq!(
        db.open_tree("other").expect("there").get("big").expect("whole").map(|v| v.len()),
        Some(3 << 20)
    );
    let missing = (0..30_000_u64).filter(|n| db.get(n.to_be_bytes()).expect("healthy").is_none()).count();
    assert_eq!(missing as u64 + result.records, 30_001);
    assert!(
        missing <= 2 * 8192 / 100 && (missing == 0) == lost.is_empty(),
        "{missing} are missing: {lost:?}"
    );
    assert!(db.generate_id().expect("healthy") > 0, "identifiers do not come again");

    let error = sled::Db::salvage(&from, &to).expect_err("there is one already");
    assert!(
        error.is_locked() || matches!(&error, Error::Io(e) if e.kind() == io::ErrorKind::AlreadyExists),
        "{error}"
    );
    let nothing = scratch.0.join("nothing");
    std::fs::create_dir_all(&nothing).expect("writable");
    std::fs::write(nothing.join("db"), "SQLite format 3\0 and more").expect("writable");
    let error = sled::Db::salvage(&nothing, scratch.0.join("new")).expect_err("nothing of ours");
    assert!(matches!(error, Error::Unsupported(_) | Error::Corruption { .. }), "{error}");
    assert!(!scratch.0.join("new").exists(), "nothing is created for nothing");
}
