"""The host's end of what is recorded of a sandbox, and of what is replayed to it: files in memory,
of which the terminator is given copies. They are freed with their sandbox.
"""

import contextlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl
from itertools import chain

import msgspec

from agentd.egress.terminator.recording import LEFT_OUT
from agentd.model import typed
from agentd.model.cassette import (
    MAX_CASSETTE,
    MAX_EXCHANGES,
    MAX_VALUES,
    RecordedExchange,
    check_size,
    exchange_of,
    joined,
    line,
    spans_of,
)
from agentd.model.errors import SandboxError

#: One at a time is read: of a large one there are three copies then.
reading = threading.Lock()

_FOR_ENDS = 256  # bytes of a cassette's first and last line
_SIZE = F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL


class CassetteIndex(msgspec.Struct, frozen=True):
    """What the terminator is told of a cassette, which it has no time to read: the place and the
    body's digest of each of ``exchanges``, and where its line begins and ends."""

    exchanges: list[tuple[str, str, int, int]]
    left_out: int


def blank() -> io.FileIO:
    """Return a file to record in, of a size that cannot be changed. Raises SandboxError."""
    file = _file()
    os.ftruncate(file.fileno(), MAX_CASSETTE)
    fcntl(file.fileno(), F_ADD_SEALS, _SIZE)
    return file


def playable(data: bytes) -> tuple[bytes, tuple[tuple[str, int], ...]]:
    """Return what ``CassettePlayer`` reads, and the hosts and ports that were asked. Raises
    InvalidInput for what is no cassette. One exchange at a time is in memory."""
    spans, left_out = spans_of(data)
    entries: list[tuple[str, str, int, int]] = []
    asked: dict[tuple[str, int], None] = {}
    for number, (begin, end) in enumerate(spans, 2):
        each = exchange_of(number, data[begin:end])
        entries.append((each.place, each.body.digest, begin, end))
        asked[each.host, each.port] = None
    index = CassetteIndex(entries, left_out)
    return msgspec.json.encode(index) + b"\n" + data, tuple(asked)


def holding(data: bytes) -> io.FileIO:
    """Return a file with this in it, which nobody can change. Raises SandboxError."""
    file = _file()
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    fcntl(file.fileno(), F_ADD_SEALS, _SIZE | F_SEAL_WRITE)
    return file


@contextlib.contextmanager
def in_memory(cassette: bytes) -> Iterator[str]:
    """Yield a path at which a process of this user's finds it, and no disk has it. Raises
    InvalidInput for what is too large to be one, SandboxError."""
    check_size(cassette)
    with holding(cassette) as file:
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}"


def begun(file: io.FileIO) -> tuple[int, int]:
    """Return the bytes and the lines that were recorded. Where they end is where the file stands:
    the terminator's copy moves with it."""
    data = _recorded(file)
    return len(data), data.count(b"\n")


def recorded(
    file: io.FileIO, size: int | None = None, going_on: Sequence[RecordedExchange] = ()
) -> bytes:
    """Return the cassette of what was recorded, of its first ``size`` bytes or so far, with
    ``going_on`` at its end. What is no exchange was half written by one that died, or is a lie: it
    is counted as left out, as is what finds no room."""
    kept: list[bytes] = []
    left_out, room = 0, MAX_CASSETTE - _FOR_ENDS
    lines = _recorded(file)[:size].split(b"\n")
    for found in filter(None, chain(lines, (line(each).rstrip() for each in going_on))):
        text = found + b"\n"
        try:
            if text == LEFT_OUT or len(kept) == MAX_EXCHANGES or len(text) > room:
                raise ValueError
            if typed.has_more_values(text, MAX_VALUES):
                raise ValueError
            typed.decoder(RecordedExchange).decode(text)
            kept.append(text)
            room -= len(text)
        except ValueError:  # msgspec's are
            left_out += 1
    return joined(kept, left_out)


def _recorded(file: io.FileIO) -> bytes:
    end = min(file.tell(), MAX_CASSETTE)
    found = bytearray()
    while len(found) < end and (piece := os.pread(file.fileno(), end - len(found), len(found))):
        found += piece
    return bytes(found)


def _file() -> io.FileIO:
    try:
        fd = os.memfd_create("agentd-cassette", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise SandboxError("there is no room for a cassette", cause=str(error)) from error
    return io.FileIO(fd, "r+")
