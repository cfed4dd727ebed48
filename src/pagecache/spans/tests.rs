//! Blocks and pages against models: nothing overlaps, what is free goes back, what is in use stays as it is.

use super::super::classes::{LONGEST, class};
use super::super::memory::LAZY;
use super::super::regions::SPARE;
use super::*;
use std::collections::BTreeMap;

/// Steps are fewer where each takes long.
const SLOW: usize = if cfg!(any(miri, loom)) { 50 } else { 1 };

/// A small generator, so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    /// Most sizes are small, as deltas are, and some longer than a class, a run or a region.
    fn size(&mut self) -> usize {
        let longest = [64, 512, 8 << 10, LONGEST, 2 * LONGEST, 2 * LONGEST_RUN];
        let kind = [0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 5][self.below(12)];
        1 + self.below(longest[kind])
    }
}

/// A block in use, filled with a byte of its own at both ends.
struct Block {
    start: NonNull<u8>,
    size: usize,
    mark: u8,
}

// SAFETY: whoever has it is the only user of the block.
unsafe impl Send for Block {}

impl Block {
    fn new(spans: &Spans, size: usize, mark: u8) -> Block {
        let (class, rounded) = class(size);
        let start = spans.alloc(class, rounded);
        let mut block = Block { start, size: rounded, mark };
        assert!(start.as_ptr().addr().is_multiple_of(ALIGN));
        for byte in block.ends() {
            *byte = mark;
        }
        block
    }

    fn ends(&mut self) -> [&mut u8; 2] {
        // SAFETY: the block is in use, by this value alone.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) };
        let (first, rest) = bytes.split_first_mut().expect("not empty");
        [first, rest.last_mut().expect("at least two")]
    }

    fn free(mut self, spans: &Spans) {
        let mark = self.mark;
        assert_eq!(self.ends(), [&mark, &mark], "somebody else wrote to it");
        let (class, size) = class(self.size);
        // SAFETY: from `alloc` with this class and size, and gone with `self`.
        unsafe { spans.free(class, size, self.start) };
    }
}

impl Spans {
    fn check_invariants(&self) {
        let state = self.state.lock();
        state.regions.check_invariants();
        for (class, partial) in state.partial.iter().enumerate() {
            for key in partial {
                let span = place(*key);
                let (table, pages) = (&state.tables[span.region], SHAPES[class].pages);
                assert!(state.regions.is_taken(span, pages), "B1");
                let first = &table.first[span.page..span.page + pages];
                assert!(first.iter().all(|first| usize::from(*first) == span.page), "B1");
                let free = table.free[span.page];
                assert!(
                    free != 0 && free != State::all_free(class) && free & !State::all_free(class) == 0,
                    "B3"
                );
            }
        }
    }

    fn mapped(&self) -> usize {
        self.state.lock().regions.mapped()
    }

    fn given_back(&self) -> u64 {
        self.state.lock().regions.given_back()
    }
}

#[test]
fn blocks_never_overlap_and_nobody_else_writes_to_them() {
    for seed in 1..=8 / SLOW.min(8) as u64 {
        let (spans, mut random) = (Spans::default(), Random(seed * 0x9E37_79B9));
        let mut blocks: Vec<Block> = Vec::new();
        let mut ranges = BTreeMap::new();
        for step in 0..20_000 / SLOW {
            // Grows and shrinks, down to nothing, in turns.
            let grows = (step / (2500 / SLOW)).is_multiple_of(2);
            if blocks.is_empty() || (random.below(8) < 6) == grows {
                let block = Block::new(&spans, random.size(), step as u8);
                let range = block.start.as_ptr().addr()..block.start.as_ptr().addr() + block.size;
                let before = ranges.range(..range.end).next_back();
                assert!(before.is_none_or(|(_, end)| *end <= range.start), "seed {seed}, step {step}");
                ranges.insert(range.start, range.end);
                blocks.push(block);
            } else {
                let block = blocks.swap_remove(random.below(blocks.len()));
                ranges.remove(&block.start.as_ptr().addr());
                block.free(&spans);
            }
            if step % 500 == 0 {
                spans.check_invariants();
            }
        }
        let in_use: usize = blocks.iter().map(|block| block.size).sum();
        assert!(spans.held() >= in_use as u64, "seed {seed}");
        blocks.into_iter().for_each(|block| block.free(&spans));
        spans.check_invariants();
    }
}

#[test]
fn after_everything_is_freed_nearly_nothing_is_held() {
    for order in ["first to last", "last to first", "random"] {
        let (spans, mut random) = (Spans::default(), Random(7));
        let mut blocks: Vec<_> =
            (0..20_000 / SLOW).map(|i| Block::new(&spans, random.size(), i as u8)).collect();
        let (held, mapped) = (spans.held(), spans.mapped());
        assert!(mapped > 2, "there is something to give back");
        match order {
            "first to last" => {}
            "last to first" => blocks.reverse(),
            _ => (1..blocks.len()).for_each(|i| blocks.swap(i, random.below(i + 1))),
        }
        blocks.into_iter().for_each(|block| block.free(&spans));
        spans.check_invariants();
        let (left, spare) = (spans.held(), (2 * SPARE * PAGE) as u64);
        assert!(left <= spare && left < held, "{order}: {left} of {held} bytes");
        assert!(!LAZY || spans.mapped() < mapped, "{order}: {} of {mapped} regions", spans.mapped());
    }
}

/// Sizes as of leaves and their changes: from a few bytes to ten thousand.
fn mixed(random: &mut Random) -> usize {
    if random.below(3) == 0 { 4000 + random.below(6000) } else { 32 + random.below(480) }
}

#[cfg(not(any(miri, loom)))]
#[test]
fn churn_leaves_no_more_than_a_quarter_unused() {
    for (seed, capacity, huge) in [(1, 8_usize << 20, false), (2, 64 << 20, false), (3, 64 << 20, true)] {
        let (spans, mut random) = (Spans::default(), Random(seed));
        if huge {
            spans.use_huge_pages();
        }
        let (mut blocks, mut in_use) = (Vec::new(), 0);
        for step in 0..600_000 {
            let block = Block::new(&spans, mixed(&mut random), step as u8);
            in_use += block.size;
            blocks.push(block);
            while in_use > capacity {
                let block = blocks.swap_remove(random.below(blocks.len()));
                in_use -= block.size;
                block.free(&spans);
            }
            if step > 200_000 && step % 10_000 == 0 {
                let held = spans.held();
                assert!(held * 4 <= in_use as u64 * 5, "seed {seed}, step {step}: {held} for {in_use} bytes");
            }
        }
        spans.check_invariants();
        blocks.into_iter().for_each(|block| block.free(&spans));
    }
}

/// What is freed and asked for again in small amounts goes through no system call.
#[test]
fn a_steady_state_gives_nothing_back() {
    let (spans, mut random) = (Spans::default(), Random(3));
    let mut blocks: Vec<_> = (0..4000 / SLOW).map(|_| Block::new(&spans, mixed(&mut random), 1)).collect();
    let before = spans.given_back();
    for round in 0..2000 / SLOW {
        let some: Vec<_> = (0..20).map(|_| blocks.swap_remove(random.below(blocks.len()))).collect();
        let sizes: Vec<_> = some.iter().map(|block| block.size).collect();
        some.into_iter().for_each(|block| block.free(&spans));
        blocks.extend(sizes.into_iter().map(|size| Block::new(&spans, size, round as u8)));
    }
    assert_eq!(spans.given_back(), before);
    blocks.into_iter().for_each(|block| block.free(&spans));
    assert!(!LAZY || spans.given_back() > before, "what is not used any more does go back");
}

/// Holes are filled from below, so that memory gathers where it is used.
#[test]
fn the_lowest_free_block_and_the_lowest_free_page_come_first() {
    let spans = Spans::default();
    let mut blocks: Vec<_> = (0..40).map(|_| Block::new(&spans, 1024, 1)).collect();
    assert!(blocks.is_sorted_by_key(|block| block.start), "one after the other");
    let (high, low) = (blocks.remove(30), blocks.remove(5));
    let (above, below) = (high.start, low.start);
    high.free(&spans);
    low.free(&spans);
    let again = [Block::new(&spans, 1024, 2), Block::new(&spans, 1024, 2)];
    assert_eq!(again.each_ref().map(|block| block.start), [below, above]);
    // Spans 2 and 6 become free as wholes, and serve another class.
    blocks.extend(again);
    blocks.sort_by_key(|block| block.start);
    for span in [6, 2] {
        blocks.drain(4 * span..4 * span + 4).for_each(|block| block.free(&spans));
    }
    let start = blocks[0].start.as_ptr().addr();
    let other = [Block::new(&spans, 4096, 3), Block::new(&spans, 4096, 3)];
    assert_eq!(other.each_ref().map(|block| block.start.as_ptr().addr() - start), [2 * PAGE, 6 * PAGE]);
    blocks.into_iter().chain(other).for_each(|block| block.free(&spans));
}

/// Moves every block in use that is in one of the ranges; how many of them are in one again.
fn move_out(spans: &Spans, blocks: &mut [Block], ranges: &[Range<usize>]) -> usize {
    assert!(ranges.is_sorted_by(|a, b| a.end <= b.start), "in order, and none overlaps");
    let is_in = |block: &Block| ranges.iter().any(|range| range.contains(&block.start.as_ptr().addr()));
    let mut again = 0;
    for block in blocks {
        if is_in(block) {
            let moved = Block::new(spans, block.size, block.mark);
            again += usize::from(is_in(&moved));
            std::mem::replace(block, moved).free(spans);
        }
    }
    again
}

/// With huge pages nothing small goes back; instead the last regions can be emptied, and go back whole.
#[test]
fn the_last_regions_can_be_emptied_into_the_others() {
    let spans = Spans::default();
    spans.use_huge_pages();
    let all = (0..8_000 / SLOW.min(5)).map(|i| Block::new(&spans, 5_000, i as u8));
    // Stretches of some spans are free then, and others in use.
    let (freed, blocks): (Vec<_>, Vec<_>) = all.enumerate().partition(|(i, _)| i / 30 % 4 == 0);
    let mut blocks: Vec<_> = blocks.into_iter().map(|(_, block)| block).collect();
    assert!(!spans.has_surplus(), "nothing is free");
    freed.into_iter().for_each(|(_, block)| block.free(&spans));
    assert!(spans.has_surplus());
    let (mapped, held) = (spans.mapped(), spans.held());
    let mut emptied = 0;
    spans.vacate(|ranges| {
        emptied += ranges.iter().filter(|range| range.len() == REGION).count();
        let again = move_out(&spans, &mut blocks, ranges);
        assert_eq!(again, 0, "there is room elsewhere");
    });
    spans.check_invariants();
    assert!(emptied > 0 && (!LAZY || spans.mapped() < mapped));
    assert!(spans.held() < held && !spans.has_surplus(), "once is enough");
    blocks.into_iter().for_each(|block| block.free(&spans));
    spans.check_invariants();
}

/// A span with one block takes up as much as a full one.
#[test]
fn blocks_of_sparse_spans_can_be_moved_together() {
    for huge in [false, true] {
        let (spans, mut random) = (Spans::default(), Random(5));
        if huge {
            spans.use_huge_pages();
        }
        let mut blocks: Vec<_> =
            (0..8_000 / SLOW.min(5)).map(|i| Block::new(&spans, mixed(&mut random), i as u8)).collect();
        while blocks.len() > 3_000 / SLOW.min(5) {
            blocks.swap_remove(random.below(blocks.len())).free(&spans);
        }
        let in_use = |blocks: &[Block]| blocks.iter().map(|block| block.size).sum::<usize>() as u64;
        let before = (spans.held(), in_use(&blocks));
        assert!(
            spans.has_surplus() && before.0 * 10 > before.1 * 13,
            "{before:?}: there is something to gain"
        );
        spans.vacate(|ranges| {
            move_out(&spans, &mut blocks, ranges);
        });
        spans.check_invariants();
        let after = (spans.held(), in_use(&blocks));
        assert_eq!(after.1, before.1);
        // A span for each class, and what does not fit into pages, is left.
        assert!(!LAZY || after.0 * 10 < after.1 * 12, "{after:?}, {before:?} before");
        assert!(!spans.has_surplus(), "once is enough");
        blocks.into_iter().for_each(|block| block.free(&spans));
    }
}

/// What cannot be moved is not tried again and again.
#[test]
fn sparse_spans_that_stay_are_left_alone() {
    let (spans, mut random) = (Spans::default(), Random(6));
    let mut blocks: Vec<_> =
        (0..8_000 / SLOW.min(10)).map(|_| Block::new(&spans, mixed(&mut random), 1)).collect();
    while blocks.len() > 3_000 / SLOW.min(10) {
        blocks.swap_remove(random.below(blocks.len())).free(&spans);
    }
    let mut calls = 0;
    spans.vacate(|_| calls += 1);
    assert_eq!((calls, spans.has_surplus()), (1, false));
    blocks.into_iter().for_each(|block| block.free(&spans));
    assert!(!spans.has_surplus());
    // As sparse as before, and nobody has tried that.
    let mut blocks: Vec<_> =
        (0..8_000 / SLOW.min(10)).map(|_| Block::new(&spans, mixed(&mut random), 1)).collect();
    while blocks.len() > 3_000 / SLOW.min(10) {
        blocks.swap_remove(random.below(blocks.len())).free(&spans);
    }
    assert!(spans.has_surplus());
    blocks.into_iter().for_each(|block| block.free(&spans));
}

#[test]
#[should_panic(expected = "freed twice")]
fn freeing_a_block_twice_is_noticed() {
    let spans = Spans::default();
    let [_other, block] = [Block::new(&spans, 100, 1), Block::new(&spans, 100, 1)];
    let again = Block { ..block };
    block.free(&spans);
    again.free(&spans);
}

#[test]
fn what_is_freed_at_the_end_goes_back_in_one_go() {
    let spans = Spans::default();
    let blocks: Vec<_> = (0..2_000 / SLOW).map(|_| Block::new(&spans, 5_000, 1)).collect();
    let kept = Block::new(&spans, 5_000, 2);
    let (held, given_back) = (spans.held(), spans.given_back());
    spans.give_back_after(|| {
        blocks.into_iter().for_each(|block| block.free(&spans));
        assert_eq!((spans.held(), spans.given_back()), (held, given_back), "nothing yet");
    });
    spans.check_invariants();
    assert!(!LAZY || spans.held() < 64 << 10, "{} bytes", spans.held());
    kept.free(&spans);
}

/// Blocks go from thread to thread, and come back from where they were not allocated.
#[test]
fn threads_free_what_others_allocated() {
    let spans = Spans::default();
    let hands: [Mutex<Vec<Block>>; 3] = Default::default();
    std::thread::scope(|scope| {
        for own in 0..hands.len() {
            let (spans, hands) = (&spans, &hands);
            scope.spawn(move || {
                let mut random = Random(own as u64 + 1);
                for _ in 0..10_000 / SLOW {
                    let block = Block::new(spans, random.size(), own as u8);
                    hands[(own + 1) % hands.len()].lock().push(block);
                    while random.below(20) > 0 {
                        let Some(block) = hands[own].lock().pop() else { break };
                        block.free(spans);
                    }
                }
            });
        }
    });
    spans.check_invariants();
    hands.into_iter().flat_map(Mutex::into_inner).for_each(|block| block.free(&spans));
    spans.check_invariants();
    assert!(spans.held() <= (2 * SPARE * PAGE) as u64);
}

#[test]
fn regions_that_were_made_ready_are_used_first_and_go_back() {
    let spans = Spans::default();
    spans.make_ready(2);
    assert_eq!(spans.held(), 0, "not without huge pages");
    spans.use_huge_pages();
    assert!(!spans.grows());
    let block = Block::new(&spans, 5_000, 1);
    assert!(spans.grows(), "a region was mapped");
    let held = spans.held();
    spans.make_ready(2);
    assert!(!spans.grows());
    assert_eq!(spans.held(), held + 2 * REGION as u64);
    spans.make_ready(1);
    assert_eq!(spans.held(), held + 2 * REGION as u64, "there are enough");
    let mut blocks = vec![block];
    while !spans.grows() {
        blocks.push(Block::new(&spans, 5_000, 2));
    }
    assert_eq!(spans.state.lock().regions.ready.len(), 1);
    spans.check_invariants();
    assert!(spans.has_surplus());
    spans.drop_ready();
    assert!(spans.state.lock().regions.ready.is_empty());
    blocks.into_iter().for_each(|block| block.free(&spans));
    spans.check_invariants();
}
