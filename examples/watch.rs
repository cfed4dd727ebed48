//! Watching a prefix: a cache that follows a part of a tree, on a thread of its own.

use sled::Event;
use std::collections::BTreeMap;
use std::thread;

type Cache = BTreeMap<sled::IVec, sled::IVec>;

pub fn main() -> sled::Result<()> {
    let db = sled::Config::new().temporary(true).open()?;
    db.insert("user/ada", "London")?;

    // Watch first, read then, so that nothing falls between. What is seen twice does no harm.
    let events = db.watch_prefix("user/");
    let cache: Cache = db.scan_prefix("user/").collect::<sled::Result<_>>()?;
    assert_eq!(cache.len(), 1);
    let follower = thread::spawn(|| follow(events, cache));

    db.insert("user/emmy", "Erlangen")?;
    db.insert("user/emmy", "Erlangen")?; // changes nothing, so there is no event
    db.insert("settings/theme", "dark")?; // another prefix
    db.insert("user/kurt", "Vienna")?;
    let mut moves = sled::Batch::default();
    moves.insert("user/kurt", "Princeton");
    moves.remove("user/ada");
    db.apply_batch(moves)?; // its events come together, in the order of keys

    let stored: Cache = db.scan_prefix("user/").collect::<sled::Result<_>>()?;
    drop(db); // the last handle: the stream ends

    let (cache, seen) = follower.join().expect("no panic");
    assert_eq!(cache, stored);
    assert_eq!(seen, ["+user/emmy", "+user/kurt", "-user/ada", "+user/kurt"]);
    println!("the cache followed {} changes: {}", seen.len(), seen.join(" "));
    Ok(())
}

/// Applies changes until the stream ends; the cache, and what it saw.
fn follow(mut events: sled::Subscriber, mut cache: Cache) -> (Cache, Vec<String>) {
    let mut seen = Vec::new();
    for event in &mut events {
        let sign = if matches!(event, Event::Insert { .. }) { '+' } else { '-' };
        seen.push(format!("{sign}{}", String::from_utf8_lossy(event.key())));
        match event {
            Event::Insert { key, value } => cache.insert(key, value),
            Event::Remove { key } => cache.remove(&key),
        };
    }
    // A stream that was not read for too long ends, too; then one would watch and read again.
    assert!(!events.lagged());
    (cache, seen)
}
