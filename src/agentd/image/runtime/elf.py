"""Cuts from programs and libraries (elf(5)) what is not needed to run them."""

import struct

_MAGIC = b"\x7fELF\x02\x01"  # of 64 bits, little-endian
_PT_LOAD = 1
# glibc's loader has code of this file run in every process, whatever its command line says.
_PRELOAD = b"/etc/ld.so.preload\0"


def slim(data: bytes) -> bytes:
    """Return it without debugging information, symbols for linkers and the table of sections: of
    these a loader reads nothing, and they are two thirds of an interpreter that was built with
    ``-g``. What is no such file is returned as it is."""
    if not data.startswith(_MAGIC):
        return data
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    end = start + size * count
    for at in range(start, end, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind == _PT_LOAD:
            end = max(end, offset + length)
    # e_shoff, e_shnum and e_shstrndx.
    return b"".join((data[:40], bytes(8), data[48:60], bytes(4), data[64:end]))


def without_preload(loader: bytes) -> bytes:
    """Return a loader that looks for no /etc/ld.so.preload: an image's would be run in the agent,
    or, for another libc, keep it from starting."""
    return loader.replace(_PRELOAD, bytes(len(_PRELOAD)))
