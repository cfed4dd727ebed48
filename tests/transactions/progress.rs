//! Nobody starves, nobody hangs, and what users' code does in the middle of a commit harms nobody: each test is named by
//! what it prevents.

use super::{RaiseOnDrop, done};
use sled::transaction::TransactionResult;
use sled::{Batch, Config, Db, Error, Result, Transactional, testing};
use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

fn temporary() -> Result<Db> {
    Config::new().temporary(true).open()
}

/// Runs a closure while another thread does something again and again.
fn beside<T>(again: impl Fn(u64) -> Result<()> + Sync, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let raise = RaiseOnDrop(&stop);
        let other = scope.spawn(|| {
            let mut n = 0;
            // Acquire: pairs with the Release in `RaiseOnDrop`.
            while !stop.load(Ordering::Acquire) {
                again(n)?;
                n += 1;
            }
            Ok(())
        });
        let answer = run();
        drop(raise);
        other.join().expect("the other does not panic").and(answer)
    })
}

#[test]
fn a_slow_closure_does_not_starve_beside_a_hot_writer() -> Result<()> {
    let db = temporary()?;
    db.insert("hot", [0])?;
    let runs = Cell::new(0);
    beside(
        |n| db.insert("hot", n.to_be_bytes()).map(drop),
        || {
            done(db.transaction(|tree| {
                runs.set(runs.get() + 1);
                let seen = tree.get("hot")?.expect("it is there");
                std::thread::sleep(Duration::from_millis(2));
                tree.insert("seen", seen)?;
                Ok(())
            }))
        },
    )?;
    assert!(runs.get() < 1000, "{} runs", runs.get());
    assert!(db.contains_key("seen")?);
    Ok(())
}

#[test]
fn many_reads_do_not_starve_beside_writes_to_their_neighbours() -> Result<()> {
    let db = temporary()?;
    let keys = 40_000_u32;
    for n in 0..keys {
        db.insert(n.to_be_bytes(), vec![0; 40])?;
    }
    let runs = Cell::new(0);
    let odd = |n: u64| ((n * 7919 % u64::from(keys)) as u32 | 1).to_be_bytes();
    let read = beside(
        |n| db.insert(odd(n), vec![n as u8; 40]).map(drop),
        || {
            done(db.transaction(|tree| {
                runs.set(runs.get() + 1);
                let mut read = 0_u32;
                for n in (0..keys).step_by(2) {
                    read += u32::from(tree.contains_key(n.to_be_bytes())?);
                }
                tree.insert("read", read.to_be_bytes())?;
                Ok(read)
            }))
        },
    )?;
    assert_eq!(read, keys / 2);
    assert!(runs.get() < 1000, "{} runs", runs.get());
    Ok(())
}

#[test]
fn a_scan_of_more_than_the_cache_holds_beside_readers() -> Result<()> {
    let db = Config::new().temporary(true).cache_capacity(1 << 20).open()?;
    for n in 0..20_000_u32 {
        db.insert(n.to_be_bytes(), vec![n as u8; 400])?;
    }
    let runs = Cell::new(0);
    let count = beside(
        |n| {
            std::thread::sleep(Duration::from_micros(200));
            db.get(((n * 7919 % 20_000) as u32).to_be_bytes()).map(drop)
        },
        || {
            done(db.transaction(|tree| {
                runs.set(runs.get() + 1);
                let count = tree.iter().try_fold(0, |count, pair| pair.map(|_| count + 1))?;
                tree.insert("count", [1])?;
                Ok(count)
            }))
        },
    )?;
    assert_eq!((count, runs.get()), (20_000, 1));
    Ok(())
}

#[test]
fn a_closure_that_conflicts_with_itself_ends_with_an_error_that_says_so() -> Result<()> {
    let db = temporary()?;
    let answer: TransactionResult<(), ()> = db.transaction(|tree| {
        tree.get("k")?;
        db.insert("k", db.generate_id()?.to_be_bytes())?;
        tree.insert("other", "v")?;
        Ok(())
    });
    let Err(sled::transaction::TransactionError::Storage(Error::Unsupported(text))) = answer else {
        panic!("{answer:?}")
    };
    assert!(text.contains("closure"), "{text}");
    assert!(!db.contains_key("other")?);
    Ok(())
}

#[test]
fn an_operator_that_panics_in_a_commit_leaves_no_intent_behind() -> Result<()> {
    let db = temporary()?;
    db.set_merge_operator(|_: &[u8], _: Option<&[u8]>, operand: &[u8]| {
        if operand == b"panic" {
            std::panic::panic_any("on purpose");
        }
        Some(operand.to_vec())
    });
    for n in 0..5_000_u32 {
        db.insert(n.to_be_bytes(), vec![1; 100])?;
    }
    let result = catch_unwind(AssertUnwindSafe(|| {
        let answer: TransactionResult<(), ()> = db.transaction(|tree| {
            tree.insert(1_000_u32.to_be_bytes(), "in the first leaves")?;
            tree.merge(4_999_u32.to_be_bytes(), "panic")?;
            Ok(())
        });
        answer
    }));
    assert!(result.is_err());
    assert_eq!(db.get(1_000_u32.to_be_bytes())?, Some(vec![1; 100].into()));
    // The leaves become small, and are merged, which nothing undecided stops.
    for n in (0..5_000_u32).filter(|n| *n != 1_000) {
        db.remove(n.to_be_bytes())?;
    }
    testing::maintain(&db)?;
    testing::checkpoint(&db)?;
    assert_eq!(db.len(), 1);
    testing::check_invariants(&db)
}

#[test]
fn maintenance_goes_on_while_an_operator_takes_its_time_in_a_commit() -> Result<()> {
    let db = temporary()?;
    db.set_merge_operator(|_: &[u8], _: Option<&[u8]>, operand: &[u8]| {
        std::thread::sleep(Duration::from_millis(300));
        Some(operand.to_vec())
    });
    for n in 0..2_000_u32 {
        db.insert(n.to_be_bytes(), vec![1; 100])?;
    }
    let before = testing::memory_used(&db);
    std::thread::scope(|scope| {
        let commit = scope.spawn(|| {
            done(db.transaction(|tree| {
                tree.insert(0_u32.to_be_bytes(), "first")?;
                tree.merge(1_999_u32.to_be_bytes(), "last")?;
                Ok(())
            }))
        });
        for n in 1..1_999_u32 {
            db.remove(n.to_be_bytes())?;
        }
        testing::maintain(&db)?;
        let grown = testing::memory_used(&db).saturating_sub(before);
        assert!(grown < 16 << 20, "memory grew by {grown} bytes");
        commit.join().expect("no panic")
    })?;
    assert_eq!(db.len(), 2);
    Ok(())
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        std::panic::panic_any("on purpose");
    }
}

#[test]
fn a_waker_that_panics_does_not_lose_a_big_value() -> Result<()> {
    for in_transaction in [false, true] {
        let db = temporary()?;
        let mut subscriber = db.watch_prefix("k");
        let waker = Waker::from(Arc::new(Panics));
        assert!(Pin::new(&mut subscriber).poll(&mut Context::from_waker(&waker)).is_pending());
        let value = vec![7_u8; 1 << 20];
        let result = catch_unwind(AssertUnwindSafe(|| {
            if in_transaction {
                done(db.transaction(|tree| Ok(tree.insert("k", &value[..])?)))
            } else {
                db.insert("k", &value[..])
            }
        }));
        assert!(result.is_err(), "the waker was called");
        // Its segment is not given to others.
        for n in 0..40_u8 {
            db.insert([n], vec![n; 1 << 20])?;
            testing::checkpoint(&db)?;
        }
        assert!(db.get("k")?.as_deref() == Some(&value[..]));
        db.insert("k", "small")?;
    }
    Ok(())
}

#[test]
fn a_tree_dropped_in_the_middle_of_a_commit_fails_all_of_it() -> Result<()> {
    let db = temporary()?;
    let (doomed, other) = (db.open_tree("doomed")?, db.open_tree("other")?);
    let once = Mutex::new(Some(db.clone()));
    other.set_merge_operator(move |_: &[u8], _: Option<&[u8]>, operand: &[u8]| {
        if let Some(db) = once.lock().expect("no panic").take() {
            assert_eq!(db.drop_tree("doomed"), Ok(true));
        }
        Some(operand.to_vec())
    });
    let answer: TransactionResult<(), ()> = (&doomed, &other).transaction(|(doomed, other)| {
        let mut batch = Batch::default();
        batch.insert("big", vec![1; 4 << 20]);
        doomed.apply_batch(&batch)?;
        other.merge("k", "v")?;
        Ok(())
    });
    assert_eq!(answer, Err(Error::CollectionNotFound("doomed".into()).into()));
    assert_eq!(other.get("k")?, None);
    for _ in 0..3 {
        testing::maintain(&db)?;
        testing::checkpoint(&db)?;
    }
    assert!(testing::space(&db).0 < 1 << 20, "the big value is dead");
    Ok(())
}

#[test]
fn a_batch_is_not_starved_by_writers_of_its_keys() -> Result<()> {
    let db = temporary()?;
    let applied = AtomicU64::new(0);
    beside(
        |n| db.insert(((n % 5_000) as u32).to_be_bytes(), n.to_be_bytes()).map(drop),
        || {
            for round in 0..20_u64 {
                let mut batch = Batch::default();
                for n in 0..5_000_u32 {
                    batch.insert(n.to_be_bytes(), round.to_be_bytes());
                }
                db.apply_batch(batch)?;
                // Relaxed: statistic.
                applied.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        },
    )?;
    assert_eq!(applied.into_inner(), 20);
    Ok(())
}

#[test]
fn scans_and_removing_transactions_do_not_stop_each_other() -> Result<()> {
    let db = temporary()?;
    let scans = AtomicU64::new(0);
    beside(
        |_| {
            let mut last = None;
            for pair in db.range([0]..[200]) {
                let (key, _) = pair?;
                assert!(last.replace(key.clone()) < Some(key), "in order, and once");
            }
            // Relaxed: statistic.
            scans.fetch_add(1, Ordering::Relaxed);
            Ok(())
        },
        || {
            for n in 0..20_000_u32 {
                let key = [(n % 200) as u8];
                db.insert(key, "v")?;
                let removed = done(db.transaction(|tree| {
                    let there = tree.get(key)? == Some("v".into());
                    Ok(there && tree.remove(key)?.is_some())
                }))?;
                assert!(removed, "nobody else writes");
            }
            Ok(())
        },
    )?;
    assert!(scans.into_inner() > 10);
    Ok(())
}

#[test]
fn identifiers_of_transactions_ascend_in_the_order_of_commits() -> Result<()> {
    let db = temporary()?;
    db.insert("a", "1")?;
    db.insert("b", "2")?;
    let swap = || {
        done(db.transaction(|tree| {
            let (a, b) = (tree.get("a")?, tree.get("b")?);
            let id = tree.generate_id()?;
            // Others swap back what was swapped: the values are what they were, the time is not.
            std::thread::yield_now();
            tree.insert("a", b.expect("it is there"))?;
            tree.insert("b", a.expect("it is there"))?;
            let before = tree.insert("id", id.to_be_bytes().as_slice())?;
            Ok((before, id))
        }))
    };
    let last = |id: &sled::IVec| u64::from_be_bytes(id.as_ref().try_into().expect("eight bytes"));
    super::on_threads(4, |_| {
        for _ in 0..2_000 {
            let (before, id) = swap()?;
            assert!(before.as_ref().map_or(0, last) <= id, "{before:?} before {id}");
        }
        Ok(())
    })?;
    Ok(())
}
