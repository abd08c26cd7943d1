"""What the relay and the terminator tell their host, in batches.

Nothing here waits: what the host does not take in time is dropped, oldest first, and counted. It
runs in both processes: standard library alone.
"""

import contextlib
import json
import socket
from collections import deque
from collections.abc import Callable

MAX_MESSAGE = 160 << 10  # what a SEQPACKET socket takes with the usual buffers
FLUSH_SECONDS = 0.05
_MOST = 4096  # that wait for a host that does not take them
_MAX_FAULT = 2000  # characters

Row = dict[str, object]


class RowQueue:
    def __init__(
        self,
        control: socket.socket,
        later: Callable[[float, Callable[[], None]], object],
        batch: int,
        collect: Callable[[], None] = lambda: None,
    ) -> None:
        """``control`` is the caller's; ``later`` calls back after so many seconds; ``batch`` rows
        fit into a message; ``collect`` adds what is told only as it is sent."""
        self._control, self._later = control, later
        self._batch, self._collect = batch, collect
        self._rows: deque[Row] = deque()
        self._lost = 0
        self._armed = False

    def add(self, row: Row) -> None:
        if len(self._rows) >= _MOST:
            self._rows.popleft()
            self._lost += 1
        self._rows.append(row)
        self.arm()

    def tell_now(self, row: Row) -> None:
        """Tell it now, before what waits; with that where the host takes nothing."""
        try:
            self._send({"rows": [row], "lost": 0})
        except OSError:
            self.add(row)

    def fault(self, text: str) -> None:
        self.add({"fault": text[-_MAX_FAULT:]})

    def arm(self) -> None:
        """Have it sent soon."""
        if not self._armed:
            self._armed = True
            self._later(FLUSH_SECONDS, self._flush)

    def sync(self, number: int) -> None:
        """Tell all that there is now, and that it was told. Where the host does not take it, it
        does not wait for that long."""
        self._flush()
        with contextlib.suppress(OSError):
            self._send({"synced": number})

    def _flush(self) -> None:
        self._armed = False
        self._collect()
        while self._rows:
            batch = [self._rows.popleft() for _ in range(min(self._batch, len(self._rows)))]
            try:
                self._send({"rows": batch, "lost": self._lost})
            except BlockingIOError:
                self._rows.extendleft(reversed(batch))
                self.arm()
                return
            except OSError:
                return  # the host is gone, as the loop will see
            self._lost = 0

    def _send(self, message: Row) -> None:
        self._control.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
