//! What is durable, and whether the log may still be written.
//!
//! # Invariants
//!
//! - L6: every byte of the redo stream below the stable LSN, and every image it refers to, was written before
//!   a sync that succeeded.
//! - L7: after a sync failed, what the medium holds is unknown; no later sync is trusted and nothing is
//!   acknowledged until the file is opened again.

use crate::base::Lsn;
use crate::base::sync::atomic::{AtomicU64, Ordering};
use crate::error::{Error, Result};
use std::sync::OnceLock;

/// The stable LSN and the first fatal error.
#[derive(Debug)]
pub struct Stability {
    /// L6. Raised by whoever synced.
    stable: AtomicU64,
    /// L7. Set once.
    poison: OnceLock<Error>,
}

impl Stability {
    /// Everything below `stable` is durable.
    pub fn new(stable: Lsn) -> Stability {
        Stability { stable: AtomicU64::new(stable.0), poison: OnceLock::new() }
    }

    /// Every byte below is durable.
    #[inline]
    pub fn stable(&self) -> Lsn {
        // Acquire: pairs with the Release in `raise`.
        Lsn(self.stable.load(Ordering::Acquire))
    }

    /// A sync that succeeded covered everything below `lsn`, so that it is durable (S1, L6).
    pub fn raise(&self, lsn: Lsn) {
        // Release: pairs with the Acquire in `stable`.
        self.stable.fetch_max(lsn.0, Ordering::Release);
    }

    /// From now on every write fails with `error`; the first one counts.
    pub fn poison(&self, error: Error) {
        log::error!("the database takes no more writes until it is opened again: {error}");
        // Whoever came first had the cause.
        let _ = self.poison.set(error);
    }

    /// Whether the log may still be written.
    ///
    /// # Errors
    /// The first fatal error, if there was one.
    #[inline]
    pub fn check(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_stays() {
        let stability = Stability::new(Lsn(5));
        stability.raise(Lsn(9));
        stability.raise(Lsn(7));
        assert_eq!(stability.stable(), Lsn(9));
        stability.check().expect("healthy");
        stability.poison(Error::Unsupported("first".into()));
        stability.poison(Error::Unsupported("second".into()));
        assert_eq!(stability.check(), Err(Error::Unsupported("first".into())));
    }
}
