"""Compressed kernels and modules: how they are packed, told by their first bytes."""

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable

_LZ4_BLOCK = 8 << 20  # bytes of a legacy frame's block when unpacked (lz4_Frame_format.md)


class Damaged(Exception):
    """The text says what is wrong."""


class Unknown(Exception):
    """The file's first bytes are of no known compression."""


def unpacked(data: bytes, most: int) -> bytes:
    """Return at most ``most`` bytes of what ``data`` holds. Raises Damaged, Unknown."""
    for magic, method in _METHODS.items():
        if data.startswith(magic):
            return _bounded(method, data, most)
    raise Unknown(f"it begins {data[:4].hex()}")


def _bounded(method: Callable[[bytes, int], bytes], data: bytes, most: int) -> bytes:
    try:
        return method(data, most)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise Damaged(str(error)) from error


def _gzip(data: bytes, most: int) -> bytes:
    return zlib.decompressobj(31).decompress(data, most)


def _bzip2(data: bytes, most: int) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, most)


def _xz(data: bytes, most: int) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data, most)


def _lzma(data: bytes, most: int) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data, most)


def _zstd(data: bytes, most: int) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            return reader.read(most)
    except zstandard.ZstdError as error:
        raise Damaged(str(error)) from error


def _lz4(data: bytes, most: int) -> bytes:
    """The legacy frame, which lz4(1) -l writes and lz4.frame does not read: blocks, each after its
    length."""
    import lz4.block  # type: ignore[import-untyped]  # it has no stubs

    found, at = bytearray(), 4
    while at < len(data) and len(found) < most:
        (length,) = struct.unpack_from("<I", data, at) if at + 4 <= len(data) else (0,)
        at += 4
        block = data[at : at + length]
        if len(block) != length or not block:
            raise Damaged("a block is cut off")
        try:
            found += lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK)
        except lz4.block.LZ4BlockError as error:
            raise Damaged(str(error)) from error
        at += length
    return bytes(found[:most])


_METHODS = {
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x1f\x8b": _gzip,
    b"\xfd7zXZ\0": _xz,
    b"\x02\x21\x4c\x18": _lz4,
    b"\x5d\0\0": _lzma,
    b"BZh": _bzip2,
}
