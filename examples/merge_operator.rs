//! Merge operators: counters and sets that many threads change without reading them first.

use std::collections::BTreeSet;
use std::thread;

/// Adds the operand to a counter.
fn add(_key: &[u8], old: Option<&[u8]>, by: &[u8]) -> Option<Vec<u8>> {
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("a counter has eight bytes"));
    Some((old.map_or(0, number) + number(by)).to_be_bytes().to_vec())
}

/// `+word` puts a word into a set of words, `-word` takes it out; an empty set is no value.
fn change_set(_key: &[u8], old: Option<&[u8]>, change: &[u8]) -> Option<Vec<u8>> {
    let mut words: BTreeSet<&[u8]> =
        old.unwrap_or_default().split(|byte| *byte == b' ').filter(|word| !word.is_empty()).collect();
    match change.split_first()? {
        (b'+', word) => words.insert(word),
        (_, word) => words.remove(word),
    };
    let words: Vec<&[u8]> = words.into_iter().collect();
    Some(words.join(&b' ')).filter(|set| !set.is_empty())
}

pub fn main() -> sled::transaction::TransactionResult<()> {
    let db = sled::Config::new().temporary(true).open()?;
    let (hits, tags) = (db.open_tree("hits")?, db.open_tree("tags")?);
    // To be set after each opening: what is stored are results only.
    hits.set_merge_operator(add);
    tags.set_merge_operator(change_set);

    let threads: Vec<_> = (0..4)
        .map(|_| {
            let hits = hits.clone();
            thread::spawn(move || {
                (0..1000).try_for_each(|_| hits.merge("/", 1_u64.to_be_bytes()).map(|_| ()))
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic")?;
    }
    let count = hits.get("/")?.expect("it was hit");
    assert_eq!(count, 4000_u64.to_be_bytes());

    tags.merge("photo", "+sea")?;
    tags.merge("photo", "+beach")?;
    assert_eq!(tags.merge("photo", "+sea")?, Some("beach sea".into()));
    tags.merge("photo", "-sea")?;
    assert_eq!(tags.merge("photo", "-beach")?, None);
    assert!(!tags.contains_key("photo")?);

    // In a transaction, a merge reads nothing: transactions that merge into the same counter do not conflict.
    hits.transaction(|hits| {
        hits.merge("/", 1_u64.to_be_bytes())?;
        hits.merge("/about", 1_u64.to_be_bytes())?;
        Ok(())
    })?;
    assert_eq!(hits.get("/")?, Some((&4001_u64.to_be_bytes()).into()));

    println!("4 threads made {} hits", u64::from_be_bytes(count.as_ref().try_into().expect("eight bytes")));
    Ok(())
}
