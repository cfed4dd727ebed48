//! What several test files share: scratch directories, a seeded generator, tiny sizes, keys and values, a
//! watchdog.
//!
//! Everything here is deterministic given a seed, except the watchdog, which looks at the clock.

#![allow(dead_code, reason = "every test binary includes this file and uses a part of it")]

use sled::testing::Tuning;
use sled::transaction::{TransactionError, TransactionResult};
use sled::{Config, IVec, Result};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How much longer than by default to go on: 1, or what `SLED_SOAK` says.
pub fn soak() -> u64 {
    std::env::var("SLED_SOAK").map_or(1, |text| text.parse().unwrap_or(10).max(1))
}

/// Runs a closure on so many threads at once, each with its number; fails when one of them does.
pub fn on_threads<T: Send>(threads: usize, run: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let start = |thread| {
            let (run, barrier) = (&run, &barrier);
            scope.spawn(move || {
                barrier.wait();
                run(thread)
            })
        };
        let all: Vec<_> = (0..threads).map(start).collect();
        all.into_iter().map(|thread| thread.join().expect("no check failed")).collect()
    })
}

/// The answer of a transaction that does not abort.
pub fn done<A>(result: TransactionResult<A, ()>) -> Result<A> {
    match result {
        Ok(answer) => Ok(answer),
        Err(TransactionError::Storage(error)) => Err(error),
        Err(TransactionError::Abort(())) => panic!("nobody aborted"),
    }
}

/// A pair as iterators and navigation return it.
pub type Pair = (IVec, IVec);

/// A directory of its own for one test; removed when dropped, also when the test panics.
pub struct Scratch(PathBuf);

impl Scratch {
    /// An empty directory; `name` must be used by one test only.
    pub fn new(name: &str) -> Scratch {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: only uniqueness matters.
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{process}-{unique}"));
        // A killed run with the same process id may have left something.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the target directory is writable");
        Scratch(path)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path below it; nothing is created.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A small generator (splitmix64): every seed, also 0, is a good one.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// The same as an index.
    pub fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).expect("below a usize")
    }

    /// True once in `n` calls on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Any element.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }
}

/// Sizes that make every rare path run within a few hundred operations.
pub fn tiny(seed: u64, threads: bool) -> Tuning {
    let mut random = Random::new(seed);
    Tuning {
        leaf_bytes: *random.pick(&[256, 384, 512, 1024]),
        fanout: *random.pick(&[3, 4]),
        redo_buffer: 256,
        segment: 4096,
        redo_budget: *random.pick(&[8 << 10, 16 << 10, 32 << 10]),
        threads,
    }
}

/// A configuration that goes with [`tiny`]: little memory, no timer, short id intervals.
pub fn tiny_config() -> Config {
    Config::new().cache_capacity(64 << 10).flush_every_ms(None).idgen_persist_interval(7)
}

/// A key described in a few words, so that a failing program stays readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The empty key.
    Empty,
    /// One byte.
    Byte(u8),
    /// Two bytes, big-endian.
    Short(u16),
    /// A text, as people use them.
    Text(u16),
    /// A prefix of 300 equal bytes, then two bytes.
    SharedPrefix(u16),
    /// The bytes of the number, then so many bytes of 0xFF.
    TrailingFf(u8, u16),
    /// So many bytes of 0xFF.
    AllFf(u16),
    /// Zero bytes: prefixes of each other.
    Zeros(u8),
    /// A key of that length, different from others of the length in its last two bytes only.
    Long(u32, u16),
}

impl Key {
    /// The key itself.
    pub fn bytes(self) -> Vec<u8> {
        match self {
            Key::Empty => Vec::new(),
            Key::Byte(b) => vec![b],
            Key::Short(n) => n.to_be_bytes().to_vec(),
            Key::Text(n) => format!("user/{:04}/name", n % 1000).into_bytes(),
            Key::SharedPrefix(n) => [&[b'p'; 300][..], &n.to_be_bytes()].concat(),
            Key::TrailingFf(b, n) => [&[b][..], &vec![0xFF; usize::from(n)]].concat(),
            Key::AllFf(n) => vec![0xFF; usize::from(n)],
            Key::Zeros(n) => vec![0; usize::from(n)],
            Key::Long(len, n) => {
                let mut key = vec![b'l'; len as usize];
                let tail = n.to_be_bytes();
                let at = key.len().saturating_sub(tail.len());
                let len = key.len() - at;
                key[at..].copy_from_slice(&tail[..len]);
                key
            }
        }
    }
}

/// A value: so many bytes that look random and depend on the tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its length.
    pub len: u32,
    /// Values of different tags differ, unless they are short.
    pub tag: u32,
}

impl Value {
    /// The value itself.
    pub fn bytes(self) -> Vec<u8> {
        let mut random = Random::new(u64::from(self.tag));
        let mut bytes = Vec::with_capacity(self.len as usize + 8);
        while bytes.len() < self.len as usize {
            bytes.extend_from_slice(&random.next().to_le_bytes());
        }
        bytes.truncate(self.len as usize);
        bytes
    }
}

/// CRC-32 (IEEE), to continue with more bytes; starts at 0.
pub fn crc32(so_far: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut word = i as u32;
            let mut bit = 0;
            while bit < 8 {
                word = if word & 1 == 1 { (word >> 1) ^ 0xEDB8_8320 } else { word >> 1 };
                bit += 1;
            }
            table[i] = word;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!so_far, |crc, byte| (crc >> 8) ^ TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)])
}

/// Raises a flag when dropped, so that no thread waits for one that panicked.
pub struct RaiseOnDrop<'a>(pub &'a AtomicBool);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire of whoever polls the flag.
        self.0.store(true, Ordering::Release);
    }
}

/// Runs a future to its end on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}

/// Aborts the process, with a message, when nothing moved for too long: a hang would otherwise show
/// neither which test it was nor how far it came.
pub struct Watchdog {
    shared: Arc<Watched>,
    thread: Option<JoinHandle<()>>,
}

struct Watched {
    progress: AtomicU64,
    done: AtomicBool,
}

impl Watchdog {
    /// Watches over the test `name`; every `limit` seconds something must have called `kick`.
    pub fn start(name: &'static str, limit: u64) -> Watchdog {
        let shared = Arc::new(Watched { progress: AtomicU64::new(0), done: AtomicBool::new(false) });
        let watched = Arc::clone(&shared);
        let thread = std::thread::spawn(move || watch(name, Duration::from_secs(limit), &watched));
        Watchdog { shared, thread: Some(thread) }
    }

    /// Something moved.
    pub fn kick(&self) {
        // Relaxed: only that the number changes matters.
        self.shared.progress.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `watch`.
        self.shared.done.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn watch(name: &str, limit: Duration, watched: &Watched) {
    let mut seen = 0;
    let mut since = Instant::now();
    // Acquire: pairs with the Release in `Watchdog::drop`.
    while !watched.done.load(Ordering::Acquire) {
        // Relaxed: only that the number changes matters.
        let progress = watched.progress.load(Ordering::Relaxed);
        if progress != seen {
            seen = progress;
            since = Instant::now();
        }
        if since.elapsed() > limit {
            // Not `eprintln`: its output is held back until the test ends, which it does not.
            let text = format!("{name}: no progress for {limit:?} after {progress} steps\n");
            let _ = std::io::stderr().write_all(text.as_bytes());
            std::process::abort();
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
}
