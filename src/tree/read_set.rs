//! What a transaction has read, and whether that still holds.
//!
//! # How it works
//!
//! A point read is remembered with its value and the version that it saw: the frame and the slot that decided. The same
//! version means that the key was not written in between, and says so without looking at the value, which may have been
//! changed and changed back. Another version means nothing yet, since the leaf may only have been folded: then the
//! value is compared, and if it is the same the read is taken to have been made now, with the version of now. A range
//! read is remembered with a hash of what it found, and the frames and slots that it saw.
//!
//! Whatever its version, a key whose last change lies before the position as of which the reads are known to hold has not
//! been written since.
//!
//! So a *refresh* looks whether all values are what they were, and a *validation* that follows it whether all versions
//! are: then all reads held together at the instant in which the validation began.
//!
//! # Concurrency
//!
//! Undecided intents of others do not change a key yet: one that is pending when a validation meets it comes after it.
//! One that is deciding is waited for, or its transaction aborted.
//!
//! # References
//!
//! Validation of reads behind published writes: Tu et al., "Speedy Transactions in Multicore In-Memory Databases"
//! (Silo), SOSP 2013, section 4.4. One consistent state at any time, by a clock that all reads are compared with: Dice,
//! Shalev, Shavit, "Transactional Locking II", DISC 2006, section 2.2.

use super::delta::{Merged, SortedDeltas, value_of};
use super::descent::At;
use super::excerpt::For;
use super::leaf::{Leaf, Value, fingerprint};
use super::priority::Holder;
use super::{BwTree, Forest};
use crate::base::Lsn;
use crate::error::Result;
use crate::ivec::IVec;
use crate::pagecache::{Looker, Outcome, RunRef, Slot, Status};
use crossbeam_epoch::Guard;
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;

/// How often versions may be found to be others, with the values that they had, before that counts as a change.
pub const REFRESHES: usize = 16;

/// Looks at the end of the redo stream for an instant at which nothing was being written.
const QUIET_LOOKS: usize = 64;

/// Reads after which others are shown that a validation goes on.
const PROGRESS: usize = 64;

/// What a key was found to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// No value.
    Absent,
    /// This one.
    Value(IVec),
    /// Any; it was not looked at.
    Present,
}

/// Which change decided about a key: the frame, and the slot, or one past the last for its base.
type Version = (u64, usize);

#[derive(Debug)]
struct PointRead {
    seen: Seen,
    version: Version,
}

/// A leaf that a range read saw: its frame and which slots were visible.
type SeenLeaf = (u64, u32);

#[derive(Debug)]
struct RangeRead {
    tree: usize,
    low: Bound<Vec<u8>>,
    high: Bound<Vec<u8>>,
    backwards: bool,
    hash: u64,
    leaves: Vec<SeenLeaf>,
}

/// A position before which everything is visible already, so that what has a smaller LSN was there when the reads that
/// follow began; 0, which is before all reads, if there is none just now.
fn quiet_end(forest: &Forest) -> Lsn {
    let look = |_| {
        let quiet = forest.log().quiet_end();
        if quiet.is_none() {
            std::hint::spin_loop();
        }
        quiet
    };
    (0..QUIET_LOOKS).find_map(look).unwrap_or(Lsn(0))
}

/// Everything that a transaction has read.
#[derive(Debug)]
pub struct ReadSet {
    points: BTreeMap<(usize, IVec), PointRead>,
    ranges: Vec<RangeRead>,
    /// What was read is one state of the database, in which everything before this position is, and was before it was read
    /// or confirmed last; 0 = not known.
    as_of: Lsn,
    /// Equal values do not stand for an unchanged key: something outside of the database tells before from after.
    pub is_strict: bool,
    /// The priority that the transaction has claimed.
    pub holder: Option<Arc<Holder>>,
    hashing: RandomState,
}

/// What looking again said.
#[derive(Debug)]
pub enum Verdict {
    /// All as it was.
    Holds,
    /// Values are as they were, versions may not be.
    Unsure,
    /// Something was changed.
    Changed,
    /// An older transaction is deciding.
    Behind(Arc<Status>),
}

/// How to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Compare values where versions differ, and take the versions of now.
    Refresh,
    /// Compare versions.
    Validate,
}

/// A key as it is now.
struct Observed<'g> {
    version: Version,
    value: Option<Value<'g>>,
    /// Above the LSN of the last change.
    stamp: Lsn,
    blocked: Option<RunRef<'g>>,
}

impl Forest {
    fn observe<'g>(
        &self,
        tree: &BwTree,
        key: &[u8],
        who: Looker<'_>,
        guard: &'g Guard,
    ) -> Result<Observed<'g>> {
        let fingerprint = fingerprint(key);
        tree.check()?;
        loop {
            let at = self.leaf_of_record(tree, (key, For::Reading), guard)?;
            at.frame.touch();
            let look = at.frame.look(fingerprint, key, who);
            let (value, stamp) = match look.delta {
                Some(delta) => (Some(value_of(delta)), delta.lsn.plus(1)),
                None => (at.leaf().find(key, fingerprint), at.frame.newest()),
            };
            if value.is_none() && at.frame.overlay() {
                self.take_in(tree, at, (key, For::Reading), guard)?;
                continue;
            }
            let version = (at.frame.id(), look.slot);
            let value = value.filter(|value| *value != Value::Gone);
            return Ok(Observed { version, value, stamp, blocked: look.blocked });
        }
    }

    fn is_as_seen(&self, tree: &BwTree, key: &[u8], value: Option<Value<'_>>, seen: &Seen) -> Result<bool> {
        Ok(match (seen, value) {
            (Seen::Absent, None) | (Seen::Present, Some(_)) => true,
            (Seen::Value(seen), Some(Value::Inline(bytes))) => seen == bytes,
            (Seen::Value(seen), Some(value)) => *seen == self.copy_out(tree, key, value)?,
            _ => false,
        })
    }
}

/// What to do about an intent of somebody else that is not decided.
enum Foreign {
    /// It comes after us.
    Ignore,
    /// It was decided meanwhile.
    Again,
    /// It goes first.
    Behind(Arc<Status>),
}

/// Of two transactions that decide, the older one goes first.
fn judge(run: RunRef<'_>, own: Option<&Status>) -> Foreign {
    match run.status.outcome() {
        Outcome::Pending => Foreign::Ignore,
        Outcome::Deciding => {
            if own.is_some_and(|own| own.gives_way_to(run.status)) {
                return Foreign::Behind(run.owner());
            }
            run.status.settle();
            Foreign::Again
        }
        _ => Foreign::Again,
    }
}

/// Whether no key is within bounds, whatever is in the tree.
pub fn is_void(low: &Bound<Vec<u8>>, high: &Bound<Vec<u8>>) -> bool {
    match (low, high) {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => {
            low >= high
        }
        (Bound::Unbounded, Bound::Excluded(high)) => high.is_empty(),
        _ => false,
    }
}

/// What a step of a range read found.
#[derive(Debug)]
pub struct Step {
    /// Pairs in the direction of the read.
    pub pairs: VecDeque<(IVec, IVec)>,
    /// Where the next step starts (the upper bound, backwards); `None`: there is nothing more.
    pub next: Option<Bound<Vec<u8>>>,
}

/// Whether a key is within bounds.
pub fn is_within(key: &[u8], low: &Bound<Vec<u8>>, high: &Bound<Vec<u8>>) -> bool {
    !super::cursor::below(key, low) && !super::cursor::above(key, high)
}

impl ReadSet {
    /// Nothing was read.
    pub fn new() -> ReadSet {
        let (points, ranges) = (BTreeMap::new(), Vec::new());
        ReadSet { points, ranges, as_of: Lsn(0), is_strict: false, holder: None, hashing: RandomState::new() }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.points.clear();
        self.ranges.clear();
        self.as_of = Lsn(0);
        self.is_strict = false;
    }

    /// Number of reads.
    pub fn len(&self) -> usize {
        self.points.len() + self.ranges.len()
    }

    /// Whether there is nothing that must hold together with something else.
    pub fn is_instant(&self) -> bool {
        self.len() == 0 || self.len() == 1 && self.ranges.iter().all(|read| read.leaves.len() <= 1)
    }

    /// What was read of a key before, if that is enough.
    pub fn known(&self, tree: usize, key: &IVec, with_value: bool) -> Option<&Seen> {
        let read = self.points.get(&(tree, key.clone()))?;
        (!with_value || read.seen != Seen::Present).then_some(&read.seen)
    }

    /// Reads a key. `None`: what was read before does not hold any more.
    ///
    /// # Errors
    /// What reading failed with; `CollectionNotFound`.
    pub fn point(
        &mut self,
        forest: &Forest,
        trees: &[impl AsRef<BwTree>],
        (tree, key): (usize, &IVec),
        with_value: bool,
    ) -> Result<Option<Seen>> {
        let guard = crossbeam_epoch::pin();
        let now = forest.observe(trees[tree].as_ref(), key, Looker::Reader, &guard)?;
        let seen = match now.value {
            None => Seen::Absent,
            Some(_) if !with_value => Seen::Present,
            Some(Value::Inline(bytes)) => Seen::Value(IVec::from(bytes)),
            Some(value) => Seen::Value(forest.copy_out(trees[tree].as_ref(), key, value)?),
        };
        let (version, stamp) = (now.version, now.stamp);
        drop(guard);
        let before = self.points.insert((tree, key.clone()), PointRead { seen: seen.clone(), version });
        // Looked at once more, for the value of what was seen to be there.
        let again = before.is_some_and(|before| before.version != version);
        if again && seen == Seen::Absent {
            return Ok(None);
        }
        let holds = if again { self.confirm(forest, trees)? } else { self.catch_up(forest, trees, stamp)? };
        Ok(holds.then_some(seen))
    }

    /// After something with this stamp was read: sees to it that all reads are of one state; `false`: they are not.
    fn catch_up(&mut self, forest: &Forest, trees: &[impl AsRef<BwTree>], stamp: Lsn) -> Result<bool> {
        // A single read of one instant needs no confirmation; the position is looked for when there is a second.
        Ok(stamp <= self.as_of || self.is_instant() || self.confirm(forest, trees)?)
    }

    /// Whether all reads hold together now.
    ///
    /// # Errors
    /// What reading failed with; `CollectionNotFound`.
    pub fn confirm(&mut self, forest: &Forest, trees: &[impl AsRef<BwTree>]) -> Result<bool> {
        for _ in 0..REFRESHES {
            let as_of = quiet_end(forest);
            match self.look_again(forest, trees, Look::Refresh, None)? {
                Verdict::Holds => {
                    self.as_of = as_of;
                    return Ok(true);
                }
                Verdict::Unsure => {}
                Verdict::Changed | Verdict::Behind(_) => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Reads up to about `limit` pairs of one leaf within bounds. `None`: what was read before does not hold any
    /// more.
    ///
    /// # Errors
    /// As for [`Self::point`].
    pub fn range(
        &mut self,
        forest: &Forest,
        trees: &[impl AsRef<BwTree>],
        tree: usize,
        (low, high, backwards): (&Bound<Vec<u8>>, &Bound<Vec<u8>>, bool),
        limit: usize,
    ) -> Result<Option<Step>> {
        let mut pairs = VecDeque::new();
        let mut read =
            RangeRead { tree, low: low.clone(), high: high.clone(), backwards, hash: 0, leaves: Vec::new() };
        let each = &mut |key: &[u8], value: Value<'_>| {
            pairs.push_back((IVec::from(key), forest.copy_out(trees[tree].as_ref(), key, value)?));
            Ok(pairs.len() < limit)
        };
        let (next, stamp) = read.scan(forest, trees[tree].as_ref(), &self.hashing, Some(each))?;
        if let Some(next) = &next {
            // What was covered: up to where the next step starts.
            *(if backwards { &mut read.low } else { &mut read.high }) = opposite(next);
        }
        self.ranges.push(read);
        Ok(self.catch_up(forest, trees, stamp)?.then_some(Step { pairs, next }))
    }

    /// Looks at everything again. `own`: whose intents are not in the way.
    ///
    /// # Errors
    /// What reading failed with; `CollectionNotFound`.
    pub fn look_again(
        &mut self,
        forest: &Forest,
        trees: &[impl AsRef<BwTree>],
        how: Look,
        own: Option<&Status>,
    ) -> Result<Verdict> {
        let mut verdict = Verdict::Holds;
        let (as_of, is_strict) = (self.as_of, self.is_strict);
        let again = Again { forest, how, own, as_of, is_strict, hashing: &self.hashing };
        let points = self.points.iter_mut();
        let points = points.map(|((tree, key), read)| read.look_again(&again, trees[*tree].as_ref(), key));
        let ranges = self.ranges.iter_mut();
        let ranges = ranges.map(|read| read.look_again(&again, trees[read.tree].as_ref()));
        for (i, looked) in points.chain(ranges).enumerate() {
            if i % PROGRESS == 0 {
                own.inspect(|own| own.note_progress());
                self.holder.as_deref().inspect(|holder| holder.note_progress());
            }
            match looked? {
                Verdict::Holds => {}
                Verdict::Unsure if how == Look::Refresh => verdict = Verdict::Unsure,
                other => return Ok(other),
            }
        }
        Ok(verdict)
    }
}

/// What looking again needs.
struct Again<'a> {
    forest: &'a Forest,
    how: Look,
    own: Option<&'a Status>,
    /// Of the reads that are looked at.
    as_of: Lsn,
    is_strict: bool,
    hashing: &'a RandomState,
}

impl PointRead {
    fn look_again(&mut self, again: &Again<'_>, tree: &BwTree, key: &IVec) -> Result<Verdict> {
        let Again { forest, how, own, .. } = *again;
        loop {
            let guard = crossbeam_epoch::pin();
            let now = forest.observe(tree, key, Looker::Writer(own), &guard)?;
            if let Some(run) = now.blocked {
                match judge(run, own) {
                    Foreign::Ignore => {}
                    Foreign::Again => continue,
                    Foreign::Behind(status) => return Ok(Verdict::Behind(status)),
                }
            }
            if now.version == self.version || now.stamp <= again.as_of {
                self.version = now.version;
                return Ok(Verdict::Holds);
            }
            if how == Look::Validate {
                return Ok(Verdict::Unsure);
            }
            if again.is_strict || !forest.is_as_seen(tree, key, now.value, &self.seen)? {
                return Ok(Verdict::Changed);
            }
            self.version = now.version;
            return Ok(Verdict::Unsure);
        }
    }
}

/// The lower bound as an upper one that ends right before it, and the other way round.
fn opposite(bound: &Bound<Vec<u8>>) -> Bound<Vec<u8>> {
    match bound {
        Bound::Included(key) => Bound::Excluded(key.clone()),
        Bound::Excluded(key) => Bound::Included(key.clone()),
        Bound::Unbounded => Bound::Unbounded,
    }
}

/// Whether more is wanted, of a key and its value.
type Each<'a> = &'a mut dyn FnMut(&[u8], Value<'_>) -> Result<bool>;

impl RangeRead {
    /// The leaf where the read starts, or goes on at `from`; `None`: nothing is left between the bounds.
    fn at<'g>(
        &self,
        forest: &Forest,
        tree: &BwTree,
        from: &Bound<Vec<u8>>,
        guard: &'g Guard,
    ) -> Result<Option<(At<'g>, Option<Vec<u8>>)>> {
        tree.check()?;
        if self.backwards {
            let before = match from {
                Bound::Included(key) => Some(super::cursor::successor(key)),
                Bound::Excluded(key) => Some(key.clone()),
                Bound::Unbounded => None,
            };
            let empty = match (&before, &self.low) {
                (Some(before), _) if before.is_empty() => true,
                (Some(before), Bound::Included(low)) => before <= low,
                (Some(before), Bound::Excluded(low)) => *before <= super::cursor::successor(low),
                _ => false,
            };
            if empty {
                return Ok(None);
            }
            let find = |guard| forest.leaf_before(tree, before.as_deref(), guard);
            let at = forest.whole_leaf(tree, guard, find)?;
            if !at.starts_before(before.as_deref()) {
                return Err(forest.misplaced(tree, at));
            }
            return Ok(Some((at, before)));
        }
        let first = match from {
            Bound::Included(key) => key.clone(),
            Bound::Excluded(key) => super::cursor::successor(key),
            Bound::Unbounded => Vec::new(),
        };
        if super::cursor::above(&first, &self.high) {
            return Ok(None);
        }
        let at = forest.whole_leaf(tree, guard, |guard| forest.leaf(tree, &first, guard))?;
        Ok(Some((at, Some(first))))
    }

    fn start(&self) -> Bound<Vec<u8>> {
        if self.backwards { self.high.clone() } else { self.low.clone() }
    }

    /// Where the read goes on behind a leaf; `None`: it ends there.
    fn behind(&self, leaf: Leaf<'_>) -> Option<Bound<Vec<u8>>> {
        if self.backwards {
            let low = leaf.low();
            (!low.is_empty() && !super::cursor::below(low, &self.low)).then(|| Bound::Excluded(low.to_vec()))
        } else {
            let high = leaf.high()?;
            (!super::cursor::above(high, &self.high)).then(|| Bound::Included(high.to_vec()))
        }
    }

    /// Reads leaf after leaf until something was found and its leaf is done, or `each` has enough; without it, all of the
    /// range. Where the next step starts, and the stamp of what was seen.
    fn scan(
        &mut self,
        forest: &Forest,
        tree: &BwTree,
        hashing: &RandomState,
        mut each: Option<Each<'_>>,
    ) -> Result<(Option<Bound<Vec<u8>>>, Lsn)> {
        let mut hasher = hashing.build_hasher();
        let mut stamp = Lsn(0);
        let mut from = self.start();
        let mut found = false;
        self.leaves.clear();
        let next = loop {
            let guard = crossbeam_epoch::pin();
            let Some((at, bound)) = self.at(forest, tree, &from, &guard)? else { break None };
            let (used, _) = at.frame.used();
            let deltas = SortedDeltas::of(at.frame, used, true);
            self.leaves.push((at.frame.id(), deltas.visible));
            stamp = stamp.max(at.frame.newest()).max(deltas.newest());
            let mut merged = if self.backwards {
                Merged::backward_of(at.leaf(), deltas, bound.as_deref())
            } else {
                Merged::forward_of(at.leaf(), deltas, bound.as_deref().unwrap_or_default())
            };
            let mut enough = None;
            let mut step = || if self.backwards { merged.next_back() } else { merged.next() };
            let mut past = false;
            while let Some(entry) = step() {
                if !entry.exists() {
                    continue;
                }
                let key = entry.key();
                past = !is_within(&key, &self.low, &self.high);
                if past {
                    break;
                }
                hash(&mut hasher, &key, entry.value);
                if let Some(each) = &mut each {
                    found = true;
                    if !each(&key, entry.value)? {
                        enough = Some(Bound::Excluded(key));
                        break;
                    }
                }
            }
            if enough.is_some() {
                break enough;
            }
            match self.behind(at.leaf()).filter(|_| !past) {
                None => break None,
                Some(bound) if found => break Some(bound),
                Some(bound) => from = bound,
            }
        };
        self.hash = hasher.finish();
        Ok((next, stamp))
    }

    fn look_again(&mut self, again: &Again<'_>, tree: &BwTree) -> Result<Verdict> {
        let mut verdict = self.versions_hold(again, tree, false)?;
        if matches!(verdict, Verdict::Unsure) {
            verdict = self.versions_hold(again, tree, true)?;
        }
        if again.how == Look::Validate || !matches!(verdict, Verdict::Unsure) {
            return Ok(verdict);
        }
        if again.is_strict {
            return Ok(Verdict::Changed);
        }
        let before = self.hash;
        self.scan(again.forest, tree, again.hashing, None)?;
        Ok(if self.hash == before { Verdict::Unsure } else { Verdict::Changed })
    }

    /// Whether all leaves are the frames that were seen, with nothing new; or (`anew`) whatever they are have no change
    /// since the reads are known to hold, and are taken for what was seen.
    fn versions_hold(&mut self, again: &Again<'_>, tree: &BwTree, anew: bool) -> Result<Verdict> {
        let mut from = Some(self.start());
        let mut leaves = Vec::new();
        while let Some(start) = from.take() {
            let guard = crossbeam_epoch::pin();
            let Some((at, _)) = self.at(again.forest, tree, &start, &guard)? else { break };
            let seen = self.leaves.get(leaves.len()).filter(|(id, _)| *id == at.frame.id());
            if seen.is_none() && (!anew || at.frame.newest() > again.as_of) {
                return Ok(Verdict::Unsure);
            }
            let (used, _) = at.frame.used();
            let mut visible = seen.map_or(0, |(_, visible)| *visible);
            for i in 0..used {
                let slot = at.frame.slot(i);
                if visible & 1 << i != 0 {
                    continue;
                }
                if anew && is_before(slot, again.as_of) {
                    visible |= 1 << i;
                    continue;
                }
                match self.slot_holds(slot, again.own) {
                    Verdict::Holds => {}
                    other => return Ok(other),
                }
            }
            leaves.push((at.frame.id(), visible));
            from = self.behind(at.leaf());
        }
        if leaves.len() != self.leaves.len() && !anew {
            return Ok(Verdict::Unsure);
        }
        self.leaves = leaves;
        Ok(Verdict::Holds)
    }

    /// Whether a slot that was not visible says nothing about the range.
    fn slot_holds(&self, slot: Slot<'_>, own: Option<&Status>) -> Verdict {
        let run = match slot {
            Slot::Change(delta) if is_within(delta.key, &self.low, &self.high) => return Verdict::Unsure,
            Slot::Change(_) => return Verdict::Holds,
            Slot::Run(run) => run,
        };
        if own.is_some_and(|own| std::ptr::eq(own, run.status)) {
            return Verdict::Holds;
        }
        let first = match &self.low {
            Bound::Included(low) | Bound::Excluded(low) => run.lower_bound(low),
            Bound::Unbounded => 0,
        };
        let concerns =
            (first..run.len().min(first + 2)).any(|i| is_within(run.intent(i).1, &self.low, &self.high));
        if !concerns {
            return Verdict::Holds;
        }
        loop {
            match judge(run, own) {
                Foreign::Ignore => return Verdict::Holds,
                Foreign::Behind(status) => return Verdict::Behind(status),
                Foreign::Again => match run.status.outcome() {
                    Outcome::Committed(_) => return Verdict::Unsure,
                    Outcome::Aborted => return Verdict::Holds,
                    Outcome::Pending | Outcome::Deciding => {}
                },
            }
        }
    }
}

/// Whether a slot holds changes before a position.
fn is_before(slot: Slot<'_>, position: Lsn) -> bool {
    match slot {
        Slot::Change(delta) => delta.lsn < position,
        Slot::Run(run) => matches!(run.status.outcome(), Outcome::Committed(lsn) if lsn < position),
    }
}

fn hash(hasher: &mut DefaultHasher, key: &[u8], value: Value<'_>) {
    hasher.write_usize(key.len());
    hasher.write(key);
    match value {
        Value::Inline(bytes) | Value::Big(bytes) => {
            hasher.write_usize(bytes.len());
            hasher.write(bytes);
        }
        Value::Gone => {}
    }
}
