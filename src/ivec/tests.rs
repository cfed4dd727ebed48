//! Runs of bytes of every form: what they say, what they share and what they keep in memory.

use super::*;
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind};

/// `len` bytes that differ from their neighbours.
fn bytes(len: usize) -> Vec<u8> {
    let period: Vec<u8> = (0..256).map(|i| (i * 7 + 1) as u8).collect();
    let mut bytes = period.repeat(len / period.len() + 1);
    bytes.truncate(len);
    bytes
}

/// Bytes of memory behind an `IVec`.
fn pinned(v: &IVec) -> usize {
    match v.form() {
        Form::InPlace(_) => 0,
        Form::Shared(part) => part.capacity(),
    }
}

/// Longer than anything that neighbours share.
const LONG: usize = 2 * MIXED;

/// `len` bytes in a chunk of their own.
fn chunk(len: usize) -> Chunk {
    let mut chunk = Chunk::new(len);
    chunk.append(&bytes(len));
    chunk
}

/// Lengths around every limit.
const LENGTHS: [usize; 11] = [0, 1, 15, 16, 22, 29, 30, 31, 32, 100, LONG];

#[test]
fn bytes_come_back_whatever_they_came_from() {
    for len in LENGTHS {
        let expected = bytes(len);
        let made = [
            IVec::from(expected.as_slice()),
            IVec::from(expected.clone()),
            IVec::from(expected.clone().into_boxed_slice()),
            IVec::from(Arc::<[u8]>::from(expected.clone())),
            IVec::from(&IVec::from(expected.as_slice())),
            expected.iter().copied().collect(),
            IVec::from(expected.as_slice()).clone(),
        ];
        for v in made {
            assert_eq!(&*v, expected.as_slice());
            assert_eq!(v.len(), len);
            assert_eq!(pinned(&v), if len <= INLINE { 0 } else { len });
        }
    }
    assert_eq!(IVec::default(), "");
    assert_eq!(IVec::from("abc"), IVec::from(String::from("abc")));
    assert_eq!(IVec::from(b"abc"), IVec::from(*b"abc"));
    assert_eq!(IVec::from([9; 32]), [9; 32]);
}

#[test]
fn every_part_is_the_same_part_of_the_slice() {
    for len in [0, 5, 30, 31, if cfg!(miri) { 34 } else { 100 }] {
        let (expected, v) = (bytes(len), IVec::from(bytes(len)));
        for at in 0..=len {
            for n in 0..=len - at {
                assert_eq!(v.subslice(at, n), expected[at..at + n]);
            }
        }
    }
    let (expected, v) = (bytes(LONG), IVec::from(bytes(LONG)));
    let part = v.subslice(8, LONG - 9);
    assert_eq!(part, expected[8..LONG - 1]);
    assert_eq!(part.subslice(1, LONG - 10), expected[9..LONG - 1]);
}

#[test]
fn parts_outside_are_refused() {
    for len in [10, 100] {
        let v = IVec::from(bytes(len));
        let outside = [(len + 1, 0), (0, len + 1), (len, 1), (1, len), (usize::MAX, 1), (1, usize::MAX)];
        for (at, n) in outside {
            assert!(catch_unwind(|| v.subslice(at, n)).is_err(), "{n} at {at} of {len}");
        }
    }
}

#[test]
fn large_parts_share_and_small_ones_let_go() {
    for whole in [1000, 2 * LONG] {
        let v = IVec::from(bytes(whole));
        let half = v.subslice(whole / 2, whole / 2);
        assert_eq!(pinned(&half), whole, "half shares");
        assert_eq!(half.as_ptr(), v[whole / 2..].as_ptr());
        assert_eq!(pinned(&v.subslice(3, whole / 4)), whole / 4, "a quarter is copied");
        assert_eq!(pinned(&v.subslice(3, INLINE)), 0, "a few bytes are in place");
        for n in 0..whole / 2 {
            assert!(pinned(&half.subslice(0, n)) <= 2 * n + SLACK, "V3");
            if cfg!(miri) && n == 200 {
                break;
            }
        }
    }
}

#[test]
fn writing_never_changes_a_clone() {
    for len in LENGTHS.into_iter().filter(|len| *len > 0) {
        let mut v = IVec::from(bytes(len));
        let (copy, last) = (v.clone(), len - 1);
        v[last] ^= 255;
        v.as_mut()[0] ^= 1;
        assert_eq!(copy, bytes(len));
        assert_ne!(v, copy);
        let alone = v.as_ptr();
        v[last] ^= 255;
        v[0] ^= 1;
        assert_eq!(v, copy);
        assert_eq!(v.as_ptr(), alone, "nobody shares it any more: written in place");
    }
}

#[test]
fn writing_to_a_part_copies_only_the_part() {
    for whole in [100, 2 * LONG] {
        let v = IVec::from(bytes(whole));
        let mut part = v.subslice(whole / 4, whole / 2);
        part[0] = 99;
        assert_eq!(pinned(&part), whole / 2);
        assert_eq!(part[0], 99);
        assert_eq!(part[1..], bytes(whole)[whole / 4 + 1..whole / 4 + whole / 2]);
        assert_eq!(v, bytes(whole));
        // A part that outlives the whole is written where it is, at its offset.
        let mut part = v.subslice(10, whole - 10);
        drop(v);
        let before = part.as_ptr();
        part[0] = 98;
        assert_eq!((part[0], part[1], part.as_ptr()), (98, bytes(whole)[11], before));
    }
}

#[test]
fn compares_and_hashes_as_a_slice() {
    let mut sorted: Vec<IVec> = [&b""[..], b"\0", b"\0\0", b"\xff", b"\xff\0"].map(IVec::from).into();
    assert!(sorted.is_sorted());
    sorted.reverse();
    assert!(!sorted.is_sorted());
    for len in [3, 40] {
        let v = IVec::from(bytes(len));
        let hashed: HashMap<IVec, u8> = [(v.clone(), 1)].into();
        assert_eq!(hashed.get(&bytes(len)[..]), Some(&1));
        let ordered: BTreeMap<IVec, u8> = [(v.clone(), 1)].into();
        assert_eq!(ordered.get(&bytes(len)[..]), Some(&1));
        let borrowed: HashMap<&IVec, u8> = [(&v, 1)].into();
        assert_eq!(borrowed.get(&bytes(len)[..]), Some(&1));
    }
    let x = IVec::from("x");
    assert!(x == b"x" && x == "x" && x == vec![b'x'] && x == b"x"[..] && &x == b"x" && x == x.clone());
    let (text, later) = (String::from("x"), IVec::from("z"));
    assert!([&x] == [b"x"] && x == *"x".as_bytes() && x == text && x < later);
}

#[test]
fn prints_as_a_slice() {
    for len in [0, 3, 40] {
        let (v, slice) = (IVec::from(bytes(len)), bytes(len));
        assert_eq!(format!("{v:?} {v:x?} {v:#?}"), format!("{slice:?} {slice:x?} {slice:#?}"));
    }
}

#[test]
fn goes_anywhere() {
    fn check<T: Send + Sync + Unpin + UnwindSafe + RefUnwindSafe + 'static>() {}
    check::<IVec>();
    let v = IVec::from(bytes(100));
    let threads: Vec<_> = (0..3)
        .map(|i| {
            let mut mine = v.subslice(i, 90);
            std::thread::spawn(move || {
                mine[0] = 0;
                mine.len()
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().expect("does not panic"), 90);
    }
    assert_eq!(v, bytes(100));
}

#[test]
fn parts_of_what_neighbours_share_are_the_same_bytes() {
    let fronts = [0, 7, 16, 1, 15, 30, 31].map(|len| IVec::from(bytes(len)));
    let fronts = if cfg!(miri) { &fronts[..3] } else { &fronts };
    let wholes: &[usize] =
        if cfg!(miri) { &[31, 62] } else { &[1, 29, 30, 31, 62, 100, MIXED, MIXED + 1, LONG] };
    for whole in wholes {
        let (expected, mut chunk) = (bytes(*whole), chunk(*whole));
        for len in [0, 1, 15, 29, 30, 31, 32, 1000, 2100, *whole].into_iter().filter(|len| len <= whole) {
            for start in [0, 2, 15, 16, 31, whole - len].into_iter().filter(|at| at + len <= *whole) {
                let range = start..start + len;
                let part = IVec::part(&mut chunk, range.clone());
                assert_eq!(part, expected[range.clone()]);
                let kept = pinned(&part);
                assert!(kept <= MIXED.max(2 * len + SLACK), "V3: {kept} for {len}");
                assert!(len > INLINE || kept == 0, "V1: short ones are in place");
                for front in fronts {
                    let both = [&front[..], &expected[range.clone()]].concat();
                    assert_eq!(IVec::prefixed(front, chunk.bytes(), range.clone()), both);
                    assert_eq!(IVec::joined(front, &expected[range.clone()]), both);
                }
            }
        }
    }
}

#[test]
fn pairs_are_made_at_once_when_the_key_is_short_and_the_value_long() {
    let expected = bytes(100);
    let fronts: &[usize] = if cfg!(miri) { &[0, 14] } else { &[0, 1, 5, 14, 15, 16, 30, 31] };
    for front_len in fronts.iter().copied() {
        let front = IVec::from(bytes(front_len));
        for key in [0..5, 1..1, 6..6, 6..36, 15..30, 16..31, 16..16, 20..50, 60..100, 90..100] {
            for value in [69..100, 70..100, 50..60, 0..100] {
                let mut chunk = chunk(100);
                assert!(
                    IVec::common_pair(&front, &mut chunk, &key, &value).is_none(),
                    "it has no shares yet"
                );
                let _ready = chunk.part(&(0..1));
                let made = IVec::common_pair(&front, &mut chunk, &key, &value);
                // There must be bytes in front of the key, and behind it, which are read with it.
                let has_room = key.start > front_len && 100 - key.start + front_len + 1 >= SIZE;
                let is_short = front_len < HALF && front_len + key.len() <= INLINE;
                assert_eq!(made.is_some(), has_room && is_short && value.len() > INLINE);
                if let Some((made_key, made_value)) = made {
                    assert_eq!(made_key, [&front, &expected[key.clone()]].concat());
                    assert_eq!(made_value, expected[value]);
                    assert_eq!((pinned(&made_key), pinned(&made_value)), (0, 100));
                }
            }
        }
    }
}

#[test]
fn parts_outside_of_what_was_filled_are_refused() {
    for range in [99..101, 60..101, 101..101, 50..200] {
        let refused = |take: fn(&mut Chunk, Range<usize>) -> IVec| {
            let mut chunk = Chunk::new(300);
            chunk.append(&bytes(100));
            let range = range.clone();
            catch_unwind(move || take(&mut chunk, range)).is_err()
        };
        assert!(refused(IVec::part));
        assert!(refused(|chunk, range| IVec::of_part(chunk.part(&range))));
        assert!(refused(|chunk, range| IVec::prefixed(&IVec::from("ab"), chunk.bytes(), range)));
    }
}

#[test]
fn writing_to_a_part_leaves_its_neighbours_alone() {
    let mut chunk = chunk(200);
    let (mut left, right) = (IVec::part(&mut chunk, 0..100), IVec::part(&mut chunk, 100..200));
    left[99] ^= 255;
    assert_eq!(right, bytes(200)[100..]);
    assert_eq!(pinned(&left), 100, "only the part was copied");
    assert!(!chunk.clear(), "the right one has it still");
    drop(right);
    assert!(chunk.clear(), "nobody has it any more");
}

#[test]
fn a_chunk_is_filled_again_only_when_all_its_parts_are_gone() {
    let mut chunk = Chunk::new(100);
    for round in 0..if cfg!(miri) { 2 } else { 5 } {
        // More than the shares that are taken at once.
        let parts = if cfg!(miri) { 1030 } else { 3000 };
        chunk.append(&bytes(50));
        let mut parts: Vec<IVec> = (0..parts).map(|_| IVec::part(&mut chunk, round..50)).collect();
        let copy = parts[7].clone();
        chunk.append(&bytes(50));
        let last = parts.pop();
        drop(parts);
        assert!(!chunk.clear(), "there are two still");
        drop(copy);
        assert!(!chunk.clear(), "there is one still");
        assert_eq!(last, Some(IVec::from(&bytes(50)[round..])));
        assert_eq!(chunk.bytes(), [bytes(50), bytes(50)].concat());
        drop(last);
        assert!(chunk.clear() && chunk.clear() && chunk.bytes().is_empty());
    }
}

#[test]
fn the_last_part_of_a_chunk_is_written_in_place() {
    let mut chunk = chunk(200);
    let (mut left, right) = (IVec::part(&mut chunk, 0..100), IVec::part(&mut chunk, 100..200));
    drop(chunk);
    let shared = left.as_ptr();
    left[0] ^= 255;
    assert_ne!(left.as_ptr(), shared, "the right one has it, too");
    let mut right = right;
    let alone = right.as_ptr();
    right[0] ^= 255;
    assert_eq!(right.as_ptr(), alone, "what the chunk had taken in advance was given back");
    assert_eq!(right[1..], bytes(200)[101..]);
}

#[test]
fn a_chunk_takes_no_more_than_it_has_room_for() {
    let mut chunk = chunk(100);
    assert!(catch_unwind(AssertUnwindSafe(|| chunk.append(b"x"))).is_err());
    assert_eq!(chunk.bytes(), bytes(100));
}
