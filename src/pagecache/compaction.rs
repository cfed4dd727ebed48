//! Moves pages together in memory, so that what is free between them can go back.
//!
//! # How it works
//!
//! Frames are freed where they happen to lie. A span of which one is left takes up as much memory as a full one; and with
//! huge pages, giving a part of one back makes small pages of the rest, with which reading is slower. So when nothing is
//! being written, the frames and deltas in spans that are not needed, and then those in the last regions, are copied to
//! where there is room in the others, which the arena finds by itself as long as it keeps no freed blocks.
//!
//! # Concurrency
//!
//! A frame is replaced as consolidation replaces it, frozen and swapped (P3), under the maintenance lock, so that no
//! checkpoint takes a leaf that was only moved for one that was folded. Who has the old frame goes on with it until his
//! guard ends. A frame that is frozen is left to who froze it, and one that is held to who will refer to it: a copy would
//! not be held, and eviction would post separators for a page that may never come to be.

use super::arena::Surplus;
use super::frame::FrameKind;
use super::mapping_table::PageState;
use super::{Page, PageCache, count};
use crossbeam_epoch::Guard;
use std::time::Duration;

/// PIDs looked at under one guard and one hold of the maintenance lock.
const STRIDE: u64 = 1024;
/// Bytes that may wait for their epoch.
const MOST_RETIRED: u64 = 32 << 20;
/// How often it is looked whether what was moved is free, half a millisecond apart; after that it goes back later.
const PATIENCE: u32 = 20;

impl<P: Page> PageCache<P> {
    /// Whether [`Self::compact`] would gain something.
    pub fn is_spread(&self) -> bool {
        self.arena().has_surplus()
    }

    /// Moves frames and deltas together, and gives back what memory is free then.
    pub fn compact(&self) {
        self.arena().vacate(|surplus| {
            let end = self.table().high_water();
            for first in (1..end).step_by(STRIDE as usize) {
                if self.arena().retired() > MOST_RETIRED {
                    // Somebody sleeps in an epoch: nothing would become free.
                    break;
                }
                let lock = self.maintain();
                let guard = crossbeam_epoch::pin();
                (first..end.min(first + STRIDE)).for_each(|pid| self.move_out(pid as u32, surplus, &guard));
                drop(lock);
                // Lets the epoch move on and frees what is due.
                guard.flush();
            }
            // What was moved last is free after two more epochs, if nobody sleeps in one.
            for _ in 0..PATIENCE {
                self.move_epoch();
                if self.arena().retired() == 0 {
                    break;
                }
                std::thread::sleep(Duration::from_micros(500));
            }
        });
    }

    /// Moves every page that can be moved.
    #[cfg(test)]
    pub fn move_all(&self, guard: &Guard) {
        let _lock = self.maintain();
        (1..self.table().high_water()).for_each(|pid| self.move_out(pid as u32, &Surplus::ALL, guard));
    }

    /// Replaces the frame of a page by a copy if some of it is where nothing should be.
    fn move_out(&self, pid: u32, surplus: &Surplus<'_>, guard: &Guard) {
        if self.table().try_get(pid).is_none() {
            return;
        }
        let (_, PageState::Resident(frame)) = self.load(pid, guard) else { return };
        let is_leaf = frame.kind() == FrameKind::Leaf;
        let (used, frozen) = if is_leaf { frame.used() } else { (0, false) };
        let concerned = surplus.has(frame.address()) || (0..used).any(|i| surplus.has(frame.slot_address(i)));
        // Intents that are not decided had better stay where their owner looks for them.
        if !concerned || frozen || frame.is_held() || frame.undecided(used).next().is_some() {
            return;
        }
        let used = if is_leaf { frame.freeze() } else { 0 };
        let copy = frame.copy(self.arena(), used, frame.disk());
        if self.replace(pid, frame, copy, guard) {
            count(&self.counters.moved_frames);
        }
    }
}
