//! What a leaf frame says after its deltas: one view of base and slots.
//!
//! Deltas and overlays are in memory only; on disk a leaf is its image, and a change is its redo record.
//!
//! # How it works
//!
//! The newest delta of a key decides; where there is none, the base does. [`Merged`] goes through base and deltas side
//! by side in key order. Of an overlay it says what that has itself; the image below is for `fold.rs`.

use super::inner::head as first_bytes;
use super::leaf::{BigRef, Leaf, Value};
use crate::base::Lsn;
use crate::pagecache::{DeltaKind, DeltaRef, FrameRef, ImageAddr, Outcome, RunRef, SLOTS, Slot};
use std::cmp::Ordering;

/// The value that a delta leaves.
pub fn value_of(delta: DeltaRef<'_>) -> Value<'_> {
    match delta.kind {
        DeltaKind::Put => Value::Inline(delta.value),
        DeltaKind::PutBig => Value::Big(delta.value),
        DeltaKind::Remove => Value::Gone,
        DeltaKind::Run => unreachable!("a run is not a change"),
    }
}

/// The image of a big value, if the value is one.
pub fn big_image(value: Value<'_>) -> Option<ImageAddr> {
    match value {
        Value::Big(bytes) => Some(BigRef::decode(bytes).image),
        _ => None,
    }
}

/// The changes of a frame in key order, the newest of each key, and where the older ones were.
#[derive(Debug)]
pub struct SortedDeltas<'g> {
    frame: FrameRef<'g>,
    /// With at most one change in each slot: these in key order, each the first bytes of the key without the leaf's
    /// prefix, and in place of the lowest bits the slot.
    few: [u64; SLOTS],
    /// In their place when a slot has several.
    many: Vec<DeltaRef<'g>>,
    len: usize,
    /// Images of big values that a newer delta of the same key replaces.
    shadowed: Vec<ImageAddr>,
    /// Slots with intents that are not decided.
    undecided: Vec<usize>,
    /// Bit `i`: slot `i` holds changes, which are here.
    pub visible: u32,
    /// Smallest LSN, and above the greatest.
    pub lsns: (Lsn, Lsn),
}

/// The bits in which the few have a slot.
const SLOT_BITS: u64 = 15;
const _: () = assert!(SLOTS as u64 <= SLOT_BITS + 1);

/// Change `i` of a run that was committed.
fn committed<'g>(run: RunRef<'g>, i: usize, lsn: Lsn) -> DeltaRef<'g> {
    run.change(i, lsn, super::leaf::fingerprint(run.intent(i).1))
}

impl<'g> SortedDeltas<'g> {
    /// Of the first `used` slots. A reader (`wait`) waits for transactions that are deciding.
    pub fn of(frame: FrameRef<'g>, used: usize, wait: bool) -> SortedDeltas<'g> {
        let mut this = SortedDeltas {
            frame,
            few: [0; SLOTS],
            many: Vec::new(),
            len: 0,
            shadowed: Vec::new(),
            undecided: Vec::new(),
            visible: 0,
            lsns: (Lsn::MAX, Lsn(0)),
        };
        if used == 0 {
            return this;
        }
        let prefix = Leaf::new(frame.base()).prefix().len();
        let first = |delta: DeltaRef<'_>| first_bytes(delta.key.get(prefix..).unwrap_or_default());
        // All of them before they are compared, as they are in different places and none waits for another.
        let mut firsts = [None; SLOTS];
        for (i, found) in firsts.iter_mut().enumerate().take(used) {
            if let Slot::Change(delta) = frame.slot(i) {
                *found = Some(first(delta));
                this.note(delta);
            }
        }
        for i in (0..used).rev() {
            match (firsts[i], frame.slot(i)) {
                (Some(first), Slot::Change(delta)) => {
                    this.visible |= 1 << i;
                    this.add_older((first, i), delta);
                }
                (_, Slot::Run(run)) => this.add_older_run(i, run, first, wait),
                (None, Slot::Change(_)) => unreachable!("slots do not change"),
            }
        }
        this.undecided.reverse();
        this
    }

    /// Adds what a transaction has done, or notes that it is not known yet.
    #[cold]
    fn add_older_run(
        &mut self,
        i: usize,
        run: RunRef<'g>,
        first: impl FnOnce(DeltaRef<'_>) -> u64,
        wait: bool,
    ) {
        if wait {
            run.settled();
        }
        let lsn = match run.status.outcome() {
            Outcome::Committed(lsn) => lsn,
            Outcome::Aborted => return,
            _ => return self.undecided.push(i),
        };
        self.visible |= 1 << i;
        let change = |at| committed(run, at, lsn);
        self.note(change(0));
        if run.len() == 1 && self.many.is_empty() {
            return self.add_older((first(change(0)), i), change(0));
        }
        if self.many.is_empty() {
            self.many = (0..self.len).map(|i| self.at(i)).collect();
        }
        // Both are in key order.
        let newer = std::mem::take(&mut self.many);
        let mut newer = newer.into_iter().peekable();
        for at in 0..run.len() {
            let older = change(at);
            while let Some(first) = newer.next_if(|first| first.key < older.key) {
                self.many.push(first);
            }
            if newer.peek().is_some_and(|first| first.key == older.key) {
                self.shadowed.extend(big_image(value_of(older)));
            } else {
                self.many.push(older);
            }
        }
        self.many.extend(newer);
        self.len = self.many.len();
    }

    fn note(&mut self, delta: DeltaRef<'g>) {
        self.lsns = (self.lsns.0.min(delta.lsn), self.lsns.1.max(delta.lsn.plus(1)));
    }

    /// Inserts a delta that is older than those that are here, by what its key starts with and its slot.
    fn add_older(&mut self, (first, slot): (u64, usize), delta: DeltaRef<'g>) {
        if !self.many.is_empty() {
            match self.many.binary_search_by(|other| other.key.cmp(delta.key)) {
                Ok(_) => self.shadowed.extend(big_image(value_of(delta))),
                Err(at) => {
                    self.many.insert(at, delta);
                    self.len += 1;
                }
            }
            return;
        }
        let first = first & !SLOT_BITS;
        let mut at = self.len;
        while at > 0 && self.few[at - 1] & !SLOT_BITS > first {
            at -= 1;
        }
        // The first bytes are not all there is to a key.
        let mut same = at;
        while same > 0 && self.few[same - 1] & !SLOT_BITS == first {
            same -= 1;
            match self.at(same).key.cmp(delta.key) {
                Ordering::Greater => at = same,
                Ordering::Equal => return self.shadowed.extend(big_image(value_of(delta))),
                Ordering::Less => break,
            }
        }
        for i in (at..self.len).rev() {
            self.few[i + 1] = self.few[i];
        }
        self.few[at] = first | slot as u64;
        self.len += 1;
    }

    /// The change at a place in the order.
    fn at(&self, place: usize) -> DeltaRef<'g> {
        if let Some(delta) = self.many.get(place) {
            return *delta;
        }
        match self.frame.slot((self.few[place] & SLOT_BITS) as usize) {
            Slot::Change(delta) => delta,
            Slot::Run(run) => committed(run, 0, run.settled().expect("an outcome does not change")),
        }
    }

    /// Images of big values that a newer delta of the same key replaces, and slots with intents that are not decided.
    pub fn take_left_out(&mut self) -> (Vec<ImageAddr>, Vec<usize>) {
        (std::mem::take(&mut self.shadowed), std::mem::take(&mut self.undecided))
    }

    /// Above the LSN of every change.
    pub fn newest(&self) -> Lsn {
        self.lsns.1
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The change of key `i` in order.
    #[inline]
    pub fn get(&self, i: usize) -> Option<DeltaRef<'g>> {
        (i < self.len).then(|| self.at(i))
    }

    /// Index of the delta of a key; without one, of the first whose key is above it.
    ///
    /// # Errors
    /// That is what it is.
    pub fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.at(middle).key.cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// Index of the first delta whose key is not below `key`.
    fn lower_bound(&self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|i| i)
    }
}

/// A base record: the key without the prefix, and the value.
type Record<'g> = (&'g [u8], Value<'g>);

/// Position in base and deltas, moving in one direction.
#[derive(Debug)]
pub struct Merged<'g> {
    base: Leaf<'g>,
    deltas: SortedDeltas<'g>,
    /// Forward: the next base record and delta; backward: one past them.
    at: (usize, usize),
}

/// A key in two parts (shared prefix, rest) and what it has.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'g> {
    /// The bytes that all keys of the leaf share; empty when `rest` is the whole key.
    pub prefix: &'g [u8],
    /// The rest of the key.
    pub rest: &'g [u8],
    /// Fingerprint of the key, as a leaf has it.
    pub fingerprint: u8,
    /// The newest value.
    pub value: Value<'g>,
}

impl Entry<'_> {
    /// The whole key.
    pub fn key(&self) -> Vec<u8> {
        [self.prefix, self.rest].concat()
    }

    /// Whether the key has a value.
    pub fn exists(&self) -> bool {
        self.value != Value::Gone
    }
}

/// A change as an entry.
pub fn changed(delta: DeltaRef<'_>) -> Entry<'_> {
    let (rest, fingerprint) = (delta.key, delta.fingerprint as u8);
    Entry { prefix: &[], rest, fingerprint, value: value_of(delta) }
}

/// Record `i` of a leaf as an entry.
pub fn base_entry<'g>(leaf: Leaf<'g>, i: usize, rest: &'g [u8], value: Value<'g>) -> Entry<'g> {
    Entry { prefix: leaf.prefix(), rest, fingerprint: leaf.fingerprint(i), value }
}

/// Compares the key of base record with a whole key.
fn compare(prefix: &[u8], suffix: &[u8], key: &[u8]) -> Ordering {
    match key.strip_prefix(prefix) {
        Some(rest) => suffix.cmp(rest),
        None => prefix.cmp(key),
    }
}

impl<'g> Merged<'g> {
    /// From the first key that is not below `from` upwards.
    pub fn forward(frame: FrameRef<'g>, from: &[u8]) -> Merged<'g> {
        let (used, _) = frame.used();
        Self::forward_of(Leaf::new(frame.base()), SortedDeltas::of(frame, used, true), from)
    }

    /// Upwards from the first key that is not below `from`.
    pub fn forward_of(base: Leaf<'g>, deltas: SortedDeltas<'g>, from: &[u8]) -> Merged<'g> {
        let at = if from.is_empty() { (0, 0) } else { (base.lower_bound(from), deltas.lower_bound(from)) };
        Merged { base, deltas, at }
    }

    /// Downwards from the last key below `before`; `None` = from the end.
    pub fn backward_of(base: Leaf<'g>, deltas: SortedDeltas<'g>, before: Option<&[u8]>) -> Merged<'g> {
        let at = match before {
            None => (base.len(), deltas.len()),
            Some(key) => (base.lower_bound(key), deltas.lower_bound(key)),
        };
        Merged { base, deltas, at }
    }

    /// What base record `i` and a delta, of one key if both are there, say.
    fn entry(&self, i: usize, record: Option<Record<'g>>, delta: Option<DeltaRef<'g>>) -> Entry<'g> {
        match (record, delta) {
            (_, Some(delta)) => changed(delta),
            (Some((rest, value)), None) => base_entry(self.base, i, rest, value),
            (None, None) => unreachable!("a step has a record or a delta"),
        }
    }

    /// The next entry upwards, keys without a value included.
    pub fn next(&mut self) -> Option<Entry<'g>> {
        let record = (self.at.0 < self.base.len()).then(|| self.base.record(self.at.0));
        let delta = self.deltas.get(self.at.1);
        let order = match (record, delta) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((suffix, _)), Some(delta)) => compare(self.base.prefix(), suffix, delta.key),
        };
        let i = self.at.0;
        self.at.0 += usize::from(order != Ordering::Greater);
        self.at.1 += usize::from(order != Ordering::Less);
        Some(self.entry(
            i,
            record.filter(|_| order != Ordering::Greater),
            delta.filter(|_| order != Ordering::Less),
        ))
    }

    /// The next entry downwards, keys without a value included.
    pub fn next_back(&mut self) -> Option<Entry<'g>> {
        let record = self.at.0.checked_sub(1).map(|i| self.base.record(i));
        let delta = self.at.1.checked_sub(1).and_then(|i| self.deltas.get(i));
        let order = match (record, delta) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Greater,
            (None, Some(_)) => Ordering::Less,
            (Some((suffix, _)), Some(delta)) => compare(self.base.prefix(), suffix, delta.key),
        };
        let i = self.at.0.saturating_sub(1);
        self.at.0 -= usize::from(order != Ordering::Less);
        self.at.1 -= usize::from(order != Ordering::Greater);
        Some(self.entry(
            i,
            record.filter(|_| order != Ordering::Less),
            delta.filter(|_| order != Ordering::Greater),
        ))
    }
}
