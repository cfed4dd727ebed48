//! How many keys a tree has, without counting them.
//!
//! # How it works
//!
//! Every write knows whether its key had a value before, and adds what it changes to a number of its tree. For a tree that
//! was created since the database was opened that is the length. For others it becomes it together with
//! the length at the open, which the note of the last closing says ([`Lengths`]), unless something was written since. If there is
//! none, as after a crash, the length is counted when it is asked for, and known from then on if nobody wrote
//! meanwhile.
//!
//! # Invariants
//!
//! - T8: when `base` is known, and no write of the tree is between publication and completion, `base` + `net` is the
//!   number of keys. So a write adds between the two, or, if it does not know what, makes the length unknown.
//!
//! # Format
//!
//! The note is the body of a padding record (`log/record.rs`) that begins with four bytes 0xFF, which no record that was
//! given up does: for each tree follow its id, 4 bytes, and its length at this place of the stream, 8 bytes. Whoever
//! reads may ignore it.

use super::{BwTree, Forest};
use crate::base::Lsn;
use crate::error::Result;
use crate::pagecache::{FRAME, LARGEST, NOTE, frame_note};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

const UNKNOWN: i64 = i64::MIN;
const ENTRY: usize = 12;

/// The number of keys of a tree, as far as it is known.
#[derive(Debug)]
pub(super) struct Length {
    /// Keys when `net` was 0. Set by recovery and by who counted; made unknown by anybody.
    base: AtomicI64,
    /// Keys added less keys removed. Any thread, by atomic add.
    net: AtomicI64,
    /// How often the length was made unknown. Any thread, by atomic add.
    losses: AtomicU64,
}

impl Length {
    /// Of an empty tree.
    pub fn zero() -> Length {
        Length { base: AtomicI64::new(0), net: AtomicI64::new(0), losses: AtomicU64::new(0) }
    }

    /// Of a tree that was there before.
    pub fn unknown() -> Length {
        Length { base: AtomicI64::new(UNKNOWN), ..Length::zero() }
    }

    /// Whether it is known: then who cannot tell what it changes must find out, or [`Self::lose`] it.
    #[inline]
    pub fn is_known(&self) -> bool {
        // Relaxed: who is late loses what is known by then.
        self.base.load(Ordering::Relaxed) != UNKNOWN
    }

    /// The number of keys.
    pub fn get(&self) -> Option<u64> {
        // Acquire: pairs with the SeqCst store in `learn`.
        let base = self.base.load(Ordering::Acquire);
        // Relaxed: a write that has returned is seen by who knows of that.
        let net = self.net.load(Ordering::Relaxed);
        (base != UNKNOWN).then(|| u64::try_from(base.saturating_add(net)).unwrap_or(0))
    }

    /// A published write has added so many keys, or removed them.
    #[inline]
    pub fn add(&self, net: i64) {
        if net != 0 {
            // Relaxed: the completion of the reservation orders it with who counts.
            self.net.fetch_add(net, Ordering::Relaxed);
        }
    }

    /// A published write has changed it by who knows what.
    pub fn lose(&self) {
        // SeqCst, both: with those in `learn`; one of the two sees the other.
        self.losses.fetch_add(1, Ordering::SeqCst);
        self.base.store(UNKNOWN, Ordering::SeqCst);
    }

    /// There were so many keys at an instant at which it had been lost so often, and `net` had been added.
    fn learn(&self, keys: u64, losses: u64, net: i64) {
        let Ok(keys) = i64::try_from(keys) else { return };
        // SeqCst: as in `lose`.
        self.base.store(keys - net, Ordering::SeqCst);
        if self.losses.load(Ordering::SeqCst) != losses {
            self.base.store(UNKNOWN, Ordering::SeqCst);
        }
    }
}

/// The lengths in a note.
pub(super) struct Lengths<'a>(&'a [u8]);

impl<'a> Lengths<'a> {
    /// Of the body of a padding record; `None`: it is no note.
    pub fn of(body: &'a [u8]) -> Option<Lengths<'a>> {
        let entries = body.strip_prefix(&NOTE)?;
        entries.len().is_multiple_of(ENTRY).then_some(Lengths(entries))
    }

    /// Ids of trees and their lengths.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u64)> + 'a {
        self.0.chunks_exact(ENTRY).map(|entry| {
            let (id, len) = entry.split_first_chunk::<4>().expect("an entry has an id");
            (u32::from_le_bytes(*id), u64::from_le_bytes(len.try_into().expect("eight bytes")))
        })
    }
}

impl Forest {
    /// Number of keys of a tree.
    ///
    /// # Errors
    /// What reading failed with; `CollectionNotFound`.
    pub fn len(&self, tree: &BwTree) -> Result<u64> {
        tree.check()?;
        if let Some(known) = tree.length.get() {
            return Ok(known);
        }
        // SeqCst: as in `Length::lose`.
        let losses = tree.length.losses.load(Ordering::SeqCst);
        let quiet = self.log().quiet_end();
        // Relaxed: nobody adds while it is quiet.
        let net = tree.length.net.load(Ordering::Relaxed);
        let keys = self.count(tree)? as u64;
        // Nothing was reserved meanwhile, and everything before was completed.
        if quiet.is_some() && self.log().quiet_end() == quiet {
            tree.length.learn(keys, losses, net);
        }
        Ok(keys)
    }

    /// Recovery: what a note says is so, until something is written.
    pub(super) fn take_lengths(&self, lsn: Lsn, body: &[u8]) {
        // Relaxed: recovery is alone.
        self.noted.store(lsn.plus((FRAME + body.len()) as u64).0, Ordering::Relaxed);
        self.noted_bytes.store(body.len(), Ordering::Relaxed);
        for (id, len) in Lengths::of(body).iter().flat_map(Lengths::iter) {
            if let Some(tree) = self.catalog.get_id(id)
                && len <= LARGEST
            {
                // SeqCst: as in `Length::lose`.
                let losses = tree.length.losses.load(Ordering::SeqCst);
                tree.length.learn(len, losses, 0);
            }
        }
    }

    /// Notes the lengths in the log, unless that is the last thing in it, when the database is closed and nobody writes any
    /// more.
    ///
    /// # Errors
    /// What writing failed with.
    pub fn note_lengths(&self) -> Result<()> {
        let trees = self.catalog.list();
        let known: Vec<_> = trees.iter().filter_map(|tree| Some((tree.id, tree.length.get()?))).collect();
        let len = NOTE.len() + ENTRY * known.len();
        // Relaxed: closing is alone.
        let is_last = self.log().redo_tail() > 0 && self.noted.load(Ordering::Relaxed) == self.log().end().0;
        if known.is_empty() || is_last && self.noted_bytes.load(Ordering::Relaxed) == len {
            return Ok(());
        }
        let mut space = self.cache.reserve(FRAME + len)?;
        frame_note(space.bytes());
        let entries = &mut space.bytes()[FRAME + NOTE.len()..];
        for (entry, (id, len)) in entries.chunks_exact_mut(ENTRY).zip(known) {
            entry[..4].copy_from_slice(&id.to_le_bytes());
            entry[4..].copy_from_slice(&len.to_le_bytes());
        }
        space.complete();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_while_it_is_counted_stays_lost() {
        let length = Length::unknown();
        length.add(3);
        let losses = length.losses.load(Ordering::SeqCst);
        length.learn(10, losses, 3);
        assert_eq!(length.get(), Some(10));
        length.add(-4);
        assert_eq!(length.get(), Some(6));
        length.lose();
        length.learn(6, losses, -1);
        assert_eq!((length.get(), length.is_known()), (None, false));
    }

    #[test]
    fn notes_have_the_documented_bytes() {
        let body = [&[0xFF; 4][..], &[7, 0, 0, 0], &[1, 2, 0, 0, 0, 0, 0, 0]].concat();
        let lengths: Vec<_> = Lengths::of(&body).expect("a note").iter().collect();
        assert_eq!(lengths, [(7, 0x201)]);
        assert!(Lengths::of(&body[..15]).is_none() && Lengths::of(&body[1..]).is_none());
    }
}
