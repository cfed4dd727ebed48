//! Batches: atomic, the last operation on a key counts, of any size.

use crate::common::{RaiseOnDrop, Watchdog, tiny_config};
use crate::{contents, decode, done, encode, on_threads, tiny_db};
use sled::testing::{CrashMode, SimStorage, Tuning, check_invariants, counters, open_on};
use sled::transaction::ConflictableTransactionResult;
use sled::{Batch, Error, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn the_last_operation_on_a_key_counts() -> Result<()> {
    let db = tiny_db(0, false)?;
    db.insert("a", "old")?;
    let mut batch = Batch::default();
    batch.insert("a", "1");
    batch.remove("a");
    batch.insert("b", "1");
    batch.insert("b", "2");
    batch.remove("c");
    batch.insert("c", "3");
    batch.insert("d", "4");
    batch.remove("d");
    batch.remove("nothing");
    db.apply_batch(batch.clone())?;
    let expected = BTreeMap::from([(b"b".to_vec(), b"2".to_vec()), (b"c".to_vec(), b"3".to_vec())]);
    assert_eq!(contents(&db)?, expected);
    // Once more, and inside a transaction: the same.
    db.apply_batch(batch.clone())?;
    done(db.transaction(|view| {
        view.insert("a", "new")?;
        view.apply_batch(&batch)?;
        assert_eq!((view.get("a")?, view.get("c")?), (None, Some("3".into())));
        Ok(())
    }))?;
    assert_eq!(contents(&db)?, expected);
    assert_eq!(db.len(), 2);
    check_invariants(&db)
}

#[test]
fn an_empty_batch_changes_nothing_anywhere() -> Result<()> {
    let db = tiny_db(1, false)?;
    let tree = db.open_tree("tree")?;
    db.apply_batch(Batch::default())?;
    db.drop_tree("tree")?;
    tree.apply_batch(Batch::default())?;
    let mut batch = Batch::default();
    batch.remove("k");
    assert_eq!(tree.apply_batch(batch), Err(Error::CollectionNotFound("tree".into())));
    Ok(())
}

#[test]
fn odd_keys_and_large_values_go_through_a_batch() -> Result<()> {
    let medium = SimStorage::new();
    let open = |medium: SimStorage| open_on(medium, &tiny_config(), crate::tiny(2, false));
    let db = open(medium.clone())?;
    let mut batch = Batch::default();
    let mut expected = BTreeMap::new();
    for n in 0..60_u8 {
        let key = match n % 4 {
            0 => vec![n; usize::from(n)],
            1 => vec![0xFF; usize::from(n)],
            2 => [&[b'p'; 300][..], &[n]].concat(),
            _ => vec![n],
        };
        let value = vec![n; usize::from(n) * 200];
        batch.insert(&key[..], &value[..]);
        expected.insert(key, value);
    }
    db.apply_batch(batch)?;
    assert_eq!(contents(&db)?, expected);
    check_invariants(&db)?;
    db.flush()?;
    let left = open(medium.crash(0, CrashMode::DropUnsynced))?;
    assert_eq!(contents(&left)?, expected);
    drop(db);
    let again = open(medium)?;
    assert_eq!(contents(&again)?, expected);
    Ok(())
}

#[test]
fn batches_of_many_threads_do_not_mix() -> Result<()> {
    const KEYS: u8 = 30;
    let dog = Watchdog::start("batches of many threads", 30);
    let db = tiny_db(3, true)?;
    on_threads(4, |thread| {
        for n in 0..300 * crate::soak() {
            let mut batch = Batch::default();
            for key in 0..KEYS {
                batch.insert([key], encode(n << 8 | thread as u64));
            }
            db.apply_batch(batch)?;
            // What is there now is all of one batch.
            let values = done(db.transaction(|view| {
                view.iter().map(|pair| Ok(pair?.1)).collect::<ConflictableTransactionResult<Vec<_>, ()>>()
            }))?;
            assert_eq!(values.len(), usize::from(KEYS));
            assert!(values.iter().all(|value| *value == values[0]), "two batches at once: {values:?}");
            dog.kick();
        }
        Ok(())
    })?;
    check_invariants(&db)
}

#[test]
fn a_batch_of_a_million_operations_is_one_step() -> Result<()> {
    const OPS: u64 = 1_000_000;
    const KEYS: u64 = 200_000;
    let dog = Watchdog::start("a batch of a million operations", 120);
    let medium = SimStorage::new();
    let config = sled::Config::new().flush_every_ms(None);
    let db = open_on(medium.clone(), &config, Tuning::default())?;
    let key = |n: u64| (n % KEYS).to_be_bytes();
    let stop = AtomicBool::new(false);
    on_threads(2, |thread| {
        let _raise = RaiseOnDrop(&stop);
        if thread == 0 {
            for round in 0..2 {
                let mut batch = Batch::default();
                for n in 0..OPS {
                    // All but the last fifth is written over.
                    batch.insert(key(n), encode(round * OPS + n + 1));
                }
                dog.kick();
                db.apply_batch(batch)?;
                dog.kick();
            }
            return Ok(());
        }
        // Acquire: pairs with the Release in `RaiseOnDrop`.
        while !stop.load(Ordering::Acquire) {
            for (first, then) in [(0, KEYS - 1), (KEYS - 1, 0), (KEYS / 2, 1)] {
                let rounds = [first, then].map(|n| {
                    let value = decode(db.get(key(n)).expect("healthy"));
                    (value > 0).then(|| {
                        assert_eq!((value - 1) % KEYS, n, "a value of another key");
                        let (round, place) = ((value - 1) / OPS, (value - 1) % OPS);
                        assert!(place >= OPS - KEYS, "an operation that was written over");
                        round
                    })
                });
                assert!(rounds[0] <= rounds[1], "key {then} comes later than key {first}: {rounds:?}");
            }
        }
        Ok(())
    })?;
    let check = |db: &sled::Db| -> Result<()> {
        let mut n = 0;
        for pair in db.iter() {
            let (found, value) = pair?;
            assert_eq!((&found[..], decode(Some(value))), (&key(n)[..], OPS + OPS - KEYS + n + 1));
            n += 1;
        }
        assert_eq!(n, KEYS);
        Ok(())
    };
    check(&db)?;
    println!("{:?}", counters(&db));
    dog.kick();
    drop(db);
    check(&open_on(medium, &config, Tuning::default())?)
}
