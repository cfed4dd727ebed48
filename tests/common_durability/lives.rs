//! A program that writes from several threads until it is stopped somehow, again and again on one database, and
//! the check that its next life begins with.
//!
//! Every thread does numbered operations, in three ways:
//!
//! - *rings* insert and remove keys of their own, the oldest overwritten: contents tell how many operations are there
//! - *transfers* move amounts between accounts in two trees, with a marker in both: the sum stays 0
//! - *batches* write the same number to many keys, and move one key on
//!
//! Whatever is written also says how far every other thread had come by then, which shows a hole between threads.
//! What is known to be durable is in a file of acknowledgements outside of the database.

use super::{Random, block_on, bytes_of, mix};
use sled::transaction::{ConflictableTransactionError, TransactionError, Transactional as _};
use sled::{Batch, Db, IVec, Tree};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Threads 0 to 3 are rings, 4 and 5 transfers, 6 batches.
pub const THREADS: usize = 7;
const RINGS: usize = 4;
const BATCHES: usize = 6;
/// Keys of a ring; an operation later than this many overwrites.
const RING: u64 = 150;
/// Accounts in each of two trees.
const ACCOUNTS: u64 = 12;
/// Keys that every batch writes.
const WIDTH: u64 = 25;

/// Offsets in the file of acknowledgements: a word per thread, then what the program is doing, one more than the
/// last identifier it got, the number of the last life.
pub const PHASE_AT: u64 = 8 * THREADS as u64;
const IDENTIFIER_AT: u64 = PHASE_AT + 8;
const LIFE_AT: u64 = IDENTIFIER_AT + 8;

/// Operations of every thread, from the first on, that are there.
pub type Counts = [u64; THREADS];

/// What is durable, in a file that is not.
pub struct Acks(File);

impl Acks {
    pub fn open(directory: &Path) -> Acks {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(directory.join("acks")).expect("a file can be created");
        if file.metadata().expect("open").len() == 0 {
            file.write_all_at(&[0; LIFE_AT as usize + 8], 0).expect("there is room");
        }
        Acks(file)
    }

    pub fn get(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, at).expect("written when created");
        u64::from_le_bytes(word)
    }

    pub fn set(&self, at: u64, word: u64) {
        self.0.write_all_at(&word.to_le_bytes(), at).expect("there is room");
    }

    /// All that is promised by now: the counts and the identifier.
    pub fn promised(&self) -> [u64; THREADS + 1] {
        std::array::from_fn(|i| self.get(if i < THREADS { 8 * i as u64 } else { IDENTIFIER_AT }))
    }

    /// Takes back what was promised after that.
    pub fn take_back(&self, promised: &[u64; THREADS + 1]) {
        for (i, word) in promised.iter().enumerate() {
            self.set(if i < THREADS { 8 * i as u64 } else { IDENTIFIER_AT }, *word);
        }
    }

    pub fn counts(&self) -> Counts {
        std::array::from_fn(|thread| self.get(8 * thread as u64))
    }
}

fn key(thread: usize, number: u64) -> Vec<u8> {
    format!("{thread}/{:05}", number % RING).into_bytes()
}

/// Whether operation `number` of a ring removes; all others insert.
fn removes(number: u64) -> bool {
    number % 7 == 3
}

/// What operation `number` writes first: itself, the life in which it ran, how far the others were.
fn head(number: u64, life: u64, others: &Counts) -> Vec<u8> {
    let words = [number, life].into_iter().chain(others.iter().copied());
    words.flat_map(u64::to_le_bytes).collect()
}

/// What it writes in a ring: with padding.
fn value(thread: usize, number: u64, life: u64, others: &Counts) -> Vec<u8> {
    let mut bytes = head(number, life, others);
    let seed = mix(number ^ (thread as u64) << 32 ^ life << 40);
    let padding = if number.is_multiple_of(61) { 20_000 } else { seed % 200 };
    bytes.extend(bytes_of(seed, padding as usize));
    bytes
}

/// A head, taken apart again.
fn parse(bytes: &[u8]) -> Option<(u64, u64, Counts)> {
    let word = |at: usize| Some(u64::from_le_bytes(*bytes.get(8 * at..)?.first_chunk()?));
    let mut others = [0; THREADS];
    for (thread, count) in others.iter_mut().enumerate() {
        *count = word(2 + thread)?;
    }
    Some((word(0)?, word(1)?, others))
}

/// The two trees that rings, and the two that accounts are in.
fn trees(db: &Db) -> sled::Result<[Tree; 4]> {
    Ok([db.open_tree("left")?, db.open_tree("right")?, db.open_tree("debit")?, db.open_tree("credit")?])
}

/// What was found of one life's predecessors.
pub struct Found {
    pub counts: Counts,
    /// The last one that left something.
    pub life: u64,
    /// Of everything that is there.
    pub checksum: u32,
}

/// What is looked at while recovering.
struct Check<'a> {
    trees: &'a [Tree; 4],
    acknowledged: &'a Counts,
    counts: Counts,
    life: u64,
    /// Thread, number, and how far the others were.
    seen: Vec<(usize, u64, Counts)>,
}

/// How many operations of each thread the database holds, if that can be, and nothing acknowledged is lost.
pub fn check(db: &Db, acks: &Acks) -> Result<Found, String> {
    let text = |e: sled::Error| e.to_string();
    let (trees, acknowledged) = (&trees(db).map_err(text)?, &acks.counts());
    let mut check = Check { trees, acknowledged, counts: [0; THREADS], life: 0, seen: Vec::new() };
    for thread in 0..RINGS {
        check.ring(thread)?;
    }
    for thread in RINGS..BATCHES {
        check.markers(thread)?;
    }
    check.accounts()?;
    check.batches()?;
    let Check { counts, life, seen, .. } = check;
    for (thread, number, others) in seen {
        if let Some(other) = (0..THREADS).find(|other| others[*other] > counts[*other]) {
            return Err(format!(
                "hole: operation {number} of thread {thread} is there, which began after {} of thread {other}, \
                 of which {} are there",
                others[other], counts[other]
            ));
        }
    }
    sled::testing::check_invariants(db).map_err(text)?;
    Ok(Found { counts, life, checksum: db.checksum().map_err(text)? })
}

impl Check<'_> {
    fn ring(&mut self, thread: usize) -> Result<(), String> {
        let mut slots = vec![None; RING as usize];
        for pair in self.trees[thread % 2].scan_prefix(format!("{thread}/")) {
            let (key, bytes) = pair.map_err(|e| format!("thread {thread}: {e}"))?;
            let slot: u64 = std::str::from_utf8(&key[2..]).expect("a key").parse().expect("a number");
            let Some((number, life, others)) = parse(&bytes) else {
                return Err(format!("thread {thread}: a value of {} bytes", bytes.len()));
            };
            if value(thread, number, life, &others) != *bytes || number % RING != slot {
                return Err(format!("thread {thread}: slot {slot} holds what nobody wrote"));
            }
            slots[slot as usize] = Some((number, life));
            self.seen.push((thread, number, others));
        }
        // The newest visible operation, and possibly removals after it.
        let visible = slots.iter().flatten().map(|(number, _)| number + 1).max().unwrap_or(0);
        let expected = |count: u64, slot: u64| {
            let newest = (count.saturating_sub(RING)..count).rev().find(|number| number % RING == slot);
            newest.filter(|number| !removes(*number))
        };
        let fits = |count: &u64| (0..RING).all(|s| slots[s as usize].map(|(n, _)| n) == expected(*count, s));
        let found: Vec<u64> = (visible..=visible + 1).filter(fits).collect();
        let least = self.acknowledged[thread];
        // Where a removal that changed nothing is in doubt, the acknowledgement decides.
        let count = found.iter().rev().find(|count| **count >= least);
        self.counts[thread] = *count.ok_or_else(|| {
            let holes: Vec<String> = (0..RING)
                .filter(|s| slots[*s as usize].map(|(n, _)| n) != expected(visible, *s))
                .map(|s| format!("slot {s}: {:?} not {:?}", slots[s as usize], expected(visible, s)))
                .collect();
            format!(
                "thread {thread}: {visible} operations seen, {found:?} would fit, {least} acknowledged; {} holes: {}",
                holes.len(),
                holes[..holes.len().min(6)].join(", ")
            )
        })?;
        let mut by_number: Vec<(u64, u64)> = slots.iter().flatten().copied().collect();
        by_number.sort_unstable();
        if !by_number.is_sorted_by_key(|(_, life)| *life) {
            return Err(format!("thread {thread}: an operation of an earlier life came back"));
        }
        self.life = self.life.max(by_number.last().map_or(0, |(_, life)| *life));
        Ok(())
    }

    /// Counts what a head says that the last commit of a thread wrote.
    fn last(&mut self, thread: usize, bytes: Option<&IVec>) -> Result<(), String> {
        if let Some(bytes) = bytes {
            let (number, life, others) = parse(bytes).ok_or("a marker is cut short")?;
            self.counts[thread] = number + 1;
            self.life = self.life.max(life);
            self.seen.push((thread, number, others));
        }
        let (count, least) = (self.counts[thread], self.acknowledged[thread]);
        if count < least {
            return Err(format!("thread {thread}: {count} commits there, {least} acknowledged"));
        }
        Ok(())
    }

    /// Both trees tell the same last transaction of a thread.
    fn markers(&mut self, thread: usize) -> Result<(), String> {
        let get = |tree: &Tree| tree.get(format!("marker {thread}")).map_err(|e| e.to_string());
        let (debit, credit) = (get(&self.trees[2])?, get(&self.trees[3])?);
        if debit != credit {
            let [debit, credit] = [debit, credit].map(|bytes| bytes.and_then(|b| parse(&b)));
            return Err(format!("thread {thread}: half a transaction: {debit:?} and {credit:?}"));
        }
        self.last(thread, debit.as_ref())
    }

    /// Nothing was lost or made by a transaction.
    fn accounts(&self) -> Result<(), String> {
        let mut sum = 0;
        for tree in &self.trees[2..] {
            for pair in tree.scan_prefix("account ") {
                sum += amount(Some(pair.map_err(|e| e.to_string())?.1));
            }
        }
        if sum == 0 { Ok(()) } else { Err(format!("the accounts hold {sum}")) }
    }

    /// All keys of the last batch have its number, and the one that moves is in one place.
    fn batches(&mut self) -> Result<(), String> {
        let mut last = None;
        for slot in 0..WIDTH {
            let found = self.trees[2].get(format!("wide {slot:03}")).map_err(|e| e.to_string())?;
            if slot > 0 && found != last {
                return Err(format!("half a batch: key {slot} differs from the one before"));
            }
            last = found;
        }
        self.last(BATCHES, last.as_ref())?;
        let moving: Result<Vec<_>, _> = self.trees[2].scan_prefix("moving ").keys().collect();
        let moving = moving.map_err(|e| e.to_string())?;
        let expected = last.is_some().then(|| moving_key(self.counts[BATCHES] - 1));
        if moving.iter().map(|key| key.to_vec()).collect::<Vec<_>>() != Vec::from_iter(expected) {
            return Err(format!("half a batch: moved to {moving:?} after {}", self.counts[BATCHES]));
        }
        Ok(())
    }
}

fn amount(bytes: Option<IVec>) -> i64 {
    bytes.map_or(0, |bytes| i64::from_le_bytes(*bytes.first_chunk().expect("eight bytes")))
}

fn moving_key(number: u64) -> Vec<u8> {
    format!("moving {:04}", number % 1000).into_bytes()
}

/// What the threads of one life share.
pub struct Life<'a> {
    pub db: &'a Db,
    pub acks: &'a Acks,
    pub life: u64,
    /// Operations that have returned.
    done: [AtomicU64; THREADS],
    /// Set: all threads are to end.
    pub stop: AtomicBool,
}

impl<'a> Life<'a> {
    /// The one after those that left what was found; they need not have left anything.
    pub fn new(db: &'a Db, acks: &'a Acks, found: &Found) -> Life<'a> {
        let done = found.counts.map(AtomicU64::new);
        let life = acks.get(LIFE_AT).max(found.life) + 1;
        acks.set(LIFE_AT, life);
        Life { db, acks, life, done, stop: AtomicBool::new(false) }
    }

    /// Gets an identifier, which nobody got before.
    pub fn identify(&self) -> Result<(), String> {
        let started = self.acks.get(IDENTIFIER_AT);
        let id = self.db.generate_id().map_err(|e| e.to_string())?;
        if started > id {
            return Err(format!("identifier {id} although {} was handed out", started - 1));
        }
        self.acks.set(IDENTIFIER_AT, id + 1);
        Ok(())
    }

    /// Writes as one of the threads until that fails, or all are to end.
    pub fn write(&self, thread: usize) -> sled::Result<()> {
        let trees = trees(self.db)?;
        let mut random = Random(self.life << 8 | thread as u64);
        // Relaxed: written by this thread only.
        for number in self.done[thread].load(Ordering::Relaxed).. {
            // Relaxed: a hint, that it is enough.
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            // Acquire: what another thread counted has returned before this operation begins.
            let others: Counts = std::array::from_fn(|i| self.done[i].load(Ordering::Acquire));
            match thread {
                BATCHES => self.batch(&trees, number, &others)?,
                RINGS.. => self.transfer(&trees, thread, number, &others, &mut random)?,
                _ if removes(number) => drop(trees[thread % 2].remove(key(thread, number))?),
                _ => {
                    let value = value(thread, number, self.life, &others);
                    trees[thread % 2].insert(key(thread, number), value)?;
                }
            }
            // Release: pairs with the Acquire above.
            self.done[thread].store(number + 1, Ordering::Release);
            if random.below(20) == 0 {
                if thread == 3 {
                    block_on(trees[0].flush_async())?;
                } else {
                    trees[0].flush()?;
                }
                self.acks.set(8 * thread as u64, number + 1);
            }
        }
        Ok(())
    }

    fn batch(&self, trees: &[Tree; 4], number: u64, others: &Counts) -> sled::Result<()> {
        let mut batch = Batch::default();
        let head = head(number, self.life, others);
        for slot in 0..WIDTH {
            batch.insert(format!("wide {slot:03}").as_bytes(), &*head);
        }
        if number > 0 {
            batch.remove(moving_key(number - 1));
        }
        let len = if number.is_multiple_of(17) { 9_000 } else { 20 };
        batch.insert(moving_key(number), bytes_of(number, len));
        trees[2].apply_batch(batch)
    }

    fn transfer(
        &self,
        trees: &[Tree; 4],
        thread: usize,
        number: u64,
        others: &Counts,
        random: &mut Random,
    ) -> sled::Result<()> {
        let mut account = || format!("account {:02}", random.below(ACCOUNTS));
        let (from, to) = (account(), account());
        let moved = (number % 100) as i64 + 1;
        let (marker, head) = (format!("marker {thread}"), head(number, self.life, others));
        let result = (&trees[2], &trees[3]).transaction(|(debit, credit)| {
            let rest = amount(debit.get(&from)?) - moved;
            debit.insert(from.as_bytes(), rest.to_le_bytes().as_slice())?;
            let gained = amount(credit.get(&to)?) + moved;
            credit.insert(to.as_bytes(), gained.to_le_bytes().as_slice())?;
            debit.insert(marker.as_bytes(), &*head)?;
            credit.insert(marker.as_bytes(), &*head)?;
            Ok::<_, ConflictableTransactionError<()>>(())
        });
        match result {
            Ok(()) => Ok(()),
            Err(TransactionError::Storage(error)) => Err(error),
            Err(TransactionError::Abort(())) => unreachable!("nobody aborts"),
        }
    }
}
