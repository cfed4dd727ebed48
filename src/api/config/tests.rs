//! Tests of `Config`: values and their limits, copies, and what becomes of temporary directories.

use super::*;

#[test]
fn defaults_are_as_stated() {
    fn check<T: Send + Sync + Unpin>(_: &T) {}
    let config = Config::new();
    check(&config);
    assert_eq!((config.cache_capacity, config.flush_every_ms), (1 << 30, Some(500)));
    assert_eq!((config.segment_size, config.idgen_persist_interval), (524_288, 1_000_000));
    assert_eq!((config.use_compression, config.compression_factor), (false, 5));
    assert_eq!((config.temporary, config.create_new, config.print_profile_on_drop), (false, false, false));
    assert_eq!((config.version, config.get_path()), ((0, 34), PathBuf::from("default.sled")));
    assert!(matches!(config.mode, Mode::LowSpace));
    config.validate().expect("the defaults are valid");
}

#[test]
fn setters_change_neither_clones_nor_their_origin() {
    let origin = Config::new().path("a").cache_capacity(1000);
    let other = origin.clone().path("b").cache_capacity(2000).mode(Mode::HighThroughput);
    assert_eq!((origin.get_path(), origin.cache_capacity), (PathBuf::from("a"), 1000));
    assert_eq!((other.get_path(), other.cache_capacity), (PathBuf::from("b"), 2000));
    assert!(matches!((origin.mode, other.mode), (Mode::LowSpace, Mode::HighThroughput)));
    #[expect(deprecated, reason = "they do nothing, which is tested")]
    let same = other
        .segment_cleanup_skew(1)
        .segment_cleanup_threshold(1)
        .snapshot_after_ops(1)
        .snapshot_path("c")
        .build();
    assert_eq!((same.get_path(), same.cache_capacity), (PathBuf::from("b"), 2000));
}

#[test]
fn what_is_out_of_range_is_named_with_its_value() {
    let good = Config::new().path("never created");
    let bad = [
        (good.clone().segment_size(0), ["segment_size", "0"]),
        (good.clone().segment_size(128), ["segment_size", "128"]),
        (good.clone().segment_size(1000), ["segment_size", "1000"]),
        (good.clone().segment_size(32 << 20), ["segment_size", "33554432"]),
        (good.clone().cache_capacity(255), ["cache_capacity", "255"]),
        (good.clone().compression_factor(0), ["compression_factor", "0"]),
        (good.clone().compression_factor(23), ["compression_factor", "23"]),
        (good.clone().idgen_persist_interval(0), ["idgen_persist_interval", "0"]),
    ];
    for (config, words) in bad {
        let Error::Unsupported(text) = config.open().expect_err("out of range") else {
            panic!("{words:?} is unsupported")
        };
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    let compressed = good.clone().use_compression(true).validate();
    assert_eq!(compressed.is_ok(), cfg!(feature = "compression"));
    assert!(compressed.map_or_else(|e| e.to_string().contains("use_compression"), |()| true));
    good.clone().segment_size(256).cache_capacity(256).compression_factor(22).validate().expect("lowest");
    good.clone().segment_size(16 << 20).compression_factor(1).flush_every_ms(Some(0)).validate().expect("ok");
    assert!(!good.get_path().exists());
}

#[test]
#[should_panic(expected = "cache_capacity 1")]
#[expect(deprecated, reason = "the panic is its interface")]
fn build_panics_on_what_open_refuses() {
    let _ = Config::new().cache_capacity(1).build();
}

#[test]
fn the_first_error_stays_until_it_is_cleared() {
    let config = Config::new().path("a");
    let (same, other) = (config.clone().cache_capacity(1000), config.clone().path("b"));
    config.global_error().expect("nothing failed");
    let error = |text: &str| Error::Unsupported(text.into());
    config.latch_error(error("first"));
    config.latch_error(error("second"));
    assert_eq!(config.global_error(), Err(error("first")));
    assert_eq!(same.global_error(), Err(error("first")), "the same directory");
    other.global_error().expect("another directory is another database");
    same.clear_error();
    config.global_error().expect("cleared");
}

#[test]
fn scratch_directories_are_stable_and_unique() {
    let config = Config::new().temporary(true);
    let path = config.get_path();
    assert_eq!(config.clone().cache_capacity(1000).segment_size(256).get_path(), path);
    assert_ne!(Config::new().temporary(true).get_path(), path);
    let kept = config.clone().temporary(false);
    assert_eq!(kept.get_path(), PathBuf::from("default.sled"));
    assert_ne!(kept.temporary(true).get_path(), path, "the first one has another owner");
    assert_eq!(Config::new().temporary(true).path("x").get_path(), PathBuf::from("x"));
    let name = path.file_name().and_then(|name| name.to_str()).expect("has a name");
    assert!(name.starts_with("pagecache.tmp."));
    assert!(!path.exists(), "nothing is created before the database is opened");
}

/// What becomes of directories.
mod temporary {
    use super::*;

    /// A directory with a file in it, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("sled-config-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_temporary_database_goes_with_the_last_reference() {
        let config = Config::new().temporary(true);
        let path = config.get_path();
        let db = config.open().expect("opens");
        assert!(path.exists());
        drop(db);
        drop(config.open().expect("opens again"));
        assert!(path.exists(), "the configuration is left");
        let db = config.open().expect("opens again");
        drop(config);
        assert!(path.exists(), "the database is left");
        drop(db);
        assert!(!path.exists());
    }

    #[test]
    fn a_changed_copy_keeps_the_directory_of_an_open_database() {
        let config = Config::new().temporary(true);
        let before = config.clone().cache_capacity(1000);
        let db = config.open().expect("opens");
        let after = config.clone().flush_every_ms(None);
        let path = config.get_path();
        drop((before, after));
        assert!(path.exists());
        let last = config.cache_capacity(2000);
        drop(db);
        assert!(path.exists(), "a copy that means the same directory is left");
        drop(last);
        assert!(!path.exists());
    }

    #[test]
    fn only_what_was_opened_is_removed() {
        let scratch = Scratch::new("unopened");
        std::fs::create_dir_all(&scratch.0).expect("creates");
        let config = Config::new().temporary(true).path(&scratch.0);
        drop(config.clone());
        config.clone().cache_capacity(1).open().expect_err("not valid");
        drop(config);
        assert!(scratch.0.exists(), "it was never opened");

        let db = Config::new().path(&scratch.0).open().expect("opens");
        Config::new().temporary(true).path(&scratch.0).open().expect_err("locked");
        assert!(scratch.0.exists(), "the one who failed to open it does not remove it");
        drop(db);
        assert!(scratch.0.exists(), "it was not temporary");

        drop(Config::new().temporary(true).path(&scratch.0).open().expect("opens"));
        assert!(!scratch.0.exists(), "it was opened as temporary");
    }

    #[test]
    fn what_is_opened_to_stay_stays() {
        let scratch = Scratch::new("kept");
        let config = Config::new().temporary(true).path(&scratch.0);
        drop(config.open().expect("opens"));
        let kept = config.clone().temporary(false);
        drop(kept.open().expect("opens"));
        drop((config, kept));
        assert!(scratch.0.exists());
    }

    #[test]
    fn an_open_database_has_a_configuration_of_its_own() {
        let scratch = Scratch::new("own");
        let config = Config::new().path(&scratch.0);
        let db = config.open().expect("opens");
        let moved = config.path("elsewhere");
        assert_eq!(db.context.get_path(), scratch.0);
        assert_eq!(moved.get_path(), PathBuf::from("elsewhere"));
    }
}
