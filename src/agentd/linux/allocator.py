"""What the C library keeps of memory that was given back."""

import contextlib
import ctypes

# mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 20  # bytes
_KEPT = 8 << 20  # at the end of the heap, so that it is not made anew all the time


def give_back_large_blocks() -> None:
    """Have blocks of a MiB and more go back to the kernel as soon as they are freed: glibc takes
    them from heaps, of each thread its own, once one of up to 32 MiB was freed, and keeps those."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
