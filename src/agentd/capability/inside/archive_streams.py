"""Part of archive_read: streams that come out bounded, and members and their names."""

from __future__ import annotations

import bz2
import re
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from agentd.capability.inside.common import Failed

try:
    import lzma
except ImportError:  # a Python that was built without it
    lzma = None  # type: ignore[assignment]

CHUNK = 1 << 16
MAX_SCAN = 4 << 30  # bytes that are inflated to look at a compressed archive, wanted or not
MAX_DEPTH = 64  # directories in a name
MAX_NAME = 4000  # bytes
RATIO_FREE = 8 << 20  # bytes that may come out before the ratio counts: little hurts nobody
XZ_MEMORY = 128 << 20  # bytes; xz -9 needs 65 MiB
# NUL hides what comes after it; a backslash is a separator elsewhere.
BAD = re.compile("[\x00-\x1f\x7f\\\\\ud800-\udfff]")


class ByteSource(Protocol):
    """``read`` gives at most ``size`` bytes, and none at the end only."""

    def read(self, size: int, /) -> bytes: ...


class Member:
    """``read`` is good until the next member is asked for; ``size`` is None where not known."""

    def __init__(
        self,
        raw: str,
        kind: str,  # file, dir, link, other
        size: int | None,
        mode: int,
        problem: str,  # a code, or ""
        read: Callable[[int], bytes],
    ) -> None:
        self.kind, self.size, self.mode, self.read = kind, size, mode, read
        self.name, bad = clean(raw)
        self.problem = bad or problem


def clean(raw: str) -> tuple[str, str]:
    """(the name without "." and empty parts, or as it may be shown; what is wrong with it)."""
    if BAD.search(raw) or len(raw.encode()) > MAX_NAME:
        return BAD.sub("\ufffd", raw[:MAX_NAME]), "bad_name"
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    if raw.startswith("/") or re.match("[A-Za-z]:", raw):
        return raw, "absolute_path"
    if ".." in parts:
        return raw, "traversal"
    if len(parts) > MAX_DEPTH or any(len(part.encode()) > 255 for part in parts):
        return raw, "bad_name"
    return "/".join(parts), ""


class Counted:
    """``count`` is how many bytes were read."""

    def __init__(self, source: ByteSource) -> None:
        self.source, self.count = source, 0

    def read(self, size: int) -> bytes:
        data = self.source.read(size)
        self.count += len(data)
        return data


class Inflated:
    """A gzip, bzip2 or xz stream, or several in a row. It holds no more than one read gives."""

    def __init__(self, source: Counted, kind: str, max_ratio: int) -> None:
        self._source, self._kind, self._max_ratio = source, kind, max_ratio
        self._engine: Any = None
        self._pending = b""
        self._ended = False
        self.count = 0

    def read(self, size: int) -> bytes:
        while size and not self._ended:
            if not self._pending and getattr(self._engine, "needs_input", True):
                self._pending = self._source.read(CHUNK)
                self._ended = not self._pending
            if self._engine is None:
                # Streams may be padded with NULs.
                self._pending = self._pending.lstrip(b"\0")
                if not self._pending:
                    continue
                self._engine = _engine(self._kind)
            data = self._inflate(size)
            if data:
                self._ended = False  # zlib may hold some back after its input has ended
                self._count(len(data))
                return data
            if self._ended and self._engine is not None:
                raise Failed("corrupt", f"the {self._kind} stream ends too early")
        return b""

    def _inflate(self, size: int) -> bytes:
        try:
            data: bytes = self._engine.decompress(self._pending, size)
        except Exception as error:  # zlib.error, LZMAError, OSError, EOFError
            raise Failed("corrupt", f"the {self._kind} stream is damaged: {error}") from None
        self._pending = getattr(self._engine, "unconsumed_tail", b"")
        if self._engine.eof:
            self._pending, self._engine = self._engine.unused_data, None
        return data

    def _count(self, size: int) -> None:
        self.count += size
        into = self._source.count
        if is_bomb(self.count, into, self._max_ratio):
            raise Failed("bomb", f"{self.count} bytes came out of {into}", "raise max_ratio")
        if self.count > MAX_SCAN:
            raise Failed("too_large", f"more than {MAX_SCAN} bytes come out of it")


def is_bomb(out: int, into: int, max_ratio: int) -> bool:
    return out > RATIO_FREE and out > max_ratio * into


def _engine(kind: str) -> Any:
    if kind == "gz":
        return zlib.decompressobj(31)
    if kind == "bz2":
        return bz2.BZ2Decompressor()
    if lzma is None:
        raise Failed("unsupported", "the sandbox's Python has no lzma", "repack it as gzip")
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


class Body:
    """``size`` bytes of a stream, and then no more. Raises Failed where there are fewer."""

    def __init__(self, source: ByteSource, size: int) -> None:
        self._source, self._left = source, size

    def read(self, size: int) -> bytes:
        wanted = min(size, self._left)
        data = self._source.read(wanted) if wanted else b""
        if wanted and not data:
            raise Failed("corrupt", "the archive ends inside a member")
        self._left -= len(data)
        return data


class Joined:
    """A stream whose head was read to recognise it: reads that head, then the rest."""

    def __init__(self, head: bytes, source: ByteSource) -> None:
        self._head, self._source = head, source

    def read(self, size: int) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._source.read(size)


def exactly(source: ByteSource, size: int) -> bytes:
    """``size`` bytes; fewer at the end of the stream only."""
    parts = []
    while size and (data := source.read(min(size, CHUNK))):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
