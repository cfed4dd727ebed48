//! Every byte of a small database, one after the other.

use super::common_durability::soak;
use super::{Base, base, contents, covers, open, read_only};
use sled::testing::{SimStorage, salvage};
use sled::{Config, Error};

/// Left by a crash; and closed, which is almost the same file.
fn kinds() -> Vec<bool> {
    if soak() > 1 { vec![false, true] } else { vec![false] }
}

/// Calls `check` with the file in which a bit of one byte is flipped, for every byte.
fn each_flip(base: &Base, mut check: impl FnMut(usize, &[u8])) {
    let mut bytes = base.bytes.clone();
    for at in 0..bytes.len() {
        for bit in 0..if soak() > 1 { 8 } else { 1 } {
            let flip = 1 << ((at + bit) % 8);
            bytes[at] ^= flip;
            check(at, &bytes);
            bytes[at] ^= flip;
        }
    }
}

/// Opens the damaged file. What can be read is right, what cannot be is an error that names it, and `verify` reports
/// everything that reading would meet.
fn is_reported(base: &Base, at: usize, bytes: &[u8]) -> bool {
    let db = match open(bytes, &read_only()) {
        Ok(db) => db,
        Err(Error::Corruption { at: Some(_), .. } | Error::Unsupported(_)) => return true,
        Err(other) => panic!("byte {at}: {other:?}"),
    };
    let found = db.verify().expect("nothing wrong in memory");
    assert!(!found.cancelled);
    for ((tree, key), value) in &base.state {
        let place = (tree.clone(), key.clone());
        let handle = match db.open_tree(tree) {
            Ok(handle) => handle,
            Err(error) => panic!("byte {at}: tree {tree:?}: {error}"),
        };
        match handle.get(key) {
            Ok(Some(found)) => assert!(found == value, "byte {at}: a wrong value of {key:?}"),
            Ok(None) => panic!("byte {at}: {key:?} is missing"),
            Err(error) => {
                assert!(error.is_corruption(), "byte {at}: {error}");
                let named = error.damage().unwrap_or_else(|| panic!("byte {at}: nothing known of {error}"));
                assert!(named.tree.is_some() && covers(named, &place), "byte {at}: {error} for {key:?}");
                let reported = found.damages.iter().any(|damage| damage.offset > 0 && covers(damage, &place));
                assert!(reported, "byte {at}: verify does not report {error}");
            }
        }
    }
    !found.is_whole()
}

#[test]
fn every_flipped_byte_is_reported_or_does_not_matter() {
    for closed in kinds() {
        let base = base(closed);
        let (mut count, mut reported) = (0, 0);
        each_flip(&base, |at, bytes| {
            count += 1;
            reported += usize::from(is_reported(&base, at, bytes));
        });
        println!("{} bytes, {count} flips, {reported} reported", base.bytes.len());
        assert!(reported > 5_000, "most of what is live is checked: {reported}");
    }
}

#[test]
fn every_flipped_byte_can_be_salvaged() {
    for closed in kinds() {
        let base = base(closed);
        let (mut lossy, mut older) = (0, 0);
        each_flip(&base, |at, bytes| {
            // Every third: each of them is searched through, and written again.
            if at % 3 != 0 && soak() == 1 {
                return;
            }
            let to = Config::new().temporary(true).cache_capacity(1 << 20).flush_every_ms(None);
            let to = open_on_memory(&to);
            let result = match salvage(SimStorage::holding(bytes.to_vec()), &to, &super::tiny(1024)) {
                Ok(result) => result,
                Err(error) => panic!("byte {at}: {error}"),
            };
            let found = contents(&to);
            for (place, value) in &base.state {
                match found.get(place) {
                    Some(found) => {
                        assert!(found == value || result.may_be_older, "byte {at}: {place:?} is wrong")
                    }
                    None => {
                        let said = result.lost.iter().any(|damage| covers(damage, place));
                        assert!(said, "byte {at}: {place:?} is lost without a word: {:?}", result.lost);
                    }
                }
            }
            if !result.may_be_older {
                // Only behind a gap in the log may something be missing that makes another thing be there.
                let gap = result.lost.iter().any(|damage| damage.what.contains("log"));
                for place in found.keys().filter(|place| !base.state.contains_key(*place)) {
                    assert!(gap, "byte {at}: {place:?} came back");
                }
            }
            lossy += usize::from(!result.lost.is_empty());
            older += usize::from(result.may_be_older);
        });
        println!("{} bytes: {lossy} with losses, {older} perhaps older", base.bytes.len());
        assert!(lossy > 1000);
    }
}

fn open_on_memory(config: &Config) -> sled::Db {
    sled::testing::open_on(SimStorage::new(), config, super::tiny(4096)).expect("healthy")
}
