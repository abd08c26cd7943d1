"""The archives that ADD unpacks: read once, from begin to end, and bounded as they are read.

``tarfile`` takes the memory that a header asks for. So it gets its bytes of a reader that ends what
lies between two files after ``_MAX_HEADERS`` bytes, and all of it after what an image may have.
"""

import bz2
import contextlib
import gzip
import hashlib
import lzma
import math
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Protocol, cast

from agentd.image.oci.bounds import BOUNDS
from agentd.model.units import readable_size

_PIECE = 1 << 20
_BLOCK = 512
_MAX_HEADERS = 1 << 20  # of long names, pax records and maps of holes before one file
_MAX_GLOBAL = 64  # records that are of all files behind them
_XZ_MEMORY = 1 << 27  # more than xz -9 asks for
_BUFFER = 20 * _BLOCK  # what tarfile reads at once
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"
_MOST_ID = (1 << 32) - 2
_UNPACKING = (lzma.LZMAError, zlib.error, EOFError, ValueError)
_ERRORS = (tarfile.TarError, OverflowError, RecursionError, *_UNPACKING)


class NoArchive(ValueError):
    """What was read cannot be unpacked; the text says why."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class ReadMember(NamedTuple):
    """``archive`` gives the data of ``member``, as long as no later one was asked for."""

    archive: tarfile.TarFile
    member: tarfile.TarInfo


def copied(data: BinaryIO, copy: BinaryIO, size: int) -> str:
    """Copy ``size`` bytes at most, and one if there are more; return their SHA-256 in hex."""
    total, left = hashlib.sha256(), size + 1
    while left and (piece := data.read(min(left, _PIECE))):
        total.update(piece)
        copy.write(piece)
        left -= len(piece)
    copy.seek(0)
    return total.hexdigest()


def is_archive(data: BinaryIO) -> bool:
    """Return whether a tar archive's header comes first; packed by gzip, bzip2 or xz, too."""
    with contextlib.suppress(*_ERRORS, OSError):
        block = _plain(data).read(_BLOCK)
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        return True
    return False


def members(data: BinaryIO) -> Iterator[ReadMember]:
    """Yield each, as it comes. Raises NoArchive."""
    reader = _Bounded(_plain(data))
    count = 0
    try:
        with tarfile.open(  # type: ignore[call-overload]
            fileobj=reader, mode="r|", bufsize=_BUFFER
        ) as archive:
            while (member := archive.next()) is not None:
                count += 1
                _check(archive, member, count)
                reader.allow(member.size)
                yield ReadMember(archive, member)
                archive.members = []  # it remembers all
                reader.allow(0)
    except _ERRORS as error:
        raise NoArchive(str(error)[:200]) from error


def _check(archive: tarfile.TarFile, member: tarfile.TarInfo, count: int) -> None:
    if count > BOUNDS.files:
        raise NoArchive(f"it has over {BOUNDS.files:,} files")
    if len(archive.pax_headers) > _MAX_GLOBAL:
        raise NoArchive(f"it has over {_MAX_GLOBAL} records of all files")
    if member.name.count("/") > BOUNDS.depth:
        raise NoArchive(f"it has folders more than {BOUNDS.depth} deep in each other")
    if "\0" in member.name + member.linkname:
        raise NoArchive(f"{member.name[:100]!r} has a NUL byte in its name, or in what it links to")
    numbers = all(0 <= number <= _MOST_ID for number in (member.uid, member.gid))
    if not numbers or member.size < 0 or not math.isfinite(member.mtime):
        raise NoArchive(f"{member.name[:100]!r} has a size, time or owner that none can have")


class _Bounded:
    """Reads on as far as it is allowed."""

    def __init__(self, data: _Readable) -> None:
        self._data = data
        self._total = 0
        self._left = _MAX_HEADERS + _BUFFER

    def allow(self, size: int) -> None:
        """What a file has may be read, and headers behind it."""
        self._left = size + _MAX_HEADERS + _BUFFER

    def read(self, size: int) -> bytes:
        try:
            data = self._data.read(size)
        except _UNPACKING as error:
            raise NoArchive(str(error)) from error
        except OSError as error:  # gzip and bzip2 call by it what they cannot read
            if error.errno:
                raise
            raise NoArchive(str(error)) from error
        self._total += len(data)
        self._left -= len(data)
        if self._total > BOUNDS.unpacked:
            raise NoArchive(f"it has more than {readable_size(BOUNDS.unpacked)}")
        if self._left < 0:
            raise NoArchive(f"it has a header of more than {readable_size(_MAX_HEADERS)}")
        return data


def _plain(data: BinaryIO) -> _Readable:
    """As it is unpacked; ``data`` stands at its begin."""
    begin = data.read(len(_XZ))
    data.seek(0)
    if begin.startswith(_GZIP):
        return gzip.GzipFile(fileobj=data, mode="rb")
    if begin.startswith(_BZIP2):
        return bz2.BZ2File(data)
    return cast("_Readable", _Xz(data)) if begin == _XZ else data


class _Xz:
    """What lzma.LZMAFile is, but for its memory, which is bounded."""

    def __init__(self, data: BinaryIO) -> None:
        self._data = data
        self._stream = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        self._packed = b""
        self._begun = False

    def read(self, size: int) -> bytes:
        while True:
            if not self._packed and self._stream.needs_input:
                self._packed = self._data.read(_PIECE)
                if not self._packed:
                    if self._begun:
                        raise EOFError("it ends too early")
                    return b""
            self._begun = True
            found = self._stream.decompress(self._packed, size)
            self._packed = b""
            if self._stream.eof:
                self._packed = self._stream.unused_data.lstrip(b"\0")
                self._stream = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
                self._begun = False
            if found:
                return found
