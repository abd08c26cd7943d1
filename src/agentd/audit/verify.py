"""Whether the log is as it was written: every record there, unchanged, in its order.

What lies beside it is a witness, too: the mark of what was written last, and the receipts.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

import msgspec

from agentd.audit import continuity, files, receipts
from agentd.audit.errors import AuditError, NoLog
from agentd.audit.files import LogFile
from agentd.audit.record import GENESIS, MAX_LINE, TAIL, decode, unseal
from agentd.model.audit import Kind, Position

MAX_PROBLEMS = 100
_CHUNK = 1 << 20
_TORN_WAITS = 5  # of a line that a writer is in the middle of
_TORN_SECONDS = 0.02
_HASH = re.compile(rb"[0-9a-f]{64}")
_TOLD = tuple(b'"kind":"%b",' % kind.encode() for kind in (Kind.RETIRED, Kind.CUT, Kind.LOSS))
_ONE = LogFile("", 1)  # a log that is read from elsewhere has no files


class LogProblem(msgspec.Struct, frozen=True):
    """``line`` counts from 1; ``seq`` is the number that the record there has, or should have.

    ``kind`` is "removed", "changed", "reordered", "duplicated", "truncated", "unknown_head" or
    "receipt".
    """

    file: str
    line: int
    seq: int
    kind: str
    message: str


class Note(msgspec.Struct, frozen=True):
    """A record that the log has about itself: a "cut" or a "loss", in record ``seq``."""

    seq: int
    kind: str
    message: str


class LogVerdict(msgspec.Struct, frozen=True):
    """``retired`` is the last sequence number that was deleted as configured; ``head`` the last
    record's place; ``receipts`` were compared. ``problems`` and ``notes`` are the first hundred."""

    ok: bool
    records: int
    files: int
    retired: int
    head: Position | None
    problems: tuple[LogProblem, ...] = ()
    notes: tuple[Note, ...] = ()
    receipts: int = 0


def verify(directory: str, head: Position | None = None) -> LogVerdict:
    """Reads all of it. ``head`` is a record's place that was kept elsewhere: where the log does not
    have it, its end was cut off or written anew. Raises NoLog where there is none, AuditError where
    it cannot be read."""
    known = files.read_mark(directory)  # before the log: a daemon may be writing
    beside = _receipts(directory)
    found = files.ls(directory)
    if not found or not any(map(_has_bytes, found)):
        raise no_log(directory)
    walk = _Walk(head, beside)
    if known is not None:
        walk.known = Position(known.seq, known.hash)
        beside.setdefault(known.seq, known.hash)
    for file in found:
        walk.file(file, last=file is found[-1])
    return walk.verdict(len(found))


def verify_lines(lines: Iterable[bytes], head: Position | None = None) -> LogVerdict:
    """Of a log that is read from elsewhere: its lines from the oldest that is kept on."""
    walk = _Walk(head, {})
    walk.lines(lines)
    return walk.verdict(0)


def no_log(directory: str) -> NoLog:
    if _receipts(directory):
        cause = "there are receipts beside it, and no records: they were removed"
    else:
        cause = "no audit-*.jsonl with a record is in it"
    return NoLog(f"no audit log here: {directory}", cause=cause, remediation=files.NAME_IT)


def _has_bytes(file: LogFile) -> bool:
    try:
        fd = files.open_reading(file.path)
    except OSError as error:
        raise files.unreadable(file.path, error) from error
    try:
        return os.fstat(fd).st_size > 0
    finally:
        os.close(fd)


def _receipts(directory: str) -> dict[int, str]:
    """Return the hashes of the records that the receipts beside the log name, by their numbers."""
    beside = os.path.join(os.path.dirname(os.path.abspath(directory)), "receipts")
    try:
        lines = receipts.every_line(beside)
        return dict(
            filter(None, (continuity.position_in(line.partition(b" ")[2]) for line in lines))
        )
    except OSError:  # there are none, or they are another's
        return {}


class _Walk:
    def __init__(self, head: Position | None, beside: dict[int, str]) -> None:
        self._head = head
        self._head_hash: bytes | None = None  # of the record with the head's number
        self._beside = beside
        self._receipts = len(beside)
        self.known: Position | None = None  # what was written last, as the mark says
        self._accepted: dict[int, str] = {}  # losses that somebody has accepted, by their ends
        self._lost: list[tuple[int, int]] = []  # what went with those
        self._gaps: list[tuple[int, str, LogProblem]] = []
        self._notes: list[Note] = []
        self._seq, self._prev = 0, GENESIS
        self._start = (0, GENESIS, "")  # what the first record says is before it, and its file
        self._retired = (0, GENESIS)
        self._records = 0
        self._problems: list[LogProblem] = []

    def file(self, file: LogFile, *, last: bool) -> None:
        number, begun = 0, False
        for line in _lines(file, retry=last):
            if not begun:
                begun = True
                self._begin(file, line)
            number = self._line(file, number + 1, line)
        # A writer that died after it had made a new file leaves that one empty.
        if not begun and not (last and file.first == self._seq + 1):
            self._problem(file, 1, file.first, "truncated", "the file is empty")

    def lines(self, lines: Iterable[bytes]) -> None:
        number = 0
        for line in lines:
            if number == 0 and (seal := unseal(line)) is not None:
                self._seq, self._prev = seal.seq - 1, seal.prev
                self._start = (self._seq, self._prev, "")
            number = self._line(_ONE, number + 1, line)

    def verdict(self, count: int) -> LogVerdict:
        self._check_start()
        self._check_known()
        for last, digest, problem in self._gaps:
            if self._accepted.get(last) != digest and len(self._problems) < MAX_PROBLEMS:
                self._problems.append(problem)
        self._check_head()
        self._check_receipts()
        head = Position(self._seq, self._prev.decode()) if self._records else None
        return LogVerdict(
            not self._problems,
            self._records,
            count,
            self._retired[0],
            head,
            tuple(self._problems),
            tuple(self._notes),
            self._receipts,
        )

    def _check_known(self) -> None:
        known = self.known
        if known is not None and known.seq > self._seq:
            self._beside.pop(known.seq, "")
            text = f"records {self._seq + 1} to {known.seq} were written, and are gone"
            gone = LogProblem("", 0, known.seq, "truncated", text)
            self._gaps.append((known.seq, known.hash, gone))

    def _check_receipts(self) -> None:
        """Compare the receipts with their records; those of retired ones cannot be."""
        for seq in self._beside:
            lost = any(first <= seq <= last for first, last in self._lost)
            if seq > self._retired[0] and not lost:
                text = "a receipt beside the log names it, and it is not here"
                self._problem_at("", 0, seq, "receipt", text)

    def _begin(self, file: LogFile, line: bytes) -> None:
        """The name says what a file begins with; the first one's beginning may be retired."""
        seal = unseal(line)
        if seal is not None and seal.seq != file.first:
            text = f"the file's name says {file.first}, its first record is {seal.seq}"
            self._problem(file, 1, seal.seq, "removed", text)
        if self._records == 0 and self._seq == 0:
            if seal is not None:
                self._seq, self._prev = seal.seq - 1, seal.prev
            else:
                self._seq = file.first - 1
            self._start = (self._seq, self._prev, file.name)

    def _line(self, file: LogFile, number: int, line: bytes) -> int:
        """The hot path: nothing is decoded where all is well."""
        seq = self._seq + 1
        start = b'{"seq":%d,"prev":"%b",' % (seq, self._prev)
        digest = sha256(line[: -TAIL - 1]).hexdigest().encode()
        if not line.startswith(start) or line[-TAIL - 1 :] != b',"hash":"%b"}\n' % digest:
            self._diagnose(file, number, line)
        else:
            self._seq, self._prev = seq, digest
            self._records += 1
            if line.startswith(_TOLD, len(start)):
                self._tell(line)
            if seq in self._beside and self._beside.pop(seq) != digest.decode():
                text = "it is another than what lies beside the log names"
                self._problem(file, number, seq, "receipt", text)
        head = self._head
        if head is not None and self._seq == head.seq and self._head_hash is None:
            self._head_hash = self._prev
        return number

    def _tell(self, line: bytes) -> None:
        try:
            record = decode(line)
        except AuditError:  # nobody but a forger writes such a record: it tells nothing
            return
        fields: Any = record.fields
        if record.kind != Kind.RETIRED and len(self._notes) < MAX_PROBLEMS:
            words = ", ".join(f"{name} {value}" for name, value in fields.items())
            self._notes.append(Note(record.seq, record.kind, words))
        last, digest = fields.get("last"), fields.get("hash")
        if not isinstance(last, int) or not isinstance(digest, str):
            return
        if record.kind == Kind.LOSS:
            self._accepted[last] = digest
            first = fields.get("first")
            self._lost.append((first if isinstance(first, int) else last, last))
        elif last > self._retired[0]:
            self._retired = (last, digest.encode())

    def _diagnose(self, file: LogFile, number: int, line: bytes) -> None:
        """Say what is wrong, and go on from what the line claims to be."""
        expected = self._seq + 1
        if not line.endswith(b"\n"):
            text = "it has no end: the writer died, or the file was cut short"
            self._problem(file, number, expected, "truncated", text)
            return
        seal = unseal(line)
        if seal is None:
            text = "it is no record with the hash that it states"
            self._problem(file, number, expected, "changed", text)
            self._skip(line)
            return
        if seal.seq > expected:
            text = f"{seal.seq - expected} records from {expected} on are missing before it"
            gone = LogProblem(file.name, number, seal.seq, "removed", text)
            self._gaps.append((seal.seq - 1, seal.prev.decode(), gone))
        elif seal.seq < expected:
            same = seal.seq == expected - 1 and seal.hash == self._prev
            kind = "duplicated" if same else "reordered"
            text = f"record {expected} should stand here"
            self._problem(file, number, seal.seq, kind, text)
        else:
            text = "the record before it is another than when it was written"
            self._problem(file, number, seal.seq, "changed", text)
        self._seq, self._prev = seal.seq, seal.hash
        self._records += 1
        if any(told in line for told in _TOLD):
            self._tell(line)  # behind a gap stands what tells of it

    def _skip(self, line: bytes) -> None:
        # What it states itself, so that the next record is not called wrong for it.
        stated = line[-67:-3]
        if line.startswith(b'{"seq":%d,' % (self._seq + 1)) and _HASH.fullmatch(stated):
            self._seq, self._prev = self._seq + 1, stated

    def _check_start(self) -> None:
        before, prev, name = self._start
        last, digest = self._retired
        if before > last or (before == last and before and prev != digest):
            text = f"records up to {before} are gone, and none says that they were retired"
            gone = LogProblem(name, 1, before, "removed", text)
            self._gaps.append((before, prev.decode(), gone))
        elif before == 0 and prev != GENESIS:
            self._problem_at(name, 1, 1, "changed", "the first record does not begin a log")

    def _check_head(self) -> None:
        head = self._head
        if head is None:
            return
        if head.seq > self._seq:
            text = f"records {self._seq + 1} to {head.seq} are gone from its end"
            self._problem_at("", 0, head.seq, "truncated", text)
            return
        known = self._head_hash
        if known is None and head.seq == self._retired[0]:
            known = self._retired[1]
        if known is None:
            text = "the record is not here any more, so it cannot be compared"
            self._problem_at("", 0, head.seq, "unknown_head", text)
        elif known.decode(errors="replace") != head.hash:
            text = f"its hash was {head.hash}: the log was written anew"
            self._problem_at("", 0, head.seq, "changed", text)

    def _problem(self, file: LogFile, line: int, seq: int, kind: str, message: str) -> None:
        self._problem_at(file.name, line, seq, kind, message)

    def _problem_at(self, file: str, line: int, seq: int, kind: str, message: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(LogProblem(file, line, seq, kind, message))


def _lines(file: LogFile, *, retry: bool) -> Iterator[bytes]:
    """Yield lines with their newlines; one that is too long, or the last without, in pieces."""
    try:
        fd = files.open_reading(file.path)
    except OSError as error:
        raise files.unreadable(file.path, error) from error
    try:
        rest, waits = b"", _TORN_WAITS if retry else 0
        while True:
            data = os.read(fd, _CHUNK)
            if not data:
                if not rest:
                    return
                if not waits:
                    yield rest
                    return
                waits -= 1
                time.sleep(_TORN_SECONDS)
                continue
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield line + b"\n"
            if len(rest) > MAX_LINE:
                yield rest
                rest = b""
    except OSError as error:
        raise files.unreadable(file.path, error) from error
    finally:
        os.close(fd)
