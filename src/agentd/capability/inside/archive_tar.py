"""Part of archive_read: tar, read forward. ``tarfile`` would take what a header says into memory,
so that only its parser of one block is used."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Any

from agentd.capability.inside.archive_streams import CHUNK, Body, ByteSource, Member, exactly
from agentd.capability.inside.common import Failed

BLOCK = 512
MAX_HEADER = 1 << 16  # bytes of one extended header
MAX_RECORDS = 100  # of all that hold at once
_GLOBAL, _LONG_NAME, _LONG_LINK = b"g", b"L", b"K"
_EXTENDED = (_GLOBAL, _LONG_NAME, _LONG_LINK, b"x", b"X")
_FILES = (b"0", b"\0", b"7")
_KINDS = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"5": "dir", b"6": "device"}


def is_tar(block: bytes) -> bool:
    try:
        return block != bytes(BLOCK) and _header(block) is not None
    except Failed:
        return False


def tar_members(source: ByteSource) -> Iterator[Member]:
    globals_: dict[str, Any] = {}
    own: dict[str, Any] = {}
    while (block := exactly(source, BLOCK)) != bytes(BLOCK):
        info = _header(block)
        if info.type in _EXTENDED:
            records = _records(source, info)
            (globals_ if info.type == _GLOBAL else own).update(records)
            if len(globals_) + len(own) > MAX_RECORDS:
                raise Failed("bomb", f"over {MAX_RECORDS} records of extended tar headers")
            continue
        goes_on = info.type == tarfile.GNUTYPE_SPARSE and block[482]
        while goes_on:  # the map of an old sparse file, in further blocks
            goes_on = any(exactly(source, BLOCK)[504:505])
        yield from _member(source, info, {**globals_, **own})
        own = {}
    if own:
        raise Failed("corrupt", "the tar ends after an extended header")


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise Failed("corrupt", f"a tar header is damaged: {error}") from None
    if info.size < 0:
        raise Failed("corrupt", "a tar header has a size below 0")
    return info


def _member(source: ByteSource, info: tarfile.TarInfo, records: dict[str, Any]) -> Iterator[Member]:
    name = records.get("path", info.name)
    kind = "file" if info.type in _FILES else _KINDS.get(info.type, "unsupported")
    # A link, a directory or a device has no body, whatever its size.
    size = records.get("size", info.size) if info.type not in _KINDS else 0
    if any(key.startswith("GNU.sparse") for key in records):
        kind = "unsupported"
    problem = kind if kind in ("link", "device", "unsupported") else ""
    if not problem and info.mode & 0o6000:
        problem = "setuid"
    if kind == "file" and name.endswith("/"):
        kind = "dir"
    shown = kind if kind in ("file", "dir", "link") else "other"
    body = Body(source, size)
    yield Member(name, shown, size, info.mode, problem, body.read)
    while body.read(CHUNK):
        pass
    exactly(source, -size % BLOCK)


def _records(source: ByteSource, info: tarfile.TarInfo) -> dict[str, Any]:
    if info.size > MAX_HEADER:
        raise Failed("bomb", f"a tar header of {info.size} bytes, over {MAX_HEADER}")
    data = exactly(Body(source, info.size), info.size)
    exactly(source, -info.size % BLOCK)
    if info.type == _LONG_LINK:
        return {}
    if info.type == _LONG_NAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    return _pax(data)


def _pax(data: bytes) -> dict[str, Any]:
    """Records of the form "LENGTH KEY=VALUE\\n"."""
    found: dict[str, Any] = {}
    while data:
        match = re.match(rb"([0-9]{1,7}) ([^=]+)=", data)
        length = int(match[1]) if match else 0
        if match is None or not match.end() < length <= len(data) or data[length - 1] != 10:
            raise Failed("corrupt", "an extended tar header is damaged")
        value = data[match.end() : length - 1].decode("utf-8", "surrogateescape")
        found[match[2].decode("utf-8", "replace")] = value
        data = data[length:]
    if "size" in found:
        if not re.fullmatch("[0-9]{1,15}", found["size"], re.ASCII):
            raise Failed("corrupt", "an extended tar header has a size that is no number")
        found["size"] = int(found["size"])
    return found
