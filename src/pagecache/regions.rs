//! Regions of memory, and which of their pages are free.
//!
//! # How it works
//!
//! A region is [`REGION`] bytes. Runs of pages are taken from the first region, in the order of their numbers, that has
//! one long enough, and there from the lowest address: so the last regions and the high addresses become free.
//! A free page is *clean* if it takes up no memory, and *dirty* otherwise. What goes back to the system and is needed again
//! is zeroed by it, and a huge page of which some goes back is one no more. So some dirty pages may be spare ([`SPARE`]).
//! What nobody needed while twice as many pages were released goes back, but for half as many; and when there are more
//! than twice as many dirty ones, those above that number go back at once. The ones that would be used last go first.
//!
//! With huge pages more may be spare, and of a region that is in use nothing goes back but a large part, so that most of
//! them stay whole. Instead the last regions are emptied when there is nothing else to do ([`Regions::surplus`],
//! `pagecache/compaction.rs`), and of those that are nearly full again the system is asked to make huge pages.
//!
//! The system zeroes a huge page when it is touched first, which takes up to milliseconds. So that nobody waits for that who
//! uses memory, regions can be made ready before they are needed ([`Regions::ready`]). When there is nothing else to do
//! they go back.
//!
//! # Invariants
//!
//! - R1: a page is in at most one run that was taken and not released, or free.
//! - R2: a clean page is free, and has not been touched since it was mapped or given back, but to make it ready.
//! - R3: `dirty` and `taken` are the sums of what the regions say, and a leaf of `longest` is the longest free run of its
//!   region.

#![allow(unsafe_code)]

use super::classes::PAGE;
use super::memory::{LAZY, Memory, REGION};
use std::ops::Range;

/// Pages of a region.
pub const PAGES: usize = REGION / PAGE;
const WORDS: usize = PAGES / 64;
/// Dirty pages that may be spare, and one more for so many taken ones.
pub const SPARE: usize = (512 << 10) / PAGE;
const SPARE_SHARE: usize = 32;
/// The same with huge pages.
const SPARE_SHARE_HUGE: usize = 8;
/// Dirty pages that a region with a huge page gives back at least, while some of it is in use.
const SPLITS: usize = PAGES / 4;
/// Of the free pages of the regions that stay, the part that is taken to be of use for what is in others: three of four.
const USEFUL: (usize, usize) = (3, 4);
/// Free pages of a region of which a huge page is made.
const NEARLY_FULL: usize = PAGES / 16;
/// Spans and regions are emptied for so many pages more than there were after the last time, and one more for so many taken
/// ones.
const WORTH: usize = PAGES / 2;
const WORTH_SHARE: usize = 32;

/// A set of pages.
#[derive(Clone, Debug)]
struct Set([u64; WORDS]);

impl Set {
    /// The bits of word `at` that are in a range of pages.
    fn mask(range: &Range<usize>, at: usize) -> u64 {
        let from = range.start.saturating_sub(at * 64).min(64);
        let to = range.end.saturating_sub(at * 64).min(64);
        if from >= to { 0 } else { (u64::MAX >> (64 - (to - from))) << from }
    }

    fn words(range: &Range<usize>) -> Range<usize> {
        range.start / 64..range.end.div_ceil(64)
    }

    fn insert(&mut self, range: &Range<usize>) {
        for at in Set::words(range) {
            self.0[at] |= Set::mask(range, at);
        }
    }

    fn remove(&mut self, range: &Range<usize>) {
        for at in Set::words(range) {
            self.0[at] &= !Set::mask(range, at);
        }
    }

    /// How many pages of the range are in the set.
    fn count(&self, range: &Range<usize>) -> usize {
        Set::words(range).map(|at| (self.0[at] & Set::mask(range, at)).count_ones() as usize).sum()
    }

    /// The first page from `page` on that is (not) in the set, or the number of pages.
    fn next(&self, page: usize, present: bool) -> usize {
        let mut at = page / 64;
        let mut skip = u64::MAX << (page % 64);
        while at < WORDS {
            let word = (if present { self.0[at] } else { !self.0[at] }) & skip;
            if word != 0 {
                return at * 64 + word.trailing_zeros() as usize;
            }
            (at, skip) = (at + 1, u64::MAX);
        }
        PAGES
    }

    /// The runs of pages, in order.
    fn runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut page = 0;
        std::iter::from_fn(move || {
            let start = self.next(page, true);
            page = if start < PAGES { self.next(start, false) } else { PAGES };
            (start < PAGES).then_some(start..page)
        })
    }
}

/// A region and its pages.
#[derive(Debug)]
struct Region {
    memory: Memory,
    /// Pages that are in no run that was taken.
    free: Set,
    /// Pages that are not clean, whether they are free or not.
    touched: Set,
    /// How many are in `free`.
    free_count: usize,
    /// A part of it went back, so that it is no huge page any more.
    is_split: bool,
}

impl Region {
    fn longest(&self) -> usize {
        self.free.runs().map(|run| run.len()).max().unwrap_or(0)
    }

    /// Free pages that take up memory.
    fn dirty(&self) -> Set {
        Set(std::array::from_fn(|at| self.free.0[at] & self.touched.0[at]))
    }

    /// Gives runs of dirty pages back, the last ones first, until they are so many or none is left; how many they were. `huge`:
    /// it was to be a huge page.
    fn give_back(&mut self, pages: usize, huge: bool) -> usize {
        let (mut done, runs) = (0, self.dirty().runs().collect::<Vec<_>>());
        if huge && !runs.is_empty() {
            // Or the system makes a huge page of what is left, for which it takes up again what went back.
            self.memory.advise(false);
        }
        for run in runs.into_iter().rev() {
            if done >= pages {
                break;
            }
            // SAFETY: R2: pages of the run are free: whoever released them does not use them any more.
            let part = unsafe { self.memory.give_back(run.start * PAGE..run.end * PAGE) };
            // R2: a page of which a part is left is not clean.
            let clean = part.start.div_ceil(PAGE)..part.end / PAGE;
            self.touched.remove(&clean);
            self.is_split |= !clean.is_empty();
            done += clean.len();
        }
        done
    }
}

/// The regions of one arena.
#[derive(Debug, Default)]
pub struct Regions {
    /// By number; a number without a region is given to the next.
    regions: Vec<Option<Box<Region>>>,
    /// Start and number of each, by address.
    by_address: Vec<(usize, usize)>,
    /// A complete binary tree, from index 1: over leaves in the order of numbers, the longest free run below.
    longest: Vec<u16>,
    /// Dirty pages.
    dirty: usize,
    /// Of them, those that could not be given back when that was tried last, at most.
    stuck: usize,
    /// The fewest dirty pages that there were since it was last asked whether some are idle.
    idle: usize,
    /// The fewest dirty pages that there were since regions were last emptied.
    spread: usize,
    /// Pages that were released since it was last asked.
    released: usize,
    /// Pages that are not free.
    taken: usize,
    /// Dirty pages that went back so far.
    given_back: u64,
    /// Most of what is taken is being released: nothing goes back before [`Self::trim`].
    pub ending: bool,
    /// New regions get huge pages of the system. A clean page may take up memory then, as a part of one.
    pub huge: bool,
    /// Memory of the next regions, touched already. Only with huge pages.
    pub ready: Vec<Memory>,
}

/// A page of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the region.
    pub region: usize,
    /// Number of the page in it.
    pub page: usize,
}

impl Regions {
    /// Takes a run of `pages`; `None`: there is no memory.
    pub fn take(&mut self, pages: usize) -> Option<Place> {
        assert!((1..=PAGES).contains(&pages), "a run is in one region");
        let number = match self.first_with(pages) {
            Some(number) => number,
            None => self.map()?,
        };
        let region = self.regions[number].as_mut().expect("it has free pages");
        let start = region.free.runs().find(|run| run.len() >= pages).expect("R3").start;
        let run = start..start + pages;
        region.free.remove(&run);
        let was_free = region.free_count;
        region.free_count -= pages;
        if region.is_split && was_free > NEARLY_FULL && region.free_count <= NEARLY_FULL {
            // The system may make a huge page of it by itself, before there is time for that.
            region.memory.advise(true);
        }
        let used_again = region.touched.count(&run);
        region.touched.insert(&run);
        self.taken += pages;
        let longest = region.longest();
        self.less_dirty(used_again);
        self.set_longest(number, longest);
        Some(Place { region: number, page: start })
    }

    /// Frees a run.
    ///
    /// # Safety
    /// - [`Self::take`] returned `place` for so many `pages`, which were not released since
    /// - nobody uses the memory of the run any more
    pub unsafe fn release(&mut self, place: Place, pages: usize) {
        let run = place.page..place.page + pages;
        let region = self.regions[place.region].as_mut().expect("a run is in a region");
        assert_eq!(region.free.count(&run), 0, "R1");
        region.free.insert(&run);
        region.free_count += pages;
        self.taken -= pages;
        self.dirty += pages;
        self.released += pages;
        let (longest, empty) = (region.longest(), region.free_count == PAGES);
        self.set_longest(place.region, longest);
        if self.ending {
            return;
        }
        let spare = self.spare();
        if !LAZY && empty && self.dirty > spare {
            // No smaller part of a region can go back there.
            self.unmap(place.region);
        }
        if self.dirty > self.stuck + 2 * spare {
            self.give_back(spare);
        } else if self.released > 2 * spare {
            if self.idle > self.stuck + spare / 2 {
                self.give_back(self.dirty.saturating_sub(self.idle) + spare / 2);
            }
            (self.idle, self.released) = (self.dirty, 0);
        }
        self.idle = self.idle.min(self.dirty);
    }

    /// Gives all dirty pages and what was made ready back, and ends [`Self::ending`].
    pub fn trim(&mut self) {
        self.ready.clear();
        self.give_back(0);
        (self.idle, self.spread, self.ending) = (self.dirty, self.dirty, false);
    }

    /// Makes a huge page of a region that is none any more, if it is nearly full.
    pub fn make_huge(&mut self, number: usize) {
        let Some(region) = self.regions.get_mut(number).and_then(Option::as_mut) else { return };
        if !self.huge || !region.is_split || region.free_count > NEARLY_FULL {
            return;
        }
        region.is_split = false;
        region.memory.advise(true);
        if region.memory.make_huge() {
            // R2: its free pages take up memory again.
            let all = 0..PAGES;
            self.dirty += PAGES - region.touched.count(&all);
            region.touched.insert(&all);
        }
    }

    /// The memory of a place.
    pub fn memory(&self, place: Place, offset: usize) -> std::ptr::NonNull<u8> {
        let region = self.regions[place.region].as_ref().expect("a place is in a region");
        region.memory.at(place.page * PAGE + offset)
    }

    /// The page that an address is in, and how far in it.
    pub fn find(&self, address: usize) -> Option<(Place, usize)> {
        let after = self.by_address.partition_point(|(start, _)| *start <= address);
        let (start, region) = *self.by_address[..after].last()?;
        let offset = address - start;
        (offset < REGION).then_some((Place { region, page: offset / PAGE }, offset % PAGE))
    }

    /// Bytes of pages that are taken or dirty, and of regions that are ready.
    pub fn held(&self) -> usize {
        (self.taken + self.dirty) * PAGE + self.ready.len() * REGION
    }

    /// Dirty pages that went back to the system so far.
    #[cfg_attr(not(test), expect(dead_code, reason = "for statistics"))]
    pub fn given_back(&self) -> u64 {
        self.given_back
    }

    /// How many numbers of regions are in use or were.
    pub fn numbers(&self) -> usize {
        self.regions.len()
    }

    /// So many pages are dirty no longer, and what is the fewest that there were may be fewer now.
    fn less_dirty(&mut self, pages: usize) {
        self.dirty -= pages;
        for fewest in [&mut self.stuck, &mut self.idle, &mut self.spread] {
            *fewest = (*fewest).min(self.dirty);
        }
    }

    fn spare(&self) -> usize {
        SPARE + self.taken / if self.huge { SPARE_SHARE_HUGE } else { SPARE_SHARE }
    }

    /// The number from which on regions can be emptied: what is in them fits where the others have free pages. `None`: it is
    /// not worth while, or there are no huge pages, and then it is not the regions that matter.
    pub fn surplus(&self) -> Option<usize> {
        if !self.huge || self.dirty - self.spread < self.worth_while() {
            return None;
        }
        let there = || self.regions.iter().enumerate().filter_map(|(n, region)| Some((n, region.as_ref()?)));
        let (mut free, mut taken) = (there().map(|(_, region)| region.free_count).sum::<usize>(), 0);
        let mut first = None;
        for (number, region) in there().rev() {
            free -= region.free_count;
            taken += PAGES - region.free_count;
            if taken * USEFUL.1 > free * USEFUL.0 {
                break;
            }
            first = Some(number);
        }
        first
    }

    /// For how many pages it is worth while to move something.
    pub fn worth_while(&self) -> usize {
        WORTH + self.taken / WORTH_SHARE
    }

    /// Addresses, in order, of the regions from a number on.
    pub fn ranges_from(&self, number: usize) -> Vec<Range<usize>> {
        let those = self.by_address.iter().filter(|(_, n)| *n >= number);
        those.map(|(start, _)| *start..start + REGION).collect()
    }

    /// Memory for a region.
    pub fn memory_for(huge: bool) -> Option<Memory> {
        let memory = Memory::new(REGION)?;
        memory.advise(huge);
        Some(memory)
    }

    /// Maps a new region and returns its number.
    fn map(&mut self) -> Option<usize> {
        let memory = self.ready.pop().or_else(|| Regions::memory_for(self.huge))?;
        let number = self.regions.iter().position(Option::is_none).unwrap_or(self.regions.len());
        let at = self.by_address.partition_point(|(start, _)| *start < memory.address());
        self.by_address.insert(at, (memory.address(), number));
        if number == self.regions.len() {
            self.regions.push(None);
        }
        let touched = Set([if LAZY { 0 } else { u64::MAX }; WORDS]);
        self.dirty += touched.count(&(0..PAGES));
        let region =
            Region { memory, free: Set([u64::MAX; WORDS]), touched, free_count: PAGES, is_split: false };
        self.regions[number] = Some(Box::new(region));
        self.grow_tree();
        self.set_longest(number, PAGES);
        Some(number)
    }

    /// Unmaps a region whose pages are all free.
    fn unmap(&mut self, number: usize) {
        let region = self.regions[number].take().expect("a region that is there");
        assert_eq!(region.free_count, PAGES, "in use");
        let dirty = region.touched.count(&(0..PAGES));
        self.given_back += dirty as u64;
        self.less_dirty(dirty);
        let start = region.memory.address();
        let at = self.by_address.binary_search(&(start, number)).expect("each region is there");
        self.by_address.remove(at);
        self.set_longest(number, 0);
    }

    /// Gives dirty pages back, the last ones first, until there are at most so many.
    fn give_back(&mut self, goal: usize) {
        for number in (0..self.regions.len()).rev() {
            let Some(region) = &mut self.regions[number] else { continue };
            if region.free_count == PAGES {
                self.unmap(number);
            } else if !self.huge || region.dirty().count(&(0..PAGES)) >= SPLITS {
                let done = region.give_back(self.dirty.saturating_sub(goal), self.huge);
                self.given_back += done as u64;
                self.less_dirty(done);
            }
            if self.dirty <= goal {
                self.stuck = 0;
                return;
            }
        }
        self.stuck = self.dirty;
    }

    fn leaves(&self) -> usize {
        self.longest.len() / 2
    }

    /// Makes the tree large enough for all numbers.
    fn grow_tree(&mut self) {
        if self.regions.len() <= self.leaves() {
            return;
        }
        let leaves = self.regions.len().next_power_of_two();
        self.longest = vec![0; 2 * leaves];
        for number in 0..self.regions.len() {
            let longest = self.regions[number].as_ref().map_or(0, |region| region.longest());
            self.set_longest(number, longest);
        }
    }

    fn set_longest(&mut self, number: usize, longest: usize) {
        let mut at = self.leaves() + number;
        self.longest[at] = longest as u16;
        while at > 1 {
            at /= 2;
            let both = self.longest[2 * at].max(self.longest[2 * at + 1]);
            if self.longest[at] == both {
                return;
            }
            self.longest[at] = both;
        }
    }

    /// The first region with a free run of so many pages.
    pub fn first_with(&self, pages: usize) -> Option<usize> {
        let enough = |at: usize| usize::from(self.longest[at]) >= pages;
        if self.longest.is_empty() || !enough(1) {
            return None;
        }
        let mut at = 1;
        while at < self.leaves() {
            at = if enough(2 * at) { 2 * at } else { 2 * at + 1 };
        }
        Some(at - self.leaves())
    }

    /// Panics if an invariant does not hold.
    #[cfg(test)]
    pub fn check_invariants(&self) {
        let there = || self.regions.iter().enumerate().filter_map(|(n, r)| Some((n, r.as_ref()?)));
        let free = |region: &Region| region.free.count(&(0..PAGES));
        assert_eq!(self.taken, there().map(|(_, region)| PAGES - free(region)).sum::<usize>());
        assert_eq!(self.dirty, there().map(|(_, region)| region.dirty().count(&(0..PAGES))).sum::<usize>());
        assert!(self.stuck <= self.dirty && self.spread <= self.dirty);
        assert_eq!(self.by_address.len(), there().count());
        assert!(self.by_address.is_sorted());
        for (number, region) in there() {
            assert_eq!(region.free_count, free(region));
            assert_eq!(usize::from(self.longest[self.leaves() + number]), region.longest());
            assert_eq!(self.find(region.memory.address()).map(|(place, _)| place.region), Some(number));
            let clean = Set(std::array::from_fn(|at| !region.touched.0[at] & !region.free.0[at]));
            assert_eq!(clean.count(&(0..PAGES)), 0, "R2");
        }
        for at in 1..self.leaves() {
            assert_eq!(self.longest[at], self.longest[2 * at].max(self.longest[2 * at + 1]), "R3");
        }
    }

    /// Whether all pages of a run are taken.
    #[cfg(test)]
    pub fn is_taken(&self, place: Place, pages: usize) -> bool {
        let region = self.regions[place.region].as_ref().expect("a place is in a region");
        region.free.count(&(place.page..place.page + pages)) == 0
    }

    /// Regions that are mapped.
    pub fn mapped(&self) -> usize {
        self.by_address.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_as_a_list_of_booleans() {
        let mut seed = 5_u64;
        let mut below = |n: usize| {
            seed = seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            (seed >> 33) as usize % n
        };
        let (mut set, mut model) = (Set([0; WORDS]), [false; PAGES]);
        for step in 0..if cfg!(miri) { 30 } else { 1000 } {
            let start = below(PAGES);
            let range = start..start + below(PAGES - start + 1);
            assert_eq!(set.count(&range), model[range.clone()].iter().filter(|in_it| **in_it).count());
            if step % 2 == 0 {
                set.insert(&range)
            } else {
                set.remove(&range)
            }
            model[range].fill(step % 2 == 0);
            let mut at = 0;
            for run in set.runs() {
                assert!(run.start >= at && !run.is_empty(), "ascending, and no run touches the next");
                assert!(model[at..run.start].iter().all(|in_it| !in_it), "step {step}");
                assert!(model[run.clone()].iter().all(|in_it| *in_it), "step {step}");
                at = run.end;
            }
            assert!(model[at..].iter().all(|in_it| !in_it), "step {step}");
        }
    }

    #[test]
    fn runs_are_taken_where_they_fit_first_and_empty_regions_are_unmapped() {
        let mut regions = Regions::default();
        let most = PAGES - 3;
        let places: Vec<_> = (0..5).map(|_| regions.take(most).expect("memory")).collect();
        assert_eq!(places.iter().map(|place| place.region).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(regions.take(4), Some(Place { region: 5, page: 0 }), "no gap of three is long enough");
        assert_eq!(regions.take(3), Some(Place { region: 0, page: most }));
        assert_eq!(regions.take(2), Some(Place { region: 1, page: most }));
        assert_eq!(regions.take(2), Some(Place { region: 2, page: most }));
        assert_eq!(regions.take(1), Some(Place { region: 1, page: most + 2 }));
        regions.check_invariants();
        for place in &places[3..] {
            // SAFETY: taken above, and nobody uses it.
            unsafe { regions.release(*place, most) };
            regions.check_invariants();
        }
        assert!(regions.mapped() < 6);
        assert_eq!(
            regions.find(regions.memory(places[1], 5000).as_ptr().addr()),
            Some((Place { region: 1, page: 1 }, 904))
        );
        assert_eq!(regions.find(1), None);
        let again: Vec<_> = (0..2).map(|_| regions.take(most).expect("memory").region).collect();
        assert_eq!(again, [3, 4], "numbers are used again");
        regions.check_invariants();
    }

    /// What the system was told about the memory of a region, of what it says about the process.
    #[cfg(all(target_os = "linux", not(miri), not(loom)))]
    fn may_become_huge(regions: &Regions, place: Place) -> bool {
        let address = regions.memory(place, 0).as_ptr().addr();
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("readable");
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let number = |text: &str| usize::from_str_radix(text, 16).ok();
            if let Some((start, end)) = range.and_then(|(start, end)| number(start).zip(number(end))) {
                inside = (start..end).contains(&address);
            } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                return flags.split(' ').any(|flag| flag == "hg");
            }
        }
        panic!("the region is mapped");
    }

    /// Once the system made huge pages of them again, and so took up what had been given back.
    #[cfg(all(target_os = "linux", not(miri), not(loom)))]
    #[test]
    fn regions_of_which_a_part_went_back_are_left_alone_by_the_system() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            // Without huge pages it is told nothing.
            return;
        }
        let mut regions = Regions { huge: true, ..Regions::default() };
        let places: Vec<_> = (0..4).map(|_| regions.take(PAGES / 4).expect("memory")).collect();
        assert!(places.iter().all(|place| place.region == 0) && may_become_huge(&regions, places[0]));
        for place in &places[1..] {
            // SAFETY: taken above, and nobody uses it.
            unsafe { regions.release(*place, PAGES / 4) };
        }
        regions.give_back(0);
        regions.check_invariants();
        assert!(regions.regions[0].as_ref().expect("in use").is_split);
        assert!(!may_become_huge(&regions, places[0]));
        assert_eq!(regions.take(3 * (PAGES / 4)).expect("memory").region, 0);
        regions.make_huge(0);
        assert!(may_become_huge(&regions, places[0]));
    }
}
