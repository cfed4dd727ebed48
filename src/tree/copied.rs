//! `Copied`: records that were copied out of a leaf, to be taken one by one.
//!
//! # How it works
//!
//! Records are copied as they are in the image, one behind the other in the order in which they are taken, into chunks of
//! memory which the keys and values that are taken share (see `IVec`). A chunk is at most [`MIXED`] bytes, or holds one
//! longer record alone. When all that was taken from a chunk is gone it is used again, by the next iteration of the thread
//! at last.
//!
//! The prefix that all keys of the leaf share is kept once, if the keys with it are short enough for an `IVec` to have them
//! in place. Longer keys are copied whole.

use super::leaf::{Leaf, Value, record_head, spans};
use crate::ivec::{Chunk, IVec, MIXED};
use std::cell::Cell;
use std::ops::Range;

/// Records from here on do not begin a chunk that others share, bytes.
const LONG: usize = MIXED / 4;

thread_local! {
    /// One chunk, of which there are no parts, for the next iteration of the thread: for a short one, memory costs as
    /// much as copying.
    static SPARE: Cell<Vec<Chunk>> = const { Cell::new(Vec::new()) };
}

/// A key in two parts.
pub type Parts<'a> = [&'a [u8]; 2];

/// Where a record is.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    chunk: usize,
    at: usize,
}

/// Records that were copied and not taken yet.
#[derive(Debug, Default)]
pub struct Copied {
    chunks: Vec<Chunk>,
    /// Number of chunks that have something.
    used: usize,
    /// Bytes that are to come, about.
    expected: usize,
    /// Number of records, taken or not.
    len: usize,
    /// Number of records that were not taken.
    left: usize,
    /// Index of the chunk of what was taken last, or of the first.
    chunk: usize,
    /// Where in that chunk the next record is, or its end.
    next: usize,
    /// Where in that chunk the record is that was taken last, if one was.
    taken: usize,
    /// The record that was copied last, if one was.
    last: Place,
    /// In front of each key.
    prefix: IVec,
    /// A pair with a big value, which is the last one; without the value once it was taken.
    big: Option<(IVec, Option<IVec>)>,
}

/// Where key and value of the record at `at` are.
#[inline(always)]
fn parts(chunk: &Chunk, at: usize) -> (Range<usize>, Range<usize>) {
    let bytes = chunk.bytes();
    let (key, value, _) = spans(bytes, at, bytes.len()).expect("records were copied whole");
    (key, value)
}

#[inline(always)]
fn key_of(prefix: &IVec, chunk: &mut Chunk, key: Range<usize>) -> IVec {
    if prefix.is_empty() { IVec::part(chunk, key) } else { IVec::prefixed(prefix, chunk.bytes(), key) }
}

impl Copied {
    /// Forgets everything.
    pub fn clear(&mut self) {
        (self.used, self.len, self.left) = (0, 0, 0);
        (self.chunk, self.next) = (0, 0);
        self.big = None;
    }

    /// Number of pairs, taken or not.
    pub fn len(&self) -> usize {
        self.len + usize::from(self.big.is_some())
    }

    /// Whether nothing more is to be added.
    pub fn ends_early(&self) -> bool {
        self.big.is_some()
    }

    /// Whether nothing is left to be taken.
    pub fn is_empty(&self) -> bool {
        self.left == 0 && !matches!(self.big, Some((_, Some(_))))
    }

    /// Whether what is taken next is a record, and not a big value or nothing.
    #[inline(always)]
    pub fn is_at_record(&self) -> bool {
        self.left > 0
    }

    /// Gets ready for up to `most` records of a leaf, the first with a key of so many bytes; before anything was
    /// copied.
    pub fn begin(&mut self, leaf: Leaf<'_>, key_len: usize, most: usize) {
        debug_assert!(self.is_empty(), "the prefix is that of all");
        let whole = !IVec::is_short(key_len);
        self.prefix = if whole { IVec::default() } else { IVec::from(leaf.prefix()) };
        self.expected = leaf.payload() / leaf.len().max(1) * most;
    }

    /// Copies some records, without big values, of the leaf.
    pub fn add_run(&mut self, leaf: Leaf<'_>, run: Range<usize>, backwards: bool) {
        if self.prefix.len() < leaf.prefix().len() {
            let each = |i: usize| {
                let (suffix, value) = leaf.record(i);
                self.add_parts([leaf.prefix(), suffix], value);
            };
            return if backwards { run.rev().for_each(each) } else { run.for_each(each) };
        }
        let mut left = run;
        while !left.is_empty() {
            if backwards {
                left.end = self.add_down(leaf, left.clone());
            } else {
                left.start = self.add_up(leaf, left.clone());
            }
        }
    }

    /// Copies the first records of a run, as many as a chunk has room for; the index behind them.
    fn add_up(&mut self, leaf: Leaf<'_>, run: Range<usize>) -> usize {
        let starts = leaf.starts();
        let start = starts.get(run.start);
        let room = self.room(starts.get(run.start + 1) - start);
        let mut end = run.end;
        if starts.get(end) - start > room {
            end = run.start + 1;
            while starts.get(end + 1) - start <= room {
                end += 1;
            }
        }
        let last = starts.get(end - 1);
        let bytes = &leaf.bytes()[start..starts.get(end)];
        let (chunk, at) = self.space(end - run.start, bytes.len());
        chunk.append(bytes);
        self.last = Place { chunk: self.used - 1, at: at + (last - start) };
        end
    }

    /// Copies the last records of a run, the last first, as many as a chunk has room for; the index of the last of
    /// these.
    fn add_down(&mut self, leaf: Leaf<'_>, run: Range<usize>) -> usize {
        let starts = leaf.starts();
        let end = starts.get(run.end);
        let room = self.room(end - starts.get(run.end - 1));
        let mut first = run.end - 1;
        while first > run.start && end - starts.get(first - 1) <= room {
            first -= 1;
        }
        let all = end - starts.get(first);
        let (chunk, at) = self.space(run.end - first, all);
        for i in (first..run.end).rev() {
            chunk.append(&leaf.bytes()[starts.get(i)..starts.get(i + 1)]);
        }
        let last = at + all - (starts.get(first + 1) - starts.get(first));
        self.last = Place { chunk: self.used - 1, at: last };
        first
    }

    /// Copies a record which is not in the image of the leaf.
    pub fn add(&mut self, key: &[u8], value: Value<'_>) {
        // All keys of the leaf have the prefix.
        let rest = key.get(self.prefix.len()..).unwrap_or_default();
        self.add_parts([&[], rest], value);
    }

    /// Adds a pair with a big value, as the last one.
    pub fn add_big(&mut self, key: &[u8], value: IVec) {
        self.big = Some((IVec::from(key), Some(value)));
    }

    fn add_parts(&mut self, [front, back]: Parts<'_>, value: Value<'_>) {
        let (head, head_len) = record_head(front.len() + back.len(), value);
        let value = value.bytes();
        let len = head_len + front.len() + back.len() + value.len();
        self.room(len);
        let (chunk, at) = self.space(1, len);
        if head_len == 4 {
            chunk.append(&head[..4]);
        } else {
            chunk.append(&head);
        }
        if !front.is_empty() {
            chunk.append(front);
        }
        chunk.append(back);
        chunk.append(value);
        self.last = Place { chunk: self.used - 1, at };
    }

    /// Gets what an iteration of the thread left.
    fn take_spare(&mut self) {
        // There is nothing while the thread ends.
        self.chunks = SPARE.try_with(Cell::take).unwrap_or_default();
    }

    /// Sees to it that the last chunk has room for so many bytes; how much it has.
    fn room(&mut self, len: usize) -> usize {
        if let Some(last) = self.chunks[..self.used].last() {
            let room = last.capacity() - last.bytes().len();
            if room >= len {
                return room;
            }
        }
        if self.chunks.is_empty() {
            self.take_spare();
        }
        let size = if len > LONG { len } else { self.expected.clamp(len, MIXED) };
        match self.chunks.get_mut(self.used) {
            None => self.chunks.push(Chunk::new(size)),
            Some(old) => {
                // V3: a longer one than is asked for must be one that may be shared.
                let fits = (size..=size.max(MIXED)).contains(&old.capacity());
                if !fits || !old.clear() {
                    *old = Chunk::new(size);
                }
            }
        }
        self.used += 1;
        self.chunks[self.used - 1].capacity()
    }

    /// The last chunk, which has room for so many bytes of some records, and where they are to be.
    #[inline]
    fn space(&mut self, records: usize, len: usize) -> (&mut Chunk, usize) {
        self.len += records;
        self.left += records;
        self.expected = self.expected.saturating_sub(len);
        let chunk = &mut self.chunks[self.used - 1];
        let at = chunk.bytes().len();
        (chunk, at)
    }

    /// Where the next record is; there is one.
    #[inline(always)]
    fn place(&self) -> Place {
        let Copied { chunk, next: at, .. } = *self;
        if at < self.chunks[chunk].bytes().len() {
            Place { chunk, at }
        } else {
            Place { chunk: chunk + 1, at: 0 }
        }
    }

    /// Notes that a record was taken.
    #[inline(always)]
    fn took(&mut self, place: Place, end: usize) {
        self.left -= 1;
        (self.chunk, self.taken, self.next) = (place.chunk, place.at, end);
    }

    /// Takes the next record, or else the big value.
    #[inline(always)]
    fn take<T>(
        &mut self,
        record: impl FnOnce(&IVec, &mut Chunk, Range<usize>, Range<usize>) -> T,
        big: impl FnOnce((IVec, IVec)) -> T,
    ) -> Option<T> {
        if self.left == 0 {
            return self.take_big().map(big);
        }
        let place = self.place();
        let chunk = &mut self.chunks[place.chunk];
        let (key, value) = parts(chunk, place.at);
        let end = value.end;
        let taken = record(&self.prefix, chunk, key, value);
        self.took(place, end);
        Some(taken)
    }

    /// Takes the next pair if it is a record with a short key and a long value in a chunk that is shared. This is the
    /// only way through here that ends with a pair, which so is made where the caller wants it.
    #[inline(always)]
    pub fn common_pair(&mut self) -> Option<(IVec, IVec)> {
        if self.left == 0 {
            return None;
        }
        let place = self.place();
        let chunk = &mut self.chunks[place.chunk];
        let (key, value) = parts(chunk, place.at);
        let end = value.end;
        let pair = IVec::common_pair(&self.prefix, chunk, &key, &value)?;
        self.took(place, end);
        Some(pair)
    }

    #[cold]
    fn take_big(&mut self) -> Option<(IVec, IVec)> {
        let (key, value) = self.big.as_mut()?;
        value.take().map(|value| (key.clone(), value))
    }

    /// Takes the next pair.
    #[inline(always)]
    pub fn pair(&mut self) -> Option<(IVec, IVec)> {
        self.take(
            |prefix, chunk, key, value| (key_of(prefix, chunk, key), IVec::part(chunk, value)),
            |pair| pair,
        )
    }

    /// Takes the next pair, for its key alone.
    #[inline(always)]
    pub fn key(&mut self) -> Option<IVec> {
        self.take(|prefix, chunk, key, _| key_of(prefix, chunk, key), |(key, _)| key)
    }

    /// Takes the next pair, for its value alone.
    #[inline(always)]
    pub fn value(&mut self) -> Option<IVec> {
        self.take(|_, chunk, _, value| IVec::part(chunk, value), |(_, value)| value)
    }

    /// Takes the next pair, for nothing.
    #[inline(always)]
    pub fn skip(&mut self) -> Option<()> {
        self.take(|_, _, _, _| (), |_| ())
    }

    fn parts(&self, place: Place) -> Parts<'_> {
        let chunk = &self.chunks[place.chunk];
        [&self.prefix, &chunk.bytes()[parts(chunk, place.at).0]]
    }

    /// The key of the next pair.
    pub fn next_key(&self) -> Option<Parts<'_>> {
        match &self.big {
            _ if self.left > 0 => Some(self.parts(self.place())),
            Some((key, Some(_))) => Some([key, &[]]),
            _ => None,
        }
    }

    /// The key of the pair that was taken last.
    pub fn taken_key(&self) -> Option<Parts<'_>> {
        match &self.big {
            Some((key, None)) => Some([key, &[]]),
            _ => (self.left < self.len).then(|| self.parts(Place { chunk: self.chunk, at: self.taken })),
        }
    }

    /// The key of the last pair, taken or not.
    pub fn last_key(&self) -> Option<Parts<'_>> {
        match &self.big {
            Some((key, _)) => Some([key, &[]]),
            None => (self.len > 0).then(|| self.parts(self.last)),
        }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.chunks.truncate(1);
        let is_spare = |chunk: &mut Chunk| chunk.capacity() <= MIXED && chunk.clear();
        if self.chunks.first_mut().is_some_and(is_spare) {
            let chunks = std::mem::take(&mut self.chunks);
            // Dropped while the thread ends.
            let _gone = SPARE.try_with(|spare| spare.set(chunks));
        }
    }
}

#[cfg(test)]
mod tests;
