//! Opens what a crash left and compares it with what was promised.

use super::common_durability::{mix, open_tiny};
use super::run::Run;
use super::state::{contents, differences, fingerprint};
use sled::testing::{CrashMode, SimStorage, check_invariants};

/// Opens what a crash after `calls` calls left and checks it; or why it is not what was promised. The salt chooses
/// how it is opened the second time.
pub fn check(run: &Run, medium: &SimStorage, calls: u64, salt: u64) -> Result<(), String> {
    let db = open_tiny(medium, run.redo_buffer).map_err(|e| format!("does not open: {e}"))?;
    let print = fingerprint(&db).map_err(|e| format!("cannot be read: {e}"))?;
    if run.fits(print, calls).is_none() && !run.is_older(print, calls) {
        let (lower, upper) = run.bounds(calls);
        let differs = contents(&db).map(|found| {
            let [low, high] = [lower, upper].map(|count| differences(&run.model(count), &found));
            format!("\nagainst the least that must be there: {low}\nagainst the most that may: {high}")
        });
        let found = run.counts.get(&print).map_or(&[][..], |counts| counts);
        let differs = differs.unwrap_or_else(|e| e.to_string());
        return Err(format!("has the contents after {found:?} steps, not after {lower}..={upper}{differs}"));
    }
    let handed_out = run.ids[..run.ids.partition_point(|(ended, _)| *ended <= calls)].last();
    let id = db.generate_id().map_err(|e| format!("gives no identifier: {e}"))?;
    if let Some((_, last)) = handed_out
        && id <= *last
    {
        return Err(format!("gives identifier {id} although {last} was handed out"));
    }
    let salt = mix(salt);
    if salt >> 32 & 7 == 0 {
        check_invariants(&db).map_err(|e| format!("breaks an invariant: {e}"))?;
    }
    match salt & 3 {
        0 => {
            drop(db);
            check_again(run, medium, print, id)
        }
        // Without closing: nothing since the recovery has to have reached the medium, except the identifier.
        1 => check_again(run, &medium.crash(salt, CrashMode::DropUnsynced), print, id),
        2 => check_again(run, &medium.crash(salt, CrashMode::Torn), print, id),
        _ => Ok(()),
    }
}

fn check_again(run: &Run, medium: &SimStorage, print: u64, last: u64) -> Result<(), String> {
    let db = open_tiny(medium, run.redo_buffer).map_err(|e| format!("does not open again: {e}"))?;
    let again = fingerprint(&db).map_err(|e| format!("cannot be read again: {e}"))?;
    let id = db.generate_id().map_err(|e| format!("gives no identifier again: {e}"))?;
    match () {
        () if again != print => Err("shows something else when opened again".to_string()),
        () if id <= last => Err(format!("gives identifier {id} after {last} when opened again")),
        () => Ok(()),
    }
}
