//! The command line.

use crate::common::scaled;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "cargo bench --bench growth -- [OPTION]...
    --out DIRECTORY                 where plots go; without it there are only tables
    --records N                     the largest number of records; 10000000
    --cache-mb N                    the cache of every part, in MiB; 1024, but for reads 32 or less
    --only inserts|reads|threads    one part";

/// Fewer would not fill the leaves that are measured.
const FEWEST_RECORDS: u64 = 1000;

/// What was asked for.
pub struct Options {
    pub out: Option<PathBuf>,
    /// The largest number of records.
    pub records: u64,
    /// Bytes, where it is not the part's own choice.
    pub cache: Option<u64>,
    only: Option<String>,
    /// Words that are in the names of the parts to run, as for other benchmarks and tests.
    filters: Vec<String>,
}

impl Options {
    /// Reads the command line. `Err`: there is nothing to run, and why was said.
    ///
    /// `cargo bench` and `cargo test` give options that are meant for others to every program they run: they
    /// are no failure.
    pub fn of(mut args: impl Iterator<Item = String>) -> Result<Options, ExitCode> {
        let records = scaled(10_000_000);
        let mut options = Options { out: None, records, cache: None, only: None, filters: Vec::new() };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| wrong(&format!("{arg} needs a value")));
            match arg.as_str() {
                "--bench" | "--test" | "--nocapture" => {}
                "--out" => options.out = Some(value()?.into()),
                "--records" => options.records = number(&value()?, FEWEST_RECORDS)?,
                "--cache-mb" => options.cache = Some(number(&value()?, 1)? << 20),
                "--only" => options.only = Some(value()?),
                "--list" => {
                    crate::PARTS.iter().for_each(|(name, _)| println!("growth/{name}: benchmark"));
                    return Err(ExitCode::SUCCESS);
                }
                option if option.starts_with('-') => {
                    eprintln!("growth does nothing, as it has no option {option}:\n{USAGE}");
                    return Err(ExitCode::SUCCESS);
                }
                filter => options.filters.push(filter.to_owned()),
            }
        }
        match &options.only {
            Some(only) if crate::PARTS.iter().all(|(name, _)| name != only) => {
                Err(wrong(&format!("there is no part {only}")))
            }
            _ => Ok(options),
        }
    }

    /// Whether the part `name` shall run.
    pub fn asks_for(&self, name: &str) -> bool {
        let full = format!("growth/{name}");
        self.only.as_ref().is_none_or(|only| only == name)
            && (self.filters.is_empty() || self.filters.iter().any(|filter| full.contains(filter.as_str())))
    }
}

fn number(text: &str, least: u64) -> Result<u64, ExitCode> {
    // Far more than any disk has, and no product of it overflows.
    let most = u64::from(u32::MAX);
    text.parse()
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| wrong(&format!("{text} is not a number from {least} to {most}")))
}

fn wrong(what: &str) -> ExitCode {
    eprintln!("{what}\n{USAGE}");
    ExitCode::from(2)
}
