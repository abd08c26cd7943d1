"""What the host is told of requests, in batches. Nothing here waits: what it does not take in time
is dropped, oldest first, and counted."""

import asyncio
import contextlib
import json
import socket
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.egress.terminator.connection import ReadConnection

FLUSH_SECONDS = 0.05
_MOST = 4096
_BATCH = 32  # in a message: a path may be long
_MAX_PATH = 400


class RequestRecords:
    def __init__(self, control: socket.socket) -> None:
        """``control`` does not block, and is the caller's."""
        self._control = control
        self._rows: deque[dict[str, object]] = deque()
        self._lost = 0
        self._armed = False

    def request(self, of: "ReadConnection", row: dict[str, object]) -> None:
        """``row`` says of a request what is not the connection's."""
        if len(self._rows) >= _MOST:
            self._rows.popleft()
            self._lost += 1
        where = {"sandbox": of.sandbox.id, "n": of.n, "name": of.name, "port": of.port}
        self._rows.append({**where, **row, "path": str(row["path"])[:_MAX_PATH]})
        self._arm()

    def fault(self, text: str) -> None:
        self._rows.append({"fault": text[-2000:]})
        self._arm()

    def sync(self, number: int) -> None:
        """Tell all that there is, and that it was told."""
        self.flush()
        with contextlib.suppress(OSError):
            self._send({"synced": number})

    def flush(self) -> None:
        self._armed = False
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

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def _send(self, message: dict[str, object]) -> None:
        self._control.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
