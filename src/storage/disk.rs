//! The file `db` in a directory, locked against a second opener.

#![allow(unsafe_code)]

use super::Storage;
use super::second_copy::SecondCopies;
use crate::base::fail;
use crate::error::LOCKED;
use fs2::FileExt as _;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Name of the file within the database's directory.
const FILE: &str = "db";
/// Its name until it is a database.
const UNBORN: &str = "db.new";

/// One locked file; dropping it releases the lock.
#[derive(Debug)]
pub struct DiskStorage {
    file: File,
    path: PathBuf,
    /// The process that took the lock, which processes forked from it share.
    owner: u32,
    second_copies: SecondCopies,
}

impl Drop for DiskStorage {
    /// Closing is not enough: a process that another thread is just starting has a copy of the descriptor, and the lock
    /// with it, until it calls `exec`. A process that was forked and closes its copy does not release the lock of the
    /// one that opened.
    fn drop(&mut self) {
        if self.owner == std::process::id()
            && let Err(error) = self.file.unlock()
        {
            log::error!("the lock of the database was not released: {error}");
        }
    }
}

/// Tells the system that pages will be read from all over the file, so that it reads nothing around them. What is read in
/// order is read in long pieces anyway.
#[cfg(target_os = "linux")]
fn expect_random_reads(file: &File) {
    use std::os::fd::AsRawFd as _;
    // SAFETY: a hint about a descriptor that is open; it touches no memory of ours.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
    if result != 0 {
        log::debug!("no advice about the file: {}", io::Error::from_raw_os_error(result));
    }
}

#[cfg(not(target_os = "linux"))]
fn expect_random_reads(_file: &File) {}

impl DiskStorage {
    /// A file on which this process has just taken a lock.
    fn locked(file: File, path: PathBuf) -> DiskStorage {
        expect_random_reads(&file);
        DiskStorage { file, path, owner: std::process::id(), second_copies: SecondCopies::default() }
    }

    /// Opens and locks the file `db` below `directory`; where there is none, creates one that holds
    /// `initial`.
    ///
    /// The file gets its name only when `initial` is in it and durable, so a file of that name which is empty
    /// or shorter is damage, never a creation that was cut short. Its entry, and those of the directories around
    /// it, are durable when this returns (S4), whoever created them.
    ///
    /// # Errors
    /// - kind `Other`, text `could not acquire lock on "...": ...`: somebody has it open, and where the system says who,
    ///   the text ends with that process
    /// - `AlreadyExists`: `create_new` and the file exists
    /// - `InvalidInput`: the path of the file is there and is no regular file
    /// - whatever the operating system says
    pub fn open(directory: &Path, create_new: bool, initial: &[u8]) -> io::Result<DiskStorage> {
        let fresh = missing_directories(directory);
        std::fs::create_dir_all(directory)?;
        let path = directory.join(FILE);
        // Opening a FIFO would wait for its other end; only a regular file is opened at all.
        match std::fs::metadata(&path) {
            Ok(found) if found.is_file() => return Self::open_existing(&path, create_new),
            Ok(_) => return Err(irregular(&path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        sync_above(directory, &fresh)?;
        let unborn = directory.join(UNBORN);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&unborn)?;
        lock(&file, &path, false)?;
        file.set_len(0)?;
        file.write_all_at(initial, 0)?;
        file.sync_all()?;
        // A link never replaces a file that another process created meanwhile.
        match std::fs::hard_link(&unborn, &path) {
            Ok(()) => std::fs::remove_file(&unborn)?,
            // Or created, and removed this one as a left over.
            Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
                return Self::open_existing(&path, create_new);
            }
            // Not every file system has links.
            Err(_) => std::fs::rename(&unborn, &path)?,
        }
        // Opened again by its name, which is what tools then show for it. Who is faster has it.
        file.unlock()?;
        drop(file);
        Self::open_existing(&path, false)
    }

    /// Opens the file `db` below `directory` for reading alone, together with others who only read.
    ///
    /// # Errors
    /// - kind `Other`, as for [`Self::open`]: somebody has it open for writing
    /// - `NotFound`: there is none
    /// - `InvalidInput`: it is no regular file
    /// - whatever the operating system says
    pub fn open_read_only(directory: &Path) -> io::Result<DiskStorage> {
        let path = directory.join(FILE);
        if !std::fs::metadata(&path)?.is_file() {
            return Err(irregular(&path));
        }
        let file = File::open(&path)?;
        lock(&file, &path, true)?;
        Ok(DiskStorage::locked(file, path))
    }

    fn open_existing(path: &Path, create_new: bool) -> io::Result<DiskStorage> {
        if create_new {
            let text = format!("{} exists already", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        lock(&file, path, false)?;
        // A creation that ended right after the file got its name left this one, too.
        let _ = std::fs::remove_file(path.with_file_name(UNBORN));
        // Also when it was there: whoever gave it its name may have been killed before this.
        sync_directory(parent(path))?;
        Ok(DiskStorage::locked(file, path.to_path_buf()))
    }
}

fn irregular(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a regular file", path.display()))
}

/// Takes the lock on an open file that is, or is to be, at `path`: alone, or with others who only read.
fn lock(file: &File, path: &Path, shared: bool) -> io::Result<()> {
    let taken = if shared { fs2::FileExt::try_lock_shared(file) } else { file.try_lock_exclusive() };
    taken.map_err(|e| {
        let mut text = format!("{LOCKED} {path:?}: {e:?}");
        match file.metadata().ok().and_then(|found| lock_holder(&found)) {
            Some(pid) if pid == std::process::id() => text += ", it is open in this process",
            Some(pid) => text = format!("{text}, it is open in process {pid}"),
            None => {}
        }
        io::Error::other(text)
    })
}

/// The process that has a file locked, where the system tells.
#[cfg(target_os = "linux")]
fn lock_holder(file: &std::fs::Metadata) -> Option<u32> {
    // Lines of proc(5): "1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF", the device in hexadecimal.
    let (device, inode) = (file.dev(), file.ino());
    let device = format!("{:02x}:{:02x}:{inode}", libc::major(device), libc::minor(device));
    let table = std::fs::read_to_string("/proc/locks").ok()?;
    let holder = |line: &str| {
        let mut fields = line.split_whitespace().skip_while(|field| *field != "FLOCK").skip(3);
        let pid = fields.next()?.parse().ok()?;
        (fields.next()? == device && pid > 0).then_some(pid)
    };
    table.lines().find_map(holder)
}

#[cfg(not(target_os = "linux"))]
fn lock_holder(_file: &std::fs::Metadata) -> Option<u32> {
    None
}

/// Whether the file `db` below `directory` starts with these bytes.
pub fn starts_with(directory: &Path, magic: &[u8]) -> bool {
    let path = directory.join(FILE);
    let mut start = vec![0; magic.len()];
    let regular = std::fs::metadata(&path).is_ok_and(|found| found.is_file());
    regular && File::open(&path).is_ok_and(|file| file.read_exact_at(&mut start, 0).is_ok()) && start == magic
}

/// `directory` and those of its parents that are not there yet.
fn missing_directories(directory: &Path) -> Vec<PathBuf> {
    let missing = directory.ancestors().take_while(|d| !d.as_os_str().is_empty() && !d.exists());
    missing.map(Path::to_path_buf).collect()
}

/// The directory that has the entry of `path`.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the way to a directory durable. Those of its directories that are not `fresh` may be from a creation that
/// was cut short, or have been there for ever and not be ours to sync.
fn sync_above(directory: &Path, fresh: &[PathBuf]) -> io::Result<()> {
    let full = std::path::absolute(directory)?;
    for (n, created) in full.ancestors().enumerate().take_while(|(_, created)| created.parent().is_some()) {
        let synced = sync_directory(parent(created));
        if n < fresh.len() {
            synced?;
        }
    }
    Ok(())
}

/// Makes the entries of a directory durable.
fn sync_directory(directory: &Path) -> io::Result<()> {
    fail::check("directory sync").map_err(|_| io::Error::other("failpoint"))?;
    File::open(directory)?.sync_all()
}

impl Storage for DiskStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn read_to_cache(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.second_copies.read(&self.file, offset, buf)
    }

    fn read_once(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.second_copies.read_once(&self.file, offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    #[cfg(target_os = "linux")]
    fn start_writing(&self, offset: u64, len: u64) {
        use std::os::fd::AsRawFd as _;
        let range = libc::off64_t::try_from(offset).ok().zip(libc::off64_t::try_from(len).ok());
        let Some((offset, len)) = range else { return };
        // SAFETY: a plain system call on a descriptor that `self` keeps open; no memory is passed. It waits for no write, and
        // leaves errors of the medium for the next sync to report.
        unsafe { libc::sync_file_range(self.file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn is_new(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    #[cfg(target_os = "linux")]
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<bool> {
        use std::os::fd::AsRawFd as _;
        let range = libc::off_t::try_from(offset).ok().zip(libc::off_t::try_from(len).ok());
        let (offset, len) = range.ok_or(io::ErrorKind::InvalidInput)?;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        loop {
            // SAFETY: a plain system call on a descriptor that `self` keeps open; no memory is passed.
            if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) } == 0 {
                return Ok(true);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => return Ok(false),
                _ => return Err(error),
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn punch_hole(&self, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(false)
    }

    fn allocated(&self) -> io::Result<u64> {
        // `st_blocks` counts 512-byte units on every system, whatever its block size.
        Ok(self.file.metadata()?.blocks() * 512)
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;

    /// A directory that is removed with everything in it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("sled-disk-{name}-{}", std::process::id()));
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
    fn bytes_come_back_after_reopening() {
        let scratch = Scratch::new("reopen");
        let nested = scratch.0.join("a/b");
        let disk = DiskStorage::open(&nested, true, b"new").expect("creates parents");
        disk.write_at(5000, b"hello").expect("writes");
        disk.sync_data().expect("syncs");
        drop(disk);
        assert_eq!(
            DiskStorage::open(&nested, true, b"new").expect_err("exists").kind(),
            io::ErrorKind::AlreadyExists
        );
        let disk = DiskStorage::open(&nested, false, b"new").expect("the lock is free");
        let mut buf = [1; 7];
        disk.read_at(4998, &mut buf).expect("reads");
        assert_eq!(&buf, b"\0\0hello");
        assert_eq!(
            disk.read_at(4999, &mut buf).expect_err("past the end").kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(disk.len().expect("known"), 5005);
        disk.set_len(3).expect("cuts");
        assert_eq!(disk.len().expect("known"), 3);
    }

    #[test]
    fn a_second_opener_is_told_what_is_locked() {
        let scratch = Scratch::new("lock");
        let first = DiskStorage::open(&scratch.0, false, b"new").expect("opens");
        let error = DiskStorage::open(&scratch.0, false, b"new").expect_err("locked");
        assert_eq!((error.kind(), error.raw_os_error()), (io::ErrorKind::Other, None));
        let text = error.to_string();
        let expected = format!("could not acquire lock on {:?}: ", scratch.0.join("db"));
        assert!(text.starts_with(&expected) && text.contains("WouldBlock"), "{text}");
        let knows = Path::new("/proc/locks").exists();
        assert_eq!(text.ends_with(", it is open in this process"), knows, "{text}");
        drop(first);
        DiskStorage::open(&scratch.0, false, b"new").expect("released");
    }

    #[test]
    fn those_who_only_read_share_the_file() {
        let scratch = Scratch::new("shared");
        assert_eq!(
            DiskStorage::open_read_only(&scratch.0).expect_err("nothing there").kind(),
            io::ErrorKind::NotFound
        );
        drop(DiskStorage::open(&scratch.0, false, b"new").expect("opens"));
        let readers = [(); 2].map(|()| DiskStorage::open_read_only(&scratch.0).expect("shared"));
        let error = DiskStorage::open(&scratch.0, false, b"new").expect_err("being read");
        assert!(error.to_string().starts_with(LOCKED), "{error}");
        readers[0].write_at(0, b"x").expect_err("opened for reading");
        drop(readers);
        let _writer = DiskStorage::open(&scratch.0, false, b"new").expect("free again");
        DiskStorage::open_read_only(&scratch.0).expect_err("being written");
    }

    #[test]
    fn odd_paths_are_errors() {
        let scratch = Scratch::new("odd");
        std::fs::create_dir_all(scratch.0.join("db")).expect("creates");
        assert_eq!(
            DiskStorage::open(&scratch.0, false, b"new").expect_err("a directory").kind(),
            io::ErrorKind::InvalidInput
        );
        let file = scratch.0.join("file");
        std::fs::write(&file, b"x").expect("writes");
        DiskStorage::open(&file, false, b"new").expect_err("the directory is a file");
        assert_eq!(std::fs::read(&file).expect("still there"), b"x");
    }

    #[test]
    fn a_creation_that_was_cut_short_leaves_nothing() {
        let scratch = Scratch::new("unborn");
        let names = || {
            let entries = std::fs::read_dir(&scratch.0).expect("a directory").flatten();
            entries.map(|entry| entry.file_name()).collect::<Vec<_>>()
        };
        std::fs::create_dir_all(&scratch.0).expect("creates");
        std::fs::write(scratch.0.join(UNBORN), b"longer than what is written").expect("writes");
        drop(DiskStorage::open(&scratch.0, true, b"new").expect("opens"));
        assert_eq!(names(), [FILE]);
        // Between the two names.
        std::fs::hard_link(scratch.0.join(FILE), scratch.0.join(UNBORN)).expect("links");
        let disk = DiskStorage::open(&scratch.0, false, b"new").expect("opens");
        assert_eq!((names(), disk.len().expect("known")), (vec![FILE.into()], 3));
    }

    #[test]
    fn holes_give_blocks_back() {
        let scratch = Scratch::new("hole");
        let disk = DiskStorage::open(&scratch.0, false, b"new").expect("opens");
        disk.write_at(0, &vec![1; 1 << 20]).expect("writes");
        disk.sync_data().expect("syncs");
        let before = disk.allocated().expect("known");
        if disk.punch_hole(0, 1 << 19).expect("punches or says no") {
            assert!(disk.allocated().expect("known") <= before - (1 << 18));
            let mut buf = [1; 4];
            disk.read_at(100, &mut buf).expect("a hole reads as zeros");
            assert_eq!(buf, [0; 4]);
        }
        assert_eq!(disk.len().expect("known"), 1 << 20);
    }
}
