#!/usr/bin/env python3
"""Lists everything in a database of format version 1, with nothing but the standard library.

    format_reader.py DIRECTORY_OR_FILE

prints JSON lines: for each tree, by name, {"tree": NAME}, then for each of its records, by key,
{"key": KEY, "value": VALUE}, all in hexadecimal digits. Nothing is written to the database. The exit status is 1 when it
is damaged, and 2 when it is none of version 1, is in use, or has compressed pages that this Python cannot decompress.

This is a second implementation, written from the specification in the comments of src/ (src/log/format.rs says where to
begin), so that the specification is known to be enough. It reads whole databases into memory, and is strict: what no
writer writes is an error, even where the engine would not look.
"""

import fcntl
import json
import os
import struct
import sys
import zlib
from dataclasses import dataclass, field
from typing import Callable, NamedTuple, Optional

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


class Cursor:
    """Takes fields off the front of some bytes."""

    def __init__(self, data: bytes, what: str):
        self.data, self.at, self.what = data, 0, what

    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        require(size <= self.left(), f"{self.what} ends too early")
        self.at += size
        return bytes(self.data[self.at - size : self.at])

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.number(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                require(value <= 1 << 32, f"{self.what} has a number that is too large")
                return value
        raise Damaged(f"{self.what} has a number without an end")

    def end(self) -> None:
        require(self.left() == 0, f"something follows {self.what}")


# --- Superblock and file -------------------------------------------------------------------------------------------------

MAGIC = b"sledbwt\n"
VERSION = 1
SECTOR = 512
HEADER = 64
SLOTS = (0, 4096)
COPY = 2048
SEGMENTS_AT = 8192
LARGEST = 1 << 30


@dataclass
class Superblock:
    generation: int
    segment: int
    compressed: bool
    root: tuple[int, int, int]  # offset, bytes, nonce
    redo: tuple[int, int, int, int]  # LSN, segment, offset, nonce
    stable: int

    @staticmethod
    def parse(sector: bytes) -> Optional["Superblock"]:
        """A whole copy; None: there is none."""
        if sector[:8] != MAGIC or zlib.crc32(sector[:508]) != number(sector, 508, 4):
            return None
        version, flags = struct.unpack_from("<II", sector, 8)
        if version != VERSION:
            raise Unsupported(f"format version {version}; this reads version {VERSION}")
        if flags > 1 or any(sector[28:32]) or any(sector[96:508]):
            raise Unsupported(f"flags {flags:#x} or fields that version {VERSION} does not have")
        generation, segment = struct.unpack_from("<QI", sector, 16)
        if segment % 4096 != 0 or not 4096 <= segment <= 16 << 20:
            raise Unsupported(f"segments of {segment} bytes")
        root = struct.unpack_from("<QQQ", sector, 32)
        redo = struct.unpack_from("<QIIQ", sector, 56)
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
                copy = Superblock.parse(self.read(at, SECTOR).ljust(SECTOR, b"\0"))
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


# --- Segments and images -------------------------------------------------------------------------------------------------

REDO, LEAVES, BIG_VALUES = 1, 2, 3
LEAF, BIG_VALUE, CHUNK, ROOT = 1, 2, 3, 4


class SegmentHeader(NamedTuple):
    kind: int
    fresh: bool
    nonce: int
    first: int
    next: tuple[int, int]  # number and nonce

    @staticmethod
    def parse(data: bytes, segment: int) -> Optional["SegmentHeader"]:
        """A whole header of that segment; None: there is none."""
        if len(data) < HEADER or data[:4] != b"SEG1" or zlib.crc32(data[8:HEADER]) != number(data, 4, 4):
            return None
        kind, fresh, zero, own, nonce, first, after, zero2, after_nonce = struct.unpack_from("<BBHIQQIIQ", data, 8)
        if kind not in (REDO, LEAVES, BIG_VALUES) or fresh > 1 or zero or zero2 or any(data[48:HEADER]) or own != segment:
            return None
        return SegmentHeader(kind, fresh == 1, nonce, first, (after, after_nonce))


class Run(NamedTuple):
    """Neighbouring segments that hold images."""

    segments: int
    kind: int
    nonce: int


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
        require(own_kind == kind and packed <= 1 and not zero and not any(data[40:HEADER]), f"{what} is another thing")
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


class Reference(NamedTuple):
    """Where a big value is."""

    address: int
    length: int


def read_big(images: Images, key: bytes, reference: Reference) -> bytes:
    cursor = Cursor(images.read(reference.address, BIG_VALUE), "a big value")
    require(cursor.take(cursor.number(4)) == key, "a big value of another key")
    value = cursor.take(cursor.left())
    require(len(value) == reference.length, "a big value of another length")
    return value


# --- Directory -----------------------------------------------------------------------------------------------------------

DEFAULT_ID, DEFAULT_NAME = 1, b"__sled__default"


@dataclass
class Tree:
    name: bytes
    leaves: list = field(default_factory=list)  # low key and address of the image
    changes: dict = field(default_factory=dict)  # key to bytes, Reference, or None: it was removed


@dataclass
class Trees:
    next_id: int = DEFAULT_ID + 1
    by_id: dict[int, Tree] = field(default_factory=dict)


def read_directory(images: Images) -> Trees:
    """The trees of the last checkpoint; no leaf is read yet."""
    trees = Trees()
    offset, size, nonce = images.file.superblock.root
    if (offset, size) != (0, 0):
        first = images.file.segment_of(offset)
        segments = images.file.segment_of(offset + size - 1) - first + 1
        images.add_run(first, Run(segments, LEAVES, nonce))
        root = Cursor(images.read_at(offset, size, ROOT), "the directory's root")
        trees.next_id = root.number(4)
        root.number(8)  # of interest to who goes on counting live bytes
        for _ in range(root.number(4)):
            listed, segments, kind, nonce = struct.unpack("<IIBQ", root.take(17))
            root.take(12)
            if listed != first:  # The root's own is known.
                images.add_run(listed, Run(segments, kind, nonce))
        chunks = [images.read(root.number(8), CHUNK) for _ in range(root.number(4))]
        root.end()
        read_items(b"".join(chunks), trees)
    trees.by_id.setdefault(DEFAULT_ID, Tree(DEFAULT_NAME))
    return trees


def read_items(items: bytes, trees: Trees) -> None:
    cursor, tree, low = Cursor(items, "the directory"), None, b""
    names = set()
    while (tag := cursor.number(1)) != 3:
        if tag == 1:
            id, big = cursor.number(4), cursor.number(1)
            tree, low = Tree(cursor.take(cursor.varint())), b""
            require(big <= 1 and 1 <= id < trees.next_id, f"tree {id} cannot be")
            require(id not in trees.by_id and tree.name not in names, f"tree {id} is there twice")
            names.add(tree.name)
            trees.by_id[id] = tree
        else:
            require(tag == 2 and tree is not None, f"item {tag} of the directory cannot be")
            shared, length = cursor.varint(), cursor.varint()
            require(shared <= len(low), "a low key shares more than there is")
            next_low = low[:shared] + cursor.take(length)
            address = cursor.number(8)
            ascends = low < next_low if tree.leaves else next_low == b""
            require(ascends and (address or not tree.leaves), "leaves not in order, or one without an image")
            low = next_low
            tree.leaves.append((low, address))
    cursor.end()
    require(all(tree.leaves for tree in trees.by_id.values()), "a tree without leaves")


def read_records(images: Images, tree: Tree) -> dict:
    """Key to bytes, Reference or None, of all leaves, and changed since."""
    records = {}
    ends = [low for low, _ in tree.leaves[1:]] + [None]
    for (low, address), high in zip(tree.leaves, ends):
        if address:
            records.update(read_leaf(images.read(address, LEAF), low, high))
    return records | tree.changes


# --- Leaves --------------------------------------------------------------------------------------------------------------


def read_leaf(leaf: bytes, low: bytes, high: Optional[bytes]) -> list:
    """The records of a leaf that has the keys from low on, and below high."""
    require(len(leaf) >= 32, "a leaf ends too early")
    n, prefix, low_length, high_length, zero, total = struct.unpack_from("<6I", leaf)
    has_high = high_length != 0xFFFFFFFF
    records_at = 32 + 5 * n
    records_end = total - low_length - (high_length if has_high else 0)
    require(zero == 0 and total == len(leaf) and records_at <= records_end, "a leaf of impossible lengths")
    require(leaf[records_end : records_end + low_length] == low, "a leaf with another low fence")
    own_high = leaf[records_end + low_length :] if has_high else None
    require(own_high == high, "a leaf with another high fence")
    head = bytes([0xFF] * 8) if high is None else high[:8].ljust(8, b"\0")[::-1]
    require(leaf[24:32] == head, "a leaf with a wrong head of its high fence")
    shared = os.path.commonprefix([low, b"" if high is None else high])
    require(prefix <= len(shared), "a leaf with a prefix that its fences do not share")
    found, before = [], None
    for i in range(n):
        at = number(leaf, 32 + n + 4 * i, 4)
        require(records_at <= at, "a leaf record is not where records are")
        suffix, value = read_record(Cursor(leaf[at:records_end], "a leaf record"))
        key = low[:prefix] + suffix
        ascends = low <= key if before is None else before < key
        require(ascends and (high is None or key < high), "leaf keys not in order within the fences")
        require(leaf[32 + i] == fingerprint(key), "a leaf with a wrong fingerprint")
        found.append((key, value))
        before = key
    return found


def read_record(cursor: Cursor):
    key_length, value = cursor.number(2), cursor.number(2)
    if key_length == 0xFFFF:
        key_length = cursor.number(4)
    key, kind, data = cursor.take(key_length), value >> 14, cursor.take(value & 0x3FFF)
    if kind == 0:
        return key, data
    require(kind == 1, "a leaf record of an unknown kind")
    return key, parse_reference(data)


def parse_reference(data: bytes) -> Reference:
    require(len(data) == 16, "a reference of another length")
    return Reference(*struct.unpack("<QQ", data))


def fingerprint(key: bytes) -> int:
    factor, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    whole = len(key) // 8 * 8
    hash = len(key) * factor & mask
    for at in range(0, whole, 8):
        hash = (hash ^ number(key, at, 8)) * factor & mask
        hash = (hash << 29 | hash >> 35) & mask
    hash = (hash ^ number(key[whole:], 0, 8)) * factor & mask
    return min(hash >> 48, 0xFFFE) & 0xFF


# --- Redo stream ---------------------------------------------------------------------------------------------------------


class RedoSegment:
    """A segment of the redo stream, or what may have been one."""

    def __init__(self, file: File, segment: int, nonce: int):
        self.offset, self.nonce = file.segment_offset(segment), nonce
        self.data = file.read(self.offset, file.superblock.segment)
        header = SegmentHeader.parse(self.data, segment)
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
        following = current.header.next
        if following[0] in seen:
            break
        seen.add(following[0])
        after = RedoSegment(file, *following)
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
        last = RedoSegment(file, *last.header.next)
        known = max(known, last.latest_stable(SECTOR))
    require(known <= end, f"the redo stream ends at LSN {end}, though it was durable up to {known}")


PUT, REMOVE, PUT_BIG, CREATE, DROP, IDENTIFIERS, TRANSACTION = range(1, 8)


class Change(NamedTuple):
    tree: int
    key: bytes
    value: object  # bytes, Reference, or None: the key is gone
    nonce: int = 0  # of the run of a Reference


def parse_change(kind: int, tree: int, key: bytes, rest: bytes) -> Change:
    longest = {PUT: 0x3FFF, REMOVE: 0, PUT_BIG: 24}
    require(kind in longest and len(rest) <= longest[kind], f"a change of kind {kind} with {len(rest)} bytes")
    require(kind != PUT_BIG or len(rest) == 24, "a big value without a reference")
    if kind == PUT_BIG:
        return Change(tree, key, parse_reference(rest[:16]), number(rest, 16, 8))
    return Change(tree, key, rest if kind == PUT else None)


def parse_changes(kind: int, body: Cursor) -> list[Change]:
    """The changes of a record of kind 1, 2, 3 or 7."""
    if kind == REMOVE:
        return [parse_change(kind, body.number(4), body.take(body.left()), b"")]
    if kind != TRANSACTION:
        return [parse_change(kind, body.number(4), body.take(body.number(4)), body.take(body.left()))]
    changes = []
    while body.left():
        kind, tree, key_length, rest_length = struct.unpack("<BIII", body.take(13))
        changes.append(parse_change(kind, tree, body.take(key_length), body.take(rest_length)))
    return changes


class Replay:
    """Applies redo records to the trees of the checkpoint."""

    def __init__(self, images: Images, trees: Trees):
        self.images, self.trees = images, trees

    def apply(self, kind: int, body: bytes) -> bool:
        """False: the record has a big value that never reached the file whole."""
        cursor = Cursor(body, f"a redo record of kind {kind}")
        if kind in (PUT, REMOVE, PUT_BIG, TRANSACTION):
            changes = parse_changes(kind, cursor)
            if not all(self.is_there(change) for change in changes):
                return False
            for change in changes:
                if change.tree in self.trees.by_id:
                    self.trees.by_id[change.tree].changes[change.key] = change.value
        elif kind == CREATE:
            id, name = cursor.number(4), cursor.take(cursor.left())
            if id >= self.trees.next_id:
                self.trees.by_id[id] = Tree(name)
                self.trees.next_id = id + 1
        elif kind == DROP:
            self.trees.by_id.pop(cursor.number(4), None)
        elif kind == IDENTIFIERS:
            cursor.number(8)
        else:
            raise Unsupported(f"redo record of kind {kind}")
        cursor.end()
        return True

    def is_there(self, change: Change) -> bool:
        if not isinstance(change.value, Reference):
            return True
        first = self.images.file.segment_of((change.value.address >> 24) * 64)
        if first not in self.images.runs:
            header = SegmentHeader.parse(self.images.file.read(self.images.file.segment_offset(first), HEADER), first)
            if header is None or (header.kind, header.nonce) != (BIG_VALUES, change.nonce):
                return False
            self.images.add_run(first, Run(header.first, BIG_VALUES, header.nonce))
        if self.images.runs[first].nonce != change.nonce:
            return False
        try:
            read_big(self.images, change.key, change.value)
        except Damaged:
            return False
        return True


# --- Everything ----------------------------------------------------------------------------------------------------------


def list_database(path: str) -> None:
    file = File(path)
    images = Images(file)
    trees = read_directory(images)
    # Generation 1: there are no segments yet.
    if file.superblock.generation > 1:
        read_redo(file, Replay(images, trees).apply)
    for tree in sorted(trees.by_id.values(), key=lambda tree: tree.name):
        print(json.dumps({"tree": tree.name.hex()}))
        for key, value in sorted(read_records(images, tree).items()):
            if value is not None:
                value = read_big(images, key, value) if isinstance(value, Reference) else value
                print(json.dumps({"key": key.hex(), "value": value.hex()}))


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        list_database(sys.argv[1])
    except Damaged as error:
        print(f"damaged: {error}", file=sys.stderr)
        return 1
    except (Unsupported, OSError) as error:
        print(f"unsupported: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
