//! `Db::verify` on whole databases, while others work, and cancelled.

use super::common_durability::{Scratch, bytes_of};
use super::{base, open, read_only};
use sled::{Config, Verification};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn what_is_whole_is_reported_as_whole() {
    for closed in [false, true] {
        let base = base(closed);
        for config in [read_only(), super::tiny_config()] {
            let db = open(&base.bytes, &config).expect("not damaged");
            let found = db.verify().expect("not damaged");
            assert!(found.is_whole(), "{found:?}");
            assert_eq!((found.trees, found.records), (3, base.state.len() as u64 + u64::from(!closed)));
            let big = base.state.values().filter(|value| value.len() > 128).count();
            assert_eq!(found.big_values, big as u64);
            assert!(found.leaves > 5 && found.bytes > 8192, "{found:?}");
        }
    }
}

#[test]
fn a_database_is_verified_while_others_write() {
    let scratch = Scratch::new("verify-busy");
    let config = Config::new().path(&scratch.0).cache_capacity(1 << 20);
    let db = config.open().expect("healthy");
    let stop = AtomicBool::new(false);
    let rounds: Vec<Verification> = std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            let (db, stop) = (db.clone(), &stop);
            scope.spawn(move || {
                for number in 0.. {
                    // Relaxed: only ends the loop.
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = super::common_durability::mix(number % 20_000 + (thread << 32)).to_be_bytes();
                    let len = if number % 100 == 0 { 5000 } else { 100 };
                    db.insert(key, bytes_of(number, len)).expect("healthy");
                    if number % 7 == 0 {
                        db.remove(key).expect("healthy");
                    }
                    if number % 5000 == 4999 {
                        db.flush().expect("healthy");
                    }
                }
            });
        }
        let mut rounds = Vec::new();
        while rounds.len() < 10 || sled::testing::counters(&db).page_outs < 1000 {
            rounds.push(db.verify().expect("nothing wrong in memory"));
        }
        // Relaxed: only ends the loops.
        stop.store(true, Ordering::Relaxed);
        rounds
    });
    for found in rounds {
        assert!(found.is_whole(), "{:?}", found.damages);
    }
}

#[test]
fn a_check_can_be_watched_and_cancelled() {
    let base = base(false);
    let db = open(&base.bytes, &read_only()).expect("not damaged");
    let mut last = 0;
    let whole = db
        .verify_with(|progress| {
            assert!(progress.bytes >= last && progress.of >= progress.bytes);
            if last == 0 {
                // It may do anything meanwhile, even this.
                assert!(db.verify().expect("not damaged").is_whole());
                sled::testing::checkpoint(&db).expect("in memory");
            }
            last = progress.bytes;
            ControlFlow::Continue(())
        })
        .expect("not damaged");
    assert_eq!(whole.bytes, last);
    let mut asked = 0;
    let cut = db
        .verify_with(|_| {
            asked += 1;
            if asked == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("to be cancelled is no error");
    assert!(cut.cancelled && !cut.is_whole() && cut.bytes < last && asked == 3, "{cut:?}");
}
