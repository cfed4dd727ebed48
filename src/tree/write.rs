//! Point writes: THE loop that looks, reserves, publishes and completes.
//!
//! # How it works
//!
//! 1. Find the leaf; look through its deltas and base for the key's exact old value.
//! 2. Ask the caller what to do about it. A big value's image is written now.
//! 3. Reserve a redo record and fill it in.
//! 4. CAS the delta into the first empty slot: the linearization point.
//! 5. Complete the reservation.
//!
//! When the slot was taken by a delta of another key, the next slot is tried with the same reservation. When it was
//! the same key, or the frame was frozen, the reservation becomes padding and everything starts over with the
//! newest value: that keeps T5, for between the two reservations somebody else may have written the key.

use super::consolidate::Fold;
use super::delta::{big_image, value_of};
use super::descent::At;
use super::excerpt::For;
use super::leaf::{BigRef, Value, fingerprint};
use super::read::Found;
use super::redo::Record;
use super::watch::{Event, Wakes};
use super::{BwTree, Forest};
use crate::error::{Error, Result};
use crate::ivec::IVec;
use crate::pagecache::{DeltaKind, FrameRef, ImageAddr, Looker, NewDelta, Published, SLOTS, Status};
use std::cell::Cell;

/// Longest key that can have a value, bytes: a leaf with as many as fit into its slots is still an image.
pub(super) const MAX_KEY: usize = 32 << 20;

/// The error of a longer one.
pub(super) fn too_long(key: &[u8]) -> Error {
    Error::Unsupported(format!("a key of {} bytes; at most {MAX_KEY} are possible", key.len()))
}

thread_local! {
    /// Changes that this thread has made visible.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
}

/// Changes that this thread has made visible, transactions counted as one.
pub fn own_changes() -> u64 {
    CHANGES.get()
}

/// This thread has made a change visible.
pub(super) fn note_own_change() {
    CHANGES.set(CHANGES.get().wrapping_add(1));
}

/// What to do about a key.
#[derive(Clone, Debug)]
pub enum Change {
    /// Leave it as it is.
    Keep,
    /// Give it this value.
    Put(IVec),
    /// Take its value away.
    Remove,
}

impl Change {
    /// What subscribers are told.
    fn event(&self, key: &[u8]) -> Option<Event> {
        let key = IVec::from(key);
        Some(match self.value()? {
            Some(value) => Event::Insert { key, value: value.clone() },
            None => Event::Remove { key },
        })
    }

    /// The value that it leaves; `None`: it leaves everything as it is.
    fn value(&self) -> Option<Option<&IVec>> {
        match self {
            Change::Keep => None,
            Change::Put(value) => Some(Some(value)),
            Change::Remove => Some(None),
        }
    }
}

/// What a write did.
#[derive(Clone, Debug)]
pub struct Written {
    /// The value before.
    pub old: Option<IVec>,
    /// Whether something was published.
    pub changed: bool,
}

/// What was decided, ready to be published.
enum Ready<'a> {
    Inline(&'a IVec),
    Big(BigRef),
    Gone,
}

/// What is to be published.
struct Publish<'a> {
    tree: &'a BwTree,
    key: &'a [u8],
    fingerprint: u16,
    delta: (DeltaKind, &'a [u8]),
    record: &'a Record<'a>,
    /// Keys that it adds, or removes.
    net: i64,
    /// What subscribers are told of, if they are to be told.
    event: Option<&'a Change>,
}

/// What one attempt leaves to the next.
struct Attempt<'a> {
    forest: &'a Forest,
    fingerprint: u16,
    /// The image of a big value that was decided on and not published.
    image: Option<(IVec, BigRef)>,
    /// What was decided about which old value: it stands while the key has that, whatever else made the attempt fail.
    decided: Option<(Option<IVec>, Change)>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some((_, big)) = self.image.take() {
            self.forest.cache.settle_big(big.image, false);
        }
    }
}

impl Forest {
    /// Changes the value of a key in one step to what `decide` makes of the old one; `decide` is called again when the key
    /// got another value meanwhile.
    ///
    /// # Errors
    /// What reading or writing failed with, then nothing changed; `CollectionNotFound`.
    pub fn write(
        &self,
        tree: &BwTree,
        key: &[u8],
        mut decide: impl FnMut(Option<&IVec>) -> Result<Change>,
    ) -> Result<Written> {
        if self.cache.over_hard_limit() {
            self.keep_up()?;
        }
        tree.priority.give_way();
        let mut attempt = Attempt { forest: self, fingerprint: fingerprint(key), image: None, decided: None };
        loop {
            if let Some(written) = self.write_once(tree, key, &mut decide, &mut attempt)? {
                return Ok(written);
            }
        }
    }

    /// One attempt; `None`: somebody else was faster.
    fn write_once(
        &self,
        tree: &BwTree,
        key: &[u8],
        decide: &mut impl FnMut(Option<&IVec>) -> Result<Change>,
        attempt: &mut Attempt<'_>,
    ) -> Result<Option<Written>> {
        let fingerprint = attempt.fingerprint;
        let guard = crossbeam_epoch::pin();
        tree.check()?;
        let at = self.leaf_of_record(tree, (key, For::Writing), &guard)?;
        at.frame.touch();
        let look = at.frame.look(fingerprint, key, Looker::Writer(None));
        if let Some(run) = look.blocked {
            run.status.settle();
            return Ok(None);
        }
        let found = match look.delta {
            Some(delta) => match value_of(delta) {
                Value::Gone => Found::Absent,
                value => Found::Value(value),
            },
            None => Found::in_base(at, key, fingerprint),
        };
        if look.frozen || found == Found::Unknown {
            self.make_way(at.frame, None);
            let frozen = look.frozen;
            if frozen {
                self.consolidate(tree, at, self.fold(tree), &guard)?;
            } else {
                self.take_in(tree, at, (key, For::Writing), &guard)?;
            }
            drop(guard);
            // A leaf that just got its image is needed first: one that is larger than the capacity would lose it again.
            if frozen {
                self.keep_up()?;
            }
            return Ok(None);
        }
        let (old, old_image) = match found {
            Found::Value(value) => (Some(self.copy_out(tree, key, value)?), big_image(value)),
            _ => (None, None),
        };
        let change = match attempt.decided.take() {
            Some((seen, change)) if seen == old => change,
            _ => decide(old.as_ref())?,
        };
        let ready = match change.value() {
            None => return Ok(Some(Written { old, changed: false })),
            Some(None) => Ready::Gone,
            Some(Some(_)) if key.len() > MAX_KEY => return Err(too_long(key)),
            Some(Some(value)) if value.len() <= self.options.big_value => Ready::Inline(value),
            Some(Some(value)) => Ready::Big(self.big_value(tree, key, value, &mut attempt.image)?),
        };
        let encoded;
        let (kind, value, record) = match &ready {
            Ready::Gone => (DeltaKind::Remove, &[][..], Record::Remove { tree: tree.id, key }),
            Ready::Inline(value) => (DeltaKind::Put, &value[..], Record::Put { tree: tree.id, key, value }),
            Ready::Big(big) => {
                encoded = big.encode();
                let nonce = self.cache.nonce(big.image);
                (DeltaKind::PutBig, &encoded[..], Record::PutBig { tree: tree.id, key, big: *big, nonce })
            }
        };
        let net = i64::from(!matches!(ready, Ready::Gone)) - i64::from(old.is_some());
        let (record, event) = (&record, Some(&change));
        let publish = Publish { tree, key, fingerprint, delta: (kind, value), record, net, event };
        let Some((slot, wakes)) = self.publish(at, look.used, &publish)? else {
            attempt.decided = Some((old, change));
            return Ok(None);
        };
        if let Ready::Big(big) = ready {
            attempt.image = None;
            self.cache.settle_big(big.image, true);
        }
        note_own_change();
        let busy = old_image.is_some() || matches!(ready, Ready::Big(_));
        let full = slot + 1 == SLOTS || self.is_oversized(at);
        if old_image.is_some() || full {
            // A full frame is due; folding a big value away at once lets its bytes be reused soon.
            // The change is made, whatever becomes of this; the next writer folds a frozen frame.
            let _ = self.consolidate(tree, at, self.fold(tree), &guard);
        }
        drop(guard);
        if busy || full {
            // Neither can it fail because of what is due besides it; the next write is told, if it must wait.
            let _ = self.keep_up();
        }
        // Last, as it is code of the user's.
        wakes.wake();
        Ok(Some(Written { old, changed: true }))
    }

    /// Reserves the record, publishes the delta and completes, from slot `slot` on. The slot it went to, and who is to be
    /// woken in the end; `None`: the frame was frozen or the key was written meanwhile.
    fn publish(&self, at: At<'_>, mut slot: usize, what: &Publish<'_>) -> Result<Option<(usize, Wakes)>> {
        let mut delta = NewDelta::new(self.cache.arena(), what.delta.0, what.key, what.delta.1);
        let mut space = self.cache.reserve(what.record.len())?;
        what.record.encode(space.bytes());
        delta.set_lsn(space.lsn());
        let mut emitter = what.event.and_then(|_| what.tree.watchers.emitter());
        loop {
            match at.frame.publish(slot, what.fingerprint, delta) {
                (Published::Installed, _) => break,
                // Dropping the reservation turns the record into padding.
                (Published::Frozen, _) => return Ok(None),
                (Published::Taken, back) => {
                    if at.frame.concerns(slot, what.key) {
                        return Ok(None);
                    }
                    delta = back.expect("a delta that was not installed is handed back");
                    slot += 1;
                }
            }
        }
        let mut wakes = Wakes::default();
        if let (Some(emitter), Some(change)) = (&mut emitter, what.event) {
            change.event(what.key).iter().for_each(|event| emitter.emit(event, &mut wakes));
        }
        drop(emitter);
        what.tree.length.add(what.net);
        space.complete();
        Ok(Some((slot, wakes)))
    }

    /// Before a frozen frame is folded: when most of its slots are taken by transactions that have not decided, sees
    /// to it that they do, but for `own`, so that the new frame has room.
    pub(super) fn make_way(&self, frame: FrameRef<'_>, own: Option<&Status>) {
        let (used, _) = frame.used();
        let others = frame.undecided(used).filter(|run| own.is_none_or(|own| !std::ptr::eq(own, run.status)));
        for run in others.skip(SLOTS / 2) {
            run.status.settle();
        }
    }

    /// Makes the key refer to `new` if it refers to the image `old`; whether it did.
    ///
    /// # Errors
    /// What reading or writing failed with; `CollectionNotFound`.
    pub(super) fn relocate_big(
        &self,
        tree: &BwTree,
        key: &[u8],
        old: ImageAddr,
        new: BigRef,
    ) -> Result<bool> {
        let fingerprint = fingerprint(key);
        loop {
            let guard = crossbeam_epoch::pin();
            tree.check()?;
            let at = self.leaf(tree, key, &guard)?;
            let look = at.frame.look(fingerprint, key, Looker::Writer(None));
            if let Some(run) = look.blocked {
                run.status.settle();
                continue;
            }
            let value = match look.delta {
                Some(delta) => Some(value_of(delta)),
                None => at.leaf().find(key, fingerprint),
            };
            if value.is_none() && at.frame.overlay() || look.frozen {
                self.make_way(at.frame, None);
                self.consolidate(tree, at, Fold::Whole, &guard)?;
                continue;
            }
            if value.and_then(big_image) != Some(old) {
                return Ok(false);
            }
            let nonce = self.cache.nonce(new.image);
            let record = Record::PutBig { tree: tree.id, key, big: new, nonce };
            let encoded = new.encode();
            let delta = (DeltaKind::PutBig, &encoded[..]);
            let publish = Publish { tree, key, fingerprint, delta, record: &record, net: 0, event: None };
            if self.publish(at, look.used, &publish)?.is_some() {
                // Folds the old reference away.
                let _ = self.consolidate(tree, at, Fold::Whole, &guard);
                return Ok(true);
            }
        }
    }

    /// Writes a big value's image, unless that was done in an earlier attempt.
    pub(super) fn big_value(
        &self,
        tree: &BwTree,
        key: &[u8],
        value: &IVec,
        image: &mut Option<(IVec, BigRef)>,
    ) -> Result<BigRef> {
        if let Some((before, big)) = image {
            if before == value {
                return Ok(*big);
            }
            self.cache.settle_big(big.image, false);
            *image = None;
        }
        tree.set_big();
        let big = BigRef { image: self.cache.write_big(tree.id, key, value)?, len: value.len() as u64 };
        super::add(&self.counters.big_values_written);
        *image = Some((value.clone(), big));
        Ok(big)
    }
}
