//! Operations decoded from bytes, with failing and crashing media, against a model: see `ops.rs`.
//!
//! `cargo +nightly fuzz run ops_vs_model -- -detect_leaks=0 -timeout=10 -malloc_limit_mb=64 -rss_limit_mb=512`

#![no_main]

mod input;
mod model;
mod ops;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: ops::Input| ops::run(input));
