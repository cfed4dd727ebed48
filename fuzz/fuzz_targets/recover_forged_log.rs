//! Files whose structures lie, with every checksum right: see `forgery.rs`.
//!
//! What debug assertions find is of no interest here: the numbers in a forged file need not agree.
//!
//! `cargo +nightly fuzz run -O recover_forged_log -- -detect_leaks=0 -timeout=10 -malloc_limit_mb=64 -rss_limit_mb=512`

#![no_main]

mod forgery;
mod histories;
mod seal;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: forgery::Input| forgery::run(input));
