//! A leaf is damaged, and some of its keys are changed in the redo log: the rest of the database goes on.

use super::common_durability::bytes_of;
use super::{State, contents_of_readable, open, read_only, tiny, tiny_config};
use sled::testing::{
    CrashMode, SimStorage, check_invariants, checkpoint, counters, maintain, open_on, space,
};

/// Keys of one tree, a checkpoint, changes to some keys of each leaf, a crash.
fn crashed() -> (Vec<u8>, State) {
    let medium = SimStorage::new();
    let db = open_on(medium.clone(), &tiny_config(), tiny(1024)).expect("healthy");
    let mut state = State::new();
    let mut set = |number: u64, value: Option<Vec<u8>>| {
        let key = format!("key {number:04}").into_bytes();
        let place = (db.name().to_vec(), key.clone());
        match value {
            Some(value) => {
                db.insert(&key, &value[..]).expect("healthy");
                state.insert(place, value);
            }
            None => {
                db.remove(&key).expect("healthy");
                state.remove(&place);
            }
        }
    };
    (0..400).for_each(|number| set(number, Some(bytes_of(number, 30))));
    checkpoint(&db).expect("healthy");
    (0..400).step_by(3).for_each(|number| set(number, Some(bytes_of(number + 1000, 200))));
    (1..400).step_by(30).for_each(|number| set(number, None));
    db.flush().expect("healthy");
    (medium.crash(0, CrashMode::DropUnsynced).contents(), state)
}

/// The file with a damaged image of the leaf that has a key.
fn damage_leaf_of(key: &str, bytes: &[u8]) -> Vec<u8> {
    let images = (8192..bytes.len() - 128).step_by(64).filter(|at| &bytes[*at..at + 4] == b"IMG1");
    let mut damaged = images.map(|at| {
        let mut damaged = bytes.to_vec();
        damaged[at + 64..at + 128].fill(0xAA);
        damaged
    });
    let is_of_key = |bytes: &Vec<u8>| open(bytes, &read_only()).is_ok_and(|db| db.get(key).is_err());
    damaged.find(is_of_key).expect("there is a leaf with the key")
}

#[test]
fn damage_under_changes_stops_no_checkpoint() {
    let (bytes, state) = crashed();
    let medium = SimStorage::holding(damage_leaf_of("key 0002", &bytes));
    let mut unreadable = 0;
    for round in 0..3 {
        let db = open_on(medium.clone(), &tiny_config(), tiny(1024)).expect("only a leaf is damaged");
        let (found, damages) = contents_of_readable(&db, &state);
        assert!(!damages.is_empty() && damages.iter().all(|damage| damage.keys.is_some()), "{damages:?}");
        assert!(found.iter().all(|(place, value)| state.get(place) == Some(value)), "round {round}");
        let lost = state.len() - found.len();
        assert!(lost > 0 && lost < 40, "round {round}: {lost} keys cannot be read");
        assert!(
            round == 0 || lost == unreadable,
            "round {round}: {lost} keys cannot be read, {unreadable} before"
        );
        unreadable = lost;
        let before = counters(&db).checkpoints;
        // Others go on, for longer than the log is to be.
        for number in 0..2000_u64 {
            db.insert(format!("other {:03}", number % 100), bytes_of(number, 50)).expect("not damaged");
            if number % 100 == 0 {
                maintain(&db).expect("damage stops no maintenance");
            }
        }
        checkpoint(&db).expect("damage stops no checkpoint");
        assert!(counters(&db).checkpoints > before + 2, "the log is cut now and then");
        assert!(space(&db).2 < 64 << 10, "{} bytes of log", space(&db).2);
        assert!(check_invariants(&db).expect_err("the damage is still there").is_corruption());
        assert!(!db.verify().expect("whole in memory").is_whole());
        db.flush().expect("healthy");
        for number in 0..100 {
            db.remove(format!("other {number:03}")).expect("not damaged");
        }
    }
}
