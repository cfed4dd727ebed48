//! Files to be forged: between them they hold every structure, and records of every kind.

use sled::testing::{self, CrashMode, SimStorage, Tuning};
use sled::transaction::{ConflictableTransactionResult, Transactional};
use sled::{Batch, Config, Db, Result};
use std::sync::OnceLock;

/// Names of the trees; the last one is dropped.
pub const TREES: [&str; 3] = ["__sled__default", "second", "third"];
/// Longer than any inline value.
const BIG: usize = 700;

/// Opens a database of tiny leaves.
pub fn open(medium: &SimStorage, redo_budget: u64) -> Result<Db> {
    let (leaf_bytes, fanout, redo_buffer, segment) = (512, 3, 256, 4096);
    let tuning = Tuning { leaf_bytes, fanout, redo_buffer, segment, redo_budget, threads: false };
    let config = Config::new().cache_capacity(1 << 20).flush_every_ms(None).idgen_persist_interval(2);
    testing::open_on(medium.clone(), &config, tuning)
}

/// The files: a tail of every kind of record over a few leaves; many leaves and big values under checkpoints, with a
/// short tail; the same closed; and next to nothing.
pub fn files() -> &'static [Vec<u8>; 4] {
    static FILES: OnceLock<[Vec<u8>; 4]> = OnceLock::new();
    FILES.get_or_init(|| {
        let killed = |medium: &SimStorage| medium.crash(0, CrashMode::KeepAll).contents();
        let tail = SimStorage::new();
        let _db = history(&tail, 3, 1 << 30);
        let pages = SimStorage::new();
        let db = history(&pages, 12, 4096);
        let checkpointed = killed(&pages);
        drop(db);
        let small = SimStorage::new();
        let db = open(&small, 1 << 30).expect("a healthy medium");
        db.insert("k", "v").expect("a healthy medium");
        db.flush().expect("a healthy medium");
        [killed(&tail), checkpointed, pages.contents(), killed(&small)]
    })
}

/// A database after `rounds` rounds of everything that leaves a record, and a checkpoint in the middle.
fn history(medium: &SimStorage, rounds: u8, redo_budget: u64) -> Db {
    let run = || -> Result<Db> {
        let db = open(medium, redo_budget)?;
        let trees = [db.open_tree(TREES[0])?, db.open_tree(TREES[1])?];
        for round in 0..rounds {
            for tree in &trees {
                (0..8).try_for_each(|i| tree.insert([round, i], vec![i; 20]).map(drop))?;
                tree.insert([round, 9], vec![round; BIG])?;
                tree.remove([round, 3])?;
                if round % 4 == 3 {
                    (0..8).try_for_each(|i| tree.remove([round / 2, i]).map(drop))?;
                }
                let mut batch = Batch::default();
                batch.insert([round, 10], [round; 30]);
                batch.insert([round, 11], vec![round; BIG]);
                batch.remove([round, 4]);
                tree.apply_batch(batch)?;
            }
            let moved = (&trees[0], &trees[1]).transaction(|(one, two)| {
                let value = one.remove([round, 5])?.unwrap_or_default();
                two.insert([round, 12], value)?;
                two.insert([round, 13], vec![1; BIG])?;
                ConflictableTransactionResult::<(), ()>::Ok(())
            });
            moved.expect("nothing is in the way");
            db.generate_id()?;
            db.open_tree(TREES[2])?.insert("k", "v")?;
            db.drop_tree(TREES[2])?;
            if round == rounds / 2 {
                testing::checkpoint(&db)?;
            }
            testing::maintain(&db)?;
        }
        db.open_tree(TREES[2])?.insert("k", "v")?;
        db.flush()?;
        Ok(db)
    };
    run().expect("a healthy medium")
}
