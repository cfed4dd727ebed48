//! The tables of the specification are whole, and the golden files are what they say.

use crate::common::crc32;
use crate::{golden, golden_bytes};
use std::path::Path;

/// The golden files and their CRC-32. A row is added for a new file; none is ever changed.
const FILES: [(&str, u32); 6] = [
    ("closed.db", 0xEF5A_BE29),
    ("closed.jsonl", 0x92A4_4CCA),
    ("compressed.db", 0x4105_9B15),
    ("crashed.db", 0xE170_D0BC),
    ("crashed.jsonl", 0xE788_4E8D),
    ("torn.db", 0x8DC0_F604),
];

#[test]
fn golden_files_are_never_changed() {
    let entries = std::fs::read_dir(golden()).expect("the golden files are committed");
    let mut found: Vec<(String, u32)> = entries
        .map(|entry| {
            let path = entry.expect("a file").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, crc32(0, &std::fs::read(path).expect("readable")))
        })
        .collect();
    found.sort();
    assert_eq!(found, FILES.map(|(name, sum)| (name.to_string(), sum)));
}

/// The rows of the tables in a file that begin with a column OFFSET, cell by cell.
fn tables(file: &str) -> Vec<Vec<Vec<String>>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
    let text = std::fs::read_to_string(path).expect("a source file");
    let mut tables = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let row: Option<Vec<String>> = line
            .strip_prefix("//! |")
            .map(|row| row.trim_end_matches('|').split('|').map(|cell| cell.trim().to_string()).collect());
        match row {
            Some(row) if row[0] == "OFFSET" => {
                inside = true;
                tables.push(Vec::new());
            }
            Some(row) if inside && !row[0].starts_with('-') => {
                tables.last_mut().expect("one was begun").push(row);
            }
            Some(_) => {}
            None => inside = false,
        }
    }
    tables
}

/// Where a table ends, if all of its rows have numbers; each row begins where the one before ends.
fn end(file: &str, table: &[Vec<String>]) -> Option<usize> {
    let mut expected = Some(0);
    for row in table {
        if let (Some(expected), Ok(offset)) = (expected, row[0].parse::<usize>()) {
            assert_eq!(offset, expected, "{file}: {row:?}");
        }
        let place = row[0].parse::<usize>().ok().zip(row[1].parse::<usize>().ok());
        expected = place.map(|(offset, size)| offset + size);
    }
    expected
}

#[test]
fn the_tables_of_the_specification_have_no_gaps() {
    let ends = |file| -> Vec<Option<usize>> { tables(file).iter().map(|table| end(file, table)).collect() };
    // The file; superblock; segment header; block; image.
    assert_eq!(ends("log/format.rs"), [None, Some(512), Some(64), None, None]);
    // Root; run.
    assert_eq!(ends("pagecache/directory.rs"), [None, Some(29)]);
    // Leaf; reference.
    assert_eq!(ends("tree/leaf.rs"), [None, Some(16)]);
    assert_eq!(ends("log/record.rs"), [None]);
    // A change of a transaction.
    assert_eq!(ends("tree/redo.rs"), [None]);
}

/// The magic numbers and the version in the tables are those of files.
#[test]
fn golden_files_have_the_magic_numbers_of_the_specification() {
    let bytes = golden_bytes("closed");
    let magic = |table: &[Vec<String>]| table[0][3].trim_matches('`').replace("\\n", "\n").into_bytes();
    let [_, superblock, segment, block, image] = &tables("log/format.rs")[..] else { panic!("five tables") };
    assert!(bytes.starts_with(&magic(superblock)));
    let version = superblock.iter().find(|row| row[2] == "version").expect("a version");
    assert_eq!(bytes[8..12], version[3].parse::<u32>().expect("a number").to_le_bytes());
    for (table, what) in [(segment, "segments"), (block, "blocks"), (image, "images")] {
        let found = bytes[8192..].chunks(64).filter(|chunk| chunk.starts_with(&magic(table))).count();
        assert!(found > 1, "{what} begin with {:?}", magic(table));
    }
}
