//! Every call of the medium fails once, and from then on; nothing panics, hangs, lies or gets lost.
//!
//! A workload of a few hundred calls runs once healthy, to count them. Then it runs with the n-th call of a class
//! failing, for every n, and is compared with a model that knows what an operation that failed may have left.
//!
//! - A failed write or resize is an error to somebody, acknowledges nothing, and may be retried once it can succeed.
//! - After a failed sync every later write and flush is an error, and reads go on.
//! - A failed read is an error of that operation only.
//! - What was acknowledged is there after a reopening, whatever failed.

mod common_durability;

use common_durability::{Random, Watchdog, bytes_of, open_tiny, soak};
use sled::testing::{CrashMode, OpClass, SimStorage, checkpoint, counters, maintain};
use sled::{Db, Error, Tree};
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

const BUFFER: usize = 512;
const OPS: usize = 420;
const KEYS: u64 = 60;

type Key = (usize, Vec<u8>);
type Value = Option<Vec<u8>>;

/// What every key may hold. The last value of a list is the newest.
#[derive(Clone, Default)]
struct Model {
    /// Values that may be read now: one, or two after an operation failed.
    now: BTreeMap<Key, Vec<Value>>,
    /// Values that may be found after a crash: the acknowledged ones and everything tried since.
    later: BTreeMap<Key, Vec<Value>>,
}

impl Model {
    fn wrote(&mut self, key: Key, value: Value, returned: bool) {
        let now = self.now.entry(key.clone()).or_insert_with(|| vec![None]);
        if returned {
            now.clear();
        }
        now.push(value.clone());
        self.later.entry(key).or_insert_with(|| vec![None]).push(value);
    }

    fn flushed(&mut self) {
        self.later = self.now.clone();
    }

    fn read(&mut self, key: Key, value: Value) -> Result<(), String> {
        let now = self.now.entry(key.clone()).or_insert_with(|| vec![None]);
        if !now.contains(&value) {
            return Err(format!(
                "{key:?} reads as {}, not {}",
                show(&value),
                now.iter().map(show).collect::<String>()
            ));
        }
        *now = vec![value];
        Ok(())
    }
}

fn show(value: &Value) -> String {
    value
        .as_ref()
        .map_or("nothing, ".into(), |v| format!("{} bytes {:02x?}.., ", v.len(), &v[..v.len().min(4)]))
}

/// A database under test; the trees are opened when it is healthy.
struct Subject {
    medium: SimStorage,
    db: Db,
    trees: [Tree; 2],
    model: Model,
    /// Calls of any kind that returned an error.
    errors: Vec<Error>,
}

fn trees(db: &Db) -> sled::Result<[Tree; 2]> {
    Ok([db.open_tree("one")?, db.open_tree("two")?])
}

impl Subject {
    fn new() -> Subject {
        let medium = SimStorage::new();
        let db = open_tiny(&medium, BUFFER).expect("healthy");
        let trees = trees(&db).expect("healthy");
        // Enough to read from the medium what does not fit into the cache.
        let mut subject = Subject { medium, db, trees, model: Model::default(), errors: Vec::new() };
        for i in 0..KEYS {
            subject.put((i as usize % 2, key(i)), Some(bytes_of(i, 1500))).expect("healthy");
        }
        subject.flush().expect("healthy");
        maintain(&subject.db).expect("healthy");
        subject
    }

    fn note<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(e) = &result {
            self.errors.push(e.clone());
        }
        result
    }

    fn put(&mut self, key: Key, value: Value) -> Result<(), Error> {
        let tree = &self.trees[key.0];
        let result = match &value {
            Some(value) => tree.insert(&key.1, &value[..]),
            None => tree.remove(&key.1),
        };
        self.model.wrote(key, value, result.is_ok());
        self.note(result).map(drop)
    }

    fn flush(&mut self) -> Result<(), Error> {
        let result = self.db.flush();
        if result.is_ok() {
            self.model.flushed();
        }
        self.note(result).map(drop)
    }

    /// Reads a key; the outer error is a lie of the database, the inner one its honest failure.
    fn get(&mut self, key: Key) -> Result<Result<(), Error>, String> {
        let result = self.trees[key.0].get(&key.1);
        match self.note(result) {
            Ok(found) => self.model.read(key, found.map(|v| v.to_vec())).map(Ok),
            Err(e) => Ok(Err(e)),
        }
    }

    /// Every key, all of which must be readable.
    fn read_all(&mut self, when: &str) -> Result<(), String> {
        let keys: Vec<Key> = self.model.now.keys().cloned().collect();
        for key in keys {
            self.get(key.clone())?.map_err(|e| format!("{when}: {key:?} cannot be read: {e}"))?;
        }
        for (number, tree) in self.trees.iter().enumerate() {
            let mut found: Vec<Key> = Vec::new();
            for pair in tree.iter() {
                found.push((number, pair.map_err(|e| format!("{when}: the scan fails: {e}"))?.0.to_vec()));
            }
            let there = self.model.now.iter().filter(|(key, v)| key.0 == number && v[0].is_some());
            if !there.map(|(key, _)| key).eq(&found) {
                return Err(format!("{when}: a scan of tree {number} finds {} other keys", found.len()));
            }
        }
        Ok(())
    }

    /// One step of the workload.
    fn step(&mut self, number: usize, random: &mut Random) -> Result<Result<(), Error>, String> {
        let at = (random.below(2) as usize, key(random.below(KEYS)));
        let len = if random.below(25) == 0 { 5000 } else { random.below(400) };
        let value = bytes_of(number as u64 + 1000, 8 + len as usize);
        Ok(match number % 30 {
            9 | 19 | 29 => self.flush(),
            14 => {
                let result = maintain(&self.db);
                self.note(result)
            }
            24 if number % 60 == 24 => {
                let result = checkpoint(&self.db);
                self.note(result)
            }
            4 | 7 | 12 | 17 | 22 | 27 => self.get(at)?,
            2 | 15 => self.put(at, None),
            _ => self.put(at, Some(value)),
        })
    }
}

fn key(i: u64) -> Vec<u8> {
    format!("some key {i:04}").into_bytes()
}

/// Checks that a crash of `medium` holds what `model` says.
fn check_reopened(medium: &SimStorage, mode: CrashMode, model: &Model) -> Result<(), String> {
    let after = medium.crash(7, mode);
    let db = open_tiny(&after, BUFFER).map_err(|e| format!("{mode:?}: does not open: {e}"))?;
    let trees = trees(&db).map_err(|e| format!("{mode:?}: {e}"))?;
    let mut there = 0;
    for (key, values) in &model.later {
        let found = trees[key.0].get(&key.1).map_err(|e| format!("{mode:?}: {key:?}: {e}"))?;
        let found = found.map(|v| v.to_vec());
        there += usize::from(found.is_some());
        if !values.contains(&found) {
            let expected: String = values.iter().map(show).collect();
            return Err(format!("{mode:?}: {key:?} is {} not one of {expected}", show(&found)));
        }
    }
    let counted: usize = trees.iter().map(|tree| tree.iter().filter(Result::is_ok).count()).sum();
    if counted != there { Err(format!("{mode:?}: {counted} keys instead of {there}")) } else { Ok(()) }
}

/// Calls of a class that the healthy workload makes.
fn calls_of(class: OpClass) -> u64 {
    let mut subject = Subject::new();
    subject.medium.start_recording();
    let mut random = Random(5);
    for number in 0..OPS {
        subject.step(number, &mut random).expect("healthy").expect("healthy");
    }
    subject.read_all("healthy").expect("healthy");
    let counters = counters(&subject.db);
    drop(subject.db);
    let recording = subject.medium.stop_recording().expect("started above");
    let count = recording.calls().filter(|call| call.class == class).count() as u64;
    println!("{class:?}: {count} calls; {counters:?}");
    count
}

/// The workload with one failure in it.
fn run_failing(class: OpClass, n: u64, once: bool) -> Result<(), String> {
    let mut subject = Subject::new();
    subject.medium.fail(class, n, once, io::ErrorKind::Other);
    let mut random = Random(5);
    let mut hit = None;
    for number in 0..OPS {
        let result = subject.step(number, &mut random)?;
        let injected = subject.medium.injected();
        if hit.is_none() && injected > 0 {
            hit = Some(number);
            if class == OpClass::Sync {
                break;
            }
            // Whoever was hit, the database goes on; that a later flush does not lie is checked by the crash.
            if once && class == OpClass::Read && result.is_err() {
                subject
                    .step(number, &mut random)?
                    .map_err(|e| format!("a read that failed once goes on failing: {e}"))?;
            }
        }
        if result.is_err() && injected == 0 {
            return Err(format!("step {number} fails although nothing did: {:?}", subject.errors));
        }
    }
    if let Some(number) = hit
        && class == OpClass::Sync
    {
        poisoned(&mut subject, number)?;
    }
    for mode in [CrashMode::DropUnsynced, CrashMode::Torn, CrashMode::KeepAll] {
        check_reopened(&subject.medium, mode, &subject.model)?;
    }
    if class != OpClass::Sync {
        if class == OpClass::Write {
            subject.read_all("while writes fail")?;
        }
        resumed(&mut subject)?;
    }
    // The failure may also hit, or go on during, the closing.
    let Subject { medium, db, trees, model, .. } = subject;
    drop((db, trees));
    check_reopened(&medium, CrashMode::DropUnsynced, &model)?;
    check_reopened(&medium, CrashMode::KeepAll, &model)
}

/// After a failed sync, healed or not: no write, no flush, but every read.
fn poisoned(subject: &mut Subject, number: usize) -> Result<(), String> {
    for round in 0..2 {
        if subject.errors.is_empty() {
            // Nobody waited for the sync that failed; the next to write or flush is told.
            subject.flush().err().ok_or("the failed sync is told to nobody")?;
        }
        let at = |n: u64| (n as usize % 2, key(n));
        for n in 0..3 {
            let value = Some(bytes_of(90_000 + number as u64 + n, 40));
            if subject.put(at(n), value).is_ok() {
                return Err(format!("round {round}: a write succeeds after a failed sync"));
            }
            if subject.flush().is_ok() {
                return Err(format!("round {round}: a flush succeeds after a failed sync"));
            }
        }
        for pass in ["maintain", "checkpoint"] {
            let result = if pass == "maintain" { maintain(&subject.db) } else { checkpoint(&subject.db) };
            if pass == "checkpoint" && result.is_ok() {
                return Err(format!("round {round}: a checkpoint succeeds after a failed sync"));
            }
        }
        if let Some(e) = subject.errors.iter().find(|e| !matches!(e, Error::Io(_))) {
            return Err(format!("round {round}: not an I/O error: {e:?}"));
        }
        subject.read_all("after a failed sync")?;
        subject.medium.heal();
    }
    Ok(())
}

/// After the failure ended: everything works again without a reopening.
fn resumed(subject: &mut Subject) -> Result<(), String> {
    subject.medium.heal();
    subject.read_all("after the failure ended")?;
    for n in 0..6 {
        let at = (n as usize % 2, key(n));
        subject
            .put(at, Some(bytes_of(80_000 + n, 300)))
            .map_err(|e| format!("no write after the failure: {e}"))?;
    }
    subject.flush().map_err(|e| format!("no flush after the failure ended: {e}"))?;
    checkpoint(&subject.db).map_err(|e| format!("no checkpoint after the failure ended: {e}"))?;
    subject.read_all("after the failure ended and a checkpoint")?;
    check_reopened(&subject.medium, CrashMode::DropUnsynced, &subject.model)
}

/// Runs `body`, a panic of which is a failure like any other, and collects what went wrong.
fn attempt(
    failures: &mut Vec<String>,
    dog: &Watchdog,
    what: String,
    body: impl FnOnce() -> Result<(), String>,
) {
    dog.begin(&what);
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => {}
        Ok(Err(text)) => failures.push(format!("{what}: {text}")),
        Err(_) => failures.push(format!("{what}: panics (see above)")),
    }
    dog.rest();
    assert!(failures.len() < 10, "failures:\n{}", failures.join("\n"));
}

fn fail_everywhere(class: OpClass) {
    let (count, start) = (calls_of(class), Instant::now());
    let dog = Watchdog::new(Duration::from_secs(10));
    let mut failures = Vec::new();
    // Every call up to 400, and a sample of those beyond.
    let beyond = (400..count).step_by((count as usize / 200 / soak() as usize).max(1));
    let mut runs = 0;
    for n in (0..count.min(400)).chain(beyond) {
        for once in [true, false] {
            runs += 1;
            let what = format!("{class:?} number {n} fails {}", if once { "once" } else { "from then on" });
            attempt(&mut failures, &dog, what, || run_failing(class, n, once));
        }
    }
    assert!(failures.is_empty(), "failures:\n{}", failures.join("\n"));
    println!("{class:?}: {runs} runs in {:?}", start.elapsed());
}

#[test]
fn a_failed_read_is_an_error_of_that_operation_only() {
    fail_everywhere(OpClass::Read);
}

#[test]
fn a_failed_write_may_be_retried() {
    fail_everywhere(OpClass::Write);
}

#[test]
fn after_a_failed_sync_nothing_is_written_and_everything_read() {
    fail_everywhere(OpClass::Sync);
}

#[test]
fn a_failed_resize_loses_nothing() {
    fail_everywhere(OpClass::Resize);
}

/// Keeps writing until there is no room, at `capacity` bytes.
fn fill_up(capacity: u64) -> Result<(), String> {
    let mut subject = Subject::new();
    subject.medium.set_capacity(Some(capacity));
    let mut random = Random(9);
    let mut full = None;
    for number in 0..20_000 {
        // Ever more keys, so that cleaning cannot go on making room.
        let at = (number % 2, format!("more {number:06}").into_bytes());
        let result = subject.put(at, Some(bytes_of(number as u64, 200 + random.below(400) as usize)));
        let result = result.and_then(|()| if number % 10 == 9 { subject.flush() } else { Ok(()) });
        if let Err(e) = result {
            full = Some(e);
            break;
        }
    }
    match full {
        Some(Error::Io(e)) if e.kind() == io::ErrorKind::StorageFull => {}
        other => return Err(format!("expected the error StorageFull, got {other:?}")),
    }
    subject.read_all("when full")?;
    for n in 0..20 {
        // May fail or succeed, by what room there is left; neither panics nor lies.
        let _ = subject.put((0, key(n)), (n % 3 > 0).then(|| bytes_of(n, 700)));
        let _ = subject.flush();
        let _ = maintain(&subject.db);
    }
    subject.read_all("when full for a while")?;
    check_reopened(&subject.medium, CrashMode::DropUnsynced, &subject.model)?;
    check_reopened(&subject.medium, CrashMode::KeepAll, &subject.model)?;
    // Opening while there is no room: an error or the data, and never a loss.
    let still_full = subject.medium.crash(3, CrashMode::DropUnsynced);
    still_full.set_capacity(Some(0));
    drop(open_tiny(&still_full, BUFFER));
    still_full.set_capacity(None);
    check_reopened(&still_full, CrashMode::KeepAll, &subject.model)?;
    subject.medium.set_capacity(None);
    resumed(&mut subject)
}

#[test]
fn a_full_medium_can_be_read_and_goes_on_when_there_is_room() {
    let dog = Watchdog::new(Duration::from_secs(20));
    let mut failures = Vec::new();
    let least = Subject::new().medium.contents().len() as u64;
    for step in 0..40 * soak() {
        // Odd numbers too: a write that would have fitted but for some bytes.
        let capacity = least + 100 + step * 9973 / soak();
        attempt(&mut failures, &dog, format!("capacity {capacity}"), || fill_up(capacity));
    }
    assert!(failures.is_empty(), "failures:\n{}", failures.join("\n"));
}

/// A medium with data in every form: images, big values, a redo tail.
fn populated() -> (SimStorage, Model) {
    let mut subject = Subject::new();
    let mut random = Random(11);
    for number in 0..200 {
        subject.step(number, &mut random).expect("healthy").expect("healthy");
    }
    subject.flush().expect("healthy");
    (subject.medium.crash(0, CrashMode::DropUnsynced), subject.model)
}

/// Fails calls while `medium` is opened; opening it again healed must show `model`.
fn fail_opening(medium: &SimStorage, n: u64, once: bool, model: &Model) -> Result<(), String> {
    let medium = medium.crash(0, CrashMode::KeepAll);
    medium.fail_any(n, once, io::ErrorKind::Other);
    let opened = open_tiny(&medium, BUFFER);
    match &opened {
        Err(Error::Io(_)) => {}
        Err(e) => return Err(format!("a failed call is not damage: {e:?}")),
        // It could do without the call that failed; what it shows must be right all the same.
        Ok(_) => {
            medium.heal();
            check_reopened(&medium, CrashMode::KeepAll, model)
                .map_err(|e| format!("opened in spite: {e}"))?;
        }
    }
    check_reopened(&medium, CrashMode::DropUnsynced, model)?;
    drop(opened);
    medium.heal();
    check_reopened(&medium, CrashMode::Torn, model)?;
    check_reopened(&medium, CrashMode::KeepAll, model)
}

#[test]
fn errors_while_opening_are_errors_and_lose_nothing() {
    let dog = Watchdog::new(Duration::from_secs(10));
    let mut failures = Vec::new();
    let (data, model) = populated();
    for (name, medium, model) in
        [("a new database", SimStorage::new(), Model::default()), ("an old database", data, model)]
    {
        let counting = medium.crash(0, CrashMode::KeepAll);
        let opened = open_tiny(&counting, BUFFER).expect("healthy");
        let count = counting.ops();
        println!("{name}: opening takes {count} calls");
        drop(opened);
        for n in 0..count {
            for once in [true, false] {
                let what = format!("{name}: call {n} of opening fails, once: {once}");
                attempt(&mut failures, &dog, what, || fail_opening(&medium, n, once, &model));
            }
        }
    }
    assert!(failures.is_empty(), "failures:\n{}", failures.join("\n"));
}
