//! Folds against a map.

use super::*;
use crate::tree::leaf::{Value, fingerprint};
use proptest::prelude::*;
use std::collections::BTreeMap;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn image(model: &Model, low: &[u8], high: Option<&[u8]>) -> Vec<u8> {
    let mut builder = LeafBuilder::new(low, high, model.len(), 0);
    for (key, value) in model {
        builder.push(&[], key, fingerprint(key) as u8, Value::Inline(value));
    }
    builder.finish()
}

fn entry<'a>(key: &'a [u8], value: &'a [u8]) -> Entry<'a> {
    Entry { prefix: &[], rest: key, fingerprint: fingerprint(key) as u8, value: Value::Inline(value) }
}

/// Keys that start with `low`, below `high`.
fn some(low: &'static [u8]) -> impl Strategy<Value = Model> {
    let key = prop::collection::vec(0_u8..4, 1..6).prop_map(move |tail| [low, &tail].concat());
    prop::collection::btree_map(key, prop::collection::vec(any::<u8>(), 0..40), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 500 }))]

    /// Whatever is copied in runs, and cut in between, is what records one by one would be.
    #[test]
    fn an_image_of_stretches_is_that_of_their_records(
        model in some(b"pre"),
        picks in prop::collection::vec(any::<bool>(), 40),
        cut in any::<prop::sample::Index>(),
        shared in 0..=3_usize,
    ) {
        let (low, high) = (&b"pre"[..], &b"prf"[..]);
        // The records of an image with a prefix of two bytes; some of them come as changes.
        let whole = image(&model, low, Some(high));
        let leaf = Leaf::validate(&whole).expect("well formed");
        prop_assert_eq!(leaf.prefix(), b"pr");
        let mut records = Records::default();
        let mut from = 0;
        for (i, (key, value)) in model.iter().enumerate() {
            if picks[i] {
                records.add(Stretch::Run(leaf, from..i));
                records.add(Stretch::One(entry(key, value)));
                from = i + 1;
            }
        }
        records.add(Stretch::Run(leaf, from..leaf.len()));
        prop_assert_eq!(records.len(), model.len());
        let listed: Vec<Vec<u8>> = records.iter().map(|entry| entry.key()).collect();
        prop_assert_eq!(listed, model.keys().cloned().collect::<Vec<_>>());
        let sizes: Vec<usize> = records.sizes(2).collect();
        let expected: Vec<usize> = model.iter().map(|(k, v)| RECORD + k.len() - 2 + v.len()).collect();
        prop_assert_eq!(records.size(2), expected.iter().sum::<usize>());
        prop_assert_eq!(sizes, expected);

        // Into leaves with a longer, the same, and a shorter prefix.
        let fences: [(&[u8], Option<&[u8]>); 4] =
            [(low, Some(b"prea")), (low, Some(high)), (b"p", Some(b"q")), (b"", None)];
        let (low, high) = fences[shared];
        prop_assert_eq!(&records.build(low, high), &image(&model, low, high));

        let at = cut.index(model.len() + 1);
        for range in [0..at, at..model.len()] {
            let part: Model = model.clone().into_iter().skip(range.start).take(range.len()).collect();
            prop_assert_eq!(records.slice(range).build(low, high), image(&part, low, high));
        }
        let mut joined = records.slice(0..at);
        joined.append(records.slice(at..model.len()));
        prop_assert_eq!(joined.build(low, high), image(&model, low, high));
    }
}

#[test]
fn only_what_comes_behind_a_whole_image_is_an_append() {
    let model: Model = [(b"a".to_vec(), vec![]), (b"b".to_vec(), vec![])].into();
    let leaf = Leaf::new(Vec::leak(image(&model, b"", None)));
    let of = |stretches: &[Stretch<'static>]| {
        let mut records = Records::default();
        stretches.iter().for_each(|stretch| records.add(stretch.clone()));
        records.only_append_to(leaf)
    };
    let (all, one) = (Stretch::Run(leaf, 0..2), Stretch::One(entry(b"c", b"")));
    assert!(of(&[all.clone(), one.clone(), one.clone()]));
    let alone = std::slice::from_ref;
    assert!(!of(alone(&all)) && !of(alone(&one)) && !of(&[one.clone(), all.clone()]));
    assert!(!of(&[Stretch::Run(leaf, 0..1), one.clone(), Stretch::Run(leaf, 1..2)]));
    assert!(!of(&[Stretch::Run(leaf, 0..1), one]));
}
