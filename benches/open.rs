//! How long an open takes: after a clean close, and after the process was killed.

mod common;

use common::{Directory, key, scaled, value};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use sled::Db;

/// Share of the records that were updated since the last clean close, when the process is killed.
const TAIL: u64 = 10;

/// Panics unless `db` has `n` keys, the first `updated` of them at version 1.
fn check(db: &Db, n: u64, updated: u64) {
    assert!(db.was_recovered(), "it was there before");
    assert_eq!(db.len() as u64, n, "every key is there");
    for i in [0, updated.saturating_sub(1), updated, n - 1] {
        let found = db.get(key(i)).expect("readable").expect("every key was flushed");
        assert_eq!(found[..], value(i, u64::from(i < updated)), "value of key {i}");
    }
}

fn clean(c: &mut Criterion) {
    let n = scaled(1_000_000);
    let directory = Directory::new();
    drop(directory.filled(n));
    c.benchmark_group("open").sample_size(10).bench_function("after a clean close", |b| {
        b.iter_batched(
            || (),
            // The database that is returned is closed outside the measurement.
            |()| directory.open(),
            BatchSize::PerIteration,
        );
    });
    check(&directory.open(), n, 0);
}

fn killed(c: &mut Criterion) {
    let n = scaled(1_000_000);
    let directory = Directory::new();
    drop(directory.filled(n));
    let db = directory.open();
    for i in 0..n / TAIL {
        db.insert(key(i), &value(i, 1)[..]).expect("room on the disk");
    }
    db.flush().expect("a healthy disk");
    // What a kill at this moment leaves: the file as it is while the database is open.
    let left = Directory::new();
    copy(&directory, &left);
    drop(db);
    let mut last = None;
    c.benchmark_group("open").sample_size(10).bench_function("after a kill", |b| {
        b.iter_batched(
            || {
                let directory = Directory::new();
                copy(&left, &directory);
                directory
            },
            |directory| {
                let db = directory.open();
                (db, directory)
            },
            BatchSize::PerIteration,
        );
        let directory = Directory::new();
        copy(&left, &directory);
        last = Some(directory);
    });
    if let Some(directory) = last {
        check(&directory.open(), n, n / TAIL);
    }
}

/// Copies the one file of a database.
fn copy(from: &Directory, to: &Directory) {
    std::fs::create_dir_all(&to.0).expect("a writable temporary directory");
    std::fs::copy(from.0.join("db"), to.0.join("db")).expect("room on the disk");
}

criterion_group!(benches, clean, killed);
criterion_main!(benches);
