//! After a power cut that took a big value but not its record, recovery ends the log within a block and goes on in
//! another segment: what is left behind the end is no damage, and never comes back.

use super::common_durability::bytes_of;
use super::{State, contents, open, read_only, tiny, tiny_config};
use sled::testing::{SimStorage, checkpoint, open_on, salvage};

/// A database whose log was ended by a recovery, and went on; `later` keys were written since.
fn ended(later: u64) -> (SimStorage, sled::Db) {
    let medium = SimStorage::new();
    let db = open_on(medium.clone(), &tiny_config(), tiny(8192)).expect("healthy");
    (0..100_u64).for_each(|n| drop(db.insert(n.to_be_bytes(), bytes_of(n, 30)).expect("healthy")));
    checkpoint(&db).expect("healthy");
    db.insert("flushed", "value").expect("healthy");
    db.flush().expect("healthy");
    db.insert("big", bytes_of(1, 5000)).expect("healthy");
    for n in 0..40_u64 {
        db.insert(n.to_be_bytes(), &b"never acknowledged"[..]).expect("healthy");
    }
    db.insert("never acknowledged", "value").expect("healthy");
    // The flush writes everything, and nothing vouches for it yet.
    db.flush().expect("healthy");
    let mut bytes = medium.contents();
    drop(db);
    let of_big = |at: &usize| &bytes[*at..at + 4] == b"IMG1" && bytes[at + 8] == 2;
    let image = (8192..bytes.len() - 64).step_by(64).find(of_big).expect("the big value has an image");
    bytes[image..image + 5000].fill(0);
    let medium = SimStorage::holding(bytes);
    let db = open_on(medium.clone(), &tiny_config(), tiny(8192)).expect("a torn end");
    assert!(db.get("flushed").expect("healthy").is_some() && db.get("big").expect("healthy").is_none());
    for n in 0..later {
        db.insert(n.to_be_bytes(), &b"later"[..]).expect("healthy");
        if n % 3 == 0 {
            db.flush().expect("healthy");
        }
    }
    db.flush().expect("healthy");
    (medium, db)
}

#[test]
fn an_end_within_a_block_is_no_damage() {
    for later in [0, 1, 2, 10, 60] {
        let (medium, db) = ended(later);
        let found = db.verify().expect("healthy");
        assert!(found.is_whole(), "{later} later: {:?}", found.damages);
        let again = open(&medium.contents(), &read_only()).expect("healthy");
        assert!(again.verify().expect("healthy").is_whole(), "{later} later, again");
    }
}

#[test]
fn what_was_behind_the_end_is_not_salvaged() {
    for later in [1, 2, 10, 60] {
        let (medium, db) = ended(later);
        let expected: State = contents(&db);
        let bytes = medium.contents();
        let of_directory = |at: &usize| &bytes[*at..at + 4] == b"IMG1" && bytes[at + 8] == 3;
        let chunks: Vec<usize> = (8192..bytes.len() - 64).step_by(64).filter(of_directory).collect();
        for (what, places) in
            [("directory", chunks), ("directory and superblocks", vec![0, 2048, 4096, 6144])]
        {
            let mut bytes = bytes.clone();
            places.iter().for_each(|at| bytes[at + 64..at + 80].fill(0xEE));
            assert!(open(&bytes, &read_only()).is_err(), "{what}");
            let to = open_on(SimStorage::new(), &tiny_config(), tiny(8192)).expect("healthy");
            let result = salvage(SimStorage::holding(bytes), &to, &tiny(8192)).expect("all images are whole");
            assert!(result.may_be_older, "{what}");
            assert_eq!(contents(&to), expected, "{later} later, {what}: {:?}", result.lost);
        }
    }
}
