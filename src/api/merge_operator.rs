//! `MergeOperator`: the user's function behind [`Tree::merge`](crate::Tree::merge).

#![allow(unsafe_code)]

use parking_lot::ReentrantMutex;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

/// How [`Tree::merge`](crate::Tree::merge) combines what a key holds with an operand.
///
/// Every function and closure of this shape is one; there is nothing to implement. It is called with
///
/// - the key,
/// - the value it holds, `None` when it is absent,
/// - the operand given to `merge`,
///
/// and returns the value to store, or `None` to remove the key.
///
/// It is set per tree with [`Tree::set_merge_operator`](crate::Tree::set_merge_operator) and is not part
/// of what is stored: set it again after opening. Only results are stored, so a later version of a
/// program may merge differently. It may be called more than once for one `merge`, when another thread
/// changes the key meanwhile, and so it should do nothing but compute.
///
/// # Examples
/// ```
/// # fn main() -> sled::Result<()> {
/// fn append(_key: &[u8], old: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
///     let mut value = old.unwrap_or_default().to_vec();
///     value.extend_from_slice(operand);
///     Some(value)
/// }
///
/// let db = sled::Config::new().temporary(true).open()?;
/// db.set_merge_operator(append);
/// assert_eq!(db.merge("k", [1])?, Some([1].into()));
/// assert_eq!(db.merge("k", [2, 3])?, Some([1, 2, 3].into()));
///
/// // A counter that goes away at zero.
/// db.set_merge_operator(|_key, old, by| {
///     let old = old.map_or(0, |bytes| i64::from_be_bytes(bytes.try_into().expect("eight bytes")));
///     let by = i64::from_be_bytes(by.try_into().expect("eight bytes"));
///     Some(old + by).filter(|sum| *sum != 0).map(|sum| sum.to_be_bytes().to_vec())
/// });
/// assert_eq!(db.merge("n", 5_i64.to_be_bytes())?, Some(5_i64.to_be_bytes().into()));
/// assert_eq!(db.merge("n", (-5_i64).to_be_bytes())?, None);
/// assert_eq!(db.get("n")?, None);
/// # Ok(())
/// # }
/// ```
pub trait MergeOperator: Fn(&[u8], Option<&[u8]>, &[u8]) -> Option<Vec<u8>> {}

impl<F> MergeOperator for F where F: Fn(&[u8], Option<&[u8]>, &[u8]) -> Option<Vec<u8>> {}

type Boxed = Box<dyn MergeOperator>;

/// The merge operator of a tree, shared by its handles.
///
/// # Concurrency
///
/// The trait has no `Send` or `Sync` bound, as in 0.34, so calls, and dropping a replaced operator, are
/// serialized by a lock that the calling thread may take again: an operator may use the database. Operators
/// of two trees that merge into each other take two of these locks in either order, and can deadlock.
#[derive(Default)]
pub(super) struct Operator(ReentrantMutex<RefCell<Option<Rc<Boxed>>>>);

// SAFETY: what is inside is touched only while the mutex is held, so by one thread at a time, with the mutex
// ordering them. An operator that shares unsynchronized state with code outside of it is the caller's to keep
// to one thread, which the documentation of `Tree::set_merge_operator` says.
unsafe impl Send for Operator {}
// SAFETY: as for `Send`; the `Rc` never leaves the mutex.
unsafe impl Sync for Operator {}

impl Operator {
    /// Replaces the operator.
    pub(super) fn set(&self, operator: Boxed) {
        let cell = self.0.lock();
        let before = cell.replace(Some(Rc::new(operator)));
        drop(before);
    }

    /// Whether there is one.
    pub(super) fn is_set(&self) -> bool {
        self.0.lock().borrow().is_some()
    }

    /// What the operator makes of a value; `None`: there is none.
    pub(super) fn call(&self, key: &[u8], old: Option<&[u8]>, operand: &[u8]) -> Option<Option<Vec<u8>>> {
        let cell = self.0.lock();
        // A clone, so that the operator may replace itself.
        let operator = cell.borrow().clone()?;
        Some(operator(key, old, operand))
    }
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "Operator(set)" } else { "Operator(none)" })
    }
}

#[cfg(test)]
mod tests {
    use super::MergeOperator;

    /// Takes the operand, whatever was there.
    fn replace(_key: &[u8], _old: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
        Some(operand.to_vec())
    }

    /// What callers do: closures without types are inferred through the supertrait.
    fn call(operator: impl MergeOperator + 'static) -> Option<Vec<u8>> {
        operator(b"key", Some(b"old"), b"new")
    }

    #[test]
    fn functions_and_closures_are_merge_operators() {
        assert_eq!(call(replace), Some(b"new".to_vec()));
        assert_eq!(call(|key, old, new| Some([key, old?, new].concat())), Some(b"keyoldnew".to_vec()));
        let boxed: Box<dyn MergeOperator> = Box::new(replace);
        assert_eq!(call(boxed), Some(b"new".to_vec()));
    }
}
