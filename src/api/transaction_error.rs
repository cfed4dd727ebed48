//! Why a transaction, or an operation inside one, did not succeed.
//!
//! ```text
//!                     an operation's            the closure's               the transaction's
//!                     Unabortable..             Conflictable..              TransactionError
//!
//!   Storage           ---------- ? ---------->  ------------------------->  the caller is told
//!   Conflict          ---------- ? ---------->  the closure runs again
//!   Abort(value)                                ------------------------->  the caller is told
//! ```
//!
//! There is no conversion from a user's error to `Abort` here: programs write one for their own types, and a
//! blanket one would overlap.

use crate::error::Error;
use std::fmt;

const CONFLICT: &str = "Conflict during transaction";

/// Why an operation inside a transaction did not give a result. Leave the closure with it, by `?`.
///
/// # Examples
///
/// ```
/// use sled::transaction::{TransactionalTree, UnabortableTransactionError};
///
/// /// A part of a transaction, for several closures to use.
/// fn next(tree: &TransactionalTree) -> Result<u8, UnabortableTransactionError> {
///     let next = tree.get("count")?.map_or(0, |count| count[0]) + 1;
///     tree.insert("count", [next].as_slice())?;
///     Ok(next)
/// }
/// # fn main() -> sled::transaction::TransactionResult<()> {
/// # let db = sled::Config::new().temporary(true).open()?;
/// assert_eq!(db.transaction(|tree| Ok((next(tree)?, next(tree)?)))?, (1, 2));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum UnabortableTransactionError {
    /// What was read is not the state of one instant any more, as others have written: the closure has to run
    /// again, which it does once it has returned.
    Conflict,
    /// The database failed.
    Storage(Error),
}

/// What the closure of a transaction returns when it does not return `Ok`.
///
/// It is made by [`abort`](super::transaction::abort), or from an error of an operation by `?`.
///
/// # Examples
///
/// ```
/// use sled::transaction::{ConflictableTransactionError, TransactionError};
///
/// #[derive(Debug, PartialEq)]
/// struct TooPoor;
///
/// impl From<TooPoor> for ConflictableTransactionError<TooPoor> {
///     fn from(error: TooPoor) -> Self {
///         ConflictableTransactionError::Abort(error)
///     }
/// }
/// # fn main() -> sled::Result<()> {
/// # let db = sled::Config::new().temporary(true).open()?;
/// let result = db.transaction(|tree| {
///     let purse = tree.remove("purse")?;
///     let purse = purse.ok_or(TooPoor)?;
///     tree.insert("shop", purse)?;
///     Ok(())
/// });
/// assert_eq!(result, Err(TransactionError::Abort(TooPoor)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum ConflictableTransactionError<T = Error> {
    /// The user has decided to give the transaction up: nothing is applied.
    Abort(T),
    /// The closure is to run again.
    #[doc(hidden)]
    Conflict,
    /// The database failed: nothing is applied.
    Storage(Error),
}

/// Why a transaction did not succeed. Nothing of it was applied, except when only the flush that the closure
/// had asked for failed.
///
/// # Examples
///
/// ```
/// use sled::transaction::{TransactionError, abort};
/// # fn main() -> sled::Result<()> {
/// # let db = sled::Config::new().temporary(true).open()?;
/// let result = db.transaction(|tree| {
///     tree.insert("key", "value")?;
///     abort("changed my mind")?;
///     Ok(())
/// });
/// assert_eq!(result, Err(TransactionError::Abort("changed my mind")));
/// assert!(db.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum TransactionError<T = Error> {
    /// The closure gave up with this value.
    Abort(T),
    /// The database failed.
    Storage(Error),
}

/// What the closure of a transaction returns.
pub type ConflictableTransactionResult<T, E = ()> = Result<T, ConflictableTransactionError<E>>;

/// What a transaction returns.
pub type TransactionResult<T, E = ()> = Result<T, TransactionError<E>>;

impl fmt::Display for UnabortableTransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnabortableTransactionError::Conflict => f.write_str(CONFLICT),
            UnabortableTransactionError::Storage(error) => error.fmt(f),
        }
    }
}

impl<T: fmt::Display> fmt::Display for ConflictableTransactionError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConflictableTransactionError::Abort(value) => value.fmt(f),
            ConflictableTransactionError::Conflict => f.write_str(CONFLICT),
            ConflictableTransactionError::Storage(error) => error.fmt(f),
        }
    }
}

impl<T: fmt::Display> fmt::Display for TransactionError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransactionError::Abort(value) => value.fmt(f),
            TransactionError::Storage(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for UnabortableTransactionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            UnabortableTransactionError::Storage(error) => Some(error),
            UnabortableTransactionError::Conflict => None,
        }
    }
}

impl<T: std::error::Error> std::error::Error for ConflictableTransactionError<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConflictableTransactionError::Storage(error) => Some(error),
            _ => None,
        }
    }
}

impl<T: std::error::Error> std::error::Error for TransactionError<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TransactionError::Storage(error) => Some(error),
            TransactionError::Abort(_) => None,
        }
    }
}

impl From<Error> for UnabortableTransactionError {
    fn from(error: Error) -> Self {
        UnabortableTransactionError::Storage(error)
    }
}

impl<T> From<Error> for ConflictableTransactionError<T> {
    fn from(error: Error) -> Self {
        ConflictableTransactionError::Storage(error)
    }
}

impl<T> From<Error> for TransactionError<T> {
    fn from(error: Error) -> Self {
        TransactionError::Storage(error)
    }
}

impl<E> From<UnabortableTransactionError> for ConflictableTransactionError<E> {
    fn from(error: UnabortableTransactionError) -> Self {
        match error {
            UnabortableTransactionError::Conflict => ConflictableTransactionError::Conflict,
            UnabortableTransactionError::Storage(error) => ConflictableTransactionError::Storage(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;
    use std::io;

    type Conflictable = ConflictableTransactionError<io::Error>;
    type Outcome = TransactionError<io::Error>;

    fn failed() -> Error {
        Error::Unsupported("this".into())
    }

    #[test]
    fn texts_are_those_of_the_cause() {
        let abort = || io::Error::other("mine");
        let texts = [
            UnabortableTransactionError::Conflict.to_string(),
            UnabortableTransactionError::Storage(failed()).to_string(),
            Conflictable::Abort(abort()).to_string(),
            Conflictable::Conflict.to_string(),
            Conflictable::Storage(failed()).to_string(),
            Outcome::Abort(abort()).to_string(),
            Outcome::Storage(failed()).to_string(),
        ];
        let this = "Unsupported: this";
        assert_eq!(texts, [CONFLICT, this, "mine", CONFLICT, this, "mine", this]);
    }

    #[test]
    fn only_a_failure_of_the_database_is_a_source() {
        let text = |source: Option<&(dyn std::error::Error + 'static)>| source.map(ToString::to_string);
        let sources = [
            text(UnabortableTransactionError::Conflict.source()),
            text(Conflictable::Abort(io::Error::other("mine")).source()),
            text(Conflictable::Conflict.source()),
            text(Outcome::Abort(io::Error::other("mine")).source()),
        ];
        assert_eq!(sources, [const { None }; 4]);
        let sources = [
            text(UnabortableTransactionError::Storage(failed()).source()),
            text(Conflictable::Storage(failed()).source()),
            text(Outcome::Storage(failed()).source()),
        ];
        assert_eq!(sources, [const { "Unsupported: this" }; 3].map(|text| Some(text.to_owned())));
    }

    #[test]
    fn conversions_keep_what_happened() {
        let failure: UnabortableTransactionError = failed().into();
        assert_eq!(ConflictableTransactionError::<u8>::from(failure), failed().into());
        let conflict = UnabortableTransactionError::Conflict;
        let conflict: ConflictableTransactionError<u8> = conflict.into();
        assert_eq!(conflict, ConflictableTransactionError::Conflict);
        assert_eq!(TransactionError::<u8>::from(failed()), TransactionError::Storage(failed()));
    }
}
