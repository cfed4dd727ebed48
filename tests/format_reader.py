#!/usr/bin/env python3
"""Lists everything in a database of format version 1, with nothing but the standard library.

    format_reader.py DIRECTORY_OR_FILE

prints JSON lines: for each tree, by name, {"tree": NAME}, then for each of its records, by key,
{"key": KEY, "value": VALUE}, all in hexadecimal digits. Nothing is written to the database. The exit status is 1 when it
is damaged, and 2 when it is none of version 1, is in use, or has compressed pages that this Python cannot decompress.

This is a second implementation, written from the specification in the comments of src/ (src/log/format.rs says where to
begin), so that the specification is known to be enough; format_frames.py is its lower half. It reads whole databases into
memory, and is strict: what no writer writes is an error, even where the engine would not look. Python 3.9 or later.
"""

import json
import os
import struct
import sys
from collections import namedtuple
from typing import Optional

sys.dont_write_bytecode = True
from format_frames import BIG_VALUE, BIG_VALUES, CHUNK, HEADER, LEAF, LEAVES, ROOT
from format_frames import Damaged, File, Images, Run, Unsupported, number, parse_segment_header, read_redo, require


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


# Big values

# Where one is.
Reference = namedtuple("Reference", "address length")


def parse_reference(data: bytes) -> Reference:
    require(len(data) == 16, "a reference of another length")
    return Reference(*struct.unpack("<QQ", data))


def read_big(images: Images, key: bytes, reference: Reference) -> bytes:
    cursor = Cursor(images.read(reference.address, BIG_VALUE), "a big value")
    require(cursor.take(cursor.number(4)) == key, "a big value of another key")
    value = cursor.take(cursor.left())
    require(len(value) == reference.length, "a big value of another length")
    return value


# Directory

DEFAULT_ID, DEFAULT_NAME = 1, b"__sled__default"


class Tree:
    def __init__(self, name: bytes):
        self.name = name
        self.leaves: list[tuple[bytes, int]] = []  # low key and address of the image
        self.changes: dict = {}  # key to bytes, Reference, or None: it was removed


class Trees:
    def __init__(self):
        self.next_id = DEFAULT_ID + 1
        self.by_id: dict[int, Tree] = {}


def read_directory(images: Images) -> Trees:
    """The trees of the last checkpoint; no leaf is read yet."""
    trees = Trees()
    at = images.file.superblock.root
    if (at.offset, at.size) != (0, 0):
        first = images.file.segment_of(at.offset)
        segments = images.file.segment_of(at.offset + at.size - 1) - first + 1
        images.add_run(first, Run(segments, LEAVES, at.nonce))
        root = Cursor(images.read_at(at.offset, at.size, ROOT), "the directory's root")
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


# Leaves


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


def fingerprint(key: bytes) -> int:
    factor, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    whole = len(key) // 8 * 8
    hash = len(key) * factor & mask
    for at in range(0, whole, 8):
        hash = (hash ^ number(key, at, 8)) * factor & mask
        hash = (hash << 29 | hash >> 35) & mask
    hash = (hash ^ number(key[whole:], 0, 8)) * factor & mask
    return min(hash >> 48, 0xFFFE) & 0xFF


# Redo records

PUT, REMOVE, PUT_BIG, CREATE, DROP, IDENTIFIERS, TRANSACTION = range(1, 8)

# `value`: bytes, Reference, or None, as the key is gone; `nonce`: of the run of a Reference.
Change = namedtuple("Change", "tree key value nonce", defaults=[0])


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


def apply_record(images: Images, trees: Trees, kind: int, body: bytes) -> bool:
    """False: the record has a big value that never reached the file whole."""
    cursor = Cursor(body, f"a redo record of kind {kind}")
    if kind in (PUT, REMOVE, PUT_BIG, TRANSACTION):
        changes = parse_changes(kind, cursor)
        if not all(is_there(images, change) for change in changes):
            return False
        for change in changes:
            if change.tree in trees.by_id:
                trees.by_id[change.tree].changes[change.key] = change.value
    elif kind == CREATE:
        id, name = cursor.number(4), cursor.take(cursor.left())
        if id >= trees.next_id:
            trees.by_id[id] = Tree(name)
            trees.next_id = id + 1
    elif kind == DROP:
        trees.by_id.pop(cursor.number(4), None)
    elif kind == IDENTIFIERS:
        cursor.number(8)
    else:
        raise Unsupported(f"redo record of kind {kind}")
    cursor.end()
    return True


def is_there(images: Images, change: Change) -> bool:
    if not isinstance(change.value, Reference):
        return True
    first = images.file.segment_of((change.value.address >> 24) * 64)
    if first not in images.runs:
        header = parse_segment_header(images.file.read(images.file.segment_offset(first), HEADER), first)
        if header is None or (header.kind, header.nonce) != (BIG_VALUES, change.nonce):
            return False
        images.add_run(first, Run(header.first, BIG_VALUES, header.nonce))
    if images.runs[first].nonce != change.nonce:
        return False
    try:
        read_big(images, change.key, change.value)
    except Damaged:
        return False
    return True


# Everything


def list_database(path: str) -> None:
    file = File(path)
    images = Images(file)
    trees = read_directory(images)
    # Generation 1: there are no segments yet.
    if file.superblock.generation > 1:
        read_redo(file, lambda kind, body: apply_record(images, trees, kind, body))
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
