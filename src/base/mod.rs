//! Leaves that have never heard of a database: positions in the log, nonces, the atomics that models replace, failures
//! on demand, hints to the memory, and what was counted and measured.

mod allocations;
pub mod fail;
mod lsn;
pub mod metrics;
mod nonce;
mod prefetch;
pub mod sync;
mod tally;

#[cfg(any(feature = "measure_allocs", not(feature = "no_metrics")))]
pub use allocations::allocations;
pub use lsn::{Lsn, RedoPosition};
pub use nonce::{Nonces, seed_nonces};
pub use prefetch::prefetch;
pub use tally::{Tally, thread_number};
