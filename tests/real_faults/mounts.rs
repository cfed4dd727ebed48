//! Small file systems in image files, which fill up and lose their power.

use crate::common_durability::within;
use crate::skipped;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// `_IOR('X', 125, __u32)`.
const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587D;

/// A kind of file system: its `mkfs`, what to give it, and the least size of an image in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    options: &'static [&'static str],
    pub least: u64,
}

pub const EXT4: Kind = Kind { name: "ext4", options: &[], least: 16 };
/// What fails when it is mounted again after its image lost writes is its journal.
pub const EXT4_NO_JOURNAL: Kind = Kind { name: "ext4", options: &["-O", "^has_journal"], least: 16 };
pub const XFS: Kind = Kind { name: "xfs", options: &[], least: 300 };

/// What goes to the journal before the power is cut.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// The journal is written out, data is not.
    Logged = 1,
    /// Nothing.
    Hard = 2,
}

/// A mounted image; unmounted when dropped.
pub struct Mount {
    image: PathBuf,
    pub point: PathBuf,
}

fn run(program: &str, arguments: &[&str], paths: &[&Path]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).args(paths).output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {paths:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Mount {
    /// A new file system below `directory`; `None`, and said so: that is not possible here.
    pub fn new(directory: &Path, kind: Kind, mebibytes: u64) -> Option<Mount> {
        let (image, point) = (directory.join("image"), directory.join("mount"));
        std::fs::create_dir_all(&point).expect("the directory is writable");
        let file = File::create(&image).expect("a file can be created");
        file.set_len(mebibytes << 20).expect("sparse");
        let made = run(&format!("mkfs.{}", kind.name), &[&["-q"], kind.options].concat(), &[&image]);
        let mount = Mount { image, point };
        match made.and_then(|()| mount.try_mount(&[])) {
            Ok(()) => Some(mount),
            Err(why) => {
                skipped(why);
                None
            }
        }
    }

    fn try_mount(&self, options: &[&str]) -> Result<(), String> {
        run("mount", &[&["-o", "loop"], options].concat(), &[&self.image, &self.point])
    }

    /// Mounts again what was unmounted.
    pub fn mount(&self) {
        self.try_mount(&[]).expect("it was mounted before");
    }

    /// Nothing on it may be open. Another test that starts a process may have a copy of a descriptor for a moment.
    pub fn unmount(&self) {
        let unmounted = || run("umount", &[], &[&self.point]).is_ok();
        assert!(within(Duration::from_secs(5), unmounted), "{} is busy", self.point.display());
    }

    /// Mounts it so that nothing can be written.
    pub fn remount_read_only(&self) {
        self.unmount();
        self.try_mount(&["-r"]).expect("it was mounted before");
    }

    /// From now on nothing reaches the image; `Err`: this file system cannot do that.
    pub fn cut_power(&self, cut: Cut) -> std::io::Result<()> {
        let directory = File::open(&self.point)?;
        let flags = cut as u32;
        // SAFETY: the call reads one u32, which lives until it returns.
        let result = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_SHUTDOWN, &raw const flags) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }

    /// Writes a file that leaves no room.
    pub fn fill(&self) -> PathBuf {
        use std::io::Write as _;
        let path = self.point.join("filler");
        let mut file = File::create(&path).expect("a name fits");
        for len in [1 << 20, 64 << 10, 4096, 512] {
            while file.write_all(&vec![0xA5; len]).and_then(|()| file.sync_data()).is_ok() {}
        }
        path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run("umount", &["-l"], &[&self.point]);
    }
}
