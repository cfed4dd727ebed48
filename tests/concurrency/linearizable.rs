//! Histories of a few keys, recorded while the pages around them change shape, and checked.

use crate::checker::{Action, Answer, Event, append, linearizable, overlaps, toggle};
use crate::common::{RaiseOnDrop, Random, Watchdog};
use crate::{busy_db, on_threads};
use sled::testing::{check_invariants, counters};
use sled::{Db, IVec, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Histories of the normal run, one per key and round.
const HISTORIES: usize = 3_000;

/// The keys that histories are about; the neighbour writes between them.
fn hot(key: usize) -> [u8; 2] {
    [b'm', u8::try_from(key).expect("few keys")]
}

/// Fills and empties the space before, between and after the hot keys, until the flag is up.
fn churn(db: &Db, stop: &AtomicBool) -> Result<()> {
    let _raise = RaiseOnDrop(stop);
    let mut random = Random::new(0);
    // Acquire: pairs with the Release in `RaiseOnDrop`.
    while !stop.load(Ordering::Acquire) {
        let place = u8::try_from(random.below(4)).expect("small");
        let key = |n: u16| [&[b'm', place][..], &n.to_be_bytes()].concat();
        let (count, len) = (u16::try_from(random.below(600)).expect("small"), random.index(150));
        for n in 0..count {
            db.insert(key(n), vec![1; len])?;
        }
        for n in 0..count {
            db.remove(key(n))?;
        }
    }
    Ok(())
}

fn action(random: &mut Random, fresh: Vec<u8>, last: Option<&IVec>) -> Action {
    let guess = last.map(|value| value.to_vec());
    match random.below(12) {
        0..=2 => Action::Get,
        3 => Action::Contains,
        4..=5 => Action::Insert(fresh),
        6 => Action::Remove,
        7 => Action::Cas(guess, None),
        8 => Action::Cas(guess, Some(fresh)),
        9 => Action::Merge(fresh),
        10 => Action::UpdateAndFetch(fresh),
        _ => Action::FetchAndUpdate(fresh),
    }
}

/// Does it; the value that was seen last is kept for the next compare-and-swap.
fn perform(db: &Db, key: [u8; 2], action: &Action, last: &mut Option<IVec>) -> Result<Answer> {
    let value = match action {
        Action::Contains => return db.contains_key(key).map(Answer::There),
        Action::Cas(expected, new) => {
            return Ok(match db.compare_and_swap(key, expected.as_deref(), new.as_deref())? {
                Ok(()) => {
                    *last = new.as_deref().map(IVec::from);
                    Answer::Swapped
                }
                Err(rejected) => {
                    last.clone_from(&rejected.current);
                    Answer::NotSwapped(rejected.current.map(|value| value.to_vec()))
                }
            });
        }
        Action::Get => db.get(key)?,
        Action::Insert(value) => db.insert(key, &value[..])?,
        Action::Remove => db.remove(key)?,
        Action::Merge(operand) => db.merge(key, operand)?,
        // Another thread gets a chance between reading the old value and writing the new one.
        Action::UpdateAndFetch(operand) => db.update_and_fetch(key, |old| {
            std::thread::yield_now();
            Some(append(old, operand))
        })?,
        Action::FetchAndUpdate(value) => db.fetch_and_update(key, |old| {
            std::thread::yield_now();
            toggle(old, value)
        })?,
    };
    last.clone_from(&value);
    Ok(Answer::Value(value.map(|value| value.to_vec())))
}

/// The events of one thread, each with the number of its key.
fn record(
    db: &Db,
    clock: &AtomicU64,
    round: usize,
    thread: usize,
    keys: usize,
) -> Result<Vec<(usize, Event)>> {
    let mut random = Random::new((round * 8 + thread) as u64);
    let mut last: [Option<IVec>; 3] = [const { None }; 3];
    let mut events = Vec::new();
    for n in 0..8 + round % 5 {
        let key = random.index(keys);
        // No two operations write the same bytes; some values nearly fill a leaf.
        let tag = u32::try_from((round * 8 + thread) * 16 + n).expect("not that many");
        let fresh = [&tag.to_be_bytes()[..], &vec![0; random.index(5) * 20]].concat();
        let action = action(&mut random, fresh, last[key].as_ref());
        // SeqCst: the order of these steps, over all threads, is what the checker goes by.
        let begin = clock.fetch_add(1, Ordering::SeqCst);
        let answer = perform(db, hot(key), &action, &mut last[key])?;
        // SeqCst: as above.
        let end = clock.fetch_add(1, Ordering::SeqCst);
        events.push((key, Event { begin, end, thread, action, answer }));
        if random.one_in(3) {
            std::thread::yield_now();
        }
    }
    Ok(events)
}

/// One round: a history for each key. Gives the number of overlapping pairs of operations.
fn round(db: &Db, round: usize) -> Result<usize> {
    let keys = 1 + round % 3;
    let clock = AtomicU64::new(0);
    let read = |key: usize| Ok(db.get(hot(key))?.map(|value| value.to_vec()));
    let starts = (0..keys).map(read).collect::<Result<Vec<_>>>()?;
    let events = on_threads(3 + round % 2, |thread| record(db, &clock, round, thread, keys))?.concat();
    let mut overlapping = 0;
    for (key, start) in starts.iter().enumerate() {
        let mut history: Vec<Event> =
            events.iter().filter(|(k, _)| *k == key).map(|(_, e)| e.clone()).collect();
        overlapping += overlaps(&history);
        // SeqCst: as above.
        let now = clock.fetch_add(2, Ordering::SeqCst);
        let (action, answer) = (Action::Get, Answer::Value(read(key)?));
        history.push(Event { begin: now, end: now + 1, thread: usize::MAX, action, answer });
        if !linearizable(start, &history) {
            history.sort_by_key(|event| event.begin);
            let lines: Vec<String> = history.iter().map(|event| format!("{event:?}\n")).collect();
            panic!("round {round}, key {key}, not linearizable from {start:?}:\n{}", lines.concat());
        }
    }
    Ok(overlapping)
}

#[test]
fn histories_of_single_keys_are_linearizable() -> Result<()> {
    let dog = Watchdog::start("linearizability", 30);
    let db = busy_db(0)?;
    db.set_merge_operator(|_: &[u8], old: Option<&[u8]>, operand: &[u8]| {
        std::thread::yield_now();
        Some(append(old, operand))
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let raise = RaiseOnDrop(&stop);
        let neighbour = scope.spawn(|| churn(&db, &stop));
        let (mut histories, mut overlapping) = (0, 0);
        let start = Instant::now();
        for n in 0.. {
            overlapping += round(&db, n)?;
            histories += 1 + n % 3;
            dog.kick();
            let enough = histories >= HISTORIES && rare_paths_left(&db).is_empty();
            if enough || start.elapsed() > Duration::from_secs(240) {
                break;
            }
        }
        drop(raise);
        neighbour.join().expect("does not panic")?;
        println!("{histories} histories, {overlapping} pairs of operations overlap: {:?}", counters(&db));
        assert!(histories >= HISTORIES, "only {histories} histories");
        assert!(overlapping > histories, "only {overlapping} pairs of operations ran at the same time");
        assert_eq!(rare_paths_left(&db), [""; 0], "paths that never ran beside the histories");
        check_invariants(&db)
    })
}

fn rare_paths_left(db: &Db) -> Vec<&'static str> {
    let c = counters(db);
    let paths = [
        ("consolidations", c.consolidations),
        ("leaf_splits", c.leaf_splits),
        ("inner_splits", c.inner_splits),
        ("node_merges", c.node_merges),
        ("evictions", c.evictions),
        ("page_outs", c.page_outs),
        ("faults", c.faults),
        ("checkpoints", c.checkpoints),
        ("aborted_reservations", c.aborted_reservations),
    ];
    paths.into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect()
}
