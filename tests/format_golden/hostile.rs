//! Golden files that were cut, damaged, or forged with every checksum right: each is refused for the reason that is written
//! here, and left as it is.

use crate::common::crc32;
use crate::listing::list;
use crate::{config, directory_with, golden_bytes, reader};
use sled::Error;

/// Offset of a superblock's sum.
const SUM_AT: usize = 508;
/// Bytes of headers.
const HEADER: usize = 64;

/// The bytes of a database that is being forged.
struct Forged(Vec<u8>);

impl Forged {
    fn number(&self, at: usize, size: usize) -> usize {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&self.0[at..at + size]);
        usize::try_from(u64::from_le_bytes(bytes)).expect("a place in a small file")
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Where the superblock that counts is.
    fn superblock(&self) -> usize {
        if self.number(16, 8) > self.number(4096 + 16, 8) { 0 } else { 4096 }
    }

    /// Changes the four copies of superblocks.
    fn superblocks(&mut self, at: usize, bytes: &[u8]) {
        for copy in [0, 2048, 4096, 4096 + 2048] {
            self.put(copy + at, bytes);
            let sum = crc32(0, &self.0[copy..copy + SUM_AT]);
            self.put(copy + SUM_AT, &sum.to_le_bytes());
        }
    }

    /// Changes a block or an image whose length is at `length_at` in its header; `at` counts from its start.
    fn framed(&mut self, start: usize, length_at: usize, at: usize, bytes: &[u8]) {
        let end = start + HEADER + self.number(start + length_at, 4);
        self.put(start + at, bytes);
        let sum = crc32(0, &self.0[start + 8..end]);
        self.put(start + 4, &sum.to_le_bytes());
    }

    fn image(&mut self, start: usize, at: usize, bytes: &[u8]) {
        self.framed(start, 32, at, bytes);
    }

    fn root(&self) -> usize {
        self.number(self.superblock() + 32, 8)
    }

    fn first_chunk(&self) -> usize {
        let runs_at = self.root() + HEADER + 12;
        let chunks_at = runs_at + 4 + 29 * self.number(runs_at, 4);
        (self.number(chunks_at + 4, 8) >> 24) * 64
    }

    /// The image of the first leaf in the directory, which is that of the tree without a name.
    fn first_leaf(&self) -> usize {
        let name_length = self.first_chunk() + HEADER + 6;
        let leaf = name_length + 1 + self.number(name_length, 1);
        assert_eq!(self.0[leaf..leaf + 3], [2, 0, 0], "the first leaf of a tree");
        (self.number(leaf + 3, 8) >> 24) * 64
    }

    /// Where the first record of that leaf, of a big value, has its reference.
    fn first_reference(&self) -> usize {
        let leaf = self.first_leaf() + HEADER;
        let record = leaf + self.number(leaf + 32 + self.number(leaf, 4), 4);
        assert_eq!(self.number(record + 2, 2), 1 << 14 | 16, "a reference");
        record + 4 + self.number(record, 2)
    }

    /// The block in which replay starts.
    fn first_block(&self) -> usize {
        let superblock = self.superblock();
        8192 + self.number(superblock + 64, 4) * self.number(superblock + 24, 4)
            + self.number(superblock + 68, 4)
    }

    fn block(&mut self, at: usize, bytes: &[u8]) {
        self.framed(self.first_block(), 40, at, bytes);
    }
}

/// What is forged, the golden database it is made of, how, and the error.
type Case = (&'static str, &'static str, fn(&mut Forged), &'static str);

const CASES: &[Case] = &[
    (
        "cut in the middle",
        "closed",
        |f| f.0.truncate(f.0.len() / 2),
        "Read corrupted data at file offset Some(Inline(69632)) backtrace ()",
    ),
    (
        "cut behind the superblocks",
        "closed",
        |f| f.0.truncate(8192),
        "Read corrupted data at file offset Some(Inline(20480)) backtrace ()",
    ),
    (
        "cut to nothing",
        "closed",
        |f| f.0.clear(),
        "Read corrupted data at file offset Some(Inline(0)) backtrace ()",
    ),
    (
        "zeros for a durable block",
        "crashed",
        |f| f.put(f.first_block(), &[0; 512]),
        "Read corrupted data at file offset Some(Inline(59392)) backtrace ()",
    ),
    (
        "zeros for superblocks",
        "closed",
        |f| f.0[..8192].fill(0),
        "Read corrupted data at file offset Some(Inline(0)) backtrace ()",
    ),
    (
        "zeros for the newer superblock",
        "closed",
        |f| f.put(f.superblock(), &[0; 4096]),
        "Read corrupted data at file offset Some(Inline(0)) backtrace ()",
    ),
    (
        "another program's magic",
        "closed",
        |f| f.superblocks(0, b"SQLite f"),
        "Unsupported: not a database of this kind",
    ),
    (
        "version 2",
        "closed",
        |f| f.superblocks(8, &[2]),
        "Unsupported: format version 2 (this build reads version 1)",
    ),
    (
        "version 0",
        "closed",
        |f| f.superblocks(8, &[0]),
        "Unsupported: format version 0 (this build reads version 1)",
    ),
    (
        "an unknown flag",
        "closed",
        |f| f.superblocks(12, &[2]),
        "Unsupported: flags 0x2 or fields that version 1 does not have",
    ),
    (
        "a field that is zero",
        "closed",
        |f| f.superblocks(507, &[1]),
        "Unsupported: flags 0x0 or fields that version 1 does not have",
    ),
    (
        "segments of 4 GiB",
        "closed",
        |f| f.superblocks(24, &[0, 0xF0, 0xFF, 0xFF]),
        "Unsupported: segments of 4294963200 bytes, which version 1 does not have",
    ),
    (
        "a root of 1 GiB",
        "closed",
        |f| f.superblocks(40, &[0, 0, 0, 0x3F]),
        "Read corrupted data at file offset Some(Inline(20480)) backtrace ()",
    ),
    (
        "4 billion runs",
        "closed",
        |f| f.image(f.root(), HEADER + 12, &[0xFF; 4]),
        "Read corrupted data at file offset Some(Inline(21312)) backtrace ()",
    ),
    (
        "a root image longer than it is",
        "closed",
        |f| f.put(f.root() + 32, &[0xFF; 4]),
        "Read corrupted data at file offset Some(Inline(21312)) backtrace ()",
    ),
    (
        "a name longer than the directory",
        "closed",
        |f| f.image(f.first_chunk(), HEADER + 6, &[0x7F]),
        "Read corrupted data at file offset Some(Inline(20928)) backtrace (): malformed leaf directory",
    ),
    (
        "a leaf with 4 billion records",
        "closed",
        |f| f.image(f.first_leaf(), HEADER, &[0xFF; 4]),
        "Read corrupted data at file offset Some(Inline(12352)) backtrace ()",
    ),
    (
        "a leaf with an endless low fence",
        "closed",
        |f| f.image(f.first_leaf(), HEADER + 8, &[0xFF; 4]),
        "Read corrupted data at file offset Some(Inline(12352)) backtrace ()",
    ),
    (
        "a big value shorter than its reference says",
        "closed",
        |f| f.image(f.first_leaf(), f.first_reference() + 8 - f.first_leaf(), &[0xFF]),
        "Read corrupted data at file offset Some(Inline(28736)) backtrace ()",
    ),
    (
        "a redo record of 4 GiB",
        "crashed",
        |f| f.block(HEADER, &[0xFF; 4]),
        "Read corrupted data at file offset Some(Inline(59392)) backtrace (): malformed redo record",
    ),
    (
        "a redo record without a kind",
        "crashed",
        |f| f.block(HEADER, &[4, 0, 0, 0]),
        "Read corrupted data at file offset Some(Inline(59392)) backtrace (): malformed redo record",
    ),
    (
        "an unknown redo record",
        "crashed",
        |f| f.block(HEADER + 4, &[99]),
        "Unsupported: redo record of kind 99: written by a later version?",
    ),
    (
        "a tree without an id",
        "crashed",
        |f| f.block(HEADER, &[8, 0, 0, 0]),
        "Read corrupted data at file offset Some(Inline(59392)) backtrace (): malformed redo record",
    ),
    (
        "a byte of a durable block",
        "crashed",
        |f| f.put(f.first_block() + 70, &[0xEE]),
        "Read corrupted data at file offset Some(Inline(59392)) backtrace ()",
    ),
];

#[test]
fn hostile_files_are_refused_for_the_reason_and_not_touched() {
    let mut wrong = Vec::new();
    for (name, base, forge, expected) in CASES {
        let mut forged = Forged(golden_bytes(base));
        forge(&mut forged);
        let directory = directory_with("hostile", &forged.0);
        let opened = config(&directory).open();
        let refused = opened.is_err();
        let error = opened.and_then(|db| list(&db)).expect_err(name);
        // What follows names the file and says what is wrong there.
        if !error.to_string().starts_with(expected) {
            wrong.push(format!("{name}: {error}, not {expected}"));
        }
        if refused && std::fs::read(directory.join("db")).expect("still there") != forged.0 {
            wrong.push(format!("{name}: the file was changed"));
        }
        reader::check_refused(&directory, matches!(error, Error::Corruption { .. }), name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
