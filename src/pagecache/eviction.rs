//! Keeps memory within the capacity: a clock hand over the mapping table, pages out what was not used lately.
//!
//! # How it works
//!
//! The hand goes round the PIDs. A frame that was used since it last came by loses its mark and stays.
//! Otherwise it is frozen; when its image is current it is swapped for the address, and when not it is
//! folded, and the folded images of a batch are written with few calls before they are swapped in. A writer
//! that meets a frozen frame replaces it, and then the swap fails and the page, evidently in use, stays.
//!
//! A page with an image and a few changes since is not written for these: it becomes an overlay first, which has the
//! changes and not the image, and takes a small part of the memory. The log has the changes, so nothing is lost by that.
//! Pages that random writes come to are so written once for all the changes that they got meanwhile. How much memory
//! overlays may take is bounded; above that they are folded and written like others.
//!
//! What is in use by others all the time, or cannot be written, stays. Then eviction is due again when there is a certain
//! amount more, or when nobody uses anything any more, which the owner of the cache finds out.
//!
//! Memory that the epoch has not given back yet is not counted as in use here, or the hand would throw out
//! the whole cache while one reader sleeps; the hard limit of [`PageCache::over_hard_limit`] counts it.
//!
//! # References
//!
//! The clock: F. Corbato, "A Paging Experiment with the Multics System", 1968.

use super::frame::{FrameKind, FrameRef};
use super::mapping_table::{PageState, Word};
use super::memory::REGION;
use super::{Folded, Maintenance, Page, PageCache, count};
use crate::base::Lsn;
use crate::error::Result;
use crate::log::{ImageAddr, ImageKind, NewImage, Stream};
use crossbeam_epoch::Guard;
use std::sync::atomic::Ordering;

/// Dirty pages written with one call.
const BATCH: usize = 32;
/// Memory past the capacity at which foreground writers help and wait, bytes.
const SLACK: u64 = 2 << 20;
/// How much memory must grow, after eviction could not get below the capacity, before it is tried again,
/// bytes.
const STUCK_STEP: u64 = 256 << 10;
/// PIDs looked at under one guard and one hold of the maintenance lock.
const STRIDE: usize = 1024;

/// Regions of memory that are made ready at most, one more for so many bytes that are in use, and the part of the bytes up to
/// the capacity that they may take up.
const MOST_READY: u64 = 4;
const READY_SHARE: u64 = 16 << 20;
const READY_OF_ROOM: u64 = 4;

/// The part of the capacity that overlays may take, of four.
const OVERLAYS: u64 = 3;
/// A page becomes an overlay if that takes at most one in so many of its bytes.
const SHRINKS: usize = 2;

/// Posts the separator behind a leaf of a tree; whether that worked.
pub type Link<'a> = &'a dyn Fn(u32, FrameRef<'_>, &Guard) -> bool;

/// Where eviction goes on, and what it knows.
#[derive(Debug)]
pub(super) struct Hand {
    /// The PID that it looks at next.
    next: u64,
    /// Bytes of overlays, about: those of the last round, and what was done about them since.
    overlays: u64,
    /// Bytes of the overlays that it left behind in this round.
    left: u64,
}

impl Default for Hand {
    fn default() -> Hand {
        Hand { next: 1, overlays: 0, left: 0 }
    }
}

impl Hand {
    /// The next PID of a table that ends before `end`.
    fn step(&mut self, end: u64) -> u32 {
        let pid = self.next;
        self.next += 1;
        if self.next >= end {
            self.next = 1;
            self.overlays = std::mem::take(&mut self.left);
        }
        pid as u32
    }

    /// It leaves an overlay behind that it found.
    fn leave(&mut self, bytes: u64) {
        self.left += bytes;
    }

    /// It made an overlay.
    fn add(&mut self, bytes: u64) {
        self.overlays += bytes;
        self.left += bytes;
    }

    /// An overlay goes.
    fn remove(&mut self, bytes: u64) {
        self.overlays = self.overlays.saturating_sub(bytes);
    }
}

/// A frozen page that has no current image.
struct Victim<'g> {
    pid: u32,
    frame: FrameRef<'g>,
    folded: Folded,
}

impl<P: Page> PageCache<P> {
    /// Bytes of frames and deltas in use beyond the capacity.
    #[inline]
    pub fn excess(&self) -> u64 {
        self.arena().in_use().saturating_sub(self.limit())
    }

    /// Has the epoch move on, and frees what is due.
    pub fn move_epoch(&self) {
        let mut before = u64::MAX;
        // A call frees a part of what is due.
        while self.retired() < before {
            before = self.retired();
            crossbeam_epoch::pin().flush();
        }
    }

    /// Bytes of frames and deltas that wait for their epoch.
    pub fn retired(&self) -> u64 {
        self.arena().retired()
    }

    /// The capacity, or what could not be evicted when that was tried last (inner nodes, pages in use) and a
    /// little more: trying again for every operation would help nobody.
    #[inline]
    fn limit(&self) -> u64 {
        // Relaxed: a hint.
        self.options.capacity.max(self.stuck.load(Ordering::Relaxed))
    }

    /// Whether more is in use than there should be, and nobody tries to evict it because that did not work last time.
    pub fn is_stuck(&self) -> bool {
        self.arena().in_use() > self.options.capacity && self.excess() == 0
    }

    /// Forgets what could not be evicted, if memory is within the capacity without that: it is gone.
    pub fn forget_stuck(&self) {
        if self.arena().in_use() <= self.options.capacity {
            // Relaxed: a hint.
            self.stuck.store(0, Ordering::Relaxed);
        }
    }

    /// Whether memory, what waits for its epoch included, is so far over the capacity that writers must wait.
    #[inline]
    pub fn over_hard_limit(&self) -> bool {
        self.arena().about() > self.limit() + SLACK
    }

    /// Whether memory in use is so near the capacity that pages are about to be evicted.
    pub fn is_tight(&self) -> bool {
        self.arena().in_use() + 2 * self.margin() > self.options.capacity
    }

    /// Has memory made ready for what is about to be added, as long as that is far from the capacity.
    pub fn make_ready(&self) {
        let in_use = self.arena().in_use();
        let room = self.options.capacity.saturating_sub(in_use) / READY_OF_ROOM;
        let most = (1 + in_use / READY_SHARE).min(room / REGION as u64).min(MOST_READY);
        self.arena().make_ready(most as usize);
    }

    /// Whether it is time for that.
    #[inline]
    pub fn grows(&self) -> bool {
        self.arena().grows()
    }

    /// How far below the capacity a round of eviction goes, so that the next is not due at once.
    pub fn margin(&self) -> u64 {
        (self.options.capacity / 32).min(4 << 20)
    }

    /// Evicts until memory in use is `margin` below the capacity, or the hand went round twice. Holds the
    /// maintenance lock for one stride at a time. `link` sees to it that a leaf's right sibling can be found
    /// without it, or says that it cannot.
    ///
    /// # Errors
    /// What writing or reading failed with.
    pub fn evict(&self, margin: u64, link: Link<'_>) -> Result<()> {
        let goal = self.options.capacity.saturating_sub(margin);
        let mut looked_at = 0;
        while self.arena().in_use() > goal && looked_at < 2 * self.table().high_water() {
            // When it comes round again it must have more.
            let overlays =
                if looked_at < self.table().high_water() { self.options.capacity / 4 * OVERLAYS } else { 0 };
            looked_at += self.evict_stride(&mut self.maintain(), goal, overlays, link)?;
            // Lets the epoch move on and frees what is due.
            crossbeam_epoch::pin().flush();
        }
        let left = self.arena().in_use();
        let stuck = if left > goal { left + STUCK_STEP.min(self.options.capacity / 2) } else { 0 };
        // Relaxed: a hint.
        self.stuck.store(stuck, Ordering::Relaxed);
        Ok(())
    }

    /// `overlays`: how many bytes of these may stay.
    fn evict_stride(
        &self,
        lock: &mut Maintenance<'_>,
        goal: u64,
        overlays: u64,
        link: Link<'_>,
    ) -> Result<u64> {
        let hand = &mut *lock.hand;
        let guard = crossbeam_epoch::pin();
        // What is added meanwhile is not the oldest, and asking takes a lock.
        let end = self.table().high_water();
        let mut all_before = self.visible();
        let mut victims: Vec<Victim<'_>> = Vec::new();
        let mut pending = 0;
        let mut result = Ok(());
        let mut looked_at = 0;
        while looked_at < STRIDE as u64 && self.arena().in_use().saturating_sub(pending) > goal {
            looked_at += 1;
            let pid = hand.step(end);
            if self.table().try_get(pid).is_none() {
                continue;
            }
            let (_, PageState::Resident(frame)) = self.load(pid, &guard) else { continue };
            if frame.kind() == FrameKind::Inner {
                continue;
            }
            // One that is clean has nothing to be kept for.
            let kept = frame.overlay() && !frame.is_clean(frame.used().0);
            let overlay = if kept { frame.bytes() as u64 } else { 0 };
            if frame.take_clock() || overlay > 0 && hand.overlays < overlays {
                hand.leave(overlay);
                continue;
            }
            if frame.right() != 0 && !link(frame.tree(), frame, &guard) {
                continue;
            }
            if hand.overlays < overlays
                && let Some(bytes) = self.shrink(pid, frame, &guard)
            {
                hand.add(bytes);
                continue;
            }
            match self.evict_page(pid, frame, &guard) {
                Ok(None) => {}
                Ok(Some(victim)) => {
                    hand.remove(overlay);
                    pending += victim.frame.bytes() as u64;
                    victims.push(victim);
                }
                Err(error) => result = Err(error),
            }
            if victims.len() >= BATCH {
                result = result.and(self.page_out(&mut victims, all_before, &guard));
                all_before = self.visible();
                pending = 0;
            }
        }
        result.and(self.page_out(&mut victims, all_before, &guard))?;
        Ok(looked_at.max(1))
    }

    /// Makes an overlay of a page that has few changes since its image was written; the bytes that it takes. `None`: it has
    /// more, or none, or the page is in use.
    fn shrink(&self, pid: u32, frame: FrameRef<'_>, guard: &Guard) -> Option<u64> {
        let (used, frozen) = frame.used();
        // Intents that are not decided had better stay where their owner looks for them.
        if used == 0
            || frozen
            || frame.overlay()
            || !frame.disk().is_some()
            || frame.first_lsn() != Lsn::MAX
            || frame.base().len() < SHRINKS * (frame.bytes() - frame.base().len())
            || frame.undecided(used).next().is_some()
        {
            return None;
        }
        let used = frame.freeze();
        let bare = P::bare(frame);
        let bytes = frame.bytes() - frame.base().len() + bare.len();
        if !self.rebase((pid, frame), used, (&bare, true), guard) {
            return None;
        }
        count(&self.counters.shrunk);
        Some(bytes as u64)
    }

    /// Drops a frame whose image is current, or freezes and folds it.
    fn evict_page<'g>(&self, pid: u32, frame: FrameRef<'g>, guard: &'g Guard) -> Result<Option<Victim<'g>>> {
        let (used, _) = frame.used();
        let image = frame.disk();
        let clean = frame.is_clean(used);
        if clean && !image.is_some() {
            // An empty tree's only leaf: there is nothing to win and no image to come back from.
            return Ok(None);
        }
        if frame.undecided(used).next().is_some() {
            return Ok(None);
        }
        let below = match (frame.overlay() && !clean).then(|| self.read_below(frame)) {
            None => None,
            Some(Ok(below)) => Some(below),
            Some(Err(error)) => {
                // It stays; others can be evicted, and who needs its keys is told.
                log::warn!("a page is not evicted: {error}");
                return Ok(None);
            }
        };
        let used = frame.freeze();
        if clean {
            // If it was changed just now, whoever writes to it next replaces it.
            if used > 0 {
                return Ok(None);
            }
            self.note_evicted(frame.newest());
            if self.table().swap(pid, Word::resident(frame), Word::disk(image)) {
                count(&self.counters.evictions);
                self.retire(frame, guard);
            }
            return Ok(None);
        }
        if below.is_some() {
            count(&self.counters.overlays_folded);
        }
        let folded = P::fold(frame, used, below.as_deref());
        // Intents that came before the freeze keep the page; whoever writes to it next folds the rest.
        Ok(folded.carried.is_empty().then_some(Victim { pid, frame, folded }))
    }

    /// Writes the victims and swaps their frames for the addresses.
    fn page_out(&self, victims: &mut Vec<Victim<'_>>, all_before: Lsn, guard: &Guard) -> Result<()> {
        if victims.is_empty() {
            return Ok(());
        }
        let images: Vec<(u32, &[u8])> =
            victims.iter().map(|v| (v.frame.tree(), v.folded.image.as_slice())).collect();
        let written = self.write_leaves(Stream::Leaves, &images, all_before);
        let victims = std::mem::take(victims);
        for (victim, image) in victims.into_iter().zip(written?) {
            let old = victim.frame.disk();
            self.note_evicted(victim.folded.newest);
            if self.table().swap(victim.pid, Word::resident(victim.frame), Word::disk(image)) {
                count(&self.counters.page_outs);
                self.kill(old);
                self.kill_all(&victim.folded.dropped);
                self.retire(victim.frame, guard);
            } else {
                self.kill(image);
            }
        }
        Ok(())
    }

    /// Writes leaf images, which hold every change before `all_before`, and returns their addresses.
    ///
    /// # Errors
    /// What writing failed with; then none of them is live.
    pub(super) fn write_leaves(
        &self,
        stream: Stream,
        images: &[(u32, &[u8])],
        all_before: Lsn,
    ) -> Result<Vec<ImageAddr>> {
        let holds = self.holds(all_before);
        if self.log().compresses() {
            let mut written = Vec::with_capacity(images.len());
            for (tree, image) in images {
                match self.log().append(stream, ImageKind::Leaf, *tree, [image, &[]], holds) {
                    Ok(address) => written.push(address),
                    Err(error) => {
                        // Nobody will refer to them.
                        self.kill_all(&written);
                        return Err(error);
                    }
                }
            }
            return Ok(written);
        }
        self.check()?;
        let images: Vec<NewImage<'_>> = images
            .iter()
            .map(|(tree, image)| NewImage {
                kind: ImageKind::Leaf,
                tree: *tree,
                payload: [image, &[]],
                raw: None,
                holds,
            })
            .collect();
        self.log().pages().append(stream, &images)
    }
}
