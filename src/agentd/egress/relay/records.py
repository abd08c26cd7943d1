"""What the host is told of connections: once when one lasts, once when it has ended, in batches.

Denials of the same thing are told once, and then counted. Nothing here waits: what the host does
not take in time is dropped, oldest first, and counted.
"""

import contextlib
import json
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentd.egress.relay.loop import EventLoop

if TYPE_CHECKING:
    from agentd.egress.relay.tenant import Tenant

FLUSH_SECONDS = 0.05
_MOST = 4096  # that wait for a host that does not take them
_BATCH = 128  # in a message
MAX_MESSAGE = 160 << 10  # what a SEQPACKET socket takes with the usual buffers
_MOST_DENIALS = 256  # different ones a sandbox; beyond that they are only counted

Row = dict[str, object]


class Reports:
    """Sends rows to the host over the control socket, which the caller owns."""

    def __init__(self, loop: EventLoop, control: socket.socket) -> None:
        self._loop = loop
        self._control = control
        self._rows: deque[Row] = deque()
        self._lost = 0
        self._armed = False
        self._open: dict[int, Callable[[], Row]] = {}
        self._repeats: dict[int, Tenant] = {}

    def opened(self, n: int, row: Callable[[], Row]) -> None:
        """``row`` is asked for where the connection still lives at the next batch."""
        self._open[n] = row
        self._arm()

    def ended(self, n: int, row: Row) -> None:
        self._open.pop(n, None)
        self._add(row)

    def denied(self, tenant: "Tenant", key: tuple[object, ...], row: Row) -> None:
        if key not in tenant.denials and len(tenant.denials) < _MOST_DENIALS:
            tenant.denials.add(key)
            self._add(row)
            return
        tenant.repeats += 1
        self._repeats[tenant.id] = tenant
        self._arm()

    def named(self, tenant: "Tenant", name: str) -> None:
        """A name has an address now, and is told so next: should we die then, the next relay has to
        know, so the host is told before."""
        row: Row = {"sandbox": tenant.id, "named": name}
        try:
            self._send({"rows": [row], "lost": 0})
        except OSError:
            self._add(row)

    def failed(self, sandbox: int, why: str) -> None:
        """A sandbox that was handed over is not served."""
        self._add({"sandbox": sandbox, "failed": why})

    def fault(self, text: str) -> None:
        self._add({"fault": text[-2000:]})

    def forget(self, tenant: "Tenant") -> None:
        """Tell the last of a sandbox that has ended."""
        if self._repeats.pop(tenant.id, None) is not None:
            self._count(tenant)

    def sync(self, number: int) -> None:
        """Tell all that there is now, and that it was told. Where the host does not take it, it
        does not wait for that long."""
        self._flush()
        with contextlib.suppress(OSError):
            self._send({"synced": number})

    def _add(self, row: Row) -> None:
        if len(self._rows) >= _MOST:
            self._rows.popleft()
            self._lost += 1
        self._rows.append(row)
        self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._loop.later(FLUSH_SECONDS, self._flush)

    def _count(self, tenant: "Tenant") -> None:
        self._add({"sandbox": tenant.id, "repeats": tenant.repeats})
        tenant.repeats = 0

    def _flush(self) -> None:
        self._armed = False
        for row in self._open.values():
            self._add(row())
        self._open.clear()
        for tenant in self._repeats.values():
            self._count(tenant)
        self._repeats.clear()
        while self._rows:
            batch = [self._rows.popleft() for _ in range(min(_BATCH, len(self._rows)))]
            try:
                self._send({"rows": batch, "lost": self._lost})
            except BlockingIOError:
                self._rows.extendleft(reversed(batch))
                self._arm()
                return
            except OSError:
                return  # the host is gone, as the loop will see
            self._lost = 0

    def _send(self, message: dict[str, object]) -> None:
        self._control.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
