"""What a process began and was killed in, a daemon or not: ended in the log by the next one."""

import sys
import time
from collections.abc import Set
from datetime import datetime

from agentd.audit import unended, writers
from agentd.audit.log import AuditLog
from agentd.audit.receipt import Decided, Execution
from agentd.daemon.admission.records import Records
from agentd.daemon.commands.ends import INTERRUPTED
from agentd.model.audit import Record

_DECIDED = Decided(True, "", ("decided before the daemon was started again",))


def end_dead(state: str, log_directory: str, records: Records, now: float) -> int:
    """End what processes that died, and that no daemon was between, left without an end: return how
    many.

    ``state`` is where they are told from the living. Raises AuditError.
    """
    with writers.dead(state) as dead:
        if not dead:
            return 0
        found = unended.find(log_directory, min(dead.values()) + 1, sys.maxsize)
        left = [start for start in found.starts if start.fields.get(writers.FIELD) in dead]
        for start in left:
            has_receipt = start.fields.get("receipt") is not False
            records.interrupted(_execution(start, now), has_receipt=has_receipt)
        return len(left)


class Before:
    """Reads what the previous daemon left open in the log, before new executions begin."""

    def __init__(self, log: AuditLog, records: Records) -> None:
        """Raises AuditError."""
        self._log = log
        self._records = records
        head = log.head  # the record by which it was opened, or one behind that
        self._opened = head.seq if head is not None else 0
        found = unended.find(log.directory, log.swept or 1, self._opened)
        self._starts, self.ended, self.sandboxes_ended, self.asked = found

    def started(self, sandbox: str) -> list[tuple[str, str]]:
        """Return what goes on without its daemon and has no end: (request, process) of each."""
        return [
            (start.request, str(start.fields["process"]))
            for start in self._starts
            if start.sandbox == sandbox and "process" in start.fields
        ]

    def end(self, going: Set[str], now: float) -> int:
        """End all but ``going``, requests whose commands live on, the next daemon's where we end
        before them: how many. Raises AuditError."""
        count, oldest = 0, self._opened
        for start in self._starts:
            if start.request in going:
                oldest = min(oldest, start.seq)
                continue
            self._end(start, now)
            count += 1
        self._log.sweep(oldest)
        return count

    def end_one(self, request: str) -> None:
        """End one that went on. Raises AuditError."""
        for start in self._starts:
            if start.request == request:
                self._end(start, time.time())

    def _end(self, start: Record, now: float) -> None:
        has_receipt = start.fields.get("receipt") is not False
        self._records.interrupted(_execution(start, now), has_receipt=has_receipt)


def _execution(start: Record, now: float) -> Execution:
    return Execution(
        principal=start.principal,
        request=start.request,
        request_digest="",
        sandbox=start.sandbox,
        capability=start.capability,
        decision=_DECIDED,
        backend="",
        level="",
        outputs={},
        cause=INTERRUPTED,
        started=datetime.fromisoformat(start.time).timestamp(),
        ended=now,
    )
