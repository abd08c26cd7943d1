"""What the host is told of connections: once when one lasts, once when it has ended, in batches.

Denials of the same thing are told once, and then counted.
"""

import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from agentd.egress.relay.loop import EventLoop
from agentd.egress.rows import Row, RowQueue

if TYPE_CHECKING:
    from agentd.egress.relay.tenant import Tenant

_MOST_DENIALS = 256  # different ones a sandbox; beyond that they are only counted


class Reports:
    """Sends rows to the host over the control socket, which the caller owns."""

    def __init__(self, loop: EventLoop, control: socket.socket) -> None:
        later = partial(loop.later, owner=0)
        self._queue = RowQueue(control, later, self._collect)
        self._open: dict[int, Callable[[], Row]] = {}
        self._repeats: dict[int, Tenant] = {}
        self.fault, self.sync = self._queue.fault, self._queue.sync
        self.tell_now = self._queue.tell_now

    def opened(self, n: int, row: Callable[[], Row]) -> None:
        """Note one; ``row`` is asked for where it still lives at the next batch."""
        self._open[n] = row
        self._queue.arm()

    def ending(self, n: int) -> None:
        """Tell of one no more until it has ended: its row is not whole before."""
        self._open.pop(n, None)

    def ended(self, n: int, row: Row) -> None:
        self._open.pop(n, None)
        self._queue.add(row)

    def denied(self, tenant: "Tenant", key: tuple[object, ...], row: Row) -> None:
        if key not in tenant.denials and len(tenant.denials) < _MOST_DENIALS:
            tenant.denials.add(key)
            self._queue.add(row)
            return
        tenant.repeats += 1
        self._repeats[tenant.id] = tenant
        self._queue.arm()

    def named(self, tenant: "Tenant", name: str) -> None:
        """Tell the host that a name has an address now, before the program is told so: should we
        die then, the next relay has to know."""
        self.tell_now({"sandbox": tenant.id, "named": name})

    def spending(self, tenant: "Tenant", count: int) -> None:
        """Tell the host, as of a name, how many bytes of a sandbox's budget count as moved for the
        next relay."""
        self._queue.tell_now({"sandbox": tenant.id, "spent": count})

    def failed(self, sandbox: int, why: str) -> None:
        """Report that a sandbox that was handed over is not served."""
        self._queue.add({"sandbox": sandbox, "failed": why})

    def forget(self, tenant: "Tenant") -> None:
        """Tell the last of a sandbox that has ended."""
        if self._repeats.pop(tenant.id, None) is not None:
            self._count(tenant)

    def _count(self, tenant: "Tenant") -> None:
        self._queue.add({"sandbox": tenant.id, "repeats": tenant.repeats})
        tenant.repeats = 0

    def _collect(self) -> None:
        for row in self._open.values():
            self._queue.add(row())
        self._open.clear()
        for tenant in self._repeats.values():
            self._count(tenant)
        self._repeats.clear()
