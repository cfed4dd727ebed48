//! `IVec`: an immutable run of bytes, inline when short and shared when long.
//!
//! # How it works
//!
//! 32 bytes. Up to [`INLINE`] bytes live in the `IVec` itself; more live in a reference-counted
//! buffer, of which an `IVec` is a range. Cloning copies 32 bytes and, for a buffer, counts one up.
//!
//! ```text
//! Inline   len: u8, data: [u8; 30]
//! Shared   buffer: Arc<[u8]>, start: u32, len: u32
//! Wide     a box of the same with start and len as usize: what lies beyond 4 GiB
//! ```
//!
//! # Invariants
//!
//! - V1: `Inline`: `len <= INLINE`.
//! - V2: `Shared` and `Wide`: `start + len <= buffer.len()`, and neither changes while the
//!   buffer stays the same.
//! - V3: a buffer is at most `2 * len + SLACK` bytes, or [`MIXED`] if keys and values that were read together
//!   share it: a part of something large is copied out, so that keeping a short value never keeps a large one in
//!   memory.

#![allow(unsafe_code)]

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

/// The longest run of bytes that needs no buffer.
const INLINE: usize = 30;

/// What a buffer may be longer than twice the part in use (V3).
const SLACK: usize = 64;

/// The longest buffer that any keys and values which were read together may share (V3).
pub(crate) const MIXED: usize = 2048;

/// The largest buffer that `Shared` describes; small in tests, so that `Wide` is met.
const NARROW: usize = if cfg!(test) { 4096 } else { u32::MAX as usize };

/// A run of bytes: the type of keys and values.
///
/// Cloning it is cheap, and so is taking a part with [`subslice`](IVec::subslice): up to 30 bytes are
/// kept in place, longer runs are shared. It derefs to `[u8]`, and compares, orders and hashes as `[u8]`
/// does. Writing through it never changes a clone.
///
/// Neighbours that come from one iterator may share a piece of memory of up to 2 KiB, which is freed with the last
/// of them. Who picks out a few of very many to keep them for long may want `IVec::from(&found[..])`, which has no
/// more memory than it needs.
///
/// # Examples
/// ```
/// use sled::IVec;
///
/// let mut a = IVec::from("hello");
/// let b = a.clone();
/// a[0] = b'j';
/// assert_eq!(a, "jello");
/// assert_eq!(b, "hello");
/// assert_eq!(std::str::from_utf8(&b), Ok("hello"));
/// ```
#[derive(Clone)]
pub struct IVec(Repr);

/// The three forms; see the head of this file.
#[derive(Clone)]
enum Repr {
    Inline { len: u8, data: [u8; INLINE] },
    Shared { buffer: Arc<[u8]>, start: u32, len: u32 },
    Wide(Box<Wide>),
}

/// A range of a buffer of any size.
#[derive(Clone)]
struct Wide {
    buffer: Arc<[u8]>,
    start: usize,
    len: usize,
}

const _: () = assert!(size_of::<IVec>() <= 32, "four words, so that a pair fits a cache line");
const _: () = assert!(INLINE <= u8::MAX as usize);
const _: () = assert!(MIXED <= NARROW);

impl IVec {
    /// The bytes from `slice_offset` on, `len` of them. They are shared, or copied when they are
    /// few or less than about half of what is in memory for this `IVec`.
    ///
    /// # Panics
    /// When the range does not lie within the bytes; an empty range at the end does.
    ///
    /// # Examples
    /// ```
    /// let all = sled::IVec::from("key:value");
    /// assert_eq!(all.subslice(4, 5), "value");
    /// assert_eq!(all.subslice(all.len(), 0), "");
    /// ```
    #[must_use]
    pub fn subslice(&self, slice_offset: usize, len: usize) -> Self {
        let whole = self.len();
        assert!(slice_offset <= whole, "offset {slice_offset} is past the {whole} bytes");
        assert!(len <= whole - slice_offset, "{len} bytes at {slice_offset} end past the {whole} bytes");
        let part = &self[slice_offset..slice_offset + len];
        match &self.0 {
            Repr::Shared { buffer, start, .. } if shareable(buffer, len) => {
                IVec::ranged(Arc::clone(buffer), *start as usize + slice_offset, len)
            }
            Repr::Wide(wide) if shareable(&wide.buffer, len) => {
                IVec::ranged(Arc::clone(&wide.buffer), wide.start + slice_offset, len)
            }
            _ => IVec::from(part),
        }
    }

    /// Whether so many bytes are kept in place.
    #[inline]
    pub(crate) const fn is_short(len: usize) -> bool {
        len <= INLINE
    }

    /// A part of a buffer that neighbours share. It is copied when it is short, or when the buffer is long and mostly
    /// something else (V3).
    ///
    /// # Panics
    /// When the range does not lie within the buffer.
    #[inline(always)]
    pub(crate) fn part(buffer: &Arc<[u8]>, range: Range<usize>) -> IVec {
        if range.len() <= INLINE {
            return IVec::inline_part(buffer, range);
        }
        match IVec::shared_part(buffer, &range) {
            Some(part) => part,
            None => IVec::long_part(buffer, range),
        }
    }

    /// A part of a buffer that is longer than what neighbours share.
    #[cold]
    fn long_part(buffer: &Arc<[u8]>, range: Range<usize>) -> IVec {
        if shareable(buffer, range.len()) {
            IVec::ranged(Arc::clone(buffer), range.start, range.len())
        } else {
            IVec::from(&buffer[range])
        }
    }

    /// As [`Self::part`] with something in front.
    #[inline(always)]
    pub(crate) fn prefixed(front: &IVec, buffer: &[u8], range: Range<usize>) -> IVec {
        match IVec::prefixed_in_place(front, buffer, &range) {
            Some(bytes) => bytes,
            None => IVec::joined(front, &buffer[range]),
        }
    }

    /// As [`Self::prefixed`], without a copy of bytes one by one; `None` if that is not possible.
    #[inline(always)]
    pub(crate) fn prefixed_in_place(front: &IVec, buffer: &[u8], range: &Range<usize>) -> Option<IVec> {
        // All bytes at once, whatever they are behind the end; those in front are replaced as one number.
        let Repr::Inline { len: front_len, data: front } = &front.0 else { return None };
        let front_len = usize::from(*front_len);
        let len = front_len + range.len();
        if front_len > 15 || len > INLINE || range.end > buffer.len() {
            return None;
        }
        let mut data = *buffer.get(range.start.checked_sub(front_len)?..)?.first_chunk::<INLINE>()?;
        let number = |data: &[u8; INLINE]| u128::from_le_bytes(*data.first_chunk().expect("INLINE is more"));
        let mask = (1_u128 << (8 * front_len)) - 1;
        let merged = number(front) & mask | number(&data) & !mask;
        data[..16].copy_from_slice(&merged.to_le_bytes());
        // V1: checked above.
        Some(IVec(Repr::Inline { len: len as u8, data }))
    }

    /// As [`Self::part`] when the part is long and the buffer is not; `None` otherwise.
    #[inline(always)]
    pub(crate) fn shared_part(buffer: &Arc<[u8]>, range: &Range<usize>) -> Option<IVec> {
        if range.len() <= INLINE || buffer.len() > MIXED || range.end > buffer.len() {
            return None;
        }
        // V2: checked above. Both are at most the length of the buffer, which is at most `NARROW`.
        let (start, len) = (range.start as u32, range.len() as u32);
        Some(IVec(Repr::Shared { buffer: Arc::clone(buffer), start, len }))
    }

    /// A short part in place.
    #[inline(always)]
    fn inline_part(buffer: &[u8], range: Range<usize>) -> IVec {
        match buffer[range.start..].first_chunk::<INLINE>() {
            // All bytes at once, whatever they are behind the end.
            Some(data) if range.len() <= INLINE && range.end <= buffer.len() => {
                // V1: checked above.
                IVec(Repr::Inline { len: range.len() as u8, data: *data })
            }
            _ => IVec::inline(&buffer[range]),
        }
    }

    /// Two runs of bytes, one behind the other.
    pub(crate) fn joined(front: &[u8], back: &[u8]) -> IVec {
        let len = front.len() + back.len();
        if len > INLINE {
            return IVec::from([front, back].concat());
        }
        let mut data = [0; INLINE];
        data[..front.len()].copy_from_slice(front);
        data[front.len()..len].copy_from_slice(back);
        // V1: checked above.
        IVec(Repr::Inline { len: len as u8, data })
    }

    /// `bytes`, which are at most [`INLINE`], in place.
    #[inline]
    fn inline(bytes: &[u8]) -> IVec {
        let mut data = [0; INLINE];
        data[..bytes.len()].copy_from_slice(bytes);
        // V1: the line above panics on a longer slice, so the length fits in a byte.
        IVec(Repr::Inline { len: bytes.len() as u8, data })
    }

    /// A range of a buffer.
    #[inline]
    fn ranged(buffer: Arc<[u8]>, start: usize, len: usize) -> IVec {
        assert!(start <= buffer.len() && len <= buffer.len() - start, "V2: the range lies in its buffer");
        if buffer.len() <= NARROW {
            // Both are at most the length of the buffer, which is at most `NARROW`.
            IVec(Repr::Shared { buffer, start: start as u32, len: len as u32 })
        } else {
            IVec(Repr::Wide(Box::new(Wide { buffer, start, len })))
        }
    }
}

/// Whether a part of `len` bytes may keep this buffer (V3).
fn shareable(buffer: &[u8], len: usize) -> bool {
    len > INLINE && buffer.len() <= len.saturating_mul(2).saturating_add(SLACK)
}

/// `start..start + len`; no overflow, as V2 bounds it by the length of a buffer.
#[inline]
const fn range(start: usize, len: usize) -> Range<usize> {
    start..start + len
}

/// The bytes `range` of a buffer, for writing: in place if nobody else has the buffer, else of a copy
/// of just these bytes, which makes the range start at zero.
fn own(buffer: &mut Arc<[u8]>, range: Range<usize>) -> (&mut [u8], usize) {
    let range = if Arc::get_mut(buffer).is_some() {
        range
    } else {
        let copy = Arc::from(&buffer[range.clone()]);
        *buffer = copy;
        0..range.len()
    };
    let start = range.start;
    let bytes = Arc::get_mut(buffer).expect("nobody else had it, or it is a fresh copy");
    (&mut bytes[range], start)
}

impl Deref for IVec {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, data } => {
                debug_assert!(usize::from(*len) <= INLINE, "V1");
                // SAFETY: V1, `data` is `INLINE` bytes long.
                unsafe { data.get_unchecked(..usize::from(*len)) }
            }
            Repr::Shared { buffer, start, len } => {
                let range = range(*start as usize, *len as usize);
                debug_assert!(range.end <= buffer.len(), "V2");
                // SAFETY: V2, and the sum of two values up to `u32::MAX` that is at most a length did
                // not wrap when it was checked against it.
                unsafe { buffer.get_unchecked(range) }
            }
            Repr::Wide(wide) => &wide.buffer[range(wide.start, wide.len)],
        }
    }
}

/// Copies the bytes first if they are shared, so that no clone sees the change.
impl DerefMut for IVec {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Repr::Inline { len, data } => &mut data[..usize::from(*len)],
            Repr::Shared { buffer, start, len } => {
                let (bytes, at) = own(buffer, range(*start as usize, *len as usize));
                *start = at as u32; // The old start or zero (V2).
                bytes
            }
            Repr::Wide(wide) => {
                let (bytes, at) = own(&mut wide.buffer, range(wide.start, wide.len));
                wide.start = at;
                bytes
            }
        }
    }
}

impl AsRef<[u8]> for IVec {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for IVec {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Borrow<[u8]> for IVec {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Borrow<[u8]> for &IVec {
    fn borrow(&self) -> &[u8] {
        self
    }
}

/// No bytes.
impl Default for IVec {
    fn default() -> IVec {
        IVec(Repr::Inline { len: 0, data: [0; INLINE] })
    }
}

impl From<&[u8]> for IVec {
    #[inline]
    fn from(bytes: &[u8]) -> IVec {
        if bytes.len() <= INLINE {
            IVec::inline(bytes)
        } else {
            IVec::ranged(Arc::from(bytes), 0, bytes.len())
        }
    }
}

/// Shares the buffer unless the bytes fit in place.
impl From<Arc<[u8]>> for IVec {
    fn from(buffer: Arc<[u8]>) -> IVec {
        let len = buffer.len();
        if len <= INLINE { IVec::inline(&buffer) } else { IVec::ranged(buffer, 0, len) }
    }
}

impl From<&str> for IVec {
    fn from(text: &str) -> IVec {
        IVec::from(text.as_bytes())
    }
}

impl From<String> for IVec {
    fn from(text: String) -> IVec {
        IVec::from(text.as_bytes())
    }
}

impl From<Vec<u8>> for IVec {
    fn from(bytes: Vec<u8>) -> IVec {
        IVec::from(bytes.as_slice())
    }
}

impl From<Box<[u8]>> for IVec {
    fn from(bytes: Box<[u8]>) -> IVec {
        IVec::from(&*bytes)
    }
}

impl From<&IVec> for IVec {
    fn from(bytes: &IVec) -> IVec {
        bytes.clone()
    }
}

/// Arrays, owned and borrowed. One impl per length, because one over all lengths is a promise that the
/// interface never made.
macro_rules! from_arrays {
    ($($len:literal)*) => {
        $(
            impl From<&[u8; $len]> for IVec {
                fn from(bytes: &[u8; $len]) -> IVec {
                    IVec::from(bytes.as_slice())
                }
            }

            impl From<[u8; $len]> for IVec {
                fn from(bytes: [u8; $len]) -> IVec {
                    IVec::from(bytes.as_slice())
                }
            }
        )*
    };
}

from_arrays!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32);

impl FromIterator<u8> for IVec {
    fn from_iter<I: IntoIterator<Item = u8>>(bytes: I) -> IVec {
        IVec::from(bytes.into_iter().collect::<Vec<u8>>())
    }
}

impl Hash for IVec {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.deref().hash(state);
    }
}

impl Ord for IVec {
    fn cmp(&self, other: &IVec) -> std::cmp::Ordering {
        self.deref().cmp(other.deref())
    }
}

impl PartialOrd for IVec {
    fn partial_cmp(&self, other: &IVec) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for IVec {}

impl<T: AsRef<[u8]>> PartialEq<T> for IVec {
    fn eq(&self, other: &T) -> bool {
        self.deref() == other.as_ref()
    }
}

impl PartialEq<[u8]> for IVec {
    fn eq(&self, other: &[u8]) -> bool {
        self.deref() == other
    }
}

/// As a slice of bytes is printed.
impl fmt::Debug for IVec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}

#[cfg(test)]
mod tests;
