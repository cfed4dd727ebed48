//! What the tests of durability and resources share: seeds, a watchdog, scratch directories, tiny sizes, a
//! medium that tells before every call.

#![allow(dead_code, reason = "each test binary uses its part")]

#[cfg(unix)]
pub mod lives;
pub mod strace;

use sled::testing::{OpClass, SimStorage, Storage, Tuning, open_on};
use sled::{Config, Db};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much longer than by default to go on: 1, or what `SLED_SOAK` says (10 when it says no number).
pub fn soak() -> u64 {
    std::env::var("SLED_SOAK").map_or(1, |text| text.parse().unwrap_or(10).max(1))
}

/// Whether it became true in time.
pub fn within(limit: Duration, what: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !what() {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
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

/// A call that is about to be made.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub class: OpClass,
    /// What is about to be written; empty for the other classes.
    pub bytes: &'a [u8],
}

type Hook = Arc<dyn Fn(Request<'_>) + Send + Sync>;

/// A medium that has a hook called before each of its calls, on the thread that makes it; clones share both.
#[derive(Clone, Default)]
pub struct Hooked {
    pub medium: SimStorage,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hooked({:?})", self.medium)
    }
}

impl Hooked {
    /// Without a hook yet.
    pub fn on(medium: SimStorage) -> Hooked {
        Hooked { medium, hook: Arc::default() }
    }

    /// Has `hook` called from now on. It may use the database: no lock is held meanwhile.
    pub fn before(&self, hook: impl Fn(Request<'_>) + Send + Sync + 'static) {
        self.set(Some(Arc::new(hook)));
    }

    /// Has `hook` called before the next call that is `wanted`, and then never again.
    pub fn before_next(
        &self,
        wanted: impl Fn(Request<'_>) -> bool + Send + Sync + 'static,
        hook: impl FnOnce() + Send + 'static,
    ) {
        let hook = Mutex::new(Some(hook));
        self.before(move |request| {
            if wanted(request)
                && let Some(hook) = take(&hook)
            {
                hook();
            }
        });
    }

    /// Ends the calls of the hook.
    pub fn unhook(&self) {
        self.set(None);
    }

    fn set(&self, hook: Option<Hook>) {
        // The old one, which may own a database, is dropped outside of the lock.
        let _old = std::mem::replace(&mut *self.hook.lock().unwrap_or_else(PoisonError::into_inner), hook);
    }

    fn call(&self, class: OpClass, bytes: &[u8]) {
        let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(hook) = hook {
            hook(Request { class, bytes });
        }
    }
}

fn take<T>(from: &Mutex<Option<T>>) -> Option<T> {
    from.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Storage for Hooked {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.call(OpClass::Read, &[]);
        self.medium.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.call(OpClass::Write, buf);
        self.medium.write_at(offset, buf)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.call(OpClass::Sync, &[]);
        self.medium.sync_data()
    }

    fn is_new(&self) -> io::Result<bool> {
        self.medium.is_new()
    }

    fn len(&self) -> io::Result<u64> {
        self.medium.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call(OpClass::Resize, &[]);
        self.medium.set_len(len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.call(OpClass::Resize, &[]);
        self.medium.punch_hole(offset, len)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.medium.allocated()
    }
}
