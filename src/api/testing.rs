//! The hidden door for this crate's own tests: other media, tiny sizes, seeds, counters, explicit steps.

use super::config::Config;
use super::db::Db;
use super::engine;
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use crate::base::seed_nonces;
pub use crate::storage::Storage;
pub use crate::storage::sim::{
    Call, CrashMode, Fault, Growth, OpClass, Recording, Replay, SimStorage, Written,
};

/// Sizes that tests make tiny, so that rare paths run. The default is what a normal open uses.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// A leaf splits above this many bytes.
    pub leaf_bytes: usize,
    /// An inner node splits above this many children.
    pub fanout: usize,
    /// Bytes of one redo buffer.
    pub redo_buffer: usize,
    /// Bytes of a segment of a new file.
    pub segment: usize,
    /// Redo bytes after which a checkpoint is due; 0 = scaled to the data.
    pub redo_budget: u64,
    /// Whether there are background threads; without, foreground calls and [`maintain`] do their work.
    pub threads: bool,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            leaf_bytes: 8192,
            fanout: 128,
            redo_buffer: 512 << 10,
            segment: 512 << 10,
            redo_budget: 0,
            threads: true,
        }
    }
}

/// What happened since the database was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Leaves folded.
    pub consolidations: u64,
    /// Leaves split, roots not counted.
    pub leaf_splits: u64,
    /// Inner nodes split, roots not counted.
    pub inner_splits: u64,
    /// Roots split.
    pub root_splits: u64,
    /// Leaves merged.
    pub node_merges: u64,
    /// Inner nodes merged.
    pub inner_merges: u64,
    /// Roots that took the place of their only child.
    pub root_collapses: u64,
    /// Frames dropped because their image was current.
    pub evictions: u64,
    /// Dirty pages written by eviction.
    pub page_outs: u64,
    /// Pages read.
    pub faults: u64,
    /// Overlays completed from disk.
    pub overlay_faults: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Segments emptied by the cleaner.
    pub cleaned_segments: u64,
    /// Images moved by the cleaner.
    pub moved_images: u64,
    /// Images of big values.
    pub big_values_written: u64,
    /// Redo blocks written.
    pub redo_blocks: u64,
    /// Syncs.
    pub syncs: u64,
    /// Redo reservations that became padding.
    pub aborted_reservations: u64,
    /// Segments freed.
    pub segments_freed: u64,
}

/// Opens a database on a medium; an empty one becomes a new database.
///
/// # Errors
/// As for [`Config::open`].
pub fn open_on(storage: impl Storage, config: &Config, tuning: Tuning) -> Result<Db> {
    config.validate()?;
    engine::open_on(Arc::new(storage), config, &tuning)
}

/// What happened since the database was opened.
pub fn counters(db: &Db) -> Counters {
    // Relaxed: statistics.
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let forest = db.engine().forest();
    let (tree, cache) = (&forest.counters, forest.cache_counters());
    let [redo_blocks, syncs, aborted_reservations, segments_freed] = forest.log().counts();
    Counters {
        consolidations: get(&tree.consolidations),
        leaf_splits: get(&tree.leaf_splits),
        inner_splits: get(&tree.inner_splits),
        root_splits: get(&tree.root_splits),
        node_merges: get(&tree.node_merges),
        inner_merges: get(&tree.inner_merges),
        root_collapses: get(&tree.root_collapses),
        evictions: get(&cache.evictions),
        page_outs: get(&cache.page_outs),
        faults: get(&cache.faults),
        overlay_faults: get(&cache.overlay_faults),
        checkpoints: get(&cache.checkpoints),
        cleaned_segments: get(&tree.cleaned_segments),
        moved_images: get(&cache.moved_images),
        big_values_written: get(&tree.big_values_written),
        redo_blocks,
        syncs,
        aborted_reservations,
        segments_freed,
    }
}

/// Bytes of pages and their changes, which `cache_capacity` bounds, and of tables and buffers, which come on
/// top.
pub fn memory_used(db: &Db) -> u64 {
    db.engine().forest().memory()
}

/// One round of everything that maintenance would do now.
///
/// # Errors
/// What reading or writing failed with.
pub fn maintain(db: &Db) -> Result<()> {
    db.engine().forest().maintain()
}

/// A checkpoint, due or not, with the cleaning that comes before it.
///
/// # Errors
/// What reading or writing failed with.
pub fn checkpoint(db: &Db) -> Result<()> {
    db.engine().forest().tidy()
}

/// Walks every tree: fences partition the key space, keys ascend, counts agree.
///
/// # Errors
/// `ReportableBug` with what is wrong, or what reading failed with.
pub fn check_invariants(db: &Db) -> Result<()> {
    db.engine().forest().check_invariants()
}

/// As [`Db::salvage`], from a medium.
///
/// # Errors
/// As there.
pub fn salvage(from: impl Storage, to: &Db, tuning: &Tuning) -> Result<crate::Salvage> {
    super::salvage::salvage(Arc::new(from), to, tuning)
}

/// Bytes of live images, of images at all, and of the redo tail.
pub fn space(db: &Db) -> (u64, u64, u64) {
    let log = db.engine().forest().log();
    let usage = log.segments().usage();
    (usage.live, usage.used, log.redo_tail())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Small enough for an interpreter, and still through splits, merges, eviction, a checkpoint and replay.
    #[test]
    fn a_small_database_comes_back() {
        let tuning = Tuning {
            leaf_bytes: 256,
            fanout: 4,
            redo_buffer: 4096,
            segment: 16 << 10,
            redo_budget: 4096,
            threads: false,
        };
        let config = Config::new().flush_every_ms(None);
        let medium = SimStorage::new();
        // A prime, so that only the last key comes twice.
        let keys = if cfg!(miri) { 31 } else { 199_u32 };
        let key = |i: u32| (i * 37 % keys).to_be_bytes();
        {
            let db = open_on(medium.clone(), &config, tuning.clone()).expect("a new database opens");
            for i in 0..=keys {
                db.insert(key(i), &key(i + 1)[..]).expect("inserted");
                if i == keys / 2 {
                    checkpoint(&db).expect("checkpointed");
                }
                if i % 3 == 0 {
                    db.remove(key(i)).expect("removed");
                }
            }
            db.flush().expect("flushed");
            check_invariants(&db).expect("whole");
        }
        let db = open_on(medium, &config, tuning).expect("it opens again");
        check_invariants(&db).expect("whole");
        let removed: Vec<_> = (0..keys).filter(|i| i % 3 == 0).map(key).collect();
        for i in 1..keys {
            let expected = (!removed.contains(&key(i))).then(|| key(i + 1).to_vec());
            assert_eq!(db.get(key(i)).expect("read").map(|v| v.to_vec()), expected, "{i}");
        }
        assert_eq!(db.iter().count(), keys as usize - removed.len() + 1);
    }
}
