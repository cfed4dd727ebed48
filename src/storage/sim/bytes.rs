//! Bytes of which copies are cheap: pages that are shared until one of the copies changes them.

use super::PAGE;
use std::sync::Arc;

/// Bytes in shared pages; a page that is not there is a hole and reads as zeros.
#[derive(Clone, Default)]
pub(super) struct Bytes {
    pub(super) len: usize,
    /// As many as `len` needs; bytes of the last one past `len` are zero.
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
}

impl Bytes {
    pub(super) fn set_len(&mut self, len: usize) {
        if len < self.len {
            self.zero(len, self.len);
        }
        self.pages.resize(len.div_ceil(PAGE), None);
        self.len = len;
    }

    pub(super) fn write(&mut self, at: usize, data: &[u8]) {
        self.set_len(self.len.max(at + data.len()));
        for (page, within, part) in pieces(at, at + data.len()) {
            let bytes = self.pages[page].get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(bytes)[within..within + part.len()]
                .copy_from_slice(&data[part.start - at..part.end - at]);
        }
    }

    pub(super) fn read(&self, at: usize, buf: &mut [u8]) {
        for (page, within, part) in pieces(at, at + buf.len()) {
            let into = &mut buf[part.start - at..part.end - at];
            match &self.pages[page] {
                Some(bytes) => into.copy_from_slice(&bytes[within..within + into.len()]),
                None => into.fill(0),
            }
        }
    }

    /// Whole pages become holes.
    pub(super) fn zero(&mut self, start: usize, end: usize) {
        for (page, within, part) in pieces(start.min(self.len), end.min(self.len)) {
            if part.len() == PAGE {
                self.pages[page] = None;
            } else if let Some(bytes) = &mut self.pages[page] {
                Arc::make_mut(bytes)[within..within + part.len()].fill(0);
            }
        }
    }

    pub(super) fn is_zero(&self) -> bool {
        self.pages.iter().flatten().all(|page| page.iter().all(|byte| *byte == 0))
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.len];
        self.read(0, &mut all);
        all
    }

    pub(super) fn allocated(&self) -> usize {
        self.pages.iter().flatten().count() * PAGE
    }
}

/// The range cut at page borders: page, offset within it, part of the range.
pub(super) fn pieces(
    start: usize,
    end: usize,
) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut at = start;
    std::iter::from_fn(move || {
        let part = at..((at / PAGE + 1) * PAGE).min(end);
        at = part.end;
        (part.start < part.end).then_some((part.start / PAGE, part.start % PAGE, part))
    })
}
