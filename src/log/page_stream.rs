//! Appends images to page segments and reads them back.
//!
//! # How it works
//!
//! Each kind of content has an open segment of its own, because what is written together should die together:
//! leaves as they are paged out, leaves moved by the cleaner (which live longer), and big values. Images are
//! packed at multiples of 64 bytes. An image that does not fit in one segment gets a run of its own.
//!
//! # Format
//!
//! A run starts with a segment header, images follow (`log/format.rs`), and nothing says where the next one begins but the
//! length of the one before; a write that failed may leave a gap. A reader never goes through a run: it follows
//! addresses (`log/address.rs`).
//!
//! # Concurrency
//!
//! A place is claimed under a mutex, and what is behind all places is given back under it; bytes are written outside of
//! it. Nothing refers to an image before its write has returned, and nothing durable before a sync that came after it.

use super::address::ImageAddr;
use super::format::{HEADER, Holds, ImageHeader, ImageKind, SegmentHeader, SegmentKind, image_bytes};
use super::segment::Segments;
use crate::base::fail;
use crate::error::{Error, Result};
use crate::ivec::IVec;
use crate::storage::{Storage, is_unreadable};
use parking_lot::Mutex;
use std::sync::Arc;

/// Which open segment an image goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Leaves and the directory.
    Leaves = 0,
    /// Leaves that the cleaner moves.
    Moved = 1,
    /// Big values.
    Big = 2,
}

impl Stream {
    fn kind(self) -> SegmentKind {
        match self {
            Stream::Leaves | Stream::Moved => SegmentKind::Leaves,
            Stream::Big => SegmentKind::Big,
        }
    }
}

/// An image to append.
#[derive(Clone, Copy, Debug)]
pub struct NewImage<'a> {
    /// What it holds.
    pub kind: ImageKind,
    /// The tree it belongs to.
    pub tree: u32,
    /// The payload, in parts.
    pub payload: [&'a [u8]; 2],
    /// Bytes of the payload when not compressed, if `payload` is compressed.
    pub raw: Option<u32>,
    /// Which changes it holds.
    pub holds: Holds,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    number: u32,
    nonce: u64,
    /// Where the next image goes in the segment.
    offset: usize,
    /// Nothing takes up room behind that: what the segment had before was given back.
    is_clear: bool,
}

/// A claimed place.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    nonce: u64,
}

/// A segment that was read.
#[derive(Debug)]
pub struct Scan {
    /// File offset of the bytes.
    base: u64,
    nonce: u64,
    bytes: IVec,
    /// The images in it; they may be damaged.
    pub images: Vec<(ImageAddr, ImageHeader)>,
}

/// The page stream of one file.
#[derive(Debug)]
pub struct PageStream {
    storage: Arc<dyn Storage>,
    segments: Arc<Segments>,
    open: [Mutex<Option<Open>>; 3],
}

impl PageStream {
    /// A stream with no open segment.
    pub fn new(storage: Arc<dyn Storage>, segments: Arc<Segments>) -> PageStream {
        PageStream { storage, segments, open: Default::default() }
    }

    /// Takes a run of segments and writes its header, before anybody can claim a place in it: images without
    /// a header in front would not be found by recovery.
    fn start_run(&self, stream: Stream, units: u32) -> Result<(u32, u64)> {
        let (number, nonce) = self.segments.open_page(stream.kind(), units);
        let header = SegmentHeader {
            kind: stream.kind(),
            fresh: false,
            number,
            nonce,
            first: u64::from(units),
            next: (0, 0),
        };
        match self.storage.write_at(self.segments.offset(number), &header.encode()) {
            Ok(()) => Ok((number, nonce)),
            Err(error) => {
                // Nothing is in it: the next checkpoint frees it.
                self.segments.seal(number);
                Err(error.into())
            }
        }
    }

    /// Closes the open runs of which most is dead, so that checkpoints free them and the cleaner looks at them: a file at rest
    /// keeps no garbage because its newest segment is not full.
    pub fn seal_sparse(&self) {
        for slot in &self.open {
            let mut open = slot.lock();
            if let Some(run) = *open
                && self.segments.seal_if_sparse(run.number)
            {
                *open = None;
            }
        }
    }

    /// Gives back what open runs have not come to of the segments that they use again.
    ///
    /// # Errors
    /// What punching holes failed with.
    pub fn give_back(&self) -> Result<()> {
        for slot in &self.open {
            // Held, so that nobody claims a place there meanwhile.
            let mut open = slot.lock();
            if let Some(run) = open.as_mut()
                && !run.is_clear
            {
                let len = self.segments.size() - run.offset;
                if len > 0 {
                    fail::check("zero garbage segment SA")?;
                    self.storage
                        .punch_hole(self.segments.offset(run.number) + run.offset as u64, len as u64)?;
                }
                run.is_clear = true;
            }
        }
        Ok(())
    }

    /// Claims `bytes`, a multiple of 64, in the open segment of `stream`, or in a new one.
    fn claim(&self, stream: Stream, bytes: usize) -> Result<Place> {
        let size = self.segments.size();
        if HEADER + bytes > size {
            let units = u32::try_from((HEADER + bytes).div_ceil(size)).expect("runs are counted in 32 bits");
            let (number, nonce) = self.start_run(stream, units)?;
            self.segments.add(number, bytes as u64, stream == Stream::Big);
            self.segments.seal(number);
            return Ok(Place { offset: self.segments.offset(number) + HEADER as u64, nonce });
        }
        let mut slot = self.open[stream as usize].lock();
        let full = slot.filter(|open| open.offset + bytes > size);
        if let Some(full) = full {
            self.segments.seal(full.number);
            *slot = None;
        }
        let mut open = match *slot {
            Some(open) => open,
            None => {
                let (number, nonce) = self.start_run(stream, 1)?;
                Open { number, nonce, offset: HEADER, is_clear: false }
            }
        };
        let offset = self.segments.offset(open.number) + open.offset as u64;
        open.offset += bytes;
        *slot = Some(open);
        self.segments.add(open.number, bytes as u64, stream == Stream::Big);
        drop(slot);
        if let Some(full) = full {
            // Others may still be filling it; a sync writes what is missing then.
            self.storage.start_writing(self.segments.offset(full.number), size as u64);
        }
        Ok(Place { offset, nonce: open.nonce })
    }

    /// Appends images and returns their addresses: offset and stored bytes. One of a big value is held until
    /// [`Segments::let_go`].
    ///
    /// # Errors
    /// What writing failed with; then none of them is live.
    pub fn append(&self, stream: Stream, images: &[NewImage<'_>]) -> Result<Vec<ImageAddr>> {
        let mut addresses: Vec<ImageAddr> = Vec::with_capacity(images.len());
        let mut pending = Vec::new();
        let mut pending_at = 0;
        let mut result = Ok(());
        for image in images {
            let stored = image.payload[0].len() + image.payload[1].len();
            let Ok(field) = u32::try_from(stored) else {
                result = Err(Error::Unsupported(format!("an image of {stored} bytes")));
                break;
            };
            let bytes = image_bytes(stored);
            let place = match self.claim(stream, bytes) {
                Ok(place) => place,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            addresses.push(ImageAddr::new(place.offset, bytes as u64));
            if pending_at + pending.len() as u64 != place.offset {
                result = self.write(pending_at, &mut pending);
                pending_at = place.offset;
            }
            let start = pending.len();
            pending.reserve(bytes);
            pending.resize(start + HEADER, 0);
            image.payload.iter().for_each(|part| pending.extend_from_slice(part));
            let header = ImageHeader {
                kind: image.kind,
                compressed: image.raw.is_some(),
                tree: image.tree,
                offset: place.offset,
                nonce: place.nonce,
                stored: field,
                raw: image.raw.unwrap_or(field),
                holds: image.holds,
            };
            header.seal(&mut pending[start..]);
            pending.resize(start + bytes, 0);
            if result.is_err() {
                break;
            }
        }
        match result.and_then(|()| self.write(pending_at, &mut pending)) {
            Ok(()) => Ok(addresses),
            Err(error) => {
                for address in addresses {
                    self.kill(address);
                    if stream == Stream::Big {
                        self.segments.let_go(address.offset());
                    }
                }
                Err(error)
            }
        }
    }

    fn write(&self, at: u64, pending: &mut Vec<u8>) -> Result<()> {
        if !pending.is_empty() {
            self.storage.write_at(at, pending)?;
            pending.clear();
        }
        Ok(())
    }

    /// The image at an address is not referred to any more.
    pub fn kill(&self, address: ImageAddr) {
        self.segments.kill(address.offset(), address.bytes());
    }

    /// Reads the payload of the image at an address.
    ///
    /// # Errors
    /// `Corruption` when the image is not there whole, or the medium does not give it back; what else reading failed with.
    pub fn read(&self, address: ImageAddr, kind: ImageKind) -> Result<(ImageHeader, IVec)> {
        // Leaves are what the pagecache keeps.
        let (header, bytes) = match self.fetch(address, kind == ImageKind::Leaf) {
            Err(Error::Io(error)) if is_unreadable(&error) => {
                return Err(self.damaged(address, &format!("image that cannot be read ({error})")));
            }
            read => read?,
        };
        if header.kind != kind {
            return Err(self.damaged(address, "image of another kind"));
        }
        let payload = self.payload(address, &header, &bytes)?;
        Ok((header, payload))
    }

    /// The payload of an image as it was read with [`Self::read_raw`].
    ///
    /// # Errors
    /// `Corruption` when it cannot be decompressed.
    pub fn payload(&self, address: ImageAddr, header: &ImageHeader, raw: &IVec) -> Result<IVec> {
        let stored = header.stored as usize;
        if !header.compressed {
            return Ok(raw.subslice(HEADER, stored));
        }
        super::compression::decompress(&raw[HEADER..][..stored], header.raw)
            .map(IVec::from)
            .ok_or_else(|| self.damaged(address, "image that cannot be decompressed"))
    }

    /// Reads an image as it is stored, header included.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn read_raw(&self, address: ImageAddr) -> Result<(ImageHeader, IVec)> {
        self.fetch(address, false)
    }

    /// As [`Self::read_raw`]; `keeps`: the caller has a cache of its own.
    fn fetch(&self, address: ImageAddr, keeps: bool) -> Result<(ImageHeader, IVec)> {
        let Some((nonce, sealed)) = self.segments.run(address.offset(), address.bytes()) else {
            return Err(self.damaged(address, "image address outside the page segments"));
        };
        let len = usize::try_from(address.bytes()).map_err(|_| self.damaged(address, "image too long"))?;
        // Behind what is in an open run others may be writing, to the same block of the file system.
        let read = |bytes: &mut [u8]| match keeps && sealed {
            true => self.storage.read_to_cache(address.offset(), bytes),
            false => self.storage.read_at(address.offset(), bytes),
        };
        let bytes = match IVec::filled(len, read) {
            Ok(((), bytes)) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(self.damaged(address, "image past the end of the file"));
            }
            Err(e) => return Err(e.into()),
        };
        match ImageHeader::decode(&bytes, nonce, address.offset()) {
            Some((header, payload)) if image_bytes(payload.len()) == len => Ok((header, bytes)),
            _ => Err(self.damaged(address, "damaged image")),
        }
    }

    /// Appends an image as it was read with [`Self::read_raw`].
    ///
    /// # Errors
    /// What writing failed with.
    pub fn append_raw(&self, stream: Stream, header: &ImageHeader, raw: &[u8]) -> Result<ImageAddr> {
        let image = NewImage {
            kind: header.kind,
            tree: header.tree,
            payload: [&raw[HEADER..HEADER + header.stored as usize], &[]],
            raw: header.compressed.then_some(header.raw),
            holds: header.holds,
        };
        Ok(self.append(stream, &[image])?[0])
    }

    /// Reads a sealed segment, and finds the images in it by their headers.
    ///
    /// # Errors
    /// What reading failed with.
    pub fn scan_segment(&self, number: u32, nonce: u64, used: u64) -> Result<Scan> {
        let base = self.segments.offset(number);
        // A write that failed may have left the file shorter.
        let there = self.storage.len()?.saturating_sub(base).min(self.segments.size() as u64);
        let len = used.min(there) as usize;
        // What is live of it is about to be written somewhere else, and read from there.
        let ((), bytes) = IVec::filled(len, |bytes| self.storage.read_once(base, bytes))?;
        let mut images = Vec::new();
        let mut at = HEADER;
        while at + HEADER <= len {
            let offset = base + at as u64;
            match ImageHeader::peek(&bytes[at..]).filter(|h| h.nonce == nonce && h.offset == offset) {
                Some(header) => {
                    let bytes = image_bytes(header.stored as usize);
                    // A header that says more than the run has is not of an image.
                    if self.segments.nonce(offset, bytes as u64).is_some() {
                        images.push((ImageAddr::new(offset, bytes as u64), header));
                    }
                    at += bytes;
                }
                // A write that failed left a gap.
                None => at += super::format::GRAIN,
            }
        }
        Ok(Scan { base, nonce, bytes, images })
    }

    /// An image of a segment that was scanned, as it is stored, header included.
    ///
    /// # Errors
    /// `Corruption` when it is not whole.
    pub fn scanned(&self, scan: &Scan, image: ImageAddr) -> Result<(ImageHeader, IVec)> {
        let (at, len) = ((image.offset() - scan.base) as usize, image.bytes() as usize);
        let whole =
            scan.bytes.get(at..at + len).and_then(|b| ImageHeader::decode(b, scan.nonce, image.offset()));
        match whole {
            Some((header, payload)) if image_bytes(payload.len()) == len => {
                Ok((header, scan.bytes.subslice(at, len)))
            }
            _ => Err(self.damaged(image, "damaged image")),
        }
    }

    /// An error that says what is wrong with an image.
    #[cold]
    pub fn damaged(&self, image: ImageAddr, what: &str) -> Error {
        super::damage(&*self.storage, image.offset(), image.bytes(), what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sim::SimStorage;

    /// Appends a leaf that takes up so many bytes, and returns its address.
    fn append(stream: &PageStream, bytes: usize) -> ImageAddr {
        let payload = vec![7; bytes - HEADER];
        let holds = Holds::default();
        let image = NewImage { kind: ImageKind::Leaf, tree: 1, payload: [&payload, &[]], raw: None, holds };
        stream.append(Stream::Leaves, &[image]).expect("room")[0]
    }

    #[test]
    fn an_open_run_gives_back_what_it_has_not_come_to() {
        let medium = SimStorage::new();
        let segments = Arc::new(Segments::new(16 << 10));
        let stream = PageStream::new(Arc::new(medium.clone()), Arc::clone(&segments));
        // A segment that is used again has blocks.
        let first = append(&stream, (16 << 10) - HEADER);
        let number = segments.number(first.offset()).expect("in a segment");
        stream.give_back().expect("nothing is left in a run that is full");
        let second = append(&stream, 64);
        stream.kill(first);
        segments.drain(&[number]);
        segments.release(&[number]);
        let third = append(&stream, (16 << 10) - 2 * HEADER);
        let fourth = append(&stream, 64);
        assert_eq!((segments.number(third.offset()), segments.number(fourth.offset())), (Some(1), Some(0)));

        let before = medium.allocated().expect("healthy");
        stream.give_back().expect("healthy");
        assert!(medium.allocated().expect("healthy") <= before - (8 << 10));
        let calls = medium.ops();
        stream.give_back().expect("healthy");
        assert_eq!(medium.ops(), calls, "once for a run");
        let fifth = append(&stream, 640);
        for image in [second, third, fourth, fifth] {
            let (_, payload) = stream.read(image, ImageKind::Leaf).expect("still there");
            assert!(payload.iter().all(|byte| *byte == 7));
        }
    }
}
