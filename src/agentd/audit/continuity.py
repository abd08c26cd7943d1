"""Whether a log still holds what was written to it, as far as its mark and its receipts know."""

import contextlib
import os
from base64 import b64decode
from datetime import UTC, datetime
from itertools import pairwise

import msgspec

from agentd.audit import files
from agentd.audit.errors import LogDamaged
from agentd.audit.files import LogFile, Mark
from agentd.model import typed
from agentd.model.audit import Event, Kind, Position
from agentd.model.units import counted

WAY_OUT = (
    "put back what was there; or keep it as evidence, stop the daemon, and run "
    "agentd audit accept-loss, which writes the loss down and lets the log go on"
)
_PIECE = 1 << 20
_RECEIPTS_TAIL = 256 << 10
Last = tuple[int, bytes]


def check(directory: str, found: list[LogFile], last: Last, known: Mark | None) -> None:
    """Raises LogDamaged, OSError."""
    if known is None:
        return
    cause = _missing(found, last, known)
    if cause:
        raise LogDamaged(
            f"the audit log {directory} is not as it was written", cause=cause, remediation=WAY_OUT
        )


def check_torn(file: LogFile, fd: int, end: int, size: int) -> None:
    """A writer that dies leaves a line without its end, and a loss of power zeros. A line that is
    whole, and is no record, was changed. Raises LogDamaged, OSError."""
    whole = zeros = False
    while end < size and (data := os.pread(fd, min(_PIECE, size - end), end)):
        whole, zeros, end = whole or b"\n" in data, zeros or b"\0" in data, end + len(data)
    if whole and not zeros:
        raise _changed(
            file, "its last line is whole, and is no record with the hash that it states"
        )


def check_once(file: LogFile, end: int, tail: int) -> None:
    """The last record, which ends at ``end``, may not be there again until ``tail``. Raises
    LogDamaged."""
    if end < tail:
        raise _changed(file, "its last record stands there more than once")


def check_regular(file: LogFile) -> None:
    """Raises LogDamaged where something else has its name."""
    kind = files.irregular(file.path)
    if kind:
        raise LogDamaged(
            f"{file.path} is {kind}, and no file of the audit log",
            cause="something was put in its place",
            remediation=f"move it away, and {WAY_OUT}",
        )


def _changed(file: LogFile, cause: str) -> LogDamaged:
    return LogDamaged(f"the end of {file.path} was changed", cause=cause, remediation=WAY_OUT)


def losses(found: list[LogFile], last: Last, known: Mark | None) -> tuple[list[Event], Last]:
    """Records of all that is gone, and what the chain goes on behind. Raises OSError."""
    owed = []
    if found and known is not None and known.first and found[0].first > known.first:
        seal = files.first_line(found[0])
        before = seal.prev if seal is not None else b""
        owed.append(_loss(known.first, found[0].first - 1, before))
    for older, newer in pairwise(found):
        seal, tail = files.first_line(newer), _tail(older)
        after = tail + 1 if tail else older.first
        if seal is not None and after < newer.first:
            owed.append(_loss(after, newer.first - 1, seal.prev))
    if known is None:
        return owed, last
    if last[0] < known.seq:
        owed.append(_loss(last[0] + 1, known.seq, known.hash.encode()))
        return owed, (known.seq, known.hash.encode())
    if _differs(found, last, known):
        about = {"accepted": _now(), "written_anew": f"{known.seq}:{known.hash}"}
        owed.append(Event(kind=Kind.LOSS, fields=about))
    return owed, last


def _missing(found: list[LogFile], last: Last, known: Mark) -> str:
    """Return what is gone, in words."""
    if last[0] < known.seq:
        return f"its last record is {last[0]}, and record {known.seq} was written"
    if found and known.first and found[0].first > known.first:
        return f"its first record is {found[0].first}, and records from {known.first} on were kept"
    if len(found) < known.files and found[0].first == known.first:
        return f"it has {counted(len(found), 'file')}, and had {known.files}"
    if _differs(found, last, known):
        return f"record {known.seq} has another hash than when it was written"
    return ""


def _differs(found: list[LogFile], last: Last, known: Mark) -> bool:
    have = last[1] if last[0] == known.seq else files.find_hash(found, known.seq)
    # One that receipts alone know of may be retired.
    return have != known.hash.encode() and (have is not None or bool(known.files))


def _tail(file: LogFile) -> int:
    fd = files.open_reading(file.path)
    try:
        tail = files.find_tail(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
    return tail.seal.seq if tail else 0


def _loss(first: int, last: int, digest: bytes) -> Event:
    about = {"accepted": _now(), "first": first, "last": last, "hash": digest.decode()}
    return Event(kind=Kind.LOSS, fields=about)


def _now() -> str:
    return datetime.now(UTC).isoformat()


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
    """Return the record that a receipt names; None of what is no receipt. Its signature is not
    looked at."""
    try:
        record = _statement(b64decode(_envelope(envelope).payload)).predicate.record
    except (msgspec.DecodeError, ValueError):
        return None
    return record.seq, record.hash
