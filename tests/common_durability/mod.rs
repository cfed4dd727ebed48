//! What the tests of durability and resources share: seeds, a watchdog, scratch directories, tiny sizes.

#![allow(dead_code, reason = "each test binary uses its part")]

use sled::testing::{Storage, Tuning, open_on};
use sled::{Config, Db};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much longer than by default to go on: 1, or what `SLED_SOAK` says (10 when it says no number).
pub fn soak() -> u64 {
    std::env::var("SLED_SOAK").map_or(1, |text| text.parse().unwrap_or(10).max(1))
}

/// A small generator (splitmix64): the same seed gives the same run.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// Hashes eight bytes at a time; for comparing states, not for storing.
pub fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut sum = mix(seed ^ bytes.len() as u64);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        sum = (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        sum ^= sum >> 32;
    }
    rest.iter().fold(sum, |sum, byte| mix(sum ^ u64::from(*byte)))
}

/// `len` bytes that only `seed` gives.
pub fn bytes_of(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

/// Sizes that make every rare path run within a few hundred operations, all in the foreground.
pub fn tiny(redo_buffer: usize) -> Tuning {
    Tuning { leaf_bytes: 512, fanout: 4, redo_buffer, segment: 4096, redo_budget: 16 << 10, threads: false }
}

/// What goes with `tiny`.
pub fn tiny_config() -> Config {
    Config::new().cache_capacity(64 << 10).idgen_persist_interval(4).flush_every_ms(None)
}

pub fn open_tiny(medium: &(impl Storage + Clone), redo_buffer: usize) -> sled::Result<Db> {
    open_on(medium.clone(), &tiny_config(), tiny(redo_buffer))
}

/// Aborts the process, saying what was last begun, when that takes too long.
#[derive(Clone)]
pub struct Watchdog(Arc<Mutex<Option<(Instant, String)>>>);

impl Watchdog {
    pub fn new(limit: Duration) -> Watchdog {
        let dog = Watchdog(Arc::default());
        let weak = Arc::downgrade(&dog.0);
        std::thread::spawn(move || {
            while let Some(state) = weak.upgrade() {
                if let Some((since, what)) = &*state.lock().unwrap_or_else(PoisonError::into_inner)
                    && since.elapsed() > limit
                {
                    eprintln!("hang: {what} took more than {limit:?}");
                    std::process::abort();
                }
                drop(state);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        dog
    }

    /// Says what begins now.
    pub fn begin(&self, what: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), what.into()));
    }

    /// Nothing is under way.
    pub fn rest(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A directory of its own, removed with everything in it.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: only has to differ.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sled-{name}-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the directory for temporary files is writable");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Every file below `directory` with its bytes, in name order.
pub fn files_below(directory: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut all = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                all.push((path.clone(), None));
                open.push(path);
            } else {
                let bytes = std::fs::read(&path).expect("readable");
                all.push((path, Some(bytes)));
            }
        }
    }
    all.sort();
    all
}

/// Runs a future on this thread.
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
