//! Which pages the system is to keep in its cache after they were read into ours.
//!
//! # How it works
//!
//! What is read into the pagecache lies in memory twice. Where the system has memory to spare, the second copy is of use: a
//! page that was evicted comes back without the medium. Where it has not, all that it does is to push out others, at more
//! cost than the read itself. Which of these it is, the system knows: it can say of a range whether it is in its cache
//! (`cachestat`), or was, until its memory was needed.
//!
//! So a share of all pages, chosen by their place in the file, is read such that they stay, and the others so that they do
//! not (`RWF_DONTCACHE`). A sample of the reads of the share says how it fares: if many of its pages were pushed out, the
//! share becomes half of what it was, and if nearly all are still there, it grows. It settles where the share is about what
//! the system has room for, which for reads spread over a file is better than to keep whatever was read last. At first it
//! is the whole file.
//!
//! # Concurrency
//!
//! Counters that are hints: a race loses a sample.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The whole file.
const WHOLE: u32 = 1 << 16;
/// The share never becomes smaller, so that it can grow again.
const LEAST: u32 = WHOLE / 64;
/// One in so many reads of the share is a sample.
const SAMPLED: u32 = 4;
/// Samples from which the share is judged.
const JUDGED: u32 = 64;

/// What the system said of a range that is about to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(any(not(target_os = "linux"), miri), allow(dead_code, reason = "others say nothing"))]
enum Residency {
    /// It is in its cache, or a part of it that is there without others that were.
    Cached,
    /// Some of it was, and its memory was needed for something else.
    PushedOut,
    /// It was not read so that it stayed.
    Cold,
}

/// The share of the file that stays, and what is known of it.
#[derive(Debug)]
pub(super) struct SecondCopies {
    /// Of [`WHOLE`].
    share: AtomicU32,
    /// Reads of the share.
    reads: AtomicU32,
    /// Samples since the share changed last, those that were cached, and those that were pushed out.
    samples: [AtomicU32; 3],
    /// The system knows no such reads, or does not say what it has.
    off: AtomicBool,
}

impl Default for SecondCopies {
    fn default() -> SecondCopies {
        SecondCopies {
            share: AtomicU32::new(WHOLE),
            reads: AtomicU32::new(0),
            samples: Default::default(),
            off: AtomicBool::new(false),
        }
    }
}

impl SecondCopies {
    /// Fills `buf` with the bytes at `offset`, and leaves a copy in the cache of the system if they are of the share.
    ///
    /// # Errors
    /// What reading failed with.
    pub(super) fn read(&self, file: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        // Relaxed: a hint.
        let keeps = self.off.load(Ordering::Relaxed) || self.keeps(file, offset, buf.len());
        self.read_keeping(keeps, file, offset, buf)
    }

    /// As [`Self::read`], of what is not read again, and says nothing about how the share fares.
    ///
    /// # Errors
    /// What reading failed with.
    pub(super) fn read_once(&self, file: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        // Relaxed, both: hints.
        let keeps = self.off.load(Ordering::Relaxed) || self.share.load(Ordering::Relaxed) == WHOLE;
        self.read_keeping(keeps, file, offset, buf)
    }

    fn read_keeping(&self, keeps: bool, file: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut read = 0;
        if !keeps {
            match system::read_without_copy(file, offset, buf) {
                Ok(bytes) => read = bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted || is_about_data(&error) => {}
                Err(error) => self.turn_off(&error),
            }
        }
        // What is missing; nothing, as a rule, and then there is no call.
        file.read_exact_at(&mut buf[read..], offset + read as u64)
    }

    /// Whether what is about to be read is of the share, which is looked at now and then.
    fn keeps(&self, file: &File, offset: u64, len: usize) -> bool {
        let keeps = self.has(offset);
        if keeps && self.samples() {
            match system::residency(file, offset, len) {
                Ok(found) => self.judge(found),
                Err(error) => self.turn_off(&error),
            }
        }
        keeps
    }

    #[cold]
    fn turn_off(&self, error: &io::Error) {
        log::debug!("all that is read stays in the cache of the system, which says: {error}");
        // Relaxed: a hint.
        self.off.store(true, Ordering::Relaxed);
    }

    /// Whether what is at `offset` is of the share.
    fn has(&self, offset: u64) -> bool {
        // Fibonacci hashing: places that are near each other fall far apart.
        let hash = (offset / 4096).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
        // Relaxed: a hint.
        (hash as u32) < self.share.load(Ordering::Relaxed)
    }

    /// Whether this read of the share is a sample.
    fn samples(&self) -> bool {
        // Relaxed: a hint.
        self.reads.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLED)
    }

    /// A sample.
    fn judge(&self, found: Residency) {
        let [all, cached, pushed_out] = &self.samples;
        match found {
            // Relaxed, here and below: hints.
            Residency::Cached => cached.fetch_add(1, Ordering::Relaxed),
            // Relaxed: as above.
            Residency::PushedOut => pushed_out.fetch_add(1, Ordering::Relaxed),
            Residency::Cold => 0,
        };
        // Relaxed: as above. Only one call meets the last sample.
        if all.fetch_add(1, Ordering::Relaxed) + 1 != JUDGED {
            return;
        }
        // Relaxed: as above.
        let (stayed, gone) = (cached.swap(0, Ordering::Relaxed), pushed_out.swap(0, Ordering::Relaxed));
        // Relaxed: as above.
        let share = self.share.load(Ordering::Relaxed);
        let new = if gone > JUDGED / 4 {
            share / 2
        } else if stayed > JUDGED / 8 * 7 {
            share + share / 4
        } else {
            share
        };
        // Relaxed: as above.
        self.share.store(new.clamp(LEAST, WHOLE), Ordering::Relaxed);
        // Relaxed: as above.
        all.store(0, Ordering::Relaxed);
    }
}

/// Whether an error is one of the medium, which the ordinary read that follows meets as well.
fn is_about_data(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::ENOMEM))
}

/// The two system calls, which no library has yet.
#[cfg(all(
    target_os = "linux",
    target_pointer_width = "64",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"),
    not(miri)
))]
mod system {
    use super::Residency;
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd as _;

    /// `cachestat(2)`, of Linux 6.5.
    const SYS_CACHESTAT: libc::c_long = 451;
    /// Of `preadv2(2)`: what is read is not to stay in the cache. Of Linux 6.14.
    const RWF_DONTCACHE: libc::c_int = 0x80;

    /// The range that is asked about, `struct cachestat_range`.
    #[repr(C)]
    struct Range {
        offset: u64,
        len: u64,
    }

    /// What is known of it, in pages, `struct cachestat`.
    #[repr(C)]
    #[derive(Default)]
    struct Pages {
        cached: u64,
        dirty: u64,
        being_written: u64,
        evicted: u64,
        recently_evicted: u64,
    }

    pub(super) fn residency(file: &File, offset: u64, len: usize) -> io::Result<Residency> {
        let range = Range { offset, len: len as u64 };
        let mut pages = Pages::default();
        // SAFETY: the descriptor is open; the call reads the one struct and writes the other, which have the layout of the
        // kernel's and outlive it.
        let result = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &range, &mut pages, 0) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(match pages {
            Pages { evicted: 1.., .. } => Residency::PushedOut,
            Pages { cached: 1.., .. } => Residency::Cached,
            _ => Residency::Cold,
        })
    }

    /// Reads at most as many bytes as `buf` has; how many.
    pub(super) fn read_without_copy(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (fd, call) = (file.as_raw_fd(), libc::SYS_preadv2);
        // SAFETY: the descriptor is open, and the only part is `buf`, which the call fills from its start. Offsets are passed in
        // two halves, of which the second is unused where registers have 64 bits.
        let read = unsafe { libc::syscall(call, fd, &part, 1, at, 0, RWF_DONTCACHE) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }
}

/// Where neither is known, all that is read stays.
#[cfg(not(all(
    target_os = "linux",
    target_pointer_width = "64",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"),
    not(miri)
)))]
mod system {
    use super::Residency;
    use std::fs::File;
    use std::io;

    pub(super) fn residency(_file: &File, _offset: u64, _len: usize) -> io::Result<Residency> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn read_without_copy(_file: &File, _offset: u64, _buf: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

// Files, and some hundred thousand steps without a pointer: nothing for Miri.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A system that keeps the newest so many of the pages that stay.
    struct System {
        room: usize,
        cached: VecDeque<u64>,
        was_cached: std::collections::HashSet<u64>,
    }

    impl System {
        fn new(room: usize) -> System {
            System { room, cached: VecDeque::new(), was_cached: Default::default() }
        }

        /// Reads random pages of a file; how many were cached of the second half.
        fn read(&mut self, copies: &SecondCopies, pages: u64, reads: usize) -> usize {
            let mut seed = 1_u64;
            let mut hits = 0;
            for n in 0..reads {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let page = (seed >> 33) % pages;
                let place = self.cached.iter().position(|cached| *cached == page);
                hits += usize::from(place.is_some() && n >= reads / 2);
                if !copies.has(page * 4096) {
                    continue;
                }
                if copies.samples() {
                    copies.judge(match place {
                        Some(_) => Residency::Cached,
                        None if self.was_cached.contains(&page) => Residency::PushedOut,
                        None => Residency::Cold,
                    });
                }
                if let Some(place) = place {
                    self.cached.remove(place);
                }
                self.cached.push_back(page);
                self.was_cached.insert(page);
                if self.cached.len() > self.room {
                    self.cached.pop_front();
                }
            }
            hits
        }

        fn share(copies: &SecondCopies) -> f64 {
            f64::from(copies.share.load(Ordering::Relaxed)) / f64::from(WHOLE)
        }
    }

    #[test]
    fn bytes_are_the_same_whether_they_stay_or_not() {
        let path = std::env::temp_dir().join(format!("sled-second-copy-{}", std::process::id()));
        let bytes: Vec<u8> =
            (0..100_000_u32).flat_map(|n| (n.wrapping_mul(0x9E37_79B9)).to_le_bytes()).collect();
        std::fs::write(&path, &bytes).expect("a temporary directory");
        let file = File::open(&path).expect("just written");
        std::fs::remove_file(&path).expect("just written");
        for share in [0, WHOLE / 2, WHOLE] {
            let copies = SecondCopies { share: AtomicU32::new(share), ..SecondCopies::default() };
            for (offset, len) in [(0, 1), (4095, 2), (64, 5632), (12_352, 20_000), (399_999, 1)] {
                let mut found = vec![0; len];
                copies.read(&file, offset, &mut found).expect("within the file");
                assert!(found == bytes[offset as usize..][..len], "{len} bytes at {offset}");
            }
            let past = copies.read(&file, 399_000, &mut [0; 2000]).expect_err("past the end");
            assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn all_stay_where_there_is_room() {
        let (copies, mut system) = (SecondCopies::default(), System::new(1000));
        let hits = system.read(&copies, 1000, 20_000);
        assert_eq!((System::share(&copies), hits), (1.0, 10_000));
    }

    #[test]
    fn about_as_many_stay_as_there_is_room_for() {
        let (copies, mut system) = (SecondCopies::default(), System::new(100));
        let hits = system.read(&copies, 1000, 100_000);
        let share = System::share(&copies);
        assert!((0.05..0.3).contains(&share), "{share}");
        assert!(hits > 2_000, "{hits} of 50,000 hits, with room for a tenth");
        // There is more room, and less again.
        system.room = 1000;
        system.read(&copies, 1000, 100_000);
        assert_eq!(System::share(&copies), 1.0);
        system.room = 10;
        system.cached.truncate(10);
        system.read(&copies, 1000, 100_000);
        assert!(System::share(&copies) < 0.1);
    }
}
