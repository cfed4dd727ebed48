//! The operations, and the seeded runs that are made of them.

use super::common_durability::{Random, bytes_of};
use super::state::{Change, DEFAULT, Pairs, State, Step, apply, empty};
use sled::testing::{Fault, OpClass, Written};
use std::collections::BTreeMap;
use std::io::ErrorKind;

/// The trees of a run.
pub const TREES: [&str; 6] = [DEFAULT, "b", "c", "d", "comes and goes", "too"];
/// Their names, and the one of a tree that there is after a recovery only.
pub const NAMES: [&str; 7] = [TREES[0], TREES[1], TREES[2], TREES[3], TREES[4], TREES[5], "after"];
/// The trees from here on are opened and dropped now and then.
const FIRST_TRANSIENT: u64 = 4;
/// A merged value that would get longer than this starts anew.
const MERGED: usize = 400;

/// A write to a key of a tree; `None` removes it.
pub type Write = (&'static str, Vec<u8>, Option<Vec<u8>>);

/// What a run does.
#[derive(Clone, Debug)]
pub enum Op {
    Insert(&'static str, Vec<u8>, Vec<u8>),
    Remove(&'static str, Vec<u8>),
    Swap(&'static str, Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>),
    Update(&'static str, Vec<u8>, Vec<u8>),
    Merge(&'static str, Vec<u8>, Vec<u8>),
    /// All of one tree.
    Batch(Vec<Write>),
    /// Whether it aborts in the end.
    Transaction(Vec<Write>, bool),
    PopMin(&'static str),
    PopMax(&'static str),
    Clear(&'static str),
    OpenTree(&'static str),
    DropTree(&'static str),
    GenerateId,
    Flush,
    FlushAsync,
    Checkpoint,
    /// A checkpoint, and while it is being written these writes one by one, flushed in the end or not.
    CheckpointBeside(Vec<Write>, bool),
    Maintain,
    Reopen,
    /// Calls of the medium fail from here on for a while. What is done meanwhile is tried until it succeeds.
    Fail(Fault),
    /// A checkpoint and a flush, of whose syncs the one after so many fails; then the database is opened again by the
    /// machine that it ran on.
    FailSync(u64),
}

/// The merge operator: appends, but for what gets too long.
pub fn merged(_key: &[u8], old: Option<&[u8]>, operand: &[u8]) -> Option<Vec<u8>> {
    let old = old.filter(|old| old.len() + operand.len() <= MERGED).unwrap_or_default();
    Some([old, operand].concat())
}

impl Op {
    /// The trees that must be there.
    pub fn trees(&self) -> Vec<&'static str> {
        match self {
            Op::Insert(tree, ..) | Op::Remove(tree, _) | Op::Swap(tree, ..) | Op::Update(tree, ..) => {
                vec![tree]
            }
            Op::Merge(tree, ..) | Op::PopMin(tree) | Op::PopMax(tree) | Op::Clear(tree) => vec![tree],
            Op::Batch(writes) | Op::Transaction(writes, _) | Op::CheckpointBeside(writes, _) => {
                let mut trees: Vec<_> = writes.iter().map(|(tree, ..)| *tree).collect();
                trees.sort_unstable();
                trees.dedup();
                trees
            }
            _ => Vec::new(),
        }
    }

    /// Whether doing it again, after it may have failed half way, leaves the same.
    fn may_be_repeated(&self) -> bool {
        let never = matches!(self, Op::Swap(..) | Op::Merge(..) | Op::PopMin(_) | Op::PopMax(_));
        !never && !matches!(self, Op::CheckpointBeside(..) | Op::Transaction(_, true))
    }

    /// Whether everything before it is durable when it has returned.
    pub fn flushes(&self) -> bool {
        matches!(self, Op::Flush | Op::FlushAsync | Op::Reopen)
    }

    /// What it does to a state: the steps between which a crash may come.
    pub fn steps(&self, state: &State) -> Vec<Step> {
        let pairs = |tree: &str| &state[tree.as_bytes()];
        let put =
            |tree: &'static str, key: &[u8], value: Option<Vec<u8>>| Change::Put(tree, key.to_vec(), value);
        let remove = |tree: &'static str, key: Option<(&Vec<u8>, &Vec<u8>)>| {
            key.map_or_else(Vec::new, |(key, _)| vec![vec![put(tree, key, None)]])
        };
        match self {
            Op::Insert(tree, key, value) | Op::Update(tree, key, value) => {
                vec![vec![put(tree, key, Some(value.clone()))]]
            }
            Op::Remove(tree, key) => remove(tree, pairs(tree).get_key_value(key)),
            Op::Swap(tree, key, old, new) if pairs(tree).get(key) == old.as_ref() => {
                vec![vec![put(tree, key, new.clone())]]
            }
            Op::Merge(tree, key, operand) => {
                let old = pairs(tree).get(key).map(|v| &v[..]);
                vec![vec![put(tree, key, merged(key, old, operand))]]
            }
            Op::Batch(writes) | Op::Transaction(writes, false) => {
                vec![writes.iter().map(|(tree, key, value)| put(tree, key, value.clone())).collect()]
            }
            Op::CheckpointBeside(writes, _) => {
                writes.iter().map(|(tree, key, value)| vec![put(tree, key, value.clone())]).collect()
            }
            Op::PopMin(tree) => remove(tree, pairs(tree).first_key_value()),
            Op::PopMax(tree) => remove(tree, pairs(tree).last_key_value()),
            Op::Clear(tree) => pairs(tree).keys().map(|key| vec![put(tree, key, None)]).collect(),
            Op::OpenTree(tree) if !state.contains_key(tree.as_bytes()) => vec![vec![Change::Create(tree)]],
            Op::DropTree(tree) if state.contains_key(tree.as_bytes()) => vec![vec![Change::Drop(tree)]],
            _ => Vec::new(),
        }
    }
}

/// What a seed stands for.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub redo_buffer: usize,
    /// Operations.
    count: usize,
    /// Of a thousand operations, how many flush.
    flushes: u64,
    /// Of a thousand operations, how many are batches or transactions.
    commits: u64,
    /// One of so many values is long.
    long: u64,
    /// Writes and resizes fail now and then, and there are only operations that may be done twice.
    fails: bool,
    /// Syncs fail now and then.
    fails_syncs: bool,
}

/// The first seed of the short runs, in which creation, the first flush and the first reopening count.
pub const SHORT: u64 = 1000;
/// The first seed of the runs that flush so often that everything a crash may leave can be tried.
pub const DENSE: u64 = 2000;
/// The first seed of the runs in which calls fail.
pub const FAILING: u64 = 3000;
/// The first seed of the runs in which syncs fail.
pub const FAILING_SYNCS: u64 = 4000;
/// The first seed of the runs that are many and different, at samples of whose calls the power fails.
pub const MANY: u64 = 1_000_000;

impl Plan {
    pub fn of(seed: u64) -> Plan {
        let redo_buffer = [256, 1024, 512][seed as usize % 3];
        let general = Plan {
            redo_buffer,
            count: 1000,
            flushes: 30,
            commits: 80,
            long: 100,
            fails: false,
            fails_syncs: false,
        };
        match seed {
            MANY.. => Plan { count: 300, flushes: 10 + seed % 7 * 15, commits: seed % 4 * 120, ..general },
            SHORT..DENSE => Plan { count: 40, flushes: 60, ..general },
            FAILING_SYNCS.. => Plan { count: 200, fails_syncs: true, ..general },
            FAILING.. => Plan { count: 260, flushes: 80 * (seed % 3), commits: 200, fails: true, ..general },
            DENSE.. => Plan { count: 260, flushes: 250, commits: 150, long: 60, ..general },
            // Every other one commits more than it writes plainly.
            _ if seed % 2 == 1 => Plan { commits: 300, flushes: 50, ..general },
            _ => general,
        }
    }

    fn value(&self, random: &mut Random) -> Vec<u8> {
        let len = match random.below(self.long * 20) {
            0..20 => random.below(24 << 10),
            20..100 => 500 + random.below(3000),
            100..200 => 0,
            _ => random.below(100),
        };
        bytes_of(random.next(), len as usize)
    }

    /// Writes to some of the trees.
    fn writes(&self, random: &mut Random, trees: &[&'static str], most: u64) -> Vec<Write> {
        // A key counts once, by the last write to it.
        let mut writes = BTreeMap::new();
        for _ in 0..=random.below(most) {
            let tree = trees[random.below(trees.len() as u64) as usize];
            let value = (random.below(4) > 0).then(|| match most {
                100.. => bytes_of(random.next(), random.below(120) as usize),
                _ => self.value(random),
            });
            writes.insert((tree, key(random)), value);
        }
        writes.into_iter().map(|((tree, key), value)| (tree, key, value)).collect()
    }

    fn commit(&self, random: &mut Random, state: &State) -> Op {
        let mut trees: Vec<&str> =
            TREES.into_iter().filter(|tree| state.contains_key(tree.as_bytes())).collect();
        let wanted = 1 + random.below(3) as usize;
        while trees.len() > wanted {
            trees.swap_remove(random.below(trees.len() as u64) as usize);
        }
        match random.below(40) {
            0 => Op::Batch(self.writes(random, &trees[..1], 400)),
            1 => Op::Transaction(self.writes(random, &trees, 200), false),
            2..16 => Op::Batch(self.writes(random, &trees[..1], 12)),
            n => Op::Transaction(self.writes(random, &trees, 8), n >= 36),
        }
    }
}

fn key(random: &mut Random) -> Vec<u8> {
    // Long shared prefixes, keys that are prefixes of others, and one in eight far from all.
    match random.below(8) {
        0 => bytes_of(random.below(40), 3 + random.below(30) as usize % 4 * 9),
        _ => format!("key/{:03}", random.below(160)).into_bytes(),
    }
}

/// The operations of a seed, made up along the way of the model so that swaps and drops often take effect.
pub fn operations(seed: u64) -> Vec<Op> {
    let plan = Plan::of(seed);
    let mut random = Random(seed);
    let mut state = empty();
    let mut ops: Vec<Op> = TREES[1..FIRST_TRANSIENT as usize].iter().map(|tree| Op::OpenTree(tree)).collect();
    let carry_out = |op: &Op, state: &mut State| {
        for step in op.steps(state) {
            apply(state, 0, &step);
        }
    };
    ops.iter().for_each(|op| carry_out(op, &mut state));
    while ops.len() < plan.count {
        let op = match operation(&plan, &mut random, &state) {
            Op::Maintain | Op::Reopen | Op::PopMin(_) | Op::Update(..) if plan.fails_syncs => {
                Op::FailSync(random.below(3))
            }
            op if plan.fails && !op.may_be_repeated() => fault(&mut random),
            op => op,
        };
        carry_out(&op, &mut state);
        ops.push(op);
    }
    if (SHORT..DENSE).contains(&seed) {
        ops.insert(10, Op::Flush);
        ops.insert(25, Op::Reopen);
    }
    ops
}

/// A failure that some of the next operations meet.
fn fault(random: &mut Random) -> Op {
    let class = if random.below(3) == 0 { OpClass::Resize } else { OpClass::Write };
    let written = [Written::Nothing, Written::Half, Written::All][random.below(3) as usize];
    let (after, count) = (random.below(3), 1 + random.below(3));
    Op::Fail(Fault { class: Some(class), after, count, kind: ErrorKind::StorageFull, written })
}

fn operation(plan: &Plan, random: &mut Random, state: &State) -> Op {
    let tree = TREES[random.below(TREES.len() as u64) as usize];
    let transient = TREES[(FIRST_TRANSIENT + random.below(2)) as usize];
    let pairs: Option<&Pairs> = state.get(tree.as_bytes());
    let dice = random.below(1000);
    if dice < plan.flushes {
        return if dice % 4 == 3 { Op::FlushAsync } else { Op::Flush };
    }
    if dice < plan.flushes + plan.commits {
        return plan.commit(random, state);
    }
    match random.below(1000) {
        0..5 => Op::Checkpoint,
        5..10 => {
            // Sometimes more than a redo segment.
            let mut writes = plan.writes(random, &[DEFAULT, TREES[1]], 150);
            writes.truncate(1 + random.below(150) as usize);
            Op::CheckpointBeside(writes, random.below(2) == 0)
        }
        10..24 => Op::Maintain,
        24..30 => Op::Reopen,
        30..48 => Op::GenerateId,
        48..60 => Op::DropTree(transient),
        60..88 => Op::OpenTree(transient),
        _ if pairs.is_none() => Op::OpenTree(tree),
        88..92 => Op::Clear(transient).or_open(state),
        92..105 => Op::PopMin(tree),
        105..120 => Op::PopMax(tree),
        120..170 => {
            let key = key(random);
            let old = pairs.and_then(|pairs| pairs.get(&key)).filter(|_| random.below(5) > 0).cloned();
            let new = (random.below(4) > 0).then(|| plan.value(random));
            Op::Swap(tree, key, old, new)
        }
        170..200 => Op::Update(tree, key(random), plan.value(random)),
        200..260 => Op::Merge(tree, key(random), bytes_of(random.next(), 1 + random.below(60) as usize)),
        260..440 => Op::Remove(tree, key(random)),
        _ => Op::Insert(tree, key(random), plan.value(random)),
    }
}

impl Op {
    /// The operation, or the opening of the tree that it needs.
    fn or_open(self, state: &State) -> Op {
        let missing = self.trees().into_iter().find(|tree| !state.contains_key(tree.as_bytes()));
        missing.map_or(self, Op::OpenTree)
    }
}
