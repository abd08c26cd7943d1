"""What an image may be at most, measured before it is unpacked, or each piece of it is.

Headers are read as umoci will read them, from the layers as they are packed; the root is counted
once more when it is there (``ImageBounds.check_root``), whatever the headers said.
"""

import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import msgspec
import zstandard

from agentd.image.model import Corrupt, ImageError
from agentd.image.oci.values import LAYER, Descriptor
from agentd.model.units import readable_size

# What zstd itself takes by default; a larger one would be so much memory.
_ZSTD_WINDOW = 1 << 27
_PIECE = 1 << 20
_BLOCK = 512
_MAX_HEADER = 1 << 20  # of a long name, or the records of a pax header
_MOST_SIZE = 2**63 - 1  # of a file; who reads more in a header takes it for none
_SPARSE_SIZES = (b"GNU.sparse.realsize", b"GNU.sparse.size")


class ImageBounds(msgspec.Struct, frozen=True):
    """``unpacked`` is in bytes, of all layers as archives; ``layer`` in bytes, of one as it is
    fetched; ``files`` counts what all layers have; ``depth`` directories in each other."""

    unpacked: int = 32 << 30
    layer: int = 16 << 30
    files: int = 2_000_000
    depth: int = 256

    def check_layers(self, layers: Iterable[Descriptor]) -> None:
        """Check sizes. Raises ImageError for a layer that is too large as it was fetched."""
        for layer in layers:
            if layer.size > self.layer:
                raise _beyond(f"a layer of {layer.size} bytes", readable_size(self.layer))

    def check_size(self, size: int) -> None:
        if size > self.unpacked:
            raise _beyond(
                f"more than {readable_size(self.unpacked)} unpacked",
                readable_size(self.unpacked),
                "pull it with a larger --max-size, if it is what you want",
            )

    def check_files(self, files: int) -> None:
        if files > self.files:
            raise _beyond(
                f"more than {self.files} files",
                str(self.files),
                "pull it with a larger --max-files, if it is what you want",
            )

    def check_path(self, path: str) -> None:
        depth = sum(part not in ("", ".") for part in path.split("/"))
        if depth > self.depth:
            raise _beyond(f"directories {depth} deep in each other", str(self.depth))

    def check_root(self, files: int, size: int) -> None:
        """Check the files that are there, by their blocks: what was told need not be true."""
        self.check_files(files)
        self.check_size(size)


BOUNDS = ImageBounds()


def _beyond(what: str, most: str, fix: str = "") -> ImageError:
    return ImageError(
        f"the image has {what}, and {most} is the most that is unpacked",
        remediation=fix or "use another image: what is built so is not meant to be run",
    )


def measure(
    paths: Iterable[tuple[str, str]],
    bounds: ImageBounds,
    hand: Callable[[bytes], None] | None = None,
) -> int:
    """Read the layers, each a path and a media type, and return of how many bytes they are, and
    their files' holes; ``hand`` is called with each piece of their archives that has been counted.
    Raises ImageError, Corrupt, OSError."""
    files = size = 0
    for path, media_type in paths:
        with open(path, "rb") as file:
            pieces = unpacked(file, media_type)
            archive = _Archive(_handed(pieces, hand) if hand else pieces, bounds, size)
            try:
                for name, more in archive.entries():
                    files += 1
                    bounds.check_files(files)
                    bounds.check_path(name)
                    archive.count(more)
                size = archive.finish()
            except _Malformed as error:
                raise _malformed(os.path.basename(path), str(error)) from error
    return size


def _handed(pieces: Iterator[bytes], hand: Callable[[bytes], None]) -> Iterator[bytes]:
    """Who asks for the next has looked at all headers that end in the last."""
    for piece in pieces:
        yield piece
        hand(piece)


def _malformed(digest: str, why: str) -> Corrupt:
    """Say of a layer, by its digest in hex, that nobody could unpack it."""
    return Corrupt(
        f"the layer sha256:{digest} is malformed",
        cause=why,
        remediation="build the image anew, or use another one",
    )


class _Malformed(Exception):
    """The archive is none, or says of itself what cannot be."""


class _Archive:
    """A tar archive as it streams by. ``size`` counts its bytes, and those of holes."""

    def __init__(self, pieces: Iterator[bytes], bounds: ImageBounds, size: int) -> None:
        self._pieces = pieces
        self._bounds = bounds
        self._size = size
        self._buffer = b""
        self._at = 0

    def entries(self) -> Iterator[tuple[str, int]]:
        """The path of each, and the bytes of its holes."""
        path, length, whole = "", -1, 0
        while len(block := self._read(_BLOCK)) == _BLOCK:
            if block.count(0) == _BLOCK:
                return
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise _Malformed(f"it is no tar archive: {error}") from error
            if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                path, length, whole = _records(self._header(info.size), path, length)
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                path = self._header(info.size).rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
                self._header(info.size)
            else:
                size = info.size if length < 0 else length
                if info.type == tarfile.GNUTYPE_SPARSE:
                    whole = tarfile.nti(block[483:495])  # type: ignore[attr-defined]
                    extended = block[482]
                    while extended:
                        more = self._read(_BLOCK)
                        extended = len(more) == _BLOCK and more[504]
                yield path or info.name, max(0, whole - size)
                if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES:
                    self._skip(size, path or info.name)
                path, length, whole = "", -1, 0

    def count(self, more: int) -> None:
        self._size += more
        self._bounds.check_size(self._size)

    def finish(self) -> int:
        """The size of all of it, with what comes behind its end."""
        while self._fill():
            pass
        return self._size

    def _header(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise _Malformed(f"it has a header of {size} bytes, over {_MAX_HEADER}")
        return self._read(_padded(size))[:size]

    def _read(self, size: int) -> bytes:
        while len(self._buffer) - self._at < size:
            if not self._fill():
                break
        data = self._buffer[self._at : self._at + size]
        self._at += len(data)
        return data

    def _skip(self, size: int, path: str) -> None:
        """Go on behind a file. Raises _Malformed where less comes than its header says."""
        if not 0 <= size <= _MOST_SIZE:
            raise _Malformed(f"its header says that {path[:100]!r} has {size} bytes")
        left = _padded(size)
        while left:
            step = min(left, len(self._buffer) - self._at)
            self._at += step
            left -= step
            if left and not self._fill():
                lacks = left - (_padded(size) - size)  # what rounds up the last may be left out
                if lacks > 0:
                    raise _Malformed(
                        f"its header says that {path[:100]!r} has {size} bytes, and {size - lacks} "
                        "are there"
                    )
                return

    def _fill(self) -> bool:
        piece = next(self._pieces, b"")
        self._buffer = self._buffer[self._at :] + piece
        self._at = 0
        self.count(len(piece))
        return bool(piece)


def _records(data: bytes, path: str, length: int) -> tuple[str, int, int]:
    """The path, the size and the size with holes of a pax header (pax(1)), where it tells them."""
    whole = 0
    while data:
        told, _, rest = data.partition(b" ")
        if not told.isdigit() or len(told) > 7 or not len(told) < int(told) <= len(data):
            raise _Malformed(f"a record of a header says that it has {told[:40]!r} bytes")
        key, _, value = rest[: int(told) - len(told) - 2].partition(b"=")
        if key in (b"path", b"GNU.sparse.name"):
            path = value.decode("utf-8", "surrogateescape")
        elif key == b"size" and value:  # one that is empty says nothing
            if not value.isdigit() or len(value) > len(str(_MOST_SIZE)):
                raise _Malformed(f"a header says of a size that it is {value[:40]!r}")
            length = int(value)
        elif key in _SPARSE_SIZES and value.isdigit() and len(value) < 20:
            whole = int(value)
        data = data[int(told) :]
    return path, length, whole


def _padded(size: int) -> int:
    return -(-max(0, size) // _BLOCK) * _BLOCK


def unpacked(file: BinaryIO, media_type: str) -> Iterator[bytes]:
    """Yield the archive of a layer, a piece at a time. Raises Corrupt."""
    reader: Any = file
    if media_type == f"{LAYER}+gzip":
        reader = gzip.GzipFile(fileobj=file)
    elif media_type == f"{LAYER}+zstd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        reader = decompressor.stream_reader(file, read_across_frames=True)
    try:
        yield from iter(lambda: reader.read(_PIECE), b"")
    except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise _malformed(
            os.path.basename(file.name), f"it cannot be decompressed: {error}"
        ) from error
