"""Fills the holes of this process's heap, so that its forked copies allocate side by side.

What a copy allocates goes into blocks that were freed, here one and there one, and each costs it a
page of its own. With no block free pymalloc begins pools for every size: some dozen new pages. How
it cuts them is in Objects/obmalloc.c; on an interpreter that does otherwise this does no more than
hold some memory.
"""

_POOL = 16 << 10
_HEADER = 48
_ALIGNMENT = 16
_LARGEST = 512
# Of a bytes object without any bytes, the zero at its end included.
_EMPTY = 33
# Blocks of a size that are tried: more holes than a process of some megabytes can have.
_MAX_BLOCKS = 8192
# One at the begin of a pool may be a hole there; so many in a row are a pool that was empty.
_IN_A_ROW = 3


def fill() -> list[bytes]:
    """What fills them, for as long as it is held."""
    held: list[bytes] = []
    for size in range(_HEADER, _LARGEST + 1, _ALIGNMENT):
        row = 0
        for _ in range(_MAX_BLOCKS):
            held.append(bytes(size - _EMPTY))
            row = row + 1 if id(held[-1]) % _POOL == _HEADER + row * size else 0
            if row == _IN_A_ROW:
                break
    return held
