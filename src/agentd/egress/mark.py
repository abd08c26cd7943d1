"""Eight bytes of memory, in which a relay or a terminator says for which sandbox it does something,
and which its host reads once it has died. Standard library alone."""

import mmap
import os

MARK_BYTES = 8
#: Of so many bytes, as one number: the sandbox's, 0 for nobody's.
Mark = memoryview


def map_mark(fd: int) -> Mark:
    """Map the memory of the host's file; the descriptor is closed. Raises OSError."""
    try:
        return memoryview(mmap.mmap(fd, MARK_BYTES)).cast("Q")
    finally:
        os.close(fd)


def no_mark() -> Mark:
    """Return one that nobody reads."""
    return memoryview(bytearray(MARK_BYTES)).cast("Q")
