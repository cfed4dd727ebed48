//! Leaves that have never heard of a database: number newtypes and small codecs.

mod lsn;
mod nonce;

pub use lsn::{Lsn, RedoPosition};
pub use nonce::Nonces;
