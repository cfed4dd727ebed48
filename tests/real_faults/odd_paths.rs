//! Odd paths: an error or a database, never a wait, and what is not ours stays as it is.

use crate::children::{Sequence, command, run};
use crate::common_durability::{Scratch, Watchdog, files_below};
use crate::limits::{become_nobody, give_to_nobody};
use crate::mounts::{EXT4, Mount};
use crate::skipped;
use sled::{Config, Db, Error, Result};
use std::ffi::{CString, OsStr};
use std::fs::{create_dir, create_dir_all};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn open(directory: &Path) -> Result<Db> {
    Config::new().path(directory).segment_size(64 << 10).open()
}

/// It fails with an error of the system, at once and each time; which one.
fn refused(directory: &Path) -> ErrorKind {
    let kinds = [0, 1].map(|_| match open(directory) {
        Err(Error::Io(error)) => error.kind(),
        other => panic!("{}: not an error of the system: {other:?}", directory.display()),
    });
    assert_eq!(kinds[0], kinds[1], "{}: another error the second time", directory.display());
    kinds[0]
}

/// A database can be created there, and is there again.
fn works(directory: &Path) {
    for acknowledged in [0, 20] {
        let db = open(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        let mut sequence = Sequence::found(&db, acknowledged);
        sequence.steps(&db, 40);
    }
}

fn guarded(name: &str) -> (Scratch, Watchdog) {
    let dog = Watchdog::new(Duration::from_secs(20));
    dog.begin(name);
    (Scratch::new(name), dog)
}

fn fifo(path: &Path) {
    let name = CString::new(path.as_os_str().as_bytes()).expect("no zeros");
    // SAFETY: the name ends with a zero and lives until the call returns.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

#[test]
fn what_is_no_file_is_refused_and_stays() {
    let (scratch, _dog) = guarded("no-file");
    let made = |name: &str| {
        let directory = scratch.0.join(name);
        create_dir(&directory).expect("there is room");
        let file = directory.join("db");
        (directory, file)
    };
    let (directory, file) = made("directory");
    create_dir_all(file.join("within")).expect("there is room");
    assert_eq!(refused(&directory), ErrorKind::InvalidInput);
    assert!(file.join("within").is_dir());
    for name in ["fifo", "fifo at its first name"] {
        let (directory, file) = made(name);
        fifo(&if name == "fifo" { file } else { directory.join("db.new") });
        refused(&directory);
    }
    let (directory, file) = made("looping");
    symlink("db", &file).expect("there is room");
    refused(&directory);
    let (directory, file) = made("dangling");
    symlink("nowhere/at/all", &file).expect("there is room");
    assert_eq!(refused(&directory), ErrorKind::NotFound);
    assert_eq!(std::fs::read_link(&file).expect("still there"), Path::new("nowhere/at/all"));
    let (directory, file) = made("device");
    symlink("/dev/null", &file).expect("there is room");
    assert_eq!(refused(&directory), ErrorKind::InvalidInput);
    // The directory itself.
    let looping = scratch.0.join("loop");
    symlink("loop", &looping).expect("there is room");
    refused(&looping);
    let dangling = scratch.0.join("dangling directory");
    symlink("nowhere", &dangling).expect("there is room");
    refused(&dangling);
    assert!(!scratch.0.join("nowhere").exists());
    let at_fifo = scratch.0.join("a fifo");
    fifo(&at_fifo);
    refused(&at_fifo);
    refused(&at_fifo.join("below"));
}

#[test]
fn links_to_a_directory_and_to_the_file_work() {
    let (scratch, _dog) = guarded("links");
    let [real, link, other] = ["real", "link", "other"].map(|name| scratch.0.join(name));
    create_dir(&real).expect("there is room");
    symlink("real", &link).expect("there is room");
    works(&link);
    create_dir(&other).expect("there is room");
    symlink("../real/db", other.join("db")).expect("there is room");
    let db = open(&other).expect("a link to a database");
    // One file has one lock, whatever it is called.
    for path in [&real, &link, &other] {
        let text = open(path).expect_err("it is open").to_string();
        assert!(text.contains("could not acquire lock"), "{text}");
    }
    Sequence::found(&db, 40);
}

#[test]
fn names_need_not_be_text_and_may_be_long() {
    let (scratch, _dog) = guarded("names");
    works(&scratch.0.join(OsStr::from_bytes(b"\xFF\xFE no text \x80")));
    works(&scratch.0.join("new\nline and \u{1F6B2}"));
    works(&scratch.0.join("missing/parents/of/it"));
    works(&scratch.0.join("x".repeat(255)));
    assert_eq!(refused(&scratch.0.join("x".repeat(256))), ErrorKind::InvalidFilename);
    let long = |len: usize| {
        let mut path = scratch.0.clone();
        while path.as_os_str().len() + 202 < len {
            path.push("y".repeat(200));
        }
        path.push("z".repeat(len - path.as_os_str().len() - 1));
        path
    };
    // With "/db.new" and the zero at its end it just fits.
    works(&long(4096 - 8));
    for len in [4096 - 7, 4096 - 4, 4096 - 1, 4096, 5000] {
        refused(&long(len));
    }
}

#[test]
fn files_of_others_in_the_directory_stay_as_they_are() {
    let (scratch, _dog) = guarded("foreign");
    let directory = scratch.0.join("database");
    create_dir_all(directory.join("subdirectory")).expect("there is room");
    for name in ["log", "LOCK", "db-wal", "db.old", "1", ".hidden", "subdirectory/db", "CURRENT"] {
        std::fs::write(directory.join(name), format!("content of {name}")).expect("there is room");
    }
    let foreign = |files: Vec<(PathBuf, Option<Vec<u8>>)>| {
        files.into_iter().filter(|(path, _)| *path != directory.join("db")).collect::<Vec<_>>()
    };
    let before = foreign(files_below(&directory));
    assert_eq!(before.len(), 9);
    works(&directory);
    assert_eq!(foreign(files_below(&directory)), before);
}

#[test]
fn what_may_not_be_written_is_refused_and_stays() {
    let (scratch, _dog) = guarded("read-only");
    let Some(mount) = Mount::new(&scratch.0, EXT4, 16) else { return };
    works(&mount.point.join("database"));
    create_dir(mount.point.join("empty")).expect("there is room");
    mount.remount_read_only();
    let before = files_below(&mount.point.join("database"));
    for name in ["database", "empty", "missing", "missing/parents"] {
        assert_eq!(refused(&mount.point.join(name)), ErrorKind::ReadOnlyFilesystem, "{name}");
    }
    assert_eq!(files_below(&mount.point.join("database")), before);
    mount.unmount();
    mount.mount();
    works_again(&mount.point.join("database"));
    // Immutable: the file, then the directory.
    let change = |flag: &str, path: &Path| {
        let output = Command::new("chattr").arg(flag).arg(path).output();
        output.is_ok_and(|output| output.status.success())
    };
    let (directory, file) = (mount.point.join("database"), mount.point.join("database/db"));
    if !change("+i", &file) {
        return skipped("chattr does not work here");
    }
    assert_eq!(refused(&directory), ErrorKind::PermissionDenied);
    assert!(change("-i", &file));
    let empty = mount.point.join("empty");
    assert!(change("+i", &empty));
    for path in [empty.clone(), empty.join("below")] {
        assert_eq!(refused(&path), ErrorKind::PermissionDenied);
    }
    assert!(change("-i", &empty));
    works(&empty);
    works_again(&directory);
}

fn works_again(directory: &Path) {
    let db = open(directory).expect("it may be written again");
    Sequence::found(&db, 20).steps(&db, 5);
}

#[test]
fn what_belongs_to_another_user_is_refused_and_stays() {
    let (scratch, _dog) = guarded("other-user");
    works(&scratch.0.join("database"));
    create_dir(scratch.0.join("empty")).expect("there is room");
    let before = files_below(&scratch.0);
    if give_to_nobody(&scratch.0.join("empty")) {
        std::os::unix::fs::chown(scratch.0.join("empty"), Some(0), None).expect("as before");
        run(command(&[], "other user", &scratch.0, ""));
        assert_eq!(files_below(&scratch.0), before);
        works_again(&scratch.0.join("database"));
    }
}

pub fn other_user(directory: &Path) {
    become_nobody();
    for name in ["database", "empty", "missing"] {
        assert_eq!(refused(&directory.join(name)), ErrorKind::PermissionDenied, "{name}");
    }
}
