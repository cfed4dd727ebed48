//! Models of what moves between the mapping table, the frames and the epoch, for the model checker.
//!
//! # How it works
//!
//! The code is the layer's own, over a table and an arena without a log. The epoch is crossbeam's, which
//! takes part in the model when it is built with `--cfg crossbeam_loom`; each thread registers with a
//! collector of the model, as the global one would outlive an interleaving.

#![allow(unsafe_code)]

use super::checkpoint::release_later;
use super::{Arc, FrameKind, FrameRef, Guard, ImageAddr, Lsn, NewFrame, PageState, Shared, Word};
use super::{DeltaKind, Looker, NewDelta, Outcome, Published, Status};
use crate::base::sync::check;
use crate::log::{SegmentKind, Segments};
use crossbeam_epoch::Collector;
use loom::thread::spawn;
use std::sync::atomic::{AtomicBool, Ordering};

const FROM: ImageAddr = ImageAddr(5);
const TO: ImageAddr = ImageAddr(6);

/// A frame with an image at `disk`.
fn frame<'g>(shared: &Shared, base: &[u8], disk: ImageAddr) -> FrameRef<'g> {
    let kind = FrameKind::Leaf;
    FrameRef::create(
        &shared.arena,
        NewFrame { kind, overlay: false, tree: 1, base, disk, first_lsn: Lsn::MAX, newest: Lsn(0), right: 0 },
    )
}

/// A table with one page, made before any other thread begins.
fn one_page(base: &[u8]) -> (Arc<Shared>, u32) {
    let shared = Arc::new(Shared::default());
    let pid = shared.table.allocate().expect("PIDs are left");
    shared.table.set(pid, Word::resident(frame(&shared, base, FROM)));
    (shared, pid)
}

fn resident<'g>(shared: &Shared, pid: u32, guard: &'g Guard) -> FrameRef<'g> {
    let (_, PageState::Resident(frame)) = shared.table.load(pid, guard) else {
        panic!("the page is resident")
    };
    frame
}

/// Publishes a delta; helps whoever froze the frame.
fn publish(shared: &Arc<Shared>, pid: u32, guard: &Guard) {
    let mut delta = NewDelta::new(&shared.arena, DeltaKind::Put, b"key", b"");
    loop {
        let current = resident(shared, pid, guard);
        let (used, _) = current.used();
        match current.publish(used, 1, delta) {
            (Published::Installed, _) => return,
            (Published::Frozen, back) => {
                delta = back.expect("handed back");
                consolidate(shared, pid, b"old", guard);
            }
            (Published::Taken, _) => panic!("nobody else writes"),
        }
    }
}

/// Freezes the frame of a page and replaces it by one with another base.
fn consolidate(shared: &Arc<Shared>, pid: u32, base: &[u8], guard: &Guard) -> bool {
    let old = resident(shared, pid, guard);
    old.freeze();
    shared.replace(pid, old, frame(shared, base, old.disk()), guard)
}

/// Whoever reads a frame under a guard reads a whole one that is not freed; and frames are freed while others
/// run.
#[test]
fn a_reader_and_a_replacer_hand_over() {
    static FREED_EARLY: AtomicBool = AtomicBool::new(false);
    check(2, || {
        let collector = Collector::new();
        let (shared, pid) = one_page(b"old");
        let reader = {
            let (collector, shared) = (collector.clone(), Arc::clone(&shared));
            spawn(move || {
                let participant = collector.register();
                let guard = participant.pin();
                let seen = resident(&shared, pid, &guard);
                let (used, frozen) = seen.used();
                let base = seen.base();
                match base {
                    b"old" => assert_eq!(used, 0),
                    _ => assert_eq!((base, used, frozen), (&b"new"[..], 1, false)),
                }
                (0..used).for_each(|i| assert_eq!(seen.delta(i).key, b"key"));
            })
        };
        let participant = collector.register();
        {
            let guard = participant.pin();
            let old = resident(&shared, pid, &guard);
            old.freeze();
            let new = frame(&shared, b"new", FROM);
            let delta = NewDelta::new(&shared.arena, DeltaKind::Put, b"key", b"");
            assert!(matches!(new.publish(0, 1, delta).0, Published::Installed));
            assert!(shared.replace(pid, old, new, &guard));
        }
        for _ in 0..3 {
            participant.pin().flush();
        }
        let retired_bytes = shared.arena.retired();
        if retired_bytes == 0 {
            FREED_EARLY.store(true, Ordering::Relaxed);
        }
        reader.join().expect("the reader panicked");
    });
    assert!(FREED_EARLY.load(Ordering::Relaxed), "no interleaving freed anything");
}

/// However consolidations, a write and a move of the image interleave, the page owns one image, the one that
/// the mover left alive, the mover sees that from then on (P6), and the write is not lost.
fn others_and_a_move(write: bool) {
    let collector = Collector::new();
    let (shared, pid) = one_page(b"old");
    let other = {
        let (collector, shared) = (collector.clone(), Arc::clone(&shared));
        spawn(move || {
            let participant = collector.register();
            let guard = participant.pin();
            if write {
                publish(&shared, pid, &guard);
            } else {
                while !consolidate(&shared, pid, b"new", &guard) {}
            }
        })
    };
    let participant = collector.register();
    let guard = participant.pin();
    assert!(shared.move_image(pid, FROM, TO, &guard), "the page is there all along");
    assert_eq!(resident(&shared, pid, &guard).disk(), TO, "what the next step of maintenance sees");
    other.join().expect("the other panicked");
    let now = resident(&shared, pid, &guard);
    assert_eq!(now.disk(), TO);
    if write {
        assert_eq!((now.base(), now.used().0), (&b"old"[..], 1));
        assert_eq!(now.delta(0).key, b"key");
    } else {
        assert_eq!((now.base(), now.used().0), (&b"new"[..], 0));
    }
}

#[test]
fn a_consolidation_and_a_move_agree_on_the_image() {
    check(3, || others_and_a_move(false));
}

#[test]
fn a_write_and_a_move_are_both_kept() {
    check(3, || others_and_a_move(true));
}

/// Whoever has read the address of an image can read the image until its guard ends, also if the page gets another image
/// and the segment is freed and taken again meanwhile; and segments are freed while others run.
#[test]
fn a_segment_is_reused_when_nobody_has_an_address_in_it() {
    static FREED_EARLY: AtomicBool = AtomicBool::new(false);
    check(2, || {
        let collector = Collector::new();
        let segments = Arc::new(Segments::new(4096));
        let shared = Arc::new(Shared::default());
        let pid = shared.table.allocate().expect("PIDs are left");
        let image = |segments: &Segments| {
            let (number, nonce) = segments.open_page(SegmentKind::Leaves, 1);
            segments.add(number, 64, false);
            segments.seal(number);
            (number, nonce, ImageAddr::new(segments.offset(number) + 64, 64))
        };
        let (old, old_nonce, from) = image(&segments);
        let (_, new_nonce, to) = image(&segments);
        shared.table.set(pid, Word::disk(from));
        let reader = {
            let (collector, shared) = (collector.clone(), Arc::clone(&shared));
            let segments = Arc::clone(&segments);
            spawn(move || {
                let participant = collector.register();
                let guard = participant.pin();
                let (_, PageState::Disk(address)) = shared.table.load(pid, &guard) else {
                    panic!("the page is evicted")
                };
                let nonce = if address == from { old_nonce } else { new_nonce };
                assert_eq!(segments.nonce(address.offset(), 64), Some(nonce), "what is read is the image");
            })
        };
        assert!(shared.table.swap(pid, Word::disk(from), Word::disk(to)));
        let participant = collector.register();
        release_later(Arc::clone(&segments), vec![old], &participant.pin());
        for _ in 0..3 {
            participant.pin().flush();
        }
        // Takes the segment again if it is free.
        if segments.open_page(SegmentKind::Leaves, 1).0 == old {
            FREED_EARLY.store(true, Ordering::Relaxed);
        }
        reader.join().expect("the reader panicked");
    });
    assert!(FREED_EARLY.load(Ordering::Relaxed), "no interleaving freed anything");
}

/// A leaf that lives as long as the model.
#[derive(Clone, Copy)]
struct Leaf(u64);

impl Leaf {
    fn new(shared: &Shared) -> Leaf {
        Leaf(frame(shared, b"base", FROM).address())
    }

    fn frame<'g>(self) -> FrameRef<'g> {
        // SAFETY: never freed.
        unsafe { FrameRef::from_address(self.0) }
    }

    /// Publishes an intent for the only key.
    fn intend(self, shared: &Shared, status: &Arc<Status>) {
        let mut delta =
            NewDelta::run(&shared.arena, status, [(DeltaKind::Put, &b"key"[..], &b"new"[..])].into_iter());
        for slot in 0.. {
            match self.frame().publish(slot, 1, delta) {
                (Published::Installed, _) => return,
                (_, back) => delta = back.expect("handed back"),
            }
        }
    }

    /// Whether the key has not been written, as somebody who reads it sees it.
    fn reads_old(self) -> bool {
        self.frame().look(1, b"key", Looker::Reader).delta.is_none()
    }

    /// Whether the key has not been written, as a transaction that is deciding sees it; `None`: another one goes first.
    fn validates(self, own: &Status) -> Option<bool> {
        loop {
            let look = self.frame().look(1, b"key", Looker::Writer(Some(own)));
            match look.blocked {
                Some(run) if run.status.outcome() == Outcome::Deciding => {
                    if own.gives_way_to(run.status) {
                        return None;
                    }
                    run.status.settle();
                }
                Some(run) if run.status.outcome() != Outcome::Pending => {}
                _ => return Some(look.delta.is_none()),
            }
        }
    }
}

/// A transaction that has read that one key was not written, and writes another; whether it was committed.
fn transaction(shared: &Shared, read: Leaf, written: Leaf, age: u64) -> bool {
    let status = Status::new(age, false);
    written.intend(shared, &status);
    let valid = status.begin_deciding() && read.validates(&status) == Some(true);
    let committed = valid && status.commit(Lsn(1));
    if !committed {
        status.abort();
    }
    committed
}

/// Of two transactions that each read what the other writes, one is aborted.
#[test]
fn of_two_that_read_what_the_other_writes_one_is_aborted() {
    static COMMITTED: AtomicBool = AtomicBool::new(false);
    check(8, || {
        let shared = Arc::new(Shared::default());
        let (x, y) = (Leaf::new(&shared), Leaf::new(&shared));
        let other = {
            let shared = Arc::clone(&shared);
            spawn(move || transaction(&shared, y, x, 2))
        };
        let committed = transaction(&shared, x, y, 1);
        let both = (committed, other.join().expect("no panic"));
        assert_ne!(both, (true, true));
        if both != (false, false) {
            COMMITTED.store(true, Ordering::Relaxed);
        }
    });
    assert!(COMMITTED.load(Ordering::Relaxed), "no interleaving committed anything");
}

/// Who writes a key that a transaction has read, and then finds what that has written as it was before, comes before it:
/// so it must not find the key as it was before, and be committed.
#[test]
fn nobody_reads_past_what_a_deciding_transaction_writes() {
    static BEFORE: AtomicBool = AtomicBool::new(false);
    static AFTER: AtomicBool = AtomicBool::new(false);
    check(8, || {
        let shared = Arc::new(Shared::default());
        let (x, y) = (Leaf::new(&shared), Leaf::new(&shared));
        let plain = {
            let shared = Arc::clone(&shared);
            spawn(move || {
                let delta = NewDelta::new(&shared.arena, DeltaKind::Put, b"key", b"new");
                x.frame().put(0, 1, delta);
                y.reads_old()
            })
        };
        let committed = transaction(&shared, x, y, 1);
        let old = plain.join().expect("no panic");
        assert!(!(committed && old), "each comes before the other");
        if committed {
            AFTER.store(true, Ordering::Relaxed);
        }
        if old {
            BEFORE.store(true, Ordering::Relaxed);
        }
    });
    assert!(AFTER.load(Ordering::Relaxed) && BEFORE.load(Ordering::Relaxed), "both ways round were met");
}

/// All intents of a transaction become visible at once.
#[test]
fn intents_become_visible_at_once() {
    check(8, || {
        let shared = Arc::new(Shared::default());
        let (x, y) = (Leaf::new(&shared), Leaf::new(&shared));
        let writer = {
            let shared = Arc::clone(&shared);
            spawn(move || {
                let status = Status::new(1, false);
                x.intend(&shared, &status);
                y.intend(&shared, &status);
                status.begin_deciding() && status.commit(Lsn(1))
            })
        };
        let first = x.reads_old();
        let second = y.reads_old();
        assert!(first || !second, "the second was written together with the first");
        let committed = writer.join().expect("no panic");
        assert_eq!((x.reads_old(), y.reads_old()), (!committed, !committed));
    });
}
