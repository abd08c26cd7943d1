"""Compression of records: zstd where its package is installed, else zlib."""

import zlib
from typing import Any

from agentd.model.install import command


def _load() -> Any:
    try:
        import zstandard
    except ImportError:  # an extra
        return None
    return zstandard


_zstd = _load()
RAW, ZLIB, ZSTD = 0, 1, 2
_LEVEL = 1
_FAST = -5  # half as small and half as long, for output that comes as fast as we can take it
_WORTH = 128  # bytes; shorter ones are stored as they are
_MAX_IDLE = 4  # a compressor holds about a megabyte
_compressors: dict[int, list[Any]] = {_LEVEL: [], _FAST: []}
_decompressors: list[Any] = []


class CodecError(Exception):
    """The bytes are not what was compressed."""


def compress(data: bytes, fast: bool = False) -> tuple[int, bytes]:
    """Returns the codec, and the bytes to store; never longer than ``data``."""
    if len(data) < _WORTH:
        return RAW, data
    if _zstd is None:
        codec, packed = ZLIB, zlib.compress(data, _LEVEL)
    else:
        # Not thread-safe each: one is taken, used, and put back (both are atomic).
        level = _FAST if fast else _LEVEL
        idle = _compressors[level]
        try:
            tool = idle.pop()
        except IndexError:
            tool = _zstd.ZstdCompressor(level=level)
        codec, packed = ZSTD, tool.compress(data)
        if len(idle) < _MAX_IDLE:
            idle.append(tool)
    return (codec, packed) if len(packed) < len(data) else (RAW, data)


def decompress(codec: int, packed: bytes, length: int) -> bytes:
    """Never makes much more than ``length`` bytes. Raises CodecError."""
    try:
        if codec == RAW:
            data = packed
        elif codec == ZLIB:
            data = zlib.decompressobj().decompress(packed, length + 1)
        elif codec == ZSTD and _zstd is not None:
            data = _unzstd(packed, length)
        else:
            raise CodecError(f"codec {codec} is not installed here: {command('zstandard')}")
    except zlib.error as error:
        raise CodecError(str(error)) from error
    if len(data) != length:
        raise CodecError(f"{len(data)} bytes instead of {length}")
    return data


def _unzstd(packed: bytes, length: int) -> bytes:
    try:
        # The frame says its size: one that claims more is not even begun.
        if _zstd.frame_content_size(packed) != length:
            raise CodecError("another length")
        try:
            tool = _decompressors.pop()
        except IndexError:
            tool = _zstd.ZstdDecompressor()
        data: bytes = tool.decompress(packed)
    except _zstd.ZstdError as error:
        raise CodecError(str(error)) from error
    if len(_decompressors) < _MAX_IDLE:
        _decompressors.append(tool)
    return data
