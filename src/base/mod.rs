//! Leaves that have never heard of a database: positions in the log, nonces, and the atomics that models
//! replace.

mod lsn;
mod nonce;
pub mod sync;

pub use lsn::{Lsn, RedoPosition};
pub use nonce::Nonces;
