//! The Bw-tree: ordered bytes over pages.
//!
//! # How it works
//!
//! ```text
//!            root (its PID never changes)
//!           /     |      \                inner nodes: immutable, replaced whole, resident
//!        node -> node -> node             -> = right sibling, for splits that are not posted yet
//!        / | \   / | \   / | \
//!      leaves: base image + delta slots, evicted and faulted in
//!
//!  split:  [ L ............ ]          merge:  [ L ][ R ]
//!     1    new page R                     1    R frozen, its word says "merging"
//!     2    L := left half, right = R      2    L := L + R
//!     3    parent gets (separator, R)     3    R := redirect(L), parent loses R, PID freed later
//! ```
//!
//! A traverser that comes to a page too far left follows `right`, and posts the separator if it is not there.
//!
//! # Invariants
//!
//! - T1: the leaves of a tree partition the key space: the high fence of a leaf is the low fence of the next.
//! - T2: the keys of a leaf ascend strictly and lie within its fences.
//! - T3: a page whose separator is in no parent can be reached through `right` of its left neighbour; the
//!   pagecache evicts a page with `right` set only after the separator was posted.
//! - T4: node merges are done by the holder of the maintenance lock, and only of a page whose separator is in
//!   its parent.
//! - T5: per key, the order of LSNs is the order of publication.
//!
//! T6 and T7 are those of commits, in [`intent`]; T8 is that of the number of keys, in [`length`]; E1 is that of what is known of
//! leaves on disk, in [`excerpt`].
//!
//! # References
//!
//! Bw-tree: Levandoski, Lomet, Sengupta, ICDE 2013. B-link splits: Lehman and Yao, TODS 1981.

mod catalog;
mod cleaner;
mod consolidate;
mod copied;
mod cursor;
mod delta;
mod descent;
mod excerpt;
mod fold;
pub mod inner;
mod intent;
pub mod leaf;
mod length;
mod merge;
mod priority;
mod read;
mod read_set;
pub mod redo;
mod runs;
mod salvage;
mod scrub;
mod split;
mod transaction;
mod verify;
mod walk;
pub mod watch;
mod write;

pub use crate::pagecache::Findings;
pub use crate::pagecache::{Remains, search};
pub use catalog::{BwTree, Catalog, DEFAULT_TREE};
pub use copied::Copied;
pub use cursor::{Ended, Wanted};
pub use read_set::is_void;
pub use salvage::{Sink, salvage_remains};
pub use transaction::{Operators, Transaction};
pub use write::{Change, Written, own_changes};

use crate::base::Lsn;
use crate::error::Result;
use crate::pagecache::{CacheOptions, Log, PageCache};
use fold::LeafPage;
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Number of leading bytes that two keys share.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// What the layer is told when it is opened.
#[derive(Clone, Debug)]
pub struct TreeOptions {
    /// A leaf splits above this many bytes.
    pub leaf: usize,
    /// An inner node splits above this many children.
    pub fanout: usize,
    /// Values longer than this get images of their own, bytes.
    pub big_value: usize,
    /// Redo bytes after which a checkpoint is due; `None`: scaled to the data.
    pub redo_budget: Option<u64>,
    /// What scaled to the data means: so many redo bytes, or bytes of images, for 100 live ones.
    pub share: u64,
    /// At least, and at most, so many redo bytes.
    pub redo_range: RangeInclusive<u64>,
    /// Bytes of page segments per live byte above which the cleaner works while others write, and when nobody does.
    pub amplification: (f64, f64),
    /// How many identifiers are reserved at a time.
    pub id_interval: u64,
}

/// Statistics, all relaxed.
#[derive(Debug, Default)]
pub struct TreeCounters {
    /// Leaves folded.
    pub consolidations: AtomicU64,
    /// Records added to excerpts.
    pub excerpted: AtomicU64,
    /// Leaves split, roots not counted.
    pub leaf_splits: AtomicU64,
    /// Inner nodes split, roots not counted.
    pub inner_splits: AtomicU64,
    /// Roots split.
    pub root_splits: AtomicU64,
    /// Leaves merged.
    pub node_merges: AtomicU64,
    /// Inner nodes merged.
    pub inner_merges: AtomicU64,
    /// Roots that took the place of their only child.
    pub root_collapses: AtomicU64,
    /// Images of big values.
    pub big_values_written: AtomicU64,
    /// Segments emptied by the cleaner.
    pub cleaned_segments: AtomicU64,
    /// Trees rebuilt at open.
    pub trees_loaded: AtomicU64,
    /// Attempts at a commit which others aborted, or which were not sure of what was read.
    pub aborted_commits: AtomicU64,
    /// Runs of a closure that read what did not hold until the end.
    pub conflicts: AtomicU64,
}

fn add(counter: &AtomicU64) {
    // Relaxed: statistic.
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Small leaves remembered for merging.
const SPARSE: usize = 1 << 16;
/// How many of them are worth waking somebody.
const SPARSE_DUE: usize = 8;
/// Most identifiers that are reserved at once.
const ID_INTERVAL: u64 = 1 << 32;
/// Garbage that is too little to do something about it at rest, bytes.
const SMALL: u64 = 256 << 10;
/// How often the file is tidied in a row, as one round shows what the next can do.
const MOST_ROUNDS: u32 = 8;
/// Smallest image budget that is scaled to the data, bytes.
const LEAST_IMAGES: u64 = 8 << 20;

/// When the file is tidied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// While others write.
    Busy,
    /// When nothing is being written.
    AtRest,
}

/// What wakes the maintenance thread.
struct Wake(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Wake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wake")
    }
}

/// All trees of a database, over one pagecache.
#[derive(Debug)]
pub struct Forest {
    cache: PageCache<LeafPage>,
    options: TreeOptions,
    /// Name -> tree.
    pub catalog: Catalog,
    /// What happened so far.
    pub counters: TreeCounters,
    /// Held while segments are cleaned and a checkpoint is made, and while nodes are merged, which its walk
    /// does not expect.
    checkpointing: Mutex<()>,
    /// Inner nodes are split, and any nodes merged, under this: a page that is merged stays next to its left
    /// sibling under one parent. Leaves are split, and separators posted, without it.
    shape: Mutex<()>,
    /// Leaves that were small when they were folded: tree and low key.
    sparse: Mutex<BTreeSet<(u32, Vec<u8>)>>,
    /// How many these are. Written under the lock.
    sparse_count: AtomicUsize,
    /// How many they were when the file was last tidied at rest.
    small_before: AtomicUsize,
    /// Dropped trees that no guard can be in any more.
    dropped: Arc<Mutex<VecDeque<Arc<BwTree>>>>,
    /// Ids of dropped trees whose pages are not freed yet.
    unfreed: Mutex<BTreeSet<u32>>,
    /// Next identifier. Any thread, by atomic add.
    next_id: AtomicU64,
    /// Identifiers below this may be handed out. Raised under `raising_ids` after a flush.
    id_floor: AtomicU64,
    raising_ids: Mutex<()>,
    /// A checkpoint is due after this many redo bytes.
    redo_budget: AtomicU64,
    /// Or after this many bytes of images: what they replace is freed by a checkpoint only.
    image_budget: AtomicU64,
    /// Image bytes appended when the last checkpoint was made.
    appended_then: AtomicU64,
    /// Where the last note of lengths ends in the log. Set by recovery.
    noted: AtomicU64,
    /// Bytes of its body. Set by recovery.
    noted_bytes: AtomicUsize,
    /// Wakes the maintenance thread; unset: there is none, and foreground calls do its work.
    wake: OnceLock<Wake>,
}

impl Forest {
    /// Opens all trees over a log: reads the directory of the last checkpoint and replays the redo tail.
    /// Whether the file was new.
    ///
    /// # Errors
    /// `Corruption`, `Unsupported`, `Io`.
    pub fn open(log: Log, cache: CacheOptions, options: TreeOptions) -> Result<(Forest, bool)> {
        let floor = log.superblock().id_floor;
        let forest = Forest {
            cache: PageCache::new(log, cache),
            options,
            catalog: Catalog::new(),
            counters: TreeCounters::default(),
            checkpointing: Mutex::default(),
            shape: Mutex::default(),
            sparse: Mutex::default(),
            sparse_count: AtomicUsize::new(0),
            small_before: AtomicUsize::new(0),
            dropped: Arc::default(),
            unfreed: Mutex::default(),
            next_id: AtomicU64::new(floor),
            id_floor: AtomicU64::new(floor),
            raising_ids: Mutex::default(),
            redo_budget: AtomicU64::new(0),
            image_budget: AtomicU64::new(0),
            appended_then: AtomicU64::new(0),
            noted: AtomicU64::new(0),
            noted_bytes: AtomicUsize::new(0),
            wake: OnceLock::new(),
        };
        let captured: Lsn = forest.load_directory()?;
        let fresh = forest.replay_all(captured)?;
        forest.recount_big_values()?;
        forest.set_budget();
        Ok((forest, fresh))
    }

    /// Sets what wakes the maintenance thread.
    pub fn set_wake(&self, wake: Box<dyn Fn() + Send + Sync>) {
        // Set once, by the engine.
        let _ = self.wake.set(Wake(wake));
    }

    /// The log, for those who assemble the layers.
    pub fn log(&self) -> &Log {
        self.cache.log()
    }

    /// The pages, for statistics.
    pub fn cache_counters(&self) -> &crate::pagecache::CacheCounters {
        &self.cache.counters
    }

    /// Bytes of pages and their changes, which the capacity bounds, and of tables and buffers.
    pub fn memory(&self) -> u64 {
        let memory = self.memory_by_class();
        memory.cached + memory.retired + memory.tables
    }

    /// The same, by what it is for.
    pub fn memory_by_class(&self) -> crate::pagecache::Memory {
        self.cache.memory()
    }

    /// Makes everything durable that was written before; the stable LSN.
    ///
    /// # Errors
    /// What writing failed with; after a failed sync always that error.
    pub fn flush(&self) -> Result<u64> {
        self.cache.flush().map(|lsn| lsn.0)
    }

    /// The tree of a name, created if there is none.
    ///
    /// # Errors
    /// What recording it failed with.
    pub fn open_tree(&self, name: &[u8]) -> Result<Arc<BwTree>> {
        let tree = self.catalog.get_or_create(name, |id| {
            let tree = self.new_tree(id, name)?;
            // Before anybody can write to the tree, so its record comes before theirs.
            self.record(&redo::Record::Create { tree: id, name })?;
            Ok(tree)
        })?;
        Ok(tree)
    }

    /// Drops the tree of a name; `false`: there is none.
    ///
    /// # Errors
    /// What recording it failed with.
    pub fn drop_tree(&self, name: &[u8]) -> Result<bool> {
        let gone = self.catalog.remove(name, |tree| {
            self.record(&redo::Record::Drop { tree: tree.id })?;
            self.unfreed.lock().insert(tree.id);
            Ok(())
        })?;
        let Some(tree) = gone else { return Ok(false) };
        self.note_dropped(tree);
        match self.wake.get() {
            // It is due only when the epoch has moved on, which the maintenance thread sees to.
            Some(wake) => (wake.0)(),
            None => drop(self.keep_up()),
        }
        Ok(true)
    }

    /// Logs a record of something that is visible already, or is about to be; its LSN.
    fn record(&self, record: &redo::Record<'_>) -> Result<Lsn> {
        let mut space = self.cache.reserve(record.len())?;
        let lsn = space.lsn();
        record.encode(space.bytes());
        space.complete();
        Ok(lsn)
    }

    /// Frees the pages of a dropped tree once nobody can be in it any more.
    fn note_dropped(&self, tree: Arc<BwTree>) {
        let queue = Arc::clone(&self.dropped);
        let guard = crossbeam_epoch::pin();
        guard.defer(move || queue.lock().push_back(tree));
        guard.flush();
    }

    /// Remembers a leaf for merging if it has few bytes of records, and a neighbour.
    fn note_if_sparse(&self, tree: &BwTree, leaf: leaf::Leaf<'_>, bytes: usize) {
        if bytes >= self.options.leaf / 4 || leaf.is_only() {
            return;
        }
        let mut sparse = self.sparse.lock();
        if sparse.len() < SPARSE {
            sparse.insert((tree.id, leaf.low().to_vec()));
            // Relaxed: a hint.
            self.sparse_count.store(sparse.len(), Ordering::Relaxed);
        }
    }

    fn take_sparse(&self) -> Option<(u32, Vec<u8>)> {
        let mut sparse = self.sparse.lock();
        let first = sparse.pop_first();
        // Relaxed: a hint.
        self.sparse_count.store(sparse.len(), Ordering::Relaxed);
        first
    }

    /// Lets the epoch move on, and so gives back memory that waits for it.
    pub fn move_epoch(&self) {
        self.cache.move_epoch();
    }

    /// Whether memory, segments or a dropped tree wait for the epoch to move on.
    pub fn waits_for_epoch(&self) -> bool {
        self.cache.retired() > 0 || self.log().segments().is_draining() || !self.unfreed.lock().is_empty()
    }

    /// Whether maintenance has a thread of its own, which may take its time.
    fn has_maintenance_thread(&self) -> bool {
        self.wake.get().is_some()
    }

    /// Whether the maintenance thread has something to do.
    pub fn is_due(&self) -> bool {
        // Relaxed: a hint.
        self.cache.excess() > 0
            || self.cache.grows()
            || self.sparse_count.load(Ordering::Relaxed) >= SPARSE_DUE
            || self.checkpoint_due()
            || !self.dropped.lock().is_empty()
    }

    /// An identifier that was never handed out, not even before a crash.
    ///
    /// # Errors
    /// What making the reservation durable failed with.
    pub fn generate_id(&self) -> Result<u64> {
        // Relaxed: only uniqueness matters; the bound is read with Acquire.
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        // Acquire: pairs with the Release below.
        while id >= self.id_floor.load(Ordering::Acquire) {
            let _raising = self.raising_ids.lock();
            // Acquire: as above; somebody else may have raised it meanwhile.
            if id < self.id_floor.load(Ordering::Acquire) {
                break;
            }
            // However many are reserved at once, they never run out.
            let floor = id + 1 + self.options.id_interval.min(ID_INTERVAL);
            self.record(&redo::Record::Ids { floor })?;
            self.flush()?;
            // Release: pairs with the Acquire above; what is below it is durable.
            self.id_floor.store(floor, Ordering::Release);
        }
        Ok(id)
    }

    /// The bound that is durable, or is about to be: a record of it may be before a checkpoint's redo LSN
    /// already.
    fn id_floor(&self) -> u64 {
        let _raising = self.raising_ids.lock();
        // Acquire: pairs with the Release in `generate_id`.
        self.id_floor.load(Ordering::Acquire)
    }

    /// Identifiers below are not handed out from now on.
    ///
    /// # Errors
    /// What recording that failed with.
    pub fn skip_ids(&self, floor: u64) -> Result<()> {
        let _raising = self.raising_ids.lock();
        self.record(&redo::Record::Ids { floor })?;
        self.raise_id_floor(floor);
        Ok(())
    }

    /// Identifiers below may have been handed out.
    pub fn ids_below(&self) -> u64 {
        self.id_floor()
    }

    /// Recovery: identifiers below may have been handed out.
    fn raise_id_floor(&self, floor: u64) {
        // Relaxed: recovery is alone.
        self.id_floor.fetch_max(floor, Ordering::Relaxed);
        self.next_id.fetch_max(floor, Ordering::Relaxed);
    }

    fn set_budget(&self) {
        let share = self.log().segments().usage().live / 100 * self.options.share;
        let range = &self.options.redo_range;
        let (redo, images) = match self.options.redo_budget {
            None => (share.clamp(*range.start(), *range.end()), share.max(LEAST_IMAGES)),
            Some(fixed) => (fixed, 2 * fixed),
        };
        // Relaxed: hints.
        self.redo_budget.store(redo, Ordering::Relaxed);
        self.image_budget.store(images, Ordering::Relaxed);
        self.appended_then.store(self.log().segments().appended(), Ordering::Relaxed);
    }

    /// Whether a checkpoint is due because of the redo bytes since the last.
    fn tail_is_long(&self) -> bool {
        // Relaxed: a hint.
        self.log().redo_tail() >= self.redo_budget.load(Ordering::Relaxed)
    }

    /// Whether a checkpoint is due.
    fn checkpoint_due(&self) -> bool {
        // Relaxed: hints.
        let images =
            self.log().segments().appended().saturating_sub(self.appended_then.load(Ordering::Relaxed));
        self.tail_is_long() || images >= self.image_budget.load(Ordering::Relaxed)
    }

    /// Called by foreground operations now and then: has maintenance done when it is due, and waits while
    /// memory is far over the capacity.
    ///
    /// # Errors
    /// What writing pages out failed with, when memory must shrink for that.
    fn keep_up(&self) -> Result<()> {
        match self.wake.get() {
            None => self.maintain(),
            Some(wake) => {
                if self.is_due() {
                    (wake.0)();
                }
                let mut rounds = 0;
                while self.cache.over_hard_limit() && rounds < 64 {
                    self.cache.evict(0, &|id, at, guard| self.link(id, at, guard))?;
                    if rounds > 2 {
                        // What is left waits for the guards of others.
                        std::thread::yield_now();
                    }
                    rounds += 1;
                }
                if rounds > 0 && self.cache.is_stuck() {
                    // It waits until others let go of what they use, which it may not be doing any more.
                    (wake.0)();
                }
                Ok(())
            }
        }
    }

    /// Has memory made ready if there is a thread that can do that while others go on.
    fn make_ready(&self) {
        if self.cache.grows() && self.has_maintenance_thread() {
            self.cache.make_ready();
        }
    }

    /// Whether memory is above the capacity though nothing is due, as what was in use could not be evicted.
    pub fn is_stuck(&self) -> bool {
        self.cache.is_stuck()
    }

    /// A number that changes when somebody reads or writes.
    pub fn activity(&self) -> u64 {
        self.cache.counters.visits.sum().wrapping_add(self.log().end().0)
    }

    /// Evicts down to the capacity, also what could not be evicted before.
    ///
    /// # Errors
    /// What writing pages out failed with.
    pub fn evict_stuck(&self) -> Result<()> {
        self.cache.evict(self.cache.margin(), &|id, at, guard| self.link(id, at, guard))
    }

    /// As [`PageCache::forget_stuck`].
    pub fn forget_stuck(&self) {
        self.cache.forget_stuck();
    }

    /// Evicts as far as the capacity asks for it, and does nothing else.
    fn make_room(&self) -> Result<()> {
        if self.cache.excess() == 0 {
            return Ok(());
        }
        self.evict_stuck()
    }

    /// As [`Self::keep_up`] for operations that only read, which do not fail because pages cannot be written.
    pub fn keep_up_reading(&self) {
        if self.cache.excess() > 0 {
            let _ = if self.wake.get().is_some() { self.keep_up() } else { self.make_room() };
        }
    }

    /// Posts the separator behind a leaf, so that it may be evicted (T3); `false`: that did not work.
    fn link(&self, id: u32, frame: crate::pagecache::FrameRef<'_>, guard: &crossbeam_epoch::Guard) -> bool {
        let Some(tree) = self.catalog.get_id(id) else { return false };
        match leaf::Leaf::new(frame.base()).high() {
            Some(high) => self.post(&tree, 1, high, frame.right(), guard).is_ok(),
            None => true,
        }
    }

    /// One round of what is due: eviction, freeing dropped trees, node merges, cleaning, a checkpoint.
    ///
    /// # Errors
    /// What reading or writing failed with; what was not done is due again.
    pub fn maintain(&self) -> Result<()> {
        self.make_ready();
        let mut result = self.make_room();
        result = result.and(self.free_dropped());
        self.cache.forget_stuck();
        if !self.sparse.lock().is_empty()
            && let Some(_no_checkpoint) = self.checkpointing.try_lock()
        {
            result = result.and(self.merge_sparse());
        }
        if self.checkpoint_due()
            && let Some(alone) = self.checkpointing.try_lock()
        {
            let keep_tail = !self.tail_is_long();
            result = result.and(self.tidy_alone(keep_tail, When::Busy, &alone));
        }
        result
    }

    /// Cleans as far as the file's amplification asks for it, makes a checkpoint and gives back what that
    /// frees.
    ///
    /// # Errors
    /// What reading or writing failed with.
    pub fn tidy(&self) -> Result<()> {
        self.tidy_alone(false, When::AtRest, &self.checkpointing.lock())
    }

    fn tidy_alone(&self, keep_tail: bool, when: When, alone: &MutexGuard<'_, ()>) -> Result<()> {
        self.cache.check()?;
        for _ in 0..8 {
            if self.unfreed.lock().is_empty() {
                break;
            }
            self.move_epoch();
            self.free_dropped()?;
            std::thread::yield_now();
        }
        if self.waits_for_dropped() {
            return Ok(());
        }
        let cleaned = self.clean(when);
        self.checkpoint(keep_tail, alone)?;
        self.set_budget();
        self.await_epoch();
        self.log().give_back(false)?;
        cleaned
    }

    /// Whether a checkpoint had better wait. A dropped tree is in no new directory, and its big values would be counted
    /// there for ever: while a guard keeps it from being freed, the checkpoint that still has it, with the record of its
    /// drop, stays as long as that is bearable.
    fn waits_for_dropped(&self) -> bool {
        // Relaxed: hints.
        let images =
            self.log().segments().appended().saturating_sub(self.appended_then.load(Ordering::Relaxed));
        let bearable = self.log().redo_tail() < 2 * self.redo_budget.load(Ordering::Relaxed)
            && images < 2 * self.image_budget.load(Ordering::Relaxed);
        bearable && !self.unfreed.lock().is_empty()
    }

    /// Gives what was freed a while to get through the epoch; what a sleeping guard holds up comes next time.
    fn await_epoch(&self) {
        for round in 0..20 {
            self.move_epoch();
            if !self.log().segments().is_draining() {
                break;
            }
            if round > 4 {
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
        }
    }

    /// Tidies until nothing is gained by it, or something is being written again, and gives back every free segment.
    ///
    /// # Errors
    /// What reading or writing failed with.
    pub fn settle(&self, goes_on: &dyn Fn() -> bool) -> Result<()> {
        let (mut packed, mut live) = (u64::MAX, u64::MAX);
        for _ in 0..MOST_ROUNDS {
            self.maintain()?;
            self.log().pages().seal_sparse();
            self.tidy()?;
            self.log().give_back(true)?;
            let usage = self.log().segments().usage();
            // A round that moves much may be worth it only for the next.
            let gains = |now: u64, best: u64| now < best - best / 64;
            let gained = gains(usage.used - usage.dead, packed) || gains(usage.live, live);
            (packed, live) = (packed.min(usage.used - usage.dead), live.min(usage.live));
            // The checkpoint has noted which leaves are small. Those that stay so have neighbours that are not.
            let small = self.sparse.lock().len();
            // Relaxed: nobody else is here.
            let before = self.small_before.swap(small, Ordering::Relaxed);
            let merges = small >= SPARSE_DUE && (small != before || small == SPARSE);
            if !gained || !goes_on() || !self.is_untidy() && !merges {
                break;
            }
        }
        Ok(())
    }

    /// Whether enough of the file is dead, waits for replay, or was removed that it is worth tidying when nothing else is
    /// to do.
    pub fn is_untidy(&self) -> bool {
        let usage = self.log().segments().usage();
        // What a checkpoint frees, and what the cleaner would move: other garbage is there to stay.
        let tail = self.log().redo_tail();
        let (freed, worth_it) = (usage.dead + tail, usage.live / 16 + SMALL);
        freed > worth_it
            || tail > 0 && freed + self.cache.removed_bytes() > worth_it
            || usage.used - usage.dead > self.clean_goal(&usage, When::AtRest)
            || !self.unfreed.lock().is_empty()
    }

    /// The layer below.
    #[cfg(test)]
    pub fn cache(&self) -> &PageCache<impl crate::pagecache::Page> {
        &self.cache
    }

    /// As [`PageCache::compact`].
    pub fn compact(&self) {
        self.cache.compact();
    }

    /// Whether memory could be given back that is spread over what is in use.
    pub fn is_spread(&self) -> bool {
        self.cache.is_spread()
    }
}
