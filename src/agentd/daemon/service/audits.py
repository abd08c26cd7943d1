"""The audit log as an admin reads it from afar."""

import msgspec

from agentd.audit import files, read
from agentd.audit.log import AuditLog
from agentd.daemon.admission.control import AdmissionControl
from agentd.model import typed
from agentd.model.api import AuditHead
from agentd.model.errors import InvalidInput
from agentd.model.principal import Principal

MAX_RECORDS = 1000  # of one page
MAX_BYTES = 4 << 20


class Page(msgspec.Struct, frozen=True):
    """An AuditPage whose records are the lines themselves."""

    records: list[msgspec.Raw]
    next: int | None = None


class Audits:
    """Thread-safe."""

    def __init__(self, control: AdmissionControl) -> None:
        self._control = control

    def head(self, who: Principal) -> AuditHead:
        who.require("admin")
        log = _log_of(self._control)
        found = files.ls(log.directory)
        head = log.head
        return AuditHead(
            head=str(head or ""),
            first=found[0].first if found else 0,
            damage=log.damage,
            seq=head.seq if head else 0,
            hash=head.hash if head else "",
        )

    def records(self, who: Principal, first: int, limit: int) -> Page:
        """From record ``first`` on. Raises InvalidInput, AuditError."""
        who.require("admin")
        if not 1 <= limit <= MAX_RECORDS:
            raise InvalidInput(
                f"limit={limit} is out of range", remediation=f"give one from 1 to {MAX_RECORDS}"
            )
        log = _log_of(self._control)
        head = log.head
        last = head.seq if head is not None else 0
        lines: list[msgspec.Raw] = []
        size = 0
        for line in read.lines(log.directory, max(first, 1), last):
            if len(lines) == limit or size + len(line) > MAX_BYTES:
                return Page(lines, _seq(line))
            lines.append(msgspec.Raw(line[:-1]))
            size += len(line)
        return Page(lines)


class _Numbered(msgspec.Struct):
    seq: int


def _seq(line: bytes) -> int:
    return typed.decoder(_Numbered).decode(line).seq


def _log_of(control: AdmissionControl) -> AuditLog:
    log = control.log
    if not isinstance(log, AuditLog):
        raise TypeError("only a daemon's log is read over REST")
    return log
