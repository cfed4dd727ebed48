//! How costs grow: with the number of records, with data beyond the cache, with threads.
//!
//! `cargo bench --bench growth -- --out art` takes about four minutes on two processors. Each part prints a
//! table, checks every answer it got, and draws its plot into the directory `--out`, if there is one:
//!
//! - `inserts`: how fast records go in, by how many are there already.
//! - `reads`: point reads of data of 1 to 16 times the cache, of records chosen alike and by Zipf's law.
//! - `threads`: point reads, and writes of each thread's own keys, with 1 to 16 threads.
//!
//! Databases are in the temporary directory of the system, with about 2 GB by default, and are
//! removed at the end. `cargo test --benches` runs everything once on little data, and draws into nothing.

#[expect(dead_code, reason = "the records here are smaller than those that the other benchmarks share")]
#[path = "../common/mod.rs"]
mod common;
mod inserts;
mod options;
mod plot;
mod reads;
mod threads;
mod work;

use options::Options;
use std::process::ExitCode;

/// A part: measures, prints, and returns its plot.
type Part = fn(&Options) -> String;
const PARTS: [(&str, Part); 3] =
    [("inserts", inserts::run), ("reads", reads::run), ("threads", threads::run)];
/// A plot should not weigh more than a picture would.
const LARGEST_PLOT: usize = 20_000;

fn main() -> ExitCode {
    let options = match Options::of(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(end) => return end,
    };
    for (name, part) in PARTS.into_iter().filter(|(name, _)| options.asks_for(name)) {
        println!("{name}");
        let plot = part(&options);
        assert!(plot.len() < LARGEST_PLOT, "{} bytes are too many for one plot", plot.len());
        if let Some(out) = &options.out {
            let file = out.join(format!("{name}.svg"));
            std::fs::create_dir_all(out)
                .and_then(|()| std::fs::write(&file, plot))
                .expect("a writable --out");
            println!("-> {}", file.display());
        }
        println!();
    }
    ExitCode::SUCCESS
}
