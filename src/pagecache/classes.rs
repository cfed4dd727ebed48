//! Which sizes the blocks of the arena have.
//!
//! Blocks up to [`LONGEST`] are rounded up to a class, and classes are about an eighth apart. A span, the pages that blocks
//! of one class are cut from, is the shortest that leaves at most a sixteenth of itself over.

/// Blocks are aligned to this.
pub const ALIGN: usize = 16;
/// A page of the arena, and the granularity at which memory goes back to the operating system where its own pages
/// are no larger.
pub const PAGE: usize = 4096;
/// Longer blocks are in no class.
pub const LONGEST: usize = 32 << 10;
/// Up to here classes are 32 bytes apart, from here on eight in each doubling.
const FINE: usize = 512;
const FINE_CLASSES: usize = FINE / 32;
/// How many classes there are.
pub const CLASSES: usize = FINE_CLASSES + 8 * (LONGEST.ilog2() - FINE.ilog2()) as usize;

/// The blocks and the spans of one class.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes of a block.
    pub size: usize,
    /// Pages of a span.
    pub pages: usize,
    /// Blocks of a span, at most 128.
    pub blocks: u32,
}

/// The shape of each class.
pub const SHAPES: [Shape; CLASSES] = shapes();

const fn shapes() -> [Shape; CLASSES] {
    let mut shapes = [Shape { size: 0, pages: 0, blocks: 0 }; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        let size = if class < FINE_CLASSES {
            (class + 1) * 32
        } else {
            let (doubling, eighth) = ((class - FINE_CLASSES) / 8, (class - FINE_CLASSES) % 8);
            (FINE / 8 * (9 + eighth)) << doubling
        };
        let mut pages = size.div_ceil(PAGE);
        while (pages * PAGE) % size * 16 > pages * PAGE {
            pages += 1;
        }
        shapes[class] = Shape { size, pages, blocks: (pages * PAGE / size) as u32 };
        class += 1;
    }
    shapes
}

/// The class of a size, if there is one, and the size of its blocks.
#[inline]
pub fn class(size: usize) -> (Option<usize>, usize) {
    if size <= FINE {
        let index = size.saturating_sub(1) / 32;
        return (Some(index), (index + 1) * 32);
    }
    if size > LONGEST {
        return (None, size.next_multiple_of(ALIGN));
    }
    let last = size - 1;
    let doubling = last.ilog2();
    let shift = doubling - 3;
    let eighth = last >> shift;
    let index = FINE_CLASSES + 8 * (doubling - FINE.ilog2()) as usize + (eighth - 8);
    (Some(index), (eighth + 1) << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_dense_ascending_and_near_what_was_asked_for() {
        let mut last = (0, 32);
        for size in 1..=LONGEST {
            let (index, rounded) = class(size);
            let index = index.expect("short enough for a class");
            assert!(rounded >= size && rounded.is_multiple_of(ALIGN));
            assert!(rounded - size < 32 || (rounded - size) * 8 < size);
            assert!((index, rounded) == last || (index == last.0 + 1 && size == last.1 + 1), "at {size}");
            assert_eq!(SHAPES[index].size, rounded);
            last = (index, rounded);
        }
        assert_eq!(last.0, CLASSES - 1);
        assert_eq!(class(LONGEST + 1), (None, LONGEST + 16));
    }

    #[test]
    fn spans_are_short_and_leave_little_over() {
        for shape in SHAPES {
            let (used, all) = (shape.size * shape.blocks as usize, shape.pages * PAGE);
            assert!(used <= all && (all - used) * 16 <= all, "{shape:?}");
            assert!((1..=128).contains(&shape.blocks) && shape.pages <= 16, "{shape:?}");
        }
    }
}
