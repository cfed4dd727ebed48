//! The hidden door for this crate's own tests: other media, tiny sizes, seeds, counters, explicit steps.

use super::config::Config;
use super::db::Db;
use super::engine;
use crate::base::Lsn;
use crate::error::Result;
use crate::log::format::{BlockHeader, ImageHeader, SECTOR, SegmentHeader, Superblock};
use crate::log::record::{FRAME, Records};
use crate::pagecache::directory::{Decoder, Item, Root};
use crate::tree::inner::{self, Inner};
use crate::tree::leaf::{Leaf, LeafBuilder, Value, fingerprint};
use crate::tree::redo::{self, Record};
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
            fanout: 512,
            redo_buffer: 256 << 10,
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
    /// Pages that were made overlays.
    pub shrunk: u64,
    /// Frames moved to other memory.
    pub moved_frames: u64,
    /// Overlays completed from disk.
    pub overlay_faults: u64,
    /// Overlays whose image was read so that they could be written.
    pub overlays_folded: u64,
    /// Records that were added to excerpts.
    pub excerpted: u64,
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

/// Opens the database that a configuration names, with these settings.
///
/// # Errors
/// As for [`Config::open`].
pub fn open_tuned(config: &Config, tuning: &Tuning) -> Result<Db> {
    config.validate()?;
    engine::open_tuned(config, tuning)
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
        shrunk: get(&cache.shrunk),
        moved_frames: get(&cache.moved_frames),
        overlay_faults: get(&cache.overlay_faults),
        overlays_folded: get(&cache.overlays_folded),
        excerpted: get(&tree.excerpted),
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

/// Moves pages together in memory, as is done when nothing is written.
pub fn compact(db: &Db) {
    db.engine().forest().compact();
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

/// Takes bytes for each structure of the format in turn, and for the place that they say they belong to, and
/// uses what could be decoded as the layers do.
///
/// # Panics
/// When what a decoder accepts cannot be used, or is not what an encoder writes.
pub fn decode_everything(bytes: &[u8]) {
    let word =
        |at: usize| bytes.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")));
    if let Some(sector) = bytes.first_chunk::<SECTOR>()
        && let Ok(Some(superblock)) = Superblock::decode(sector)
    {
        assert_eq!(Superblock::decode(&superblock.encode()), Ok(Some(superblock)));
    }
    // The number is the upper half of the word.
    if let Some(header) = word(8).and_then(|word| SegmentHeader::decode(bytes, (word >> 32) as u32)) {
        assert_eq!(SegmentHeader::decode(&header.encode(), header.number), Some(header));
    }
    if let (Some(nonce), Some(offset)) = (word(24), word(32))
        && let Some((_, payload)) = BlockHeader::decode(bytes, nonce, offset)
    {
        use_stream(payload);
    }
    if let (Some(offset), Some(nonce)) = (word(16), word(24))
        && let Some((_, payload)) = ImageHeader::decode(bytes, nonce, offset)
    {
        use_payload(payload);
    }
    use_stream(bytes);
    use_payload(bytes);
    (0..=redo::kind::TRANSACTION).for_each(|kind| use_record(kind, bytes));
}

/// Records do not depend on where the blocks cut them.
fn use_stream(bytes: &[u8]) {
    let read = |step: usize| {
        let (mut records, mut found, mut lsn) = (Records::default(), Vec::new(), Lsn(64));
        let ends = bytes.chunks(step).try_for_each(|piece| {
            let each = &mut |lsn, kind, body: &[u8]| {
                use_record(kind, body);
                found.push((lsn, kind, body.len()));
                Ok(true)
            };
            let fed = records.feed(lsn, piece, each);
            lsn = lsn.plus(piece.len() as u64);
            fed.map(drop)
        });
        (found, ends.is_ok() && records.is_partial())
    };
    assert_eq!(read(bytes.len().max(1)), read(7));
}

fn use_record(kind: u8, body: &[u8]) {
    if let Some(record) = Record::decode(kind, body) {
        let mut out = vec![0; record.len()];
        record.encode(&mut out);
        assert_eq!((out[FRAME - 1], &out[FRAME..]), (kind, body), "records have one form");
    }
    if kind != redo::kind::TRANSACTION {
        return;
    }
    let Some(changes) = redo::decode_transaction(body) else { return };
    let parts: Vec<(u8, u32, &[u8], Vec<u8>)> = changes
        .iter()
        .map(|change| match *change {
            Record::Put { tree, key, value } => (redo::kind::PUT, tree, key, value.to_vec()),
            Record::Remove { tree, key } => (redo::kind::REMOVE, tree, key, Vec::new()),
            Record::PutBig { tree, key, big, nonce } => {
                (redo::kind::PUT_BIG, tree, key, redo::big_rest(big, nonce).to_vec())
            }
            _ => panic!("{change:?} is no part of a transaction"),
        })
        .collect();
    let mut out =
        vec![0; redo::transaction_len(parts.iter().map(|(_, _, key, rest)| (key.len(), rest.len())))];
    let mut encoder = redo::encode_transaction(&mut out);
    parts.iter().for_each(|(kind, tree, key, rest)| encoder.change(*kind, *tree, key, rest));
    assert!(encoder.is_full() && &out[FRAME..] == body, "transactions have one form");
}

/// What an image may hold: a leaf or a part of the directory.
fn use_payload(bytes: &[u8]) {
    if let Ok(leaf) = Leaf::validate(bytes) {
        use_leaf(leaf);
    }
    if let Some(root) = Root::decode(bytes) {
        assert_eq!(Root::decode(&root.encode()), Some(root));
    }
    let read = |step: usize| {
        let (mut decoder, mut items) = (Decoder::default(), Vec::new());
        for chunk in bytes.chunks(step) {
            decoder.feed(chunk);
            loop {
                match decoder.next() {
                    Ok(Some(Item::End)) => return (items, true),
                    Ok(Some(item)) => items.push(item),
                    Ok(None) => break,
                    Err(_) => return (items, true),
                }
            }
        }
        (items, false)
    };
    assert_eq!(read(bytes.len().max(1)), read(7), "items do not depend on where chunks cut them");
}

fn use_leaf(leaf: Leaf<'_>) {
    let record = |i: usize| {
        let (key, value) = leaf.record(i);
        ([leaf.prefix(), key].concat(), value)
    };
    let records: Vec<(Vec<u8>, Value<'_>)> = (0..leaf.len()).map(record).collect();
    let mut builder = LeafBuilder::new(leaf.low(), leaf.high(), leaf.len(), leaf.payload());
    for (i, (key, value)) in records.iter().enumerate() {
        assert!(leaf.covers(key) && !leaf.is_past(key) && leaf.lower_bound(key) == i, "T2: {key:?}");
        // Fingerprints are not validated: a wrong one hides its key, and nothing else.
        assert!(leaf.find(key, fingerprint(key)).is_none_or(|found| found == *value), "value of {key:?}");
        builder.push(key, &[], fingerprint(key) as u8, *value);
    }
    let image = builder.finish();
    let rebuilt = Leaf::validate(&image).expect("what the builder makes is well formed");
    let mut children = vec![(leaf.low(), 1)];
    for (key, value) in &records {
        assert_eq!(rebuilt.find(key, fingerprint(key)), Some(*value), "value of {key:?}");
        if key[..] > *children[children.len() - 1].0 {
            children.push((key, children.len() as u32 + 1));
        }
    }
    let node = inner::build(1, &children, leaf.high(), 0);
    for (key, pid) in children {
        let inner = Inner::new(&node);
        assert_eq!(inner.child(inner.find(key)), pid, "child of {key:?}");
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::api::batch::Batch;
    use crate::api::transaction::{ConflictableTransactionResult, Transactional as _};
    use crate::log::ImageAddr;
    use crate::pagecache::{FrameKind, NewFrame};
    use crate::tree::watch::Event;

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

    /// Who splits a leaf has pages that nothing refers to yet, and may have to take them back.
    #[test]
    fn a_page_that_nothing_refers_to_yet_is_not_moved() {
        let config = Config::new().flush_every_ms(None);
        let tuning = Tuning { threads: false, ..Tuning::default() };
        let db = open_on(SimStorage::new(), &config, tuning).expect("a new database opens");
        let cache = db.engine().forest().cache();
        let guard = crossbeam_epoch::pin();
        let image = LeafBuilder::new(b"a", Some(b"b"), 0, 0).finish();
        let new = NewFrame {
            kind: FrameKind::Leaf,
            overlay: false,
            tree: 1,
            base: &image,
            disk: ImageAddr::NONE,
            first_lsn: Lsn::MAX,
            newest: Lsn(0),
            right: 0,
        };
        let frame = cache.frame(new, &guard);
        frame.hold();
        let pid = cache.allocate(frame).expect("there is room");
        let word = cache.load(pid, &guard).0;
        cache.move_all(&guard);
        assert!(cache.load(pid, &guard).0 == word && frame.is_held());
        frame.release();
        cache.move_all(&guard);
        assert!(cache.load(pid, &guard).0 != word, "others are moved");
    }

    /// Two threads with everything that can be done at once: transactions over two trees, batches, a merge operator, a
    /// subscriber, a big value, maintenance; then all of it is found after a crash.
    #[test]
    fn a_small_database_that_two_threads_use_comes_back() {
        let tuning = Tuning {
            leaf_bytes: 256,
            fanout: 4,
            redo_buffer: 256,
            segment: 4096,
            redo_budget: 4096,
            threads: false,
        };
        let config = Config::new().flush_every_ms(None);
        let medium = SimStorage::new();
        let rounds = if cfg!(miri) { 4 } else { 60_u8 };
        let db = open_on(medium.clone(), &config, tuning.clone()).expect("a new database opens");
        let accounts = db.open_tree("accounts").expect("opened");
        accounts.insert([0], [100]).expect("inserted");
        accounts.insert([1], [100]).expect("inserted");
        db.set_merge_operator(|_: &[u8], old: Option<&[u8]>, new: &[u8]| {
            Some([old.unwrap_or_default(), new].concat())
        });
        let mut watcher = db.watch_prefix(b"own");
        let work = |who: u8| {
            for round in 0..rounds {
                let moved = (&accounts, &*db).transaction(|(accounts, log)| {
                    let take = |key: u8| accounts.get([key]).map(|value| value.map_or(0, |value| value[0]));
                    let (from, to) = (take(who)?, take(1 - who)?);
                    accounts.insert([who], [from - 1])?;
                    accounts.insert([1 - who], [to + 1])?;
                    log.insert([b't', who, round], vec![round; 20])?;
                    ConflictableTransactionResult::<(), ()>::Ok(())
                });
                moved.expect("committed");
                let mut batch = Batch::default();
                batch.insert([b'c', who, round], vec![who; 30]);
                batch.remove([b'c', who, round.wrapping_sub(2)]);
                db.apply_batch(batch).expect("applied");
                db.merge(b"both", [who]).expect("merged");
                db.insert([&b"own"[..], &[who, round]].concat(), vec![round; 200]).expect("inserted");
                if who == 0 {
                    maintain(&db).expect("maintained");
                } else {
                    db.flush().expect("flushed");
                }
            }
        };
        std::thread::scope(|s| {
            s.spawn(|| work(0));
            work(1);
        });
        db.flush().expect("flushed");
        check_invariants(&db).expect("whole");
        let left = medium.crash(0, CrashMode::DropUnsynced);
        // Of each thread in its order.
        let mut next = [0; 2];
        for _ in 0..2 * rounds {
            let Some(Event::Insert { key, .. }) = watcher.next() else { panic!("an event for each insert") };
            assert_eq!(next[usize::from(key[3])], key[4]);
            next[usize::from(key[3])] += 1;
        }
        drop((watcher, accounts, db));
        let db = open_on(left, &config, tuning).expect("it opens again");
        check_invariants(&db).expect("whole");
        let accounts = db.open_tree("accounts").expect("opened");
        let sum = accounts.iter().values().map(|value| u32::from(value.expect("read")[0])).sum::<u32>();
        assert_eq!(sum, 200, "what one loses the other has");
        assert_eq!(db.get("both").expect("read").map(|value| value.len()), Some(2 * usize::from(rounds)));
        for (prefix, count) in [("t", rounds), ("c", 2), ("own", rounds)] {
            assert_eq!(db.scan_prefix(prefix).count(), 2 * usize::from(count), "{prefix}");
        }
    }
}
