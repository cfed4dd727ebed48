"""The frame of a database of format version 1: superblocks, images by their addresses, and records of the redo stream.

What `src/log` specifies; `format_reader.py` has the rest. Every checksum of what is read is verified here.
"""

import fcntl
import os
import struct
import zlib
from collections import namedtuple
from typing import Callable, Optional

try:
    from compression import zstd  # Python 3.14 and later
except ImportError:
    zstd = None


class Damaged(Exception):
    """The file does not hold what it should."""


class Unsupported(Exception):
    """The file is not for this reader."""


def require(holds: bool, complaint: str) -> None:
    if not holds:
        raise Damaged(complaint)


def number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def padded(length: int, unit: int) -> int:
    """What a header and so many bytes occupy."""
    return -(-(HEADER + length) // unit) * unit


# Superblock and file

MAGIC = b"sledbwt\n"
VERSION = 1
SECTOR = 512
HEADER = 64
SLOTS = (0, 4096)
COPY = 2048
SEGMENTS_AT = 8192
LARGEST = 1 << 30

Superblock = namedtuple("Superblock", "generation segment compressed root redo stable")
Root = namedtuple("Root", "offset size nonce")
RedoPosition = namedtuple("RedoPosition", "lsn segment offset nonce")


def parse_superblock(sector: bytes) -> Optional[Superblock]:
    """A whole copy; None: there is none."""
    if sector[:8] != MAGIC or zlib.crc32(sector[:508]) != number(sector, 508, 4):
        return None
    version, flags, generation, segment = struct.unpack_from("<IIQI", sector, 8)
    if version != VERSION:
        raise Unsupported(f"format version {version}; this reads version {VERSION}")
    if flags > 1 or any(sector[28:32]) or any(sector[96:508]):
        raise Unsupported(f"flags {flags:#x} or fields that version {VERSION} does not have")
    if segment % 4096 != 0 or not 4096 <= segment <= 16 << 20:
        raise Unsupported(f"segments of {segment} bytes")
    root = Root(*struct.unpack_from("<QQQ", sector, 32))
    redo = RedoPosition(*struct.unpack_from("<QIIQ", sector, 56))
    return Superblock(generation, segment, flags == 1, root, redo, number(sector, 80, 8))


class File:
    """The file, which may end anywhere."""

    def __init__(self, path: str):
        if os.path.isdir(path):
            path = os.path.join(path, "db")
        self.handle = open(path, "rb")
        try:
            fcntl.flock(self.handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            raise Unsupported("the database is in use") from None
        self.length = os.fstat(self.handle.fileno()).st_size
        self.superblock = self.find_superblock()

    def read(self, offset: int, size: int) -> bytes:
        """Fewer bytes than asked for, at the end of the file."""
        self.handle.seek(min(offset, self.length))
        return self.handle.read(size)

    def newest_in_slot(self, slot: int) -> tuple[Optional[Superblock], Optional[Unsupported]]:
        """The superblock in a slot, and why it has none that this reads."""
        found, refused = [], None
        for at in (SLOTS[slot], SLOTS[slot] + COPY):
            try:
                copy = parse_superblock(self.read(at, SECTOR).ljust(SECTOR, b"\0"))
                # Odd generations belong to the first slot.
                if copy is not None and (copy.generation + 1) % 2 == slot:
                    found.append(copy)
            except Unsupported as complaint:
                refused = complaint
        return max(found, key=lambda copy: copy.generation, default=None), None if found else refused

    def find_superblock(self) -> Superblock:
        (first, refused), (second, also_refused) = self.newest_in_slot(0), self.newest_in_slot(1)
        if first and second and abs(first.generation - second.generation) == 1:
            return max(first, second, key=lambda superblock: superblock.generation)
        if first and not second and first.generation == 1:
            return first
        if refused or also_refused:
            raise refused or also_refused
        if not first and not second and self.read(0, 8) != MAGIC and any(self.read(0, 8)):
            raise Unsupported("not a database of this kind")
        raise Damaged("a superblock is damaged or missing")

    def segment_offset(self, segment: int) -> int:
        return SEGMENTS_AT + segment * self.superblock.segment

    def segment_of(self, offset: int) -> int:
        return (offset - SEGMENTS_AT) // self.superblock.segment


# Segments and images

REDO, LEAVES, BIG_VALUES = 1, 2, 3
LEAF, BIG_VALUE, CHUNK, ROOT = 1, 2, 3, 4

SegmentHeader = namedtuple("SegmentHeader", "kind fresh nonce first next next_nonce")
# Neighbouring segments that hold images.
Run = namedtuple("Run", "segments kind nonce")


def parse_segment_header(data: bytes, segment: int) -> Optional[SegmentHeader]:
    """A whole header of that segment; None: there is none."""
    if len(data) < HEADER or data[:4] != b"SEG1" or zlib.crc32(data[8:HEADER]) != number(data, 4, 4):
        return None
    kind, fresh, zero, own, nonce, first, after, zero2, after_nonce = struct.unpack_from("<BBHIQQIIQ", data, 8)
    if kind not in (REDO, LEAVES, BIG_VALUES) or fresh > 1 or zero or zero2 or any(data[48:HEADER]) or own != segment:
        return None
    return SegmentHeader(kind, fresh == 1, nonce, first, after, after_nonce)


class Images:
    """Images by their addresses."""

    def __init__(self, file: File):
        self.file = file
        self.runs: dict[int, Run] = {}  # by their first segment

    def add_run(self, first: int, run: Run) -> None:
        end = first + run.segments
        require(run.segments >= 1 and run.kind in (LEAVES, BIG_VALUES), f"an impossible run at segment {first}")
        require(self.file.segment_offset(end - 1) < self.file.length, f"the run at segment {first} is past the end")
        apart = (end <= other or other + known.segments <= first for other, known in self.runs.items())
        require(all(apart), f"the run at segment {first} overlaps another")
        self.runs[first] = run

    def read(self, address: int, kind: int) -> bytes:
        """The payload of an image."""
        return self.read_at((address >> 24) * 64, (address & 0xFFFFFF) * 64, kind)

    def read_at(self, offset: int, size: int, kind: int) -> bytes:
        what = f"the image at file offset {offset}"
        run = self.runs.get(self.file.segment_of(offset))
        require(run is not None and offset >= SEGMENTS_AT, f"{what} is in no run")
        require(run.kind == (BIG_VALUES if kind == BIG_VALUE else LEAVES), f"{what} is in a run of another kind")
        end = self.file.segment_offset(self.file.segment_of(offset) + run.segments)
        require(offset % 64 == 0 and size >= HEADER and offset + size <= end, f"{what} is not within its run")
        data = self.file.read(offset, size)
        require(len(data) == size and data[:4] == b"IMG1", f"{what} is not there")
        own_kind, packed, zero, _, own_offset, nonce, stored, raw = struct.unpack_from("<BBHIQQII", data, 8)
        require(padded(stored, 64) == size, f"{what} has another length")
        require(zlib.crc32(data[8 : HEADER + stored]) == number(data, 4, 4), f"{what} has a wrong checksum")
        require((own_offset, nonce) == (offset, run.nonce), f"{what} was written for another place")
        require(own_kind == kind and packed <= 1 and not zero and not any(data[56:HEADER]), f"{what} is another thing")
        payload = data[HEADER : HEADER + stored]
        if packed:
            require(self.file.superblock.compressed and kind != BIG_VALUE, f"{what} must not be compressed")
            return self.decompress(payload, raw, what)
        require(raw == stored, f"{what} has two lengths")
        return payload

    @staticmethod
    def decompress(payload: bytes, raw: int, what: str) -> bytes:
        if zstd is None:
            raise Unsupported("pages are compressed with zstd, which this Python cannot decompress (3.14 can)")
        require(raw <= (len(payload) + 64) << 17, f"{what} claims to be too long")
        try:
            data = zstd.decompress(payload)
        except zstd.ZstdError as error:
            raise Damaged(f"{what} cannot be decompressed: {error}") from None
        require(len(data) == raw, f"{what} has another length when decompressed")
        return data


# Redo stream


class RedoSegment:
    """A segment of the redo stream, or what may have been one."""

    def __init__(self, file: File, segment: int, nonce: int):
        self.offset, self.nonce = file.segment_offset(segment), nonce
        self.data = file.read(self.offset, file.superblock.segment)
        header = parse_segment_header(self.data, segment)
        whole = header is not None and header.kind == REDO and header.nonce == nonce
        self.header = header if whole else None

    def block(self, at: int):
        """LSN, stable LSN and payload of the block at an offset in the segment; None: there is none."""
        header = self.data[at : at + HEADER]
        if len(header) < HEADER or header[:4] != b"REDO" or any(header[44:]):
            return None
        lsn, stable, nonce, offset, length = struct.unpack_from("<QQQQI", header, 8)
        payload = self.data[at + HEADER : at + HEADER + length]
        whole = len(payload) == length and (nonce, offset) == (self.nonce, self.offset + at)
        whole = whole and zlib.crc32(self.data[at + 8 : at + HEADER + length]) == number(header, 4, 4)
        return (lsn, stable, payload) if whole else None

    def latest_stable(self, at: int) -> int:
        """The greatest stable LSN that a block at or behind an offset knows of."""
        blocks = (self.block(at) for at in range(at, len(self.data), SECTOR))
        return max((block[1] for block in blocks if block), default=0)


def read_redo(file: File, each: Callable[[int, bytes], bool]) -> None:
    """Calls `each` with kind and body of every record, until it says that the stream ends there."""
    lsn, segment, at, nonce = file.superblock.redo
    require(at >= SECTOR and at % SECTOR == 0, "an impossible redo position")
    current, seen = RedoSegment(file, segment, nonce), {segment}
    require(current.header is not None, "no redo segment where the superblock says one is")
    record, record_lsn = bytearray(), lsn  # what was collected of a record, and where it starts
    while True:
        cut = False
        while not cut and (block := current.block(at)) and block[0] == lsn and block[2]:
            record += block[2]
            lsn += len(block[2])
            while len(record) >= 4 and not cut:
                length = number(record, 0, 4)
                require(5 <= length <= LARGEST, f"a redo record of {length} bytes")
                if len(record) < length:
                    break
                cut = record[4] != 0 and not each(record[4], bytes(record[5:length]))
                if not cut:
                    del record[:length]
                    record_lsn += length
            if cut:
                lsn = record_lsn
                record.clear()
            else:
                at += padded(len(block[2]), SECTOR)
        if current.header.next in seen:
            break
        seen.add(current.header.next)
        after = RedoSegment(file, current.header.next, current.header.next_nonce)
        if after.header is None or after.header.first != lsn:
            break
        if after.header.fresh:
            record.clear()
            record_lsn = lsn
        current, at = after, SECTOR
    check_end(file, current, at, lsn)


def check_end(file: File, last: RedoSegment, at: int, end: int) -> None:
    """The stream must not end before what is known to have been durable."""
    known = max(file.superblock.stable, last.latest_stable(at))
    seen = set()
    while last.header is not None and last.header.next not in seen:
        seen.add(last.header.next)
        last = RedoSegment(file, last.header.next, last.header.next_nonce)
        known = max(known, last.latest_stable(SECTOR))
    require(known <= end, f"the redo stream ends at LSN {end}, though it was durable up to {known}")
