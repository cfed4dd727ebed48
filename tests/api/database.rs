//! Trees, ids, flushes, export and import, checksums.

use crate::common::block_on;
use crate::{assert_panics, fresh, on};
use sled::testing::{CrashMode, SimStorage, Tuning, open_on};
use sled::{Config, Db, Error, IVec, Iter, Result, Tree};
use std::collections::BTreeMap;

const DEFAULT: &str = "__sled__default";

#[test]
fn the_default_tree_is_listed_named_and_cannot_be_dropped() -> Result<()> {
    let db = fresh();
    assert_eq!(db.name(), DEFAULT);
    assert_eq!(db.tree_names(), [DEFAULT]);
    assert!(matches!(db.drop_tree(DEFAULT), Err(Error::Unsupported(_))));
    db.insert("k", "v")?;
    let by_name = db.open_tree(DEFAULT)?;
    assert_eq!((by_name.get("k")?, by_name.name()), (Some("v".into()), DEFAULT.into()));
    Ok(())
}

#[test]
fn trees_have_any_bytes_as_names_and_keys_of_their_own() -> Result<()> {
    let medium = SimStorage::new();
    let db = on(&medium);
    let names: [&[u8]; 4] = [b"", b"a", b"\xFF\0", &[7; 5_000]];
    for name in names {
        let tree = db.open_tree(name)?;
        tree.insert("k", name)?;
        assert_eq!((tree.name(), db.open_tree(name)?.get("k")?), (name.into(), Some(name.into())));
    }
    db.flush()?;
    drop(db);
    let db = on(&medium);
    let mut listed = db.tree_names();
    listed.sort();
    let mut expected = names.map(IVec::from).to_vec();
    expected.push(DEFAULT.into());
    expected.sort();
    assert_eq!(listed, expected);
    for name in names {
        assert_eq!(db.open_tree(name)?.get("k")?, Some(name.into()));
    }
    assert!(db.is_empty(), "the default tree");
    Ok(())
}

#[test]
fn a_dropped_tree_is_gone_for_its_handles_and_its_name_is_free() -> Result<()> {
    let db = fresh();
    assert!(!db.drop_tree("t")?, "unknown");
    let old = db.open_tree("t")?;
    old.insert("k", "old")?;
    assert!(db.drop_tree("t")?);
    assert!(!db.drop_tree("t")?, "again");
    assert_eq!(db.tree_names(), [DEFAULT]);
    let new = db.open_tree("t")?;
    assert_eq!((new.get("k")?, new.len()), (None, 0));
    new.insert("k", "new")?;

    let gone = Error::CollectionNotFound("t".into());
    assert_eq!(old.get("k"), Err(gone.clone()));
    assert_eq!(old.insert("k", "v"), Err(gone.clone()));
    assert_eq!(old.remove("k"), Err(gone.clone()));
    assert_eq!(old.contains_key("k"), Err(gone.clone()));
    assert_eq!(old.compare_and_swap("k", None::<&str>, Some("v")), Err(gone.clone()));
    assert_eq!(old.update_and_fetch("k", |_| Some("v")), Err(gone.clone()));
    assert_eq!(old.fetch_and_update("k", |_| Some("v")), Err(gone.clone()));
    assert_eq!([old.pop_min(), old.pop_max()], [Err(gone.clone()), Err(gone.clone())]);
    assert_eq!(old.clear(), Err(gone.clone()));
    assert_eq!(old.checksum(), Err(gone));
    // What needs no data goes on.
    assert_eq!(old.name(), "t");
    old.flush()?;
    assert_eq!(new.get("k")?, Some("new".into()));
    Ok(())
}

#[test]
fn ids_begin_at_0_and_are_shared_by_all_handles() -> Result<()> {
    let db = fresh();
    let other = db.clone();
    let ids = [db.generate_id()?, other.generate_id()?, db.generate_id()?];
    assert_eq!(ids, [0, 1, 2]);
    Ok(())
}

#[test]
fn ids_grow_over_reopens_crashes_and_other_intervals() -> Result<()> {
    let mut medium = SimStorage::new();
    let mut next = 0;
    for (round, interval) in
        [1_000_000, 1_000_000, 3, u64::MAX, 1, u64::MAX, 7, 1_000_000, 2].into_iter().enumerate()
    {
        let config = Config::new().idgen_persist_interval(interval).flush_every_ms(None);
        let db = open_on(medium.clone(), &config, Tuning { threads: false, ..Tuning::default() })?;
        for _ in 0..10 {
            let id = db.generate_id()?;
            assert!(id >= next, "round {round}: id {id} was handed out before, next is {next}");
            next = id + 1;
        }
        // Half of them end in a crash that keeps nothing that was not synced.
        if round % 2 == 0 {
            medium = medium.crash(0, CrashMode::DropUnsynced);
        }
    }
    Ok(())
}

#[test]
fn flush_says_how_much_it_wrote_and_0_when_clean() -> Result<()> {
    let db = fresh();
    let tree = db.open_tree("t")?;
    db.flush()?;
    assert_eq!((db.flush()?, tree.flush()?), (0, 0));
    tree.insert("k", vec![1; 1_000])?;
    assert!(db.flush()? >= 1_000, "through any handle, the whole database");
    assert_eq!(db.flush()?, 0);
    db.get("k")?;
    assert_eq!(tree.flush()?, 0, "reading writes nothing");
    Ok(())
}

#[test]
fn flush_async_does_nothing_until_it_is_polled() -> Result<()> {
    let medium = SimStorage::new();
    let db = on(&medium);
    db.flush()?;
    db.insert("k", "v")?;
    let flushed = |name: &str| {
        assert_eq!(
            on(&medium.crash(0, CrashMode::DropUnsynced)).contains_key("k"),
            Ok(name == "after"),
            "{name}"
        );
    };
    let future = db.flush_async();
    flushed("before");
    assert!(block_on(future)? > 0);
    flushed("after");
    assert_eq!(block_on(db.flush_async())?, 0);
    Ok(())
}

#[test]
fn dropping_the_last_handle_flushes() -> Result<()> {
    let medium = SimStorage::new();
    let db = on(&medium);
    let tree = db.open_tree("t")?;
    drop(db);
    tree.insert("k", "v")?;
    drop(tree);
    let left = on(&medium.crash(0, CrashMode::DropUnsynced));
    assert_eq!(left.open_tree("t")?.get("k")?, Some("v".into()));
    Ok(())
}

#[test]
fn creating_and_dropping_trees_is_durable_after_a_flush() -> Result<()> {
    let medium = SimStorage::new();
    let db = on(&medium);
    for name in ["kept", "dropped"] {
        db.open_tree(name)?.insert("k", name)?;
    }
    db.flush()?;
    db.drop_tree("dropped")?;
    db.open_tree("late")?;
    let left = on(&medium.crash(0, CrashMode::DropUnsynced));
    assert_eq!(left.open_tree("dropped")?.get("k")?, Some("dropped".into()), "its drop was not flushed");
    assert!(!left.tree_names().contains(&"late".into()));
    db.flush()?;
    let left = on(&medium.crash(0, CrashMode::DropUnsynced));
    let mut names = left.tree_names();
    names.sort();
    assert_eq!(names, [DEFAULT, "kept", "late"]);
    assert!(left.open_tree("dropped")?.is_empty(), "a name used again begins empty");
    Ok(())
}

#[test]
fn checksums_are_those_of_the_bytes_in_order() -> Result<()> {
    let db = fresh();
    db.insert("a", "1")?;
    assert_eq!((db.checksum()?, Tree::checksum(&db)?), (2_774_111_088, 1_826_703_395));
    let (b, a) = (db.open_tree("b")?, db.open_tree("a")?);
    for (key, value) in [("y", "2"), ("x", "1")] {
        a.insert(key, value)?;
        b.insert(key, value)?;
    }
    let crc = |text: &str| crate::common::crc32(0, text.as_bytes());
    assert_eq!(crc("123456789"), 0xCBF4_3926, "the check value of CRC-32");
    assert_eq!(a.checksum()?, crc("x1y2"));
    assert_eq!(db.checksum()?, crc("__sled__defaulta1ax1y2bx1y2"), "trees in the order of their names");
    b.insert("x", "other")?;
    assert_ne!(db.checksum()?, crc("__sled__defaulta1ax1y2bx1y2"));
    Ok(())
}

fn rows(pairs: &[&[&str]]) -> std::vec::IntoIter<Vec<Vec<u8>>> {
    let row = |row: &&[&str]| row.iter().map(|part| part.as_bytes().to_vec()).collect();
    pairs.iter().map(row).collect::<Vec<Vec<Vec<u8>>>>().into_iter()
}

#[test]
fn export_gives_every_tree_and_import_makes_a_copy() -> Result<()> {
    let (db, medium) = (fresh(), SimStorage::new());
    db.insert("k", "v")?;
    let tree = db.open_tree("t")?;
    for n in 0..500_u32 {
        #[expect(clippy::needless_borrows_for_generic_args, reason = "programs for 0.34 do this")]
        tree.insert(n.to_be_bytes(), &n.to_le_bytes())?;
    }
    let exported: BTreeMap<Vec<u8>, Vec<Vec<Vec<u8>>>> = db
        .export()
        .into_iter()
        .map(|(kind, name, rows)| {
            assert_eq!(kind, b"tree");
            (name, rows.collect())
        })
        .collect();
    let numbers = (0..500_u32).map(|n| vec![n.to_be_bytes().to_vec(), n.to_le_bytes().to_vec()]);
    let expected = BTreeMap::from([
        (DEFAULT.as_bytes().to_vec(), vec![vec![b"k".to_vec(), b"v".to_vec()]]),
        (b"t".to_vec(), numbers.collect()),
    ]);
    assert_eq!(exported, expected);

    let copy = on(&medium);
    copy.import(db.export());
    assert_eq!(copy.checksum()?, db.checksum()?);
    drop(copy);
    assert_eq!(on(&medium).checksum()?, db.checksum()?, "opened again");
    Ok(())
}

#[test]
fn an_export_does_not_borrow_the_handle_and_keeps_it_open() -> Result<()> {
    fn check<T: Send + Sync + 'static>(_: &T) {}
    let db = fresh();
    db.insert("k", "v")?;
    let export = {
        let moved: Db = db;
        moved.export()
    };
    check(&export);
    let all: Vec<Vec<Vec<u8>>> = export.into_iter().flat_map(|(_, _, rows)| rows).collect();
    assert_eq!(all, [[b"k".to_vec(), b"v".to_vec()]]);
    Ok(())
}

#[test]
fn import_takes_the_last_two_parts_and_panics_on_what_it_cannot_take() -> Result<()> {
    let db = fresh();
    let tree = || b"tree".to_vec();
    db.import(vec![(tree(), b"t".to_vec(), rows(&[&["ignored", "k", "v"], &["l", "w"]]))]);
    let imported = db.open_tree("t")?;
    assert_eq!((imported.get("k")?, imported.get("l")?), (Some("v".into()), Some("w".into())));
    let import = |kind: &str, pairs: &[&[&str]]| {
        db.import(vec![(kind.as_bytes().to_vec(), b"t".to_vec(), rows(pairs))]);
    };
    assert_panics("an unknown kind", || import("table", &[&["x", "y"]]));
    assert_panics("a row of one", || import("tree", &[&["x"]]));
    assert_panics("an empty row", || import("tree", &[&[]]));
    assert_panics("a key that is there", || import("tree", &[&["k", "other"]]));
    assert_panics("the very pair that is there", || import("tree", &[&["k", "v"]]));
    assert_panics("the second row", || import("tree", &[&["first", "1"], &["k", "v"]]));
    assert_eq!(imported.get("first")?, Some("1".into()), "rows before the panic stay");
    Ok(())
}

#[test]
fn handles_are_shared_between_threads_and_printed() -> Result<()> {
    fn everywhere<T: Send + Sync + Unpin + 'static>() {}
    fn cloned_and_printed<T: Clone + std::fmt::Debug>(handle: &T) -> String {
        format!("{:?}", handle.clone())
    }
    everywhere::<Db>();
    everywhere::<Tree>();
    everywhere::<Iter>();
    everywhere::<IVec>();
    everywhere::<Config>();
    everywhere::<Error>();
    let db = fresh();
    let tree = db.open_tree("t")?;
    for text in [cloned_and_printed(&db), cloned_and_printed(&tree), cloned_and_printed(&Config::new())] {
        assert!(!text.is_empty());
    }
    std::thread::spawn(move || tree.insert("k", "v")).join().expect("does not panic")?;
    assert_eq!(db.open_tree("t")?.get("k")?, Some("v".into()));
    Ok(())
}
