//! Operations on single keys, navigation, and merge operators.

use crate::fresh;
use sled::{CompareAndSwapError, Error, IVec, MergeOperator, Result, Tree};
use std::cell::Cell;
use std::rc::Rc;

fn concat(_key: &[u8], old: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
    Some([old.unwrap_or_default(), operand].concat())
}

/// True when the call made the database write something.
fn writes<T>(tree: &Tree, call: impl FnOnce() -> Result<T>) -> Result<bool> {
    tree.flush()?;
    call()?;
    Ok(tree.flush()? > 0)
}

#[test]
fn insert_and_remove_return_what_was_there() -> Result<()> {
    let db = fresh();
    assert_eq!(db.insert("k", "one")?, None);
    assert_eq!(db.insert("k", "two")?, Some("one".into()));
    assert_eq!((db.get("k")?, db.contains_key("k")?), (Some("two".into()), true));
    assert_eq!(db.remove("k")?, Some("two".into()));
    assert_eq!(db.remove("k")?, None);
    assert_eq!((db.get("k")?, db.contains_key("k")?), (None, false));
    Ok(())
}

#[test]
fn inserting_the_value_that_is_there_writes_nothing() -> Result<()> {
    let db = fresh();
    assert!(writes(&db, || db.insert("k", "v"))?);
    assert!(!writes(&db, || {
        assert_eq!(db.insert("k", "v")?, Some("v".into()));
        Ok(())
    })?);
    assert!(writes(&db, || db.insert("k", "w"))?);
    Ok(())
}

#[test]
fn removing_an_absent_key_writes_nothing_however_long_it_is() -> Result<()> {
    let db = fresh();
    db.insert("k", "v")?;
    let long = vec![1; 16 << 20];
    assert!(!writes(&db, || {
        assert_eq!((db.remove("absent")?, db.remove(&long)?), (None, None));
        Ok(())
    })?);
    assert!(db.size_on_disk()? < 8 << 20, "the absent key left its size");
    Ok(())
}

#[test]
fn keys_are_any_bytes_in_lexicographic_order() -> Result<()> {
    let db = fresh();
    let keys: [&[u8]; 7] = [b"", b"\0", b"\0\0", b"a", b"aa", b"\xFF", b"\xFF\0"];
    for key in keys.iter().rev() {
        assert_eq!(db.insert(key, "")?, None);
    }
    assert_eq!(db.iter().keys().collect::<Result<Vec<_>>>()?, keys);
    assert_eq!(db.get("")?, Some(IVec::default()), "the empty key, an empty value");
    assert_eq!((db.first()?, db.last()?), (Some(("".into(), "".into())), Some((keys[6].into(), "".into()))));
    Ok(())
}

#[test]
fn long_keys_and_big_values_come_back() -> Result<()> {
    let db = fresh();
    let key = vec![b'k'; 8 << 20];
    let value: Vec<u8> = (0..20_u32 << 20).map(|n| (n ^ (n >> 8)).to_le_bytes()[0]).collect();
    db.insert(&key, &value[..])?;
    db.insert("small", &value[..1 << 20])?;
    db.flush()?;
    assert!(db.get(&key)?.is_some_and(|found| found == value));
    assert!(db.get("small")?.is_some_and(|found| found == value[..1 << 20]));
    assert!(db.remove(&key)?.is_some_and(|found| found == value));
    assert_eq!(db.len(), 1);
    Ok(())
}

#[test]
fn compare_and_swap_swaps_only_what_is_as_expected() -> Result<()> {
    let db = fresh();
    let absent = None::<&str>;
    let rejected = |current: Option<&str>, proposed: Option<&str>| {
        Ok(Err(CompareAndSwapError { current: current.map(Into::into), proposed: proposed.map(Into::into) }))
    };
    assert_eq!(db.compare_and_swap("k", Some("x"), Some("new")), rejected(None, Some("new")));
    assert_eq!(db.compare_and_swap("k", absent, Some("one")), Ok(Ok(())));
    assert_eq!(db.compare_and_swap("k", absent, Some("two")), rejected(Some("one"), Some("two")));
    assert_eq!(db.compare_and_swap("k", Some("one"), Some("two")), Ok(Ok(())));
    assert_eq!(db.compare_and_swap("k", Some("one"), absent), rejected(Some("two"), None));
    assert_eq!(db.get("k")?, Some("two".into()));
    assert_eq!(db.compare_and_swap("k", Some("two"), absent), Ok(Ok(())));
    assert_eq!(db.get("k")?, None);
    assert_eq!(db.compare_and_swap("k", absent, absent), Ok(Ok(())), "absent, and to stay so");
    assert_eq!(db.len(), 0);
    Ok(())
}

#[test]
fn swaps_updates_and_merges_write_even_what_is_there() -> Result<()> {
    let db = fresh();
    db.insert("k", "v")?;
    db.set_merge_operator(|_: &[u8], old: Option<&[u8]>, _: &[u8]| old.map(<[u8]>::to_vec));
    assert!(writes(&db, || db.compare_and_swap("k", Some("v"), Some("v")))?, "compare_and_swap");
    assert!(writes(&db, || db.update_and_fetch("k", |old| old.map(<[u8]>::to_vec)))?, "update_and_fetch");
    assert!(writes(&db, || db.fetch_and_update("k", |old| old.map(<[u8]>::to_vec)))?, "fetch_and_update");
    assert!(writes(&db, || db.merge("k", "operand"))?, "merge");
    assert_eq!(db.get("k")?, Some("v".into()));
    Ok(())
}

#[test]
fn update_functions_return_the_new_and_the_old_value() -> Result<()> {
    let db = fresh();
    let longer = |old: Option<&[u8]>| Some([old.unwrap_or_default(), b"x"].concat());
    let gone = |_: Option<&[u8]>| None::<Vec<u8>>;
    assert_eq!(db.update_and_fetch("k", longer)?, Some("x".into()));
    assert_eq!(db.fetch_and_update("k", longer)?, Some("x".into()));
    assert_eq!(db.get("k")?, Some("xx".into()));
    assert_eq!(db.fetch_and_update("k", gone)?, Some("xx".into()));
    assert_eq!(db.get("k")?, None);
    assert_eq!((db.update_and_fetch("k", gone)?, db.fetch_and_update("k", gone)?), (None, None));
    assert_eq!(db.fetch_and_update("k", longer)?, None);
    assert_eq!(db.update_and_fetch("k", gone)?, None);
    assert_eq!(db.len(), 0);
    Ok(())
}

#[test]
fn update_functions_and_operators_may_use_the_database() -> Result<()> {
    let dog = crate::common::Watchdog::start("re-entrant functions", 10);
    let db = fresh();
    db.insert("other", "o")?;
    let seen = db.update_and_fetch("k", |_| {
        db.insert("inside", "i").expect("inserts");
        db.flush().expect("flushes");
        db.get("other").expect("reads")
    })?;
    assert_eq!(seen, Some("o".into()));
    // The same key: the function runs again, with what it wrote.
    let mut calls = 0;
    let new = db.update_and_fetch("k", |old| {
        calls += 1;
        if calls == 1 {
            db.insert("k", "between").expect("inserts");
        }
        Some([old.unwrap_or_default(), b"!"].concat())
    })?;
    assert_eq!((new, calls), (Some("between!".into()), 2));
    dog.kick();
    let inner = db.clone();
    let tree = db.open_tree("merged")?;
    tree.set_merge_operator(move |_: &[u8], _: Option<&[u8]>, _: &[u8]| {
        inner.get("other").expect("reads").map(|value| value.to_vec())
    });
    assert_eq!(tree.merge("k", "m")?, Some("o".into()));
    // The operator holds a handle of its own database; replacing it lets that go.
    tree.set_merge_operator(concat);
    Ok(())
}

#[test]
fn a_panic_in_a_function_of_the_user_changes_nothing() -> Result<()> {
    let db = fresh();
    db.insert("k", "v")?;
    db.set_merge_operator(|_: &[u8], _: Option<&[u8]>, _: &[u8]| panic!("on purpose"));
    crate::assert_panics("the operator", || drop(db.merge("k", "m")));
    crate::assert_panics("the update", || {
        drop(db.update_and_fetch::<_, IVec, _>("k", |_| panic!("on purpose")))
    });
    crate::assert_panics("the fetch", || {
        drop(db.fetch_and_update::<_, IVec, _>("k", |_| panic!("on purpose")))
    });
    assert_eq!((db.get("k")?, db.len()), (Some("v".into()), 1));
    // Nothing is stuck: another thread goes on, and so does the operator's tree.
    std::thread::scope(|scope| scope.spawn(|| db.insert("k", "w")).join().expect("does not panic"))?;
    db.set_merge_operator(concat);
    assert_eq!(db.merge("k", "!")?, Some("w!".into()));
    assert!(db.flush()? > 0);
    Ok(())
}

#[test]
fn merge_returns_the_new_value_and_none_deletes() -> Result<()> {
    let db = fresh();
    db.set_merge_operator(|key: &[u8], old: Option<&[u8]>, operand: &[u8]| {
        (operand != b"delete").then(|| [key, b"=", old.unwrap_or_default(), operand].concat())
    });
    assert_eq!(db.merge("k", "a")?, Some("k=a".into()));
    assert_eq!(db.merge("k", "b")?, Some("k=k=ab".into()));
    assert_eq!(db.merge("k", "delete")?, None);
    assert_eq!((db.get("k")?, db.len()), (None, 0));
    assert_eq!(db.merge("k", "delete")?, None, "an absent key");
    Ok(())
}

#[test]
fn merge_without_an_operator_is_an_error() -> Result<()> {
    let db = fresh();
    let tree = db.open_tree("t")?;
    tree.insert("k", "v")?;
    assert!(matches!(tree.merge("k", "m"), Err(Error::Unsupported(_))));
    assert_eq!(tree.get("k")?, Some("v".into()));
    db.drop_tree("t")?;
    assert!(matches!(tree.merge("k", "m"), Err(Error::Unsupported(_))), "also on a dropped tree");
    Ok(())
}

#[test]
fn an_operator_belongs_to_the_tree_and_not_to_the_handle() -> Result<()> {
    let medium = sled::testing::SimStorage::new();
    let db = crate::on(&medium);
    let (one, two) = (db.open_tree("t")?, db.clone().open_tree("t")?);
    one.set_merge_operator(concat);
    assert_eq!(two.merge("k", "a")?, Some("a".into()));
    two.set_merge_operator(|_: &[u8], _: Option<&[u8]>, operand: &[u8]| Some(operand.to_vec()));
    assert_eq!(one.merge("k", "b")?, Some("b".into()), "replaced for all handles");
    assert!(matches!(db.merge("k", "a"), Err(Error::Unsupported(_))), "another tree has none");
    db.drop_tree("t")?;
    let again = db.open_tree("t")?;
    assert!(matches!(again.merge("k", "a"), Err(Error::Unsupported(_))), "a new tree of the name has none");
    again.set_merge_operator(concat);
    drop((db, one, two, again));
    let tree = crate::on(&medium).open_tree("t")?;
    assert!(matches!(tree.merge("k", "a"), Err(Error::Unsupported(_))), "operators are not stored");
    Ok(())
}

#[test]
fn the_default_tree_shares_its_operator_under_its_name() -> Result<()> {
    let db = fresh();
    db.set_merge_operator(concat);
    assert_eq!(db.open_tree("__sled__default")?.merge("k", "a")?, Some("a".into()));
    Ok(())
}

#[test]
fn operators_need_not_be_send_and_infer_their_argument_types() -> Result<()> {
    let db = fresh();
    let calls = Rc::new(Cell::new(0));
    let counted = Rc::clone(&calls);
    // No argument has its type written out.
    db.set_merge_operator(move |_key, old, operand| {
        counted.set(counted.get() + 1);
        concat(b"", old, operand)
    });
    assert_eq!(db.merge("k", "a")?, Some("a".into()));
    assert_eq!(calls.get(), 1, "once when nobody else writes");
    let boxed: Box<dyn MergeOperator> = Box::new(concat);
    assert_eq!(boxed(b"k", None, b"v"), Some(b"v".to_vec()));
    Ok(())
}

#[test]
fn neighbours_are_strictly_below_and_above() -> Result<()> {
    let db = fresh();
    for key in ["", "b", "d"] {
        db.insert(key, key)?;
    }
    let below = |key: &str| Ok::<_, Error>(db.get_lt(key)?.map(|(key, _)| key));
    let above = |key: &str| Ok::<_, Error>(db.get_gt(key)?.map(|(key, _)| key));
    assert_eq!(below("")?, None);
    assert_eq!(below("a")?, Some("".into()));
    assert_eq!(below("b")?, Some("".into()));
    assert_eq!(below("zz")?, Some("d".into()));
    assert_eq!(above("")?, Some("b".into()));
    assert_eq!(above("b")?, Some("d".into()));
    assert_eq!(above("c")?, Some("d".into()));
    assert_eq!(above("d")?, None);
    assert_eq!(db.first()?, Some(("".into(), "".into())));
    assert_eq!(db.last()?, Some(("d".into(), "d".into())));
    Ok(())
}

#[test]
fn pops_take_from_their_ends_until_nothing_is_left() -> Result<()> {
    let db = fresh();
    for key in ["a", "b", "c"] {
        db.insert(key, key)?;
    }
    assert_eq!(db.pop_min()?, Some(("a".into(), "a".into())));
    assert_eq!(db.pop_max()?, Some(("c".into(), "c".into())));
    assert_eq!(db.pop_max()?, Some(("b".into(), "b".into())));
    assert_eq!((db.pop_min()?, db.pop_max()?), (None, None));
    assert_eq!((db.first()?, db.last()?, db.is_empty(), db.len()), (None, None, true, 0));
    Ok(())
}

#[test]
fn clear_removes_everything_of_one_tree() -> Result<()> {
    let db = fresh();
    let tree = db.open_tree("t")?;
    for n in 0..1_000_u32 {
        tree.insert(n.to_be_bytes(), "v")?;
    }
    db.insert("k", "v")?;
    tree.clear()?;
    assert_eq!((tree.len(), tree.is_empty(), db.len()), (0, true, 1));
    tree.insert("k", "v")?;
    assert_eq!(tree.len(), 1);
    Ok(())
}

#[test]
fn iterators_give_pairs_keys_values_and_their_last_in_one_step() -> Result<()> {
    let db = fresh();
    for key in ["a", "b", "c"] {
        db.insert(key, key.to_uppercase().as_bytes())?;
    }
    assert_eq!(db.iter().keys().collect::<Result<Vec<_>>>()?, ["a", "b", "c"]);
    assert_eq!(db.iter().values().rev().collect::<Result<Vec<_>>>()?, ["C", "B", "A"]);
    assert_eq!(db.iter().last(), Some(Ok(("c".into(), "C".into()))));
    let mut begun = db.iter();
    assert_eq!(begun.next_back().transpose()?.map(|(key, _)| key), Some("c".into()));
    assert_eq!(begun.last(), Some(Ok(("b".into(), "B".into()))), "the last of what is left");
    assert_eq!(db.iter().size_hint(), (0, None));
    let mut pairs = 0;
    for pair in &*db {
        pair?;
        pairs += 1;
    }
    assert_eq!(pairs, 3);
    Ok(())
}
