//! `Db::stats`: what the engine did, and what it holds.

use super::db::Db;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a database did since it was opened, and what it holds now: of [`Db::stats`].
///
/// # Examples
/// ```
/// # fn main() -> sled::Result<()> {
/// let db = sled::Config::new().temporary(true).open()?;
/// let before = db.stats();
/// db.insert("key", "value")?;
/// let after: sled::Stats = db.stats();
/// assert!(after.redo_bytes > before.redo_bytes);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Leaves that somebody came to, less `faults`: one for each get or change of a key outside of transactions, at least
    /// one for each leaf that an iterator copies from, and what transactions and maintenance come to. Where a fault was
    /// nobody's who came to a leaf, it is less by one.
    pub cache_hits: u64,
    /// Pages that were asked for, not in memory, and read.
    pub faults: u64,
    /// Pages that left memory without being written, since the file had them already.
    pub evictions: u64,
    /// Pages that were written because their memory was needed.
    pub page_outs: u64,
    /// Leaves whose changes were folded in.
    pub consolidations: u64,
    /// Pages that were split.
    pub splits: u64,
    /// Pages that were merged with a neighbour.
    pub merges: u64,
    /// Runs of a transaction's closure in vain, because another had changed what it read.
    pub conflicts: u64,
    /// Attempts to commit a transaction that had to be repeated.
    pub aborted_commits: u64,
    /// Values that were written apart because they are long.
    pub big_values: u64,
    /// Bytes written to the redo log.
    pub redo_bytes: u64,
    /// Bytes written as images of pages and big values.
    pub page_bytes: u64,
    /// Syncs of the file.
    pub syncs: u64,
    /// Checkpoints that became durable.
    pub checkpoints: u64,
    /// How long ago the last of these was; `None`: there was none since the database was opened, or there is no clock
    /// (WebAssembly).
    pub checkpoint_age: Option<Duration>,
    /// Segments that the cleaner emptied by moving what was live in them.
    pub cleaned_segments: u64,
    /// Images that it moved.
    pub moved_images: u64,
    /// Segments that were freed, however they became empty.
    pub freed_segments: u64,

    /// Bytes of pages in memory and of their changes, which [`Config::cache_capacity`](crate::Config::cache_capacity) bounds.
    pub cached_bytes: u64,
    /// Bytes of pages that are out of use and wait until no reader can be at them.
    pub retired_bytes: u64,
    /// Bytes of tables and buffers, which come on top of the pages.
    pub table_bytes: u64,
    /// Bytes of the file in images that are live.
    pub live_bytes: u64,
    /// Bytes of the file in images that are dead, and not given back yet.
    pub dead_bytes: u64,
    /// Bytes of the redo log behind the last checkpoint: what opening after a crash would replay.
    pub redo_tail_bytes: u64,
}

impl Db {
    /// Returns what the database did since it was opened, and what it holds now. The counters are always on and cost
    /// next to nothing; asking waits for nobody who reads or writes the file. Numbers that change meanwhile
    /// may be from slightly different times.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> sled::Result<()> {
    /// let db = sled::Config::new().temporary(true).open()?;
    /// for number in 0..1000_u64 {
    ///     db.insert(number.to_be_bytes(), vec![0; 100])?;
    /// }
    /// let stats = db.stats();
    /// assert!(stats.cached_bytes > 100_000 && stats.splits > 0);
    /// assert!(stats.redo_tail_bytes > 100_000);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        // Relaxed: statistics.
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let forest = self.engine().forest();
        let (tree, cache, log) = (&forest.counters, forest.cache_counters(), forest.log());
        let usage = log.segments().usage();
        let memory = forest.memory_by_class();
        let faults = get(&cache.faults) + get(&cache.overlay_faults);
        let checkpointed = *cache.checkpointed.lock();
        Stats {
            // Who comes to an overlay that lacks what he needs comes again.
            cache_hits: cache.visits.sum().saturating_sub(faults + get(&cache.overlay_faults)),
            faults,
            evictions: get(&cache.evictions),
            page_outs: get(&cache.page_outs),
            consolidations: get(&tree.consolidations),
            splits: get(&tree.leaf_splits) + get(&tree.inner_splits) + get(&tree.root_splits),
            merges: get(&tree.node_merges) + get(&tree.inner_merges),
            conflicts: get(&tree.conflicts),
            aborted_commits: get(&tree.aborted_commits),
            big_values: get(&tree.big_values_written),
            redo_bytes: log.redo_written(),
            page_bytes: log.segments().appended(),
            syncs: log.syncs(),
            checkpoints: get(&cache.checkpoints),
            checkpoint_age: checkpointed.map(|then| then.elapsed()),
            cleaned_segments: get(&tree.cleaned_segments),
            moved_images: get(&cache.moved_images),
            freed_segments: log.freed(),
            cached_bytes: memory.cached,
            retired_bytes: memory.retired,
            table_bytes: memory.tables,
            live_bytes: usage.live,
            dead_bytes: usage.used.saturating_sub(usage.live),
            redo_tail_bytes: log.redo_tail(),
        }
    }
}
