//! The leaf directory as bytes: which leaves a tree has, where they start and where their images are.
//!
//! # Format
//!
//! The superblock says where the root image is (kind 4), and its nonce. Payload of the root:
//!
//! | OFFSET | SIZE | FIELD | MEANING |
//! |---|---|---|---|
//! | 0 | 4 | next tree | ids of trees are at least 1 and below this |
//! | 4 | 8 | captured | LSN: big values whose records are at or behind it are not in `live` yet |
//! | 12 | 4 | r | number of runs |
//! | 16 | 29 r | runs | of each what follows below |
//! | 16 + 29 r | 4 | c | number of chunks |
//! | 20 + 29 r | 8 c | chunks | of each: address of the image (kind 3), see `log/address.rs` |
//!
//! A run of segments, with all the images that the directory refers to and the big values of the leaves in it:
//!
//! | OFFSET | SIZE | FIELD | MEANING |
//! |---|---|---|---|
//! | 0 | 4 | first | number of its first segment |
//! | 4 | 4 | segments | how many it has, at least 1 |
//! | 8 | 1 | kind | 2 leaves and the directory, 3 big values |
//! | 9 | 8 | nonce | of the images in it |
//! | 17 | 6 | used | bytes that were appended, its header included; for deciding what to clean |
//! | 23 | 6 | live | of kind 3: bytes of images that are referred to; otherwise without meaning |
//!
//! Runs do not overlap and lie within the file. The run that the root itself is in may be missing; its nonce is in the
//! superblock.
//!
//! The payloads of the chunks one after the other are one stream of items, cut anywhere. A `varint` has 7 bits in each
//! byte, the lowest first, and the top bit set in all bytes but the last; at most 10 bytes, and no more than 2^32. Items:
//!
//! | FIELD OF A TREE | SIZE | MEANING |
//! |---|---|---|
//! | tag | 1 | 1 |
//! | id | 4 | of the tree, never used for another one |
//! | big | 1 | 1 = it may have big values, 0 = it has none |
//! | length | varint | bytes of the name |
//! | name | length | as it was opened |
//!
//! | FIELD OF A LEAF | SIZE | MEANING |
//! |---|---|---|
//! | tag | 1 | 2 |
//! | shared | varint | bytes shared with the low key of the leaf before; of the first of a tree: 0 |
//! | length | varint | bytes of the low key that follow |
//! | rest | length | the low key without what is shared |
//! | image | 8 | address of its image (kind 1), 0 = an empty leaf |
//!
//! The end is a tag 3 without fields, and nothing follows it.
//!
//! Trees are in no order that counts; ids and names are different ones. A tree has at least one leaf, the leaves of a tree
//! follow it, their low keys ascend, and the first one is empty: they partition the key space, and a leaf ends where the
//! next one of its tree starts. Only the first leaf of a tree may be without an image. The tree with id 1 is the
//! default tree, and is there even when no item says so.

use crate::base::Lsn;
use crate::error::{Error, Result};
use crate::log::{ImageAddr, Page, SegmentKind};

const TREE: u8 = 1;
const LEAF: u8 = 2;
const END: u8 = 3;

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes items.
#[derive(Debug, Default)]
pub struct Encoder {
    /// What was written and not taken.
    pub out: Vec<u8>,
    previous: Vec<u8>,
}

impl Encoder {
    /// A tree; its leaves follow.
    pub fn tree(&mut self, id: u32, big: bool, name: &[u8]) {
        self.out.push(TREE);
        self.out.extend_from_slice(&id.to_le_bytes());
        self.out.push(u8::from(big));
        put_varint(&mut self.out, name.len() as u64);
        self.out.extend_from_slice(name);
        self.previous.clear();
    }

    /// A leaf of the last tree.
    pub fn leaf(&mut self, low: &[u8], image: ImageAddr) {
        let shared = self.previous.iter().zip(low).take_while(|(a, b)| a == b).count();
        self.out.push(LEAF);
        put_varint(&mut self.out, shared as u64);
        put_varint(&mut self.out, (low.len() - shared) as u64);
        self.out.extend_from_slice(&low[shared..]);
        self.out.extend_from_slice(&image.0.to_le_bytes());
        self.previous.clear();
        self.previous.extend_from_slice(low);
    }

    /// Nothing follows.
    pub fn end(&mut self) {
        self.out.push(END);
    }
}

/// An item of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A tree: id, whether it may have big values, name.
    Tree(u32, bool, Vec<u8>),
    /// A leaf: low key and image.
    Leaf(Vec<u8>, ImageAddr),
    /// The end.
    End,
}

/// Reads items from chunks as they come.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    at: usize,
    previous: Vec<u8>,
}

/// `None`: more bytes are needed; `Some(None)`: no such bytes are written.
type Parsed<T> = Option<Option<T>>;

impl Decoder {
    /// Adds the next chunk.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(chunk);
    }

    /// Whether no bytes are left that belong to no item.
    pub fn is_empty(&self) -> bool {
        self.at == self.buffer.len()
    }

    /// The next item; `None`: feed another chunk first.
    ///
    /// # Errors
    /// `Corruption` for bytes that no encoder writes.
    pub fn next(&mut self) -> Result<Option<Item>> {
        match self.parse() {
            None => Ok(None),
            Some(Some((item, end))) => {
                self.at = end;
                Ok(Some(item))
            }
            Some(None) => {
                log::error!("malformed leaf directory");
                Err(Error::Corruption { at: None, bt: () })
            }
        }
    }

    fn parse(&mut self) -> Parsed<(Item, usize)> {
        let mut reader = Reader { bytes: &self.buffer, at: self.at };
        match reader.take(1)?[0] {
            TREE => {
                let id = u32::from_le_bytes(reader.take(4)?.try_into().expect("four bytes"));
                let big = reader.take(1)?[0];
                if big > 1 {
                    return Some(None);
                }
                let Some(len) = reader.varint()? else { return Some(None) };
                let name = reader.take(len)?.to_vec();
                self.previous.clear();
                Some(Some((Item::Tree(id, big == 1, name), reader.at)))
            }
            LEAF => {
                let Some(shared) = reader.varint()? else { return Some(None) };
                let Some(len) = reader.varint()? else { return Some(None) };
                if shared > self.previous.len() {
                    return Some(None);
                }
                let rest = reader.take(len)?;
                let image = u64::from_le_bytes(reader.take(8)?.try_into().expect("eight bytes"));
                let low = [&self.previous[..shared], rest].concat();
                let end = reader.at;
                self.previous.clone_from(&low);
                Some(Some((Item::Leaf(low, ImageAddr(image)), end)))
            }
            END => Some(Some((Item::End, reader.at))),
            _ => Some(None),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(len)?)?;
        self.at += len;
        Some(taken)
    }

    fn varint(&mut self) -> Parsed<usize> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                // No key or name comes near this; a larger number would have us wait for bytes for ever.
                return Some(Some(value).filter(|v| *v <= 1 << 32).and_then(|v| usize::try_from(v).ok()));
            }
        }
        Some(None)
    }
}

/// The root image.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// Id of the next tree.
    pub next_tree: u32,
    /// Big values whose records are before this are counted in the runs.
    pub captured: Lsn,
    /// First segment and content of every run.
    pub runs: Vec<(u32, Page)>,
    /// The chunks, in order.
    pub chunks: Vec<ImageAddr>,
}

const RUN: usize = 29;

impl Root {
    /// The payload to write.
    pub fn encode(&self) -> Vec<u8> {
        let count = |n: usize| u32::try_from(n).expect("segments are counted in 32 bits").to_le_bytes();
        let mut out = Vec::with_capacity(12 + RUN * self.runs.len() + 8 * self.chunks.len());
        out.extend_from_slice(&self.next_tree.to_le_bytes());
        out.extend_from_slice(&self.captured.0.to_le_bytes());
        out.extend_from_slice(&count(self.runs.len()));
        for (number, page) in &self.runs {
            out.extend_from_slice(&number.to_le_bytes());
            out.extend_from_slice(&page.units.to_le_bytes());
            out.push(page.kind as u8);
            out.extend_from_slice(&page.nonce.to_le_bytes());
            out.extend_from_slice(&page.used.to_le_bytes()[..6]);
            out.extend_from_slice(&page.live.to_le_bytes()[..6]);
        }
        out.extend_from_slice(&count(self.chunks.len()));
        self.chunks.iter().for_each(|chunk| out.extend_from_slice(&chunk.0.to_le_bytes()));
        out
    }

    /// The root in a payload; `None`: no encoder writes these bytes.
    pub fn decode(bytes: &[u8]) -> Option<Root> {
        let mut reader = Reader { bytes, at: 0 };
        let word = |reader: &mut Reader<'_>| {
            reader.take(4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")))
        };
        let long = |reader: &mut Reader<'_>, len: usize| {
            let mut b = [0; 8];
            b[..len].copy_from_slice(reader.take(len)?);
            Some(u64::from_le_bytes(b))
        };
        let mut root = Root { next_tree: word(&mut reader)?, ..Root::default() };
        root.captured = Lsn(long(&mut reader, 8)?);
        for _ in 0..word(&mut reader)? {
            let (number, units) = (word(&mut reader)?, word(&mut reader)?);
            let kind = match reader.take(1)?[0] {
                2 => SegmentKind::Leaves,
                3 => SegmentKind::Big,
                _ => return None,
            };
            let nonce = long(&mut reader, 8)?;
            let (used, live) = (long(&mut reader, 6)?, long(&mut reader, 6)?);
            // What was open then is not appended to any more.
            let live = if kind == SegmentKind::Big { live } else { 0 };
            root.runs.push((
                number,
                Page { kind, nonce, units, used, live, pending: 0, sealed: true, emptied: false },
            ));
        }
        for _ in 0..word(&mut reader)? {
            root.chunks.push(ImageAddr(long(&mut reader, 8)?));
        }
        (reader.at == bytes.len()).then_some(root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items() -> Vec<Item> {
        let mut items =
            vec![Item::Tree(1, true, b"__sled__default".to_vec()), Item::Leaf(vec![], ImageAddr(7))];
        items.extend((0..50_u8).map(|i| Item::Leaf(vec![b'k'; usize::from(i) + 1], ImageAddr(u64::from(i)))));
        items.push(Item::Tree(9, false, vec![]));
        items.push(Item::Leaf(vec![], ImageAddr(0)));
        items.push(Item::Leaf(vec![0xFF; 300], ImageAddr(u64::MAX >> 2)));
        items.push(Item::End);
        items
    }

    fn encoded() -> Vec<u8> {
        let mut encoder = Encoder::default();
        for item in items() {
            match item {
                Item::Tree(id, big, name) => encoder.tree(id, big, &name),
                Item::Leaf(low, image) => encoder.leaf(&low, image),
                Item::End => encoder.end(),
            }
        }
        encoder.out
    }

    #[test]
    fn items_survive_any_cut_into_chunks() {
        let bytes = encoded();
        for step in [1, 2, 3, 7, 100, bytes.len()] {
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for chunk in bytes.chunks(step) {
                decoder.feed(chunk);
                while let Some(item) = decoder.next().expect("well formed") {
                    found.push(item);
                }
            }
            assert_eq!(found, items(), "chunks of {step}");
        }
    }

    #[test]
    fn directory_has_the_documented_bytes() {
        let mut encoder = Encoder::default();
        encoder.tree(2, true, b"t");
        encoder.leaf(b"", ImageAddr(5));
        encoder.leaf(b"ab", ImageAddr(6));
        encoder.leaf(b"ac", ImageAddr(0));
        encoder.end();
        let expected = [
            &[1, 2, 0, 0, 0, 1, 1, b't'][..],
            &[2, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0],
            &[2, 0, 2, b'a', b'b', 6, 0, 0, 0, 0, 0, 0, 0],
            &[2, 1, 1, b'c', 0, 0, 0, 0, 0, 0, 0, 0],
            &[3],
        ];
        assert_eq!(encoder.out, expected.concat());
        let big = Page {
            kind: SegmentKind::Big,
            nonce: 3,
            units: 2,
            used: 300,
            live: 260,
            pending: 0,
            sealed: true,
            emptied: false,
        };
        let root = Root { next_tree: 4, captured: Lsn(9), runs: vec![(1, big)], chunks: vec![ImageAddr(8)] };
        let expected = [
            &[4, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0][..],
            &[1, 0, 0, 0, 2, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 44, 1, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0],
            &[1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(root.encode(), expected.concat());
        assert_eq!(Root::decode(&root.encode()), Some(root));
    }

    #[test]
    fn malformed_directories_are_errors() {
        let mut decoder = Decoder::default();
        decoder.feed(&[9]);
        assert!(decoder.next().is_err());
        let mut decoder = Decoder::default();
        decoder.feed(&[LEAF, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(decoder.next().is_err(), "shares more than there is");
        let mut decoder = Decoder::default();
        decoder.feed(&[[LEAF].as_slice(), &[0xFF; 20]].concat());
        assert!(decoder.next().is_err(), "no length is that long");
        let mut decoder = Decoder::default();
        decoder.feed(&[TREE, 1, 0, 0, 0, 2, 0]);
        assert!(decoder.next().is_err(), "a flag is 0 or 1");
        let mut decoder = Decoder::default();
        decoder.feed(&[END, LEAF]);
        assert_eq!(decoder.next().expect("well formed"), Some(Item::End));
        assert!(!decoder.is_empty(), "something follows");
        let bytes = Root { next_tree: 1, ..Root::default() }.encode();
        for cut in (0..bytes.len()).step_by(if cfg!(miri) { 61 } else { 1 }) {
            assert_eq!(Root::decode(&bytes[..cut]), None);
        }
        let mut huge = bytes;
        huge[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Root::decode(&huge), None, "counts are not trusted");
    }
}
