//! `IVec`: an immutable run of bytes, inline when short and shared when long.
//!
//! # How it works
//!
//! 32 bytes. Up to [`INLINE`] bytes live in the `IVec` itself; more live in a block of memory with a count
//! (`ivec/buffer.rs`), of which an `IVec` is a range. Cloning copies 32 bytes and, for a block, counts one up.
//!
//! ```text
//!           0           1          8          16         24
//! Inline    len: u8     31 bytes, of which INLINE are used
//! Shared    MARK: 8 bytes          block      start      len
//! ```
//!
//! It is a union, and not an enum, so that it is made, moved and looked at in words. An enum is moved in pieces, which
//! are read back in other pieces soon after they were written: processors wait for that, and iteration spent more time
//! on it than on copying.
//!
//! # Invariants
//!
//! - V1: the first byte is at most [`INLINE`], and all bytes are initialised: `Inline`; or it is that of [`MARK`]:
//!   `Shared`.
//! - V2: `Shared`: `len > INLINE`.
//! - V3: a block is at most `2 * len + SLACK` bytes, or [`MIXED`] if keys and values that were read together
//!   share it: a part of something large is copied out, so that keeping a short value never keeps a large one in
//!   memory.
//! - V4 to V6 are those of the blocks.

#![allow(unsafe_code)]

mod buffer;

pub(crate) use buffer::Chunk;

use buffer::Part;
use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

/// The longest run of bytes that needs no block: what is documented of `IVec`, though one more would fit.
const INLINE: usize = 30;

/// Bytes of an `IVec`.
const SIZE: usize = 32;

/// Bytes that are moved at once.
const HALF: usize = SIZE / 2;

/// From an index on, what masks the bytes before [`HALF`].
const MASKS: [u8; SIZE] = {
    let mut masks = [0; SIZE];
    let mut i = 0;
    while i < HALF {
        masks[i] = 0xFF;
        i += 1;
    }
    masks
};

/// What begins an `IVec` whose bytes are not in place.
const MARK: u64 = u64::MAX;

/// What a block may be longer than twice the part in use (V3).
const SLACK: usize = 64;

/// The longest block that any keys and values which were read together may share (V3).
pub(crate) const MIXED: usize = 2048;

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
pub struct IVec(Repr);

/// The two forms; see the head of this file.
#[repr(C)]
union Repr {
    inline: [u8; SIZE],
    halves: [[u8; HALF]; 2],
    shared: ManuallyDrop<Shared>,
}

#[repr(C)]
struct Shared {
    mark: u64,
    part: Part,
}

/// Which form it is, for reading.
enum Form<'a> {
    InPlace(&'a [u8; SIZE]),
    Shared(&'a Part),
}

/// Which form it is, for writing.
enum FormMut<'a> {
    InPlace(&'a mut [u8; SIZE]),
    Shared(&'a mut ManuallyDrop<Shared>),
}

const _: () = assert!(size_of::<IVec>() == SIZE, "four words, so that a pair fits a cache line");
const _: () = assert!(INLINE < SIZE && INLINE < MARK.to_ne_bytes()[0] as usize);

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
        match self.form() {
            Form::Shared(all) if is_shareable(all.capacity(), len) => {
                IVec::of_part(all.within(slice_offset..slice_offset + len))
            }
            _ => IVec::from(part),
        }
    }

    /// So many bytes, zeros at first, which `fill` writes, and what that returns.
    ///
    /// # Errors
    /// What `fill` failed with.
    pub(crate) fn filled<T, E>(
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<T, E>,
    ) -> Result<(T, IVec), E> {
        // V2: of a length that is not kept in place.
        let mut bytes =
            if len <= INLINE { IVec::inline(&[0; INLINE][..len]) } else { IVec::of_part(Part::zeroed(len)) };
        Ok((fill(&mut bytes)?, bytes))
    }

    /// Whether so many bytes are kept in place.
    #[inline]
    pub(crate) const fn is_short(len: usize) -> bool {
        len <= INLINE
    }

    /// A part of memory that neighbours share. It is copied when it is short, or when the memory is long and mostly
    /// something else (V3).
    ///
    /// # Panics
    /// When the range was not filled.
    #[inline(always)]
    pub(crate) fn part(chunk: &mut Chunk, range: Range<usize>) -> IVec {
        if range.len() <= INLINE {
            return IVec::inline_part(chunk.bytes(), range);
        }
        if IVec::is_shared(chunk, &range) {
            IVec::of_part(chunk.part(&range))
        } else {
            IVec::from(&chunk.bytes()[range])
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
        // All bytes at once, whatever they are behind the end. The length and the bytes in front replace what is before.
        let front_len = front.first_byte();
        let len = front_len + range.len();
        if front_len >= HALF || len > INLINE || range.end > buffer.len() {
            return None;
        }
        let from = range.start.checked_sub(front_len + 1)?;
        let data = buffer.get(from..)?.first_chunk::<SIZE>()?;
        let Form::InPlace(fronts) = front.form() else { return None };
        let fronts = fronts.first_chunk()?;
        let mask = MASKS.get(HALF - 1 - front_len..)?.first_chunk()?;
        let (first, second) = (data.first_chunk()?, *data.last_chunk()?);
        // V1: checked above. Nothing is carried, as the sum is `len`.
        let halves = [blended(fronts, first, mask, range.len()), second];
        Some(IVec(Repr { halves }))
    }

    /// Whether a part is not copied.
    #[inline(always)]
    fn is_shared(chunk: &Chunk, range: &Range<usize>) -> bool {
        range.len() > INLINE && (chunk.capacity() <= MIXED || is_shareable(chunk.capacity(), range.len()))
    }

    /// A key as [`Self::prefixed_in_place`] and a value as [`Self::part`], which is not copied; `None` if it is not so.
    #[inline(always)]
    pub(crate) fn common_pair(
        front: &IVec,
        chunk: &mut Chunk,
        key: &Range<usize>,
        value: &Range<usize>,
    ) -> Option<(IVec, IVec)> {
        if !IVec::is_shared(chunk, value) || !chunk.is_ready() {
            return None;
        }
        let key = IVec::prefixed_in_place(front, chunk.bytes(), key)?;
        Some((key, IVec::of_part(chunk.part(value))))
    }

    /// A short part in place.
    #[inline(always)]
    fn inline_part(buffer: &[u8], range: Range<usize>) -> IVec {
        let whole = range.start.checked_sub(1).and_then(|from| buffer.get(from..)?.first_chunk::<SIZE>());
        match whole {
            // All bytes at once, whatever they are behind the end.
            Some(data) if range.len() <= INLINE && range.end <= buffer.len() => {
                let mut data = *data;
                // V1: checked above.
                data[0] = range.len() as u8;
                IVec(Repr { inline: data })
            }
            _ => IVec::inline(&buffer[range]),
        }
    }

    /// Two runs of bytes, one behind the other.
    pub(crate) fn joined(front: &[u8], back: &[u8]) -> IVec {
        let len = front.len() + back.len();
        if len > INLINE {
            return IVec::of_part(Part::joined(front, back));
        }
        let mut data = [0; SIZE];
        data[1..=front.len()].copy_from_slice(front);
        data[1 + front.len()..=len].copy_from_slice(back);
        // V1: checked above.
        data[0] = len as u8;
        IVec(Repr { inline: data })
    }

    /// `bytes`, which are at most [`INLINE`], in place.
    #[inline]
    fn inline(bytes: &[u8]) -> IVec {
        assert!(bytes.len() <= INLINE, "V1");
        let mut data = [0; SIZE];
        data[1..=bytes.len()].copy_from_slice(bytes);
        data[0] = bytes.len() as u8;
        IVec(Repr { inline: data })
    }

    /// All bytes of a part, which is longer than [`INLINE`].
    #[inline(always)]
    fn of_part(part: Part) -> IVec {
        debug_assert!(part.len() > INLINE, "V2");
        IVec(Repr { shared: ManuallyDrop::new(Shared { mark: MARK, part }) })
    }

    /// The number of bytes if they are in place; otherwise more than [`INLINE`].
    #[inline(always)]
    fn first_byte(&self) -> usize {
        // SAFETY: V1, both forms have a first byte.
        usize::from(unsafe { self.0.inline[0] })
    }

    #[inline(always)]
    fn form(&self) -> Form<'_> {
        if self.first_byte() <= INLINE {
            // SAFETY: V1, all bytes are initialised in this form.
            Form::InPlace(unsafe { &self.0.inline })
        } else {
            // SAFETY: V1, it is this form.
            let shared = unsafe { &self.0.shared };
            Form::Shared(&shared.part)
        }
    }

    #[inline(always)]
    fn form_mut(&mut self) -> FormMut<'_> {
        if self.first_byte() <= INLINE {
            // SAFETY: V1, all bytes are initialised in this form.
            FormMut::InPlace(unsafe { &mut self.0.inline })
        } else {
            // SAFETY: V1, it is this form.
            FormMut::Shared(unsafe { &mut self.0.shared })
        }
    }
}

/// The bytes of `left` where the mask says so, after `more` was added to the first of them, and those of `right`.
#[inline(always)]
fn blended(left: &[u8; HALF], right: &[u8; HALF], mask: &[u8; HALF], more: usize) -> [u8; HALF] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            _mm_add_epi64, _mm_and_si128, _mm_andnot_si128, _mm_cvtsi64_si128, _mm_loadu_si128, _mm_or_si128,
        };
        let load = |bytes: &[u8; HALF]| {
            // SAFETY: sixteen bytes are readable; the load has no alignment to keep; SSE2 is part of x86-64.
            unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
        };
        let (left, right, mask) = (load(left), load(right), load(mask));
        // SAFETY: SSE2 is part of x86-64.
        let blended = unsafe {
            let left = _mm_add_epi64(left, _mm_cvtsi64_si128(more as i64));
            _mm_or_si128(_mm_and_si128(mask, left), _mm_andnot_si128(mask, right))
        };
        // SAFETY: both are sixteen bytes.
        unsafe { std::mem::transmute(blended) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let number = |bytes: &[u8; HALF]| u128::from_le_bytes(*bytes);
        let mask = number(mask);
        ((number(left) + more as u128) & mask | number(right) & !mask).to_le_bytes()
    }
}

/// Whether a part of `len` bytes may keep so much memory (V3).
fn is_shareable(capacity: usize, len: usize) -> bool {
    len > INLINE && capacity <= len.saturating_mul(2).saturating_add(SLACK)
}

impl Clone for IVec {
    #[inline]
    fn clone(&self) -> IVec {
        match self.form() {
            Form::InPlace(data) => IVec(Repr { inline: *data }),
            Form::Shared(part) => IVec::of_part(part.clone()),
        }
    }
}

impl Drop for IVec {
    #[inline(always)]
    fn drop(&mut self) {
        if let FormMut::Shared(shared) = self.form_mut() {
            // SAFETY: it is not used any more.
            unsafe { ManuallyDrop::drop(shared) };
        }
    }
}

impl Deref for IVec {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self.form() {
            // SAFETY: V1, as many bytes are behind the first.
            Form::InPlace(data) => unsafe { data.get_unchecked(1..=self.first_byte()) },
            Form::Shared(part) => part,
        }
    }
}

/// Copies the bytes first if they are shared, so that no clone sees the change.
impl DerefMut for IVec {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.first_byte();
        match self.form_mut() {
            FormMut::InPlace(data) => &mut data[1..=len],
            FormMut::Shared(shared) => shared.part.own(),
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
        IVec(Repr { inline: [0; SIZE] })
    }
}

impl From<&[u8]> for IVec {
    #[inline]
    fn from(bytes: &[u8]) -> IVec {
        if bytes.len() <= INLINE {
            IVec::inline(bytes)
        } else {
            // V2: checked above.
            IVec::of_part(Part::joined(bytes, &[]))
        }
    }
}

/// Copies the bytes.
impl From<Arc<[u8]>> for IVec {
    fn from(bytes: Arc<[u8]>) -> IVec {
        IVec::from(&*bytes)
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

#[cfg(all(test, loom))]
mod models;
#[cfg(test)]
mod tests;
