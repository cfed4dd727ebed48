//! Leaf images against a `BTreeMap`, against fixed bytes, and against damage.

use super::*;
use std::collections::BTreeMap;

type Model = BTreeMap<Vec<u8>, (bool, Vec<u8>)>;

/// A small generator, so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn bytes(&mut self, longest: u64) -> Vec<u8> {
        // Few distinct bytes, so that keys share prefixes and 0xFF tails turn up.
        (0..self.below(longest + 1)).map(|_| [0, 1, 0xFE, 0xFF][self.below(4) as usize]).collect()
    }
}

fn value((big, bytes): &(bool, Vec<u8>)) -> Value<'_> {
    if *big { Value::Big(bytes) } else { Value::Inline(bytes) }
}

fn build(model: &Model, low: &[u8], high: Option<&[u8]>) -> Vec<u8> {
    let bytes = model.iter().map(|(k, (_, v))| k.len() + v.len()).sum();
    let mut builder = LeafBuilder::new(low, high, model.len(), bytes);
    for (k, v) in model {
        builder.push(b"", k, fingerprint(k) as u8, value(v));
    }
    builder.finish()
}

#[test]
fn image_has_the_documented_bytes() {
    let mut builder = LeafBuilder::new(b"ab", Some(b"ad"), 2, 24);
    builder.push(b"", b"abc", fingerprint(b"abc") as u8, Value::Inline(b"xy"));
    builder.push(b"", b"ac", fingerprint(b"ac") as u8, Value::Big(b"addr____length__"));
    let image = builder.finish();
    let mut expected = vec![2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 75, 0, 0, 0];
    expected.extend_from_slice(&[0, 0, 0, 0, 0, 0, b'd', b'a']);
    expected.extend_from_slice(&[fingerprint(b"abc") as u8, fingerprint(b"ac") as u8]);
    expected.extend_from_slice(&[42, 0, 0, 0, 50, 0, 0, 0]);
    expected.extend_from_slice(&[2, 0, 2, 0, b'b', b'c', b'x', b'y']);
    expected.extend_from_slice(b"\x01\0\x10\x40caddr____length__");
    expected.extend_from_slice(b"abad");
    assert_eq!(image, expected);
}

/// A point read of an image relies on them, so they are part of the format. The numbers were computed elsewhere.
#[test]
fn fingerprints_are_the_documented_ones() {
    for (key, expected) in [
        (&b""[..], 0),
        (b"a", 0x95DA),
        (b"a\0", 0x23AF),
        (b"abc", 0xC375),
        (b"12345678", 0x34AF),
        (b"123456789abcdefghijk", 0x9336),
        (b"35649", 0xFFFE),
    ] {
        assert_eq!(fingerprint(key), expected, "{key:?}");
    }
}

#[test]
fn random_leaves_match_a_btreemap() {
    let mut random = Random(0x1234_5678_9ABC_DEF1);
    for _ in 0..if cfg!(miri) { 10 } else { 3_000 } {
        let low = random.bytes(4);
        let high = Some(random.bytes(6)).filter(|high| *high > low);
        let inside = |k: &Vec<u8>| *k >= low && high.as_ref().is_none_or(|high| k < high);
        let mut model = Model::new();
        for _ in 0..random.below(60) {
            let key = [&low[..], &random.bytes(5)].concat();
            let big = random.below(4) == 0;
            let value = if big { vec![7; BigRef::LEN] } else { random.bytes(9) };
            model.insert(key, (big, value));
        }
        model.retain(|k, _| inside(k));
        let image = build(&model, &low, high.as_deref());
        let leaf = Leaf::validate(&image).expect("what was built is well formed");
        assert_eq!((leaf.len(), leaf.low(), leaf.high()), (model.len(), &low[..], high.as_deref()));
        for probe in model.keys().cloned().chain((0..40).map(|_| [&low[..], &random.bytes(5)].concat())) {
            let index = model.keys().filter(|k| **k < probe).count();
            assert_eq!(leaf.lower_bound(&probe), index);
            assert_eq!(leaf.covers(&probe), inside(&probe));
            let past = high.as_ref().is_some_and(|high| probe >= *high);
            assert_eq!(probe >= low && leaf.is_past(&probe), past);
            if inside(&probe) {
                assert_eq!(leaf.find(&probe, fingerprint(&probe)), model.get(&probe).map(value));
            }
        }
    }
}

#[test]
fn separators_are_shortest_and_between() {
    assert_eq!(separator(b"abc", b"abd"), b"abd");
    assert_eq!(separator(b"abc", b"b000"), b"b");
    assert_eq!(separator(b"", b"xyz"), b"x");
    assert_eq!(separator(b"ab", b"ab\0\0"), b"ab\0");
}

#[test]
fn long_keys_and_longest_values_fit() {
    let long = vec![0xFF; 70_000];
    let longest = vec![3; MAX_INLINE];
    let mut builder = LeafBuilder::new(b"", None, 2, 0);
    builder.push(b"", &long[..65_535], fingerprint(&long[..65_535]) as u8, Value::Inline(b""));
    builder.push(b"", &long, fingerprint(&long) as u8, Value::Inline(&longest));
    let image = builder.finish();
    let leaf = Leaf::validate(&image).expect("well formed");
    assert_eq!(leaf.find(&long[..65_535], fingerprint(&long[..65_535])), Some(Value::Inline(b"")));
    assert_eq!(leaf.find(&long, fingerprint(&long)), Some(Value::Inline(&longest)));
}

/// Whatever the bytes, validating ends without a panic, and what passes can be read without one.
#[test]
fn damaged_images_never_panic() {
    let model: Model = (0..20_u8).map(|i| (vec![5, i], (i % 3 == 0, vec![i; BigRef::LEN]))).collect();
    let image = build(&model, &[5], Some(&[5, 200]));
    let mut refused = 0;
    let step = if cfg!(miri) { 29 } else { 1 };
    for at in (0..image.len()).step_by(step) {
        for flip in [1, 0x80, 0xFF] {
            let mut damaged = image.clone();
            damaged[at] ^= flip;
            match Leaf::validate(&damaged) {
                Err(_) => refused += 1,
                Ok(leaf) => {
                    for i in 0..leaf.len() {
                        let (suffix, _) = leaf.record(i);
                        let key = [leaf.prefix(), suffix].concat();
                        assert_eq!(leaf.lower_bound(&key), i);
                        let _ = leaf.find(&key, fingerprint(&key));
                    }
                }
            }
        }
        assert!(Leaf::validate(&image[..at]).is_err(), "cut at {at}");
    }
    assert!(refused > image.len() / step / 2, "only {refused} of {} damages were seen", 3 * image.len());
}

/// Runs of records are copied as they are, so there is nothing else in between.
#[test]
fn gaps_between_records_are_refused() {
    let model: Model =
        [(b"a".to_vec(), (false, b"1".to_vec())), (b"b".to_vec(), (false, b"2".to_vec()))].into();
    let image = build(&model, b"", Some(b"c"));
    let leaf = Leaf::validate(&image).expect("well-formed");
    let (second, end) = (leaf.starts().get(1), leaf.starts().get(2));
    for gap in [second, end] {
        let mut wide = image.clone();
        wide.insert(gap, 0);
        let total = u32::try_from(wide.len()).expect("small");
        wide[20..24].copy_from_slice(&total.to_le_bytes());
        if gap == second {
            let at = HEADER + leaf.len() + 4;
            wide[at..at + 4].copy_from_slice(&u32::try_from(second + 1).expect("small").to_le_bytes());
        }
        assert!(Leaf::validate(&wide).is_err(), "a gap at {gap}");
    }
}

#[test]
fn a_search_finds_what_a_sorted_list_has() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for _ in 0..if cfg!(miri) { 3 } else { 300 } {
        let model: Model = (0..random.below(40)).map(|_| (random.bytes(14), (false, vec![1]))).collect();
        let image = build(&model, b"", None);
        let keys: Vec<&Vec<u8>> = model.keys().collect();
        for _ in 0..40 {
            let key = random.bytes(14);
            assert_eq!(Leaf::new(&image).search(&key), keys.binary_search(&&key), "{key:?} in {keys:?}");
        }
    }
}
