//! `len` is the number of keys, known without counting where that is promised.

use crate::common::{tiny, tiny_config};
use sled::testing::{CrashMode, OpClass, SimStorage, check_invariants, checkpoint, open_on};
use sled::{Batch, Config, Db, Result, Transactional};
use std::io::ErrorKind;

fn open(medium: &SimStorage) -> Result<Db> {
    open_on(medium.clone(), &tiny_config(), tiny(7, false))
}

/// Every way to change a tree once; the keys that are left.
fn change(db: &Db) -> Result<usize> {
    let tree = db.open_tree("tree")?;
    for number in 0..300_u64 {
        tree.insert(number.to_be_bytes(), vec![1; 20])?;
        db.insert(number.to_be_bytes(), vec![1; if number % 50 == 0 { 3000 } else { 5 }])?;
    }
    for number in 0..100_u64 {
        tree.remove((3 * number).to_be_bytes())?;
        tree.remove((3 * number).to_be_bytes())?;
        tree.insert((3 * number + 1).to_be_bytes(), vec![2; 10])?;
    }
    let mut batch = Batch::default();
    for number in 250..350_u64 {
        batch.insert(number.to_be_bytes(), "batch");
        batch.remove((number - 250).to_be_bytes());
    }
    tree.apply_batch(batch)?;
    (&**db, &tree)
        .transaction(|(db, tree)| {
            for number in 340..360_u64 {
                db.insert(number.to_be_bytes(), "both")?;
                tree.remove((number - 20).to_be_bytes())?;
            }
            Ok::<(), sled::transaction::ConflictableTransactionError<()>>(())
        })
        .expect("healthy");
    tree.set_merge_operator(|_: &[u8], _: Option<&[u8]>, operand: &[u8]| Some(operand.to_vec()));
    tree.merge("merged", "once")?;
    tree.merge("merged", "twice")?;
    tree.compare_and_swap("swapped", None::<&[u8]>, Some("in"))?.expect("nothing there");
    tree.update_and_fetch("swapped", |_| None::<Vec<u8>>)?;
    tree.pop_min()?;
    Ok(tree.iter().count())
}

/// The answer, with a medium that gives nothing back: nothing is counted.
fn known(db: &Db, medium: &SimStorage) -> Result<(usize, usize)> {
    let tree = db.open_tree("tree")?;
    medium.fail(OpClass::Read, 0, false, ErrorKind::Other);
    let lengths = (db.len(), tree.len());
    medium.heal();
    assert_eq!(medium.injected(), 0, "something was read");
    Ok(lengths)
}

#[test]
fn the_length_of_what_was_created_is_known() -> Result<()> {
    let medium = SimStorage::new();
    let db = open(&medium)?;
    let left = change(&db)?;
    assert_eq!(known(&db, &medium)?, (db.iter().count(), left));
    check_invariants(&db)?;
    db.clear()?;
    assert_eq!(known(&db, &medium)?, (0, left));
    check_invariants(&db)
}

#[test]
fn the_length_is_known_after_closing_and_opening() -> Result<()> {
    let medium = SimStorage::new();
    let db = open(&medium)?;
    change(&db)?;
    let expected = known(&db, &medium)?;
    drop(db);
    for round in 0..4 {
        let before = medium.contents();
        let db = open(&medium)?;
        assert_eq!(known(&db, &medium)?, expected, "round {round}");
        drop(db);
        assert_eq!(medium.contents().len(), before.len(), "nothing is noted twice");
    }
    let db = open(&medium)?;
    db.insert("one more", "value")?;
    checkpoint(&db)?;
    drop(db);
    let db = open(&medium)?;
    assert_eq!(known(&db, &medium)?, (expected.0 + 1, expected.1));
    check_invariants(&db)
}

#[test]
fn after_a_crash_it_is_counted_once() -> Result<()> {
    let medium = SimStorage::new();
    let db = open(&medium)?;
    change(&db)?;
    drop(db);
    let db = open(&medium)?;
    let tree = db.open_tree("tree")?;
    (0..50_u64).try_for_each(|number| tree.remove((5 * number).to_be_bytes()).map(drop))?;
    db.flush()?;
    let expected = known(&db, &medium)?;
    let medium = medium.crash(0, CrashMode::DropUnsynced);
    let db = open(&medium)?;
    let tree = db.open_tree("tree")?;
    assert_eq!((db.len(), tree.len()), expected);
    let before = medium.ops();
    assert_eq!((db.len(), tree.len()), expected);
    assert_eq!(medium.ops(), before, "the second time it is known");
    tree.insert("one more", "value")?;
    assert_eq!(known(&db, &medium)?, (expected.0, expected.1 + 1));
    check_invariants(&db)
}

#[test]
fn what_threads_change_is_counted_exactly() -> Result<()> {
    let scratch = std::env::temp_dir().join(format!("sled-lengths-{}", std::process::id()));
    for known in [true, false] {
        let db = Config::new().path(&scratch).cache_capacity(1 << 20).open()?;
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let db = &db;
                scope.spawn(move || {
                    for step in 0..3000_u64 {
                        // All threads write the same keys, and somebody asks now and then.
                        let key = (step.wrapping_mul(0x9E37_79B9 + thread) % 500).to_be_bytes();
                        match (step + thread) % 5 {
                            0 => drop(db.remove(key).expect("healthy")),
                            1 => {
                                let mut batch = Batch::default();
                                batch.remove(key);
                                batch.insert((step % 700).to_be_bytes(), "batch");
                                db.apply_batch(batch).expect("healthy");
                            }
                            _ => drop(db.insert(key, "value").expect("healthy")),
                        }
                        assert!(step % 100 != 0 || db.len() <= 704);
                    }
                });
            }
        });
        assert_eq!(db.len(), db.iter().count(), "known from the beginning: {known}");
        check_invariants(&db)?;
        // The second time it is a database that was there, and not closed in order.
        if known {
            db.insert("unflushed", "value")?;
            db.flush()?;
            std::fs::copy(scratch.join("db"), scratch.join("copy"))?;
            drop(db);
            std::fs::rename(scratch.join("copy"), scratch.join("db"))?;
        }
    }
    std::fs::remove_dir_all(&scratch)?;
    Ok(())
}
