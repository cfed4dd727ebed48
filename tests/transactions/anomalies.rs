//! Threads race for the named anomalies, and for a glimpse of something half done.

use crate::common::{RaiseOnDrop, Random, Watchdog};
use crate::{add, beside_churn, dawdle, decode, done, encode, on_threads, soak, tiny_db};
use sled::testing::check_invariants;
use sled::transaction::{TransactionalTree, UnabortableTransactionError};
use sled::{Batch, Result, Transactional, Tree};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

type Looked<T> = std::result::Result<T, UnabortableTransactionError>;

#[test]
fn two_doctors_never_both_go_off_call() -> Result<()> {
    let dog = Watchdog::start("write skew", 30);
    let db = tiny_db(1, true)?;
    let other = db.open_tree("other")?;
    beside_churn(&db, &db, &[b"c", b"e"], || {
        for round in 0..1_500 * soak() {
            // In one leaf, or in two trees.
            let second: &Tree = if round % 2 == 0 { &db } else { &other };
            db.insert("doctor 0", "on")?;
            second.insert("doctor 1", "on")?;
            let left = on_threads(2, |doctor| {
                let mut random = Random::new(round << 1 | doctor as u64);
                let random = std::cell::RefCell::new(&mut random);
                done((&*db, second).transaction(|(a, b)| {
                    let both = a.get("doctor 0")?.unwrap_or_default() == "on"
                        && b.get("doctor 1")?.unwrap_or_default() == "on";
                    dawdle(&mut random.borrow_mut());
                    if both {
                        let own = if doctor == 0 { a } else { b };
                        own.insert(format!("doctor {doctor}").as_bytes(), "off")?;
                    }
                    Ok(both)
                }))
            })?;
            assert_eq!(left.iter().filter(|left| **left).count(), 1, "round {round}: one leaves");
            let on = [db.get("doctor 0")?, second.get("doctor 1")?];
            assert_eq!(on.iter().flatten().filter(|state| **state == "on").count(), 1, "round {round}");
            dog.kick();
        }
        Ok(())
    })
}

#[test]
fn no_increment_is_lost() -> Result<()> {
    const EACH: u64 = 1_500;
    let dog = Watchdog::start("lost updates", 30);
    let db = tiny_db(2, true)?;
    db.set_merge_operator(add);
    let per_thread = EACH * soak();
    let ways = 6;
    on_threads(ways, |way| {
        let mut random = Random::new(way as u64);
        let random = std::cell::RefCell::new(&mut random);
        for _ in 0..per_thread {
            let plus_one = |old: Option<&[u8]>| Some(encode(decode(old) + 1));
            match way {
                0 | 1 => done(db.transaction(|view| {
                    let old = decode(view.get("k")?);
                    dawdle(&mut random.borrow_mut());
                    view.insert("k", encode(old + 1))?;
                    Ok(())
                }))?,
                2 => done(db.transaction(|view| Ok(view.merge("k", encode(1))?)))?,
                3 => drop(db.update_and_fetch("k", plus_one)?),
                4 => drop(db.merge("k", encode(1))?),
                _ => loop {
                    let old = db.get("k")?;
                    let new = encode(decode(old.as_ref()) + 1);
                    if db.compare_and_swap("k", old, Some(new))?.is_ok() {
                        break;
                    }
                },
            }
            dog.kick();
        }
        Ok(())
    })?;
    assert_eq!(decode(db.get("k")?), per_thread * ways as u64);
    check_invariants(&db)
}

#[test]
fn the_money_in_all_accounts_stays_the_same() -> Result<()> {
    const ACCOUNTS: u64 = 40;
    const EACH: u64 = 100;
    let dog = Watchdog::start("transfers", 30);
    let db = tiny_db(3, true)?;
    let other = db.open_tree("other")?;
    let account = |n: u64| [b"m", &n.to_be_bytes()[..]].concat();
    let trees = [&*db, &other];
    for n in 0..ACCOUNTS {
        trees[n as usize % 2].insert(account(n), encode(EACH))?;
    }
    let wrong = AtomicU64::new(0);
    let (runs, commits) = (AtomicU64::new(0), AtomicU64::new(0));
    beside_churn(&db, &db, &[b"l", b"n"], || {
        on_threads(4, |thread| {
            let mut random = Random::new(thread as u64);
            for _ in 0..1_200 * soak() {
                let (from, to) = (random.below(ACCOUNTS), random.below(ACCOUNTS));
                let (amount, look) = (random.below(20), random.one_in(3));
                let backwards = random.one_in(2);
                let (first, second) = (account(from), account(to));
                let inner = std::cell::RefCell::new(random.clone());
                done(trees[..].transaction(|views| {
                    // Relaxed: statistic.
                    runs.fetch_add(1, Ordering::Relaxed);
                    if look {
                        let mut sum = 0;
                        for view in views {
                            sum += total(view, backwards)?;
                            dawdle(&mut inner.borrow_mut());
                        }
                        // Not an assertion: it has to hold in runs that are thrown away, too.
                        if sum != ACCOUNTS * EACH {
                            // Relaxed: read after the threads ended.
                            wrong.fetch_add(1, Ordering::Relaxed);
                        }
                    } else {
                        let (a, b) = (&views[from as usize % 2], &views[to as usize % 2]);
                        let there = decode(a.get(&first)?);
                        dawdle(&mut inner.borrow_mut());
                        if there >= amount {
                            a.insert(&first[..], encode(there - amount))?;
                            let old = decode(b.get(&second)?);
                            b.insert(&second[..], encode(old + amount))?;
                        }
                    }
                    Ok(())
                }))?;
                // Relaxed: statistic.
                commits.fetch_add(1, Ordering::Relaxed);
                dog.kick();
            }
            Ok(())
        })
    })?;
    println!("{} commits in {} runs", commits.into_inner(), runs.into_inner());
    assert_eq!(wrong.into_inner(), 0, "runs that saw a state that never was");
    let sum: u64 = done(trees[..].transaction(|views| {
        views.iter().map(|view| total(view, false)).sum::<Looked<u64>>().map_err(Into::into)
    }))?;
    assert_eq!(sum, ACCOUNTS * EACH);
    check_invariants(&db)
}

fn total(view: &TransactionalTree, backwards: bool) -> Looked<u64> {
    let all = view.scan_prefix("m");
    let value = |pair: Looked<(_, _)>| pair.map(|(_, value)| decode(Some(value)));
    if backwards { all.rev().map(value).sum() } else { all.map(value).sum() }
}

type Empty = fn(&TransactionalTree) -> Looked<bool>;

/// Ways to find that there is nothing from `m` to before `n`.
const EMPTY: [(&str, Empty); 7] = [
    ("scan_prefix", |t| Ok(t.scan_prefix("m").next().transpose()?.is_none())),
    ("scan_prefix backwards", |t| Ok(t.scan_prefix("m").next_back().transpose()?.is_none())),
    ("range", |t| Ok(t.range("m".."n").next().transpose()?.is_none())),
    ("range backwards", |t| Ok(t.range("m".."n").next_back().transpose()?.is_none())),
    ("get_gt", |t| Ok(t.get_gt("m")?.is_none_or(|(key, _)| !key.starts_with(b"m")))),
    ("get_lt", |t| Ok(t.get_lt("n")?.is_none_or(|(key, _)| !key.starts_with(b"m")))),
    ("get", |t| Ok(t.get("m0")?.is_none() && t.get("m1")?.is_none())),
];

#[test]
fn of_two_that_find_a_range_empty_one_inserts() -> Result<()> {
    let dog = Watchdog::start("phantoms in empty ranges", 30);
    let db = tiny_db(4, true)?;
    beside_churn(&db, &db, &[b"k", b"l", b"n", b"o"], || {
        for round in 0..2_100 * soak() {
            let (name, empty) = EMPTY[round as usize % EMPTY.len()];
            db.remove("m0")?;
            db.remove("m1")?;
            let inserted = on_threads(2, |thread| {
                let random = std::cell::RefCell::new(Random::new(round << 1 | thread as u64));
                done(db.transaction(|view| {
                    let empty = empty(view)?;
                    dawdle(&mut random.borrow_mut());
                    if empty {
                        view.insert(format!("m{thread}").as_bytes(), vec![7; round as usize % 60])?;
                    }
                    Ok(empty)
                }))
            })?;
            assert_eq!(inserted.iter().filter(|i| **i).count(), 1, "{name}, round {round}");
            assert_eq!(db.scan_prefix("m").count(), 1, "{name}, round {round}");
            dog.kick();
        }
        Ok(())
    })
}

#[test]
fn of_two_that_find_a_tree_empty_one_inserts() -> Result<()> {
    let dog = Watchdog::start("phantoms in empty trees", 30);
    let db = tiny_db(5, true)?;
    let ways: [(&str, Empty); 4] = [
        ("first", |t| Ok(t.first()?.is_none())),
        ("last", |t| Ok(t.last()?.is_none())),
        ("iter", |t| Ok(t.iter().next().transpose()?.is_none())),
        ("iter backwards", |t| Ok(t.iter().next_back().transpose()?.is_none())),
    ];
    let tree = db.open_tree("t")?;
    for round in 0..1_200 * soak() {
        let (name, empty) = ways[round as usize % ways.len()];
        let inserted = on_threads(2, |thread| {
            let random = std::cell::RefCell::new(Random::new(round << 1 | thread as u64));
            done(tree.transaction(|view| {
                let empty = empty(view)?;
                dawdle(&mut random.borrow_mut());
                if empty {
                    view.insert([thread as u8, round as u8], vec![7; round as usize % 60])?;
                }
                Ok(empty)
            }))
        })?;
        assert_eq!(inserted.iter().filter(|i| **i).count(), 1, "{name}, round {round}");
        assert_eq!(tree.len(), 1, "{name}, round {round}");
        tree.clear()?;
        dog.kick();
    }
    Ok(())
}

#[test]
fn of_two_that_find_two_left_one_stays() -> Result<()> {
    let dog = Watchdog::start("phantoms of removals", 30);
    let db = tiny_db(6, true)?;
    beside_churn(&db, &db, &[b"l", b"n"], || {
        for round in 0..1_000 * soak() {
            db.insert("m0", vec![0; round as usize % 90])?;
            db.insert("m1", "v")?;
            on_threads(2, |thread| {
                let random = std::cell::RefCell::new(Random::new(round << 1 | thread as u64));
                done(db.transaction(|view| {
                    let there = view.scan_prefix("m").count();
                    dawdle(&mut random.borrow_mut());
                    if there == 2 {
                        view.remove(format!("m{thread}").as_bytes())?;
                    }
                    Ok(())
                }))
            })?;
            assert_eq!(db.scan_prefix("m").count(), 1, "round {round}");
            dog.kick();
        }
        Ok(())
    })
}

/// Writers move `x` and `y` on together, by what `write` does with the next number; readers look at one, then
/// at the other, then at the first again.
fn never_half_visible(name: &'static str, way: Way) -> Result<()> {
    const MOVES: u64 = 3_000;
    let dog = Watchdog::start(name, 30);
    let db = tiny_db(7, true)?;
    let other = db.open_tree("other")?;
    // Far apart, with churn in between, in one tree or in two.
    let second: &Tree = if matches!(way, Way::Two) { &other } else { &db };
    let value = |n: u64| [&n.to_be_bytes()[..], &vec![0; n as usize % 50]].concat();
    db.insert("x", value(1))?;
    second.insert("y", value(1))?;
    let stop = AtomicBool::new(false);
    let looked = AtomicU64::new(0);
    beside_churn(&db, &db, &[b"w", b"xx", b"z"], || {
        on_threads(3, |thread| {
            let _raise = RaiseOnDrop(&stop);
            if thread == 0 {
                for n in 2..=MOVES * soak() {
                    match way {
                        Way::Batch => {
                            let mut batch = Batch::default();
                            // Neither order of the calls matters.
                            for key in if n % 2 == 0 { ["x", "y"] } else { ["y", "x"] } {
                                batch.insert(key, value(n));
                            }
                            db.apply_batch(batch)?;
                        }
                        Way::One => done(db.transaction(|view| {
                            view.insert("y", value(n))?;
                            view.insert("x", value(n))?;
                            Ok(())
                        }))?,
                        Way::Two => done((&*db, &other).transaction(|(a, b)| {
                            b.insert("y", value(n))?;
                            a.insert("x", value(n))?;
                            Ok(())
                        }))?,
                    }
                    dog.kick();
                }
                return Ok(());
            }
            let mut seen = 0;
            // Acquire: pairs with the Release in `RaiseOnDrop`.
            while !stop.load(Ordering::Acquire) {
                let (x, y) = ((&*db, "x"), (second, "y"));
                for (a, b) in [(x, y), (y, x)] {
                    let first = decode(a.0.get(a.1)?);
                    let then = decode(b.0.get(b.1)?);
                    let again = decode(a.0.get(a.1)?);
                    assert!(seen <= first, "{} went back: {first} after {seen}", a.1);
                    assert!(first <= then, "{} is still {then} although {} was {first}", b.1, a.1);
                    assert!(then <= again, "{} is still {again} although {} was {then}", a.1, b.1);
                    seen = again;
                }
                // Relaxed: statistic.
                looked.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })?;
        Ok(())
    })?;
    assert!(looked.into_inner() > 100, "hardly anybody looked");
    check_invariants(&db)
}

enum Way {
    Batch,
    One,
    Two,
}

#[test]
fn a_batch_is_visible_at_once() -> Result<()> {
    never_half_visible("visibility of batches", Way::Batch)
}

#[test]
fn a_transaction_is_visible_at_once() -> Result<()> {
    never_half_visible("visibility of transactions", Way::One)
}

#[test]
fn a_transaction_over_two_trees_is_visible_at_once() -> Result<()> {
    never_half_visible("visibility of transactions over two trees", Way::Two)
}

#[test]
fn transactions_on_a_hot_key_get_through() -> Result<()> {
    const EACH: u64 = 300;
    let dog = Watchdog::start("progress on a hot key", 10);
    let db = tiny_db(8, true)?;
    let stop = AtomicBool::new(false);
    let running = AtomicU64::new(4);
    on_threads(6, |thread| {
        if thread >= 4 {
            // Acquire: pairs with the Release in `RaiseOnDrop` and below.
            for n in 0.. {
                if stop.load(Ordering::Acquire) {
                    break;
                }
                db.insert("hot", encode(n << 1 | thread as u64 & 1))?;
            }
            return Ok(());
        }
        for _ in 0..EACH * soak() {
            done(db.transaction(|view| {
                let old = decode(view.get("hot")?);
                view.insert("hot", encode(old + 1))?;
                view.insert(format!("own {thread}").as_bytes(), encode(old))?;
                Ok(())
            }))?;
            dog.kick();
        }
        // AcqRel: the last one out stops the writers.
        if running.fetch_sub(1, Ordering::AcqRel) == 1 {
            stop.store(true, Ordering::Release);
        }
        Ok(())
    })?;
    check_invariants(&db)
}

#[test]
fn a_long_transaction_gets_through_beside_short_ones() -> Result<()> {
    let dog = Watchdog::start("progress of a long transaction", 15);
    let db = tiny_db(9, true)?;
    for n in 0..100_u64 {
        db.insert(n.to_be_bytes(), encode(0))?;
    }
    let stop = AtomicBool::new(false);
    on_threads(3, |thread| {
        let _raise = RaiseOnDrop(&stop);
        if thread == 0 {
            for round in 0..20 * soak() {
                done(db.transaction(|view| {
                    let sum: Looked<u64> = view.iter().map(|pair| Ok(decode(Some(pair?.1)))).sum();
                    view.insert("sum", encode(sum? + round))?;
                    view.remove("sum")?;
                    Ok(())
                }))?;
                dog.kick();
            }
            return Ok(());
        }
        let mut random = Random::new(thread as u64);
        // Acquire: pairs with the Release in `RaiseOnDrop`.
        while !stop.load(Ordering::Acquire) {
            let key = random.below(100).to_be_bytes();
            done(db.transaction(|view| {
                let old = decode(view.get(key)?);
                view.insert(key, encode(old + 1))?;
                Ok(())
            }))?;
        }
        Ok(())
    })?;
    Ok(())
}
