//! Point reads and writes by more and more threads, of data that fits into the cache.

use crate::common::Directory;
use crate::options::Options;
use crate::plot::{self, Line, Panel, Scale};
use crate::work::{CACHE, Choice, RECORDS, check, insert, key, open, read, repeat, time, value};
use sled::Db;
use std::sync::Barrier;

const THREADS: [u64; 5] = [1, 2, 4, 8, 16];
/// More records would only take longer to insert.
const MOST_RECORDS: u64 = 1_000_000;

pub fn run(options: &Options) -> String {
    let (n, cache) = (options.records.min(MOST_RECORDS), options.cache.unwrap_or(CACHE));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let count = plot::short(n as f64);
    let note = format!("{processors} processors; {count} records, {RECORDS}; cache of {} MiB", cache >> 20);
    println!("{note}\n{:>12} {:>12} {:>12}", "threads", "reads/s", "writes/s");

    let directory = Directory::new();
    let db = open(&directory, cache);
    insert(&db, 0..n);
    db.flush().expect("a healthy disk");
    // All reads come before the first write, so that they know what to expect.
    let reads = THREADS.map(|threads| reads(&db, n, threads));
    let mut versions = vec![0; usize::try_from(n).expect("no more than a million")];
    let writes = THREADS.map(|threads| writes(&db, &mut versions, threads));
    for (at, threads) in THREADS.iter().enumerate() {
        println!("{threads:12} {:12.0} {:12.0}", reads[at], writes[at]);
    }
    check(&db, n, |i| versions[i as usize]);

    let points = |rates: [f64; THREADS.len()]| THREADS.map(|threads| threads as f64).into_iter().zip(rates);
    let panel = Panel {
        x: "threads",
        y: "operations/s, of all threads together",
        scale: Scale::Doubling,
        lines: vec![
            Line { name: "reads", points: points(reads).collect() },
            Line { name: "writes", points: points(writes).collect() },
        ],
    };
    plot::svg("Reads and writes, by number of threads", &note, &[panel])
}

/// Reads per second of all threads.
fn reads(db: &Db, n: u64, threads: u64) -> f64 {
    together((0..threads).map(Choice::new).collect(), |mut choice: Choice| {
        repeat(time(), || read(db, choice.uniform(n))).1
    })
}

/// Writes per second of all threads. Each has a share of the keys for itself, so that it knows what it replaces.
fn writes(db: &Db, versions: &mut [u64], threads: u64) -> f64 {
    let share = versions.len().div_ceil(threads as usize);
    let shares = (0..).zip(versions.chunks_mut(share)).collect();
    let rate = together(shares, |(thread, versions): (u64, &mut [u64])| {
        let (first, mut choice) = (thread * share as u64, Choice::new(thread));
        repeat(time(), || {
            let own = choice.uniform(versions.len() as u64);
            let (i, version) = (first + own, &mut versions[own as usize]);
            let old = db.insert(key(i), &value(i, *version + 1)[..]).expect("room on the disk");
            assert_eq!(old.expect("every key was inserted")[..], value(i, *version), "what was replaced");
            *version += 1;
        })
        .1
    });
    db.flush().expect("a healthy disk");
    rate
}

/// Gives a thread to each of `shares`, begins in all at once, and adds up the rates they return.
fn together<S: Send>(shares: Vec<S>, work: impl Fn(S) -> f64 + Sync) -> f64 {
    let (start, work) = (&Barrier::new(shares.len()), &work);
    std::thread::scope(|scope| {
        let spawn = |share| {
            scope.spawn(move || {
                start.wait();
                work(share)
            })
        };
        let threads: Vec<_> = shares.into_iter().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("what it read was right")).sum()
    })
}
