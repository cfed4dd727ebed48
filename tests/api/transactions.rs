//! Transactions and batches: errors, views that outlive their run, closures that misuse them.

use crate::fresh;
use sled::transaction::{
    ConflictableTransactionError, TransactionError, TransactionResult, TransactionalTree,
    UnabortableTransactionError, abort,
};
use sled::{Batch, Error, Transactional, Tree};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Whether an error is `Unsupported` with a text that has `part` in it.
fn unsupported(error: &Error, part: &str) -> bool {
    matches!(error, Error::Unsupported(text) if text.contains(part))
}

#[test]
fn nothing_is_applied_unless_the_closure_returns_ok() {
    let db = fresh();
    let outcome: TransactionResult<(), &str> = db.transaction(|tree| {
        tree.insert("k", "v")?;
        abort("given up")
    });
    assert_eq!(outcome, Err(TransactionError::Abort("given up")));
    let outcome: TransactionResult<()> = db.transaction(|tree| {
        tree.insert("k", "v")?;
        Err(ConflictableTransactionError::Storage(Error::ReportableBug("mine".into())))
    });
    assert_eq!(outcome, Err(TransactionError::Storage(Error::ReportableBug("mine".into()))));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        db.transaction::<_, (), ()>(|tree| {
            tree.insert("k", "v")?;
            panic!("in the closure");
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(db.get("k"), Ok(None));
    assert_eq!(db.transaction::<_, _, ()>(|tree| Ok(tree.insert("k", "v")?)), Ok(None));
}

#[test]
fn trees_of_two_databases_are_refused_before_the_closure_runs() {
    let [a, b] = ["a", "b"].map(|_| sled::Config::new().temporary(true).open().unwrap());
    let outcome: TransactionResult<()> = (&*a, &*b).transaction(|_| unreachable!("it does not run"));
    let Err(TransactionError::Storage(error)) = outcome else { panic!("refused") };
    assert!(unsupported(&error, "two databases"));
    for db in [&a, &b] {
        assert!(error.to_string().contains(db.context.get_path().to_str().expect("UTF-8")), "{error}");
    }
}

#[test]
fn no_tree_at_all_is_fine_and_one_tree_twice_is_one() {
    let none: Vec<Tree> = Vec::new();
    let outcome: TransactionResult<usize> = none.transaction(|trees| Ok(trees.len()));
    assert_eq!(outcome, Ok(0));
    let db = fresh();
    let outcome: TransactionResult<()> = [&*db, &*db][..].transaction(|trees| {
        trees[0].insert("k", "1")?;
        assert_eq!(trees[1].insert("k", "2")?, Some("1".into()));
        Ok(())
    });
    assert_eq!((outcome, db.get("k")), (Ok(()), Ok(Some("2".into()))));
}

#[test]
fn a_view_is_of_no_use_after_its_run() {
    let db = fresh();
    let kept: RefCell<Vec<TransactionalTree>> = RefCell::default();
    let runs = Cell::new(0);
    let outcome: TransactionResult<()> = db.transaction(|tree| {
        kept.borrow_mut().push(tree.clone());
        runs.set(runs.get() + 1);
        if runs.get() == 1 { Err(ConflictableTransactionError::Conflict) } else { Ok(()) }
    });
    assert_eq!((outcome, runs.get()), (Ok(()), 2));
    for view in kept.take() {
        let Err(UnabortableTransactionError::Storage(error)) = view.insert("k", "v") else {
            panic!("it has ended")
        };
        assert!(unsupported(&error, "is over"));
        let mut iter = view.iter();
        assert!(iter.next().is_some_and(|pair| pair.is_err()) && iter.next().is_none());
        view.flush();
        view.generate_id().unwrap();
    }
    assert!(db.is_empty());
}

#[test]
fn an_overlay_made_by_hand_reads_and_stages_and_applies_nothing() {
    let db = fresh();
    db.insert("a", "1").unwrap();
    let overlay = Transactional::<()>::make_overlay(&(&*db, &*db)).unwrap();
    let (view, same) = <(&Tree, &Tree) as Transactional>::view_overlay(&overlay);
    assert_eq!(view.insert("b", "2"), Ok(None));
    assert_eq!((same.get("a"), same.get("b")), (Ok(Some("1".into())), Ok(Some("2".into()))));
    assert_eq!(view.iter().rev().map(|pair| pair.unwrap().0).collect::<Vec<_>>(), ["b", "a"]);
    drop((view, same, overlay));
    assert_eq!(db.len(), 1);
}

/// What it decides after that rests on nothing.
#[test]
fn a_conflict_that_the_closure_ignores_still_makes_it_run_again() {
    let db = fresh();
    db.insert("a", "0").unwrap();
    db.insert("b", "0").unwrap();
    let runs = Cell::new(0);
    let outcome: TransactionResult<_, &str> = db.transaction(|tree| {
        runs.set(runs.get() + 1);
        let a = tree.get("a")?;
        if runs.get() == 1 {
            db.insert("a", "1")?;
            db.insert("b", "1")?;
        }
        let Ok(b) = tree.get("b") else { return abort("decided on nothing") };
        assert_eq!(a, b, "one consistent state");
        Ok(b)
    });
    assert_eq!((outcome, runs.get()), (Ok(Some("1".into())), 2));
}

#[test]
fn merging_needs_an_operator_which_stays_out_of_its_transaction() {
    let db = fresh();
    let merged: TransactionResult<()> = db.transaction(|tree| Ok(tree.merge("k", "v")?));
    assert!(matches!(merged, Err(TransactionError::Storage(error)) if unsupported(&error, "merge operator")));

    // An operator that gets at the view by which it is called.
    thread_local!(static VIEW: RefCell<Option<TransactionalTree>> = const { RefCell::new(None) });
    db.set_merge_operator(|_: &[u8], _: Option<&[u8]>, operand: &[u8]| {
        let answer = VIEW.with_borrow(|view| view.as_ref().map(|view| view.get("k")));
        assert!(matches!(answer, Some(Err(UnabortableTransactionError::Storage(Error::Unsupported(_))))));
        Some(operand.to_vec())
    });
    let merged: TransactionResult<_> = db.transaction(|tree| {
        VIEW.set(Some(tree.clone()));
        tree.merge("k", "v")?;
        tree.merge("l", "w")?;
        Ok(tree.get("k")?)
    });
    assert_eq!((merged, db.get("l")), (Ok(Some("v".into())), Ok(Some("w".into()))));
    VIEW.take();
}

#[test]
fn ranges_show_own_writes_from_both_ends() {
    let db = fresh();
    for key in ["a", "c", "e", "g"] {
        db.insert(key, key).unwrap();
    }
    let outcome: TransactionResult<()> = db.transaction(|tree| {
        tree.insert("b", "b")?;
        tree.insert("f", "f")?;
        tree.remove("c")?;
        let keys = |iter: sled::transaction::TransactionalIter| {
            iter.map(|pair| pair.map(|(key, _)| String::from_utf8_lossy(&key).into_owned()))
                .collect::<Result<String, _>>()
        };
        assert_eq!(keys(tree.iter())?, "abefg");
        assert_eq!(keys(tree.range("b"..="f"))?, "bef");
        assert_eq!(keys(tree.range("b".."b"))? + &keys(tree.range("f".."b"))?, "");
        assert_eq!(keys(tree.scan_prefix(""))?, "abefg");
        let mut both = tree.range::<&str, _>("b"..);
        let mut met = Vec::new();
        while let Some(pair) = both.next() {
            met.extend([Some(pair?.0), both.next_back().transpose()?.map(|pair| pair.0)]);
        }
        assert_eq!(met.into_iter().flatten().collect::<Vec<_>>(), ["b", "g", "e", "f"]);
        let ends = [tree.first()?, tree.last()?, tree.get_lt("e")?, tree.get_gt("b")?, tree.get_lt("a")?];
        let ends = ends.map(|pair| pair.map(|(key, _)| key));
        assert_eq!(ends, [Some("a"), Some("g"), Some("b"), Some("e"), None].map(|key| key.map(Into::into)));
        assert_eq!(tree.iter().last().transpose()?, tree.last()?);
        Ok(())
    });
    assert_eq!((outcome, db.len()), (Ok(()), 5));
}

#[test]
fn a_dropped_tree_is_an_error_and_nothing_is_applied_elsewhere() {
    let db = fresh();
    let tree = db.open_tree("dropped").unwrap();
    db.drop_tree("dropped").unwrap();
    let gone = Error::CollectionNotFound("dropped".into());
    assert_eq!(tree.apply_batch(Batch::default()), Ok(()));
    let mut batch = Batch::default();
    batch.insert("k", "v");
    assert_eq!(tree.apply_batch(batch.clone()), Err(gone.clone()));
    let outcome: TransactionResult<()> = (&*db, &tree).transaction(|(here, there)| {
        here.insert("k", "v")?;
        there.apply_batch(&batch)?;
        Ok(())
    });
    assert_eq!((outcome, db.get("k")), (Err(TransactionError::Storage(gone)), Ok(None)));
}

/// It deadlocked in 0.34.
#[test]
fn everything_else_is_allowed_inside_a_closure() {
    let (db, other) = (fresh(), fresh());
    let outcome: TransactionResult<u64> = db.transaction(|tree| {
        tree.insert("k", "inner")?;
        assert_eq!(db.get("k")?, None);
        db.flush()?;
        other.insert("k", "v")?;
        assert_eq!(db.open_tree("t")?.iter().count() + other.iter().count(), 1);
        let nested: TransactionResult<_> = db.transaction(|nested| Ok(nested.get("k")?));
        assert_eq!(nested, Ok(None));
        tree.flush();
        Ok(db.generate_id()?)
    });
    assert!(outcome.is_ok());
    assert_eq!((db.flush(), db.get("k")), (Ok(0), Ok(Some("inner".into()))));
}
