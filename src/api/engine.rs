//! Opens the layers bottom-up, owns them and the threads, shuts down in order.
//!
//! # How it works
//!
//! Opening refuses a directory of 0.34.7, locks the file, and hands each layer its part of the configuration: storage,
//! log, pagecache, trees, and the threads last. The last handle that is dropped stops the threads, flushes, makes a
//! checkpoint if there is enough to be saved the next open, and notes in the superblock where the stream ends.

use super::compat::{Context, RunningConfig};
use super::config::Config;
use super::db::Db;
use super::merge_operator::Operator;
use super::testing::Tuning;
use super::threads::{Signals, Threads};
use super::tree::Tree;
use crate::base::metrics::{self, Op};
use crate::error::{Error, Result};
use crate::log::{Log, LogOptions, MAGIC, initial_contents};
use crate::pagecache::CacheOptions;
use crate::storage::Storage;
use crate::storage::shadow::Shadow;
use crate::tree::{BwTree, DEFAULT_TREE, Forest, TreeOptions};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Redo bytes that are worth a checkpoint when the database is closed.
const CLOSE_TAIL: u64 = 256 << 10;
/// Redo segments that are.
const CLOSE_SEGMENTS: usize = 6;
/// Smallest capacity that is kept to, bytes: below, nothing but evicting would be done.
const LEAST_CAPACITY: u64 = 64 << 10;

/// What the threads work on.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) forest: Forest,
    pub(super) signals: Signals,
    pub(super) config: Config,
}

impl Core {
    /// Makes everything durable; how far that went, as a stable LSN.
    pub(super) fn flush(&self) -> Result<u64> {
        if self.config.read_only {
            return Ok(self.forest.log().stability().stable().0);
        }
        let result = self.forest.flush();
        if let Err(error) = self.forest.log().stability().check() {
            self.config.latch_error(error);
        }
        result
    }

    /// From now on every write fails.
    #[cfg_attr(target_family = "wasm", allow(dead_code))]
    pub(super) fn poison(&self, error: Error) {
        self.config.latch_error(error.clone());
        self.forest.log().stability().poison(error);
    }
}

/// An open database. The last handle of any kind closes it.
#[derive(Debug)]
pub struct Engine {
    core: Arc<Core>,
    threads: Option<Mutex<Threads>>,
    /// What the handles of a tree share, by tree id.
    groups: Mutex<HashMap<u32, Arc<Group>>>,
    fresh: bool,
}

/// What all handles of a tree share.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// The merge operator.
    pub(super) operator: Operator,
}

/// Opens a database on the disk.
///
/// # Errors
/// As for [`Config::open`].
pub(super) fn open(config: &Config) -> Result<Db> {
    open_tuned(config, &Tuning { segment: config.segment_size, ..Tuning::default() })
}

/// As [`open`], with what users do not set.
///
/// # Errors
/// As there.
pub(super) fn open_tuned(config: &Config, tuning: &Tuning) -> Result<Db> {
    #[cfg(unix)]
    {
        let path = config.get_path();
        if config.read_only {
            return open_on(look_at(&path)?, config, tuning);
        }
        refuse_legacy(&path)?;
        let initial = initial_contents(tuning.segment, config.use_compression);
        let disk = crate::storage::disk::DiskStorage::open(&path, config.create_new, &initial)?;
        open_on(Arc::new(disk), config, tuning)
    }
    #[cfg(not(unix))]
    {
        if !config.temporary {
            let text = "only temporary databases, which live in memory, are possible on this platform";
            return Err(Error::Unsupported(text.into()));
        }
        open_on(Arc::new(crate::storage::sim::SimStorage::new()), config, tuning)
    }
}

/// Where a database is.
pub(super) type Medium = Arc<dyn Storage>;

/// Opens the file of a database for reading alone.
///
/// # Errors
/// `Unsupported` for one of 0.34.7 or older; `Io`.
#[cfg(unix)]
pub(super) fn look_at(path: &std::path::Path) -> Result<Medium> {
    refuse_legacy(path)?;
    Ok(Arc::new(crate::storage::disk::DiskStorage::open_read_only(path)?))
}

/// A directory of sled 0.34 is left as it is.
#[cfg(unix)]
fn refuse_legacy(path: &std::path::Path) -> Result<()> {
    let legacy = path.join("conf").is_file() || path.join("blobs").is_dir() || has_snapshot(path);
    if !legacy || crate::storage::disk::starts_with(path, MAGIC) {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "{} holds a database of sled 0.34.7 or older, in another format; export it with that version and import it here",
        path.display()
    )))
}

#[cfg(unix)]
fn has_snapshot(path: &std::path::Path) -> bool {
    let Ok(entries) = std::fs::read_dir(path) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("snap."))
}

/// Opens a database on a medium; an empty one becomes a new database.
///
/// # Errors
/// As for [`Config::open`].
pub(super) fn open_on(storage: Medium, config: &Config, tuning: &Tuning) -> Result<Db> {
    let _measured = metrics::measure(Op::Open);
    let storage: Medium = if config.read_only { Arc::new(Shadow::new(storage)?) } else { storage };
    if storage.is_new()? {
        storage.write_at(0, &initial_contents(tuning.segment, config.use_compression))?;
        storage.sync_data()?;
    }
    config.clear_error();
    let log = Log::open(
        storage,
        LogOptions {
            redo_buffer: tuning.redo_buffer.max(64),
            volatile: config.temporary,
            read_only: config.read_only,
            compression: config.use_compression.then_some(config.compression_factor),
        },
    )?;
    let asked = config.use_compression || (config.read_only && cfg!(feature = "compression"));
    if log.superblock().compressed && !asked || config.use_compression && !log.superblock().compressed {
        return Err(Error::Unsupported(format!(
            "use_compression({}): the database was created with use_compression({})",
            config.use_compression, !config.use_compression
        )));
    }
    let (amplification, share, redo_range) = match config.mode {
        super::config::Mode::LowSpace => ((1.3, 1.15), 50, 64 << 20..=256 << 20),
        super::config::Mode::HighThroughput => ((2.0, 1.15), 100, 64 << 20..=512 << 20),
    };
    let redo_budget = match tuning.redo_budget {
        // Nothing is won by a checkpoint in memory.
        _ if config.read_only => Some(u64::MAX / 8),
        0 => None,
        fixed => Some(fixed),
    };
    let options = TreeOptions {
        leaf: tuning.leaf_bytes.max(128),
        fanout: tuning.fanout.max(3),
        big_value: (tuning.leaf_bytes / 4).clamp(32, 8192),
        redo_budget,
        share,
        redo_range,
        amplification,
        id_interval: config.idgen_persist_interval,
    };
    let cache = CacheOptions { capacity: config.cache_capacity.max(LEAST_CAPACITY) };
    let (forest, fresh) = Forest::open(log, cache, options)?;
    let core = Arc::new(Core { forest, signals: Signals::default(), config: config.clone() });
    let threads = start_threads(&core, tuning)?;
    let groups = Mutex::default();
    let engine = Arc::new(Engine { core, threads, groups, fresh });
    let default = engine.tree(DEFAULT_TREE)?;
    let context = Context::new(RunningConfig::new(config.clone()));
    Ok(Db::new(context, default))
}

#[cfg(not(target_family = "wasm"))]
fn start_threads(core: &Arc<Core>, tuning: &Tuning) -> Result<Option<Mutex<Threads>>> {
    // Without them foreground calls do what must be done for reading.
    if !tuning.threads || core.config.read_only {
        return Ok(None);
    }
    // Weak: the log must not keep alive what owns it.
    let weak = Arc::downgrade(core);
    core.forest.log().set_wake(Box::new(move || {
        if let Some(core) = weak.upgrade() {
            core.signals.wrote(core.forest.log().backlog());
        }
    }));
    let weak = Arc::downgrade(core);
    core.forest.set_wake(Box::new(move || {
        if let Some(core) = weak.upgrade() {
            core.signals.maintain();
        }
    }));
    let every = core.config.flush_every_ms.map(|ms| std::time::Duration::from_millis(ms.max(1)));
    Ok(Some(Mutex::new(Threads::start(core, every)?)))
}

/// There are no threads: foreground calls do their work.
#[cfg(target_family = "wasm")]
fn start_threads(_core: &Arc<Core>, _tuning: &Tuning) -> Result<Option<Mutex<Threads>>> {
    Ok(None)
}

impl Engine {
    /// The trees.
    #[inline]
    pub(super) fn forest(&self) -> &Forest {
        &self.core.forest
    }

    /// What the handles work on.
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// What was configured, and the slot for the first fatal error.
    pub(super) fn config(&self) -> &Config {
        &self.core.config
    }

    /// Whether this open created the database.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Makes everything durable; the stable LSN.
    pub(super) fn flush(&self) -> Result<u64> {
        let _measured = metrics::measure(Op::Flush);
        self.core.flush()
    }

    /// One who awaits a flush by the log writer; `None`: there is no such thread.
    pub(super) fn await_flush(&self) -> Option<Arc<super::threads::FlushWaiter>> {
        self.threads.as_ref().and_then(|_| self.core.signals.await_flush())
    }

    /// A handle to the tree of a name, created if there is none.
    pub(super) fn tree(self: &Arc<Self>, name: &[u8]) -> Result<Tree> {
        Ok(self.handle(self.forest().open_tree(name)?))
    }

    fn handle(self: &Arc<Self>, tree: Arc<BwTree>) -> Tree {
        let group = Arc::clone(self.groups.lock().entry(tree.id).or_default());
        Tree::new(Arc::clone(self), tree, group)
    }

    /// A handle to the tree of a name, if there is one.
    pub(super) fn existing_tree(self: &Arc<Self>, name: &[u8]) -> Option<Tree> {
        self.forest().catalog.get(name).map(|tree| self.handle(tree))
    }

    /// Drops the tree of a name; `false`: there is none.
    pub(super) fn drop_tree(&self, name: &[u8]) -> Result<bool> {
        let Some(tree) = self.forest().catalog.get(name) else { return Ok(false) };
        let dropped = self.forest().drop_tree(name)?;
        self.groups.lock().remove(&tree.id);
        Ok(dropped)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(threads) = &self.threads {
            threads.lock().stop(&self.core);
        }
        if !self.core.config.read_only {
            self.close();
        }
        if self.core.config.print_profile_on_drop
            && let Some(table) = metrics::report()
        {
            print!("{table}");
        }
    }
}

impl Engine {
    /// Makes everything durable that was written, and the next open fast.
    fn close(&self) {
        let log = self.core.forest.log();
        let worth_it = log.redo_tail() > CLOSE_TAIL || log.redo_segments() > CLOSE_SEGMENTS;
        let closed = match self.core.config.temporary {
            true => self.core.flush().map(|_| ()),
            false => self.close_lasting(worth_it),
        };
        let closed = closed.and_then(|()| log.seal_end());
        if let Err(error) = closed {
            log::error!("closing the database failed: {error}");
        }
    }

    /// With a checkpoint, if that is worth it, and the lengths of the trees as the last thing in the log.
    fn close_lasting(&self, worth_it: bool) -> Result<()> {
        let forest = &self.core.forest;
        if worth_it {
            self.core.flush()?;
            forest.settle(&|| true)?;
        }
        forest.note_lengths()?;
        self.core.flush().map(|_| ())
    }
}
