//! How long one read, one insert and one update take, unsynced, keys in no order.

mod common;

use common::{Directory, KEY, VALUE, key, scaled, scatter, value};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn reads(c: &mut Criterion) {
    let n = scaled(1_000_000);
    let directory = Directory::new();
    let db = directory.filled(n);
    let mut group = c.benchmark_group("point");
    group.throughput(Throughput::Elements(1));
    let mut turn = 0;
    group.bench_function("get", |b| {
        b.iter(|| {
            let i = scatter(turn) % n;
            turn += 1;
            let found = db.get(key(i)).expect("readable").expect("every key was inserted");
            assert_eq!(found[..], value(i, 0), "value of key {i}");
        });
    });
    group.bench_function("get of an absent key", |b| {
        b.iter(|| {
            turn += 1;
            assert_eq!(db.get(key(n + turn)).expect("readable"), None, "key {} was never inserted", n + turn);
        });
    });
    group.finish();
}

fn inserts(c: &mut Criterion) {
    let directory = Directory::new();
    let start = scaled(100_000);
    let db = directory.filled(start);
    let mut next = start;
    let mut group = c.benchmark_group("point");
    group.throughput(Throughput::Bytes((KEY + VALUE) as u64));
    group.bench_function("insert", |b| {
        b.iter(|| {
            let old = db.insert(key(next), &value(next, 0)[..]).expect("room on the disk");
            assert_eq!(old, None, "key {next} is new");
            next += 1;
        });
    });
    group.finish();
    assert_eq!(db.len() as u64, next, "every insert counts");
    let last = db.get(key(next - 1)).expect("readable").expect("it was inserted");
    assert_eq!(last[..], value(next - 1, 0), "the last insert is there");
}

fn updates(c: &mut Criterion) {
    let n = scaled(1_000_000);
    let directory = Directory::new();
    let db = directory.filled(n);
    // Keys are updated round after round in one scattered order: version = round.
    let stride = (n / 2..).find(|stride| gcd(*stride, n) == 1).expect("n - 1 and n share no factor");
    let mut turn = 0;
    let mut group = c.benchmark_group("point");
    group.throughput(Throughput::Bytes((KEY + VALUE) as u64));
    group.bench_function("update", |b| {
        b.iter(|| {
            let (i, round) = (turn % n * stride % n, turn / n);
            let old = db.insert(key(i), &value(i, round + 1)[..]).expect("room on the disk");
            assert_eq!(old.expect("every key was inserted")[..], value(i, round), "what was replaced");
            turn += 1;
        });
    });
    group.finish();
    assert_eq!(db.len() as u64, n, "an update adds no key");
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

criterion_group!(benches, reads, inserts, updates);
criterion_main!(benches);
