"""Executions and approvals whose start is in the log, and whose end is not; and sandboxes that have
ended."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from agentd.audit import files, read
from agentd.audit.record import decode
from agentd.model import typed
from agentd.model.audit import Kind, Record

# How much of the log is looked through at most, the newest of it.
MAX_BYTES = 1 << 30
_KIND = 96  # characters that a record's kind stands in: behind its number and a hash
_OVER = (Kind.APPROVAL_DECIDED, Kind.APPROVAL_EXPIRED)
_LINES = tuple(
    b'"kind":"%b",' % kind.encode()
    for kind in (Kind.START, Kind.END, Kind.SANDBOX_ENDED, Kind.APPROVAL_ASKED, *_OVER)
)


class Unended(NamedTuple):
    """The starts of those that have not ended, the oldest first, the requests of ends, the
    sandboxes that have ended, and what was asked of approvers and is neither decided nor expired.
    """

    starts: list[Record]
    ended: set[str]
    sandboxes: set[str]
    asked: list[Record]


class _Fields(msgspec.Struct, frozen=True):
    approval: Any = ""


class _Of(msgspec.Struct):
    kind: str
    request: str = ""
    sandbox: str = ""
    fields: _Fields = _Fields()


_of = typed.decoder(_Of).decode


def find(directory: str, first: int, last: int) -> Unended:
    """Find those from record ``first`` to ``last``. Raises AuditError."""
    ended: set[str] = set()
    sandboxes: set[str] = set()
    asked: dict[object, bytes] = {}
    open_: dict[str, list[bytes]] = {}
    for line in _lines(directory, first, last):
        try:
            known = _of(line)
        except msgspec.DecodeError:  # verify says so
            continue
        if known.kind == Kind.START:
            open_.setdefault(known.request, []).append(line)
            continue
        if known.kind == Kind.SANDBOX_ENDED:
            sandboxes.add(known.sandbox)
            continue
        if known.kind == Kind.APPROVAL_ASKED:
            asked[known.fields.approval] = line
            continue
        if known.kind in _OVER:
            asked.pop(known.fields.approval, None)
            continue
        ended.add(known.request)
        if found := open_.get(known.request):
            found.pop(0)
            if not found:
                del open_[known.request]
    starts = [decode(line) for lines in open_.values() for line in lines]
    starts.sort(key=lambda record: record.seq)
    return Unended(starts, ended, sandboxes, [decode(line) for line in asked.values()])


def _lines(directory: str, first: int, last: int) -> Iterator[bytes]:
    begin = max(first, _newest(directory))
    for line in read.lines(directory, begin, last):
        start = line[: 2 * _KIND]
        if any(kind in start for kind in _LINES):
            yield line


def _newest(directory: str) -> int:
    """Return the number of the record that begins the newest MAX_BYTES, whole files of them."""
    first, size = 1, 0
    for file in reversed(files.ls(directory)):
        try:
            size += os.stat(file.path).st_size
        except FileNotFoundError:  # retired meanwhile
            break
        if size > MAX_BYTES:
            break
        first = file.first
    return first
