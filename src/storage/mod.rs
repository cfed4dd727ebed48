//! The operating system and nothing else: one file, read and written at offsets.
//!
//! # Invariants
//!
//! What is assumed of the medium:
//!
//! - S1: once `sync_data` returned `Ok`, every byte written before it was called survives a power cut.
//! - S2: an unsynced write may be lost, reordered, or torn at any multiple of 512 bytes.
//! - S3: bytes outside a written range do not change.
//! - S4: a new file is durable only after its directory was synced, which opening does.

#[cfg(unix)]
pub mod disk;
#[cfg(unix)]
mod second_copy;
pub mod shadow;
pub mod sim;

use std::fmt::Debug;
use std::io;
use std::path::Path;

/// Whether an error of [`Storage::read_at`] says that the medium does not give the bytes back, and not that the system has
/// no means to read just now.
pub fn is_unreadable(error: &io::Error) -> bool {
    #[cfg(unix)]
    let by_code = error.raw_os_error() == Some(libc::EIO);
    // What the kernel calls a failed checksum, and an error of the device.
    #[cfg(windows)]
    let by_code = matches!(error.raw_os_error(), Some(23 | 1117));
    #[cfg(not(any(unix, windows)))]
    let by_code = false;
    // What the simulated medium says.
    by_code || error.kind() == io::ErrorKind::Other
}

/// One growable file of bytes.
///
/// All methods may be called from many threads at once. A short transfer is never reported as success, and
/// interrupted calls are retried inside. Errors are what the operating system says; `read_at` alone adds one.
#[expect(clippy::len_without_is_empty, reason = "a file, not a collection")]
pub trait Storage: Send + Sync + Debug + 'static {
    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before the range does.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// As [`Self::read_at`], for what the caller keeps in a cache of its own, so that a second copy in that of the system is
    /// kept only where there is room for it. Nobody writes to the blocks of the file system around it meanwhile: the system
    /// drops them.
    ///
    /// # Errors
    /// As for [`Self::read_at`].
    fn read_to_cache(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, buf)
    }

    /// As [`Self::read_at`], for what is not read again: it leaves no copy in the cache of the system where that is short of
    /// room. Nobody writes to the range meanwhile.
    ///
    /// # Errors
    /// As for [`Self::read_at`].
    fn read_once(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, buf)
    }

    /// Writes all of `buf` at `offset`, growing the file when the range ends past its end.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Has the system begin to write a range that was written to, and will not be again soon, to the medium, so that the
    /// next sync finds little to do. A hint that promises nothing.
    fn start_writing(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Makes every write that returned before this call durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;

    /// Whether there is nothing yet: the caller makes it a database.
    fn is_new(&self) -> io::Result<bool>;

    /// Length of the file in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Cuts or (sparsely) extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Gives the blocks of a range that is not empty back; it reads as zeros or as before afterwards.
    /// `Ok(false)`: not supported here, nothing happened.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<bool>;

    /// Bytes the file occupies on the medium, holes not counted.
    fn allocated(&self) -> io::Result<u64>;

    /// The name of the file, to name it in errors; `None`: it has none.
    fn path(&self) -> Option<&Path> {
        None
    }
}
