//! What is taken is what was copied, in both directions, for keys and values of any length, and stays so whatever is
//! copied next.

use super::*;
use crate::tree::leaf::{LeafBuilder, MAX_INLINE, fingerprint};

type Record = (Vec<u8>, Vec<u8>);

/// Records whose keys share `prefix` bytes, with values around every limit.
fn records(prefix: usize, suffix: usize, salt: u8) -> Vec<Record> {
    let lengths =
        [0, 3, 30, 31, 150, 0, 150, 150, 150, LONG - 60, LONG, LONG + 1, 7, MIXED, 150, MAX_INLINE, 31];
    let record = |(i, len): (usize, &usize)| {
        let mut key = vec![b'p'; prefix];
        key.push(u8::try_from(i).expect("few"));
        key.resize(prefix + suffix, salt);
        (key, vec![salt.wrapping_add(u8::try_from(i).expect("few")); *len])
    };
    lengths.iter().enumerate().map(record).collect()
}

fn image(records: &[Record], prefix: usize) -> Vec<u8> {
    let (low, mut high) = (vec![b'p'; prefix], vec![b'p'; prefix]);
    high.push(0xFF);
    let mut builder = LeafBuilder::new(&low, Some(&high), records.len(), 0);
    for (key, value) in records {
        builder.push(&[], key, fingerprint(key) as u8, Value::Inline(value));
    }
    builder.finish()
}

/// Copies all records, some of them as if they were deltas.
fn copy(copied: &mut Copied, records: &[Record], prefix: usize, backwards: bool, deltas: usize) {
    let image = image(records, prefix);
    let leaf = Leaf::new(&image);
    assert_eq!(leaf.prefix().len(), prefix);
    copied.clear();
    copied.begin(leaf, records[0].0.len(), records.len());
    let mut pieces: Vec<usize> = (0..records.len()).step_by(deltas).collect();
    if backwards {
        pieces.reverse();
    }
    for delta in pieces {
        let run = delta + 1..records.len().min(delta + deltas);
        let (key, value) = &records[delta];
        if backwards {
            copied.add_run(leaf, run, true);
            copied.add(key, Value::Inline(value));
        } else {
            copied.add(key, Value::Inline(value));
            copied.add_run(leaf, run, false);
        }
    }
}

fn joined(parts: Option<Parts<'_>>) -> Option<Vec<u8>> {
    parts.map(|parts| parts.concat())
}

#[test]
fn what_is_taken_is_what_was_copied() {
    let lengths = [(3, 24), (20, 11), (0, 1), (0, 24), (3, 1), (15, 9), (16, 9), (20, 10), (0, 40), (40, 5)];
    for (prefix, suffix) in lengths.into_iter().take(if cfg!(miri) { 1 } else { usize::MAX }) {
        for backwards in [false, true] {
            // Kept from one step to the next, so that chunks are used again, or not because something is kept.
            let (mut copied, mut kept) = (Copied::default(), Vec::new());
            for (salt, deltas) in (1..).zip([1, 2, 3, 5, 100, 3]) {
                let mut records = records(prefix, suffix, salt);
                copy(&mut copied, &records, prefix, backwards, deltas);
                if backwards {
                    records.reverse();
                }
                assert_eq!(copied.len(), records.len());
                assert_eq!(joined(copied.last_key()), records.last().map(|last| last.0.clone()));
                assert_eq!(joined(copied.taken_key()), None);
                for (i, (key, value)) in records.iter().enumerate() {
                    assert_eq!(joined(copied.next_key()).as_ref(), Some(key));
                    match i % 4 {
                        0 => assert_eq!(copied.pair(), Some((key[..].into(), value[..].into()))),
                        1 => assert_eq!(copied.key(), Some(key[..].into())),
                        2 => kept.push((copied.value(), value.clone())),
                        _ => match copied.common_pair() {
                            Some(pair) => assert_eq!(pair, (key[..].into(), value[..].into())),
                            None => assert_eq!(copied.skip(), Some(())),
                        },
                    }
                    assert_eq!(joined(copied.taken_key()).as_ref(), Some(key));
                }
                assert!(copied.is_empty() && copied.pair().is_none() && copied.common_pair().is_none());
                if salt % 2 == 0 {
                    kept.clear();
                }
                for (found, value) in &kept {
                    assert_eq!(
                        found.as_ref().map(|found| &found[..]),
                        Some(&value[..]),
                        "kept while others are copied"
                    );
                }
            }
        }
    }
}

#[test]
fn a_big_value_comes_last_and_is_given_away() {
    let records = records(2, 4, 9);
    let mut copied = Copied::default();
    copy(&mut copied, &records, 2, false, 4);
    copied.add_big(b"pz", IVec::from(vec![7; 100_000]));
    assert!(copied.ends_early());
    for _ in &records {
        copied.skip().expect("a record");
    }
    assert_eq!(joined(copied.next_key()), Some(b"pz".to_vec()));
    let (key, value) = copied.pair().expect("the big value");
    assert_eq!((&key[..], value.len()), (&b"pz"[..], 100_000));
    assert_eq!(
        (joined(copied.taken_key()), joined(copied.last_key())),
        (Some(b"pz".to_vec()), Some(b"pz".to_vec()))
    );
    assert!(copied.is_empty() && copied.pair().is_none());
}

#[test]
fn chunks_are_used_again_when_nothing_of_them_is_kept() {
    let records: Vec<Record> = (0..40_u8).map(|i| (vec![b'p', i], vec![i; 100])).collect();
    let mut copied = Copied::default();
    let addresses =
        |copied: &Copied| copied.chunks.iter().map(|chunk| chunk.bytes().as_ptr()).collect::<Vec<_>>();
    copy(&mut copied, &records, 1, false, 100);
    let before = addresses(&copied);
    assert!(before.len() > 1, "the limit of a chunk was met");
    let first = copied.pair();
    copy(&mut copied, &records, 1, false, 100);
    let after = addresses(&copied);
    assert_ne!(before[0], after[0], "that of what is kept is left alone");
    assert_eq!(before[1..], after[1..]);
    assert_eq!(first, Some((records[0].0[..].into(), records[0].1[..].into())));
}

#[test]
fn the_next_iteration_of_the_thread_gets_a_chunk_of_which_nothing_is_kept() {
    let records: Vec<Record> = (0..40_u8).map(|i| (vec![b'p', i], vec![i; 100])).collect();
    let run = |keep: bool| {
        let mut copied = Copied::default();
        copy(&mut copied, &records, 1, false, 100);
        let first = copied.chunks[0].bytes().as_ptr();
        (first, copied.value().filter(|_| keep))
    };
    let (first, _) = run(false);
    let (second, kept) = run(true);
    assert_eq!(first, second);
    let (third, _) = run(false);
    assert_ne!(second, third, "that of what is kept is left alone");
    assert_eq!(kept, Some(records[0].1[..].into()));
    // One chunk is left, and none of a single long record.
    assert_eq!(SPARE.take().len(), 1);
    let long = [(b"pa".to_vec(), vec![1; MIXED])];
    copy(&mut Copied::default(), &long, 1, false, 1);
    assert_eq!(SPARE.take().len(), 0);
}
