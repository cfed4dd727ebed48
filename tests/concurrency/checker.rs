//! Is a recorded history of one key linearizable?
//!
//! # How it works
//!
//! The search of Wing and Gong with the memory of Lowe: take as the next operation any that began before
//! every operation not yet taken had ended; if its answer is the one the register gives, go on from there; a
//! set of taken operations with a state that was seen before need not be tried again.
//!
//! # References
//!
//! J. Wing, C. Gong, "Testing and Verifying Concurrent Objects" (1993); G. Lowe, "Testing for
//! Linearizability" (2017).

use std::collections::HashSet;

/// What a key holds.
pub type Value = Option<Vec<u8>>;

/// An operation on the key.
#[derive(Clone, Debug)]
pub enum Action {
    Get,
    Contains,
    Insert(Vec<u8>),
    Remove,
    Cas(Value, Value),
    /// The operator appends.
    Merge(Vec<u8>),
    /// The update function appends.
    UpdateAndFetch(Vec<u8>),
    /// The update function removes what is there, or inserts this.
    FetchAndUpdate(Vec<u8>),
}

/// What it returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Value(Value),
    There(bool),
    Swapped,
    NotSwapped(Value),
}

/// One operation of a history.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it was called and when it returned, on one clock for all threads.
    pub begin: u64,
    pub end: u64,
    pub thread: usize,
    pub action: Action,
    pub answer: Answer,
}

/// The update function of `UpdateAndFetch`, and the merge operator.
pub fn append(old: Option<&[u8]>, operand: &[u8]) -> Vec<u8> {
    [old.unwrap_or_default(), operand].concat()
}

/// The update function of `FetchAndUpdate`.
pub fn toggle(old: Option<&[u8]>, value: &[u8]) -> Value {
    old.is_none().then(|| value.to_vec())
}

/// What the register answers, and what it holds afterwards.
fn step(state: &Value, action: &Action) -> (Answer, Value) {
    let old = state.as_deref();
    match action {
        Action::Get => (Answer::Value(state.clone()), state.clone()),
        Action::Contains => (Answer::There(state.is_some()), state.clone()),
        Action::Insert(value) => (Answer::Value(state.clone()), Some(value.clone())),
        Action::Remove => (Answer::Value(state.clone()), None),
        Action::Cas(expected, new) if expected == state => (Answer::Swapped, new.clone()),
        Action::Cas(..) => (Answer::NotSwapped(state.clone()), state.clone()),
        Action::Merge(operand) | Action::UpdateAndFetch(operand) => {
            let new = Some(append(old, operand));
            (Answer::Value(new.clone()), new)
        }
        Action::FetchAndUpdate(value) => (Answer::Value(state.clone()), toggle(old, value)),
    }
}

/// True when the events, at most 64, can be put in an order that respects their times and explains the
/// answers.
pub fn linearizable(start: &Value, events: &[Event]) -> bool {
    assert!(events.len() <= 64, "a set of events is one word");
    let all = if events.len() == 64 { u64::MAX } else { (1 << events.len()) - 1 };
    let mut seen = HashSet::new();
    let mut open = vec![(0, start.clone())];
    while let Some((taken, state)) = open.pop() {
        if taken == all {
            return true;
        }
        let left = || events.iter().enumerate().filter(|(i, _)| taken >> i & 1 == 0);
        let first_end = left().map(|(_, event)| event.end).min().expect("some are left");
        for (i, event) in left().filter(|(_, event)| event.begin < first_end) {
            let (answer, next) = step(&state, &event.action);
            if answer == event.answer {
                let reached = (taken | 1 << i, next);
                if seen.insert(reached.clone()) {
                    open.push(reached);
                }
            }
        }
    }
    false
}

/// Pairs of operations of different threads that ran at the same time.
pub fn overlaps(events: &[Event]) -> usize {
    let pairs = events.iter().enumerate().flat_map(|(i, a)| events[i + 1..].iter().map(move |b| (a, b)));
    pairs.filter(|(a, b)| a.thread != b.thread && a.begin < b.end && b.begin < a.end).count()
}

fn event(begin: u64, end: u64, action: Action, answer: Answer) -> Event {
    Event { begin, end, thread: usize::try_from(begin).expect("small"), action, answer }
}

fn value(text: &str) -> Value {
    Some(text.as_bytes().to_vec())
}

#[test]
fn histories_that_a_register_explains_are_accepted() {
    let insert = |begin, end, text: &str, old: Value| {
        event(begin, end, Action::Insert(text.as_bytes().to_vec()), Answer::Value(old))
    };
    let get = |begin, end, found: Value| event(begin, end, Action::Get, Answer::Value(found));
    assert!(linearizable(&None, &[]));
    assert!(linearizable(&None, &[insert(0, 1, "a", None), get(2, 3, value("a"))]));
    // The read overlaps the write: before or after.
    assert!(linearizable(&None, &[insert(0, 3, "a", None), get(1, 2, None)]));
    assert!(linearizable(&None, &[insert(0, 3, "a", None), get(1, 2, value("a"))]));
    // Both writes overlap; the later call came first.
    assert!(linearizable(
        &None,
        &[insert(0, 5, "a", value("b")), insert(1, 4, "b", None), get(6, 7, value("a"))]
    ));
    let cas = Action::Cas(value("a"), None);
    assert!(linearizable(&value("a"), &[event(0, 1, cas.clone(), Answer::Swapped), get(2, 3, None)]));
    assert!(linearizable(&value("b"), &[event(0, 1, cas, Answer::NotSwapped(value("b")))]));
}

#[test]
fn histories_that_no_register_explains_are_rejected() {
    let insert = |begin, end, text: &str, old: Value| {
        event(begin, end, Action::Insert(text.as_bytes().to_vec()), Answer::Value(old))
    };
    let get = |begin, end, found: Value| event(begin, end, Action::Get, Answer::Value(found));
    // A stale read after the write returned.
    assert!(!linearizable(&None, &[insert(0, 1, "a", None), get(2, 3, None)]));
    // Two reads, one after the other, see a write come and go.
    let back = [insert(0, 9, "a", None), get(1, 2, value("a")), get(3, 4, None)];
    assert!(!linearizable(&None, &back));
    // Two writes that both replaced the same value.
    assert!(!linearizable(&None, &[insert(0, 3, "a", None), insert(1, 4, "b", None)]));
    // Two appends, one lost.
    let append =
        |begin, end, new: &str| event(begin, end, Action::Merge(b"x".to_vec()), Answer::Value(value(new)));
    assert!(!linearizable(&None, &[append(0, 3, "x"), append(1, 4, "x")]));
    assert!(linearizable(&None, &[append(0, 3, "x"), append(1, 4, "xx")]));
    // Two swaps from one value.
    let cas = |begin, end| event(begin, end, Action::Cas(value("a"), value("b")), Answer::Swapped);
    assert!(!linearizable(&value("a"), &[cas(0, 3), cas(1, 4)]));
    // A value that nobody wrote.
    assert!(!linearizable(&None, &[get(0, 1, value("z"))]));
}

#[test]
fn overlapping_operations_of_different_threads_are_counted() {
    let get = |begin, end| event(begin, end, Action::Get, Answer::Value(None));
    assert_eq!(overlaps(&[get(0, 1), get(2, 3), get(4, 5)]), 0);
    assert_eq!(overlaps(&[get(0, 3), get(1, 5), get(4, 6)]), 2);
}
