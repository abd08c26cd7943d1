"""Whether the log is as it was written: every record there, unchanged, in its order."""

import os
import re
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import msgspec

from agentd.audit import files
from agentd.audit.errors import AuditError
from agentd.audit.files import File
from agentd.audit.record import GENESIS, MAX_LINE, TAIL, decode, position, unseal
from agentd.model.audit import Kind, Position

MAX_PROBLEMS = 100
_CHUNK = 1 << 20
_TORN_WAITS = 5  # of a line that a writer is in the middle of
_TORN_SECONDS = 0.02
_HASH = re.compile(rb"[0-9a-f]{64}")
_RETIRED = b'"kind":"%b",' % Kind.RETIRED.encode()


class Problem(msgspec.Struct, frozen=True):
    """``line`` counts from 1; ``seq`` is the number that the record there has, or should have.

    ``kind`` is "removed", "changed", "reordered", "duplicated", "truncated" or "unknown_head".
    """

    file: str
    line: int
    seq: int
    kind: str
    message: str


class Verdict(msgspec.Struct, frozen=True):
    """``retired`` is the last sequence number that was deleted as configured; ``head`` the last
    record's place. ``problems`` are the first hundred."""

    ok: bool
    records: int
    files: int
    retired: int
    head: Position | None
    problems: tuple[Problem, ...] = ()


def verify(directory: str, head: Position | None = None) -> Verdict:
    """Reads all of it. ``head`` is a record's place that was kept elsewhere: where the log does not
    have it, its end was cut off or written anew. Raises AuditError where it cannot be read."""
    walk = _Walk(head)
    found = files.ls(directory)
    for file in found:
        walk.file(file, last=file is found[-1])
    return walk.verdict(len(found))


class _Walk:
    def __init__(self, head: Position | None) -> None:
        self._head = head
        self._head_hash: bytes | None = None  # of the record with the head's number
        self._seq, self._prev = 0, GENESIS
        self._start = (0, GENESIS, "")  # what the first record says is before it, and its file
        self._retired = (0, GENESIS)
        self._records = 0
        self._problems: list[Problem] = []

    def file(self, file: File, *, last: bool) -> None:
        number, begun = 0, False
        for line in _lines(file, retry=last):
            if not begun:
                begun = True
                self._begin(file, line)
            number = self._line(file, number + 1, line)
        # A writer that died after it had made a new file leaves that one empty.
        if not begun and not (last and file.first == self._seq + 1):
            self._problem(file, 1, file.first, "truncated", "the file is empty")

    def verdict(self, count: int) -> Verdict:
        self._check_start()
        self._check_head()
        last = position(self._seq, self._prev) if self._records else None
        problems = tuple(self._problems[:MAX_PROBLEMS])
        return Verdict(not problems, self._records, count, self._retired[0], last, problems)

    def _begin(self, file: File, line: bytes) -> None:
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

    def _line(self, file: File, number: int, line: bytes) -> int:
        """The hot path: nothing is decoded where all is well."""
        seq = self._seq + 1
        start = b'{"seq":%d,"prev":"%b",' % (seq, self._prev)
        digest = sha256(line[: -TAIL - 1]).hexdigest().encode()
        if not line.startswith(start) or line[-TAIL - 1 :] != b',"hash":"%b"}\n' % digest:
            self._diagnose(file, number, line)
        else:
            self._seq, self._prev = seq, digest
            self._records += 1
            if line.startswith(_RETIRED, len(start)):
                self._retire(line)
        head = self._head
        if head is not None and self._seq == head.seq and self._head_hash is None:
            self._head_hash = self._prev
        return number

    def _retire(self, line: bytes) -> None:
        try:
            fields: Any = decode(line).fields
        except AuditError:  # nobody but a forger writes such a record: it retires nothing
            return
        last, digest = fields.get("last"), fields.get("hash")
        if isinstance(last, int) and isinstance(digest, str) and last > self._retired[0]:
            self._retired = (last, digest.encode())

    def _diagnose(self, file: File, number: int, line: bytes) -> None:
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
            self._problem(file, number, seal.seq, "removed", text)
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
            self._problem_at(name, 1, before, "removed", text)
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

    def _problem(self, file: File, line: int, seq: int, kind: str, message: str) -> None:
        self._problem_at(file.name, line, seq, kind, message)

    def _problem_at(self, file: str, line: int, seq: int, kind: str, message: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(file, line, seq, kind, message))


def _lines(file: File, *, retry: bool) -> Iterator[bytes]:
    """With their newlines; one that is too long, or the last without, in pieces."""
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
