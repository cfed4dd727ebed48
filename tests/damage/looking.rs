//! `read_only`: nothing is changed, and everything can be read.

use super::common_durability::{Scratch, bytes_of, files_below};
use super::{base, contents, open, read_only};
use sled::testing::SimStorage;
use sled::{Config, Error};
use std::io;

#[test]
fn what_is_only_read_stays_as_it_is() {
    let base = base(false);
    let medium = SimStorage::holding(base.bytes.clone());
    let before = medium.ops();
    let db = sled::testing::open_on(medium.clone(), &read_only(), super::tiny(1024)).expect("not damaged");
    assert_eq!(contents(&db), base.state);
    assert!(db.was_recovered());
    for _ in 0..3 {
        sled::testing::maintain(&db).expect("in memory");
    }
    db.flush().expect("nothing to do");
    assert_eq!(contents(&db), base.state, "also after what maintenance did in memory");
    drop(db);
    assert_eq!(medium.contents(), base.bytes);
    assert!(medium.ops() > before, "it was read");
}

#[test]
fn changes_are_refused() {
    let base = base(true);
    let db = open(&base.bytes, &read_only()).expect("not damaged");
    let refused = |result: sled::Result<()>| match result {
        Err(Error::Unsupported(text)) => assert!(text.contains("read_only"), "{text}"),
        other => panic!("not refused: {other:?}"),
    };
    refused(db.insert("key", "value").map(drop));
    refused(db.insert("key", bytes_of(1, 100_000)).map(drop));
    let ((_, there), _) = base.state.first_key_value().expect("not empty");
    refused(db.remove(there).map(drop));
    refused(db.open_tree("new").map(drop));
    refused(db.drop_tree("second").map(drop));
    refused(db.generate_id().map(drop));
    let mut batch = sled::Batch::default();
    batch.insert("key", "value");
    refused(db.apply_batch(batch));
    match db.transaction(|tree| tree.insert("key", "value").map_err(Into::into)) {
        Err(sled::transaction::TransactionError::<()>::Storage(error)) => refused(Err(error)),
        other => panic!("not refused: {other:?}"),
    }
    assert_eq!(contents(&db), base.state);
}

#[test]
fn many_may_look_and_none_may_write_meanwhile() {
    let scratch = Scratch::new("read-only");
    let config = Config::new().path(&scratch.0);
    let error = config.clone().read_only(true).open().expect_err("nothing there");
    assert!(matches!(&error, Error::Io(e) if e.kind() == io::ErrorKind::NotFound), "{error}");
    assert_eq!(files_below(&scratch.0), vec![], "nothing was created");

    let db = config.open().expect("healthy");
    // More than fits in the cache of those who look.
    for number in 0..20_000_u64 {
        db.insert(number.to_be_bytes(), bytes_of(number, 100)).expect("healthy");
    }
    db.flush().expect("healthy");
    assert!(config.clone().read_only(true).open().expect_err("being written").is_locked());
    drop(db);
    let before = files_below(&scratch.0);
    let look = config.clone().read_only(true).cache_capacity(256 << 10);
    let (first, second) = (look.open().expect("whole"), look.open().expect("whole"));
    for db in [&first, &second] {
        assert_eq!(db.len(), 20_000);
        assert_eq!(db.get(7_u64.to_be_bytes()).expect("whole").as_deref(), Some(&bytes_of(7, 100)[..]));
        assert!(db.verify().expect("whole").is_whole());
    }
    assert!(config.open().expect_err("being read").is_locked());
    drop((first, second));
    assert_eq!(files_below(&scratch.0), before);
    assert_eq!(config.open().expect("free again").len(), 20_000);
}

#[test]
fn what_would_have_to_be_written_is_not_opened_for_reading() {
    for config in [Config::new().temporary(true), Config::new().path("no such").create_new(true)] {
        let error = config.read_only(true).open().expect_err("contradicts itself");
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("read_only")), "{error}");
    }
}
