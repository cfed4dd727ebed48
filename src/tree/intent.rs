//! Commits a transaction: publishes its intents, validates its reads, and makes everything visible in one instant.
//!
//! # How it works
//!
//! 1. *Install*: all writes for one leaf are published as one run of intents, in key order. An intent of somebody else
//!    on the same key is settled first: given a little time, then aborted; the younger of two transactions gives way.
//!    The memory is asked for the next few leaves at once, so that they are not waited for one by one.
//! 2. *Refresh*, if something makes it likely that leaves were folded meanwhile: see [`super::read_set`].
//! 3. *Decide*: from now on nobody reads past the intents. Validate the reads.
//! 4. Reserve one redo record for all changes and fill it in; before 3 if it is long.
//! 5. CAS the status word to committed, complete the record, tell subscribers.
//!
//! Whoever aborts the transaction meanwhile makes it start over with 1, or, when a value that it read is another now,
//! with running its closure again. After some of that its status asks others for patience.
//!
//! # Invariants
//!
//! - T6: an undecided intent is the newest thing that is published for its key: whoever publishes behind it has settled it
//!   before. So it is where the change belongs when it is committed, and the LSN, which is reserved when all intents are
//!   published, is later than that of any change before it (T5).
//! - T7: a value that an intent makes of the one before, by a merge operator, stays right as long as the intent is not
//!   aborted.
//!
//! # Concurrency
//!
//! The linearization point of all writes is the CAS in `Status::commit`. In the serial order a transaction is where it
//! began to decide: its reads hold then, and nobody sees the values from before its writes afterwards.
//!
//! # References
//!
//! Bernstein and Goodman, "Concurrency Control in Distributed Database Systems", ACM Computing Surveys 1981, section 4;
//! and those of [`super::read_set`] and the status word.

use super::consolidate::Fold;
use super::delta::value_of;
use super::descent::{At, TOGETHER};
use super::leaf::{BigRef, Value, fingerprint};
use super::read_set::{Look, REFRESHES, ReadSet, Verdict};
use super::redo::{big_rest, encode_transaction, kind, transaction_len};
use super::transaction::{Interrupted, Operators, Write};
use super::watch::{Event, Wakes};
use super::{BwTree, Forest, add};
use crate::error::{Error, Result};
use crate::ivec::IVec;
use crate::pagecache::{DeltaKind, Looker, NewDelta, Published, Reservation, RunRef, SLOTS, Status};
use std::sync::Arc;

/// Aborts after which a commit asks for patience.
const IMPATIENT: u32 = 3;
/// Aborts after which the closure had better run again, and in the end with priority.
const MOST_ABORTS: u32 = 32;
/// Bytes of a record that take a while to fill in.
const LONG_RECORD: usize = 64 << 10;
/// Reads that are not worth a refresh of their own before validation.
const FEW_READS: usize = 32;

/// Most bytes of keys and values of a transaction, big values included: it is one record of the log.
const MAX_BYTES: usize = 1 << 30;
/// Changes after which others are shown that the commit goes on.
const PROGRESS: usize = 1024;

/// The change that a write has become.
#[derive(Debug)]
enum Ready {
    Inline(IVec),
    Big(BigRef, [u8; BigRef::LEN]),
    Gone,
}

/// A write being committed.
#[derive(Debug)]
struct Intent {
    tree: usize,
    key: IVec,
    /// If it depends on the value that the key has.
    write: Option<Box<Write>>,
    /// Of a write that depends on something, from when it is installed.
    ready: Ready,
    /// The image of a big value that may be referred to.
    image: Option<(IVec, BigRef)>,
    /// Whether subscribers are told: it changes something.
    counts: bool,
    /// Keys that it adds, or removes; `None`: not known.
    net: Option<i64>,
}

/// What became of an attempt.
enum Attempt {
    /// Who is to be woken in the end.
    Committed(Wakes),
    /// Values that were read are others now.
    Changed,
    /// Aborted, or not sure; `Some`: by reason of this transaction, which goes first.
    Again(Option<Arc<Status>>),
}

/// Aborts a status that is not decided.
struct AbortOnDrop<'a>(&'a Status);

impl Drop for AbortOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A commit under way.
pub(super) struct Commit<'a, H> {
    forest: &'a Forest,
    trees: &'a [H],
    operators: Operators<'a>,
    intents: Vec<Intent>,
    /// Leaves that should be folded afterwards, by one of the intents in each.
    full: Vec<usize>,
    /// Leaves were folded on the way.
    folded: bool,
}

impl<H> Drop for Commit<'_, H> {
    fn drop(&mut self) {
        for intent in &mut self.intents {
            if let Some((_, big)) = intent.image.take() {
                self.forest.cache.settle_big(big.image, false);
            }
        }
    }
}

impl<'a, H: AsRef<BwTree>> Commit<'a, H> {
    /// Of these writes, by tree and key.
    pub(super) fn new(
        forest: &'a Forest,
        trees: &'a [H],
        operators: Operators<'a>,
        writes: impl Iterator<Item = ((usize, IVec), Write)>,
    ) -> Commit<'a, H> {
        let intent = |((tree, key), write): (_, Write)| {
            let (write, ready) = match write.into_value() {
                Ok(value) => (None, value.map_or(Ready::Gone, Ready::Inline)),
                Err(write) => (Some(Box::new(write)), Ready::Gone),
            };
            Intent { tree, key, write, ready, image: None, counts: true, net: None }
        };
        let mut intents: Vec<Intent> = writes.map(intent).collect();
        // In one order for all transactions; keys of one tree are in order already.
        intents.sort_by_key(|intent| trees[intent.tree].as_ref().id);
        Commit { forest, trees, operators, intents, full: Vec::new(), folded: false }
    }

    /// Commits; `false`: what was read does not hold any more, or others are in the way all the time. If nothing was read
    /// it may run again.
    ///
    /// # Errors
    /// What reading or writing failed with, then nothing was changed; `CollectionNotFound`, `Unsupported`.
    pub(super) fn run(&mut self, reads: &mut ReadSet, (age, mut persistent): (u64, bool)) -> Result<bool> {
        if self.forest.cache.over_hard_limit() {
            self.forest.keep_up()?;
        }
        self.prepare()?;
        self.by_tree().for_each(|(tree, _)| tree.priority.give_way());
        let mut aborts = 0;
        let wakes = loop {
            let status = Status::new(age, persistent);
            // However the attempt ends, it leaves nothing undecided; also when a merge operator panics.
            let abort = AbortOnDrop(&status);
            let attempt = self.attempt(&status, reads)?;
            drop(abort);
            match attempt {
                Attempt::Committed(wakes) => break wakes,
                Attempt::Changed => return Ok(false),
                Attempt::Again(first) => {
                    add(&self.forest.counters.aborted_commits);
                    aborts += 1;
                    persistent |= aborts >= IMPATIENT;
                    if aborts == MOST_ABORTS {
                        return Ok(false);
                    }
                    if let Some(first) = first {
                        first.settle();
                    }
                }
            }
        };
        super::write::note_own_change();
        self.finish();
        // Last, as it is code of the user's.
        wakes.wake();
        Ok(true)
    }

    /// Checks the keys, and writes big values.
    fn prepare(&mut self) -> Result<()> {
        let len = self.intents.iter().map(Intent::len).sum::<usize>();
        if len > MAX_BYTES {
            return Err(Error::Unsupported(format!(
                "a transaction that writes {len} bytes; at most {MAX_BYTES}"
            )));
        }
        for intent in &mut self.intents {
            if intent.key.len() > super::write::MAX_KEY {
                return Err(super::write::too_long(&intent.key));
            }
            intent.resolve(self.forest, self.trees[intent.tree].as_ref())?;
        }
        Ok(())
    }

    fn attempt(&mut self, status: &Arc<Status>, reads: &mut ReadSet) -> Result<Attempt> {
        self.full.clear();
        let (mut i, mut asked) = (0, 0);
        let mut stride = 1;
        while i < self.intents.len() {
            if i >= asked {
                asked = self.ask_ahead(i, stride);
            }
            if !status.outcome().is_open() {
                return Ok(Attempt::Again(None));
            }
            status.note_progress();
            match self.install(i, status) {
                Ok(Some(end)) => {
                    stride = end - i;
                    i = end;
                }
                Ok(None) => {}
                Err(Interrupted::Conflict(first)) => return Ok(Attempt::Again(Some(first))),
                Err(Interrupted::Failed(error)) => return Err(error),
            }
        }
        if reads.len() > FEW_READS || std::mem::take(&mut self.folded) {
            match self.refresh(status, reads)? {
                Verdict::Holds => {}
                Verdict::Changed => return Ok(Attempt::Changed),
                Verdict::Unsure => return Ok(Attempt::Again(None)),
                Verdict::Behind(first) => return Ok(Attempt::Again(Some(first))),
            }
        }
        self.decide(status, reads)
    }

    /// Asks the memory for the leaves of the next intents, from `i` on, if each of them gets as many as the last one did;
    /// the first intent whose leaf was not asked for.
    fn ask_ahead(&self, i: usize, stride: usize) -> usize {
        let id = self.intents[i].tree;
        if self.intents.len() - i > stride {
            let intents = self.intents[i..].iter().step_by(stride).take_while(|intent| intent.tree == id);
            self.forest.ask_for_leaves(self.trees[id].as_ref(), intents.map(|intent| &intent.key[..]));
        }
        i + stride * TOGETHER
    }

    fn refresh(&self, status: &Status, reads: &mut ReadSet) -> Result<Verdict> {
        let mut verdict = Verdict::Unsure;
        for _ in 0..REFRESHES {
            status.note_progress();
            verdict = reads.look_again(self.forest, self.trees, Look::Refresh, Some(status))?;
            if !matches!(verdict, Verdict::Unsure) {
                break;
            }
        }
        Ok(verdict)
    }

    /// Publishes the intents from `i` on that belong to one leaf, and returns the first that does not; `None`: look
    /// again.
    fn install(&mut self, i: usize, status: &Arc<Status>) -> std::result::Result<Option<usize>, Interrupted> {
        let tree = self.trees[self.intents[i].tree].as_ref();
        let guard = crossbeam_epoch::pin();
        tree.check()?;
        let at = self.forest.leaf(tree, &self.intents[i].key, &guard)?;
        at.frame.touch();
        let (used, frozen) = at.frame.used();
        if frozen {
            self.forest.make_way(at.frame, Some(status));
            self.forest.consolidate(tree, at, Fold::Whole, &guard)?;
            self.folded = true;
            return Ok(None);
        }
        let id = self.intents[i].tree;
        let inside = |intent: &Intent| intent.tree == id && !at.leaf().is_past(&intent.key);
        // The first one is where the walk ended.
        let end = i + 1 + self.intents[i + 1..].iter().take_while(|intent| inside(intent)).count();
        if !self.is_clear(at, i..end, status)? {
            return Ok(None);
        }
        let changes = self.intents[i..end].iter().map(Intent::change);
        let bytes: usize = changes.clone().map(|(_, key, value)| key.len() + value.len()).sum();
        if bytes > MAX_BYTES {
            return Err(
                Error::Unsupported(format!("merged values of {bytes} bytes in one transaction")).into()
            );
        }
        let mut delta = NewDelta::run(self.forest.cache.arena(), status, changes);
        let first = fingerprint(&self.intents[i].key);
        let mut slot = used;
        loop {
            match at.frame.publish(slot, first, delta) {
                (Published::Installed, _) => break,
                (Published::Frozen, _) => return Ok(None),
                (Published::Taken, back) => {
                    if self.intents[i..end].iter().any(|intent| at.frame.concerns(slot, &intent.key)) {
                        return Ok(None);
                    }
                    delta = back.expect("a delta that was not installed is handed back");
                    slot += 1;
                }
            }
        }
        if slot + 1 == SLOTS || bytes > self.forest.options.leaf / 4 || self.forest.is_oversized(at) {
            self.full.push(i);
        }
        Ok(Some(end))
    }

    /// Sees to it that no undecided intent of another transaction is on the keys of these intents, and makes their
    /// values of those before where they depend on them. `false`: look again.
    fn is_clear(
        &mut self,
        at: At<'_>,
        range: std::ops::Range<usize>,
        status: &Status,
    ) -> std::result::Result<bool, Interrupted> {
        let tree = self.trees[self.intents[range.start].tree].as_ref();
        let (watched, counted) = (tree.watchers.any(), tree.length.is_known());
        for intent in &mut self.intents[range] {
            (intent.counts, intent.net) = (true, None);
            let depends = intent.write.is_some();
            let fingerprint = fingerprint(&intent.key);
            let look = at.frame.look(fingerprint, &intent.key, Looker::Writer(Some(status)));
            if let Some(run) = look.blocked {
                give_way(run, status)?;
                return Ok(false);
            }
            // A change that came behind `used` is met again when the run is to be published.
            if !watched && !depends && !counted {
                continue;
            }
            let value = look.delta.map(value_of).or_else(|| at.leaf().find(&intent.key, fingerprint));
            if value.is_none() && at.frame.overlay() {
                let guard = crossbeam_epoch::pin();
                self.forest.consolidate(tree, at, Fold::Whole, &guard)?;
                return Ok(false);
            }
            let value = value.filter(|value| *value != Value::Gone);
            let before = i64::from(value.is_some());
            let old = match value {
                Some(value) if watched || depends => Some(self.forest.copy_out(tree, &intent.key, value)?),
                _ => None,
            };
            if let Some(write) = &intent.write {
                let new = write.apply(intent.tree, &intent.key, old.as_ref(), self.operators)?;
                intent.ready = new.map_or(Ready::Gone, Ready::Inline);
                intent.resolve(self.forest, tree)?;
            } else if watched {
                intent.counts = intent.value() != old.as_ref();
            }
            intent.net = Some(i64::from(!matches!(intent.ready, Ready::Gone)) - before);
        }
        Ok(true)
    }

    /// All intents are published.
    fn decide(&self, status: &Status, reads: &mut ReadSet) -> Result<Attempt> {
        // An open reservation makes flushes wait, and keeps others from finding a quiet instant to read at, so there is
        // none while reads are validated; but readers are not to wait while a lot is encoded.
        let len = self.record_len();
        let early = len > LONG_RECORD && reads.len() <= FEW_READS;
        let mut space = if early { Some(self.record(len, status)?) } else { None };
        if !status.begin_deciding() {
            return Ok(Attempt::Again(None));
        }
        match reads.look_again(self.forest, self.trees, Look::Validate, Some(status))? {
            Verdict::Holds => {}
            Verdict::Behind(first) => {
                status.abort();
                return Ok(Attempt::Again(Some(first)));
            }
            Verdict::Unsure | Verdict::Changed => {
                status.abort();
                drop(space);
                return Ok(match self.refresh(status, reads)? {
                    Verdict::Changed => Attempt::Changed,
                    _ => Attempt::Again(None),
                });
            }
        }
        let space = match space.take() {
            Some(space) => space,
            None => self.record(len, status)?,
        };
        let guard = crossbeam_epoch::pin();
        // Whoever drops one of the trees from here on waits for the guard before its pages are freed.
        self.by_tree().try_for_each(|(tree, _)| tree.check())?;
        let mut wakes = Wakes::default();
        let mut emitters: Vec<_> =
            self.by_tree().filter_map(|(tree, intents)| Some((tree.watchers.emitter()?, intents))).collect();
        if !status.commit(space.lsn()) {
            return Ok(Attempt::Again(None));
        }
        for (emitter, intents) in &mut emitters {
            intents.iter().filter(|i| i.counts).for_each(|i| emitter.emit(&i.event(), &mut wakes));
        }
        drop(emitters);
        for (tree, intents) in self.by_tree() {
            match intents.iter().map(|intent| intent.net).sum() {
                Some(net) => tree.length.add(net),
                None => tree.length.lose(),
            }
        }
        drop(guard);
        space.complete();
        Ok(Attempt::Committed(wakes))
    }

    /// The trees that are written, in the order of all transactions, each with its intents.
    fn by_tree(&self) -> impl Iterator<Item = (&BwTree, &[Intent])> {
        let same_tree = self.intents.chunk_by(|a, b| a.tree == b.tree);
        same_tree.map(|intents| (self.trees[intents[0].tree].as_ref(), intents))
    }

    /// Bytes of the record of all changes.
    fn record_len(&self) -> usize {
        let rest = |intent: &Intent| match &intent.ready {
            Ready::Inline(value) => value.len(),
            Ready::Big(..) => BigRef::LEN + 8,
            Ready::Gone => 0,
        };
        transaction_len(self.intents.iter().map(|intent| (intent.key.len(), rest(intent))))
    }

    /// Reserves the record of all changes and fills it in.
    fn record(&self, len: usize, status: &Status) -> Result<Reservation<'_>> {
        let mut space = self.forest.cache.reserve(len)?;
        self.encode(space.bytes(), status);
        Ok(space)
    }

    fn encode(&self, out: &mut [u8], status: &Status) {
        let mut encoder = encode_transaction(out);
        for (i, intent) in self.intents.iter().enumerate() {
            if i % PROGRESS == 0 {
                status.note_progress();
            }
            let tree = self.trees[intent.tree].as_ref().id;
            match &intent.ready {
                Ready::Inline(value) => encoder.change(kind::PUT, tree, &intent.key, value),
                Ready::Gone => encoder.change(kind::REMOVE, tree, &intent.key, &[]),
                Ready::Big(big, _) => {
                    let rest = big_rest(*big, self.forest.cache.nonce(big.image));
                    encoder.change(kind::PUT_BIG, tree, &intent.key, &rest);
                }
            }
        }
        debug_assert!(encoder.is_full(), "the length that was announced");
    }

    /// What can wait until everything is visible.
    fn finish(&mut self) {
        let mut big = false;
        for intent in &mut self.intents {
            if let Some((_, image)) = intent.image.take() {
                big = true;
                self.forest.cache.settle_big(image.image, matches!(intent.ready, Ready::Big(..)));
            }
        }
        let full = std::mem::take(&mut self.full);
        let busy = big || !full.is_empty();
        for i in full {
            let intent = &self.intents[i];
            let tree = self.trees[intent.tree].as_ref();
            let guard = crossbeam_epoch::pin();
            // The change is made, whatever becomes of this; the next writer folds a frozen frame.
            if tree.check().is_ok()
                && let Ok(at) = self.forest.leaf(tree, &intent.key, &guard)
            {
                let _ = self.forest.consolidate(tree, at, Fold::Whole, &guard);
            }
        }
        if busy {
            let _ = self.forest.keep_up();
        }
    }
}

/// Settles an intent that is in the way of an own one.
fn give_way(run: RunRef<'_>, own: &Status) -> std::result::Result<(), Interrupted> {
    if own.gives_way_to(run.status) {
        return Err(Interrupted::Conflict(run.owner()));
    }
    run.status.settle();
    Ok(())
}

impl Intent {
    /// Bytes of the key, and of what is written.
    fn len(&self) -> usize {
        let write = self.write.as_ref().map_or(0, |write| write.len());
        self.key.len() + write + self.value().map_or(0, |value| value.len())
    }

    /// The value that the key gets, if that is known.
    fn value(&self) -> Option<&IVec> {
        match (&self.ready, &self.image) {
            (Ready::Inline(value), _) | (Ready::Big(..), Some((value, _))) => Some(value),
            _ => None,
        }
    }

    /// Writes the value if it is a big one.
    fn resolve(&mut self, forest: &Forest, tree: &BwTree) -> Result<()> {
        if let Ready::Inline(value) = &self.ready
            && value.len() > forest.options.big_value
        {
            let big = forest.big_value(tree, &self.key, value, &mut self.image)?;
            self.ready = Ready::Big(big, big.encode());
        }
        Ok(())
    }

    fn change(&self) -> (DeltaKind, &[u8], &[u8]) {
        match &self.ready {
            Ready::Inline(value) => (DeltaKind::Put, &self.key, value),
            Ready::Big(_, encoded) => (DeltaKind::PutBig, &self.key, encoded),
            Ready::Gone => (DeltaKind::Remove, &self.key, &[]),
        }
    }

    fn event(&self) -> Event {
        let key = self.key.clone();
        match self.value() {
            Some(value) => Event::Insert { key, value: value.clone() },
            None => Event::Remove { key },
        }
    }
}

impl From<Error> for Interrupted {
    fn from(error: Error) -> Interrupted {
        Interrupted::Failed(error)
    }
}
