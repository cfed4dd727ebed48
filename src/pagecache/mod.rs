//! PID -> page, resident or an address on disk; knows no tree types.
//!
//! # Invariants
//!
//! P1 to P4 are stated, and kept, in [`frame`].

pub mod arena;
pub mod frame;
pub mod mapping_table;
