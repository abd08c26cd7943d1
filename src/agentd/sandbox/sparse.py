"""Digests and copies of files that are mostly holes, as a machine's memory is."""

import errno
import hashlib
import os
from collections.abc import Iterator

_PIECE = 64 << 10
_COPY_BYTES = 1 << 20
_ZEROS = bytes(_PIECE)


def digest(fd: int) -> str:
    """Hashes, in hex, the size and each 64 KiB piece that is not all zero, with its place
    (SHA-256).

    The same whether zeros are stored or are holes, so that a copy made by any tool still fits; no
    time is spent on holes (SEEK_DATA, lseek(2)).
    """
    size = os.fstat(fd).st_size
    found = hashlib.sha256(size.to_bytes(8, "big"))
    place = 0
    for start, end in stretches(fd, size):
        place = max(place, start - start % _PIECE)  # two may lie in one piece
        while place < end:
            piece = os.pread(fd, _PIECE, place)
            if not piece:
                return found.hexdigest()  # it shrank: its size is in the digest
            if piece != _ZEROS[: len(piece)]:
                found.update(place.to_bytes(8, "big"))
                found.update(piece)
            place += _PIECE
    return found.hexdigest()


def copy(source: int, target: int, size: int) -> Iterator[int]:
    """Copy ``size`` bytes' data without the holes between, which cost nothing; yields the bytes of
    each piece that was written. Ends early where the source was cut short. Raises OSError."""
    os.ftruncate(target, size)
    for start, end in stretches(source, size):
        os.lseek(target, start, os.SEEK_SET)
        sent = 0
        for count in send(source, target, start, end - start):
            sent += count
            yield count
        if sent < end - start:
            return


def send(source: int, target: int, place: int, size: int) -> Iterator[int]:
    """Copy ``size`` bytes from ``place`` of a file to where another stands; yields the bytes of
    each piece that was written. Ends early where the source was cut short. Raises OSError."""
    end = place + size
    while place < end:
        count = os.sendfile(target, source, place, min(_COPY_BYTES, end - place))
        if not count:
            return
        place += count
        yield count


def stretches(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yields from where to where there is data in the first ``size`` bytes. Raises OSError."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # only a hole is left
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end
