//! One conflict at a time, for certain: the first run of a closure commits something else before it goes on.
//!
//! Whatever the closure had looked at is then no longer so, and it must run again and see that. Where it had
//! looked at nothing that changed, or only added to a value, it must not.

use crate::common::Watchdog;
use crate::{add, decode, done, encode, tiny_db};
use sled::testing::{checkpoint, maintain};
use sled::transaction::{
    ConflictableTransactionError, TransactionError, TransactionalTree, UnabortableTransactionError,
};
use sled::{Batch, Db, Result, Transactional, Tree};
use std::cell::Cell;

type Look = fn(&TransactionalTree) -> std::result::Result<u64, UnabortableTransactionError>;

/// Ways to find out how many keys there are from `m` to before `n`; of those, there is `m5` or nothing.
const LOOKS: [(&str, Look); 15] = [
    ("get", |t| Ok(t.get("m5")?.is_some().into())),
    ("contains_key", |t| Ok(t.contains_key("m5")?.into())),
    ("scan_prefix", |t| count(t.scan_prefix("m"))),
    ("scan_prefix backwards", |t| count(t.scan_prefix("m").rev())),
    ("range", |t| count(t.range("m".."n"))),
    ("range backwards", |t| count(t.range("m".."n").rev())),
    ("range of one", |t| count(t.range("m5"..="m5"))),
    ("open range", |t| Ok(count(t.range("m"..))? - count(t.range("n"..))?)),
    ("range up to", |t| Ok(count(t.range(.."n"))? - count(t.range(.."m"))?)),
    ("both ends of a range", |t| {
        let mut range = t.range("m".."n");
        let (front, back) = (range.next().transpose()?, range.next_back().transpose()?);
        Ok(u64::from(front.is_some()) + u64::from(back.is_some()))
    }),
    ("first of a range", |t| Ok(t.range("m".."n").next().transpose()?.is_some().into())),
    ("get_gt", |t| Ok(t.get_gt("m")?.is_some_and(|(key, _)| key[..] < b"n"[..]).into())),
    ("get_lt", |t| Ok(t.get_lt("n")?.is_some_and(|(key, _)| key[..] > b"m"[..]).into())),
    ("insert", |t| Ok(t.insert("m5", "mine")?.is_some().into())),
    ("remove", |t| Ok(t.remove("m5")?.is_some().into())),
];

fn count<T>(
    items: impl Iterator<Item = std::result::Result<T, UnabortableTransactionError>>,
) -> std::result::Result<u64, UnabortableTransactionError> {
    items.map(|item| item.map(|_| 1)).sum()
}

type Write = (&'static str, fn(&Tree, bool) -> Result<()>);

/// Ways to make `m5` appear, or go.
const WRITES: [Write; 4] = [
    ("insert or remove", |t, there| match there {
        true => t.insert("m5", "theirs").map(drop),
        false => t.remove("m5").map(drop),
    }),
    ("compare_and_swap", |t, there| {
        let (old, new) = if there { (None, Some("theirs")) } else { (Some("theirs"), None) };
        t.compare_and_swap("m5", old, new)?.expect("nobody else writes");
        Ok(())
    }),
    ("batch", |t, there| {
        let mut batch = Batch::default();
        if there {
            batch.insert("m5", "theirs")
        } else {
            batch.remove("m5")
        }
        t.apply_batch(batch)
    }),
    ("transaction", |t, there| {
        done(t.transaction(|t| {
            if there {
                t.insert("m5", "theirs")?
            } else {
                t.remove("m5")?
            };
            Ok(())
        }))
    }),
];

/// What is around `m`: nothing, or so much that the range has leaves of its own.
fn surroundings(tree: &Tree, keys: u32) -> Result<()> {
    for n in 0..keys {
        for letter in ["l", "n"] {
            tree.insert(format!("{letter}{n:04}"), vec![1; 40])?;
        }
    }
    // Emptied leaves in between.
    for n in 0..keys {
        tree.insert(format!("m{n:04}"), vec![1; 40])?;
    }
    for n in 0..keys {
        tree.remove(format!("m{n:04}"))?;
    }
    Ok(())
}

#[test]
fn whatever_was_looked_at_and_changed_runs_the_closure_again() -> Result<()> {
    let dog = Watchdog::start("certain conflicts", 10);
    for keys in [0, 1, 60] {
        let db = tiny_db(keys.into(), false)?;
        surroundings(&db, keys)?;
        for (look, run) in LOOKS {
            for (write, write_it) in WRITES {
                for appears in [true, false] {
                    let what = format!("{look}, {write}, {appears}, {keys} keys");
                    db.remove("m5")?;
                    if !appears {
                        db.insert("m5", "theirs")?;
                    }
                    let runs = Cell::new(0);
                    let found = done(db.transaction(|view| {
                        let before = run(view)?;
                        assert_eq!(before == 0, appears == (runs.get() == 0), "{what}");
                        runs.set(runs.get() + 1);
                        if runs.get() == 1 {
                            write_it(&db, appears)?;
                        }
                        view.insert("result", encode(before))?;
                        Ok(before)
                    }))?;
                    assert_eq!(runs.get(), 2, "{what}: runs");
                    assert_eq!(found, u64::from(appears), "{what}: what the last run found");
                    assert_eq!(decode(db.get("result")?), found, "{what}");
                    let left = db.get("m5")?;
                    let expected = match look {
                        "insert" => Some("mine"),
                        "remove" => None,
                        _ => appears.then_some("theirs"),
                    };
                    assert_eq!(left.as_deref(), expected.map(str::as_bytes), "{what}");
                    dog.kick();
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_ends_of_a_tree_are_looked_at_too() -> Result<()> {
    let dog = Watchdog::start("conflicts at the ends", 10);
    let looks: [(&str, Look); 5] = [
        ("first", |t| Ok(t.first()?.is_some().into())),
        ("last", |t| Ok(t.last()?.is_some().into())),
        ("iter", |t| count(t.iter())),
        ("iter backwards", |t| count(t.iter().rev())),
        ("empty prefix", |t| count(t.scan_prefix(""))),
    ];
    let db = tiny_db(0, false)?;
    let log = db.open_tree("log")?;
    for emptied in [0, 100_u32] {
        let tree = db.open_tree(format!("{emptied}"))?;
        for n in 0..emptied {
            tree.insert(n.to_be_bytes(), vec![1; 40])?;
        }
        tree.clear()?;
        for (look, run) in looks {
            for (write, write_it) in WRITES {
                let what = format!("{look}, {write}, {emptied} keys emptied");
                let runs = Cell::new(0);
                let found = done((&tree, &log).transaction(|(view, log)| {
                    let before = run(view)?;
                    runs.set(runs.get() + 1);
                    if runs.get() == 1 {
                        write_it(&tree, true)?;
                    }
                    log.insert("result", encode(before))?;
                    Ok(before)
                }))?;
                assert_eq!((runs.get(), found), (2, 1), "{what}");
                tree.remove("m5")?;
                dog.kick();
            }
        }
    }
    Ok(())
}

#[test]
fn a_value_that_changed_in_place_runs_the_closure_again() -> Result<()> {
    let db = tiny_db(0, false)?;
    let looks: [(&str, Look); 5] = [
        ("get", |t| Ok(decode(t.get("k")?))),
        ("insert", |t| Ok(decode(t.insert("k", encode(77))?))),
        ("range", |t| Ok(decode(t.range("k"..="k").next().transpose()?.map(|(_, value)| value)))),
        ("last", |t| Ok(decode(t.last()?.map(|(_, value)| value)))),
        ("merge, then get", |t| {
            t.merge("k", encode(0))?;
            Ok(decode(t.get("k")?))
        }),
    ];
    db.set_merge_operator(add);
    for (look, run) in looks {
        db.insert("k", encode(1))?;
        let runs = Cell::new(0);
        let found = done(db.transaction(|view| {
            let found = run(view)?;
            runs.set(runs.get() + 1);
            if runs.get() == 1 {
                db.insert("k", encode(2))?;
            }
            view.insert("a", encode(found))?;
            Ok(found)
        }))?;
        assert_eq!((runs.get(), found, decode(db.get("a")?)), (2, 2, 2), "{look}");
    }
    Ok(())
}

#[test]
fn merges_that_meet_do_not_run_a_closure_again() -> Result<()> {
    let db = tiny_db(0, false)?;
    let other = db.open_tree("other")?;
    db.set_merge_operator(add);
    let runs = Cell::new(0);
    for round in 1..=200_u64 {
        done((&*db, &other).transaction(|(view, other)| {
            runs.set(runs.get() + 1);
            view.merge("counter", encode(1))?;
            // Meanwhile everybody else does the same.
            done(db.transaction(|view| Ok(view.merge("counter", encode(10))?)))?;
            db.merge("counter", encode(100))?;
            view.merge("counter", encode(1_000))?;
            view.merge("absent", encode(1))?;
            other.insert("k", encode(round))?;
            Ok(())
        }))?;
        assert_eq!(runs.get(), round, "a merge looks at nothing");
        assert_eq!(decode(db.get("counter")?), round * 1_111);
        assert_eq!(decode(db.get("absent")?), round);
    }
    Ok(())
}

#[test]
fn a_merge_sees_what_was_written_before_the_commit() -> Result<()> {
    let db = tiny_db(0, false)?;
    db.set_merge_operator(add);
    db.insert("k", encode(1))?;
    done(db.transaction(|view| {
        view.merge("k", encode(5))?;
        db.remove("k")?;
        Ok(())
    }))?;
    assert_eq!(decode(db.get("k")?), 5, "merged into nothing");
    done(db.transaction(|view| {
        view.merge("k", encode(5))?;
        db.insert("k", encode(100))?;
        Ok(())
    }))?;
    assert_eq!(decode(db.get("k")?), 105);
    // Together with writes of the same transaction, the order of the calls counts.
    done(db.transaction(|view| {
        view.insert("k", encode(1))?;
        view.merge("k", encode(1))?;
        assert_eq!(decode(view.get("k")?), 2);
        view.remove("k")?;
        view.merge("k", encode(3))?;
        assert_eq!(decode(view.get("k")?), 3);
        view.merge("k", encode(4))?;
        Ok(())
    }))?;
    assert_eq!(decode(db.get("k")?), 7);
    Ok(())
}

/// One leaf, or many, in a known state, for `an_undisturbed_closure_runs_once`.
fn filled(seed: u64, threads: bool, keys: u64) -> Result<Db> {
    let db = tiny_db(seed, threads)?;
    for n in 0..keys {
        db.insert(n.to_be_bytes(), vec![1; 20])?;
    }
    Ok(db)
}

#[test]
fn an_undisturbed_closure_runs_once() -> Result<()> {
    let dog = Watchdog::start("undisturbed closures", 10);
    // Every number of writes to a page before it.
    for keys in 0..40 {
        for threads in [false, true] {
            let db = filled(keys, threads, keys)?;
            for commit in 0..30_u64 {
                let runs = Cell::new(0);
                done(db.transaction(|view| {
                    runs.set(runs.get() + 1);
                    assert_eq!(view.iter().count() as u64, keys + commit);
                    view.get(commit.to_be_bytes())?;
                    // Fills the page, until it is split by the commit itself.
                    view.insert((keys + commit).to_be_bytes(), vec![2; 90])?;
                    view.insert(0_u64.to_be_bytes(), encode(commit))?;
                    Ok(())
                }))?;
                assert_eq!(runs.get(), 1, "{keys} keys, threads {threads}, commit {commit}");
                dog.kick();
            }
        }
    }
    Ok(())
}

#[test]
fn a_commit_that_changes_many_pages_runs_its_closure_once() -> Result<()> {
    let dog = Watchdog::start("large commits", 10);
    let db = filled(1, false, 500)?;
    for round in 0..10_u8 {
        let runs = Cell::new(0);
        done(db.transaction(|view| {
            runs.set(runs.get() + 1);
            for n in 0..600_u64 {
                let key = (n * 7).to_be_bytes();
                if n % 5 == u64::from(round % 5) {
                    view.remove(key)?;
                } else {
                    view.insert(key, vec![round; 60])?;
                }
            }
            Ok(())
        }))?;
        assert_eq!(runs.get(), 1, "round {round}");
        dog.kick();
    }
    assert_eq!(db.iter().values().filter(|v| v.as_ref().is_ok_and(|v| **v == [9; 60])).count(), 480);
    Ok(())
}

#[test]
fn maintenance_in_between_does_not_disturb() -> Result<()> {
    let dog = Watchdog::start("maintenance inside closures", 10);
    let db = filled(2, false, 300)?;
    for round in 0..30_u64 {
        done(db.transaction(|view| {
            let there = view.iter().count() as u64;
            assert_eq!(there, 300 + round, "one state, before and after");
            maintain(&db)?;
            checkpoint(&db)?;
            assert_eq!(view.iter().rev().count() as u64, there);
            view.insert((1_000 + round).to_be_bytes(), vec![3; 50])?;
            Ok(())
        }))?;
        dog.kick();
    }
    Ok(())
}

#[test]
fn a_conflict_that_the_closure_reports_runs_it_again() -> Result<()> {
    let db = tiny_db(3, false)?;
    let runs = Cell::new(0);
    let answer = db.transaction::<_, _, ()>(|view| {
        runs.set(runs.get() + 1);
        assert_eq!(view.insert("k", encode(runs.get()))?, None, "what the run before wrote is gone");
        if runs.get() < 5 { Err(ConflictableTransactionError::Conflict) } else { Ok(runs.get()) }
    });
    assert_eq!(answer, Ok(5));
    assert_eq!(decode(db.get("k")?), 5);
    Ok(())
}

#[test]
fn an_attempt_that_cannot_commit_sees_one_state_to_its_end() -> Result<()> {
    let db = tiny_db(4, false)?;
    let other = db.open_tree("other")?;
    for n in 0..200_u64 {
        db.insert(n.to_be_bytes(), encode(0))?;
        other.insert(n.to_be_bytes(), encode(0))?;
    }
    let runs = Cell::new(0_u64);
    // Each change by somebody else touches all keys, so a run sees none of it, or learns of it by an error.
    let answer = (&*db, &other).transaction(|(view, other_view)| {
        runs.set(runs.get() + 1);
        let first = decode(view.get(0_u64.to_be_bytes())?);
        if runs.get() <= 3 {
            done((&*db, &other).transaction(|(a, b)| {
                for n in 0..200_u64 {
                    a.insert(n.to_be_bytes(), encode(first + 1))?;
                    b.insert(n.to_be_bytes(), encode(first + 1))?;
                }
                Ok(())
            }))?;
        }
        for tree in [view, other_view] {
            for pair in tree.iter() {
                assert_eq!(decode(Some(pair?.1)), first, "run {}: a state that never was", runs.get());
            }
            assert_eq!(decode(tree.get(199_u64.to_be_bytes())?), first);
        }
        view.insert(0_u64.to_be_bytes(), encode(first + 1))?;
        Ok(first)
    });
    match answer {
        Ok(first) => assert_eq!((first, runs.get()), (3, 4)),
        Err(TransactionError::Storage(error)) => return Err(error),
        Err(TransactionError::Abort(())) => panic!("nobody aborted"),
    }
    Ok(())
}
