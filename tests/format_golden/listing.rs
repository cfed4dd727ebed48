//! Everything in a database as lines of text, as `tests/format_reader.py` prints them.

use sled::{Db, Result};
use std::fmt::Write as _;

/// Bytes in hexadecimal digits.
pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("two hexadecimal digits");
    (0..text.len()).step_by(2).map(digits).collect()
}

/// The line that begins a tree.
pub fn tree_line(name: &[u8]) -> String {
    format!("{{\"tree\": \"{}\"}}\n", hex(name))
}

/// The line of a record, of which the digits are given.
pub fn record_line(key: &str, value: &str) -> String {
    format!("{{\"key\": \"{key}\", \"value\": \"{value}\"}}\n")
}

/// Everything in a database.
pub fn list(db: &Db) -> Result<String> {
    let mut names = db.tree_names();
    names.sort();
    let mut text = String::new();
    for name in names {
        text += &tree_line(&name);
        for pair in &db.open_tree(&name)? {
            let (key, value) = pair?;
            text += &record_line(&hex(key), &hex(value));
        }
    }
    Ok(text)
}

/// A key and its value.
type Pair = (Vec<u8>, Vec<u8>);

/// Reads every record of a listing by its key, and each tree from behind: other ways than that of [`list`].
pub fn check_all_reads(db: &Db, listing: &str) -> Result<()> {
    let mut trees: Vec<(Vec<u8>, Vec<Pair>)> = Vec::new();
    for line in listing.lines() {
        let fields: Vec<&str> = line.split('"').collect();
        match fields[..] {
            [_, "tree", _, name, _] => trees.push((unhex(name), Vec::new())),
            [_, "key", _, key, _, "value", _, value, _] => {
                trees.last_mut().expect("a tree comes first").1.push((unhex(key), unhex(value)));
            }
            _ => panic!("not a line of a listing: {line}"),
        }
    }
    for (name, records) in trees {
        let tree = db.open_tree(&name)?;
        assert_eq!(tree.len(), records.len(), "{name:?}");
        for (key, value) in &records {
            assert_eq!(tree.get(key)?.as_deref(), Some(&value[..]), "{key:?} of {name:?}");
        }
        let behind = tree.iter().rev().collect::<Result<Vec<_>>>()?;
        let behind: Vec<_> = behind.iter().rev().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        assert!(behind == records, "{name:?} from behind");
    }
    Ok(())
}
