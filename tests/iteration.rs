//! Iterators and navigation: bounds, two ends that meet, the end of an iteration, and scans while others
//! write.
//!
//! # How it works
//!
//! Bounds are compared with a filtered `BTreeMap`, for every pair of bounds over an awkward set of keys.
//! Scans under churn run beside writers that fill and empty blocks of keys between permanent ones, with tiny
//! pages and little memory, until splits, node merges and evictions have happened: every permanent key must
//! be seen exactly once, in order, and nothing outside the bounds.

mod common;

use common::{Key, Pair, RaiseOnDrop, Random, Watchdog, tiny, tiny_config};
use sled::testing::{SimStorage, Tuning, check_invariants, counters, open_on};
use sled::{Db, Error, IVec, Iter, Result, Tree};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// A database with tiny pages that does everything in the foreground.
fn small_db() -> Result<Db> {
    open_on(SimStorage::new(), &tiny_config(), tiny(0, false))
}

/// Keys that are prefixes of each other, long, equal for 300 bytes, or end in 0xFF.
fn awkward_keys() -> Vec<Vec<u8>> {
    let mut keys: Vec<Key> = vec![Key::Empty, Key::Zeros(1), Key::Zeros(2), Key::Byte(1), Key::Byte(0xFE)];
    keys.extend([0, 1, 2, 255].map(Key::SharedPrefix));
    keys.extend([1, 2, 7, 300].map(Key::AllFf));
    keys.extend([(1, 3), (0xFE, 1), (0xFE, 2), (b'p', 1)].map(|(b, n)| Key::TrailingFf(b, n)));
    keys.extend([1, 2, 255, 256, 257, 512].map(Key::Short));
    keys.extend([(257, 0), (257, 1), (65_536, 0), (65_536, 7)].map(|(len, n)| Key::Long(len, n)));
    keys.into_iter().map(Key::bytes).collect()
}

fn insert_all(tree: &Tree, keys: Vec<Vec<u8>>) -> Result<Map> {
    let mut map = Map::new();
    for (i, key) in keys.into_iter().enumerate() {
        // Long enough that a leaf holds only a few.
        let value = vec![u8::try_from(i).expect("few keys"); 10 * i];
        tree.insert(&key, &value[..])?;
        map.insert(key, value);
    }
    Ok(map)
}

fn inside(key: &[u8], from: &Bound<Vec<u8>>, to: &Bound<Vec<u8>>) -> bool {
    let after = match from {
        Bound::Included(from) => key >= &from[..],
        Bound::Excluded(from) => key > &from[..],
        Bound::Unbounded => true,
    };
    let before = match to {
        Bound::Included(to) => key <= &to[..],
        Bound::Excluded(to) => key < &to[..],
        Bound::Unbounded => true,
    };
    after && before
}

/// Compares the pairs of an iterator, in its own order, with those expected.
fn assert_yields<'a>(
    iter: impl Iterator<Item = Result<Pair>>,
    expected: impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>,
    what: &dyn std::fmt::Debug,
) {
    let mut iter = iter;
    for (place, (key, value)) in expected.enumerate() {
        let got = iter.next().transpose().expect("no storage error");
        let same = got.as_ref().is_some_and(|(k, v)| k == key && v == value);
        assert!(same, "place {place} of {what:?}: not the pair expected");
    }
    assert!(iter.next().is_none(), "{what:?}: more than expected");
}

#[test]
fn every_pair_of_bounds_gives_what_a_filtered_map_gives() -> Result<()> {
    let dog = Watchdog::start("pairs of bounds", 30);
    let db = small_db()?;
    let map = insert_all(&db, awkward_keys())?;
    // Bounds at the keys, beside them, and where there is none.
    let probes: Vec<Vec<u8>> = awkward_keys().into_iter().chain([b"lz".to_vec(), vec![b'p'; 299]]).collect();
    let mut bounds = vec![Bound::Unbounded];
    for probe in probes {
        bounds.extend([Bound::Included(probe.clone()), Bound::Excluded(probe)]);
    }
    for (i, from) in bounds.iter().enumerate() {
        for (j, to) in bounds.iter().enumerate() {
            let expected: Vec<_> = map.iter().filter(|(key, _)| inside(key, from, to)).collect();
            let range = || db.range((from.clone(), to.clone()));
            assert_yields(range(), expected.iter().copied(), &("forwards", i, j));
            assert_yields(range().rev(), expected.iter().rev().copied(), &("backwards", i, j));
        }
        dog.kick();
    }
    Ok(())
}

#[test]
fn every_prefix_gives_the_keys_that_start_with_it() -> Result<()> {
    let _dog = Watchdog::start("prefixes", 30);
    let db = small_db()?;
    let map = insert_all(&db, awkward_keys())?;
    let mut prefixes = vec![vec![], vec![0xFF; 8], vec![0xFF; 400], vec![b'p', 0xFF], vec![b'l'; 65_535]];
    for key in map.keys() {
        prefixes.extend([key.clone(), key[..key.len() / 2].to_vec(), [key, &[0xFF][..]].concat()]);
    }
    for prefix in prefixes {
        let expected: Vec<_> = map.iter().filter(|(key, _)| key.starts_with(&prefix)).collect();
        assert_yields(db.scan_prefix(&prefix), expected.iter().copied(), &"forwards");
        assert_yields(db.scan_prefix(&prefix).rev(), expected.iter().rev().copied(), &"backwards");
    }
    Ok(())
}

#[test]
fn empty_and_inverted_ranges_yield_nothing_and_do_not_panic() -> Result<()> {
    let _dog = Watchdog::start("empty ranges", 30);
    let db = small_db()?;
    for key in ["", "a", "b", "c"] {
        db.insert(key, "v")?;
    }
    let key = |text: &str| text.as_bytes().to_vec();
    let ranges = [
        ("inverted", (Bound::Included(key("c")), Bound::Included(key("a")))),
        ("inverted, open", (Bound::Excluded(key("c")), Bound::Excluded(key("a")))),
        ("a..a", (Bound::Included(key("a")), Bound::Excluded(key("a")))),
        ("(a, a)", (Bound::Excluded(key("a")), Bound::Excluded(key("a")))),
        ("(a, a]", (Bound::Excluded(key("a")), Bound::Included(key("a")))),
        ("(a, b)", (Bound::Excluded(key("a")), Bound::Excluded(key("b")))),
        ("..[]", (Bound::Unbounded, Bound::Excluded(vec![]))),
    ];
    for (name, range) in ranges {
        assert!(db.range(range.clone()).next().is_none(), "{name} forwards");
        assert!(db.range(range.clone()).next_back().is_none(), "{name} backwards");
        assert!(db.range(range.clone()).last().is_none(), "the last of {name}");
        assert_eq!(db.range(range).count(), 0, "{name}");
    }
    let only_empty: Vec<IVec> = db.range::<&[u8], _>(..=&[][..]).keys().collect::<Result<_>>()?;
    assert_eq!(only_empty, [""]);
    Ok(())
}

#[test]
fn the_ends_meet_once_in_every_order_of_steps() -> Result<()> {
    let _dog = Watchdog::start("ends that meet", 30);
    let db = small_db()?;
    let mut map = Map::new();
    for n in 0..8_u8 {
        // One or two pairs fill a leaf.
        db.insert([n], vec![n; 150])?;
        map.insert(vec![n], vec![n; 150]);
    }
    let ranges = [
        (Bound::Unbounded, Bound::Unbounded),
        (Bound::Included(vec![2]), Bound::Included(vec![6])),
        (Bound::Excluded(vec![2]), Bound::Excluded(vec![6])),
        (Bound::Included(vec![3]), Bound::Included(vec![3])),
    ];
    for (from, to) in ranges {
        let expected: Vec<&Vec<u8>> = map.keys().filter(|key| inside(key, &from, &to)).collect();
        for turns in 0..1_u32 << (expected.len() + 2) {
            let mut iter = db.range((from.clone(), to.clone()));
            let (mut front, mut back) = (Vec::new(), Vec::new());
            for step in 0..expected.len() + 2 {
                if turns >> step & 1 == 0 {
                    front.extend(iter.next().transpose()?);
                } else {
                    back.extend(iter.next_back().transpose()?);
                }
            }
            let seen: Vec<IVec> =
                front.into_iter().chain(back.into_iter().rev()).map(|(key, _)| key).collect();
            assert_eq!(seen, expected, "steps {turns:b}");
        }
    }
    Ok(())
}

/// Neighbours share memory, which an iterator uses again when nothing of it is kept.
#[test]
fn what_is_kept_of_an_iteration_stays_as_it_was() -> Result<()> {
    let tree = small_db()?.open_tree("t")?;
    let mut random = Random::new(0x5CA9);
    let mut map = Map::new();
    for _ in 0..3_000 {
        // With and without a prefix in common; in place, shared, and alone.
        let key =
            [&b"some_long_prefix_of_many_keys"[..random.index(30)], &random.next().to_be_bytes()].concat();
        let longest = *random.pick(&[20, 200, 1_500]);
        let value = vec![random.next() as u8; random.index(longest)];
        tree.insert(&key, &value[..])?;
        map.insert(key, value);
    }
    for step in [2, 7, 50] {
        let (mut kept, mut iter) = (Vec::new(), tree.iter());
        let mut n = 0;
        while let Some(pair) = if n % 2 == 0 { iter.next() } else { iter.next_back() } {
            let pair = pair?;
            if n % step < 2 {
                kept.push(pair);
            }
            n += 1;
        }
        assert_eq!(n, map.len());
        for (key, value) in &kept {
            assert_eq!(map.get(&key[..]).map(|value| &value[..]), Some(&value[..]));
        }
    }
    assert!(tree.iter().keys().map(|key| key.map(|key| key.to_vec())).eq(map.keys().cloned().map(Ok)));
    assert!(
        tree.iter().values().rev().map(|v| v.map(|v| v.to_vec())).eq(map.values().rev().cloned().map(Ok))
    );
    assert_eq!(tree.iter().count(), map.len());
    let mut iter = tree.iter();
    assert_eq!(iter.nth(1_000).transpose()?.map(|pair| pair.0.to_vec()), map.keys().nth(1_000).cloned());
    assert_eq!(iter.next().transpose()?.map(|pair| pair.0.to_vec()), map.keys().nth(1_001).cloned());
    Ok(())
}

#[test]
fn keys_of_a_mebibyte_of_ff_are_scanned_backwards() -> Result<()> {
    let dog = Watchdog::start("huge keys backwards", 30);
    let config = tiny_config().cache_capacity(256 << 20);
    let db = open_on(SimStorage::new(), &config, Tuning { threads: true, ..Tuning::default() })?;
    let key = |n: u8| [&[0xFF; (1 << 20) + 1][..], &[n]].concat();
    for n in (0..40).rev() {
        db.insert(key(n), [n])?;
        dog.kick();
    }
    db.insert("small", "s")?;
    let mut backwards = db.iter().rev();
    for n in (0..40).rev() {
        let (found, value) = backwards.next().transpose()?.expect("40 huge keys");
        assert!(found == key(n) && value == [n], "huge key {n}");
        dog.kick();
    }
    assert_eq!(backwards.next().transpose()?, Some(("small".into(), "s".into())));
    assert!(backwards.next().is_none());
    assert!(db.last()?.is_some_and(|(last, _)| last == key(39)), "last");
    assert!(db.get_lt(key(39))?.is_some_and(|(lower, _)| lower == key(38)), "get_lt");
    assert!(db.pop_max()?.is_some_and(|(popped, _)| popped == key(39)), "pop_max");
    assert_eq!(db.scan_prefix([0xFF; 1 << 20]).rev().count(), 39);
    Ok(())
}

#[test]
fn an_unbounded_end_goes_on_when_keys_are_added_beyond_it() -> Result<()> {
    let db = small_db()?;
    db.insert("m", "")?;
    let mut forwards = db.iter().keys();
    assert_eq!(forwards.next(), Some(Ok("m".into())));
    assert_eq!(forwards.next(), None);
    assert_eq!(forwards.next(), None);
    db.insert("z", "")?;
    db.insert("a", "")?;
    assert_eq!(forwards.next(), Some(Ok("z".into())), "forwards");
    assert_eq!(forwards.next(), None);

    let mut backwards = db.range::<&str, _>(..="m").keys();
    assert_eq!(backwards.next_back(), Some(Ok("m".into())));
    assert_eq!(backwards.next_back(), Some(Ok("a".into())));
    assert_eq!(backwards.next_back(), None);
    db.insert("", "")?;
    assert_eq!(backwards.next_back(), Some(Ok("".into())), "backwards");
    Ok(())
}

#[test]
fn a_bounded_end_that_was_met_stays_the_end() -> Result<()> {
    let db = small_db()?;
    for key in ["a", "c", "k", "z"] {
        db.insert(key, "")?;
    }
    let mut forwards = db.range("b".."m").keys();
    assert_eq!(forwards.next(), Some(Ok("c".into())));
    assert_eq!(forwards.next(), Some(Ok("k".into())));
    assert_eq!(forwards.next(), None, "met z");
    let mut backwards = db.range("b".."m").keys();
    assert_eq!(backwards.next_back(), Some(Ok("k".into())));
    assert_eq!(backwards.next_back(), Some(Ok("c".into())));
    assert_eq!(backwards.next_back(), None, "met a");
    db.insert("l", "")?;
    db.insert("b", "")?;
    assert_eq!(forwards.next(), None);
    assert_eq!(backwards.next_back(), None);
    Ok(())
}

#[test]
fn an_iterator_over_a_dropped_tree_gives_one_error_and_ends() -> Result<()> {
    let dog = Watchdog::start("iterators of a dropped tree", 10);
    let db = small_db()?;
    let tree = db.open_tree("gone")?;
    for n in 0..500_u16 {
        tree.insert(n.to_be_bytes(), vec![0; 20])?;
    }
    let gone = Error::CollectionNotFound("gone".into());
    let (mut forwards, mut backwards) = (tree.iter(), tree.iter());
    for _ in 0..3 {
        forwards.next().transpose()?;
        backwards.next_back().transpose()?;
    }
    assert!(db.drop_tree("gone")?);
    // Those that had begun may finish the leaf they are in.
    for rest in [forwards.collect::<Vec<_>>(), backwards.rev().collect()] {
        let (last, before) = rest.split_last().expect("at least the error");
        assert_eq!(last, &Err(gone.clone()));
        assert!(before.len() <= 128 && before.iter().all(Result::is_ok), "{} steps before it", before.len());
    }
    assert_eq!(tree.iter().collect::<Vec<_>>(), [Err(gone.clone())]);
    assert_eq!(tree.iter().rev().collect::<Vec<_>>(), [Err(gone.clone())]);
    assert_eq!(tree.range("a".."b").keys().collect::<Vec<_>>(), [Err(gone.clone())]);
    assert_eq!(tree.scan_prefix("a").values().collect::<Vec<_>>(), [Err(gone.clone())]);
    assert_eq!(tree.iter().last(), Some(Err(gone.clone())));
    assert_eq!([tree.first().err(), tree.last().err()], [Some(gone.clone()), Some(gone.clone())]);
    assert_eq!([tree.get_lt("b").err(), tree.get_gt("b").err()], [Some(gone.clone()), Some(gone)]);
    dog.kick();
    // The count means nothing any more, but asking for it ends; so does printing.
    let _ = tree.len();
    let _ = format!("{tree:?}");
    assert!(!tree.is_empty(), "an error reads as not empty");
    Ok(())
}

#[test]
fn an_iterator_outlives_the_handles_and_keeps_the_database_open() -> Result<()> {
    let _dog = Watchdog::start("an iterator that outlives", 30);
    let medium = SimStorage::new();
    let db = open_on(medium.clone(), &tiny_config(), tiny(0, false))?;
    let tree = db.open_tree("t")?;
    for n in 0..300_u16 {
        tree.insert(n.to_be_bytes(), "v")?;
    }
    let mut iter = tree.iter();
    drop((db, tree));
    let keys: Vec<IVec> = iter.by_ref().map(|pair| Ok(pair?.0)).collect::<Result<_>>()?;
    assert_eq!(keys, (0..300_u16).map(|n| n.to_be_bytes().to_vec()).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn what_is_iterated_over_can_be_removed_on_the_way() -> Result<()> {
    let dog = Watchdog::start("removing while iterating", 10);
    for backwards in [false, true] {
        let db = small_db()?;
        for n in 0..1_000_u16 {
            db.insert(n.to_be_bytes(), vec![1; 30])?;
        }
        let mut iter = db.iter();
        let mut seen = 0;
        while let Some((key, _)) = (if backwards { iter.next_back() } else { iter.next() }).transpose()? {
            assert!(db.remove(&key)?.is_some(), "seen once");
            seen += 1;
            dog.kick();
        }
        assert_eq!((seen, db.len(), db.is_empty()), (1_000, 0, true));
        check_invariants(&db)?;
    }
    Ok(())
}

/// Numbers of the keys under churn; every `STRIDE`th is there all the time.
const UNIVERSE: u16 = 6_144;
const STRIDE: u16 = 48;
/// Bounds of the bounded scans. Both are in the middle of what the writers fill and empty.
const FROM: u16 = 2_000;
const TO: u16 = 3_500;
/// A prefix for the prefix scan: the numbers with this high byte.
const HIGH: u8 = 9;

/// Longer than one byte can count, so that it is on both sides of every separator.
fn churned(n: u16) -> Vec<u8> {
    [&[b'k'; 260][..], &n.to_be_bytes()].concat()
}

fn number(key: &[u8]) -> u16 {
    let (prefix, tail) = key.split_at(260);
    assert!(prefix.iter().all(|b| *b == b'k'), "an unknown key");
    u16::from_be_bytes(tail.try_into().expect("two more bytes"))
}

/// The value says which key it belongs to.
fn value_of(n: u16, random: &mut Random) -> Vec<u8> {
    [&n.to_be_bytes()[..], &vec![0; random.index(60)]].concat()
}

/// Fills and empties blocks of keys, one after the other, until the flag is up.
fn write_blocks(tree: &Tree, seed: u64, stop: &AtomicBool) -> Result<()> {
    let _raise = RaiseOnDrop(stop);
    let mut random = Random::new(seed);
    // Acquire: pairs with the Release in `RaiseOnDrop`.
    while !stop.load(Ordering::Acquire) {
        let anywhere = u16::try_from(random.below(u64::from(UNIVERSE))).expect("a number of the universe");
        let middle = *random.pick(&[FROM, TO, u16::from_be_bytes([HIGH, 0]), anywhere]);
        let from = middle.saturating_sub(150);
        let block = from..(from + 300).min(UNIVERSE);
        for n in block.clone().filter(|n| !n.is_multiple_of(STRIDE)) {
            tree.insert(churned(n), value_of(n, &mut random))?;
        }
        // The permanent ones change their values only.
        let permanent = from.next_multiple_of(STRIDE);
        tree.insert(churned(permanent), value_of(permanent, &mut random))?;
        for n in block.filter(|n| !n.is_multiple_of(STRIDE)) {
            tree.remove(churned(n))?;
        }
    }
    Ok(())
}

/// Checks a run of keys: ascending (or descending), inside `from..to`, values of their keys, and among them
/// every permanent number of `from..to` once.
fn check_scan(scan: impl Iterator<Item = Result<Pair>>, from: u16, to: u16, forwards: bool) -> Result<()> {
    let mut last = None;
    let mut permanent = Vec::new();
    for pair in scan {
        let (key, value) = pair?;
        let n = number(&key);
        assert!((from..to).contains(&n), "{n} is outside {from}..{to}");
        assert_eq!(&value[..2], n.to_be_bytes(), "a value of another key");
        let ordered = last.is_none_or(|last| if forwards { last < n } else { last > n });
        assert!(ordered, "{n} after {last:?}, forwards: {forwards}");
        last = Some(n);
        if n.is_multiple_of(STRIDE) {
            permanent.push(n);
        }
    }
    if !forwards {
        permanent.reverse();
    }
    let expected: Vec<u16> = (from..to).filter(|n| n.is_multiple_of(STRIDE)).collect();
    assert_eq!(permanent, expected, "permanent keys, forwards: {forwards}");
    Ok(())
}

/// Both ends of one iterator, moved at random; given as one run in ascending order.
fn from_both_ends(mut iter: Iter, random: &mut Random) -> Vec<Result<Pair>> {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    loop {
        let (run, step) =
            if random.one_in(2) { (&mut front, iter.next()) } else { (&mut back, iter.next_back()) };
        match step {
            Some(pair) => run.push(pair),
            None => break,
        }
    }
    back.reverse();
    front.append(&mut back);
    front
}

const KINDS: u64 = 9;

fn scan(tree: &Tree, kind: u64, random: &mut Random) -> Result<()> {
    let range = || tree.range(churned(FROM)..churned(TO));
    let low = u16::from_be_bytes([HIGH, 0]);
    match kind {
        0 => check_scan(tree.iter(), 0, UNIVERSE, true),
        1 => check_scan(tree.iter().rev(), 0, UNIVERSE, false),
        2 => check_scan(range(), FROM, TO, true),
        3 => check_scan(range().rev(), FROM, TO, false),
        4 => check_scan(tree.scan_prefix([&[b'k'; 260][..], &[HIGH]].concat()), low, low + 256, true),
        5 => check_scan(from_both_ends(tree.iter(), random).into_iter(), 0, UNIVERSE, true),
        6 => check_scan(from_both_ends(range(), random).into_iter(), FROM, TO, true),
        7 => {
            let mut at = churned(FROM - 1);
            let hops = std::iter::from_fn(|| {
                let pair = tree.get_gt(&at).transpose()?;
                if let Ok((key, _)) = &pair {
                    at = key.to_vec();
                }
                Some(pair)
            });
            check_scan(
                hops.take_while(|pair| !matches!(pair, Ok((key, _)) if number(key) >= TO)),
                FROM,
                TO,
                true,
            )
        }
        _ => {
            let mut at = churned(TO);
            let hops = std::iter::from_fn(|| {
                let pair = tree.get_lt(&at).transpose()?;
                if let Ok((key, _)) = &pair {
                    at = key.to_vec();
                }
                Some(pair)
            });
            check_scan(
                hops.take_while(|pair| !matches!(pair, Ok((key, _)) if number(key) < FROM)),
                FROM,
                TO,
                false,
            )
        }
    }
}

#[test]
fn scans_miss_and_repeat_nothing_while_others_write() -> Result<()> {
    const SCANS: u64 = 400;
    let dog = Watchdog::start("scans under churn", 30);
    let db = open_on(SimStorage::new(), &tiny_config(), tiny(3, true))?;
    let tree = db.open_tree("churn")?;
    let mut random = Random::new(1);
    for n in (0..UNIVERSE).step_by(usize::from(STRIDE)) {
        tree.insert(churned(n), value_of(n, &mut random))?;
    }
    let stop = AtomicBool::new(false);
    let scans = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let raise = RaiseOnDrop(&stop);
        let mut threads = Vec::new();
        for seed in 0..2 {
            let (tree, stop) = (&tree, &stop);
            threads.push(scope.spawn(move || write_blocks(tree, seed, stop)));
        }
        for reader in 0..2 {
            let (tree, stop, scans, dog) = (&tree, &stop, &scans, &dog);
            threads.push(scope.spawn(move || {
                let _raise = RaiseOnDrop(stop);
                let mut random = Random::new(reader);
                // Acquire: pairs with the Release in `RaiseOnDrop`.
                while !stop.load(Ordering::Acquire) {
                    // Relaxed: a counter.
                    let kind = scans.fetch_add(1, Ordering::Relaxed) % KINDS;
                    scan(tree, kind, &mut random)?;
                    dog.kick();
                }
                Ok(())
            }));
        }
        let missing = wait_for_rare_paths(&db, || scans.load(Ordering::Relaxed) >= SCANS, &stop);
        drop(raise);
        for thread in threads {
            thread.join().expect("no check failed")?;
        }
        assert!(missing.is_empty(), "paths that never ran beside the scans: {missing:?}");
        check_invariants(&db)
    })
}

/// Waits until enough was done and every path of the list ran, a minute at most; gives those that did not.
fn wait_for_rare_paths(db: &Db, enough: impl Fn() -> bool, stop: &AtomicBool) -> Vec<&'static str> {
    let start = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let c = counters(db);
        let paths = [
            ("consolidations", c.consolidations),
            ("leaf_splits", c.leaf_splits),
            ("inner_splits", c.inner_splits),
            ("node_merges", c.node_merges),
            ("evictions", c.evictions),
            ("page_outs", c.page_outs),
            ("faults", c.faults),
        ];
        let missing: Vec<_> =
            paths.into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect();
        // Acquire: pairs with the Release in `RaiseOnDrop`; another thread failed.
        let over = start.elapsed() > Duration::from_secs(60) || stop.load(Ordering::Acquire);
        if over || (missing.is_empty() && enough()) {
            return missing;
        }
    }
}
