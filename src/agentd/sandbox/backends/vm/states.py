"""Files of a machine's memory: sparse, so that only what is there is hashed."""

import hashlib
import os

from agentd.sandbox import sparse

_BLOCK = 1 << 20
# Of any machine, and bytes a second of the slowest disk.
STATE_SECONDS, _SLOWEST = 120.0, 16 << 20


def seconds(memory: int) -> float:
    """Return how long its monitor may take to write or read the state of a machine with so many
    bytes of memory."""
    return STATE_SECONDS + memory / _SLOWEST


def digest(fd: int) -> str:
    """SHA-256 over the size and every stretch of data with its place, in hex."""
    size = os.fstat(fd).st_size
    found = hashlib.sha256(b"%d" % size)
    for start, offset in sparse.stretches(fd, size):
        found.update(b"%d-%d" % (start, offset))
        for place in range(start, offset, _BLOCK):
            found.update(os.pread(fd, min(_BLOCK, offset - place), place))
    return found.hexdigest()


def allocated(fd: int) -> int:
    """Counts the bytes that it takes: holes take none."""
    return os.fstat(fd).st_blocks * 512


def stamp(fd: int) -> list[int]:
    """Changes with the content: the time of change (ctime) cannot be set by a program."""
    status = os.fstat(fd)
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
