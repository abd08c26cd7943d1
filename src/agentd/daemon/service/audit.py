"""What was done: the audit log, as an admin reads it, and a caller's receipts."""

from collections.abc import Iterator

import msgspec

from agentd.audit import files, read
from agentd.audit.errors import NoLog
from agentd.audit.files import LogFile
from agentd.audit.log import AuditLog
from agentd.audit.receipt import peek
from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun
from agentd.model.api import AuditHead, AuditPage
from agentd.model.errors import InvalidInput, NotFound

MAX_RECORDS = 1000  # of one page
MAX_BYTES = 4 << 20


class DaemonAudit(Noun):
    """Implements ``model.service.Audit``."""

    @observed("audit_head")
    def head(self) -> AuditHead:
        log = self._log()
        found = _files(log.directory)
        head = log.head
        return AuditHead(
            head=str(head or ""),
            first=found[0].first if found else 0,
            damage=log.damage,
            seq=head.seq if head else 0,
            hash=head.hash if head else "",
        )

    @observed("audit_records")
    def records(self, start: int = 1, limit: int = MAX_RECORDS) -> AuditPage:
        log = self._log()
        if not 1 <= limit <= MAX_RECORDS:
            raise InvalidInput(
                f"limit={limit} is out of range", remediation=f"give one from 1 to {MAX_RECORDS}"
            )
        head = log.head
        last = head.seq if head is not None else 0
        lines: list[msgspec.Raw] = []
        size = 0
        for seq, line in _lines(log.directory, max(start, 1), last):
            text = _as_json(line[:-1])
            if len(lines) == limit or (lines and size + len(text) > MAX_BYTES):
                return AuditPage(tuple(lines), seq)
            lines.append(msgspec.Raw(text))
            size += len(text)
        return AuditPage(tuple(lines))

    def _log(self) -> AuditLog:
        self._who.require("admin")
        log = self._parts.control.log
        if not isinstance(log, AuditLog):
            raise TypeError("only a daemon's log is read over REST")
        return log


class DaemonReceipts(Noun):
    """Implements ``model.service.Receipts``."""

    @observed("receipt")
    def get(self, id: str) -> bytes:
        self._who.require("read")
        found = self._parts.control.records.get(id)
        if found is None or not self._who.owns(peek(found).predicate.execution.principal):
            raise NotFound(
                f"there is no receipt {id[:64]!r}",
                remediation="its id is the request's; the oldest are dropped",
            )
        return found

    @observed("receipt_key")
    def key(self) -> str:
        self._who.require("read")
        return self._parts.control.key.public_pem().decode()


def _files(directory: str) -> list[LogFile]:
    """A log that was removed has none: who compares it with its head sees that."""
    try:
        return files.ls(directory)
    except NoLog:
        return []


def _lines(directory: str, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    try:
        yield from read.numbered(directory, first, last)
    except NoLog:
        return


def _as_json(line: bytes) -> bytes:
    """Return it; what is no JSON any more as a text of JSON, which is no record either: as it is
    it would make the whole answer unreadable, or be several of its records."""
    try:
        line.decode()
        msgspec.json.decode(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError and msgspec's are the former
        return msgspec.json.encode(line.decode(errors="replace"))
    return line
