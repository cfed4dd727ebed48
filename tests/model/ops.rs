//! The alphabet of the programs, and how proptest writes them.

use crate::common::{Key, Value};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use sled::testing::CrashMode;
use std::ops::Bound;

/// One step of a program. Trees are numbers: places in `state::NAMES`.
#[derive(Clone, Debug)]
pub enum Op {
    /// Something with one key of one tree.
    Point(usize, Key, Point),
    /// An iterator, its two ends moved as the bits of the number say.
    Walk(usize, Over, u64),
    /// Something with a whole tree.
    Whole(usize, Whole),
    /// Something with the database.
    Global(Global),
    /// The end of this handle, and a new one.
    Ending(Ending),
}

/// What can be done with one key.
#[derive(Clone, Debug)]
pub enum Point {
    Insert(Value),
    Get,
    Contains,
    Remove,
    Cas(Guess, Option<Value>),
    UpdateAndFetch(Edit),
    FetchAndUpdate(Edit),
    Merge(Value),
    Below,
    Above,
}

/// The old value that a compare-and-swap expects.
#[derive(Clone, Copy, Debug)]
pub enum Guess {
    Right,
    Absent,
    Wrong,
}

/// What an update function does.
#[derive(Clone, Copy, Debug)]
pub enum Edit {
    Append(u8),
    Set(Value),
    Delete,
    Keep,
}

/// What an iterator goes over.
#[derive(Clone, Debug)]
pub enum Over {
    All,
    Range(Bound<Key>, Bound<Key>),
    /// The first so many bytes of a key as the prefix.
    Prefix(Key, u16),
}

/// What can be done with a tree.
#[derive(Clone, Debug)]
pub enum Whole {
    First,
    Last,
    PopMin,
    PopMax,
    Len,
    IsEmpty,
    Checksum,
    Clear,
    /// Inserts so many neighbouring keys from here on, values of this length.
    Fill(u16, u16, u32),
    /// Removes so many neighbouring keys from here on.
    Thin(u16, u16),
    /// Pops so many keys, from the back if true.
    Drain(u16, bool),
    Open,
    Drop,
}

/// What can be done with the database.
#[derive(Clone, Debug)]
pub enum Global {
    TreeNames,
    Checksum,
    GenerateId,
    Flush,
    FlushAsync,
    Maintain,
    Checkpoint,
    CheckInvariants,
    DeadHandles,
}

/// How the life of a handle ends.
#[derive(Clone, Debug)]
pub enum Ending {
    /// All handles are dropped.
    Reopen,
    /// The power goes between two calls; after a flush if true.
    Crash(CrashMode, u64, bool),
    /// The power goes so many calls of the medium after something began.
    PowerCut(During, u64, CrashMode, u64),
}

/// What a power cut interrupts.
#[derive(Clone, Copy, Debug)]
pub enum During {
    Insert(Key, Value),
    Flush,
    Maintain,
    Checkpoint,
    Close,
    Recovery,
}

fn key() -> impl Strategy<Value = Key> {
    let long = prop_oneof![
        20 => 1..300_u32,
        4 => 300..5_000_u32,
        1 => Just(65_536_u32),
    ];
    prop_oneof![
        4 => Just(Key::Empty),
        8 => any::<u8>().prop_map(Key::Byte),
        60 => (0..400_u16).prop_map(Key::Short),
        40 => (0..300_u16).prop_map(Key::Text),
        20 => (0..100_u16).prop_map(Key::SharedPrefix),
        10 => (252..=255_u8, 0..40_u16).prop_map(|(b, n)| Key::TrailingFf(b, n)),
        2 => (0..300_u16).prop_map(Key::AllFf),
        6 => (0..20_u8).prop_map(Key::Zeros),
        3 => (long, 0..8_u16).prop_map(|(len, n)| Key::Long(len, n)),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let len = prop_oneof![
        500 => Just(0_u32),
        6_000 => 1..40_u32,
        3_000 => 40..200_u32,
        500 => 200..2_000_u32,
        100 => 2_000..20_000_u32,
        10 => 20_000..200_000_u32,
        1 => Just(4 << 20_u32),
    ];
    (len, 0..1_000_u32).prop_map(|(len, tag)| Value { len, tag })
}

fn bound() -> impl Strategy<Value = Bound<Key>> {
    prop_oneof![
        3 => key().prop_map(Bound::Included),
        3 => key().prop_map(Bound::Excluded),
        1 => Just(Bound::Unbounded),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => any::<u8>().prop_map(Edit::Append),
        3 => value().prop_map(Edit::Set),
        2 => Just(Edit::Delete),
        1 => Just(Edit::Keep),
    ]
}

fn point() -> impl Strategy<Value = Point> {
    let guess = prop_oneof![4 => Just(Guess::Right), 1 => Just(Guess::Absent), 1 => Just(Guess::Wrong)];
    let new = prop_oneof![4 => value().prop_map(Some), 1 => Just(None)];
    prop_oneof![
        8 => value().prop_map(Point::Insert),
        4 => Just(Point::Get),
        1 => Just(Point::Contains),
        4 => Just(Point::Remove),
        3 => (guess, new).prop_map(|(guess, new)| Point::Cas(guess, new)),
        2 => edit().prop_map(Point::UpdateAndFetch),
        2 => edit().prop_map(Point::FetchAndUpdate),
        3 => value().prop_map(Point::Merge),
        2 => Just(Point::Below),
        2 => Just(Point::Above),
    ]
}

fn over() -> impl Strategy<Value = Over> {
    prop_oneof![
        1 => Just(Over::All),
        4 => (bound(), bound()).prop_map(|(from, to)| Over::Range(from, to)),
        2 => (key(), 0..310_u16).prop_map(|(key, cut)| Over::Prefix(key, cut)),
    ]
}

/// All forwards, all backwards, or any mixture.
fn turns() -> impl Strategy<Value = u64> {
    prop_oneof![1 => Just(0), 1 => Just(u64::MAX), 2 => any::<u64>()]
}

fn whole() -> impl Strategy<Value = Whole> {
    let from = 0..1_000_u16;
    prop_oneof![
        2 => Just(Whole::First),
        2 => Just(Whole::Last),
        2 => Just(Whole::PopMin),
        2 => Just(Whole::PopMax),
        2 => Just(Whole::Len),
        1 => Just(Whole::IsEmpty),
        1 => Just(Whole::Checksum),
        1 => Just(Whole::Clear),
        10 => (from.clone(), 1..150_u16, 0..60_u32).prop_map(|(from, n, len)| Whole::Fill(from, n, len)),
        8 => (from, 1..300_u16).prop_map(|(from, n)| Whole::Thin(from, n)),
        2 => (1..200_u16, any::<bool>()).prop_map(|(n, back)| Whole::Drain(n, back)),
        1 => Just(Whole::Open),
        1 => Just(Whole::Drop),
    ]
}

fn global() -> impl Strategy<Value = Global> {
    prop_oneof![
        1 => Just(Global::TreeNames),
        1 => Just(Global::Checksum),
        3 => Just(Global::GenerateId),
        3 => Just(Global::Flush),
        1 => Just(Global::FlushAsync),
        4 => Just(Global::Maintain),
        3 => Just(Global::Checkpoint),
        2 => Just(Global::CheckInvariants),
        1 => Just(Global::DeadHandles),
    ]
}

fn crash_mode() -> impl Strategy<Value = CrashMode> {
    prop_oneof![
        Just(CrashMode::DropUnsynced),
        Just(CrashMode::KeepAll),
        Just(CrashMode::KeepPrefix),
        Just(CrashMode::RandomSubset),
        Just(CrashMode::Torn),
    ]
}

fn ending() -> impl Strategy<Value = Ending> {
    let during = prop_oneof![
        2 => (key(), value()).prop_map(|(key, value)| During::Insert(key, value)),
        2 => Just(During::Flush),
        2 => Just(During::Maintain),
        3 => Just(During::Checkpoint),
        2 => Just(During::Close),
        3 => Just(During::Recovery),
    ];
    prop_oneof![
        2 => Just(Ending::Reopen),
        3 => (crash_mode(), any::<u64>(), any::<bool>())
            .prop_map(|(mode, seed, flush)| Ending::Crash(mode, seed, flush)),
        3 => (during, 0..40_u64, crash_mode(), any::<u64>())
            .prop_map(|(during, after, mode, seed)| Ending::PowerCut(during, after, mode, seed)),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let tree = || prop_oneof![5 => Just(0_usize), 2 => Just(1), 2 => Just(2), 1 => Just(3)];
    prop_oneof![
        70 => (tree(), key(), point()).prop_map(|(tree, key, point)| Op::Point(tree, key, point)),
        8 => (tree(), over(), turns()).prop_map(|(tree, over, turns)| Op::Walk(tree, over, turns)),
        20 => (tree(), whole()).prop_map(|(tree, whole)| Op::Whole(tree, whole)),
        10 => global().prop_map(Op::Global),
        4 => ending().prop_map(Op::Ending),
    ]
}

/// A seed for the sizes, and a program of so many operations.
pub fn program(length: std::ops::Range<usize>) -> impl Strategy<Value = (u64, Vec<Op>)> {
    (any::<u64>(), vec(op(), length))
}
