//! Decides whether a recorded history of transactions is strictly serializable.
//!
//! # How it works
//!
//! Every value is a list of numbers, each written once in a history: a write starts a new list or appends to
//! the one that is there. So a read tells which write it saw, and which writes came before that one. A key
//! that is not there counts as one more version; it can be written once per key and history, or `None` would
//! not tell which removal it saw.
//!
//! From the order of the versions of each key follow edges between operations: *ww* to whoever wrote the
//! next version, *wr* from the writer to a reader, *rw* from a reader to whoever wrote the next version. *rt*
//! goes from an operation to those that began after it had ended, through a chain of moments, so that their
//! number stays linear. The history is strictly serializable exactly when there is no cycle.
//!
//! Attempts that did not commit take part as readers: whatever a closure saw, also one that was run again,
//! must have been true at one moment. What they wrote must never be seen.
//!
//! A write that did not look at the version before (only batches do that) may come from one thread per key;
//! its order among its like is then the order of that thread.
//!
//! # References
//!
//! Adya, Liskov, O'Neil: Generalized Isolation Level Definitions (2000). Kingsbury, Alvaro: Elle (2020).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// Number of a key, over all trees.
pub type Key = u8;

/// What one write put there, unique in a history.
pub type Version = u64;

/// What a read found.
pub type Seen = Option<Vec<Version>>;

/// One step of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The value of a key was looked at.
    Read(Key, Seen),
    /// A new list was started.
    Put(Key, Version),
    /// A number was appended to what was there.
    Append(Key, Version),
    /// The key was removed, though it was there.
    Remove(Key),
}

/// An operation, or an attempt of a transaction.
#[derive(Clone, Debug)]
pub struct Op {
    /// For people.
    pub name: &'static str,
    /// Which thread.
    pub thread: usize,
    /// Moment before it began.
    pub begin: u64,
    /// Moment after it had ended.
    pub end: u64,
    /// Whether its writes count.
    pub committed: bool,
    /// In order.
    pub steps: Vec<Step>,
}

/// The version of a key that is not there.
fn tombstone(key: Key) -> Version {
    1 << 63 | u64::from(key)
}

fn version_of(key: Key, seen: &Seen) -> Version {
    match seen {
        None => tombstone(key),
        Some(list) => *list.last().expect("a value has a version"),
    }
}

/// What an operation has done to a key so far.
enum Own {
    /// All of the value is its own.
    Whole(Seen),
    /// It appended to what it has not looked at.
    Suffix(Vec<Version>),
}

/// What the operations say about the versions.
#[derive(Default)]
struct Versions {
    /// Who wrote a version, on which key, and whether it was the last of that operation on the key.
    written: HashMap<Version, (usize, Key, bool)>,
    discarded: HashMap<Version, usize>,
    /// Versions that need one before them to append to.
    appended: HashSet<Version>,
    next: HashMap<Version, Version>,
    previous: HashMap<Version, Version>,
}

impl Versions {
    fn follows(&mut self, version: Version, previous: Version) -> Result<(), String> {
        if let Some(other) = self.next.insert(previous, version)
            && other != version
        {
            return Err(format!("lost update: both {other} and {version} replaced {previous}"));
        }
        match self.previous.insert(version, previous) {
            Some(other) if other != previous => {
                Err(format!("torn order: {version} came after {other} and after {previous}"))
            }
            _ => Ok(()),
        }
    }

    /// Looks at a value that somebody else must have made.
    fn saw(&mut self, reader: usize, key: Key, seen: &Seen) -> Result<(), String> {
        let list = match seen {
            None => return self.must_be_there(reader, key, tombstone(key), true),
            Some(list) => list,
        };
        let Some((last, earlier)) = list.split_last() else {
            return Err(format!("operation {reader} saw an empty list"));
        };
        earlier.iter().try_for_each(|version| self.must_be_there(reader, key, *version, false))?;
        self.must_be_there(reader, key, *last, true)?;
        if self.appended.contains(&list[0]) {
            self.follows(list[0], tombstone(key))?;
        }
        list.windows(2).try_for_each(|pair| self.follows(pair[1], pair[0]))
    }

    fn must_be_there(&self, reader: usize, key: Key, version: Version, last: bool) -> Result<(), String> {
        match self.written.get(&version) {
            Some((writer, on, _)) if *on != key => Err(format!(
                "wrong key: operation {reader} saw {version}, by {writer}, on {key} instead of {on}"
            )),
            Some((writer, _, false)) if last => {
                Err(format!("intermediate read: operation {reader} saw {version}, which {writer} wrote over"))
            }
            Some(_) => Ok(()),
            None => Err(match self.discarded.get(&version) {
                Some(writer) => {
                    format!("aborted read: operation {reader} saw {version}, which {writer} took back")
                }
                None => format!("operation {reader} saw {version}, which nobody wrote"),
            }),
        }
    }
}

/// Finds out who wrote what.
fn collect(history: &[Op]) -> Versions {
    let mut versions = Versions::default();
    for (number, op) in history.iter().enumerate() {
        let mut last: HashMap<Key, Version> = HashMap::new();
        for step in &op.steps {
            let (key, version) = match step {
                Step::Read(..) => continue,
                Step::Put(key, version) => (*key, *version),
                Step::Append(key, version) => {
                    versions.appended.insert(*version);
                    (*key, *version)
                }
                Step::Remove(key) => (*key, tombstone(*key)),
            };
            if !op.committed {
                versions.discarded.insert(version, number);
                continue;
            }
            if let Some(over) = last.insert(key, version) {
                versions.written.get_mut(&over).expect("just written").2 = false;
            }
            let twice = versions.written.insert(version, (number, key, true));
            assert!(twice.is_none(), "the history writes {version} twice");
        }
    }
    versions
}

/// Follows one operation: what it saw of itself must be what it did, what it saw of others goes to `reads`.
fn follow(
    number: usize,
    op: &Op,
    versions: &mut Versions,
    reads: &mut Vec<(usize, Version)>,
) -> Result<(), String> {
    let mut base: HashMap<Key, Seen> = HashMap::new();
    let mut own: HashMap<Key, Own> = HashMap::new();
    let mut newest: HashMap<Key, Version> = HashMap::new();
    for step in &op.steps {
        let (key, version) = match step {
            Step::Read(key, seen) => {
                let outside = match own.get(key) {
                    Some(Own::Whole(expected)) if expected == seen => continue,
                    Some(Own::Whole(expected)) => {
                        return Err(format!(
                            "own write not seen: operation {number} saw {seen:?} on {key}, not {expected:?}"
                        ));
                    }
                    Some(Own::Suffix(suffix)) => {
                        match seen.as_ref().and_then(|l| l.strip_suffix(&suffix[..])) {
                            Some([]) => None,
                            Some(rest) => Some(rest.to_vec()),
                            None => {
                                return Err(format!(
                                    "own write not seen: operation {number} saw {seen:?} on {key}, not {suffix:?}"
                                ));
                            }
                        }
                    }
                    None => seen.clone(),
                };
                if let Some(Own::Suffix(suffix)) = own.get(key) {
                    // The first of its own came right after what it sees below them.
                    if op.committed {
                        versions.follows(suffix[0], version_of(*key, &outside))?;
                    }
                    own.insert(*key, Own::Whole(seen.clone()));
                }
                match base.get(key) {
                    Some(before) if *before == outside => {}
                    Some(before) => {
                        return Err(format!(
                            "changed while read: operation {number} saw {before:?} and {outside:?} on {key}"
                        ));
                    }
                    None => {
                        versions.saw(number, *key, &outside)?;
                        reads.push((number, version_of(*key, &outside)));
                        base.insert(*key, outside);
                    }
                }
                continue;
            }
            Step::Put(key, version) => {
                own.insert(*key, Own::Whole(Some(vec![*version])));
                (*key, *version)
            }
            Step::Append(key, version) => {
                let whole = match own.remove(key) {
                    Some(Own::Suffix(mut suffix)) => {
                        suffix.push(*version);
                        Own::Suffix(suffix)
                    }
                    Some(Own::Whole(list)) => {
                        Own::Whole(Some([list.unwrap_or_default(), vec![*version]].concat()))
                    }
                    None => match base.get(key) {
                        Some(list) => {
                            Own::Whole(Some([list.clone().unwrap_or_default(), vec![*version]].concat()))
                        }
                        None => Own::Suffix(vec![*version]),
                    },
                };
                own.insert(*key, whole);
                (*key, *version)
            }
            Step::Remove(key) => {
                own.insert(*key, Own::Whole(None));
                (*key, tombstone(*key))
            }
        };
        if op.committed {
            let before =
                newest.get(&key).copied().or_else(|| base.get(&key).map(|seen| version_of(key, seen)));
            if let Some(before) = before {
                versions.follows(version, before)?;
            }
            newest.insert(key, version);
        }
    }
    Ok(())
}

/// Orders the chains of versions that begin with a blind write behind each other.
fn join_chains(history: &[Op], versions: &mut Versions) -> Result<(), String> {
    let mut heads: BTreeMap<Key, Vec<(u64, usize, Version)>> = BTreeMap::new();
    for (version, (op, key, _)) in &versions.written {
        if !versions.previous.contains_key(version) && !versions.appended.contains(version) {
            heads.entry(*key).or_default().push((history[*op].begin, *op, *version));
        }
    }
    for (key, mut heads) in heads {
        heads.sort_unstable();
        let mut blind = heads.iter().skip(1).map(|(_, op, _)| history[*op].thread);
        let first = blind.next();
        assert!(blind.all(|thread| Some(thread) == first), "key {key}: blind writes of several threads");
        for pair in heads.windows(2) {
            let mut last = pair[0].2;
            let mut steps = 0;
            while let Some(next) = versions.next.get(&last) {
                last = *next;
                steps += 1;
                if steps > versions.written.len() {
                    return Err(format!("the versions of key {key} go round in a circle"));
                }
            }
            versions.follows(pair[1].2, last)?;
        }
    }
    Ok(())
}

type Edges = Vec<Vec<(usize, &'static str)>>;

fn edges(history: &[Op], versions: &Versions, reads: &[(usize, Version)]) -> Edges {
    let count = history.len();
    let mut edges: Edges = vec![Vec::new(); 2 * count];
    let mut add = |from: usize, to: usize, why| {
        if from != to {
            edges[from].push((to, why));
        }
    };
    let writer = |version: &Version| versions.written.get(version).map(|(op, ..)| *op);
    for (version, next) in &versions.next {
        if let (Some(from), Some(to)) = (writer(version), writer(next)) {
            add(from, to, "ww");
        }
    }
    for (reader, version) in reads {
        if let Some(from) = writer(version) {
            add(from, *reader, "wr");
        }
        if let Some(to) = versions.next.get(version).and_then(writer) {
            add(*reader, to, "rw");
        }
    }
    // Moment `count + i` is the i-th end; it comes after everything that had ended by then.
    let mut ends: Vec<(u64, usize)> = history.iter().enumerate().map(|(i, op)| (op.end, i)).collect();
    ends.sort_unstable();
    for (moment, (_, op)) in ends.iter().enumerate() {
        add(*op, count + moment, "rt");
        if moment > 0 {
            add(count + moment - 1, count + moment, "rt");
        }
    }
    for (number, op) in history.iter().enumerate() {
        let ended = ends.partition_point(|(end, _)| *end < op.begin);
        if ended > 0 {
            add(count + ended - 1, number, "rt");
        }
    }
    edges
}

/// Strongly connected components (Tarjan), without recursion.
fn component_with_cycle(edges: &Edges) -> Option<Vec<usize>> {
    const NEW: usize = usize::MAX;
    let mut index = vec![NEW; edges.len()];
    let mut low = vec![0; edges.len()];
    let mut on_stack = vec![false; edges.len()];
    let (mut stack, mut counter) = (Vec::new(), 0);
    for root in 0..edges.len() {
        if index[root] != NEW {
            continue;
        }
        let mut work = vec![(root, 0)];
        while let Some((node, edge)) = work.pop() {
            if edge == 0 {
                index[node] = counter;
                low[node] = counter;
                counter += 1;
                stack.push(node);
                on_stack[node] = true;
            }
            if let Some((to, _)) = edges[node].get(edge) {
                work.push((node, edge + 1));
                if index[*to] == NEW {
                    work.push((*to, 0));
                } else if on_stack[*to] {
                    low[node] = low[node].min(index[*to]);
                }
                continue;
            }
            if let Some((parent, _)) = work.last() {
                low[*parent] = low[*parent].min(low[node]);
            }
            if low[node] == index[node] {
                let from = stack.iter().rposition(|n| *n == node).expect("it is on the stack");
                let component = stack.split_off(from);
                component.iter().for_each(|n| on_stack[*n] = false);
                if component.len() > 1 {
                    return Some(component);
                }
            }
        }
    }
    None
}

/// A shortest cycle through the first operation of the component, in words. A moment counts as part of the
/// edge that leaves it.
fn describe(history: &[Op], edges: &Edges, component: &[usize]) -> String {
    let start = *component.iter().min().expect("not empty");
    let inside: HashSet<usize> = component.iter().copied().collect();
    let mut came_from: HashMap<usize, (usize, &str)> = HashMap::new();
    let mut open = VecDeque::from([start]);
    while let Some(node) = open.pop_front() {
        for (to, why) in edges[node].iter().filter(|(to, _)| inside.contains(to)) {
            if !came_from.contains_key(to) {
                came_from.insert(*to, (node, why));
                open.push_back(*to);
            }
        }
    }
    let (mut at, mut lines, mut kinds) = (start, Vec::new(), Vec::new());
    loop {
        let (from, why) = came_from[&at];
        if at < history.len() {
            let op = &history[at];
            let what = if op.committed { op.name } else { "a run that did not commit" };
            let times = format!("thread {}, from {} to {}", op.thread, op.begin, op.end);
            lines.push(format!("  --{why}--> {at}, {what} ({times}): {:?}", op.steps));
        }
        if why != "rt" || at < history.len() {
            kinds.push(why);
        }
        at = from;
        if at == start {
            break;
        }
    }
    lines.reverse();
    kinds.reverse();
    format!("cycle of {}, from operation {start}:\n{}", kinds.join(" "), lines.join("\n"))
}

/// `Ok` for a strictly serializable history; what is wrong, otherwise.
///
/// The first operation must write every key.
pub fn check(history: &[Op]) -> Result<(), String> {
    let mut versions = collect(history);
    let mut reads = Vec::new();
    for (number, op) in history.iter().enumerate() {
        assert!(op.begin < op.end, "operation {number} ends before it begins");
        follow(number, op, &mut versions, &mut reads)?;
    }
    join_chains(history, &mut versions)?;
    let edges = edges(history, &versions, &reads);
    component_with_cycle(&edges).map_or(Ok(()), |component| Err(describe(history, &edges, &component)))
}

/// Pairs of operations of different threads that ran at the same time.
pub fn overlaps(history: &[Op]) -> usize {
    let pairs = history.iter().enumerate().flat_map(|(i, a)| history[i + 1..].iter().map(move |b| (a, b)));
    pairs.filter(|(a, b)| a.thread != b.thread && a.begin < b.end && b.begin < a.end).count()
}

const X: Key = 0;
const Y: Key = 1;

/// The operations, after one that writes 1 to `X` and 2 to `Y`; those with equal times overlap.
fn after_setup(ops: &[(u64, u64, bool, &[Step])]) -> Vec<Op> {
    let setup = (0, 1, true, &[Step::Put(X, 1), Step::Put(Y, 2)][..]);
    let all = std::iter::once(&setup).chain(ops).enumerate();
    all.map(|(thread, (begin, end, committed, steps))| Op {
        name: "made up",
        thread,
        begin: *begin,
        end: *end,
        committed: *committed,
        steps: steps.to_vec(),
    })
    .collect()
}

fn read(key: Key, list: &[Version]) -> Step {
    Step::Read(key, (!list.is_empty()).then(|| list.to_vec()))
}

#[track_caller]
fn refused(ops: &[(u64, u64, bool, &[Step])], why: &str) {
    let answer = check(&after_setup(ops)).expect_err(why);
    assert!(answer.starts_with(why), "not {why}, but: {answer}");
}

#[test]
fn clean_histories_are_accepted() {
    let history = after_setup(&[
        // Overlapping, in an order other than that of their begins.
        (2, 9, true, &[read(X, &[1, 3]), Step::Append(X, 4), read(X, &[1, 3, 4]), read(Y, &[2])]),
        (3, 8, true, &[read(X, &[1]), Step::Append(X, 3), read(Y, &[2])]),
        // Appends that look at nothing.
        (10, 13, true, &[Step::Append(Y, 5)]),
        (11, 12, true, &[Step::Append(Y, 6), Step::Append(Y, 7)]),
        // An attempt that saw the state before them, and took its writes back.
        (10, 14, false, &[read(Y, &[2]), Step::Put(Y, 8), read(Y, &[8]), read(X, &[1, 3, 4])]),
        (15, 16, true, &[read(Y, &[2, 6, 7, 5]), Step::Remove(Y), Step::Read(Y, None)]),
        (17, 18, true, &[Step::Read(Y, None), Step::Append(Y, 9)]),
        (19, 20, true, &[read(Y, &[9]), read(X, &[1, 3, 4])]),
    ]);
    check(&history).expect("clean");
    assert_eq!(overlaps(&history), 4);
}

#[test]
fn blind_writes_take_the_order_of_their_thread() {
    let mut history = after_setup(&[
        (2, 3, true, &[Step::Put(X, 3), Step::Put(Y, 4)]),
        (4, 7, true, &[Step::Put(X, 5), Step::Put(Y, 6)]),
        (5, 6, true, &[read(X, &[5]), read(Y, &[6])]),
        (8, 9, true, &[read(X, &[5]), Step::Put(X, 7)]),
    ]);
    history[2].thread = history[1].thread;
    check(&history).expect("clean");
    history[3].steps = vec![read(X, &[5]), read(Y, &[4])];
    let answer = check(&history).expect_err("half of a batch");
    assert!(answer.starts_with("cycle"), "{answer}");
}

#[test]
fn anomalies_of_one_key_are_found() {
    let increment = |new| [read(X, &[1]), Step::Append(X, new)];
    refused(&[(2, 5, true, &increment(3)), (3, 4, true, &increment(4))], "lost update");
    refused(&[(2, 3, false, &[Step::Put(X, 3)]), (4, 5, true, &[read(X, &[3])])], "aborted read");
    refused(
        &[(2, 3, true, &[read(X, &[1]), Step::Put(X, 3), Step::Put(X, 4)]), (2, 3, true, &[read(X, &[3])])],
        "intermediate read",
    );
    refused(
        &[(2, 9, true, &[read(X, &[1]), read(X, &[1, 3])]), (3, 4, true, &increment(3))],
        "changed while read",
    );
    refused(&[(2, 3, true, &[Step::Put(X, 3), read(X, &[1])])], "own write not seen");
    refused(&[(2, 3, true, &[Step::Append(X, 3), read(X, &[1])])], "own write not seen");
    refused(&[(2, 3, true, &[read(X, &[9])])], "operation 1 saw 9, which nobody wrote");
    refused(&[(2, 3, true, &[read(X, &[2])])], "wrong key");
    refused(
        &[
            (2, 5, true, &[Step::Append(X, 3)]),
            (2, 5, true, &[Step::Append(X, 4)]),
            (6, 7, true, &[read(X, &[1, 3, 4])]),
            (6, 7, true, &[read(X, &[1, 4, 3])]),
        ],
        "lost update",
    );
}

#[test]
fn anomalies_of_several_keys_are_found() {
    // Write skew: each changed what the other had looked at.
    refused(
        &[
            (2, 5, true, &[read(X, &[1]), read(Y, &[2]), Step::Put(X, 3)]),
            (3, 4, true, &[read(X, &[1]), read(Y, &[2]), Step::Put(Y, 4)]),
        ],
        "cycle of rw rw",
    );
    // The same with a removal, seen by those who found nothing.
    refused(
        &[
            (2, 3, true, &[read(X, &[1]), Step::Remove(X)]),
            (4, 7, true, &[Step::Read(X, None), read(Y, &[2]), Step::Put(X, 3)]),
            (5, 6, true, &[Step::Read(X, None), read(Y, &[2]), Step::Put(Y, 4)]),
        ],
        "cycle of rw rw",
    );
    // Read skew: one key from before a transaction, the other from after it; also in an attempt.
    let both: &[Step] = &[read(X, &[1]), Step::Put(X, 3), read(Y, &[2]), Step::Put(Y, 4)];
    for committed in [true, false] {
        refused(&[(2, 5, true, both), (3, 4, committed, &[read(X, &[1]), read(Y, &[4])])], "cycle of ");
    }
    // Two appends in different orders on two keys.
    refused(
        &[
            (2, 5, true, &[Step::Append(X, 3), Step::Append(Y, 4)]),
            (2, 5, true, &[Step::Append(X, 5), Step::Append(Y, 6)]),
            (6, 7, true, &[read(X, &[1, 3, 5]), read(Y, &[2, 6, 4])]),
        ],
        "cycle of ww ww",
    );
    // A circle of reads.
    refused(
        &[
            (2, 5, true, &[read(X, &[1]), Step::Put(X, 3), read(Y, &[4])]),
            (2, 5, true, &[read(Y, &[2]), Step::Put(Y, 4), read(X, &[3])]),
        ],
        "cycle of wr wr",
    );
}

#[test]
fn stale_reads_are_found() {
    refused(
        &[(2, 3, true, &[read(X, &[1]), Step::Put(X, 3)]), (4, 5, true, &[read(X, &[1])])],
        "cycle of rt rw",
    );
    // Serializable, but two readers, one after the other, see a write come and go.
    refused(
        &[
            (2, 9, true, &[read(X, &[1]), Step::Put(X, 3)]),
            (3, 4, true, &[read(X, &[3])]),
            (5, 6, true, &[read(X, &[1])]),
        ],
        "cycle of ",
    );
    // The same reads at one time are fine.
    let history = after_setup(&[
        (2, 9, true, &[read(X, &[1]), Step::Put(X, 3)]),
        (3, 6, true, &[read(X, &[3])]),
        (4, 5, true, &[read(X, &[1])]),
    ]);
    check(&history).expect("clean");
}
