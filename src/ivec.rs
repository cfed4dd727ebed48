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
//! - V3: a buffer is at most `2 * len + SLACK` bytes: a part of something large is copied out, so
//!   that keeping a short value never keeps a large one in memory.

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

/// The largest buffer that `Shared` describes; small in tests, so that `Wide` is met.
const NARROW: usize = if cfg!(test) { 4096 } else { u32::MAX as usize };

/// A run of bytes: the type of keys and values.
///
/// Cloning it is cheap, and so is taking a part with [`subslice`](IVec::subslice): up to 30 bytes are
/// kept in place, longer runs are shared. It derefs to `[u8]`, and compares, orders and hashes as `[u8]`
/// does. Writing through it never changes a clone.
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

    /// `bytes`, which are at most [`INLINE`], in place.
    #[inline]
    fn inline(bytes: &[u8]) -> IVec {
        let mut data = [0; INLINE];
        data[..bytes.len()].copy_from_slice(bytes);
        // V1: the line above panics on a longer slice, so the length fits in a byte.
        IVec(Repr::Inline { len: bytes.len() as u8, data })
    }

    /// A range of a buffer.
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
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashMap};
    use std::panic::{RefUnwindSafe, UnwindSafe, catch_unwind};

    /// `len` bytes that differ from their neighbours.
    fn bytes(len: usize) -> Vec<u8> {
        let period: Vec<u8> = (0..256).map(|i| (i * 7 + 1) as u8).collect();
        let mut bytes = period.repeat(len / period.len() + 1);
        bytes.truncate(len);
        bytes
    }

    /// Bytes of memory behind an `IVec`.
    fn pinned(v: &IVec) -> usize {
        match &v.0 {
            Repr::Inline { .. } => 0,
            Repr::Shared { buffer, .. } => buffer.len(),
            Repr::Wide(wide) => wide.buffer.len(),
        }
    }

    /// Lengths around every limit.
    const LENGTHS: [usize; 13] = [0, 1, 15, 16, 22, 29, 30, 31, 32, 100, NARROW - 1, NARROW, NARROW + 1];

    #[test]
    fn bytes_come_back_whatever_they_came_from() {
        for len in LENGTHS {
            let expected = bytes(len);
            let made = [
                IVec::from(expected.as_slice()),
                IVec::from(expected.clone()),
                IVec::from(expected.clone().into_boxed_slice()),
                IVec::from(Arc::<[u8]>::from(expected.clone())),
                IVec::from(&IVec::from(expected.as_slice())),
                expected.iter().copied().collect(),
                IVec::from(expected.as_slice()).clone(),
            ];
            for v in made {
                assert_eq!(&*v, expected.as_slice());
                assert_eq!(v.len(), len);
                assert_eq!(pinned(&v), if len <= INLINE { 0 } else { len });
                assert_eq!(matches!(v.0, Repr::Wide(_)), len > NARROW);
            }
        }
        assert_eq!(IVec::default(), "");
        assert_eq!(IVec::from("abc"), IVec::from(String::from("abc")));
        assert_eq!(IVec::from(b"abc"), IVec::from(*b"abc"));
        assert_eq!(IVec::from([9; 32]), [9; 32]);
    }

    #[test]
    fn every_part_is_the_same_part_of_the_slice() {
        for len in [0, 5, 30, 31, if cfg!(miri) { 34 } else { 100 }] {
            let (expected, v) = (bytes(len), IVec::from(bytes(len)));
            for at in 0..=len {
                for n in 0..=len - at {
                    assert_eq!(v.subslice(at, n), expected[at..at + n]);
                }
            }
        }
        let (expected, v) = (bytes(NARROW + 9), IVec::from(bytes(NARROW + 9)));
        let part = v.subslice(8, NARROW);
        assert_eq!(part, expected[8..8 + NARROW]);
        assert_eq!(part.subslice(1, NARROW - 1), expected[9..8 + NARROW]);
    }

    #[test]
    fn parts_outside_are_refused() {
        for len in [10, 100] {
            let v = IVec::from(bytes(len));
            let outside = [(len + 1, 0), (0, len + 1), (len, 1), (1, len), (usize::MAX, 1), (1, usize::MAX)];
            for (at, n) in outside {
                assert!(catch_unwind(|| v.subslice(at, n)).is_err(), "{n} at {at} of {len}");
            }
        }
    }

    #[test]
    fn large_parts_share_and_small_ones_let_go() {
        for whole in [1000, 2 * NARROW] {
            let v = IVec::from(bytes(whole));
            let half = v.subslice(whole / 2, whole / 2);
            assert_eq!(pinned(&half), whole, "half shares");
            assert_eq!(half.as_ptr(), v[whole / 2..].as_ptr());
            assert_eq!(pinned(&v.subslice(3, whole / 4)), whole / 4, "a quarter is copied");
            assert_eq!(pinned(&v.subslice(3, INLINE)), 0, "a few bytes are in place");
            for n in 0..whole / 2 {
                assert!(pinned(&half.subslice(0, n)) <= 2 * n + SLACK, "V3");
                if cfg!(miri) && n == 200 {
                    break;
                }
            }
        }
    }

    #[test]
    fn writing_never_changes_a_clone() {
        for len in LENGTHS.into_iter().filter(|len| *len > 0) {
            let mut v = IVec::from(bytes(len));
            let (copy, last) = (v.clone(), len - 1);
            v[last] ^= 255;
            v.as_mut()[0] ^= 1;
            assert_eq!(copy, bytes(len));
            assert_ne!(v, copy);
            let alone = v.as_ptr();
            v[last] ^= 255;
            v[0] ^= 1;
            assert_eq!(v, copy);
            assert_eq!(v.as_ptr(), alone, "nobody shares it any more: written in place");
        }
    }

    #[test]
    fn writing_to_a_part_copies_only_the_part() {
        for whole in [100, 2 * NARROW] {
            let v = IVec::from(bytes(whole));
            let mut part = v.subslice(whole / 4, whole / 2);
            part[0] = 99;
            assert_eq!(pinned(&part), whole / 2);
            assert_eq!(part[0], 99);
            assert_eq!(part[1..], bytes(whole)[whole / 4 + 1..whole / 4 + whole / 2]);
            assert_eq!(v, bytes(whole));
            // A part that outlives the whole is written where it is, at its offset.
            let mut part = v.subslice(10, whole - 10);
            drop(v);
            let before = part.as_ptr();
            part[0] = 98;
            assert_eq!((part[0], part[1], part.as_ptr()), (98, bytes(whole)[11], before));
        }
    }

    #[test]
    fn compares_and_hashes_as_a_slice() {
        let mut sorted: Vec<IVec> = [&b""[..], b"\0", b"\0\0", b"\xff", b"\xff\0"].map(IVec::from).into();
        assert!(sorted.is_sorted());
        sorted.reverse();
        assert!(!sorted.is_sorted());
        for len in [3, 40] {
            let v = IVec::from(bytes(len));
            let hashed: HashMap<IVec, u8> = [(v.clone(), 1)].into();
            assert_eq!(hashed.get(&bytes(len)[..]), Some(&1));
            let ordered: BTreeMap<IVec, u8> = [(v.clone(), 1)].into();
            assert_eq!(ordered.get(&bytes(len)[..]), Some(&1));
            let borrowed: HashMap<&IVec, u8> = [(&v, 1)].into();
            assert_eq!(borrowed.get(&bytes(len)[..]), Some(&1));
        }
        let x = IVec::from("x");
        assert!(x == b"x" && x == "x" && x == vec![b'x'] && x == b"x"[..] && &x == b"x" && x == x.clone());
        let (text, later) = (String::from("x"), IVec::from("z"));
        assert!([&x] == [b"x"] && x == *"x".as_bytes() && x == text && x < later);
    }

    #[test]
    fn prints_as_a_slice() {
        for len in [0, 3, 40] {
            let (v, slice) = (IVec::from(bytes(len)), bytes(len));
            assert_eq!(format!("{v:?} {v:x?} {v:#?}"), format!("{slice:?} {slice:x?} {slice:#?}"));
        }
    }

    #[test]
    fn goes_anywhere() {
        fn check<T: Send + Sync + Unpin + UnwindSafe + RefUnwindSafe + 'static>() {}
        check::<IVec>();
        let v = IVec::from(bytes(100));
        let threads: Vec<_> = (0..3)
            .map(|i| {
                let mut mine = v.subslice(i, 90);
                std::thread::spawn(move || {
                    mine[0] = 0;
                    mine.len()
                })
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().expect("does not panic"), 90);
        }
        assert_eq!(v, bytes(100));
    }
}
