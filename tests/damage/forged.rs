//! Structures with right checksums that do not fit where they are: left from an earlier use, of another range, unknown.

use super::common_durability::bytes_of;
use super::{State, contents, covers, open, read_only, tiny, tiny_config};
use sled::testing::{CrashMode, SimStorage, checkpoint, open_on, salvage};

const HEADER: usize = 64;

fn number(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

/// Makes the checksum of the image or block at a place right.
fn seal(bytes: &mut [u8], at: usize, len: usize) {
    let sum = crc32fast::hash(&bytes[at + 8..at + HEADER + len]);
    bytes[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
}

/// Where whole images of a kind are.
fn images(bytes: &[u8], kind: u8) -> Vec<usize> {
    let is_whole = |at: &usize| {
        let end = at + HEADER + number(bytes, at + 32);
        &bytes[*at..at + 4] == b"IMG1"
            && bytes[at + 8] == kind
            && end <= bytes.len()
            && crc32fast::hash(&bytes[at + 8..end]) as usize == number(bytes, at + 4)
    };
    (8192..bytes.len() - HEADER).step_by(64).filter(is_whole).collect()
}

fn key(number: u64) -> Vec<u8> {
    [b"a long beginning", &(number as u16 * 4).to_be_bytes()[..]].concat()
}

/// A database of one checkpoint, with a log of two flushed keys behind it.
fn some() -> (Vec<u8>, State) {
    let medium = SimStorage::new();
    let db = open_on(medium.clone(), &tiny_config(), tiny(1024)).expect("healthy");
    let mut state = State::new();
    let mut set = |number| {
        let value = bytes_of(number, 25);
        db.insert(key(number), &value[..]).expect("healthy");
        state.insert((db.name().to_vec(), key(number)), value);
    };
    (0..200).for_each(&mut set);
    checkpoint(&db).expect("healthy");
    for number in 200..205 {
        set(number);
        db.flush().expect("healthy");
    }
    (medium.crash(0, CrashMode::DropUnsynced).contents(), state)
}

/// Everything is there, or is said to be lost.
fn check_salvaged(bytes: Vec<u8>, state: &State, what: &str) -> sled::Salvage {
    let to = open_on(SimStorage::new(), &tiny_config(), tiny(1024)).expect("healthy");
    let result = salvage(SimStorage::holding(bytes), &to, &tiny(1024)).expect("most of it is whole");
    let found = contents(&to);
    for (place, value) in state {
        let fine = found.get(place) == Some(value) || result.lost.iter().any(|damage| covers(damage, place));
        assert!(fine, "{what}: {place:?} is {:?}, and {:?}", found.get(place), result.lost);
    }
    assert!(found.iter().all(|(place, value)| state.get(place) == Some(value)), "{what}: something wrong");
    let lost = state.len() - found.len();
    assert!(lost < state.len() / 4, "{what}: {lost} are lost: {:?}", result.lost);
    result
}

#[test]
fn a_leaf_that_ends_too_early_is_found_and_costs_no_other() {
    let (bytes, state) = some();
    let mut forged = 0;
    for at in images(&bytes, 1) {
        let mut bytes = bytes.clone();
        let (len, high_len) = (number(&bytes, at + 32), number(&bytes, at + HEADER + 12));
        let last = at + HEADER + len - 1;
        // One that is not only the beginning of the next key: there is room between the last key and it.
        if high_len != key(0).len() || bytes[last] == 0 {
            continue;
        }
        bytes[last] -= 1;
        seal(&mut bytes, at, len);
        let db = open(&bytes, &read_only()).expect("leaves are read when they are needed");
        let found = db.verify().expect("in memory all is fine");
        assert!(!found.is_whole(), "the image at {at} is none that counts");
        forged += 1;
        let result = check_salvaged(bytes, &state, &format!("image at {at}"));
        assert!(!result.may_be_older && !result.is_whole());
    }
    assert!(forged > 3, "{forged} leaves were forged");
}

/// What is not to be had from a directory that can be read: the database is not opened, as its log is damaged.
#[test]
fn images_of_an_earlier_use_of_their_place_are_not_taken() {
    let (bytes, state) = some();
    let blocks: Vec<usize> =
        (8192..bytes.len() - HEADER).step_by(512).filter(|at| &bytes[*at..at + 4] == b"REDO").collect();
    let mut unopenable = bytes.clone();
    for at in blocks {
        let mut damaged = bytes.clone();
        damaged[at + HEADER] ^= 1;
        if open(&damaged, &read_only()).is_err() {
            unopenable = damaged;
        }
    }
    let log_only = check_salvaged(unopenable.clone(), &state, "log");
    let (mut seen, mut forged) = (log_only.lost.len(), 0);
    for at in images(&unopenable, 1) {
        let mut bytes = unopenable.clone();
        let segment = at - (at - 8192) % 4096;
        // The header in front does not tell any more, and the nonce is another one.
        bytes[segment..segment + HEADER].fill(0);
        bytes[at + 24] ^= 0xFF;
        let len = number(&bytes, at + 32);
        seal(&mut bytes, at, len);
        let result = check_salvaged(bytes, &state, &format!("image at {at}"));
        if result.lost.len() > log_only.lost.len() {
            forged += 1;
            assert!(result.lost.iter().any(|damage| damage.offset == at as u64), "{:?}", result.lost);
        }
        seen = seen.max(result.lost.len());
    }
    assert!(forged > 3, "{forged} images counted, {seen} were missing");
}

#[test]
fn records_of_an_unknown_kind_are_said_to_be_lost() {
    let (bytes, state) = some();
    let mut refused = 0;
    for at in (8192..bytes.len() - HEADER).step_by(512).filter(|at| &bytes[*at..at + 4] == b"REDO") {
        let mut bytes = bytes.clone();
        bytes[at + HEADER + 4] = 200;
        let len = number(&bytes, at + 40);
        seal(&mut bytes, at, len);
        if open(&bytes, &read_only()).is_err() {
            refused += 1;
            let to = open_on(SimStorage::new(), &tiny_config(), tiny(1024)).expect("healthy");
            let result = salvage(SimStorage::holding(bytes), &to, &tiny(1024)).expect("leaves are whole");
            assert!(!result.is_whole() && result.may_be_older, "{result:?}");
            assert!(contents(&to).len() + 1 >= state.len(), "one record is lost, and no other");
        }
    }
    assert!(refused > 3, "{refused} records counted");
}

/// One read after the other fails, in one salvage after the other.
#[test]
fn a_failed_read_costs_what_could_not_be_read() {
    for closed in [false, true] {
        let base = super::base(closed);
        for failing in 0.. {
            let medium = SimStorage::holding(base.bytes.clone());
            medium.fail(sled::testing::OpClass::Read, failing, true, std::io::ErrorKind::Other);
            let to = open_on(SimStorage::new(), &tiny_config(), tiny(1024)).expect("healthy");
            let result = salvage(medium.clone(), &to, &tiny(1024)).expect("one read fails");
            if medium.injected() == 0 {
                assert!(failing > 20 && result.is_whole());
                break;
            }
            let found = contents(&to);
            for (place, value) in &base.state {
                let said = result.may_be_older || result.lost.iter().any(|damage| covers(damage, place));
                assert!(found.get(place) == Some(value) || said, "read {failing}: {place:?}: {result:?}");
            }
            let missing = base.state.keys().filter(|place| !found.contains_key(*place)).count();
            assert!(missing < 25, "read {failing}: {missing} are lost: {:?}", result.lost);
        }
    }
}
