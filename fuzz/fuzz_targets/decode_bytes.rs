//! Bytes taken for every structure of the format, as they are and with right checksums.
//!
//! `cargo +nightly fuzz run decode_bytes -- -detect_leaks=0 -timeout=10 -malloc_limit_mb=64 -rss_limit_mb=512`

#![no_main]

mod decode;
mod seal;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| decode::run(bytes));
