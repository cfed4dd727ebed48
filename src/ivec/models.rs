//! Models of shared memory, for the model checker: nobody writes or frees what somebody else still reads.

use super::buffer::{Chunk, Part};
use crate::base::sync::check;
use loom::thread::spawn;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Both outcomes of a model must be met: bits of those that were.
fn met(outcomes: &AtomicUsize, outcome: bool) {
    // Relaxed: of this test.
    outcomes.fetch_or(1 << usize::from(outcome), Ordering::Relaxed);
}

fn both(outcomes: &AtomicUsize) -> bool {
    // Relaxed: of this test.
    outcomes.load(Ordering::Relaxed) == 3
}

#[test]
fn a_chunk_is_filled_again_behind_all_who_read_its_parts() {
    static AGAIN: AtomicUsize = AtomicUsize::new(0);
    check(4, || {
        let mut chunk = Chunk::new(4);
        chunk.append(b"abc");
        let [first, second, third] = [0, 1, 2].map(|at| chunk.part(&(at..at + 1)));
        let other = spawn(move || {
            let copy = first.clone();
            drop(first);
            assert_eq!((&copy[..], &second[..]), (&b"a"[..], &b"b"[..]));
        });
        assert_eq!(third[..], b"c"[..]);
        drop(third);
        let again = chunk.clear();
        chunk.append(if again { b"wxyz" } else { b"d" });
        let part = chunk.part(&(0..1));
        assert_eq!(&part[..], if again { b"w" } else { b"a" });
        met(&AGAIN, again);
        other.join().expect("no panic");
        drop(part);
        assert!(chunk.clear(), "V4: nobody has a part");
    });
    assert!(both(&AGAIN));
}

#[test]
fn a_part_is_written_in_place_behind_all_who_read_it() {
    static IN_PLACE: AtomicUsize = AtomicUsize::new(0);
    check(4, || {
        let mut part = Part::joined(b"a", b"b");
        let copy = part.clone();
        let other = spawn(move || assert_eq!(copy[..], b"ab"[..]));
        let before = part.as_ptr();
        part.own()[1] = b'c';
        met(&IN_PLACE, part.as_ptr() == before);
        assert_eq!(part[..], b"ac"[..]);
        other.join().expect("no panic");
    });
    assert!(both(&IN_PLACE));
}

#[test]
fn memory_is_freed_once_behind_all_who_read_it() {
    check(4, || {
        let mut chunk = Chunk::new(2);
        chunk.append(b"ab");
        let parts = [chunk.part(&(0..1)), chunk.part(&(0..2)), chunk.part(&(1..2))];
        let threads =
            parts.map(|part| spawn(move || part.iter().map(|byte| usize::from(*byte)).sum::<usize>()));
        drop(chunk);
        let sums = threads.map(|thread| thread.join().expect("no panic"));
        assert_eq!(sums, [97, 97 + 98, 98]);
    });
}
