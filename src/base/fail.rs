//! Failures that a test asks for, at named places.
//!
//! # How it works
//!
//! A test arms a place with `set`: bit 0 of the mask says whether the next `check` of it fails, bit 1 whether the one
//! after that does, and so on. A checked bit is gone. The places belong to the process, not to a database. Without the
//! feature `failpoints` nothing can be armed, and a check is nothing at all.
//!
//! A place is checked before the call to the system that it stands for, or after it where its name ends in `post`, so
//! that both what never happened and what happened without being known are tried.

use crate::error::Result;

#[cfg(feature = "failpoints")]
pub use self::armed::{is_active, reset, set};

/// Fails if this place is armed.
///
/// # Errors
/// `FailPoint`.
#[cfg(feature = "failpoints")]
pub(crate) fn check(name: &'static str) -> Result<()> {
    if is_active(name) { Err(crate::error::Error::FailPoint) } else { Ok(()) }
}

/// Never fails: no place can be armed.
///
/// # Errors
/// None.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn check(_name: &'static str) -> Result<()> {
    Ok(())
}

#[cfg(feature = "failpoints")]
mod armed {
    use parking_lot::Mutex;
    use std::collections::BTreeMap;

    /// What is left of the masks that are not 0 yet.
    static MASKS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

    /// Arms a place: each check of it takes the lowest bit of the mask, and fails when that is 1.
    ///
    /// # Examples
    ///
    /// ```
    /// sled::fail::set("a place", 0b10);
    /// assert!(!sled::fail::is_active("a place"));
    /// assert!(sled::fail::is_active("a place"));
    /// assert!(!sled::fail::is_active("a place"));
    /// ```
    pub fn set(name: &'static str, mask: u64) {
        let mut masks = MASKS.lock();
        match mask {
            0 => drop(masks.remove(name)),
            mask => drop(masks.insert(name, mask)),
        }
    }

    /// Takes the lowest bit of the mask of a place: whether the place is to fail now.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(!sled::fail::is_active("a place that nobody armed"));
    /// ```
    pub fn is_active(name: &'static str) -> bool {
        let mut masks = MASKS.lock();
        let Some(mask) = masks.get_mut(name) else { return false };
        let active = *mask & 1 == 1;
        *mask >>= 1;
        if *mask == 0 {
            masks.remove(name);
        }
        active
    }

    /// Disarms every place.
    ///
    /// # Examples
    ///
    /// ```
    /// sled::fail::set("another place", u64::MAX);
    /// sled::fail::reset();
    /// assert!(!sled::fail::is_active("another place"));
    /// ```
    pub fn reset() {
        MASKS.lock().clear();
    }
}

#[cfg(all(test, feature = "failpoints"))]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_mask_is_taken_bit_by_bit() {
        set("test: bits", 0b1101);
        let failed: Vec<bool> = (0..6).map(|_| check("test: bits").is_err()).collect();
        assert_eq!(failed, [true, false, true, true, false, false]);
        set("test: bits", 1);
        assert_eq!(check("test: bits"), Err(Error::FailPoint));
        set("test: bits", 1);
        set("test: bits", 0);
        assert_eq!(check("test: bits"), Ok(()));
    }
}
