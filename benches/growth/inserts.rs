//! How fast records go in, by how many are there already.

use crate::common::Directory;
use crate::options::Options;
use crate::plot::{self, Line, Panel, Scale};
use crate::work::{CACHE, RECORDS, check, insert, open};
use std::time::{Duration, Instant};

/// Points of the plot.
const SLICES: u64 = 50;
/// Of which each row of the table has some.
const SLICES_OF_A_ROW: u64 = 5;

pub fn run(options: &Options) -> String {
    let (n, cache) = (options.records, options.cache.unwrap_or(CACHE));
    let note = format!("{RECORDS}; durable every 500 ms; cache of {} MiB", cache >> 20);
    println!("{note}\n{:>12} {:>12}", "records", "inserts/s");

    let directory = Directory::new();
    let db = open(&directory, cache);
    let (mut points, mut rows, mut row) = (Vec::new(), Vec::new(), Duration::ZERO);
    for slice in 0..SLICES {
        let (from, to) = (n * slice / SLICES, n * (slice + 1) / SLICES);
        let start = Instant::now();
        insert(&db, from..to);
        let passed = start.elapsed();
        points.push(((from + to) as f64 / 2.0, (to - from) as f64 / passed.as_secs_f64()));
        row += passed;
        if (slice + 1) % SLICES_OF_A_ROW == 0 {
            let from = n * (slice + 1 - SLICES_OF_A_ROW) / SLICES;
            rows.push((to - from) as f64 / std::mem::take(&mut row).as_secs_f64());
            println!("{to:12} {:12.0}", rows[rows.len() - 1]);
        }
    }
    db.flush().expect("a healthy disk");
    check(&db, n, |_| 0);

    println!("the last tenth goes in at {:.2} times the rate of the first", rows[rows.len() - 1] / rows[0]);
    let panel = Panel {
        x: "records that are there already",
        y: "inserts/s",
        scale: Scale::UpTo(n as f64),
        lines: vec![Line { name: "random inserts", points }],
    };
    plot::svg("Inserts, as the database grows", &note, &[panel])
}
