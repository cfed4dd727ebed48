//! Which segment is used for what, and how many of its bytes are live.
//!
//! # States
//!
//! ```text
//! free --open_page--> open --seal--> sealed --drain--> draining --release--> free --give_back--> (no blocks)
//!   |                                  (live = 0 when a checkpoint that is now durable began)
//!   \----open_redo--> redo --drain--> draining       (it ends at or before the redo LSN of that checkpoint)
//! unknown --adopt_page, adopt_redo, end_recovery--> sealed, redo, free                  (recovery)
//! ```
//!
//! # Format
//!
//! This table is not on disk. Runs that hold images are listed in the directory's root (`pagecache/directory.rs`), and
//! those of big values that came later are in redo records; redo segments are found by following their chain from the
//! superblock on. Every other segment is free, whatever its header says.
//!
//! # Invariants
//!
//! - L1: a segment is written only while it is open, and opened anew only after a checkpoint that refers to
//!   none of its bytes is durable and every guard that could have read an address in it has ended.
//! - L2: `live` of a segment is never below the bytes that the durable directory and the redo tail refer to.
//!   It may be above for big values after a crash; cleaning a segment finds out.
//!
//! # Concurrency
//!
//! One mutex, held for a few instructions, but for `give_back`, which resizes the file under it.

use super::format::{HEADER, SECTOR, SEGMENTS_AT, SegmentKind};
use crate::base::sync::{Mutex, MutexGuard};
use crate::base::{Nonces, fail};
use crate::error::Result;
use crate::storage::Storage;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many segments behind the end of the file the next redo segment may have been chosen.
const FAR: usize = 64;

#[derive(Clone, Copy, Debug)]
enum State {
    /// Recovery has not found out yet; not taken for anything new.
    Unknown,
    /// `written`: has blocks on the medium. `asked`: the medium was asked to take them back, whether or not
    /// it did.
    Free { written: bool, asked: bool },
    /// Of the redo stream. `written`: had blocks on the medium when it was taken.
    Redo { written: bool },
    /// The head of a run of `units` segments.
    Page(Page),
    /// In a run, not its head.
    Tail,
    /// Nothing durable refers to it; readers may have an address in it.
    Draining { nonce: u64, units: u32 },
}

impl State {
    /// Whether it has blocks that the medium can be asked to take back.
    fn is_spare(&self) -> bool {
        matches!(self, State::Free { written: true, asked: false })
    }
}

/// A run of segments that holds images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// What the images are.
    pub kind: SegmentKind,
    /// Nonce bound into the images.
    pub nonce: u64,
    /// Segments of the run.
    pub units: u32,
    /// Bytes appended, headers included.
    pub used: u64,
    /// Bytes of images that are referred to.
    pub live: u64,
    /// Images that were appended and not referred to yet, though they are about to be.
    pub pending: u32,
    /// Nothing will be appended.
    pub sealed: bool,
    /// The cleaner moved everything out that pages refer to; the old directory may refer to some of it still.
    pub emptied: bool,
}

#[derive(Debug, Default)]
struct Inner {
    states: Vec<State>,
    /// Numbers of those whose state is `Free`.
    free: BTreeSet<u32>,
    /// Deaths of big values while a checkpoint lists pages, (head, bytes); `None` = no checkpoint does.
    deferred: Option<Vec<(u32, u64)>>,
    /// Runs in which a big value died while records were replayed; `None` = no replay is going on.
    suspects: Option<BTreeSet<u32>>,
}

/// The segments of one file.
#[derive(Debug)]
pub struct Segments {
    size: u32,
    nonces: Nonces,
    inner: Mutex<Inner>,
    /// Bytes of images appended since open. Any thread, by atomic add.
    appended: AtomicU64,
}

/// Bytes of the file by use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of live images.
    pub live: u64,
    /// Bytes appended to runs that hold images.
    pub used: u64,
    /// Bytes of runs in which nothing is live, to be freed by the next checkpoint.
    pub dead: u64,
    /// Segments that are not free.
    pub segments: u64,
}

impl Segments {
    /// All segments of a file, none of them in use.
    pub fn new(size: u32) -> Segments {
        Segments { size, nonces: Nonces::default(), inner: Mutex::default(), appended: AtomicU64::new(0) }
    }

    /// Bytes of a segment.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// File offset of a segment.
    pub fn offset(&self, number: u32) -> u64 {
        SEGMENTS_AT + u64::from(number) * u64::from(self.size)
    }

    /// Number of the segment that has a file offset, if one can.
    pub fn number(&self, offset: u64) -> Option<u32> {
        u32::try_from(offset.checked_sub(SEGMENTS_AT)? / u64::from(self.size)).ok()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Takes `units` neighbouring free segments, growing the file when there are none; whether the first has
    /// blocks.
    fn take(inner: &mut Inner, units: u32) -> (u32, bool) {
        let mut run = (0, 0);
        let mut found = None;
        for number in &inner.free {
            run = if run.0 + run.1 == *number && run.1 > 0 { (run.0, run.1 + 1) } else { (*number, 1) };
            if run.1 == units {
                found = Some(run.0);
                break;
            }
        }
        let first = found.unwrap_or_else(|| {
            // Free segments at the very end are the start of the run.
            let end = u32::try_from(inner.states.len()).expect("segments are counted in 32 bits");
            let mut first = end;
            while first > 0 && end - first < units && inner.free.contains(&(first - 1)) {
                first -= 1;
            }
            first
        });
        let mut written = false;
        for number in first..first + units {
            inner.free.remove(&number);
            let at = number as usize;
            if at >= inner.states.len() {
                inner.states.push(State::Tail);
            }
            if let State::Free { written: true, .. } = inner.states[at] {
                written |= number == first;
            }
            inner.states[at] = State::Tail;
        }
        (first, written)
    }

    /// Takes a segment for the redo stream: its number and a nonce.
    pub fn open_redo(&self) -> (u32, u64) {
        let mut inner = self.inner();
        let (number, written) = Self::take(&mut inner, 1);
        inner.states[number as usize] = State::Redo { written };
        (number, self.nonces.next())
    }

    /// Whether a redo segment has blocks on the medium already, so that a sync has no metadata to commit.
    pub fn recycled(&self, number: u32) -> bool {
        matches!(self.inner().states[number as usize], State::Redo { written: true })
    }

    /// Takes a run of segments for images: number of its head and a nonce.
    pub fn open_page(&self, kind: SegmentKind, units: u32) -> (u32, u64) {
        let nonce = self.nonces.next();
        let mut inner = self.inner();
        let (number, _) = Self::take(&mut inner, units);
        let page = Page {
            kind,
            nonce,
            units,
            used: HEADER as u64,
            live: 0,
            pending: 0,
            sealed: false,
            emptied: false,
        };
        inner.states[number as usize] = State::Page(page);
        (number, nonce)
    }

    fn page(inner: &mut Inner, number: u32) -> &mut Page {
        match &mut inner.states[number as usize] {
            State::Page(page) => page,
            other => panic!("L1: segment {number} holds images, but is {other:?}"),
        }
    }

    /// Notes that an image of `bytes` was appended to the run of `number`, and is live. `hold`: it is about
    /// to be referred to, and the cleaner must not take it for dead until [`Self::let_go`].
    pub fn add(&self, number: u32, bytes: u64, hold: bool) {
        // Relaxed: statistic.
        self.appended.fetch_add(bytes, Ordering::Relaxed);
        let mut inner = self.inner();
        let page = Self::page(&mut inner, number);
        page.used += bytes;
        page.live += bytes;
        page.pending += u32::from(hold);
    }

    /// Bytes of images appended since open.
    pub fn appended(&self) -> u64 {
        // Relaxed: statistic.
        self.appended.load(Ordering::Relaxed)
    }

    /// Recovery: notes that an image is live; `false`: the place is not in a run of that kind.
    pub fn revive(&self, offset: u64, bytes: u64, kind: SegmentKind) -> bool {
        let Some(number) = self.number(offset) else { return false };
        let mut inner = self.inner();
        match inner.states.get_mut(number as usize) {
            Some(State::Page(page)) if page.kind == kind => {
                page.live += bytes;
                true
            }
            _ => false,
        }
    }

    /// Notes that an image is not referred to any more. Who referred to it may have come from the medium, and named a
    /// place where no image can be: then there is nothing to be noted.
    pub fn kill(&self, offset: u64, bytes: u64) {
        let Some(number) = self.number(offset) else { return };
        let mut inner = self.inner();
        // Draining: the cleaner saw that it was dead before whoever had replaced it came to say so.
        let Some(State::Page(page)) = inner.states.get(number as usize) else { return };
        let big = page.kind == SegmentKind::Big;
        if big && let Some(suspects) = &mut inner.suspects {
            // A value that an older record replaces for now may be put again by a later one.
            suspects.insert(number);
            return;
        }
        if big && let Some(deferred) = &mut inner.deferred {
            deferred.push((number, bytes));
            return;
        }
        Self::bury(&mut inner, number, bytes);
    }

    /// As [`Self::kill`], for a big value that replay from the checkpoint being made does not meet.
    pub fn kill_listed(&self, offset: u64, bytes: u64) {
        if let Some(number) = self.number(offset) {
            Self::bury(&mut self.inner(), number, bytes);
        }
    }

    fn bury(inner: &mut Inner, number: u32, bytes: u64) {
        let Some(State::Page(page)) = inner.states.get_mut(number as usize) else { return };
        debug_assert!(
            page.live >= bytes || page.emptied,
            "L2: {bytes} bytes died of {}, {page:?} {number}",
            page.live
        );
        page.live = page.live.saturating_sub(bytes);
    }

    /// The image is referred to now, or dead.
    pub fn let_go(&self, offset: u64) {
        let number = self.number(offset).expect("an image lies in a segment");
        Self::page(&mut self.inner(), number).pending -= 1;
    }

    /// Whether every image of a sealed run is referred to, or dead.
    pub fn is_settled(&self, number: u32) -> bool {
        let mut inner = self.inner();
        let page = Self::page(&mut inner, number);
        page.sealed && page.pending == 0
    }

    /// Nothing more will be appended to the run.
    pub fn seal(&self, number: u32) {
        Self::page(&mut self.inner(), number).sealed = true;
    }

    /// Seals the run if more than half of what was appended to it is dead, and that is a quarter of a segment at least.
    pub fn seal_if_sparse(&self, number: u32) -> bool {
        let quarter = u64::from(self.size / 4);
        let mut inner = self.inner();
        let page = Self::page(&mut inner, number);
        page.sealed |= page.used.saturating_sub(page.live) > (page.used / 2).max(quarter);
        page.sealed
    }

    /// Nonce of the run that has an image's range of the file; `None`: no run has all of it.
    pub fn nonce(&self, offset: u64, bytes: u64) -> Option<u64> {
        Some(self.run(offset, bytes)?.0)
    }

    /// Nonce of the run that has an image's range of the file, and whether it is sealed; `None`: no run has all of it.
    pub fn run(&self, offset: u64, bytes: u64) -> Option<(u64, bool)> {
        let number = self.number(offset)?;
        let (nonce, units, sealed) = match self.inner().states.get(number as usize)? {
            State::Page(page) => (page.nonce, page.units, page.sealed),
            State::Draining { nonce, units } => (*nonce, *units, true),
            _ => return None,
        };
        (offset.checked_add(bytes)? <= self.offset(number + units)).then_some((nonce, sealed))
    }

    /// A checkpoint begins: heads of the sealed runs without live bytes, to be drained when it is durable.
    /// From now on deaths of big values are put off until [`Self::listed`].
    pub fn begin_checkpoint(&self) -> Vec<u32> {
        let mut inner = self.inner();
        // A checkpoint that failed may have left some.
        for (number, bytes) in inner.deferred.replace(Vec::new()).unwrap_or_default() {
            Self::bury(&mut inner, number, bytes);
        }
        let dead =
            |(_, s): &(u32, &State)| matches!(s, State::Page(p) if p.sealed && p.live == 0 && p.pending == 0);
        (0..).zip(&inner.states).filter(dead).map(|(number, _)| number).collect()
    }

    fn list(inner: &Inner) -> Vec<(u32, Page)> {
        let run = |(number, state): (u32, &State)| match state {
            State::Page(page) => Some((number, *page)),
            _ => None,
        };
        (0..).zip(&inner.states).filter_map(run).collect()
    }

    /// Whether there is a run of big values.
    pub fn holds_big(&self) -> bool {
        let is_big = |state: &State| matches!(state, State::Page(page) if page.kind == SegmentKind::Big);
        self.inner().states.iter().any(is_big)
    }

    /// All runs that hold images.
    pub fn runs(&self) -> Vec<(u32, Page)> {
        Self::list(&self.inner())
    }

    /// All runs that hold images, for the directory; ends the putting off of deaths.
    pub fn listed(&self) -> Vec<(u32, Page)> {
        let mut inner = self.inner();
        let pages = Self::list(&inner);
        for (number, bytes) in inner.deferred.take().unwrap_or_default() {
            Self::bury(&mut inner, number, bytes);
        }
        pages
    }

    /// The checkpoint is durable: nothing refers to these any more, but for readers that still have an
    /// address.
    pub fn drain(&self, numbers: &[u32]) {
        let mut inner = self.inner();
        for number in numbers {
            let state = &mut inner.states[*number as usize];
            *state = match *state {
                State::Page(page) => State::Draining { nonce: page.nonce, units: page.units },
                State::Redo { .. } => State::Draining { nonce: 0, units: 1 },
                other => panic!("L1: segment {number} is drained, but is {other:?}"),
            };
        }
    }

    /// Whether freed segments wait for readers.
    pub fn is_draining(&self) -> bool {
        self.inner().states.iter().any(|state| matches!(state, State::Draining { .. }))
    }

    /// Nobody can have an address in these any more.
    pub fn release(&self, numbers: &[u32]) {
        let mut inner = self.inner();
        for number in numbers {
            let State::Draining { units, .. } = inner.states[*number as usize] else {
                panic!("L1: segment {number} is released before it is drained");
            };
            for unit in *number..*number + units {
                inner.states[unit as usize] = State::Free { written: true, asked: false };
                inner.free.insert(unit);
            }
        }
    }

    /// Whether more than `keep` free segments have blocks that the medium was not asked to take back.
    pub fn has_spare(&self, keep: usize) -> bool {
        let inner = self.inner();
        inner.free.iter().filter(|n| inner.states[**n as usize].is_spare()).nth(keep).is_some()
    }

    /// Gives the blocks of free segments back to the medium, but for `keep` that are to be reused soon.
    ///
    /// # Errors
    /// What cutting the file or punching holes failed with.
    pub fn give_back(&self, storage: &dyn Storage, keep: usize) -> Result<()> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let kept: BTreeSet<u32> = {
            let written = |n: &&u32| matches!(inner.states[**n as usize], State::Free { written: true, .. });
            inner.free.iter().filter(written).take(keep).copied().collect()
        };
        let mut end = inner.states.len();
        while end > 0
            && matches!(inner.states[end - 1], State::Free { .. })
            && !kept.contains(&((end - 1) as u32))
        {
            end -= 1;
        }
        if end < inner.states.len() {
            let len = SEGMENTS_AT + end as u64 * u64::from(self.size);
            if storage.len()? > len {
                fail::check("file truncation")?;
                storage.set_len(len)?;
            }
            inner.states.truncate(end);
            inner.free.split_off(&(end as u32));
        }
        let to_punch: Vec<u32> = inner.free.iter().filter(|n| !kept.contains(n)).copied().collect();
        for number in to_punch {
            if !inner.states[number as usize].is_spare() {
                continue;
            }
            fail::check("zero garbage segment SA")?;
            let done = storage.punch_hole(self.offset(number), u64::from(self.size))?;
            inner.states[number as usize] = State::Free { written: !done, asked: true };
        }
        Ok(())
    }

    /// Gives the blocks of a redo segment back that nothing was written to since it was taken: what is left in it is of no
    /// use to anybody.
    ///
    /// # Errors
    /// What punching a hole failed with.
    pub fn give_back_ahead(&self, storage: &dyn Storage, number: u32) -> Result<()> {
        let mut inner = self.inner();
        let state = &mut inner.states[number as usize];
        if matches!(state, State::Redo { written: true }) {
            fail::check("zero garbage segment SA")?;
            if storage.punch_hole(self.offset(number), u64::from(self.size))? {
                *state = State::Redo { written: false };
            }
        }
        Ok(())
    }

    /// Sealed runs of one segment, the sparsest first, in which less than `below` of the used bytes is live.
    pub fn sparse(&self, below: f64) -> Vec<(u32, Page)> {
        let inner = self.inner();
        let ratio = |page: &Page| page.live as f64 / page.used.max(1) as f64;
        let candidate = |(number, state): (u32, &State)| match state {
            State::Page(p) if p.sealed && p.units == 1 && p.live > 0 && ratio(p) < below => {
                Some((number, *p))
            }
            _ => None,
        };
        let mut found: Vec<(u32, Page)> = (0..).zip(&inner.states).filter_map(candidate).collect();
        found.sort_by(|(_, a), (_, b)| ratio(a).total_cmp(&ratio(b)));
        found
    }

    /// Everything live was moved out of the run: what is left of its count is from before a crash (L2).
    pub fn emptied(&self, number: u32) {
        let mut inner = self.inner();
        let page = Self::page(&mut inner, number);
        (page.live, page.emptied) = (0, true);
    }

    /// How the bytes of the file are used.
    pub fn usage(&self) -> Usage {
        let inner = self.inner();
        let mut usage =
            Usage { segments: (inner.states.len() - inner.free.len()) as u64, ..Usage::default() };
        for state in &inner.states {
            if let State::Page(page) = state {
                usage.used += page.used;
                usage.live += page.live;
                if page.live == 0 && page.sealed {
                    usage.dead += page.used;
                }
            }
        }
        usage
    }

    /// Recovery: the run at `number` holds images. `false`: it overlaps another or lies past `end`.
    pub fn adopt_page(&self, number: u32, page: Page, end: u32) -> bool {
        let Some(last) = number.checked_add(page.units).filter(|last| *last <= end && page.units > 0) else {
            return false;
        };
        let mut inner = self.inner();
        Self::reach(&mut inner, last);
        let unused = |n: u32| matches!(inner.states[n as usize], State::Unknown);
        if !(number..last).all(unused) {
            return false;
        }
        for unit in number..last {
            inner.free.remove(&unit);
            inner.states[unit as usize] = State::Tail;
        }
        inner.states[number as usize] = State::Page(page);
        true
    }

    /// Recovery: `number` is part of the redo stream. `false`: it is something else, or far behind the end.
    pub fn adopt_redo(&self, number: u32) -> bool {
        let mut inner = self.inner();
        if number as usize > inner.states.len() + FAR {
            return false;
        }
        Self::reach(&mut inner, number + 1);
        if !matches!(inner.states[number as usize], State::Unknown | State::Free { .. }) {
            return false;
        }
        inner.free.remove(&number);
        inner.states[number as usize] = State::Redo { written: true };
        true
    }

    /// Recovery: whether a run of big values has its head at `number`.
    pub fn is_big(&self, number: u32) -> bool {
        let inner = self.inner();
        matches!(inner.states.get(number as usize), Some(State::Page(page)) if page.kind == SegmentKind::Big)
    }

    /// Recovery: an image that ends at `offset` was found in the run of `number`.
    pub fn note_used(&self, number: u32, end: u64) {
        let start = self.offset(number);
        let mut inner = self.inner();
        let page = Self::page(&mut inner, number);
        page.used = page.used.max(end - start);
    }

    /// Recovery begins: until [`Self::end_recovery`] nothing below `end` is taken that was not adopted,
    /// because the redo tail may refer to it.
    pub fn begin_recovery(&self, end: u32) {
        let mut inner = self.inner();
        Self::reach(&mut inner, end);
        inner.suspects = Some(BTreeSet::new());
    }

    /// Recovery: a run of big values whose live bytes are to be counted.
    pub fn next_suspect(&self) -> Option<(u32, Page)> {
        let mut inner = self.inner();
        let number = inner.suspects.as_mut()?.pop_first()?;
        Some((number, *Self::page(&mut inner, number)))
    }

    /// Recovery: the live bytes of a run were counted.
    pub fn set_live(&self, number: u32, live: u64) {
        Self::page(&mut self.inner(), number).live = live;
    }

    /// Replay is over: deaths are counted as they come.
    pub fn end_replay(&self) {
        self.inner().suspects = None;
    }

    /// Recovery is over: what was not adopted is free.
    pub fn end_recovery(&self) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        for (number, state) in (0..).zip(&mut inner.states) {
            if matches!(state, State::Unknown) {
                *state = State::Free { written: true, asked: false };
                inner.free.insert(number);
            }
        }
    }

    fn reach(inner: &mut Inner, end: u32) {
        while inner.states.len() < end as usize {
            inner.states.push(State::Unknown);
        }
    }

    /// A segment that nobody uses yet is not taken after all.
    pub fn abandon_redo(&self, number: u32) {
        let mut inner = self.inner();
        let State::Redo { written } = inner.states[number as usize] else {
            panic!("L1: segment {number} was taken for the redo stream");
        };
        inner.states[number as usize] = State::Free { written, asked: false };
        inner.free.insert(number);
    }

    /// Memory of the table, bytes.
    pub fn bytes(&self) -> u64 {
        (self.inner().states.capacity() * size_of::<State>()) as u64
    }
}

const _: () = assert!(SECTOR.is_multiple_of(HEADER));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sim::SimStorage;

    #[test]
    fn freed_segments_are_taken_again_and_runs_are_contiguous() {
        let segments = Segments::new(4096);
        let (a, _) = segments.open_redo();
        let (b, _) = segments.open_page(SegmentKind::Leaves, 3);
        let (c, _) = segments.open_page(SegmentKind::Big, 1);
        assert_eq!((a, b, c), (0, 1, 4));
        segments.seal(b);
        assert_eq!(segments.begin_checkpoint(), [b]);
        segments.listed();
        segments.drain(&[b]);
        assert!(segments.nonce(segments.offset(b), 64).is_some(), "readers may still be there");
        assert_eq!(segments.open_page(SegmentKind::Leaves, 1).0, 5, "not reused before the release");
        segments.release(&[b]);
        assert_eq!(segments.open_page(SegmentKind::Leaves, 2).0, 1);
        assert_eq!(segments.open_redo().0, 3);
        assert!(segments.recycled(3) && !segments.recycled(0));
    }

    #[test]
    fn a_run_is_sealed_early_when_most_of_it_is_dead() {
        let segments = Segments::new(4096);
        let (n, _) = segments.open_page(SegmentKind::Leaves, 1);
        segments.add(n, 1024, false);
        segments.kill(segments.offset(n), 896);
        assert!(!segments.seal_if_sparse(n), "less than a quarter of a segment");
        segments.add(n, 1024, false);
        assert!(!segments.seal_if_sparse(n), "more than half of it is live");
        segments.kill(segments.offset(n), 256);
        assert!(segments.seal_if_sparse(n));
    }

    #[test]
    fn deaths_where_no_image_can_be_are_nothing() {
        let segments = Segments::new(4096);
        let (redo, _) = segments.open_redo();
        let (run, _) = segments.open_page(SegmentKind::Big, 2);
        segments.add(run, 64, false);
        for offset in [0, segments.offset(redo), segments.offset(run + 1), segments.offset(9), u64::MAX] {
            segments.kill(offset, 64);
            segments.kill_listed(offset, 64);
        }
        assert_eq!(segments.usage().live, 64);
    }

    #[test]
    fn deaths_of_big_values_wait_while_a_checkpoint_lists() {
        let segments = Segments::new(4096);
        let (n, _) = segments.open_page(SegmentKind::Big, 1);
        segments.add(n, 128, false);
        segments.add(n, 64, true);
        segments.begin_checkpoint();
        segments.kill(segments.offset(n) + 64, 128);
        assert_eq!(segments.listed()[0].1.live, 192);
        assert_eq!(segments.usage().live, 64);
    }

    #[test]
    fn free_segments_give_their_blocks_back() {
        let medium = SimStorage::new();
        let segments = Segments::new(4096);
        let taken: Vec<u32> = (0..6).map(|_| segments.open_page(SegmentKind::Leaves, 1).0).collect();
        medium.write_at(SEGMENTS_AT, &[1; 6 * 4096]).expect("room");
        let gone = [taken[0], taken[1], taken[3], taken[5]];
        segments.drain(&gone);
        segments.release(&gone);
        segments.give_back(&medium, 1).expect("healthy");
        let bytes = medium.contents();
        assert_eq!(bytes.len() as u64, segments.offset(5), "the last one is cut off");
        let at = |n: u32| bytes[segments.offset(n) as usize];
        assert_eq!([at(0), at(1), at(2), at(3), at(4)], [1, 0, 1, 0, 1], "one kept, two punched");
        let before = medium.ops();
        segments.give_back(&medium, 1).expect("healthy");
        assert_eq!(medium.ops(), before, "nothing to do means no call");
    }
}
