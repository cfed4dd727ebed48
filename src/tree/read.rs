//! Point reads.

use super::cursor::successor;
use super::delta::value_of;
use super::descent::At;
use super::excerpt::For;
use super::leaf::{BigRef, Value, fingerprint};
use super::{BwTree, Forest};
use crate::error::Result;
use crate::ivec::IVec;
use crossbeam_epoch::Guard;

/// What a leaf says about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found<'g> {
    /// The key's value, which is never `Gone`.
    Value(Value<'g>),
    /// The key has no value.
    Absent,
    /// The leaf is an overlay and does not know.
    Unknown,
}

impl<'g> Found<'g> {
    fn of(value: Value<'g>) -> Found<'g> {
        if value == Value::Gone { Found::Absent } else { Found::Value(value) }
    }

    /// What the base of a leaf says.
    pub(super) fn in_base(at: At<'g>, key: &[u8], fingerprint: u16) -> Found<'g> {
        match at.leaf().find(key, fingerprint) {
            Some(value) => Found::of(value),
            None if at.frame.overlay() => Found::Unknown,
            None => Found::Absent,
        }
    }
}

impl Forest {
    /// The value of a key.
    ///
    /// # Errors
    /// What reading from disk failed with; `CollectionNotFound`.
    #[inline]
    pub fn get(&self, tree: &BwTree, key: &[u8]) -> Result<Option<IVec>> {
        self.get_with(tree, key, |this, found, _| match found {
            None => Ok(None),
            Some(Value::Inline(bytes)) => Ok(Some(IVec::from(bytes))),
            Some(other) => this.copy_out(tree, key, other).map(Some),
        })
    }

    /// Whether a key has a value; a big value is not read.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub fn contains(&self, tree: &BwTree, key: &[u8]) -> Result<bool> {
        self.get_with(tree, key, |_, found, _| Ok(found.is_some()))
    }

    #[inline]
    pub(super) fn get_with<T>(
        &self,
        tree: &BwTree,
        key: &[u8],
        show: impl FnOnce(&Forest, Option<Value<'_>>, &Guard) -> Result<T>,
    ) -> Result<T> {
        let fingerprint = fingerprint(key);
        let guard = crossbeam_epoch::pin();
        tree.check()?;
        loop {
            let at = self.leaf_of_record(tree, (key, For::Reading), &guard)?;
            at.frame.touch();
            let found = match at.frame.find(fingerprint, key) {
                Some(delta) => Found::of(value_of(delta)),
                None => Found::in_base(at, key, fingerprint),
            };
            match found {
                Found::Value(value) => return show(self, Some(value), &guard),
                Found::Absent => return show(self, None, &guard),
                Found::Unknown => self.take_in(tree, at, (key, For::Reading), &guard)?,
            }
        }
    }

    /// A copy of a value, read from disk when it is big. Under the guard that it was found with: the image is not
    /// reused before that ends.
    ///
    /// # Errors
    /// What reading failed with.
    pub(super) fn copy_out(&self, tree: &BwTree, key: &[u8], value: Value<'_>) -> Result<IVec> {
        match value {
            Value::Inline(bytes) => Ok(IVec::from(bytes)),
            Value::Big(bytes) => {
                let (bytes, at) = self.read_big(tree, key, BigRef::decode(bytes))?;
                Ok(bytes.subslice(at, bytes.len() - at))
            }
            Value::Gone => unreachable!("a key without a value was filtered out"),
        }
    }

    /// Reads the big value that a key refers to: the bytes of its image, and where in them it starts.
    ///
    /// # Errors
    /// `Corruption` when it is damaged, or of another key or length; what reading failed with.
    pub(super) fn read_big(&self, tree: &BwTree, key: &[u8], big: BigRef) -> Result<(IVec, usize)> {
        let error = match self.cache.read_big(big.image) {
            Ok((bytes, at)) if bytes[4..at] == *key && (bytes.len() - at) as u64 == big.len => {
                return Ok((bytes, at));
            }
            Ok(_) => self.cache.damaged(big.image, "a big value of another key or length"),
            Err(error) => error,
        };
        Err(error.concerns(&tree.name, key, Some(&successor(key))))
    }
}
