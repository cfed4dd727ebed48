//! `IVec`, errors and their texts.

use crate::assert_panics;
use sled::{CompareAndSwapError, Error, IVec, Mode};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher as _};
use std::io;

#[test]
fn bytes_print_compare_and_hash_like_slices() {
    fn hash<T: Hash + ?Sized>(value: &T) -> u64 {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        hasher.finish()
    }
    // Lengths on both sides of any limit for bytes kept inline.
    for len in [0, 1, 8, 15, 16, 22, 23, 24, 31, 32, 33, 64, 1_000] {
        let bytes: Vec<u8> = (0..len).map(|n: u32| n.to_le_bytes()[0]).collect();
        let value = IVec::from(&bytes[..]);
        assert_eq!(format!("{value:?} {value:#?} {value:x?}"), format!("{bytes:?} {bytes:#?} {bytes:x?}"));
        assert_eq!(hash(&value), hash(&bytes[..]));
        assert_eq!((value.len(), value.is_empty(), &value[..]), (bytes.len(), bytes.is_empty(), &bytes[..]));
        assert_eq!((&value, &value), (&value.clone(), &IVec::from(bytes.clone())));
        assert!(value == bytes && value == bytes[..]);
        let bigger = IVec::from([&bytes[..], &[0]].concat());
        assert!(value < bigger && value != bigger);
    }
    let text = IVec::from("abc");
    assert!(text == "abc" && text == *b"abc" && text == vec![97, 98, 99] && text != "ab" && text != b"abcd");
    assert!([&text] == [b"abc"]);
    assert_eq!(IVec::default(), []);
    let hashed: HashMap<IVec, u8> = HashMap::from([(IVec::from("k"), 1)]);
    let ordered: BTreeMap<IVec, u8> = BTreeMap::from([(IVec::from("k"), 1)]);
    assert_eq!((hashed.get(&b"k"[..]), ordered.get(&b"k"[..])), (Some(&1), Some(&1)));
}

#[test]
fn bytes_are_made_from_what_holds_bytes() {
    let all = [
        IVec::from("abc"),
        IVec::from(&b"abc"[..]),
        IVec::from(b"abc"),
        IVec::from(vec![97, 98, 99]),
        IVec::from(vec![97, 98, 99].into_boxed_slice()),
        IVec::from(&IVec::from("abc")),
        (97..100).collect(),
    ];
    assert!(all.iter().all(|value| value == b"abc"));
    assert_eq!(IVec::from(&[9; 32]).len(), 32);
    assert_eq!(IVec::from(&[0; 0]).len(), 0);
}

#[test]
fn a_subslice_shares_and_checks_its_range() {
    for len in [10_usize, 100, 10_000] {
        let bytes: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0]).collect();
        let value = IVec::from(&bytes[..]);
        assert_eq!(value.subslice(2, 5), bytes[2..7]);
        assert_eq!(value.subslice(2, 5).subslice(1, 3), bytes[3..6]);
        assert_eq!(value.subslice(0, len), value);
        assert_eq!(value.subslice(len, 0), []);
        assert_panics("past the end", || drop(value.subslice(len + 1, 0)));
        assert_panics("too long", || drop(value.subslice(1, len)));
        assert_panics("an overflow", || drop(value.subslice(1, usize::MAX)));
    }
}

#[test]
fn writing_to_bytes_leaves_clones_alone() {
    for len in [3_usize, 30, 3_000] {
        let original = IVec::from(vec![1; len]);
        let (mut clone, mut part) = (original.clone(), original.subslice(1, len - 1));
        clone[0] = 2;
        part.as_mut()[0] = 3;
        assert_eq!(original, vec![1; len]);
        assert_eq!((clone[0], &clone[1..]), (2, &vec![1; len - 1][..]));
        assert_eq!((part[0], part.len()), (3, len - 1));
        let mut alone = IVec::from(vec![1; len]);
        alone[len - 1] = 9;
        assert_eq!(alone[len - 1], 9);
    }
}

fn errors() -> [(Error, io::ErrorKind); 5] {
    [
        (Error::CollectionNotFound("ab".into()), io::ErrorKind::NotFound),
        (Error::Unsupported("that".into()), io::ErrorKind::InvalidInput),
        (Error::ReportableBug("this".into()), io::ErrorKind::Other),
        (Error::Io(io::Error::new(io::ErrorKind::StorageFull, "no room")), io::ErrorKind::StorageFull),
        (Error::Corruption { at: None, bt: () }, io::ErrorKind::InvalidData),
    ]
}

#[test]
fn errors_say_what_happened() {
    let texts = errors().map(|(error, _)| error.to_string());
    assert!(texts[0].contains("Collection") && texts[0].contains("[97, 98]"), "{}", texts[0]);
    assert!(texts[0].contains("does not exist"), "{}", texts[0]);
    assert_eq!(texts[1], "Unsupported: that");
    assert!(texts[2].contains("this") && texts[2].to_lowercase().contains("bug"), "{}", texts[2]);
    assert_eq!(texts[3], "IO error: no room");
    assert!(texts[4].to_lowercase().contains("corrupt") && texts[4].contains("None"), "{}", texts[4]);
    let (one, other) = (IVec::from("secret"), IVec::from("hidden"));
    let conflict = CompareAndSwapError { current: Some(one), proposed: Some(other) }.to_string();
    let words = conflict.to_lowercase().replace('-', " ");
    assert!(words.contains("compare and swap") && words.contains("conflict"), "{conflict}");
    assert!(!conflict.contains("secret") && !conflict.contains("115"), "values are not shown: {conflict}");
}

#[test]
fn errors_become_io_errors_of_a_fitting_kind() {
    for (error, kind) in errors() {
        let text = error.to_string();
        assert!(std::error::Error::source(&error).is_none(), "{text}");
        let converted = io::Error::from(error);
        assert_eq!(converted.kind(), kind, "{text}");
        assert!(text.ends_with(&converted.to_string()), "{text}: {converted}");
    }
    let back = Error::from(io::Error::new(io::ErrorKind::NotFound, "x"));
    assert!(matches!(back, Error::Io(e) if e.kind() == io::ErrorKind::NotFound));
    let swap: sled::Result<Result<(), CompareAndSwapError>> = Error::Unsupported("s".into()).into();
    assert_eq!(swap, Err(Error::Unsupported("s".into())));
}

#[test]
fn errors_are_equal_to_their_clones() {
    for (error, kind) in errors() {
        let clone = error.clone();
        if let Error::Io(io) = &clone {
            assert_eq!(io.kind(), kind);
        }
        assert_eq!(error, clone);
    }
    let [(a, _), (b, _), ..] = errors();
    assert_ne!(a, b);
    assert_ne!(a, Error::CollectionNotFound("other".into()));
}

#[test]
fn enumerations_have_no_other_variants() {
    // Without a wildcard: a new variant would break the same matches of users.
    let name = |error: Error| match error {
        Error::CollectionNotFound(_) => "collection",
        Error::Unsupported(_) => "unsupported",
        Error::ReportableBug(_) => "bug",
        Error::Io(_) => "io",
        Error::Corruption { at: _, bt: () } => "corruption",
        #[cfg(feature = "failpoints")]
        Error::FailPoint => "fail point",
    };
    assert_eq!(
        errors().map(|(error, _)| name(error)),
        ["collection", "unsupported", "bug", "io", "corruption"]
    );
    let name = |mode: Mode| match mode {
        Mode::LowSpace => "space",
        Mode::HighThroughput => "throughput",
    };
    assert_eq!([Mode::LowSpace, Mode::HighThroughput].map(name), ["space", "throughput"]);
}
