//! Programs for 0.34 compile: every public name is there, with the shape, the bounds and the traits it had.
//!
//! Most of this is checked by the compiler: the tests call everything once, in the ways that programs do, and
//! bind the results to the types they rely on. What is called also works; what it does in detail is for the
//! other tests.

#![allow(deprecated, reason = "deprecated names are part of the surface")]
#![allow(
    clippy::needless_borrows_for_generic_args,
    clippy::op_ref,
    clippy::cmp_owned,
    reason = "programs give arguments and compare in these ways, so they must compile"
)]

mod common_durability;

use common_durability::{Scratch, block_on};
use sled::{CompareAndSwapError, Config, Db, Error, IVec, Iter, MergeOperator, Mode, Tree};
use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::io;
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::{Path, PathBuf};

type Pair = (IVec, IVec);

/// `has!(Type: bounds)`, one a line; does not compile when a bound is not met.
macro_rules! has {
    ($($type:ty: [$($bound:tt)+]);+ $(;)?) => {
        $({
            fn check<T: $($bound)+>() {}
            check::<$type>();
        })+
    };
}

fn shared<T: Send + Sync + 'static>(value: T) -> T {
    value
}

fn fresh() -> Db {
    Config::new().temporary(true).open().expect("works")
}

#[test]
fn handles_have_their_traits() {
    has! {
        Db: [Clone + Debug + Send + Sync + Unpin + Deref<Target = Tree>];
        Tree: [Clone + Debug + Send + Sync + Unpin];
        Iter: [Send + Sync + Unpin + DoubleEndedIterator<Item = sled::Result<Pair>>];
        &'static Tree: [IntoIterator<Item = Result<Pair, Error>, IntoIter = Iter>];
        Config: [Clone + Debug + Default + Send + Sync];
        Mode: [Clone + Copy + Debug + Send + Sync + UnwindSafe + RefUnwindSafe];
    }
}

#[test]
fn errors_have_their_traits() {
    has! {
        Error: [Clone + Debug + Display + PartialEq + Eq + Send + Sync + std::error::Error + From<io::Error>];
        io::Error: [From<Error>];
        sled::Result<Result<(), CompareAndSwapError>>: [From<Error>];
        CompareAndSwapError: [Clone + Debug + Display + Eq + Ord + Hash + Send + Sync + std::error::Error];
        CompareAndSwapError: [UnwindSafe + RefUnwindSafe];
    }
}

#[test]
fn byte_strings_have_their_traits() {
    has! {
        IVec: [Clone + Debug + Default + Eq + Ord + Hash + Send + Sync + UnwindSafe + RefUnwindSafe];
        IVec: [Deref<Target = [u8]> + DerefMut + AsRef<[u8]> + AsMut<[u8]> + Borrow<[u8]> + FromIterator<u8>];
        &'static IVec: [Borrow<[u8]>];
        IVec: [From<&'static [u8]> + From<&'static str> + From<Vec<u8>> + From<Box<[u8]>> + From<&'static IVec>];
        IVec: [From<&'static [u8; 0]> + From<&'static [u8; 1]> + From<&'static [u8; 32]>];
        IVec: [PartialEq<[u8]> + PartialEq<Vec<u8>> + PartialEq<[u8; 3]> + PartialEq<String> + PartialEq<IVec>];
        IVec: [PartialEq<&'static [u8]> + PartialEq<&'static [u8; 3]> + PartialEq<&'static str>];
        IVec: [PartialEq<&'static IVec>];
    }
}

/// Dependents write such impls; a blanket one of ours would overlap.
#[test]
fn dependents_may_convert_their_own_types() {
    struct Mine(IVec);
    impl From<Mine> for IVec {
        fn from(mine: Mine) -> IVec {
            mine.0
        }
    }
    impl PartialEq<IVec> for Mine {
        fn eq(&self, other: &IVec) -> bool {
            self.0 == *other
        }
    }
    struct MyError;
    impl From<Error> for MyError {
        fn from(_: Error) -> MyError {
            MyError
        }
    }
    let fail = || -> Result<(), MyError> { Err(Error::Unsupported(String::new()))? };
    assert!(Mine("k".into()) == IVec::from("k") && fail().is_err());
    assert_eq!(fresh().insert("k", Mine("v".into())), Ok(None));
}

/// Dependents match without a wildcard: no variant comes in, none is marked non-exhaustive.
#[test]
fn enums_are_complete() {
    fn text(error: Error) -> String {
        match error {
            Error::CollectionNotFound(name) => String::from_utf8_lossy(&name).into_owned(),
            Error::Unsupported(text) | Error::ReportableBug(text) => text,
            Error::Io(error) => <io::Error as ToString>::to_string(&error),
            Error::Corruption { at, bt: () } => format!("{}", at.is_some()),
            #[cfg(feature = "failpoints")]
            Error::FailPoint => String::new(),
        }
    }
    fn letter(mode: Mode) -> char {
        match mode {
            Mode::LowSpace => 'l',
            Mode::HighThroughput => 'h',
        }
    }
    assert_eq!(text(Error::CollectionNotFound(b"name".into())), "name");
    assert_eq!(text(Error::Corruption { at: None, bt: () }), "false");
    assert_eq!([letter(Mode::LowSpace), letter(Mode::HighThroughput)], ['l', 'h']);
    let CompareAndSwapError { current, proposed } = CompareAndSwapError { current: None, proposed: None };
    let both: [Option<IVec>; 2] = [current, proposed];
    assert_eq!(both, [None, None]);
}

#[test]
fn configurations_are_built_and_read() {
    let scratch = Scratch::new("surface");
    let config: Config = Config::new()
        .path(scratch.0.join("a"))
        .cache_capacity(1_u64 << 20)
        .mode(Mode::LowSpace)
        .use_compression(false)
        .compression_factor(5_i32)
        .temporary(false)
        .create_new(false)
        .print_profile_on_drop(false);
    // Hidden or without effect, and used.
    let config: Config = config
        .segment_size(64_usize << 10)
        .flush_every_ms(Some(500_u64))
        .idgen_persist_interval(7_u64)
        .segment_cleanup_skew(1)
        .segment_cleanup_threshold(1_u8)
        .snapshot_after_ops(1_u64)
        .snapshot_path("ignored");
    let path: PathBuf = config.get_path();
    assert_eq!(path, scratch.0.join("a"));
    let health: sled::Result<()> = config.global_error();
    assert_eq!(health, Ok(()));

    let numbers: (u64, Option<u64>, usize, i32, u64) = (
        config.cache_capacity,
        config.flush_every_ms,
        config.segment_size,
        config.compression_factor,
        config.idgen_persist_interval,
    );
    assert_eq!(numbers, (1 << 20, Some(500), 64 << 10, 5, 7));
    let switches: [bool; 4] =
        [config.create_new, config.temporary, config.use_compression, config.print_profile_on_drop];
    assert_eq!(switches, [false; 4]);
    let (version, path, mode): ((usize, usize), &PathBuf, Mode) = (config.version, &config.path, config.mode);
    assert_eq!((version.0, path), (0, &scratch.0.join("a")));
    assert!(matches!(mode, Mode::LowSpace));

    let db: Db = config.open().unwrap();
    let path: PathBuf = db.context.get_path();
    assert_eq!(path, scratch.0.join("a"));
    drop(db);
    let db: Db = sled::open(Path::new(&scratch.0.join("a"))).unwrap();
    assert!(db.was_recovered());
    let _: Db = Db::open(scratch.0.join("b")).unwrap();
}

#[test]
fn a_database_has_its_methods() {
    let db = fresh();
    let tree: Tree = db.open_tree("name").unwrap();
    let _: [Tree; 2] = [db.open_tree(b"name").unwrap(), db.open_tree(vec![1_u8]).unwrap()];
    tree.insert("k", "v").unwrap();
    let names: Vec<IVec> = db.tree_names();
    assert_eq!(names.len(), 3);
    let (_, recovered): (u64, bool) = (db.generate_id().unwrap(), db.was_recovered());
    let (_, _): (u32, u64) = (db.checksum().unwrap(), db.size_on_disk().unwrap());
    let amplification: f64 = db.space_amplification().unwrap();
    assert!(!recovered && amplification >= 0.0);
    let dropped: bool = db.drop_tree(vec![1_u8]).unwrap();
    assert!(dropped);

    // An export does not borrow the handle that it was made by.
    fn shape<I: Iterator<Item = Vec<Vec<u8>>>>(
        all: Vec<(Vec<u8>, Vec<u8>, I)>,
    ) -> Vec<(Vec<u8>, Vec<u8>, I)> {
        all
    }
    let export = {
        let handle: Db = db.clone();
        shape(shared(handle.export()))
    };
    let other = fresh();
    other.import(export);
    assert_eq!(other.open_tree("name").unwrap().get("k").unwrap(), Some("v".into()));
    let pair = vec![b"k".to_vec(), b"w".to_vec()];
    other.import(vec![(b"tree".to_vec(), b"made".to_vec(), vec![pair].into_iter())]);
    assert_eq!(other.open_tree("made").unwrap().len(), 1);
}

#[test]
fn keys_and_values_may_be_given_as_anything() -> sled::Result<()> {
    let db = fresh();
    let tree: &Tree = &db;
    let old: Option<IVec> = tree.insert("k", "v")?;
    assert_eq!(old, None);
    tree.insert(b"k", b"v")?;
    tree.insert(vec![1_u8], vec![1_u8])?;
    tree.insert([1_u8, 2], &[1_u8, 2])?;
    tree.insert(IVec::from("k"), IVec::from("v"))?;
    tree.insert(&IVec::from("k"), &IVec::from("v"))?;
    tree.insert(String::from("k"), "v".as_bytes())?;
    tree.insert(1_u64.to_be_bytes(), &1_u64.to_be_bytes())?;
    tree.insert::<&str, &str>("k", "v")?;
    let found: [Option<IVec>; 2] = [tree.get("k")?, tree.get(b"k")?];
    assert_eq!(found, [Some("v".into()), Some("v".into())]);
    assert_eq!([tree.get(&[0])?, tree.get::<&[u8]>(&[0])?], [None, None]);
    let (there, gone): (bool, Option<IVec>) = (tree.contains_key("k")?, tree.remove("k")?);
    assert!(there && gone.is_some());
    tree.set("k", "v")?;
    tree.del("k")?;
    tree.verify_integrity()?;
    // Results are compared without being unwrapped.
    assert_eq!(tree.get("k"), Ok(None));
    assert!(tree.get("k") != Err(Error::CollectionNotFound(b"1".into())));
    Ok(())
}

#[test]
fn values_are_changed_in_one_step() -> sled::Result<()> {
    let tree = fresh();
    let swapped: Result<Result<(), CompareAndSwapError>, Error> =
        tree.compare_and_swap("k", Some("a"), Some("b"));
    assert!(swapped?.is_err());
    assert_eq!(tree.compare_and_swap("k", None as Option<&[u8]>, Some(b"a"))?, Ok(()));
    assert_eq!(tree.compare_and_swap::<_, _, &[u8]>("k", Some("a"), None)?, Ok(()));
    let new: Option<IVec> = tree.update_and_fetch("k", |old: Option<&[u8]>| old.map(<[u8]>::to_vec))?;
    assert_eq!(new, None);
    let old: Option<IVec> = tree.fetch_and_update("k", |_: Option<&[u8]>| Some(IVec::from("x")))?;
    assert_eq!(old, None);
    let mut calls = 0;
    tree.update_and_fetch(b"k", |_| {
        calls += 1;
        Some("a closure may change what it captures")
    })?;
    assert_eq!(calls, 1);

    fn longest(_key: &[u8], old: Option<&[u8]>, new: &[u8]) -> Option<Vec<u8>> {
        old.filter(|old| old.len() > new.len()).or(Some(new)).map(<[u8]>::to_vec)
    }
    let _: Box<dyn MergeOperator> = Box::new(longest);
    tree.set_merge_operator(longest);
    let merged: Option<IVec> = tree.merge("m", "v")?;
    assert_eq!(merged, Some("v".into()));
    tree.merge(b"m", vec![1_u8])?;
    // Neither `Send` nor `Sync` is asked for.
    let local = std::rc::Rc::new(1_u8);
    tree.set_merge_operator(move |_: &[u8], _: Option<&[u8]>, new: &[u8]| Some([new, &[*local]].concat()));
    assert_eq!(tree.merge("m", "v")?, Some(b"v\x01".into()));
    Ok(())
}

#[test]
fn pairs_are_found_in_order() -> sled::Result<()> {
    fn generic<K: AsRef<[u8]>, R: RangeBounds<K>>(tree: &Tree, range: R) -> Iter {
        tree.range(range)
    }
    let db = fresh();
    let tree: &Tree = &db;
    for key in ["a", "b", "c"] {
        tree.insert(key, key)?;
    }
    let slice: &[u8] = b"a";
    let ranges: [Iter; 8] = [
        shared(tree.iter()),
        tree.range::<&str, _>(..),
        tree.range::<Vec<u8>, _>(..),
        tree.range("a".."d"),
        tree.range(b"a".to_vec()..=b"c".to_vec()),
        tree.range((Bound::Excluded(vec![0_u8]), Bound::Unbounded)),
        generic(tree, IVec::from("a")..),
        tree.range(slice..),
    ];
    for range in ranges {
        assert_eq!(range.count(), 3);
    }
    let prefixes: [Iter; 3] = [tree.scan_prefix("a"), tree.scan_prefix(vec![b'a']), tree.scan_prefix([b'a'])];
    assert_eq!(prefixes.map(Iterator::count), [1; 3]);
    let keys: sled::Result<Vec<IVec>> = shared(tree.iter().keys()).collect();
    let values: sled::Result<Vec<IVec>> = shared(tree.iter().values().rev()).collect();
    assert!(keys?.iter().eq(values?.iter().rev()));

    let ends: [Option<Pair>; 4] = [tree.first()?, tree.last()?, tree.get_lt("b")?, tree.get_gt(vec![b'b'])?];
    assert_eq!(ends.map(|pair| pair.unwrap().0), ["a", "c", "a", "c"]);
    let popped: [Option<Pair>; 2] = [tree.pop_min()?, tree.pop_max()?];
    assert!(popped.iter().all(Option::is_some));
    for pair in tree {
        let _: Pair = pair?;
    }
    for pair in &*db {
        let (_key, _value) = pair?;
    }
    let (len, empty, name, _): (usize, bool, IVec, u32) =
        (tree.len(), tree.is_empty(), tree.name(), tree.checksum()?);
    assert_eq!((len, empty), (1, false));
    assert_eq!(name, "__sled__default");
    let cleared: () = tree.clear()?;
    assert_eq!((cleared, tree.len()), ((), 0));
    Ok(())
}

#[test]
fn flushes_block_or_are_awaited() {
    fn future<F: Future<Output = sled::Result<usize>> + Send>(future: F) -> F {
        future
    }
    let db = fresh();
    db.insert("k", "v").unwrap();
    let bytes: usize = db.flush().unwrap();
    assert!(bytes > 0);
    assert_eq!(block_on(future(db.flush_async())), Ok(0));
}

#[test]
fn byte_strings_are_slices_and_keys_of_maps() {
    let mut bytes: IVec = IVec::from(vec![1, 2, 3]);
    bytes[0] = 7;
    bytes.as_mut()[1] = 8;
    let part: IVec = bytes.subslice(1, 2);
    let (copy, collected): (Vec<u8>, IVec) = (bytes.to_vec(), (0_u8..3).collect());
    assert_eq!((part, copy, collected), ([8_u8, 3][..].into(), vec![7, 8, 3], vec![0, 1, 2].into()));
    let array: [u8; 3] = bytes.as_ref().try_into().unwrap();
    assert!(bytes == array && bytes == &array && bytes == vec![7, 8, 3] && *bytes == array[..]);

    let text = IVec::from("x");
    assert!(text == "x" && text == b"x" && &text == b"x" && text == *vec![b'x'] && [&text] == [b"x"]);
    assert!(text < IVec::from("z"));
    assert_eq!((std::str::from_utf8(&text), &*String::from_utf8_lossy(&text)), (Ok("x"), "x"));
    let hashed: HashMap<IVec, u8> = HashMap::from([(text.clone(), 1)]);
    let sorted: BTreeMap<IVec, u8> = BTreeMap::from([(text, 1)]);
    assert_eq!((hashed.get(&b"x"[..]), sorted.get(&b"x"[..])), (Some(&1), Some(&1)));
}
