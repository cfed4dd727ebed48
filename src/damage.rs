//! `Damage`: what is wrong in a file, where, and whose keys that concerns.

use crate::ivec::IVec;
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// A damaged place in a file: of an [`Error::Corruption`](crate::Error::Corruption), by
/// [`Error::damage`](crate::Error::damage), or of a [`Verification`](crate::Verification).
///
/// # Examples
/// ```
/// fn explain(error: &sled::Error) -> String {
///     match error.damage() {
///         Some(damage) => format!("{damage}; every other key can be read"),
///         None => error.to_string(),
///     }
/// }
/// # let error = sled::Error::Unsupported("this".into());
/// # assert_eq!(explain(&error), "Unsupported: this");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Damage {
    /// What is wrong, in words.
    pub what: String,
    /// The file; `None`: the database is in memory.
    pub file: Option<PathBuf>,
    /// Where in the file, in bytes from its start.
    pub offset: u64,
    /// How many bytes from there on cannot be relied on; 0: not known.
    pub len: u64,
    /// The name of the tree whose keys are concerned; `None`: not known, or all.
    pub tree: Option<IVec>,
    /// The keys of that tree which are concerned: from the first up to, but without, the second; `None` there: up to
    /// the last. `None`: not known, or all.
    pub keys: Option<(IVec, Option<IVec>)>,
}

/// Bytes of a key or name as text, shortened when there are many.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 64;
        let shown = &self.0[..self.0.len().min(MOST)];
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if shown.len() < self.0.len() { write!(f, " ({} bytes)", self.0.len()) } else { Ok(()) }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.what)?;
        if self.len > 0 {
            write!(f, "{} bytes ", self.len)?;
        }
        write!(f, "at offset {} of ", self.offset)?;
        match &self.file {
            Some(file) => write!(f, "{}", file.display())?,
            None => f.write_str("the file in memory")?,
        }
        if let Some(tree) = &self.tree {
            write!(f, "; tree {}", Shown(tree))?;
        }
        match &self.keys {
            Some((low, Some(high))) => write!(f, ", keys from {} to before {}", Shown(low), Shown(high)),
            Some((low, None)) => write!(f, ", keys from {} to the last", Shown(low)),
            None => Ok(()),
        }
    }
}

/// How many different damages are told apart in errors.
const MOST: usize = 1 << 16;

/// What was kept.
static KEPT: Mutex<BTreeSet<&'static Damage>> = Mutex::new(BTreeSet::new());

impl Damage {
    /// Says which keys of which tree it concerns, unless that is known already.
    pub(crate) fn of_keys(self, tree: &[u8], low: &[u8], high: Option<&[u8]>) -> Damage {
        if self.tree.is_some() {
            return self;
        }
        Damage { tree: Some(tree.into()), keys: Some((low.into(), high.map(IVec::from))), ..self }
    }

    /// Whether it was kept already.
    pub(crate) fn is_known(&self) -> bool {
        KEPT.lock().unwrap_or_else(PoisonError::into_inner).contains(self)
    }

    /// The damage for as long as the process lives, so that a small `Copy` type can refer to it; `None`: there were
    /// very many already.
    pub(crate) fn keep(self) -> Option<&'static Damage> {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = kept.get(&self) {
            return Some(same);
        }
        if kept.len() >= MOST {
            return None;
        }
        let this: &'static Damage = Box::leak(Box::new(self));
        kept.insert(this);
        Some(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_says_where_and_whose() {
        let mut damage = Damage {
            what: "damaged image".into(),
            file: None,
            offset: 8256,
            len: 128,
            tree: None,
            keys: None,
        };
        assert_eq!(damage.to_string(), "damaged image: 128 bytes at offset 8256 of the file in memory");
        damage.file = Some("x/db".into());
        damage.tree = Some(IVec::from("users"));
        damage.keys = Some((IVec::from("a"), Some(IVec::from(&[b'\xFF'; 100][..]))));
        let text = damage.to_string();
        let start = "damaged image: 128 bytes at offset 8256 of x/db; tree \"users\", keys from \"a\" to before \"\\xff";
        assert!(text.starts_with(start) && text.ends_with("(100 bytes)"), "{text}");
        damage.keys = Some((IVec::from("a"), None));
        assert!(damage.to_string().ends_with("keys from \"a\" to the last"));
        assert!(!damage.is_known());
        let kept = damage.clone().keep().expect("few so far");
        assert!(damage.is_known());
        assert!(std::ptr::eq(kept, damage.keep().expect("the same")));
    }
}
