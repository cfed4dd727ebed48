//! Leaves that have never heard of a database: number newtypes and small codecs.

mod lsn;

pub use lsn::Lsn;
