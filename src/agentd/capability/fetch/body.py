"""A response's body: decoded, and bounded both as it comes and as it is after that."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from agentd.model.capability import CallFailed

# What gzip and deflate can add to data that does not compress, with room.
_OVERHEAD = 64 << 10
_PIECE = 64 << 10


# Members of one gzip body. Each costs a copy of what was read with it.
_MAX_MEMBERS = 1000


class Decoder(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]: ...
    def end(self) -> None:
        """Raises CallFailed where it is cut short."""


class Plain:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def end(self) -> None:
        """Nothing tells: HTTP has its length."""


class Inflate:
    """Pieces of at most 64 KiB: a kilobyte of input may stand for a megabyte. Raises CallFailed."""

    def __init__(self, *, gzip: bool) -> None:
        self._stream = zlib.decompressobj(31 if gzip else 15)
        self._raw_too = not gzip
        self._begun = False
        self._members = 1 if gzip else 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        while not self._stream.eof or self._goes_on(data):
            made = self._decompress(data)
            data = self._stream.unused_data or self._stream.unconsumed_tail
            if made:
                yield made
            # It may have taken all of the input in, and not all of the output out.
            if not data and len(made) < _PIECE:
                return

    def end(self) -> None:
        if self._begun and not self._stream.eof:
            raise _broken("it ends too early")

    def _goes_on(self, data: bytes) -> bool:
        """Return whether another member of a gzip file begins (RFC 1952, section 2.2); what else
        comes behind its end is padding, or nothing that programs look at."""
        if not self._members or data[:1] != b"\x1f":
            self._members = self._members if not data else 0
            return False
        self._members += 1
        if self._members > _MAX_MEMBERS:
            raise _broken(f"it has over {_MAX_MEMBERS} members")
        self._stream = zlib.decompressobj(31)
        return True

    def _decompress(self, data: bytes) -> bytes:
        try:
            made = self._stream.decompress(data, _PIECE)
        except zlib.error as error:
            if not self._raw_too or self._begun:
                raise _broken(str(error)) from None
            # Many servers call deflate what has no zlib header.
            self._raw_too, self._stream = False, zlib.decompressobj(-15)
            return self._decompress(data)
        self._begun = True
        return made


def _broken(cause: str) -> CallFailed:
    return CallFailed("bad_response", "the server's compressed body is broken", cause=cause)


def decoder(encoding: str) -> Decoder | None:
    """Return its decoder; None for an encoding that is not undone here: it is given as it came."""
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return Plain()
    if name in {"gzip", "x-gzip"}:
        return Inflate(gzip=True)
    return Inflate(gzip=False) if name == "deflate" else None


def read(
    chunks: Iterable[bytes], decode: Decoder, most: int, emit: Callable[[bytes], None]
) -> tuple[bytes, bool]:
    """Read at most ``most`` decoded bytes, sent to ``emit`` as they come; tell whether there is
    more."""
    body = bytearray()
    wire = most + _OVERHEAD
    for chunk in chunks:
        for piece in decode.feed(chunk):
            kept = piece[: most - len(body)]
            body += kept
            if kept:
                emit(bytes(kept))
            if len(kept) < len(piece):
                return bytes(body), True
        wire -= len(chunk)
        if wire < 0:  # empty blocks without end decode to nothing
            return bytes(body), True
    decode.end()
    return bytes(body), False
