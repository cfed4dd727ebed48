//! The layering rules, as a test.
//!
//! Reads every source file and fails on an import from a layer above, on a glob import of the crate, on a
//! file that does not open with `//!`, and on `unsafe` outside the files listed here.

use std::fs;
use std::path::{Path, PathBuf};

const LAYERS: [&str; 5] = ["api", "tree", "pagecache", "log", "storage"];
/// What puts the layers together, and the door through which tests reach them.
const ASSEMBLERS: [&str; 2] = ["api/engine.rs", "api/testing.rs"];
const UNSAFE_FILES: [&str; 17] = [
    "api/merge_operator.rs",
    "base/allocations.rs",
    "base/prefetch.rs",
    "ivec.rs",
    "ivec/buffer.rs",
    "log/redo_buffer.rs",
    "pagecache/arena.rs",
    "pagecache/frame.rs",
    "pagecache/mapping_table.rs",
    "pagecache/memory.rs",
    "pagecache/models.rs",
    "pagecache/regions.rs",
    "pagecache/spans.rs",
    "pagecache/spans/tests.rs",
    "storage/disk.rs",
    "storage/second_copy.rs",
    "tree/leaf.rs",
];

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

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|l| *l == name)
}

/// What is wrong with one file, in words.
fn complaints(name: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if !text.starts_with("//!") {
        wrong.push(format!("{name} does not open with //!"));
    }
    let own = name.split('/').next().and_then(layer);
    for line in text.lines().map(str::trim) {
        if let Some(path) = line.strip_prefix("use crate::").or_else(|| line.strip_prefix("pub use crate::"))
        {
            if path.contains('*') {
                wrong.push(format!("{name}: glob import: {line}"));
            }
            let target = path.split([':', ';', '{']).next().and_then(layer);
            if let (Some(own), Some(target)) = (own, target)
                && target != own
                && target != own + 1
                && !ASSEMBLERS.contains(&name)
            {
                wrong.push(format!("{name} reaches past the layer below it: {line}"));
            }
        }
        let code = line.split("//").next().unwrap_or_default();
        let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        if words.into_iter().any(|w| w == "unsafe") && !UNSAFE_FILES.contains(&name) {
            wrong.push(format!("{name}: unsafe is not allowed here: {line}"));
        }
    }
    wrong
}

#[test]
fn sources_keep_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() >= 7, "found only {} files", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file is UTF-8");
        let name = file.strip_prefix(&root).expect("below src").to_string_lossy().replace('\\', "/");
        wrong.extend(complaints(&name, &text));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_rule_is_seen_when_broken() {
    for (name, text) in [
        ("log/mod.rs", "use std::io;"),
        ("log/mod.rs", "//! A\nuse crate::tree::Forest;"),
        ("tree/mod.rs", "//! A\nuse crate::storage::Storage;"),
        ("tree/mod.rs", "//! A\nuse crate::pagecache::*;"),
        ("tree/mod.rs", "//! A\nlet x = unsafe { y() };"),
    ] {
        assert_eq!(complaints(name, text).len(), 1, "{name}: {text}");
    }
    let fine = "//! A\nuse crate::log::Log;\nuse crate::base::Lsn;\n// unsafe in words only";
    assert!(complaints("pagecache/mod.rs", fine).is_empty());
}
