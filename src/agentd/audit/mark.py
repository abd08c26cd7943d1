"""What a log held when it was last written to, kept beside its directory: ``DIRECTORY.head``.

A log that was cut off, or whose files are gone, looks like a shorter one. The mark tells. It is
written after what it tells of is on disk, so it never knows more than the log; whoever may write
the log may write the mark, too: for those a head that is kept elsewhere is the witness.
"""

import contextlib
import os
from base64 import b64decode
from binascii import Error as NoBase64

import msgspec

from agentd.model import typed
from agentd.model.audit import Position

_BYTES = 256  # one write, in one sector
_RECEIPTS_TAIL = 256 << 10


class Mark(msgspec.Struct, frozen=True):
    """Record ``seq`` with ``hash`` was the last; ``first`` began the oldest of ``files`` files.
    Executions that began before ``swept`` have ended."""

    first: int
    files: int
    seq: int
    hash: str
    swept: int = 0


_decode = typed.decoder(Mark).decode


def path(directory: str) -> str:
    return f"{directory.rstrip('/')}.head"


def read(directory: str) -> Mark | None:
    """Read it; None where there is none, or one that a loss of power has torn."""
    try:
        fd = os.open(path(directory), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _decode(os.pread(fd, _BYTES, 0).strip(b" \n\0"))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    finally:
        os.close(fd)


class MarkWriter:
    """Keeps the file open. What cannot be written leaves the mark older, and is no error."""

    def __init__(self, directory: str) -> None:
        self._path = path(directory)
        self._fd = -1

    def write(self, mark: Mark) -> None:
        with contextlib.suppress(OSError):
            if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
                self.close()
            if self._fd < 0:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o600)
            os.pwrite(self._fd, msgspec.json.encode(mark).ljust(_BYTES - 1) + b"\n", 0)

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def of_receipts(directory: str) -> Mark | None:
    """Return what the newest of the receipts beside the log name: for one that has no mark yet."""
    from agentd.audit import receipts

    beside = os.path.join(os.path.dirname(directory.rstrip("/")), "receipts")
    last = (0, "")
    with contextlib.suppress(OSError):
        number = receipts.newest(beside)
        for line in receipts.newest_lines(beside, number, _RECEIPTS_TAIL) if number else ():
            last = max(last, position_in(line.partition(b" ")[2]) or last)
    return Mark(0, 0, *last) if last[0] else None


class _Predicate(msgspec.Struct):
    record: Position


class _Statement(msgspec.Struct):
    predicate: _Predicate


class _Envelope(msgspec.Struct):
    payload: str


_envelope = typed.decoder(_Envelope).decode
_statement = typed.decoder(_Statement).decode


def position_in(envelope: bytes) -> tuple[int, str] | None:
    """The record that a receipt names; None of what is no receipt. Its signature is not looked
    at."""
    try:
        record = _statement(b64decode(_envelope(envelope).payload)).predicate.record
    except (msgspec.DecodeError, UnicodeDecodeError, NoBase64, ValueError):
        return None
    return record.seq, record.hash
