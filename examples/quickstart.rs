//! Indexes the words of every file below a directory, and asks the index where a word occurs.
//!
//! `cargo run --release --example quickstart [DIRECTORY] [DATABASE] [WORD]`: by default this crate's own
//! `src`, a fresh database that is removed at the end, and the most frequent word.
//!
//! Two trees: `files` maps the id of a file to its path; `words` maps word, 0 and id to how often the word
//! occurs in that file. Numbers are big-endian, so that bytes sort as the numbers do; the 0, which is in
//! no word, keeps `tree` and `trees` apart. What the index says is checked against a count in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
/// What the tree `words` must hold.
type Counts = BTreeMap<Vec<u8>, u64>;

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let source = args.next().map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), PathBuf::from);
    let kept = args.next().map(PathBuf::from);
    let word = args.next().map(|word| word.to_string_lossy().to_lowercase());
    let fresh = || std::env::temp_dir().join(format!("sled-quickstart-{}", std::process::id()));
    let database = &kept.clone().unwrap_or_else(fresh);

    let mut paths = Vec::new();
    files_below(&source, &mut paths)?;
    paths.sort();
    let counts = build(&paths, database)?;

    let db = timed("opened, databases", || Ok((sled::open(database)?, 1)))?;
    let (files, words) = (db.open_tree("files")?, db.open_tree("words")?);
    let totals = timed("scanned, entries", || add_up(&words, &counts).map(|totals| (totals, counts.len())))?;
    assert_eq!(files.len(), paths.len(), "every file has its path");

    let mut frequent: Vec<(&String, &u64)> = totals.iter().collect();
    frequent.sort_by_key(|(word, count)| (std::cmp::Reverse(**count), *word));
    println!("\n{} files, {} distinct words; the most frequent:", files.len(), frequent.len());
    frequent.iter().take(10).for_each(|(word, count)| println!("{count:8} {word}"));

    if let Some(word) = word.as_ref().or(frequent.first().map(|(word, _)| *word)) {
        println!("\n`{word}` is in:");
        let (prefix, mut sum) = ([word.as_bytes(), &[0]].concat(), 0);
        for entry in words.scan_prefix(&prefix) {
            let (key, count) = entry?;
            let path = files.get(&key[prefix.len()..])?.ok_or("an entry names a file that is not there")?;
            println!("{:8} {}", number(Some(&count)), String::from_utf8_lossy(&path));
            sum += number(Some(&count));
        }
        assert_eq!(sum, totals.get(word).copied().unwrap_or(0), "the files share out all of `{word}`");
    }
    println!("\nThe database has {} KiB on disk.", db.size_on_disk()? / 1024);
    drop((files, words, db));
    if kept.is_none() {
        std::fs::remove_dir_all(database)?;
    }
    Ok(())
}

/// Indexes the files at `paths` and closes the database; returns its own count.
fn build(paths: &[PathBuf], database: &Path) -> Result<Counts> {
    let db = sled::open(database)?;
    let (files, words) = (db.open_tree("files")?, db.open_tree("words")?);
    // A database that was there before would count its files again.
    files.clear()?;
    words.clear()?;
    let mut counts = Counts::new();
    timed("indexed, words", || {
        for (id, path) in (0_u64..).zip(paths) {
            files.insert(id.to_be_bytes(), path.to_string_lossy().as_bytes())?;
            let text = String::from_utf8_lossy(&std::fs::read(path)?).to_lowercase();
            for word in text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()) {
                let key = [word.as_bytes(), &[0], &id.to_be_bytes()].concat();
                words.update_and_fetch(&key, |old| Some((number(old) + 1).to_be_bytes().to_vec()))?;
                *counts.entry(key).or_default() += 1;
            }
        }
        Ok(((), usize::try_from(counts.values().sum::<u64>())?))
    })?;
    timed("flushed, bytes", || Ok(((), db.flush()?)))?;
    Ok(counts)
}

/// Checks every entry of the index against `counts`; returns how often each word occurs in all files.
fn add_up(words: &sled::Tree, counts: &Counts) -> Result<BTreeMap<String, u64>> {
    assert_eq!(words.len(), counts.len(), "the index has as many entries as were counted");
    let mut totals = BTreeMap::new();
    for (entry, (key, count)) in words.iter().zip(counts) {
        assert!(entry? == (key.as_slice().into(), (&count.to_be_bytes()).into()), "they are the same");
        let word = std::str::from_utf8(&key[..key.len() - size_of::<u64>() - 1])?;
        *totals.entry(word.to_owned()).or_default() += count;
    }
    Ok(totals)
}

/// A count as stored; an absent one is 0.
fn number(bytes: Option<&[u8]>) -> u64 {
    bytes.map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().expect("counts are stored as 8 bytes")))
}

/// Appends every regular file below `directory`.
fn files_below(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files_below(&entry.path(), files)?;
        } else if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Runs `f`, which returns how many of `what` it did, and prints how many that is in a second.
fn timed<T>(what: &str, f: impl FnOnce() -> Result<(T, usize)>) -> Result<T> {
    let start = Instant::now();
    let (result, count) = f()?;
    println!("{what:18} {count:9} {:12.0} per second", count as f64 / start.elapsed().as_secs_f64());
    Ok(result)
}
