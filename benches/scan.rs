//! How long a scan of 10 and of 1000 records takes, from a random place, in both directions.

mod common;

use common::{Directory, key, scaled, scatter, value};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sled::{Db, IVec};

/// Numbers of the keys in the order of the keys.
fn in_order(n: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..n).collect();
    numbers.sort_unstable_by_key(|i| key(*i));
    numbers
}

/// Panics unless `found` are the records with these numbers.
fn check(
    found: impl Iterator<Item = sled::Result<(IVec, IVec)>>,
    expected: impl Iterator<Item = u64>,
) -> usize {
    let mut expected = expected;
    let mut count = 0;
    for record in found {
        let (found_key, found_value) = record.expect("readable");
        let i = expected.next().expect("no more records than expected");
        assert!(found_key == key(i) && found_value[..8] == value(i, 0)[..8], "record {count} is key {i}");
        count += 1;
    }
    assert_eq!(expected.next(), None, "no fewer records than expected");
    count
}

fn scans(c: &mut Criterion) {
    let n = scaled(1_000_000);
    let directory = Directory::new();
    let db = directory.filled(n);
    let order = in_order(n);
    let whole = check(db.iter(), order.iter().copied());
    assert_eq!(whole as u64, n, "the whole scan has every key once");
    for length in [10, 1_000_u64] {
        scan(c, &db, &order, length.min(n));
    }
}

fn scan(c: &mut Criterion, db: &Db, order: &[u64], length: u64) {
    let starts = order.len() as u64 - length + 1;
    let run = |turn: u64| {
        let first = usize::try_from(scatter(turn) % starts).expect("an index");
        &order[first..first + usize::try_from(length).expect("a length")]
    };
    let mut turn = 0;
    let mut group = c.benchmark_group("scan");
    group.throughput(Throughput::Elements(length));
    group.bench_function(BenchmarkId::new("forward", length), |b| {
        b.iter(|| {
            turn += 1;
            let run = run(turn);
            check(db.range(key(run[0])..).take(run.len()), run.iter().copied())
        });
    });
    group.bench_function(BenchmarkId::new("backward", length), |b| {
        b.iter(|| {
            turn += 1;
            let run = run(turn);
            check(db.range(..=key(run[run.len() - 1])).rev().take(run.len()), run.iter().rev().copied())
        });
    });
    group.finish();
}

criterion_group!(benches, scans);
criterion_main!(benches);
