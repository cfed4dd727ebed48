//! Leaves that have never heard of a database: number newtypes, small codecs, and the one door to atomics.

mod lsn;
mod nonce;
pub mod sync;

pub use lsn::{Lsn, RedoPosition};
pub use nonce::Nonces;
