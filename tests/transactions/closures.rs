//! What a closure sees and may do, and that nothing is left of one that fails.

use crate::common::Watchdog;
use crate::{add, contents, decode, done, encode, tiny_db};
use sled::testing::check_invariants;
use sled::transaction::{
    ConflictableTransactionError, TransactionError, TransactionResult, TransactionalTree, abort,
};
use sled::{Batch, Db, Error, Event, IVec, Result, Subscriber, Transactional, Tree};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

fn keys<T: AsRef<[u8]>>(keys: &[T]) -> Vec<IVec> {
    keys.iter().map(|key| IVec::from(key.as_ref())).collect()
}

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Events that have arrived.
fn arrived(subscriber: &mut Subscriber) -> Vec<Event> {
    std::iter::from_fn(|| subscriber.next_timeout(Duration::ZERO).ok()).collect()
}

/// The database is as it was, says so to the subscriber, and goes on working.
fn nothing_happened(db: &Db, before: &[(Tree, Map)]) -> Result<()> {
    for (tree, expected) in before {
        assert_eq!(contents(tree)?, *expected);
        let mut subscriber = tree.watch_prefix("");
        tree.insert("still", "works")?;
        done(tree.transaction(|view| {
            view.remove("still")?;
            Ok(())
        }))?;
        assert_eq!(arrived(&mut subscriber).len(), 2, "events of what came afterwards only");
    }
    check_invariants(db)
}

#[test]
fn own_writes_are_visible_everywhere() -> Result<()> {
    let db = tiny_db(0, false)?;
    db.set_merge_operator(add);
    for key in ["b", "d", "f", "h"] {
        db.insert(key, encode(1))?;
    }
    done(db.transaction(|t| {
        assert_eq!(t.insert("a", encode(2))?, None);
        assert_eq!(t.insert("d", encode(3))?, Some(encode(1)), "the value before");
        assert_eq!(t.remove("f")?, Some(encode(1)));
        assert_eq!(t.remove("f")?, None, "removed just now");
        assert_eq!(t.remove("nothing")?, None);
        t.merge("h", encode(4))?;
        t.merge("i", encode(5))?;
        assert_eq!(t.insert("z", encode(6))?, None);
        assert_eq!(t.remove("z")?, Some(encode(6)));
        assert_eq!(t.get("a")?, Some(encode(2)));
        assert_eq!(t.get("f")?, None);
        assert_eq!((t.contains_key("a")?, t.contains_key("f")?, t.contains_key("i")?), (true, false, true));
        let expected = [("a", 2), ("b", 1), ("d", 3), ("h", 5), ("i", 5)];
        let all = |pairs: Vec<(IVec, IVec)>| -> Vec<(IVec, u64)> {
            pairs.into_iter().map(|(key, value)| (key, decode(Some(value)))).collect()
        };
        let mut expected: Vec<(IVec, u64)> = expected.map(|(key, n)| (IVec::from(key), n)).to_vec();
        assert_eq!(all(t.iter().collect::<std::result::Result<_, _>>()?), expected);
        assert_eq!(all(t.range("b".."h").collect::<std::result::Result<_, _>>()?), expected[1..3]);
        assert_eq!(all(t.scan_prefix("f").collect::<std::result::Result<_, _>>()?), []);
        expected.reverse();
        assert_eq!(all(t.iter().rev().collect::<std::result::Result<_, _>>()?), expected);
        let key = |pair: Option<(IVec, IVec)>| pair.map(|(key, _)| key);
        assert_eq!(key(t.first()?), Some("a".into()));
        assert_eq!(key(t.last()?), Some("i".into()));
        assert_eq!(key(t.get_lt("h")?), Some("d".into()), "not the removed one");
        assert_eq!(key(t.get_gt("d")?), Some("h".into()), "not the removed one");
        assert_eq!(key(t.get_gt("h")?), Some("i".into()));
        assert_eq!(key(t.get_lt("b")?), Some("a".into()));
        assert_eq!((key(t.get_lt("a")?), key(t.get_gt("i")?)), (None, None));
        // From both ends at once.
        let mut both = t.iter();
        let front = [both.next(), both.next()].map(|pair| pair.expect("there").expect("no conflict").0);
        let back: std::result::Result<Vec<_>, _> =
            both.by_ref().rev().map(|pair| pair.map(|(k, _)| k)).collect();
        assert_eq!((&front[..], back?), (&keys(&["a", "b"])[..], keys(&["i", "h", "d"])));
        assert!(both.next().is_none() && both.next_back().is_none());
        // All of it seen by nobody else.
        assert_eq!(db.iter().keys().collect::<Result<Vec<_>>>()?, keys(&["b", "d", "f", "h"]));
        let mut batch = Batch::default();
        batch.remove("a");
        batch.insert("b", encode(9));
        t.apply_batch(&batch)?;
        assert_eq!((t.get("a")?, t.get("b")?), (None, Some(encode(9))));
        for key in ["b", "d", "h", "i"] {
            t.remove(key)?;
        }
        assert_eq!((t.first()?, t.last()?, t.iter().count()), (None, None, 0));
        t.insert("only", "one")?;
        assert_eq!(key(t.first()?), key(t.last()?));
        Ok(())
    }))?;
    assert_eq!(db.iter().keys().collect::<Result<Vec<_>>>()?, keys(&["only"]));
    Ok(())
}

#[test]
fn odd_ranges_are_empty() -> Result<()> {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let db = tiny_db(1, false)?;
    for key in [&b""[..], b"a", b"b", &[0xFF], &[0xFF, 0xFF, 1]] {
        db.insert(key, "v")?;
    }
    done(db.transaction(|t| {
        t.insert(&[0xFF, 0xFF][..], "v")?;
        assert_eq!(t.range("b".."a").count(), 0);
        assert_eq!(t.range("a".."a").count(), 0);
        assert_eq!(t.range::<&str, _>((Excluded("a"), Excluded("a"))).count(), 0);
        assert_eq!(t.range::<&str, _>((Excluded("a"), Included("a"))).count(), 0);
        assert_eq!(t.range::<&[u8], _>(..&b""[..]).count(), 0);
        assert_eq!(t.range::<&[u8], _>((Unbounded, Included(&b""[..]))).count(), 1);
        assert_eq!(t.range("a"..="a").rev().count(), 1);
        assert_eq!(t.range::<&str, _>((Excluded("a"), Unbounded)).count(), 4);
        assert_eq!(t.range("b".."a").rev().count(), 0);
        assert_eq!(t.scan_prefix("").count(), 6);
        assert_eq!(t.scan_prefix([0xFF]).count(), 3);
        assert_eq!(t.scan_prefix([0xFF, 0xFF]).rev().count(), 2);
        assert_eq!(t.scan_prefix([0xFF; 40]).count(), 0);
        assert_eq!(t.get_lt("")?, None);
        assert_eq!(t.get_gt("")?.map(|(key, _)| key), Some("a".into()));
        assert_eq!(t.get_gt([0xFF; 9])?, None);
        Ok(())
    }))
}

#[test]
fn a_closure_may_use_everything_and_sees_what_is_committed() -> Result<()> {
    let dog = Watchdog::start("the plain interface inside a closure", 5);
    let db = tiny_db(2, true)?;
    let (tree, far) = (db.open_tree("tree")?, tiny_db(3, true)?);
    tree.set_merge_operator(add);
    db.insert("k", "before")?;
    let runs = Cell::new(0);
    done((&*db, &tree).transaction(|(view, tree_view)| {
        runs.set(runs.get() + 1);
        view.insert("k", "inside")?;
        tree_view.insert("k", encode(1))?;
        dog.kick();
        assert_eq!(db.get("k")?, Some("before".into()), "only what is committed");
        assert_eq!(tree.get("k")?, None);
        assert_eq!(tree.first()?, None);
        assert_eq!((db.len(), tree.is_empty(), db.contains_key("k")?), (1, true, true));
        assert_eq!(db.iter().values().collect::<Result<Vec<_>>>()?, ["before"]);
        dog.kick();
        tree.insert("other", encode(1))?;
        tree.merge("other", encode(1))?;
        tree.update_and_fetch("other", |_| Some(encode(7)))?;
        assert_eq!(tree.compare_and_swap("other", Some(encode(7)), None as Option<&[u8]>)?, Ok(()));
        let mut batch = Batch::default();
        batch.insert("by batch", "v");
        tree.apply_batch(batch)?;
        assert!(tree.pop_max()?.is_some() && tree.pop_min()?.is_none());
        dog.kick();
        db.flush()?;
        let (a, b) = (db.generate_id()?, view.generate_id()?);
        assert!(a < b, "{a}, then {b}");
        view.flush();
        dog.kick();
        db.checksum()?;
        tree.checksum()?;
        let mut subscriber = tree.watch_prefix("");
        done(tree.transaction(|nested| {
            assert_eq!(nested.get("k")?, None, "what another transaction has not committed");
            nested.insert("nested", "v")?;
            Ok(())
        }))?;
        assert_eq!(arrived(&mut subscriber).len(), 1);
        assert!(db.drop_tree(db.open_tree("new")?.name())?);
        dog.kick();
        // Another database, also with a transaction of its own around.
        far.insert("k", "far")?;
        done(far.transaction(|far_view| {
            far_view.insert("k", db.get("k")?.expect("there"))?;
            Ok(())
        }))?;
        assert_eq!(far.get("k")?, Some("before".into()));
        far.flush()?;
        dog.kick();
        Ok(())
    }))?;
    assert_eq!(runs.get(), 1, "it had looked at nothing of that");
    assert_eq!((db.get("k")?, tree.get("k")?), (Some("inside".into()), Some(encode(1))));
    assert_eq!(tree.get("nested")?, Some("v".into()));
    check_invariants(&db)
}

#[test]
fn a_nested_transaction_on_what_was_written_outside_wins_or_waits_for_nobody() -> Result<()> {
    let dog = Watchdog::start("nested transactions on one key", 5);
    let db = tiny_db(4, true)?;
    for look in [false, true] {
        let runs = Cell::new(0_u64);
        done(db.transaction(|outer| {
            runs.set(runs.get() + 1);
            if look {
                outer.get("k")?;
            }
            outer.insert("k", format!("outer {}", runs.get()).as_str())?;
            if runs.get() == 1 {
                done(db.transaction(|inner| {
                    inner.insert("k", "inner")?;
                    Ok(())
                }))?;
                assert_eq!(db.get("k")?, Some("inner".into()));
            }
            dog.kick();
            Ok(())
        }))?;
        // `insert` returns the value before, so it looks at it.
        assert_eq!(runs.get(), 2);
        assert_eq!(db.get("k")?, Some("outer 2".into()));
    }
    Ok(())
}

#[test]
fn a_flush_asked_for_inside_makes_the_commit_durable() -> Result<()> {
    use crate::common::{tiny, tiny_config};
    use sled::testing::{CrashMode, SimStorage, open_on};
    let medium = SimStorage::new();
    let db = open_on(medium.clone(), &tiny_config(), tiny(5, false))?;
    done(db.transaction(|view| {
        view.flush();
        view.insert("k", "v")?;
        Ok(())
    }))?;
    let left = open_on(medium.crash(1, CrashMode::DropUnsynced), &tiny_config(), tiny(5, false))?;
    assert_eq!(left.get("k")?, Some("v".into()));
    Ok(())
}

#[test]
fn nothing_is_left_of_an_aborted_transaction() -> Result<()> {
    let db = tiny_db(6, false)?;
    let tree = db.open_tree("tree")?;
    db.insert("k", "before")?;
    let before = [(Tree::clone(&db), contents(&db)?), (tree.clone(), contents(&tree)?)];
    let mut subscriber = db.watch_prefix("");
    let write = |view: &TransactionalTree| {
        view.insert("k", "after")?;
        view.insert("new", vec![1; 3_000])?;
        view.remove("k")
    };
    let both = (&*db, &tree);
    let answer = both.transaction(|(a, b)| {
        write(a)?;
        write(b)?;
        abort::<(), _>("reason")
    });
    assert_eq!(answer, Err(TransactionError::Abort("reason")));
    nothing_happened(&db, &before)?;
    let answer: TransactionResult<(), ()> = both.transaction(|(a, b)| {
        write(b)?;
        write(a)?;
        Err(ConflictableTransactionError::Storage(Error::Unsupported("mine".to_string())))
    });
    assert_eq!(answer, Err(TransactionError::Storage(Error::Unsupported("mine".to_string()))));
    nothing_happened(&db, &before)?;
    // Those of the check itself.
    let events = arrived(&mut subscriber);
    assert!(events.iter().all(|event| *event.key() == "still"), "{events:?}");
    Ok(())
}

#[test]
fn nothing_is_left_of_a_closure_that_panics() -> Result<()> {
    let dog = Watchdog::start("closures that panic", 10);
    let db = tiny_db(7, true)?;
    let tree = db.open_tree("tree")?;
    db.insert("k", "before")?;
    let before = [(Tree::clone(&db), contents(&db)?), (tree.clone(), contents(&tree)?)];
    for round in 0..20 {
        let unwound = catch_unwind(AssertUnwindSafe(|| -> TransactionResult<(), ()> {
            (&*db, &tree).transaction(|(a, b)| {
                a.insert("k", vec![2; 100 * round])?;
                b.insert("k", "after")?;
                let mut range = a.iter();
                range.next();
                if round < 20 {
                    std::panic::panic_any("on purpose");
                }
                Ok(())
            })
        }));
        assert_eq!(unwound.expect_err("it panics").downcast_ref(), Some(&"on purpose"));
        nothing_happened(&db, &before)?;
        dog.kick();
    }
    // A panic while another transaction is under way.
    done(db.transaction(|view| {
        view.insert("k", "after")?;
        let inner = catch_unwind(AssertUnwindSafe(|| {
            db.transaction::<_, (), ()>(|view| {
                view.insert("k", "never")?;
                std::panic::panic_any("on purpose")
            })
        }));
        assert!(inner.is_err());
        Ok(())
    }))?;
    assert_eq!(db.get("k")?, Some("after".into()));
    Ok(())
}

#[test]
fn nothing_is_left_when_a_merge_operator_panics() -> Result<()> {
    let dog = Watchdog::start("merge operators that panic", 10);
    let db = tiny_db(8, true)?;
    let tree = db.open_tree("tree")?;
    db.set_merge_operator(|_: &[u8], old: Option<&[u8]>, operand: &[u8]| {
        if operand == b"panic" {
            std::panic::panic_any("on purpose");
        }
        Some([old.unwrap_or_default(), operand].concat())
    });
    db.insert("k", "before")?;
    let before = [(Tree::clone(&db), contents(&db)?), (tree.clone(), contents(&tree)?)];
    for looks in [false, true] {
        for others in [0, 40_u8] {
            let unwound = catch_unwind(AssertUnwindSafe(|| -> TransactionResult<(), ()> {
                (&*db, &tree).transaction(|(a, b)| {
                    for n in 0..others {
                        a.insert([n], vec![n; 60])?;
                        b.insert([n], vec![n; 60])?;
                    }
                    a.insert("z", "v")?;
                    a.merge("k", "fine")?;
                    a.merge("k", "panic")?;
                    a.merge("k", "fine")?;
                    if looks {
                        a.get("k")?;
                    }
                    Ok(())
                })
            }));
            assert!(unwound.is_err(), "{looks} {others}");
            nothing_happened(&db, &before)?;
            dog.kick();
        }
    }
    // And a plain one, next to it.
    assert!(catch_unwind(AssertUnwindSafe(|| db.merge("k", "panic"))).is_err());
    nothing_happened(&db, &before)?;
    assert_eq!(db.merge("k", "!")?, Some("before!".into()));
    Ok(())
}

#[test]
fn a_merge_without_an_operator_fails_the_transaction() -> Result<()> {
    let db = tiny_db(9, false)?;
    let answer = db.transaction::<_, _, ()>(|view| {
        view.insert("k", "v")?;
        view.merge("k", "v")?;
        Ok(())
    });
    assert!(matches!(answer, Err(TransactionError::Storage(Error::Unsupported(_)))), "{answer:?}");
    assert_eq!(db.get("k")?, None);
    Ok(())
}

#[test]
fn a_tree_listed_twice_is_one_tree() -> Result<()> {
    let db = tiny_db(10, false)?;
    let (tree, again) = (db.open_tree("tree")?, db.open_tree("tree")?);
    done((&tree, &*db, &again).transaction(|(a, _, b)| {
        a.insert("k", "a")?;
        assert_eq!(b.get("k")?, Some("a".into()));
        assert_eq!(b.insert("k", "b")?, Some("a".into()));
        b.insert("other", "b")?;
        assert_eq!(a.iter().count(), 2);
        assert_eq!(a.remove("other")?, Some("b".into()));
        Ok(())
    }))?;
    assert_eq!((tree.get("k")?, tree.get("other")?), (Some("b".into()), None));
    // The default tree by its name is one with the database.
    let default = db.open_tree("__sled__default")?;
    done([&*db, &default][..].transaction(|views| {
        views[0].insert("x", "1")?;
        assert_eq!(views[1].get("x")?, Some("1".into()));
        Ok(())
    }))
}

#[test]
fn no_trees_at_all_are_fine() -> Result<()> {
    let runs = Cell::new(0);
    let none: [Tree; 0] = [];
    let answer: TransactionResult<_, ()> = none[..].transaction(|views| {
        assert!(views.is_empty());
        runs.set(runs.get() + 1);
        Ok(7)
    });
    assert_eq!((answer, runs.get()), (Ok(7), 1));
    let none: [&Tree; 0] = [];
    let answer = none[..].transaction::<_, ()>(|_| abort("no"));
    assert_eq!(answer, Err(TransactionError::Abort("no")));
    Ok(())
}

#[test]
fn trees_of_two_databases_are_refused() -> Result<()> {
    let (db, far) = (tiny_db(11, false)?, tiny_db(12, false)?);
    let answer: TransactionResult<(), ()> = (&*db, &*far).transaction(|_| panic!("it must not run"));
    assert!(matches!(answer, Err(TransactionError::Storage(Error::Unsupported(_)))), "{answer:?}");
    let answer: TransactionResult<(), ()> =
        [&*db, &db.open_tree("a")?, &far.open_tree("a")?][..].transaction(|_| panic!("it must not run"));
    assert!(matches!(answer, Err(TransactionError::Storage(Error::Unsupported(_)))), "{answer:?}");
    Ok(())
}

#[test]
fn a_dropped_tree_fails_the_transaction_everywhere() -> Result<()> {
    let db = tiny_db(13, false)?;
    let (a, b, gone) = (db.open_tree("a")?, db.open_tree("b")?, db.open_tree("gone")?);
    gone.insert("k", "v")?;
    db.drop_tree("gone")?;
    let not_found = Error::CollectionNotFound("gone".into());
    let before = [(a.clone(), contents(&a)?), (b.clone(), contents(&b)?)];
    let fails = |swallow: bool, touch: &dyn Fn(&TransactionalTree) -> bool| {
        let answer: TransactionResult<(), ()> = (&a, &gone, &b).transaction(|(a, gone, b)| {
            a.insert("k", "v")?;
            b.insert("k", "v")?;
            if touch(gone) && !swallow { Err(not_found.clone().into()) } else { Ok(()) }
        });
        answer
    };
    let touches: [&dyn Fn(&TransactionalTree) -> bool; 4] = [
        &|gone| gone.remove("k").is_err(),
        &|gone| gone.insert("k", "v").is_err(),
        &|gone| gone.remove("k").is_err() | gone.insert("x", "y").is_err(),
        &|gone| {
            gone.apply_batch(&{
                let mut batch = Batch::default();
                batch.insert("k", "v");
                batch
            })
            .is_err()
        },
    ];
    for touch in touches {
        for swallow in [false, true] {
            let answer = fails(swallow, touch);
            // A write whose failure the closure hides must still not be half of a commit.
            match &answer {
                Err(TransactionError::Storage(error)) => assert_eq!(*error, not_found),
                other => panic!("{other:?}"),
            }
            nothing_happened(&db, &before)?;
        }
    }
    // Dropped while the closure runs, after it was written.
    let doomed = db.open_tree("doomed")?;
    let runs = Cell::new(0);
    let answer: TransactionResult<(), ()> = (&a, &doomed, &b).transaction(|(a, doomed, b)| {
        runs.set(runs.get() + 1);
        a.insert("k", "v")?;
        doomed.insert("k", "v")?;
        b.insert("k", "v")?;
        db.drop_tree("doomed")?;
        Ok(())
    });
    let expected = Error::CollectionNotFound("doomed".into());
    assert_eq!(answer, Err(TransactionError::Storage(expected)), "after {} runs", runs.get());
    nothing_happened(&db, &before)?;
    // A new tree of the name has nothing of it.
    assert_eq!(db.open_tree("doomed")?.first()?, None);
    Ok(())
}

#[test]
fn a_view_that_outlives_its_transaction_changes_nothing() -> Result<()> {
    let db = tiny_db(14, false)?;
    let kept: RefCell<Option<TransactionalTree>> = RefCell::new(None);
    done(db.transaction(|view| {
        *kept.borrow_mut() = Some(view.clone());
        view.insert("k", "v")?;
        Ok(())
    }))?;
    let view = kept.into_inner().expect("kept");
    // Whether this is an error or not: it is no write.
    let _ = view.insert("k", "later");
    let _ = view.get("k");
    drop(view);
    assert_eq!(db.get("k")?, Some("v".into()));
    done(db.transaction(|view| {
        view.insert("k", "w")?;
        Ok(())
    }))
}

#[test]
fn the_answer_of_the_closure_is_handed_on() -> Result<()> {
    let db = tiny_db(15, false)?;
    let answer: TransactionResult<String, u8> = db.transaction(|_| Ok("text".to_string()));
    assert_eq!(answer, Ok("text".to_string()));
    assert_eq!(db.transaction(|_| abort::<(), _>(7_u8)), Err(TransactionError::Abort(7)));
    // Every shape.
    let t: Vec<Tree> = (0..14_u8).map(|n| db.open_tree([n])).collect::<Result<_>>()?;
    done((&t[0],).transaction(|(a,)| {
        a.insert("k", "v")?;
        Ok(())
    }))?;
    done(Transactional::transaction(&&t[1], |a| {
        a.insert("k", "v")?;
        Ok(())
    }))?;
    done(t[..].transaction(|views| {
        assert_eq!(views.len(), 14);
        for view in views {
            view.insert("k", "v")?;
        }
        Ok(())
    }))?;
    done(
        (
            &t[0], &t[1], &t[2], &t[3], &t[4], &t[5], &t[6], &t[7], &t[8], &t[9], &t[10], &t[11], &t[12],
            &t[13],
        )
            .transaction(|views| {
                assert_eq!(views.13.insert("k", "w")?, Some("v".into()));
                Ok(())
            }),
    )?;
    assert_eq!(t[13].get("k")?, Some("w".into()));
    Ok(())
}
