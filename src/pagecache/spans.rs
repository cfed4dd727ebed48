//! Where the arena's blocks come from: spans of pages, each cut into blocks of one class.
//!
//! # How it works
//!
//! A block of a class comes from the first span, by region and address, that has blocks of that class left, so that the
//! last spans become free; a span whose blocks are all free gives its pages back to its region at once. Longer blocks get
//! pages of their own, and those that are longer than [`LONGEST_RUN`] come from the global allocator, which has few as
//! long. What is known about a span is kept beside the memory, not in it: free memory is not touched.
//!
//! What is freed at random leaves spans with a few blocks in use each. Who can move what is in blocks is told which spans,
//! and which regions, become free if he does ([`Spans::vacate`]): of each class, those behind the ones that would be enough.
//!
//! # Invariants
//!
//! - B1: a span's run of pages is taken (R1) as long as one of its blocks is in use, and then its class and blocks are noted
//!   at its first page, and its first page at each of them.
//! - B2: a block is in use if and only if its bit in `free` of its span is not set.
//! - B3: `partial` of a class has the spans with blocks in use and blocks free.
//!
//! # Concurrency
//!
//! One mutex for all; the arena's shards ask seldom.
//!
//! # References
//!
//! J. Bonwick, "The Slab Allocator", 1994; for the order of addresses P. Wilson et al., "Dynamic Storage Allocation:
//! A Survey and Critical Review", 1995, section 3.4.

#![allow(unsafe_code)]

use super::classes::{ALIGN, CLASSES, PAGE, SHAPES};
use super::memory::REGION;
use super::regions::{PAGES, Place, Regions};
use parking_lot::Mutex;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::BTreeSet;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

/// Blocks that are longer come from the global allocator.
const LONGEST_RUN: usize = REGION / 8;

/// How often regions are emptied, each time as far as what is free seems to allow.
const ROUNDS: usize = 3;

/// What is known about the spans of one region.
#[derive(Debug)]
struct Table {
    /// For each page of a span its first page.
    first: [u16; PAGES],
    /// For the first page of a span, which blocks are free, the first one lowest.
    free: [u128; PAGES],
}

impl Default for Table {
    fn default() -> Table {
        Table { first: [0; PAGES], free: [0; PAGES] }
    }
}

#[derive(Debug)]
struct State {
    regions: Regions,
    /// By number of the region.
    tables: Vec<Box<Table>>,
    /// B3: region and page as one number, to which order and equality are the same as for both.
    partial: [BTreeSet<u32>; CLASSES],
    /// Bytes of blocks from the global allocator.
    long: usize,
    /// Spans from this one on are used no further, in the order of `partial`.
    closed_from: u32,
    /// The fewest pages of spans beyond need that there were since it was tried to empty them.
    stuck: usize,
}

/// Spans of all classes.
#[derive(Debug)]
pub struct Spans {
    state: Mutex<State>,
    /// A region was mapped since some were made ready. A hint.
    grows: AtomicBool,
}

impl Default for Spans {
    fn default() -> Spans {
        let state = State {
            regions: Regions::default(),
            tables: Vec::new(),
            partial: std::array::from_fn(|_| BTreeSet::new()),
            long: 0,
            closed_from: u32::MAX,
            stuck: 0,
        };
        Spans { state: Mutex::new(state), grows: AtomicBool::new(false) }
    }
}

impl Spans {
    /// From now on memory is in huge pages of the system.
    pub fn use_huge_pages(&self) {
        self.state.lock().regions.huge = true;
    }

    /// Most of what is in use is freed before `free_most` returns: what becomes free meanwhile goes back in one go.
    pub fn give_back_after(&self, free_most: impl FnOnce()) {
        self.state.lock().regions.ending = true;
        free_most();
        self.state.lock().regions.trim();
    }

    /// Whether there are spans or regions that are worth emptying, or that were made ready for nothing.
    pub fn has_surplus(&self) -> bool {
        let mut state = self.state.lock();
        !state.regions.ready.is_empty() || state.is_sparse() || state.regions.surplus().is_some()
    }

    /// Whether it is time for [`Self::make_ready`].
    #[inline]
    pub fn grows(&self) -> bool {
        // Relaxed: a hint.
        self.grows.load(Ordering::Relaxed)
    }

    /// Has the system find and zero the memory of as many regions as will be needed soon, so that nobody waits for it. It
    /// takes milliseconds for each; not under the lock.
    pub fn make_ready(&self, regions: usize) {
        // Relaxed: a hint.
        self.grows.store(false, Ordering::Relaxed);
        while {
            let state = self.state.lock();
            state.regions.huge && !state.regions.ending && state.regions.ready.len() < regions
        } {
            let Some(mut memory) = Regions::memory_for(true) else { break };
            memory.populate();
            self.state.lock().regions.ready.push(memory);
        }
    }

    /// Gives back what was made ready.
    pub fn drop_ready(&self) {
        let ready = std::mem::take(&mut self.state.lock().regions.ready);
        drop(ready);
    }

    /// Calls `empty` with the addresses, in order, of spans that could be emptied, if that is worth while, and then with those
    /// of regions. What is allocated meanwhile is put elsewhere as long as there is room. Then gives free pages back.
    pub fn vacate(&self, mut empty: impl FnMut(&[Range<usize>])) {
        let mut state = self.state.lock();
        let mut done = state.is_sparse();
        let sparse = if done { state.sparse() } else { Vec::new() };
        drop(state);
        if done {
            empty(&sparse);
        }
        for _ in 0..ROUNDS {
            let mut state = self.state.lock();
            let Some(first) = state.regions.surplus() else { break };
            let regions = state.regions.ranges_from(first);
            state.closed_from = (first * PAGES) as u32;
            drop(state);
            empty(&regions);
            self.state.lock().closed_from = u32::MAX;
            done = true;
        }
        if done {
            let mut state = self.state.lock();
            state.stuck = state.pages_beyond_need();
            state.regions.trim();
        }
    }

    /// Has the system make huge pages of regions that are nearly full; one at a time, as each takes a moment.
    pub fn make_huge(&self) {
        let numbers = self.state.lock().regions.numbers();
        (0..numbers).for_each(|number| self.state.lock().regions.make_huge(number));
    }

    /// An uninitialised block of a class, or, without one, of `size` bytes.
    pub fn alloc(&self, class: Option<usize>, size: usize) -> NonNull<u8> {
        let mut state = self.state.lock();
        let mapped = state.regions.mapped();
        let block = match class {
            Some(class) => state.block(class),
            None if size <= LONGEST_RUN => state.run(size),
            None => {
                state.long += size;
                drop(state);
                // SAFETY: the size is not zero.
                let block = NonNull::new(unsafe { alloc(layout(size)) });
                return block.unwrap_or_else(|| handle_alloc_error(layout(size)));
            }
        };
        if state.regions.mapped() != mapped {
            // Relaxed: a hint.
            self.grows.store(true, Ordering::Relaxed);
        }
        block.unwrap_or_else(|| handle_alloc_error(layout(size)))
    }

    /// Takes a block back.
    ///
    /// # Safety
    /// - `block` came from [`Self::alloc`] of `self` with this `class` and `size`, and was not taken back since
    /// - nobody uses it any more
    pub unsafe fn free(&self, class: Option<usize>, size: usize, block: NonNull<u8>) {
        let mut state = self.state.lock();
        match class {
            // SAFETY: as the caller promises.
            Some(class) => unsafe { state.free_block(class, block) },
            // SAFETY: as the caller promises.
            None if size <= LONGEST_RUN => unsafe { state.free_run(size, block) },
            None => {
                state.long -= size;
                drop(state);
                // SAFETY: `alloc` allocated it with this layout, and the caller promises that nobody uses it.
                unsafe { dealloc(block.as_ptr(), layout(size)) };
            }
        }
    }

    /// Bytes of memory that are taken up, by blocks or because they soon may be again.
    pub fn held(&self) -> u64 {
        let state = self.state.lock();
        (state.regions.held() + state.long) as u64
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, ALIGN).expect("a block is smaller than the address space")
}

/// A page as a number; regions come first in the order.
fn key(place: Place) -> u32 {
    (place.region * PAGES + place.page) as u32
}

fn place(key: u32) -> Place {
    Place { region: key as usize / PAGES, page: key as usize % PAGES }
}

impl State {
    /// The bits of a span whose blocks are all free.
    fn all_free(class: usize) -> u128 {
        u128::MAX >> (128 - SHAPES[class].blocks)
    }

    fn block(&mut self, class: usize) -> Option<NonNull<u8>> {
        let first = self.partial[class].first().copied().filter(|key| !self.is_lower_free(*key, class));
        let first = first.map(place);
        let span = match first {
            Some(span) => span,
            None => self.span(class)?,
        };
        let free = &mut self.tables[span.region].free[span.page];
        let index = free.trailing_zeros() as usize;
        *free &= *free - 1;
        if *free == 0 {
            self.partial[class].remove(&key(span));
        } else if first.is_none() {
            self.partial[class].insert(key(span));
        }
        Some(self.regions.memory(span, index * SHAPES[class].size))
    }

    /// The spans, and their pages, that would be free if of each class the first ones were full.
    fn beyond_need(&self) -> impl Iterator<Item = (Place, usize)> + '_ {
        self.partial.iter().zip(SHAPES).flat_map(|(partial, shape)| {
            let free = |key: &u32| self.tables[place(*key).region].free[place(*key).page].count_ones();
            let used = partial.iter().map(|key| shape.blocks - free(key)).sum::<u32>();
            let needed = used.div_ceil(shape.blocks) as usize;
            partial.iter().skip(needed).map(move |key| (place(*key), shape.pages))
        })
    }

    fn pages_beyond_need(&self) -> usize {
        self.beyond_need().map(|(_, pages)| pages).sum()
    }

    /// Whether it is worth while to empty them.
    fn is_sparse(&mut self) -> bool {
        let pages = self.pages_beyond_need();
        self.stuck = self.stuck.min(pages);
        pages - self.stuck >= self.regions.worth_while()
    }

    /// Their addresses, in order.
    fn sparse(&self) -> Vec<Range<usize>> {
        let range = |(span, pages)| {
            let start = self.regions.memory(span, 0).as_ptr().addr();
            start..start + pages * PAGE
        };
        let mut spans: Vec<_> = self.beyond_need().map(range).collect();
        spans.sort_unstable_by_key(|span| span.start);
        spans
    }

    /// Whether a span is in regions that are to become empty, and a new one would not be.
    fn is_lower_free(&self, key: u32, class: usize) -> bool {
        let closed = self.closed_from as usize / PAGES;
        key >= self.closed_from && self.regions.first_with(SHAPES[class].pages).is_some_and(|n| n < closed)
    }

    /// A new span, whose blocks are all free.
    fn span(&mut self, class: usize) -> Option<Place> {
        let pages = SHAPES[class].pages;
        let span = self.regions.take(pages)?;
        let tables = self.tables.len().max(self.regions.numbers());
        self.tables.resize_with(tables, Box::default);
        let table = &mut self.tables[span.region];
        table.first[span.page..span.page + pages].fill(span.page as u16);
        table.free[span.page] = State::all_free(class);
        Some(span)
    }

    /// # Safety
    /// - `block` is in use, of this class, and nobody uses it any more
    unsafe fn free_block(&mut self, class: usize, block: NonNull<u8>) {
        let (at, offset) = self.regions.find(block.as_ptr().addr()).expect("a block is in a region");
        let table = &mut self.tables[at.region];
        let span = Place { region: at.region, page: usize::from(table.first[at.page]) };
        let offset = (at.page - span.page) * PAGE + offset;
        let (shape, free) = (SHAPES[class], &mut table.free[span.page]);
        debug_assert!(offset.is_multiple_of(shape.size), "not a block of this class");
        let bit = 1 << (offset / shape.size);
        assert_eq!(*free & bit, 0, "B2: a block is freed twice");
        let was_full = *free == 0;
        *free |= bit;
        if *free == State::all_free(class) {
            if !was_full {
                self.partial[class].remove(&key(span));
            }
            // SAFETY: B1: the span's run is taken, and now (B2) none of its blocks is in use.
            unsafe { self.regions.release(span, shape.pages) };
        } else if was_full {
            self.partial[class].insert(key(span));
        }
    }

    fn run(&mut self, size: usize) -> Option<NonNull<u8>> {
        let run = self.regions.take(size.div_ceil(PAGE))?;
        Some(self.regions.memory(run, 0))
    }

    /// # Safety
    /// - `block` is in use, came from [`Self::run`] of that size, and nobody uses it any more
    unsafe fn free_run(&mut self, size: usize, block: NonNull<u8>) {
        let (run, offset) = self.regions.find(block.as_ptr().addr()).expect("a block is in a region");
        debug_assert_eq!(offset, 0, "not the start of a run");
        // SAFETY: `run` took so many pages, and the caller promises that nobody uses them.
        unsafe { self.regions.release(run, size.div_ceil(PAGE)) };
    }
}

#[cfg(test)]
mod tests;
