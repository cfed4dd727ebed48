//! The power goes while a database is opened, written to, tidied and closed: what was acknowledged is there again.
//!
//! `FS_IOC_SHUTDOWN` has a mounted file system forget what is not on its medium, and refuse everything from then on.
//! Unmounted and mounted again it shows what a power cut leaves. What counts as acknowledged is what was before that call
//! began: an `fdatasync` that is under way meanwhile may return 0 on ext4 though its journal was thrown away (seen with one
//! `pwrite` and `fdatasync` in a loop and nothing else).

use crate::common_durability::lives::{Acks, Life, THREADS, check};
use crate::common_durability::{Random, Scratch, Watchdog, soak};
use crate::mounts::{Cut, EXT4, Kind, Mount, XFS};
use crate::skipped;
use sled::{Config, Error, testing};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn config(mount: &Path) -> Config {
    // The directories are to be durable, too.
    Config::new().path(mount.join("new/database")).cache_capacity(1 << 20).segment_size(64 << 10)
}

/// Opens, checks, writes for a while, closes; errors count only where the power was on.
fn live(mount: &Path, acks: &Acks, is_cut: &AtomicBool, span: Duration) -> Result<(), String> {
    // Acquire: pairs with the Release before the cut.
    let unless_cut = |text: String| if is_cut.load(Ordering::Acquire) { Ok(()) } else { Err(text) };
    let db = match config(mount).open() {
        Ok(db) => db,
        Err(error) => return unless_cut(format!("does not open: {error}")),
    };
    let found = match check(&db, acks) {
        Ok(found) => found,
        Err(text) => return unless_cut(text),
    };
    let life = Life::new(&db, acks, &found);
    if let Err(text) = life.identify() {
        return unless_cut(text);
    }
    let written = std::thread::scope(|scope| {
        let life = &life;
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || life.write(thread))).collect();
        let begun = std::time::Instant::now();
        let mut tidied = Ok(());
        while begun.elapsed() < span && tidied.is_ok() {
            std::thread::sleep(Duration::from_millis(4));
            tidied = testing::checkpoint(&db);
        }
        // Relaxed: a hint.
        life.stop.store(true, Ordering::Relaxed);
        let written = threads.into_iter().map(|thread| thread.join().expect("does not panic"));
        written.chain([tidied]).collect::<Vec<_>>()
    });
    for error in written.into_iter().filter_map(Result::err) {
        let is_read = error.is_corruption() && error.to_string().contains("cannot be read");
        if !is_read && !matches!(error, Error::Io(_)) {
            return Err(format!("not an error of the system: {error}"));
        }
        unless_cut(format!("writing: {error}"))?;
    }
    Ok(())
}

fn cut_again_and_again(kind: Kind, cycles: u64) {
    let scratch = Scratch::new("power");
    let Some(mount) = Mount::new(&scratch.0, kind, kind.least.max(64)) else { return };
    let dog = Watchdog::new(Duration::from_secs(30));
    let acks = Acks::open(&scratch.0);
    let mut random = Random(u64::from(std::process::id()));
    println!("{}: seed {}", kind.name, random.0);
    let mut while_opening = 0;
    for cycle in 0..cycles {
        let fail = |text: String| -> ! { panic!("{}, cycle {cycle}: {text}", kind.name) };
        dog.begin(format!("{}, cycle {cycle}", kind.name));
        if random.below(3) > 0 {
            // Looked at with the power on, so that nothing excuses a loss.
            let db = config(&mount.point).open().unwrap_or_else(|e| fail(format!("does not open: {e}")));
            check(&db, &acks).unwrap_or_else(|text| fail(text));
        }
        let is_cut = AtomicBool::new(false);
        let early = random.below(3) == 0;
        let delay = Duration::from_micros(random.below(if early { 8_000 } else { 60_000 }));
        let span = Duration::from_millis(10 + random.below(60));
        let how = if random.below(4) == 0 { Cut::Logged } else { Cut::Hard };
        while_opening += u64::from(early);
        let (cut, promised, lived) = std::thread::scope(|scope| {
            let cut = scope.spawn(|| {
                std::thread::sleep(delay);
                // Release: pairs with the Acquire in `live`.
                is_cut.store(true, Ordering::Release);
                let promised = acks.promised();
                (mount.cut_power(how), promised)
            });
            let lived = live(&mount.point, &acks, &is_cut, span);
            let (cut, promised) = cut.join().expect("does not panic");
            (cut, promised, lived)
        });
        if let Err(error) = cut {
            return skipped(format_args!("{} has no power to cut: {error}", kind.name));
        }
        acks.take_back(&promised);
        lived.unwrap_or_else(|text| fail(text));
        mount.unmount();
        mount.mount();
    }
    let db = config(&mount.point).open().expect("opens");
    let found = check(&db, &acks).expect("everything acknowledged is there");
    println!(
        "{}: {cycles} cuts, {while_opening} of them early; {:?} there, {:?} acknowledged",
        kind.name,
        found.counts,
        acks.counts()
    );
    assert!(acks.counts().iter().all(|count| *count > 0), "nothing was acknowledged");
}

#[test]
fn what_was_flushed_survives_power_cuts_of_ext4() {
    cut_again_and_again(EXT4, 40 * soak());
}

#[test]
fn what_was_flushed_survives_power_cuts_of_xfs() {
    cut_again_and_again(XFS, 30 * soak());
}
