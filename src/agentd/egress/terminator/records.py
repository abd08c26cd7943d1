"""What the host is told of requests."""

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentd.egress.rows import Row, RowQueue

if TYPE_CHECKING:
    from agentd.egress.terminator.connection import ReadConnection
    from agentd.egress.terminator.requests import RequestHead

_MAX_TEXT, _MAX_TARGET = 400, 2000


class RequestRecords:
    def __init__(self, control: socket.socket) -> None:
        """``control`` is the caller's."""
        self._queue = RowQueue(control, _later)
        self.fault, self.sync = self._queue.fault, self._queue.sync

    def request(self, of: "ReadConnection", row: Row) -> None:
        """Tell of a request; ``row`` says what is not the connection's."""
        where = {"sandbox": of.sandbox.id, "n": of.n, "name": of.name, "port": of.port}
        texts = {name: str(row[name])[:_MAX_TEXT] for name in ("path", "reason")}
        self._queue.add({**where, **row, **texts})

    def written(self, sandbox: int, size: int) -> None:
        """Tell how long its cassette is as what is told next is not in it."""
        self._queue.add({"sandbox": sandbox, "written": size})

    def going_on(self, of: "ReadConnection", head: "RequestHead") -> None:
        """Tell of a request that is not recorded yet."""
        where = {"sandbox": of.sandbox.id, "n": of.n, "name": of.name, "port": of.port}
        self._queue.add({**where, "method": head.method, "target": head.target[:_MAX_TARGET]})


def _later(seconds: float, then: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, then)
