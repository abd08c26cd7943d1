"""The file format: a segment is a header and records; each record proves itself by checksums.

Header (56 bytes, little-endian): magic, number, the next offset of each stream, the total, crc.
Record (36 bytes and its payload): crc of the rest of its head, kind, stream, codec, 0, bytes
stored, bytes of the stream, crc of the payload, offset, total.
"""

import struct
import zlib
from typing import NamedTuple

from agentd.sandbox.journal import codec
from agentd.sandbox.journal.events import STREAMS, JournalEntry

MAX_LENGTH = 256 << 10  # bytes of a stream in a record
MAX_INFO = 64 << 10
DATA, GAP, END = 1, 2, 3

_MAGIC = b"AGDJ\1\0\0\0"
_HEADER = struct.Struct("<8sQ3QQ")
_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<BBBBIIIQQ")
_LOSS = struct.Struct("<Q")
HEADER_SIZE = _HEADER.size + _CRC.size
HEAD_SIZE = _CRC.size + _HEAD.size


class Start(NamedTuple):
    """The record with which a segment begins."""

    number: int
    offsets: tuple[int, ...]
    total: int


class Head(NamedTuple):
    kind: int
    stream: int
    codec: int
    stored: int
    length: int
    crc: int
    offset: int
    total: int


def encode_header(start: Start) -> bytes:
    data = _HEADER.pack(_MAGIC, start.number, *start.offsets, start.total)
    return data + _CRC.pack(zlib.crc32(data))


def decode_header(data: bytes) -> Start | None:
    """Read a header; None for what is no whole one of ours."""
    if len(data) < HEADER_SIZE or _CRC.unpack_from(data, _HEADER.size)[0] != zlib.crc32(
        data[: _HEADER.size]
    ):
        return None
    magic, number, *offsets, total = _HEADER.unpack_from(data)
    return Start(number, tuple(offsets), total) if magic == _MAGIC else None


def encode(entry: JournalEntry, fast: bool = False) -> list[bytes]:
    if entry.reason:
        payload = _LOSS.pack(entry.length) + entry.reason.encode()
        return _encode(GAP, entry, codec.RAW, payload, 0)
    how, payload = codec.compress(entry.data, fast)
    return _encode(DATA, entry, how, payload, entry.length)


def encode_end(info: bytes, total: int) -> list[bytes]:
    return _encode(END, JournalEntry(total, 0, 0, 0, b""), codec.RAW, info, 0)


def decode_head(data: bytes) -> Head | None:
    """Read a record's head; None for what is no whole one."""
    if len(data) < HEAD_SIZE or _CRC.unpack_from(data)[0] != zlib.crc32(data[4:HEAD_SIZE]):
        return None
    kind, stream, how, _, stored, length, crc, offset, total = _HEAD.unpack_from(data, 4)
    if kind not in (DATA, GAP, END) or stream >= len(STREAMS) or length > MAX_LENGTH:
        return None
    if stored > (MAX_INFO if kind != DATA else length):
        return None
    return Head(kind, stream, how, stored, length, crc, offset, total)


def decode(head: Head, payload: bytes) -> JournalEntry | None:
    """Return what a DATA or GAP record holds; None if the payload is damaged."""
    if zlib.crc32(payload) != head.crc:
        return None
    if head.kind == GAP:
        if len(payload) < _LOSS.size:
            return None
        reason = payload[_LOSS.size :].decode(errors="replace")
        (length,) = _LOSS.unpack_from(payload)
        return JournalEntry(head.total, head.stream, head.offset, length, b"", reason)
    try:
        data = codec.decompress(head.codec, payload, head.length)
    except codec.CodecError:
        return None
    return JournalEntry(head.total, head.stream, head.offset, head.length, data)


def _encode(kind: int, entry: JournalEntry, how: int, payload: bytes, length: int) -> list[bytes]:
    rest = _HEAD.pack(
        kind,
        entry.stream,
        how,
        0,
        len(payload),
        length,
        zlib.crc32(payload),
        entry.offset,
        entry.total,
    )
    return [_CRC.pack(zlib.crc32(rest)) + rest, payload]
