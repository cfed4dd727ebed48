//! Models of what moves between the mapping table, the frames and the epoch, for the model checker.
//!
//! # How it works
//!
//! The code is the layer's own, over a table and an arena without a log. The epoch is crossbeam's, which
//! takes part in the model when it is built with `--cfg crossbeam_loom`; each thread registers with a
//! collector of the model, as the global one would outlive an interleaving.

use super::{Arc, FrameKind, FrameRef, Guard, ImageAddr, Lsn, NewFrame, PageState, Shared, Word};
use super::{DeltaKind, NewDelta, Published};
use crate::base::sync::check;
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
        let retired_bytes = shared.arena.allocated() - shared.arena.in_use();
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
