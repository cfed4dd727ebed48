//! Configuration, directories and files, locks, temporary databases, and opening again and again.

use crate::common::{Random, Scratch, Watchdog};
use sled::{Config, Error, IVec, Mode, Result};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("is a directory");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("is readable").file_name();
    let mut names: Vec<String> = entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn io_kind<T: std::fmt::Debug>(outcome: Result<T>) -> ErrorKind {
    match outcome {
        Err(Error::Io(error)) => error.kind(),
        other => panic!("not an error of the system: {other:?}"),
    }
}

#[test]
fn a_configuration_begins_with_the_documented_values() {
    let config = Config::new();
    assert_eq!(config.path, PathBuf::from("default.sled"));
    assert_eq!(config.get_path(), PathBuf::from("default.sled"));
    assert_eq!(config.cache_capacity, 1 << 30);
    assert!(matches!(config.mode, Mode::LowSpace));
    assert_eq!((config.use_compression, config.compression_factor), (false, 5));
    assert_eq!((config.temporary, config.create_new, config.print_profile_on_drop), (false, false, false));
    assert_eq!((config.segment_size, config.flush_every_ms), (512 << 10, Some(500)));
    assert_eq!((config.idgen_persist_interval, config.version), (1_000_000, (0, 34)));
    assert_eq!(config.global_error(), Ok(()));
}

#[test]
fn setters_set_their_own_field_and_leave_clones_alone() {
    let original = Config::default();
    let changed = original
        .clone()
        .path("elsewhere")
        .cache_capacity(1 << 20)
        .mode(Mode::HighThroughput)
        .compression_factor(7)
        .create_new(true)
        .print_profile_on_drop(true)
        .segment_size(1 << 16)
        .flush_every_ms(None)
        .idgen_persist_interval(3);
    assert_eq!((changed.get_path(), changed.cache_capacity), (PathBuf::from("elsewhere"), 1 << 20));
    assert!(matches!(changed.mode, Mode::HighThroughput));
    assert_eq!((changed.compression_factor, changed.create_new), (7, true));
    assert_eq!((changed.print_profile_on_drop, changed.segment_size), (true, 1 << 16));
    assert_eq!((changed.flush_every_ms, changed.idgen_persist_interval), (None, 3));
    assert_eq!((original.get_path(), original.create_new), (PathBuf::from("default.sled"), false));
    assert!(original.use_compression(true).use_compression);
}

#[test]
#[allow(deprecated, reason = "old names stay accepted")]
fn deprecated_setters_are_accepted() -> Result<()> {
    let scratch = Scratch::new("deprecated");
    let config = Config::new().path(scratch.join("db"));
    let config = config.segment_cleanup_skew(1).segment_cleanup_threshold(1).snapshot_after_ops(1);
    config.snapshot_path("nowhere").open()?.insert("k", "v")?;
    Ok(())
}

#[test]
fn values_that_make_no_sense_are_refused_before_anything_is_created() {
    let scratch = Scratch::new("nonsense");
    let path = scratch.join("db");
    let config = || Config::new().path(&path);
    let refused = [
        ("no power of two", config().segment_size(1_000)),
        ("segments too small", config().segment_size(128)),
        ("segments of nothing", config().segment_size(0)),
        ("segments too large", config().segment_size(32 << 20)),
        ("no compression", config().compression_factor(0)),
        ("too much compression", config().compression_factor(23)),
        ("no ids", config().idgen_persist_interval(0)),
        ("no memory", config().cache_capacity(255)),
    ];
    for (name, config) in refused {
        assert!(matches!(config.open(), Err(Error::Unsupported(_))), "{name}");
    }
    if cfg!(not(feature = "compression")) {
        assert!(
            matches!(config().use_compression(true).open(), Err(Error::Unsupported(_))),
            "the feature is off"
        );
    }
    assert!(!path.exists());
}

#[test]
fn values_at_the_limits_are_accepted() -> Result<()> {
    let scratch = Scratch::new("limits");
    let accepted = [
        Config::new().segment_size(256),
        Config::new().segment_size(16 << 20),
        Config::new().compression_factor(1),
        Config::new().compression_factor(22),
        Config::new().idgen_persist_interval(1),
        Config::new().cache_capacity(256),
        Config::new().flush_every_ms(Some(0)),
        Config::new().mode(Mode::HighThroughput),
    ];
    for (n, config) in accepted.into_iter().enumerate() {
        let config = config.path(scratch.join(&n.to_string()));
        for round in 0..2 {
            let db = config.open()?;
            for key in 0..200_u8 {
                let old = db.insert([key], vec![key; 100])?;
                assert_eq!(old.is_some(), round == 1, "case {n}");
            }
            db.generate_id()?;
        }
    }
    Ok(())
}

#[test]
fn segments_of_another_size_are_refused_or_taken_without_loss() -> Result<()> {
    let scratch = Scratch::new("segments");
    let config = Config::new().path(scratch.path()).segment_size(1 << 16);
    config.open()?.insert("k", "v")?;
    match config.segment_size(1 << 20).open() {
        Ok(db) => assert_eq!(db.get("k")?, Some("v".into())),
        Err(error) => assert!(matches!(error, Error::Unsupported(_)), "{error}"),
    }
    Ok(())
}

#[cfg(feature = "compression")]
#[test]
fn compression_that_was_not_there_before_is_refused_by_name() -> Result<()> {
    let scratch = Scratch::new("compression");
    let config = Config::new().path(scratch.path());
    config.open()?.insert("k", "v")?;
    match config.use_compression(true).open() {
        Err(Error::Unsupported(text)) => assert!(text.contains("use_compression"), "{text}"),
        other => panic!("not refused: {other:?}"),
    }
    Ok(())
}

#[test]
fn opening_creates_nested_directories_and_one_file() -> Result<()> {
    let scratch = Scratch::new("nested");
    let path = scratch.join("a/b/c");
    let db = sled::open(&path)?;
    assert!(!db.was_recovered());
    db.insert("k", "v")?;
    db.flush()?;
    assert_eq!(names(&path), ["db"]);
    drop(db);
    assert_eq!(names(&path), ["db"]);
    let db = sled::open(&path)?;
    assert!(db.was_recovered());
    assert_eq!(db.get("k")?, Some("v".into()));
    Ok(())
}

#[test]
fn a_path_that_cannot_be_a_directory_is_an_error_of_the_system() {
    let scratch = Scratch::new("odd-path");
    let file = scratch.join("file");
    std::fs::write(&file, "content").expect("writes");
    // Which of the two depends on the call that meets the file.
    let kinds = [ErrorKind::NotADirectory, ErrorKind::AlreadyExists];
    assert!(kinds.contains(&io_kind(sled::open(&file))));
    assert!(kinds.contains(&io_kind(sled::open(file.join("below")))));
    assert_eq!(std::fs::read(&file).expect("reads"), b"content");
}

#[test]
fn create_new_works_once() -> Result<()> {
    let scratch = Scratch::new("create-new");
    let config = Config::new().path(scratch.join("db")).create_new(true);
    config.open()?.insert("k", "v")?;
    assert_eq!(io_kind(config.open()), ErrorKind::AlreadyExists);
    assert_eq!(config.create_new(false).open()?.get("k")?, Some("v".into()));
    Ok(())
}

#[test]
fn a_second_opener_gets_the_known_error_until_the_last_handle_is_gone() -> Result<()> {
    let scratch = Scratch::new("lock");
    let db = sled::open(scratch.path())?;
    let refused = |holder: &str| match sled::open(scratch.path()) {
        Err(Error::Io(error)) => {
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Other, "{holder}: {text}");
            assert_eq!(error.raw_os_error(), None, "{holder}");
            let start = format!("could not acquire lock on {:?}", scratch.join("db"));
            assert!(text.starts_with(&start), "{holder}: {text}");
            assert!(text.contains("WouldBlock"), "{holder}: {text}");
        }
        other => panic!("opened twice while {holder} lives: {other:?}"),
    };
    refused("the database");
    let tree = db.open_tree("t")?;
    tree.insert("k", "v")?;
    drop(db);
    refused("a tree");
    let iter = tree.iter();
    drop(tree);
    refused("an iterator");
    drop(iter);
    let export = sled::open(scratch.path())?.export();
    refused("an export");
    drop(export);
    let keys = sled::open(scratch.path())?.open_tree("t")?.iter().keys();
    refused("an iterator of keys");
    drop(keys);
    assert_eq!(sled::open(scratch.path())?.open_tree("t")?.get("k")?, Some("v".into()));
    Ok(())
}

#[test]
fn stray_files_do_not_stop_an_open() -> Result<()> {
    let scratch = Scratch::new("stray");
    let db = sled::open(scratch.path())?;
    for n in 0..1_000_u32 {
        db.insert(n.to_be_bytes(), vec![1; 50])?;
    }
    let sum = db.checksum()?;
    drop(db);
    let mut random = Random::new(0);
    let noise: Vec<u8> = (0..3_000).map(|_| random.next().to_le_bytes()[0]).collect();
    let strays: [(&str, &[u8]); 6] = [
        ("snap.7FFFFFFFFFFFFFFF.generating", b""),
        ("snap.7FFFFFFFFFFFFFFE.generating", &noise),
        ("snap.7FFFFFFFFFFFFFFD", &noise[..10]),
        ("conf", &noise[..7]),
        ("db.tmp", &noise),
        ("lock", b""),
    ];
    for (name, bytes) in strays {
        std::fs::write(scratch.join(name), bytes).expect("writes");
        let db = sled::open(scratch.path())?;
        assert_eq!((db.len(), db.checksum()?), (1_000, sum), "beside {name}");
    }
    std::fs::create_dir(scratch.join("blobs")).expect("creates");
    assert_eq!(sled::open(scratch.path())?.len(), 1_000);
    Ok(())
}

#[test]
fn a_directory_of_the_old_format_is_refused_and_left_alone() {
    let scratch = Scratch::new("old-format");
    // A database of sled 0.34 that was never flushed has an empty log.
    for (name, log) in [("unflushed", &b""[..]), ("used", &[0xA5; 20_000])] {
        let path = scratch.join(name);
        std::fs::create_dir_all(path.join("blobs")).expect("creates");
        let conf = b"segment_size: 524288\nuse_compression: false\nversion: 0.34\n\x01\x02\x03\x04";
        std::fs::write(path.join("conf"), conf).expect("writes");
        std::fs::write(path.join("db"), log).expect("writes");
        match sled::open(&path) {
            Err(Error::Unsupported(_)) => {}
            other => panic!("{name}: not refused: {other:?}"),
        }
        assert_eq!(names(&path), ["blobs", "conf", "db"], "{name}");
        assert_eq!(std::fs::read(path.join("db")).expect("reads"), log, "{name}");
        assert_eq!(std::fs::read(path.join("conf")).expect("reads"), conf, "{name}");
    }
}

#[cfg(unix)]
#[test]
fn size_on_disk_is_what_the_file_occupies() -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let scratch = Scratch::new("size");
    let db = Config::new().path(scratch.path()).flush_every_ms(None).open()?;
    let empty = db.size_on_disk()?;
    let mut random = Random::new(0);
    let bytes: Vec<u8> = (0..3 << 20).map(|_| random.next().to_le_bytes()[0]).collect();
    for (n, value) in bytes.chunks(1_000).enumerate() {
        db.insert(n.to_be_bytes(), value)?;
    }
    db.flush()?;
    // Maintenance may still be writing: a moment is needed in which the size stands still.
    let occupied = || std::fs::metadata(scratch.join("db")).expect("is there").blocks() * 512;
    let (full, on_disk) = (0..500)
        .find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            let (before, on_disk, after) = (db.size_on_disk(), occupied(), db.size_on_disk());
            (before == after).then_some((after, on_disk))
        })
        .expect("comes to rest");
    let full = full?;
    assert!(empty < 4 << 20, "an empty database has {empty} bytes");
    assert!(full >= 3 << 20, "{full} bytes for 3 MiB");
    assert!(full.abs_diff(on_disk) <= on_disk / 20, "said to be {full} bytes, but occupies {on_disk}");
    Ok(())
}

#[test]
fn a_temporary_database_lives_as_long_as_its_configuration() -> Result<()> {
    let config = Config::new().temporary(true).flush_every_ms(None);
    let path = config.get_path();
    assert_ne!(path, Config::new().temporary(true).get_path(), "each has a place of its own");
    if cfg!(target_os = "linux") {
        assert!(path.starts_with("/dev/shm"), "{}", path.display());
    }
    assert!(!path.exists(), "nothing is created before it is opened");
    config.open()?.insert("k", "v")?;
    assert!(path.exists());
    let db = config.open()?;
    assert_eq!(db.get("k")?, Some("v".into()), "opened again through the same configuration");
    let tree = db.open_tree("t")?;
    drop((db, config));
    assert!(path.exists(), "a handle is left");
    drop(tree);
    assert!(!path.exists(), "the last one is gone");
    Ok(())
}

#[test]
fn a_temporary_database_at_a_path_is_removed_and_one_never_opened_is_not() -> Result<()> {
    let scratch = Scratch::new("temporary");
    let path = scratch.join("db");
    let config = Config::new().path(&path).temporary(true);
    config.open()?.insert("k", "v")?;
    assert_eq!((config.get_path(), path.exists()), (path.clone(), true));
    drop(config);
    assert!(!path.exists());

    std::fs::create_dir(&path).expect("creates");
    std::fs::write(path.join("precious"), "p").expect("writes");
    drop(Config::new().path(&path).temporary(true));
    assert!(path.join("precious").exists(), "what was never opened is not removed");
    Ok(())
}

#[test]
fn a_configuration_opens_again_after_its_database_is_gone() -> Result<()> {
    let scratch = Scratch::new("reuse");
    let config = Config::new().path(scratch.path());
    for n in 0..5_u8 {
        let db = config.open()?;
        assert_eq!(db.len(), usize::from(n));
        db.insert([n], "v")?;
    }
    // Changing a configuration that is in use makes another one.
    let db = config.open()?;
    let other = config.clone().path(scratch.join("other"));
    assert_eq!(other.open()?.len(), 0);
    assert_eq!((db.len(), config.get_path()), (5, scratch.path().to_path_buf()));
    Ok(())
}

/// Runs one test of this file again as a process of its own, where nothing else runs beside it; true in
/// that process.
fn alone(test: &str) -> bool {
    const VARIABLE: &str = "SLED_TEST_ALONE";
    if std::env::var_os(VARIABLE).is_some() {
        return true;
    }
    let binary = std::env::current_exe().expect("this binary");
    let child = Command::new(binary).args([test, "--exact", "--test-threads=1"]).env(VARIABLE, "1").output();
    let output = child.expect("starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "no test has the name {test}");
    false
}

/// Numbers of threads and of open files of this process.
fn resources() -> Option<(usize, usize)> {
    let count = |path: &str| std::fs::read_dir(path).ok().map(Iterator::count);
    count("/proc/self/task").zip(count("/proc/self/fd"))
}

/// Opens, writes, closes and opens again at once; every other time the last handle goes in another thread.
fn reopen_many_times(path: &Path, dog: &Watchdog) -> Result<()> {
    const CYCLES: u32 = 200;
    let config = Config::new().path(path).flush_every_ms(Some(1));
    for n in 0..CYCLES {
        let db = config.open()?;
        assert_eq!((db.len(), db.was_recovered()), (n as usize, n > 0));
        db.insert(n.to_be_bytes(), vec![1; 200])?;
        if n % 3 == 0 {
            db.flush()?;
        }
        if n % 2 == 0 {
            let clone = db.clone();
            let last = std::thread::spawn(move || {
                std::thread::yield_now();
                drop(clone);
            });
            drop(db);
            last.join().expect("does not panic");
        }
        dog.kick();
    }
    let keys: Vec<IVec> = config.open()?.iter().keys().collect::<Result<_>>()?;
    assert_eq!(keys, (0..CYCLES).map(|n| n.to_be_bytes().to_vec()).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn closing_releases_the_lock_the_threads_and_the_files_at_once() -> Result<()> {
    if !alone("opening::closing_releases_the_lock_the_threads_and_the_files_at_once") {
        return Ok(());
    }
    let dog = Watchdog::start("open and close", 60);
    let scratch = Scratch::new("cycles");
    let before = resources();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let raise = crate::common::RaiseOnDrop(&stop);
        // As busy as the machine can be.
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                // Acquire: pairs with the Release in `RaiseOnDrop`.
                while !stop.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
            });
        }
        let done = reopen_many_times(scratch.path(), &dog);
        drop(raise);
        done
    })?;
    // The spinning threads may need a moment to be gone from the list.
    let start = Instant::now();
    while resources() != before && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(resources(), before, "threads and files");
    Ok(())
}
