//! The inputs that the fuzzers found, on every run of the tests.
//!
//! `fuzz/seeds` has for each target the smallest set of inputs that reaches everything it ever reached, and what once
//! made it fail. Here they run without a fuzzer: the targets say themselves what must hold.

#![cfg(not(miri))]

#[path = "../fuzz/fuzz_targets/damage.rs"]
mod damage;
#[path = "../fuzz/fuzz_targets/decode.rs"]
mod decode;
#[path = "../fuzz/fuzz_targets/forgery.rs"]
mod forgery;
#[path = "../fuzz/fuzz_targets/histories.rs"]
mod histories;
#[path = "../fuzz/fuzz_targets/input.rs"]
mod input;
#[path = "../fuzz/fuzz_targets/model.rs"]
mod model;
#[path = "../fuzz/fuzz_targets/ops.rs"]
mod ops;
#[path = "../fuzz/fuzz_targets/seal.rs"]
mod seal;

use arbitrary::{Arbitrary, Unstructured};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

/// Calls `run` with each of a target's inputs, which are `false` if they have no meaning.
fn replay(target: &str, run: impl Fn(&[u8]) -> bool) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let entries = fs::read_dir(&seeds).expect("each target has seeds");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    assert!(paths.len() > 50, "{target} has only {} seeds", paths.len());
    let meaningful = paths.iter().filter(|path| {
        // The last one printed is the one that fails.
        println!("{}", path.display());
        run(&fs::read(path).expect("a file"))
    });
    let meaningful = meaningful.count();
    assert!(meaningful * 2 > paths.len(), "{target}: {meaningful} of {} seeds mean anything", paths.len());
}

/// As the fuzzer makes of bytes what they mean.
fn decoded<T: for<'a> Arbitrary<'a>>(run: fn(T)) -> impl Fn(&[u8]) -> bool {
    move |bytes| T::arbitrary_take_rest(Unstructured::new(bytes)).map(run).is_ok()
}

#[test]
fn operations_with_failing_media_agree_with_the_model() {
    replay("ops_vs_model", decoded(ops::run));
}

#[test]
fn damaged_files_are_errors_or_right() {
    replay("recover_mutated_log", decoded(damage::run));
}

/// How many bytes of a run of big values are live is believed, as counting them would mean to read every leaf. A build with
/// debug assertions stops when that was a lie (L2), and only then.
fn forge(input: forgery::Input) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| forgery::run(input))) {
        let text = panic.downcast_ref::<String>();
        if !cfg!(debug_assertions) || text.is_none_or(|text| !text.starts_with("L2: ")) {
            resume_unwind(panic);
        }
    }
}

#[test]
fn forged_files_do_no_harm() {
    replay("recover_forged_log", decoded(forge));
}

#[test]
fn bytes_of_any_kind_are_refused_or_usable() {
    replay("decode_bytes", |bytes| {
        decode::run(bytes);
        true
    });
}
