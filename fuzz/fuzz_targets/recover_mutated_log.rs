//! A small database whose bytes are damaged before it is opened: see `damage.rs`.
//!
//! `cargo +nightly fuzz run recover_mutated_log -- -detect_leaks=0 -timeout=10 -malloc_limit_mb=64 -rss_limit_mb=512`

#![no_main]

mod damage;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: damage::Input| damage::run(input));
