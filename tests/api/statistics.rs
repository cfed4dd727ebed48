//! `Db::stats` counts what happens, and weighs what is held.

use crate::common::{tiny, tiny_config};
use sled::testing::{SimStorage, Tuning, checkpoint, open_on};
use sled::{Db, Result};

const KEYS: u64 = 2000;

fn load(db: &Db, keys: u64, salt: u8) -> Result<()> {
    for number in 0..keys {
        db.insert(number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes(), vec![salt; 50])?;
    }
    Ok(())
}

#[test]
fn what_happens_is_counted() -> Result<()> {
    let db = open_on(SimStorage::new(), &tiny_config(), tiny(1, false))?;
    let new = db.stats();
    assert_eq!((new.faults, new.splits, new.redo_bytes), (0, 0, 0));
    assert_eq!(new.checkpoint_age, None);
    (0..3).try_for_each(|salt| load(&db, KEYS, salt))?;
    let loaded = db.stats();
    assert!(loaded.redo_bytes > 3 * KEYS * 58 && loaded.page_bytes > KEYS * 58, "{loaded:?}");
    assert!(loaded.splits > 50 && loaded.consolidations > 10, "{loaded:?}");
    assert!(loaded.faults > 50 && loaded.page_outs > 50, "{loaded:?}");

    let before = db.stats();
    for number in 0..KEYS {
        let key = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
        assert!(db.get(key)?.is_some() && db.get(key)?.is_some());
    }
    let read = db.stats();
    let (hits, faults) = (read.cache_hits - before.cache_hits, read.faults - before.faults);
    assert_eq!(hits + faults, 2 * KEYS, "each read comes to one leaf");
    assert!(hits > 0 && faults > 0);

    let evictions = db.stats().evictions;
    assert_eq!(db.iter().count() as u64, KEYS);
    assert_eq!(db.iter().count() as u64, KEYS);
    assert!(db.stats().evictions > evictions, "what is read makes room");

    let syncs = db.stats().syncs;
    db.insert("big", vec![7; 40_000])?;
    db.flush()?;
    assert!(db.stats().syncs > syncs);
    assert_eq!(db.stats().big_values, loaded.big_values + 1);

    db.insert("later", "value")?;
    let before = db.stats();
    assert!(before.redo_tail_bytes > 0);
    let start = std::time::Instant::now();
    checkpoint(&db)?;
    assert!(db.stats().checkpoint_age.is_some_and(|age| age <= start.elapsed()));
    let after = db.stats();
    assert!(after.checkpoints > before.checkpoints && after.redo_tail_bytes < 200, "{after:?}");

    (0..KEYS).try_for_each(|n| db.remove(n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()).map(drop))?;
    (0..4).try_for_each(|_| checkpoint(&db))?;
    let emptied = db.stats();
    assert!(emptied.merges > 0 && emptied.freed_segments > after.freed_segments, "{emptied:?}");
    assert!(emptied.live_bytes < after.live_bytes, "{emptied:?} after {after:?}");
    Ok(())
}

#[test]
fn what_is_held_is_weighed() -> Result<()> {
    let capacity = 2 << 20;
    let tuning = Tuning { threads: false, ..Tuning::default() };
    let db = open_on(SimStorage::new(), &tiny_config().cache_capacity(capacity), tuning)?;
    load(&db, 50 * KEYS, 1)?;
    let stats = db.stats();
    assert!(stats.cached_bytes > capacity / 4 && stats.cached_bytes < capacity + (3 << 20), "{stats:?}");
    assert!(stats.table_bytes > 0);
    let held = stats.cached_bytes + stats.retired_bytes + stats.table_bytes;
    assert!(sled::testing::memory_used(&db).abs_diff(held) < capacity / 4, "{stats:?}");
    load(&db, 50 * KEYS, 2)?;
    assert!(db.stats().dead_bytes > 0, "what was overwritten is dead until it is cleaned");
    Ok(())
}
