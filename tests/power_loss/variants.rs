//! What a crash leaves of the writes that were not synced, as a name that can be given on the command line.
//!
//! | NAME | WHAT ARRIVES |
//! |---|---|
//! | `killed` | the process dies and the machine does not: everything is there, and still not durable |
//! | `drop`, `all` | nothing, everything |
//! | `prefix-S`, `subset-S`, `torn-S`, `stale-S` | by a [`CrashMode`] and the seed S |
//! | `keep-M` | the changes whose bits are set in M, hexadecimal |
//! | `keep-M.torn-C-A-B` | as well, but of change C only the sectors from A to before B |
//! | `only-C`, `without-C` | change C, all but change C |
//! | `....zeros`, `....stale` | of the three before: and the file has its full length |

use super::common_durability::{Random, mix};
use sled::testing::{CrashMode, Growth, Replay, SimStorage};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// What a crash leaves of the unsynced changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variant {
    /// None is lost yet.
    Killed,
    /// By a mode and a seed.
    Mode(CrashMode, u64),
    /// These changes, one of them perhaps torn.
    Keep(u64, Option<(usize, Range<usize>)>, Growth),
    /// One change.
    Only(usize, Growth),
    /// All changes but one.
    Without(usize, Growth),
}

const MODES: [(&str, CrashMode); 6] = [
    ("drop", CrashMode::DropUnsynced),
    ("all", CrashMode::KeepAll),
    ("prefix", CrashMode::KeepPrefix),
    ("subset", CrashMode::RandomSubset),
    ("torn", CrashMode::Torn),
    ("stale", CrashMode::Stale),
];

const GROWTHS: [(&str, Growth); 3] =
    [("", Growth::AsWritten), (".zeros", Growth::Zeros), (".stale", Growth::Stale)];

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let growth = match self {
            Variant::Killed => return write!(f, "killed"),
            Variant::Mode(mode, seed) => {
                let (name, _) = MODES.iter().find(|(_, other)| other == mode).expect("every mode has a name");
                return if *seed == 0 { write!(f, "{name}") } else { write!(f, "{name}-{seed}") };
            }
            Variant::Keep(mask, torn, growth) => {
                write!(f, "keep-{mask:x}")?;
                if let Some((change, sectors)) = torn {
                    write!(f, ".torn-{change}-{}-{}", sectors.start, sectors.end)?;
                }
                growth
            }
            Variant::Only(change, growth) => {
                write!(f, "only-{change}")?;
                growth
            }
            Variant::Without(change, growth) => {
                write!(f, "without-{change}")?;
                growth
            }
        };
        let (suffix, _) = GROWTHS.iter().find(|(_, other)| other == growth).expect("every growth has a name");
        write!(f, "{suffix}")
    }
}

impl FromStr for Variant {
    type Err = ();

    fn from_str(text: &str) -> Result<Variant, ()> {
        let mut numbers = text.split(['-', '.']).skip(1);
        let mut number = || numbers.next().ok_or(())?.parse::<usize>().map_err(|_| ());
        let growth = GROWTHS.iter().rev().find(|(suffix, _)| text.ends_with(suffix)).ok_or(())?.1;
        let (name, _) = text.split_once('-').unwrap_or((text, ""));
        if let Some((_, mode)) = MODES.iter().find(|(mode, _)| *mode == name) {
            let seed = if text.contains('-') { text[name.len() + 1..].parse().map_err(|_| ())? } else { 0 };
            return Ok(Variant::Mode(*mode, seed));
        }
        match name {
            "killed" => Ok(Variant::Killed),
            "only" => Ok(Variant::Only(number()?, growth)),
            "without" => Ok(Variant::Without(number()?, growth)),
            "keep" => {
                let (mask, rest) = text[5..].split_once('.').unwrap_or((&text[5..], ""));
                let mask = u64::from_str_radix(mask, 16).map_err(|_| ())?;
                let torn = rest.strip_prefix("torn-").map(|torn| {
                    let torn = torn.split('.').next().unwrap_or(torn);
                    let all: Vec<usize> = torn.split('-').filter_map(|n| n.parse().ok()).collect();
                    if let [change, from, to] = all[..] { Ok((change, from..to)) } else { Err(()) }
                });
                Ok(Variant::Keep(mask, torn.transpose()?, growth))
            }
            _ => Err(()),
        }
    }
}

impl Variant {
    /// The medium as such a crash leaves it now.
    pub fn crash(&self, replay: &Replay<'_>) -> SimStorage {
        let seed = mix(replay.unsynced().len() as u64);
        match self {
            Variant::Killed => replay.kill(),
            Variant::Mode(mode, seed) => replay.crash(*seed, *mode),
            Variant::Keep(mask, torn, growth) => replay.crash_keeping(*growth, seed, |change, sector| {
                let arrives = change < 64 && mask >> change & 1 == 1;
                arrives
                    && torn.as_ref().is_none_or(|(of, sectors)| *of != change || sectors.contains(&sector))
            }),
            Variant::Only(change, growth) => replay.crash_keeping(*growth, seed, |other, _| other == *change),
            Variant::Without(change, growth) => {
                replay.crash_keeping(*growth, seed, |other, _| other != *change)
            }
        }
    }
}

/// How much is tried at each crash point.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Up to so many unsynced changes, every subset that has the newest; what has not came at an earlier point.
    pub subsets: usize,
    /// Up to so many, every subset with one of its changes torn at each sector, from either side.
    pub tears: usize,
    /// By seeded chance.
    pub random: usize,
}

impl Effort {
    /// The variants to try at a point, none of them twice.
    pub fn variants(&self, replay: &Replay<'_>, salt: u64) -> Vec<Variant> {
        let unsynced: Vec<usize> = replay.unsynced().collect();
        let count = unsynced.len();
        let Some(newest) = count.checked_sub(1) else {
            return vec![Variant::Mode(CrashMode::DropUnsynced, 0)];
        };
        let growths = if replay.is_growing() { &GROWTHS[..] } else { &GROWTHS[..1] };
        let mut all = Vec::new();
        if count <= self.subsets {
            let subsets = (0..1_u64 << newest).map(|others| others | 1 << newest);
            for mask in subsets {
                all.extend(growths.iter().map(|(_, growth)| Variant::Keep(mask, None, *growth)));
                if count > self.tears {
                    continue;
                }
                for (change, sectors) in unsynced.iter().enumerate().filter(|(n, _)| mask >> n & 1 == 1) {
                    for cut in 1..*sectors {
                        let sides = [0..cut, cut..*sectors].into_iter();
                        all.extend(
                            sides.map(|side| Variant::Keep(mask, Some((change, side)), Growth::AsWritten)),
                        );
                    }
                }
            }
        } else {
            // The newest alone, and all but the newest but one: each change has its turn.
            all.push(Variant::Only(newest, growths[salt as usize % growths.len()].1));
            all.push(Variant::Without(newest - 1, growths[salt as usize % growths.len()].1));
        }
        if salt.is_multiple_of(4) {
            all.push(Variant::Killed);
        }
        let mut random = Random(salt);
        for n in 0..self.random {
            let (_, mode) = MODES[(salt as usize + n) % MODES.len()];
            let seed = 1 + random.below(1 << 32);
            all.push(Variant::Mode(mode, if mode == CrashMode::KeepAll { 0 } else { seed }));
        }
        all
    }
}

/// Names lead back to what they name.
#[test]
fn a_variant_can_be_named() {
    for text in
        ["drop", "all", "torn-17", "stale-4", "keep-1f", "keep-a.zeros", "keep-3.torn-1-0-5", "only-7.stale"]
    {
        let variant: Variant = text.parse().unwrap_or_else(|()| panic!("{text} has a meaning"));
        assert_eq!(variant.to_string(), text);
    }
    let torn = Variant::Keep(6, Some((2, 1..3)), Growth::Stale);
    assert_eq!(torn.to_string().parse(), Ok(torn));
    assert!("nonsense-1".parse::<Variant>().is_err() && "keep-xyz".parse::<Variant>().is_err());
}
