//! What `Mode` changes, and whether settings that nobody can set would be better than those that there are.
//!
//! `cargo bench --bench modes` takes about five minutes on two processors. Every answer is checked. It prints
//!
//! - `modes`: for both modes how fast records go in and are overwritten, how many bytes are written for each byte put, and how
//!   many bytes the file has for each live one, at most and at rest;
//! - `settings`: the rates of the settings that there are, and of 30 that are chosen at random (`--settings N` for more or
//!   fewer), each measured beside the former; and what the best of them wins over all kinds of work.
//!
//! `cargo test --benches` runs it once on little data.

#[expect(dead_code, reason = "databases here have settings of their own")]
mod common;

use common::{Directory, key, scaled, scatter, value};
use sled::testing::{Tuning, open_tuned};
use sled::{Config, Db, Mode};
use std::time::{Duration, Instant};

/// Bytes of a record.
const RECORD: u64 = (common::KEY + common::VALUE) as u64;
/// What a kind of work is called, in the order of its rates.
const WORK: [&str; 5] = ["insert", "get", "overwrite", "range of 10", "scan"];

fn main() {
    let mut settings = scaled(30_000).div_ceil(1000);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--settings" {
            settings = args.next().and_then(|n| n.parse().ok()).expect("--settings N");
        } else if arg == "--list" {
            return println!("modes: benchmark");
        }
    }
    for mode in [Mode::LowSpace, Mode::HighThroughput] {
        measure_mode(mode);
    }
    measure_settings(settings);
}

/// Bytes that the file occupies.
fn occupied(db: &Db) -> u64 {
    db.size_on_disk().expect("a healthy disk")
}

/// Bytes appended to the file by now.
fn appended(db: &Db) -> u64 {
    let stats = db.stats();
    stats.redo_bytes + stats.page_bytes
}

/// Inserts records and overwrites them five times, in random order, with a cache of a fourth of them.
fn measure_mode(mode: Mode) {
    let records = scaled(400_000);
    let (data, directory) = (records * RECORD, Directory::new());
    let config = Config::new().path(&directory.0).cache_capacity((data / 4).max(64 << 10)).mode(mode);
    let db = config.open().expect("the directory is this benchmark's own");
    let mut peak = 0;
    let mut rates = Vec::new();
    let mut written = Vec::new();
    for (round, changes) in [records, 5 * records].into_iter().enumerate() {
        let (start, before) = (Instant::now(), appended(&db));
        for i in 0..changes {
            let number = if round == 0 { i } else { scatter(i) % records };
            db.insert(key(number), &value(number, round as u64)[..]).expect("room on the disk");
            if i % 4096 == 0 {
                peak = peak.max(occupied(&db));
            }
        }
        rates.push(changes as f64 / start.elapsed().as_secs_f64());
        written.push((appended(&db) - before) as f64 / (changes * RECORD) as f64);
    }
    db.flush().expect("a healthy disk");
    // What is left is tidied when nothing has been written for a moment.
    let mut rest = occupied(&db);
    for _ in 0..scaled(60_000) / 1000 {
        std::thread::sleep(Duration::from_millis(50));
        rest = rest.min(occupied(&db));
    }
    assert_eq!(db.len() as u64, records, "none twice, none lost");
    let per_live = |bytes: u64| bytes as f64 / data as f64;
    println!(
        "{mode:?}: inserts {:.0}/s, overwrites {:.0}/s; written for a byte {:.2}, {:.2}; file for a live byte {:.2} at most, \
         {:.2} at rest",
        rates[0],
        rates[1],
        written[0],
        written[1],
        per_live(peak),
        per_live(rest)
    );
}

/// Settings that nobody chose.
fn at_random(seed: u64) -> Tuning {
    let random = |what: u64, n: u64| scatter(seed << 8 | what) % n;
    Tuning {
        leaf_bytes: 2048 << random(1, 4),
        fanout: 64 << random(2, 5),
        redo_buffer: (64 << 10) << random(3, 5),
        segment: (128 << 10) << random(4, 5),
        redo_budget: (16 << 20) << random(5, 5),
        threads: true,
    }
}

/// How fast each kind of work is done.
fn rates(tuning: &Tuning) -> [f64; 5] {
    let records = scaled(300_000);
    let directory = Directory::new();
    let db =
        open_tuned(&Config::new().path(&directory.0), tuning).expect("the directory is this benchmark's own");
    let rate = |operations: u64, each: &mut dyn FnMut(u64)| {
        let start = Instant::now();
        (0..operations).for_each(each);
        operations as f64 / start.elapsed().as_secs_f64()
    };
    let chosen = |i: u64| scatter(!i) % records;
    let insert = rate(records, &mut |i| {
        let old = db.insert(key(i), &value(i, 0)[..]).expect("room on the disk");
        assert_eq!(old, None, "key {i} is new");
    });
    db.flush().expect("a healthy disk");
    let get = rate(records, &mut |i| {
        let found = db.get(key(chosen(i))).expect("readable").expect("inserted");
        assert_eq!(found[..], value(chosen(i), 0), "key {}", chosen(i));
    });
    let overwrite = rate(records, &mut |i| {
        db.insert(key(chosen(i)), &value(chosen(i), 1)[..]).expect("room on the disk").expect("inserted");
    });
    let range = rate(records / 10, &mut |i| {
        let found = db.range(key(chosen(i))..).take(10).filter(Result::is_ok).count();
        // Behind the last keys there are fewer.
        assert!((1..=10).contains(&found), "{found} records");
    });
    let scan = rate(1, &mut |_| assert_eq!(db.iter().filter(Result::is_ok).count() as u64, records));
    [insert, get, overwrite, range, scan * records as f64]
}

/// Measures the settings that there are beside others.
fn measure_settings(count: u64) {
    let mut best = (0.0, String::new());
    for seed in 0..count {
        let tuning = at_random(seed);
        let (own, other) = (rates(&Tuning::default()), rates(&tuning));
        let ratios: Vec<f64> = own.iter().zip(&other).map(|(own, other)| other / own).collect();
        let mean = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64;
        let each: Vec<String> =
            WORK.iter().zip(&ratios).map(|(name, ratio)| format!("{name} {ratio:.2}")).collect();
        println!("{:.2} of the default: {}; {tuning:?}", mean.exp(), each.join(", "));
        if mean.exp() > best.0 {
            best = (mean.exp(), format!("{tuning:?}"));
        }
    }
    println!("the best of {count} does {:.2} times what the default does: {}", best.0, best.1);
}
