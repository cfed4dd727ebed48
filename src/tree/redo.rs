//! Logical redo records: every byte. `walk.rs` applies them at open.
//!
//! # Format
//!
//! The frame of a record, with its kind, is in `log/record.rs`. The body, by kind:
//!
//! | KIND | OFFSET | SIZE | FIELD |
//! |---|---|---|---|
//! | 1, put | 0 | 4 | id of the tree |
//! | | 4 | 4 | k, length of the key |
//! | | 8 | k | key |
//! | | 8 + k | to the end | value, at most 16383 bytes |
//! | 2, remove | 0 | 4 | id of the tree |
//! | | 4 | to the end | key; it may have been absent |
//! | 3, put a big value | 0 | 4 | id of the tree |
//! | | 4 | 4 | k, length of the key |
//! | | 8 | k | key |
//! | | 8 + k | 16 | reference, see `tree/leaf.rs` |
//! | | 24 + k | 8 | nonce of the run that the image is in |
//! | 4, create a tree | 0 | 4 | id of the tree |
//! | | 4 | to the end | name |
//! | 5, drop a tree | 0 | 4 | id of the tree |
//! | 6, identifiers | 0 | 8 | those below may have been handed out |
//! | 7, a transaction | 0 | to the end | its changes, one after the other, in order of tree and key |
//!
//! A change of a transaction or batch:
//!
//! | OFFSET | SIZE | FIELD |
//! |---|---|---|
//! | 0 | 1 | kind: 1, 2 or 3 as above |
//! | 1 | 4 | id of the tree |
//! | 5 | 4 | k, length of the key |
//! | 9 | 4 | r, length of the rest |
//! | 13 | k | key |
//! | 13 + k | r | the value; nothing; reference and nonce |
//!
//! A transaction is applied whole or not at all. What a merge operator made of a value is a put or a remove like any other.
//! Other kinds of records are `Unsupported`; a body of another length than its fields add up to is `Corruption`.
//!
//! How records are applied, in the order of the stream, to the trees of the directory:
//!
//! - A change of a tree that is not there (any more) has no effect. The last change of a key decides.
//! - A tree is created when its id is not below the next id, which is that of the directory's root (without a directory:
//!   2), or behind the last id created. Otherwise it is in the directory, or was dropped before that was written.
//! - A big value whose image is not valid ends the stream, see `log/redo_scan.rs`. Its image is in the run whose first
//!   segment it starts in. If the directory lists no run there, that segment has a whole header of kind 3 with the nonce
//!   of the record, which says how many segments the run has; if it does, the nonce is that of the run.

use super::leaf::{BigRef, MAX_INLINE};
use crate::pagecache::{FRAME, LARGEST};

/// Kinds of records.
pub mod kind {
    /// Put.
    pub const PUT: u8 = 1;
    /// Remove.
    pub const REMOVE: u8 = 2;
    /// Put a big value.
    pub const PUT_BIG: u8 = 3;
    /// Create a tree.
    pub const CREATE: u8 = 4;
    /// Drop a tree.
    pub const DROP: u8 = 5;
    /// Identifiers.
    pub const IDS: u8 = 6;
    /// Transaction.
    pub const TRANSACTION: u8 = 7;
    /// What need not be understood.
    pub const NOTE: u8 = 0;
}

/// A record to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// The key has the value.
    Put {
        /// Id of the tree.
        tree: u32,
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// The key has no value.
    Remove {
        /// Id of the tree.
        tree: u32,
        /// The key.
        key: &'a [u8],
    },
    /// The key has the big value.
    PutBig {
        /// Id of the tree.
        tree: u32,
        /// The key.
        key: &'a [u8],
        /// Where the value is.
        big: BigRef,
        /// Nonce of the segment that it is in.
        nonce: u64,
    },
    /// There is a tree.
    Create {
        /// Its id.
        tree: u32,
        /// Its name.
        name: &'a [u8],
    },
    /// The tree is gone.
    Drop {
        /// Its id.
        tree: u32,
    },
    /// Identifiers below may have been handed out.
    Ids {
        /// The bound.
        floor: u64,
    },
}

const BIG: usize = BigRef::LEN + 8;
/// Bytes in front of the key of a change of a transaction.
const CHANGE: usize = 13;

/// Bytes of the record of a transaction with these changes: for each the length of its key and of its rest.
pub fn transaction_len(changes: impl Iterator<Item = (usize, usize)>) -> usize {
    changes.fold(FRAME, |len, (key, rest)| len.saturating_add(CHANGE + key).saturating_add(rest))
}

/// What a record of this kind with this body changes; `None`: no encoder writes it.
pub fn decode(kind: u8, body: &[u8]) -> Option<Vec<Record<'_>>> {
    match kind {
        kind::TRANSACTION => decode_transaction(body),
        // Whatever it says, it need not be understood.
        kind::NOTE => Some(Vec::new()),
        _ => Record::decode(kind, body).map(|record| vec![record]),
    }
}

/// Whether an encoder could have written a record of this kind with this body.
pub fn is_well_formed(kind: u8, body: &[u8]) -> bool {
    decode(kind, body).is_some()
}

/// Writes the record of a transaction: the frame into `out`, then each change with what this returns.
pub fn encode_transaction(out: &mut [u8]) -> TransactionEncoder<'_> {
    crate::pagecache::frame_record(out, kind::TRANSACTION);
    TransactionEncoder { rest: &mut out[FRAME..] }
}

/// Writes the changes of a transaction one after the other.
#[derive(Debug)]
pub struct TransactionEncoder<'a> {
    rest: &'a mut [u8],
}

impl TransactionEncoder<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let (now, later) = std::mem::take(&mut self.rest).split_at_mut(bytes.len());
        now.copy_from_slice(bytes);
        self.rest = later;
    }

    /// Writes a change: a put with its value, a remove with nothing, or a put of a big value with [`big_rest`].
    pub fn change(&mut self, kind: u8, tree: u32, key: &[u8], rest: &[u8]) {
        self.put(&[kind]);
        self.put(&tree.to_le_bytes());
        self.put(&(key.len() as u32).to_le_bytes());
        self.put(&(rest.len() as u32).to_le_bytes());
        self.put(key);
        self.put(rest);
    }

    /// Whether the record is full, as it must be in the end.
    pub fn is_full(&self) -> bool {
        self.rest.is_empty()
    }
}

/// The rest of the change that puts a big value.
pub fn big_rest(big: BigRef, nonce: u64) -> [u8; BIG] {
    let mut rest = [0; BIG];
    rest[..BigRef::LEN].copy_from_slice(&big.encode());
    rest[BigRef::LEN..].copy_from_slice(&nonce.to_le_bytes());
    rest
}

/// The changes of a transaction as records of their own; `None`: no encoder writes these bytes.
pub fn decode_transaction(mut body: &[u8]) -> Option<Vec<Record<'_>>> {
    let mut changes = Vec::new();
    while !body.is_empty() {
        let (head, after) = body.split_first_chunk::<CHANGE>()?;
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let (key, after) = after.split_at_checked(number(5) as usize)?;
        let (rest, after) = after.split_at_checked(number(9) as usize)?;
        let tree = number(1);
        changes.push(match head[0] {
            kind::PUT if rest.len() <= MAX_INLINE => Record::Put { tree, key, value: rest },
            kind::REMOVE if rest.is_empty() => Record::Remove { tree, key },
            kind::PUT_BIG => put_big(tree, key, rest)?,
            _ => return None,
        });
        body = after;
    }
    Some(changes)
}

fn put_big<'a>(tree: u32, key: &'a [u8], rest: &[u8]) -> Option<Record<'a>> {
    let rest: &[u8; BIG] = rest.try_into().ok()?;
    let (big, nonce) = rest.split_last_chunk::<8>()?;
    Some(Record::PutBig { tree, key, big: BigRef::decode(big), nonce: u64::from_le_bytes(*nonce) })
}

impl<'a> Record<'a> {
    /// Bytes of the whole record.
    #[inline]
    pub fn len(&self) -> usize {
        FRAME
            + match self {
                Record::Put { key, value, .. } => 8 + key.len() + value.len(),
                Record::Remove { key, .. } => 4 + key.len(),
                Record::PutBig { key, .. } => 8 + key.len() + BIG,
                Record::Create { name, .. } => 4 + name.len(),
                Record::Drop { .. } => 4,
                Record::Ids { .. } => 8,
            }
    }

    fn kind(&self) -> u8 {
        match self {
            Record::Put { .. } => kind::PUT,
            Record::Remove { .. } => kind::REMOVE,
            Record::PutBig { .. } => kind::PUT_BIG,
            Record::Create { .. } => kind::CREATE,
            Record::Drop { .. } => kind::DROP,
            Record::Ids { .. } => kind::IDS,
        }
    }

    /// Writes the record into `out`, which has [`Self::len`] bytes.
    #[inline]
    pub fn encode(&self, out: &mut [u8]) {
        crate::pagecache::frame_record(out, self.kind());
        let mut rest = &mut out[FRAME..];
        let mut put = |bytes: &[u8]| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            now.copy_from_slice(bytes);
            rest = later;
        };
        match *self {
            Record::Put { tree, key, value } => {
                put(&tree.to_le_bytes());
                put(&(key.len() as u32).to_le_bytes());
                put(key);
                put(value);
            }
            Record::Remove { tree, key } => {
                put(&tree.to_le_bytes());
                put(key);
            }
            Record::PutBig { tree, key, big, nonce } => {
                put(&tree.to_le_bytes());
                put(&(key.len() as u32).to_le_bytes());
                put(key);
                put(&big.encode());
                put(&nonce.to_le_bytes());
            }
            Record::Create { tree, name } => {
                put(&tree.to_le_bytes());
                put(name);
            }
            Record::Drop { tree } => put(&tree.to_le_bytes()),
            Record::Ids { floor } => put(&floor.to_le_bytes()),
        }
        debug_assert!(rest.is_empty(), "the length that was announced");
    }

    /// The record of a kind with a body; `None`: no encoder writes these bytes.
    pub fn decode(kind: u8, body: &'a [u8]) -> Option<Record<'a>> {
        let (tree, rest) = body.split_first_chunk::<4>()?;
        let tree = u32::from_le_bytes(*tree);
        let keyed = || {
            let (len, rest) = rest.split_first_chunk::<4>()?;
            rest.split_at_checked(u32::from_le_bytes(*len) as usize)
        };
        match kind {
            kind::PUT => {
                let (key, value) = keyed()?;
                (value.len() <= MAX_INLINE).then_some(Record::Put { tree, key, value })
            }
            kind::REMOVE => Some(Record::Remove { tree, key: rest }),
            kind::PUT_BIG => {
                let (key, rest) = keyed()?;
                put_big(tree, key, rest)
            }
            kind::CREATE => Some(Record::Create { tree, name: rest }),
            kind::DROP => rest.is_empty().then_some(Record::Drop { tree }),
            kind::IDS => {
                let floor = u64::from_le_bytes(body.try_into().ok()?);
                (floor <= LARGEST).then_some(Record::Ids { floor })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pagecache::ImageAddr;

    fn encoded(record: Record<'_>) -> Vec<u8> {
        let mut out = vec![0xAA; record.len()];
        record.encode(&mut out);
        assert_eq!(Record::decode(out[4], &out[FRAME..]), Some(record));
        out
    }

    #[test]
    fn records_have_the_documented_bytes() {
        let put = encoded(Record::Put { tree: 2, key: b"k", value: b"vw" });
        assert_eq!(put, [16, 0, 0, 0, 1, 2, 0, 0, 0, 1, 0, 0, 0, b'k', b'v', b'w']);
        assert_eq!(encoded(Record::Remove { tree: 2, key: b"k" }), [10, 0, 0, 0, 2, 2, 0, 0, 0, b'k']);
        let big = BigRef { image: ImageAddr(7), len: 9 };
        let expected = [
            &[38, 0, 0, 0, 3, 2, 0, 0, 0, 1, 0, 0, 0, b'k'][..],
            &[7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(encoded(Record::PutBig { tree: 2, key: b"k", big, nonce: 5 }), expected.concat());
        assert_eq!(encoded(Record::Create { tree: 3, name: b"n" }), [10, 0, 0, 0, 4, 3, 0, 0, 0, b'n']);
        assert_eq!(encoded(Record::Drop { tree: 3 }), [9, 0, 0, 0, 5, 3, 0, 0, 0]);
        assert_eq!(encoded(Record::Ids { floor: 4 }), [13, 0, 0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn transactions_have_the_documented_bytes() {
        let big = BigRef { image: ImageAddr(7), len: 9 };
        let rest = big_rest(big, 5);
        let changes = [(kind::PUT, &b"vw"[..]), (kind::REMOVE, b""), (kind::PUT_BIG, &rest)];
        let len = transaction_len(changes.iter().map(|(_, rest)| (1, rest.len())));
        let mut out = vec![0xEE; len];
        let mut encoder = encode_transaction(&mut out);
        changes.iter().for_each(|(kind, rest)| encoder.change(*kind, 2, b"k", rest));
        assert!(encoder.is_full());
        assert_eq!(out[..5], [len as u8, 0, 0, 0, 7]);
        assert_eq!(out[5..21], [1, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, b'k', b'v', b'w']);
        assert_eq!(out[21..35], [2, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'k']);
        assert_eq!(out[35..48], [3, 2, 0, 0, 0, 1, 0, 0, 0, 24, 0, 0, 0]);
        let decoded = decode_transaction(&out[5..]).expect("just encoded");
        let expected = [
            Record::Put { tree: 2, key: b"k", value: b"vw" },
            Record::Remove { tree: 2, key: b"k" },
            Record::PutBig { tree: 2, key: b"k", big, nonce: 5 },
        ];
        assert_eq!(decoded, expected);
        for end in (6..len).filter(|end| ![21, 35].contains(end)) {
            assert_eq!(decode_transaction(&out[5..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn bodies_that_no_encoder_writes_are_refused() {
        for (kind, body) in [
            (kind::PUT, &[1, 0, 0, 0, 9, 0, 0, 0, 1][..]),
            (kind::PUT, &[1, 0, 0]),
            (kind::PUT_BIG, &[1, 0, 0, 0, 0, 0, 0, 0, 1]),
            (kind::DROP, &[1, 0, 0, 0, 0]),
            (kind::IDS, &[1, 0, 0, 0]),
            (kind::IDS, &[0xFF; 8]),
            (77, &[0; 16]),
        ] {
            assert_eq!(Record::decode(kind, body), None);
        }
        let too_long = vec![0; 8 + MAX_INLINE + 1];
        assert!(Record::decode(kind::PUT, &too_long[1..]).is_some());
        assert_eq!(Record::decode(kind::PUT, &too_long), None, "no leaf could hold it");
        let head = [kind::PUT, 1, 0, 0, 0, 0, 0, 0, 0];
        let change = |len| [&head[..], &(len as u32).to_le_bytes(), &vec![0; len]].concat();
        assert!(decode_transaction(&change(MAX_INLINE)).is_some());
        assert_eq!(decode_transaction(&change(MAX_INLINE + 1)), None);
    }
}
