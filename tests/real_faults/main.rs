//! Faults of the real system: full and failing file systems, power cuts, limits, injected errors, odd paths, other
//! processes.
//!
//! # How it works
//!
//! Where the fault hits a process as a whole, this binary runs itself as a child (`children`), under `strace` where that
//! makes calls fail or tells which ones there were. File systems are loop-mounted images (`mounts`). What a machine
//! cannot do - no root, no `strace`, no `mkfs` - is skipped, and said on standard error. `SLED_SOAK=<n>` runs n times as
//! much.

#![cfg(target_os = "linux")]
#![cfg(not(miri))]

#[path = "../common_durability/mod.rs"]
mod common_durability;

mod audit;
mod children;
mod full;
mod injected;
mod limits;
mod mounts;
mod odd_paths;
mod openers;
mod power_cut;
mod write_back;

use std::io::Write as _;

/// Says, past the capture of output, that a test does nothing here.
fn skipped(why: impl std::fmt::Display) {
    let name = std::thread::current().name().unwrap_or("a test").to_string();
    let _ = writeln!(std::io::stderr(), "skipped: {name}: {why}");
}
