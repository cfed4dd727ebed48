//! Point reads of data that is larger than the cache.
//!
//! Data is the bytes of keys and values; pages have a little more. The file is in the page cache of the
//! system all the time, so that a fault costs a call of the system, a checksum and an eviction, and no disk.

use crate::common::{Directory, scaled};
use crate::options::Options;
use crate::plot::{self, Line, Panel, Scale};
use crate::work::{self, Choice, RECORD, RECORDS, check, insert, open, read, repeat, time};
use sled::Db;
use std::time::Duration;

/// Data, in caches.
const SIZES: [u64; 5] = [1, 2, 4, 8, 16];
/// The cache, if the records are enough to be as many times larger.
const CACHE: u64 = 32 << 20;

pub fn run(options: &Options) -> String {
    let largest = SIZES[SIZES.len() - 1];
    let cache = options.cache.unwrap_or(CACHE.min(options.records * RECORD / largest));
    let size = format!("cache of {:.1} MiB", cache as f64 / f64::from(1 << 20)).replace(".0 ", " ");
    let note = format!("{RECORDS}; {size}; the file is in the system's page cache");
    println!("{note}\n{:28} {:>24} {:>24}", "", "uniform", "skewed (Zipf)");
    println!(
        "{:>14} {:>13} {:>12} {:>11} {:>12} {:>11}",
        "data / cache", "records", "reads/s", "faults/read", "reads/s", "faults/read"
    );

    let directory = Directory::new();
    let (mut n, mut rates, mut faults) = (0, [Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for times in SIZES {
        let more = cache * times / RECORD;
        // Inserts would take long with the small cache, and are not the question.
        insert(&open(&directory, cache.max(work::CACHE)), n..more);
        n = more;
        // Opened again, and nothing is written: all work is that of the reads.
        let db = open(&directory, cache);
        let uniform = measure(&db, |choice| choice.uniform(n));
        let skewed = measure(&db, |choice| choice.skewed(n));
        println!(
            "{times:14} {n:13} {:12.0} {:11.3} {:12.0} {:11.3}",
            uniform.0, uniform.1, skewed.0, skewed.1
        );
        for (at, (rate, fault)) in [uniform, skewed].into_iter().enumerate() {
            rates[at].push((times as f64, rate));
            faults[at].push((times as f64, fault));
        }
    }
    check(&open(&directory, cache), n, |_| 0);

    let panel = |y, [uniform, skewed]: [Vec<(f64, f64)>; 2]| Panel {
        x: "size of the data, in caches",
        y,
        scale: Scale::Doubling,
        lines: vec![
            Line { name: "uniform", points: uniform },
            Line { name: "skewed (Zipf)", points: skewed },
        ],
    };
    let panels = [panel("reads/s", rates), panel("faults per read", faults)];
    plot::svg("Point reads, as the data outgrows the cache", &note, &panels)
}

/// Reads per second, and faults of each, of records that `choose` chooses, once they fill the cache.
fn measure(db: &Db, choose: impl Fn(&mut Choice) -> u64) -> (f64, f64) {
    let mut choice = Choice::new(0);
    let mut read_one = || read(db, choose(&mut choice));
    repeat(Duration::from_millis(scaled(1500)), &mut read_one);
    let before = db.stats().faults;
    let (count, rate) = repeat(time(), &mut read_one);
    (rate, (db.stats().faults - before) as f64 / count as f64)
}
