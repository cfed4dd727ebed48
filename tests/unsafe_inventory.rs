//! Every `unsafe` of the crate is listed here with its reason, and every atomic ordering says why it is enough.
//!
//! The sources are read as text. A file whose numbers differ from the list fails, so whoever adds or removes one looks
//! at the reason again; so does an `unsafe` block without `// SAFETY:` right above it, and an atomic operation outside
//! of tests with no comment above it that names its ordering.

#![cfg(not(miri))]

use std::fs;
use std::path::{Path, PathBuf};

/// File; unsafe blocks, functions and implementations; what they are for; why that is sound.
type Entry = (&'static str, [usize; 3], &'static str, &'static str);

#[rustfmt::skip]
const INVENTORY: [Entry; 17] = [
    ("api/merge_operator.rs", [0, 0, 2], "Send and Sync for operators, whose trait has no such bound in 0.34",
     "they are called, replaced and dropped under one re-entrant mutex, and their `Rc` never leaves it"),
    ("base/allocations.rs", [2, 2, 1], "a global allocator that counts, behind a feature",
     "each call goes to `System` as it came; counting allocates nothing"),
    ("base/prefetch.rs", [1, 0, 0], "hints to the memory",
     "a hint reads nothing and cannot fault, whatever the address"),
    ("ivec.rs", [10, 0, 0], "a union of bytes in place and a part of shared memory; sixteen bytes moved at once",
     "V1: the first byte says which it is, and the constructors write all of it; SSE2 is a part of x86-64"),
    ("ivec/buffer.rs", [15, 3, 2], "memory with a count, which many read and whoever is alone writes",
     "V4: the count is that of all shares, the last of which frees it; V5, V6: what is read was written before"),
    ("log/redo_buffer.rs", [8, 0, 1], "many writers fill disjoint ranges of one buffer, then one reads all of it",
     "L3: a reservation claims its range by CAS and nobody reads before the last writer has left; bytes are cells"),
    ("pagecache/arena.rs", [7, 1, 1], "blocks from spans, and lists of freed ones",
     "`free` gets what `alloc` gave, once, with its size; a kept block belongs to whoever holds its stack"),
    ("pagecache/frame.rs", [47, 4, 0], "frames and deltas of variable length, read by many while one is replaced",
     "P1 to P4: bytes are written before the CAS that publishes their address, and freed an epoch after they left"),
    ("pagecache/mapping_table.rs", [1, 0, 0], "a word of the table as a reference to a frame",
     "P5: the frame is freed only after the word changed and every guard that could have read it has ended"),
    ("pagecache/memory.rs", [14, 2, 1], "mappings of the system, or blocks of the global allocator, as pieces of memory",
     "a piece is its owner's alone; a range goes back only when its owner says that nobody uses it"),
    ("pagecache/models.rs", [1, 0, 0], "a frame that outlives the threads of a model, in tests only",
     "it is never freed"),
    ("pagecache/regions.rs", [3, 1, 0], "pages that go back to the system",
     "R1, R2: only free pages do, and who releases a run does not use it any more"),
    ("pagecache/spans.rs", [6, 3, 0], "runs of pages that are released, and long blocks from the global allocator",
     "B1, B2: a run is released when none of its blocks is in use; long blocks go back with the layout they came with"),
    ("pagecache/spans/tests.rs", [2, 0, 1], "blocks that are written to and freed, in tests only",
     "a block has one owner, which frees it once"),
    ("storage/second_copy.rs", [2, 0, 0], "`cachestat` and `preadv2`, which the standard library does not offer",
     "the structures have the layout of the kernel's, and the memory that is filled is borrowed for it"),
    ("storage/disk.rs", [3, 0, 0], "`fallocate`, `posix_fadvise` and `sync_file_range`, which the standard library does not offer",
     "system calls that get numbers only, on a descriptor that is open"),
    ("tree/leaf.rs", [2, 0, 0], "sixteen fingerprints compared at once",
     "SSE2 is a part of x86-64; the load is of an array of sixteen bytes, at any address"),
];

/// How many lines above an atomic operation the comment may be that one or several of them share.
const REACH: usize = 8;
const ORDERINGS: [&str; 5] = ["Relaxed", "Acquire", "Release", "AcqRel", "SeqCst"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn comment(line: &str) -> &str {
    line.split_once("//").map_or("", |(_, comment)| comment)
}

/// Which of block, function and implementation are unsafe in a line.
fn unsafe_uses(line: &str) -> [usize; 3] {
    let mut uses = [0; 3];
    for rest in code(line).split("unsafe").skip(1) {
        match rest.trim_start() {
            rest if rest.starts_with('{') => uses[0] += 1,
            rest if rest.starts_with("fn ") => uses[1] += 1,
            rest if rest.starts_with("impl") => uses[2] += 1,
            _ => {}
        }
    }
    uses
}

/// The comment that ends right above line `at`, attributes in between.
fn comment_above(lines: &[&str], at: usize) -> String {
    let above = lines[..at].iter().rev().map(|line| line.trim());
    let above = above.skip_while(|line| line.starts_with("#["));
    above.take_while(|line| line.starts_with("//")).collect()
}

/// Whether a comment a few lines above, in the same function, names one of the orderings in line `at`.
fn has_reason(lines: &[&str], at: usize, named: &[&str]) -> bool {
    let above = lines[at.saturating_sub(REACH)..=at].iter().rev();
    // An end of a function of a file, an implementation or a module.
    let above = above.take_while(|line| !matches!(**line, "}" | "    }" | "        }"));
    above.into_iter().any(|line| named.iter().any(|name| comment(line).contains(name)))
}

/// What is unsafe in a file, and what is wrong with it.
fn inspect(name: &str, text: &str) -> ([usize; 3], Vec<String>) {
    let lines: Vec<&str> = text.lines().collect();
    let is_test = |line: &&str| line.starts_with("#[cfg(") && line.contains("test");
    let end = lines.iter().position(is_test).unwrap_or(lines.len());
    let tests_only = name.ends_with("tests.rs") || name.ends_with("models.rs");
    let (mut all, mut wrong) = ([0; 3], Vec::new());
    for (at, line) in lines.iter().enumerate() {
        let uses = unsafe_uses(line);
        all.iter_mut().zip(uses).for_each(|(all, uses)| *all += uses);
        let above = comment_above(&lines, at);
        if uses[0] + uses[2] > 0 && !above.contains("SAFETY:") {
            wrong.push(format!("{name}:{}: no SAFETY comment: {line}", at + 1));
        }
        // Those of an implementation have the contract of its trait.
        if uses[1] > 0 && !above.contains("# Safety") && !text.contains("unsafe impl GlobalAlloc") {
            wrong.push(format!("{name}:{}: no section on safety: {line}", at + 1));
        }
        let words: Vec<&str> = code(line).split(|c: char| !c.is_alphanumeric()).collect();
        let named: Vec<&str> = ORDERINGS.into_iter().filter(|name| words.contains(name)).collect();
        let import = line.trim_start().starts_with("use ") || line.trim_start().starts_with("pub use ");
        if !named.is_empty() && !import && !tests_only && at < end && !has_reason(&lines, at, &named) {
            wrong.push(format!("{name}:{}: no reason for {named:?}: {line}", at + 1));
        }
    }
    (all, wrong)
}

#[test]
fn what_is_unsafe_is_listed_and_has_its_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files.sort();
    let (mut wrong, mut operations) = (Vec::new(), 0);
    let mut listed: Vec<&Entry> = INVENTORY.iter().collect();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file is UTF-8");
        let name = file.strip_prefix(&root).expect("below src").to_string_lossy().replace('\\', "/");
        let (found, complaints) = inspect(&name, &text);
        wrong.extend(complaints);
        operations += text.matches("Ordering::").count();
        let entry = listed.iter().position(|entry| entry.0 == name).map(|at| listed.remove(at));
        let expected = entry.map_or([0; 3], |entry| entry.1);
        if found != expected {
            wrong.push(format!("{name}: {found:?} blocks, functions, implementations; listed: {expected:?}"));
        }
    }
    wrong.extend(listed.iter().map(|entry| format!("{} is listed, and not there", entry.0)));
    assert!(operations > 100, "only {operations} orderings: this test looks for something else");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_rule_is_seen_when_broken() {
    let complaints = |text: &str| inspect("some.rs", text).1.len();
    assert_eq!(complaints("let x = unsafe { y() };"), 1);
    assert_eq!(complaints("// SAFETY: so.\nlet x = unsafe { y() };"), 0);
    assert_eq!(complaints("// SAFETY: so.\nz();\nlet x = unsafe { y() };"), 1);
    assert_eq!(complaints("// SAFETY: so.\n#[inline]\nunsafe impl Send for X {}"), 0);
    assert_eq!(complaints("/// Does.\nunsafe fn f() {}"), 1);
    assert_eq!(complaints("/// # Safety\n/// - never\nunsafe fn f() {}"), 0);
    assert_eq!(complaints("x.load(Ordering::Acquire);"), 1);
    assert_eq!(complaints("// Acquire: pairs with the store.\nx.load(Ordering::Acquire);"), 0);
    assert_eq!(complaints("// Relaxed: a hint.\nx.load(Ordering::Acquire);"), 1);
    assert_eq!(complaints("// Relaxed: a hint.\nfn f() {\n    }\nx.load(Ordering::Relaxed);"), 1);
    assert_eq!(complaints("use std::sync::atomic::Ordering::Relaxed;"), 0);
    assert_eq!(complaints("#[cfg(test)]\nx.load(Ordering::Acquire);"), 0);
    assert_eq!(inspect("some.rs", "unsafe impl A for B {}\nunsafe { x }; unsafe { y }").0, [2, 0, 1]);
}
