//! Writes golden files that are not there.
//!
//! They were written once, by the build that froze version 1, on a simulated medium with tiny segments and pages, so that small
//! files have all there is. To write those of a later version: name them differently, and add them to the tests.

use crate::common::{Key, Value, done};
use crate::golden;
use crate::listing::list;
use sled::testing::{CrashMode, SimStorage, Tuning, checkpoint, counters, maintain, open_on};
use sled::transaction::Transactional as _;
use sled::{Batch, Config, Db, Result, Tree};

/// Records of the default tree before most of them are removed.
const TEXTS: u16 = 120;

fn tuning() -> Tuning {
    Tuning {
        leaf_bytes: 512,
        fanout: 4,
        redo_buffer: 256,
        segment: 4096,
        redo_budget: 64 << 10,
        threads: false,
    }
}

fn open(medium: &SimStorage, compressed: bool) -> Result<Db> {
    let config = Config::new().cache_capacity(64 << 10).flush_every_ms(None).idgen_persist_interval(5);
    open_on(medium.clone(), &config.use_compression(compressed), tuning())
}

fn value(len: u32, tag: u32) -> Vec<u8> {
    Value { len, tag }.bytes()
}

/// Trees of every kind, after splits and node merges.
fn fill(db: &Db) -> Result<()> {
    let odd = db.open_tree(b"\xFF\0odd\xFE")?;
    let keys =
        [Key::Empty, Key::Byte(0), Key::Byte(0xFF), Key::AllFf(40), Key::Zeros(30), Key::Long(4200, 1)];
    for (tag, key) in (0..).zip(keys) {
        odd.insert(key.bytes(), value(tag * 7, tag))?;
    }
    let prefixed = db.open_tree("prefixed")?;
    for n in 0..60 {
        let key = format!("/a/path/that/many/keys/have/in/common/{n:03}");
        prefixed.insert(key, value(n % 9, n))?;
    }
    let big = db.open_tree("")?;
    for (tag, len) in (0..).zip([129, 300, 128, 700, 4100, 127, 0]) {
        big.insert(format!("big {tag}"), value(len, tag))?;
    }
    for n in 0..TEXTS {
        db.insert(Key::Text(n).bytes(), format!("this is the name of user {n}").into_bytes())?;
    }
    checkpoint(db)?;
    for n in 0..TEXTS {
        if n % 4 > 0 {
            db.remove(Key::Text(n).bytes())?;
        }
    }
    big.insert("big 1", value(200, 50))?;
    big.remove("big 3")?;
    db.open_tree("empty")?;
    for _ in 0..3 {
        maintain(db)?;
        checkpoint(db)?;
    }
    Ok(())
}

/// Changes of every kind, none of them in a checkpoint.
fn change(db: &Db) -> Result<()> {
    let (gone, other) = (db.open_tree("gone")?, db.open_tree("other")?);
    gone.insert("seen", "never")?;
    db.set_merge_operator(|_: &[u8], old: Option<&[u8]>, operand: &[u8]| {
        Some([old.unwrap_or_default(), operand].concat())
    });
    db.insert(Key::Text(3).bytes(), "inserted")?;
    db.insert(Key::Text(8).bytes(), "replaced")?;
    db.remove(Key::Text(16).bytes())?;
    db.remove("never there")?;
    db.merge(Key::Text(24).bytes(), " and more")?;
    db.merge("merged", "first")?;
    db.merge("merged", ", second")?;
    db.insert(Key::Empty.bytes(), "")?;
    db.insert("big", value(200, 1))?;
    db.insert("big", value(250, 2))?;
    db.insert("short now", value(140, 3))?;
    db.insert("short now", "short")?;
    let mut batch = Batch::default();
    (0..20_u8).for_each(|n| batch.insert([b'b', n], vec![n; usize::from(n)]));
    batch.insert("batched", value(150, 4));
    batch.remove(Key::Text(32).bytes());
    db.apply_batch(batch)?;
    let trees: (&Tree, &Tree) = (db, &other);
    done(trees.transaction(|(first, second)| {
        let moved = first.remove(Key::Text(40).bytes())?;
        second.insert("moved", moved.unwrap_or_default())?;
        second.insert("with a big value", value(260, 5))?;
        Ok(())
    }))?;
    db.generate_id()?;
    db.drop_tree("gone")?;
    let again = db.open_tree("gone")?;
    again.insert("after", "it was there again")?;
    db.drop_tree("prefixed")?;
    db.open_tree("gone too")?;
    db.drop_tree("gone too")?;
    db.flush()?;
    Ok(())
}

/// A database closed in order.
fn closed(compressed: bool) -> Result<(Vec<u8>, String)> {
    let medium = SimStorage::new();
    let db = open(&medium, compressed)?;
    fill(&db)?;
    let seen = counters(&db);
    assert!(
        seen.leaf_splits > 5 && seen.inner_splits > 0 && seen.root_splits > 1 && seen.node_merges > 0,
        "{seen:?}"
    );
    assert!(seen.segments_freed > 0, "{seen:?}");
    let listing = list(&db)?;
    drop(db);
    Ok((medium.contents(), listing))
}

/// What a power cut leaves after a flush; and the same when what came next was torn.
fn crashed() -> Result<(Vec<u8>, Vec<u8>, String)> {
    let medium = SimStorage::new();
    let db = open(&medium, false)?;
    fill(&db)?;
    change(&db)?;
    let listing = list(&db)?;
    let crashed = medium.crash(0, CrashMode::DropUnsynced).contents();
    let mut batch = Batch::default();
    (0..30_u8).for_each(|n| batch.insert([b't', n], vec![n; 60]));
    db.apply_batch(batch)?;
    db.flush()?;
    let mut torn = medium.crash(0, CrashMode::DropUnsynced).contents();
    // Of a block that is new the first sector is there, and the second is not.
    let is_new = |at: &usize| {
        torn[*at..].starts_with(b"REDO")
            && !torn[at + 512..].starts_with(b"REDO")
            && torn[*at..] != crashed[*at..]
    };
    let first = (8192..crashed.len()).step_by(512).rfind(is_new).expect("a block was written");
    torn[first + 512..first + 1024].fill(0);
    Ok((crashed, torn, listing))
}

fn put(name: &str, bytes: &[u8], listing: Option<&str>) {
    let path = golden().join(name);
    if path.with_extension("db").exists() {
        println!("{name} is there and stays as it is");
        return;
    }
    // A file may end anywhere; what is not there was never written.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| (last + 1).next_multiple_of(512));
    std::fs::create_dir_all(golden()).expect("the sources are writable");
    std::fs::write(path.with_extension("db"), &bytes[..end.min(bytes.len())])
        .expect("the sources are writable");
    if let Some(listing) = listing {
        std::fs::write(path.with_extension("jsonl"), listing).expect("the sources are writable");
    }
    println!("{name}: {end} bytes");
}

#[test]
#[ignore = "writes to the sources; `SLED_WRITE_GOLDEN=1`"]
fn write_golden() -> Result<()> {
    if std::env::var_os("SLED_WRITE_GOLDEN").is_none() {
        println!("nothing is written without SLED_WRITE_GOLDEN");
        return Ok(());
    }
    let (bytes, listing) = closed(false)?;
    put("closed", &bytes, Some(&listing));
    if cfg!(feature = "compression") {
        let (bytes, same) = closed(true)?;
        assert_eq!(same, listing);
        put("compressed", &bytes, None);
    }
    let (bytes, torn, listing) = crashed()?;
    put("crashed", &bytes, Some(&listing));
    put("torn", &torn, None);
    Ok(())
}
