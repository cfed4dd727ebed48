//! Excerpts: of a leaf that is on disk, the records that somebody asked for.
//!
//! # How it works
//!
//! Where memory is short, a read or write of one key does not bring the leaf into memory. An overlay takes its place, whose
//! base has a copy of the one record, or says that there is none; more are added as they are asked for. Records that are
//! used often seldom lie side by side, so memory holds several times as many of them without their neighbours. Who goes
//! through a range needs the whole leaf, as with every overlay. It is also brought in when a third of it was asked for, when
//! neighbours were, as by somebody who goes through the keys or adds them one by one, and when it is to be split, by who
//! writes to it.
//!
//! # Invariants
//!
//! - E1: the base of an overlay whose `first_lsn` is `MAX` has nothing but copies out of its image. So the overlay can be
//!   dropped as long as it has no deltas, and its base can be replaced by the image.
//!
//! # References
//!
//! Record caching: D. Lomet, "Cost/Performance in Modern Data Stores: How Data Caching Systems Succeed", DaMoN 2018.

use super::consolidate::{Fold, KEPT};
use super::descent::At;
use super::leaf::{Leaf, LeafBuilder, Value, fingerprint};
use super::{BwTree, Forest, add};
use crate::error::Result;
use crossbeam_epoch::Guard;

/// The part of a leaf's bytes from which on it is brought in as a whole: one in so many.
const WHOLE: usize = 3;

/// What a record is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// To be read.
    Reading,
    /// To be changed, after which the leaf may have to be split.
    Writing,
}

/// The base of an overlay with what `own` has and what an image, of the same range, says about `key`. `None`: it had better
/// be brought in as a whole, as one with more than `most` bytes of records.
fn with_record(own: Option<Leaf<'_>>, image: Leaf<'_>, key: &[u8], most: usize) -> Option<Vec<u8>> {
    if image.payload() > most {
        // It is to be split, which only somebody sees who has all of it.
        return None;
    }
    let mark = fingerprint(key);
    let value = image.find(key, mark).unwrap_or(Value::Gone);
    let bytes = own.map_or(0, Leaf::payload) + key.len() + value.bytes().len();
    if bytes * WHOLE > image.payload() || own.is_some_and(|own| has_neighbour(own, image, key)) {
        return None;
    }
    let records = own.map_or(0, Leaf::len);
    let mut builder = LeafBuilder::new(image.low(), image.high(), records + 1, bytes);
    let at = own.map_or(0, |own| own.lower_bound(key));
    own.iter().for_each(|own| builder.push_run(*own, 0..at));
    builder.push(&[], key, mark as u8, value);
    own.iter().for_each(|own| builder.push_run(*own, at..records));
    Some(builder.finish())
}

/// Whether `own` has the record right beside `key` in the image; of a key that is new there, two with nothing of the image in
/// between: keys are gone through, or added one behind the other.
fn has_neighbour(own: Leaf<'_>, image: Leaf<'_>, key: &[u8]) -> bool {
    let found = image.search(key);
    let (first, behind, enough) = match found {
        Ok(i) => (i, i + 1, 1),
        Err(i) => (i, i, 2),
    };
    let whole = |n: usize| [own.prefix(), own.record(n).0].concat();
    let follows = |n: usize| image.search(&whole(n)).map_or_else(|j| j, |j| j + 1) == first;
    let precedes = |n: usize| image.lower_bound(&whole(n)) == behind;
    let at = own.lower_bound(key);
    at >= enough && follows(at - enough) || at + enough - 1 < own.len() && precedes(at + enough - 1)
}

impl Forest {
    /// Whether leaves of a tree that are on disk are brought in record by record.
    fn has_excerpts(&self, tree: &BwTree) -> bool {
        self.cache.is_tight() && !tree.is_big()
    }

    /// How a leaf is folded that somebody writes single records of: what is on disk stays there.
    pub(super) fn fold(&self, tree: &BwTree) -> Fold {
        if self.has_excerpts(tree) { Fold::Blind } else { Fold::Whole }
    }

    /// What is brought in of a leaf with that image for one key, besides what `own` has of it; `None`: all of it.
    pub(super) fn excerpt(
        &self,
        tree: &BwTree,
        own: Option<Leaf<'_>>,
        image: Leaf<'_>,
        (key, what_for): (&[u8], For),
    ) -> Option<Vec<u8>> {
        let most = match what_for {
            For::Reading => usize::MAX,
            For::Writing => self.options.leaf,
        };
        let possible = self.has_excerpts(tree) && image.covers(key);
        possible.then(|| with_record(own, image, key, most)).flatten()
    }

    /// Adds to an overlay what its image says about a key, which it has not, or brings the whole leaf in. If somebody else was
    /// faster it does nothing.
    ///
    /// # Errors
    /// What reading the image failed with.
    pub(super) fn take_in(
        &self,
        tree: &BwTree,
        at: At<'_>,
        record: (&[u8], For),
        guard: &Guard,
    ) -> Result<()> {
        let image = self.image_below(tree, at)?;
        let base = self.excerpt(tree, Some(at.leaf()), Leaf::new(&image), record);
        let Some(base) = base.filter(|_| at.frame.used().0 <= KEPT) else {
            return self.consolidate_over(tree, at, Fold::Whole, Some(image), guard);
        };
        let used = at.frame.freeze();
        if self.cache.rebase((at.pid, at.frame), used, (&base, true), guard) {
            add(&self.counters.excerpted);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(keys: std::ops::Range<u32>) -> Vec<u8> {
        let mut builder = LeafBuilder::new(b"k", Some(b"l"), keys.len(), 1000);
        for key in keys {
            let key = format!("k{key:03}");
            builder.push(&[], key.as_bytes(), fingerprint(key.as_bytes()) as u8, Value::Inline(&[7; 50]));
        }
        builder.finish()
    }

    #[test]
    fn an_excerpt_has_what_was_asked_for_and_becomes_whole_in_time() {
        let image = leaf(0..30);
        let image = Leaf::new(&image);
        let mut own: Option<Vec<u8>> = None;
        let mut asked = Vec::new();
        let find = |own: &[u8], key: &[u8]| {
            Leaf::new(own).find(key, fingerprint(key)).map(|value| value.bytes().to_vec())
        };
        for key in [&b"k020"[..], b"k007", b"k0075", b"k029", b"k000", b"k"] {
            let base = with_record(own.as_deref().map(Leaf::new), image, key, 8192).expect("a small part");
            assert_eq!((Leaf::new(&base).low(), Leaf::new(&base).high()), (&b"k"[..], Some(&b"l"[..])));
            asked.push(key);
            for key in &asked {
                let there = key.len() == 4;
                assert_eq!(find(&base, key), Some(if there { vec![7; 50] } else { Vec::new() }), "{key:?}");
            }
            assert_eq!(find(&base, b"k001"), None, "not asked for");
            own = Some(base);
        }
        let with = |key: &[u8]| with_record(own.as_deref().map(Leaf::new), image, key, 8192);
        assert!(with(b"k021").is_none() && with(b"k006").is_none(), "a neighbour was asked for");
        assert!(with(b"k0076").is_none() && with(b"k0074").is_some(), "two in front of it, and one");
        let mut more = own.clone().expect("was built");
        let mut more_keys = [9, 11, 13, 15, 17, 23, 25, 27].iter().map(|key| format!("k{key:03}"));
        assert!(
            more_keys.any(|key| match with_record(Some(Leaf::new(&more)), image, key.as_bytes(), 8192) {
                Some(base) => {
                    more = base;
                    false
                }
                None => true,
            }),
            "a third was asked for"
        );
    }

    #[test]
    fn a_record_that_is_much_of_its_leaf_brings_it_in() {
        let image = leaf(0..2);
        assert!(with_record(None, Leaf::new(&image), b"k001", 8192).is_none());
    }

    #[test]
    fn a_leaf_that_is_to_be_split_is_brought_in() {
        let image = leaf(0..30);
        let payload = Leaf::new(&image).payload();
        assert!(with_record(None, Leaf::new(&image), b"k001", payload).is_some());
        assert!(with_record(None, Leaf::new(&image), b"k001", payload - 1).is_none());
    }
}
