//! Inner nodes: immutable, replaced whole, resident, never on disk.
//!
//! # Format
//!
//! Native to one process: it is never written. Little-endian all the same, so that one reader serves.
//!
//! | OFFSET | SIZE | FIELD |
//! |---|---|---|
//! | 0 | 4 | n, number of children, at least 1 |
//! | 4 | 4 | level, 1 = its children are leaves |
//! | 8 | 4 | prefix length |
//! | 12 | 4 | low fence length |
//! | 16 | 4 | high fence length, `u32::MAX` = no upper end |
//! | 20 | 4 | PID of the right sibling, 0 = none |
//! | 24 | 8 | head of the high fence: its first 8 bytes, big-endian value; all ones = no upper end |
//! | 32 | 8 s | samples, s = (n-1) / 16 rounded down: of each whole block of 16 heads the last one |
//! | . | 8 (n-1) | heads: first 8 bytes, as above, of each separator after the prefix |
//! | . | 4 n | PIDs of the children |
//! | . | 4 n | ends of the separators' suffixes, the first one 0 |
//! | . | . | suffixes, low fence, high fence |
//!
//! A search looks at the samples, which come with the header, and then at one block of heads, so that it waits for memory
//! twice, however many children there are.
//!
//! Child `i` covers `[separator i, separator i + 1)`; separator 0 is the low fence and is not stored again.
//!
//! # References
//!
//! Key heads: G. Graefe and P. Larson, "B-Tree Indexes and CPU Caches", ICDE 2001.

use super::common_prefix;
use crate::base::prefetch;
use std::cmp::Ordering;

const HEADER: usize = 32;
/// Heads for which there is one sample.
const BLOCK: usize = 16;
const NO_HIGH: u32 = u32::MAX;

/// First eight bytes as a number that orders like them; shorter ones are padded with zeros.
#[inline]
pub(super) fn head(bytes: &[u8]) -> u64 {
    if let Some(first) = bytes.first_chunk() {
        return u64::from_be_bytes(*first);
    }
    let mut first = [0; 8];
    let len = bytes.len();
    first[..len].copy_from_slice(&bytes[..len]);
    u64::from_be_bytes(first)
}

/// An inner node.
#[derive(Clone, Copy, Debug)]
pub struct Inner<'a> {
    bytes: &'a [u8],
}

impl<'a> Inner<'a> {
    /// A node that [`build`] made.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Inner<'a> {
        Inner { bytes }
    }

    #[inline]
    fn field(self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    /// Number of children.
    #[inline]
    pub fn children(self) -> usize {
        self.field(0) as usize
    }

    /// Levels above the leaves, at least 1.
    pub fn level(self) -> u32 {
        self.field(4)
    }

    /// PID of the right sibling, 0 = none.
    pub fn right(self) -> u32 {
        self.field(20)
    }

    fn high_len(self) -> usize {
        match self.field(16) {
            NO_HIGH => 0,
            len => len as usize,
        }
    }

    /// Smallest key of the range.
    pub fn low(self) -> &'a [u8] {
        let end = self.bytes.len() - self.high_len();
        &self.bytes[end - self.field(12) as usize..end]
    }

    /// First key past the range; `None` = the range has no upper end.
    pub fn high(self) -> Option<&'a [u8]> {
        (self.field(16) != NO_HIGH).then(|| &self.bytes[self.bytes.len() - self.high_len()..])
    }

    /// Where the heads start.
    #[inline]
    fn heads_at(self) -> usize {
        HEADER + 8 * ((self.children() - 1) / BLOCK)
    }

    /// Where the PIDs start.
    #[inline]
    fn pids_at(self) -> usize {
        self.heads_at() + 8 * (self.children() - 1)
    }

    /// The last head of each whole block.
    #[inline]
    fn samples(self) -> &'a [[u8; 8]] {
        self.bytes[HEADER..self.heads_at()].as_chunks().0
    }

    /// The heads of all separators.
    #[inline]
    fn heads(self) -> &'a [[u8; 8]] {
        self.bytes[self.heads_at()..self.pids_at()].as_chunks().0
    }

    /// PID of child `i`.
    #[inline]
    pub fn child(self, i: usize) -> u32 {
        self.field(self.pids_at() + 4 * i)
    }

    /// Separator `i + 1` without the prefix.
    fn suffix(self, i: usize) -> &'a [u8] {
        let ends = self.pids_at() + 4 * self.children();
        let start = ends + 4 * self.children();
        let (from, to) = (self.field(ends + 4 * i), self.field(ends + 4 * (i + 1)));
        &self.bytes[start + from as usize..start + to as usize]
    }

    /// Smallest key of child `i`.
    pub fn separator(self, i: usize) -> Vec<u8> {
        match i.checked_sub(1) {
            None => self.low().to_vec(),
            Some(i) => [&self.low()[..self.field(8) as usize], self.suffix(i)].concat(),
        }
    }

    /// Whether the key lies past the range: the node was split and this is the left part.
    #[inline]
    pub fn is_past(self, key: &[u8]) -> bool {
        let high = u64::from_le_bytes(self.bytes[24..HEADER].try_into().expect("eight bytes"));
        // The head decides for most keys, without a look at the far end of the node.
        match head(key).cmp(&high) {
            Ordering::Equal => self.high().is_some_and(|high| key >= high),
            order => order.is_gt(),
        }
    }

    /// First key past the range of child `i`; `None` = the range has no upper end.
    pub fn end(self, i: usize) -> Option<Vec<u8>> {
        if i + 1 < self.children() { Some(self.separator(i + 1)) } else { self.high().map(<[u8]>::to_vec) }
    }

    /// Index of the last child that starts below `key`; `None` = the last child.
    pub fn find_before(self, key: Option<&[u8]>) -> usize {
        let Some(key) = key else { return self.children() - 1 };
        let at = if self.is_past(key) { self.children() - 1 } else { self.find(key) };
        // The child that starts at the key itself has nothing below it.
        if at > 0 && self.separator_is(at, key) { at - 1 } else { at }
    }

    /// Whether child `i`, not the first, starts at `key`.
    pub fn separator_is(self, i: usize, key: &[u8]) -> bool {
        let prefix = &self.low()[..self.field(8) as usize];
        key.strip_prefix(prefix).is_some_and(|rest| rest == self.suffix(i - 1))
    }

    /// All children with their smallest keys.
    pub fn to_children(self) -> Vec<(Vec<u8>, u32)> {
        (0..self.children()).map(|i| (self.separator(i), self.child(i))).collect()
    }

    /// The node with one more child, number `at` (not the first), that starts at `separator`.
    pub fn insert(self, at: usize, separator: &[u8], pid: u32) -> Vec<u8> {
        let n = self.children();
        let suffix = &separator[self.field(8) as usize..];
        let pids = self.pids_at();
        let ends = pids + 4 * n;
        let suffixes = ends + 4 * n;
        let start = self.field(ends + 4 * (at - 1)) as usize;
        let len = u32::try_from(suffix.len()).expect("keys are shorter than 4 GiB");
        let mut node = Vec::with_capacity(self.bytes.len() + 24 + suffix.len());
        node.extend_from_slice(&u32::to_le_bytes(n as u32 + 1));
        node.extend_from_slice(&self.bytes[4..HEADER]);
        let (new, heads) = (head(suffix).to_le_bytes(), self.heads());
        let head = |i: usize| match i.cmp(&(at - 1)) {
            Ordering::Less => heads[i],
            Ordering::Equal => new,
            Ordering::Greater => heads[i - 1],
        };
        (1..=n / BLOCK).for_each(|block| node.extend_from_slice(&head(block * BLOCK - 1)));
        let split_heads = self.heads_at() + 8 * (at - 1);
        node.extend_from_slice(&self.bytes[self.heads_at()..split_heads]);
        node.extend_from_slice(&new);
        node.extend_from_slice(&self.bytes[split_heads..pids + 4 * at]);
        node.extend_from_slice(&pid.to_le_bytes());
        node.extend_from_slice(&self.bytes[pids + 4 * at..ends + 4 * at]);
        // What comes behind the new suffix moves by its length.
        for i in at - 1..n {
            node.extend_from_slice(&(self.field(ends + 4 * i) + len).to_le_bytes());
        }
        node.extend_from_slice(&self.bytes[suffixes..suffixes + start]);
        node.extend_from_slice(suffix);
        node.extend_from_slice(&self.bytes[suffixes + start..]);
        node
    }

    /// Whether a child starts at `key`.
    pub fn has(self, key: &[u8]) -> bool {
        if key == self.low() {
            return true;
        }
        if key < self.low() || self.is_past(key) {
            return false;
        }
        let at = self.find(key);
        at > 0 && self.separator_is(at, key)
    }

    /// Index of the child whose range has `key`, which must be below the high fence and not below the low.
    #[inline(always)]
    pub fn find(self, key: &[u8]) -> usize {
        debug_assert!(key >= self.low() && self.high().is_none_or(|high| key < high), "T1: key is covered");
        let suffix = &key[self.field(8) as usize..];
        let wanted = head(suffix);
        // Heads first: the first separator whose head is not below the key's, ...
        let is_below = |head: &[u8; 8]| u64::from_le_bytes(*head) < wanted;
        let heads = self.heads();
        let start = BLOCK * self.samples().partition_point(is_below);
        let block = &heads[start..heads.len().min(start + BLOCK)];
        prefetch(self.bytes.as_ptr().wrapping_add(self.pids_at() + 4 * start), 4 * BLOCK);
        // All of them, without a branch: they are in two lines, or three.
        let low = start + block.iter().filter(|head| is_below(head)).count();
        if heads.get(low) != Some(&wanted.to_le_bytes()) {
            return low;
        }
        // ... then, among those with the same head, by their whole suffixes.
        self.find_among_equal(low, wanted, suffix)
    }

    /// Number of separators up to `suffix`, of which the first with the head `wanted`, which it has too, is `low`.
    #[cold]
    fn find_among_equal(self, mut low: usize, wanted: u64, suffix: &[u8]) -> usize {
        let heads = self.heads();
        let is_equal = |i: usize| u64::from_le_bytes(heads[i]) == wanted;
        let mut high = low;
        let mut step = 1;
        while high < heads.len() && is_equal(high) {
            high = (high + step).min(heads.len());
            step *= 2;
        }
        while low < high {
            let middle = low + (high - low) / 2;
            if is_equal(middle) && self.suffix(middle) <= suffix {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// Builds a node. `children` are (smallest key, PID) in order, the first with the low fence as its key.
pub fn build(level: u32, children: &[(&[u8], u32)], high: Option<&[u8]>, right: u32) -> Vec<u8> {
    let low = children.first().expect("an inner node has a child").0;
    debug_assert!(children.windows(2).all(|pair| pair[0].0 < pair[1].0), "T1: separators ascend");
    let prefix = high.map_or(0, |high| common_prefix(low, high));
    let field = |n: usize| u32::try_from(n).expect("an inner node is shorter than 4 GiB").to_le_bytes();
    let mut node = Vec::new();
    node.extend_from_slice(&field(children.len()));
    node.extend_from_slice(&level.to_le_bytes());
    node.extend_from_slice(&field(prefix));
    node.extend_from_slice(&field(low.len()));
    node.extend_from_slice(&high.map_or(NO_HIGH.to_le_bytes(), |high| field(high.len())));
    node.extend_from_slice(&right.to_le_bytes());
    node.extend_from_slice(&high.map_or(u64::MAX, head).to_le_bytes());
    let suffixes = || children[1..].iter().map(|(key, _)| &key[prefix..]);
    suffixes()
        .skip(BLOCK - 1)
        .step_by(BLOCK)
        .for_each(|suffix| node.extend_from_slice(&head(suffix).to_le_bytes()));
    suffixes().for_each(|suffix| node.extend_from_slice(&head(suffix).to_le_bytes()));
    children.iter().for_each(|(_, pid)| node.extend_from_slice(&pid.to_le_bytes()));
    let mut end = 0;
    node.extend_from_slice(&field(0));
    for suffix in suffixes() {
        end += suffix.len();
        node.extend_from_slice(&field(end));
    }
    suffixes().for_each(|suffix| node.extend_from_slice(suffix));
    node.extend_from_slice(low);
    node.extend_from_slice(high.unwrap_or_default());
    node
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_key_finds_the_child_that_covers_it() {
        let mut seed = 0x2545_F491_4F6C_DD1D_u64;
        let mut below = |n: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % n
        };
        for few in [true, false].repeat(if cfg!(miri) { 3 } else { 1_000 }) {
            // Long equal runs in front, so that many heads are the same; zero bytes, which pad heads.
            let mut random_key = || -> Vec<u8> {
                let front = [0, 7, 8, 12][below(4) as usize];
                let tail = (0..below(5)).map(|_| [0, 1, 0xFF][below(3) as usize]).collect::<Vec<u8>>();
                [vec![0; front], tail].concat()
            };
            let wanted = if few { 20 } else { 90 };
            let mut keys: BTreeSet<Vec<u8>> = (0..wanted).map(|_| random_key()).collect();
            let probes: Vec<Vec<u8>> = (0..100).map(|_| random_key()).collect();
            let high = keys.pop_last().filter(|_| probes[0].len().is_multiple_of(2));
            let low = keys.first().expect("several keys").clone();
            let children: Vec<(&[u8], u32)> = keys.iter().zip(10..).map(|(k, pid)| (&k[..], pid)).collect();
            let node = build(3, &children, high.as_deref(), 9);
            let inner = Inner::new(&node);
            assert_eq!((inner.children(), inner.level(), inner.right()), (keys.len(), 3, 9));
            assert_eq!((inner.low(), inner.high()), (&low[..], high.as_deref()));
            for (i, (key, pid)) in children.iter().enumerate() {
                assert_eq!((&inner.separator(i)[..], inner.child(i)), (*key, *pid));
            }
            let mut grown = build(3, &children[..1], high.as_deref(), 9);
            let mut order: Vec<usize> = (1..children.len()).collect();
            order.sort_by_key(|i| i.wrapping_mul(7) % 5);
            let mut inside = vec![0];
            for i in order {
                let at = inside.partition_point(|other| *other < i);
                grown = Inner::new(&grown).insert(at, children[i].0, children[i].1);
                inside.insert(at, i);
            }
            assert_eq!(grown, node, "as if built at once");
            for probe in probes.iter().chain(&keys) {
                if *probe >= low && high.as_ref().is_none_or(|high| probe < high) {
                    let expected = keys.iter().filter(|k| *k <= probe).count() - 1;
                    assert_eq!(inner.find(probe), expected, "{probe:?} in {keys:?}");
                }
            }
        }
    }

    /// Where a block of heads is just full, or one more or fewer.
    #[test]
    fn every_number_of_children_is_searched_right() {
        for n in 1..=3 * BLOCK as u32 + 2 {
            let keys: Vec<[u8; 4]> = (0..n).map(|i| (2 * i).to_be_bytes()).collect();
            let children: Vec<(&[u8], u32)> = keys
                .iter()
                .zip(10..)
                .map(|(key, pid)| (if pid == 10 { &[][..] } else { &key[..] }, pid))
                .collect();
            let node = build(1, &children, None, 0);
            let inner = Inner::new(&node);
            for key in 0..2 * n + 2 {
                let expected = (key / 2).min(n - 1);
                assert_eq!(inner.find(&key.to_be_bytes()), expected as usize, "{key} of {n}");
                assert_eq!(inner.child(expected as usize), 10 + expected);
            }
        }
    }

    #[test]
    fn one_child_covers_everything() {
        let node = build(1, &[(b"", 4)], None, 0);
        for key in [&b""[..], b"\0", b"zzzzzzzzzz"] {
            assert_eq!(Inner::new(&node).child(Inner::new(&node).find(key)), 4);
        }
    }
}
