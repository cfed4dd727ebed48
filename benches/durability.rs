//! How long it takes until 1 write, and 100 writes, are on the disk; the disk's own sync beside it.

mod common;

use common::{Directory, KEY, VALUE, key, scaled, value};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::fs::File;
use std::io::Write;

fn flushes(c: &mut Criterion) {
    for writes in [1, 100] {
        let directory = Directory::new();
        let start = scaled(100_000);
        let mut next = start;
        // Nothing but the benchmark flushes: no time is spent on, or saved by, the background.
        let config = sled::Config::new().path(&directory.0).flush_every_ms(None);
        drop(directory.filled(start));
        let db = config.open().expect("the directory is this benchmark's own");
        let mut group = c.benchmark_group("durability");
        group.throughput(Throughput::Elements(writes));
        group.bench_function(BenchmarkId::new("writes and flush", writes), |b| {
            b.iter(|| {
                for i in next..next + writes {
                    assert_eq!(
                        db.insert(key(i), &value(i, 0)[..]).expect("room on the disk"),
                        None,
                        "{i} is new"
                    );
                }
                next += writes;
                assert!(db.flush().expect("a healthy disk") > 0, "there was something to flush");
            });
        });
        group.finish();
        drop(db);
        let db = config.open().expect("it was just closed");
        assert_eq!(db.len() as u64, next, "every flushed write is there");
        let last = db.get(key(next - 1)).expect("readable").expect("it was flushed");
        assert_eq!(last[..], value(next - 1, 0), "the last flushed write is there");
    }
}

/// What no database can beat: the same bytes appended to a file and synced.
fn floor(c: &mut Criterion) {
    let directory = Directory::new();
    std::fs::create_dir_all(&directory.0).expect("a writable temporary directory");
    let mut file = File::create(directory.0.join("file")).expect("a writable temporary directory");
    let record = [7; KEY + VALUE];
    let mut written = 0;
    c.benchmark_group("durability").bench_function("append to a file and sync", |b| {
        b.iter(|| {
            file.write_all(&record).expect("room on the disk");
            file.sync_data().expect("a healthy disk");
            written += record.len() as u64;
        });
    });
    assert_eq!(file.metadata().expect("an open file").len(), written, "every record was appended");
}

criterion_group!(benches, flushes, floor);
criterion_main!(benches);
