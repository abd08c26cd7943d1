"""What the relay and the terminator hear of their host, and tell it, in batches.

Nothing here waits: what the host does not take in time is dropped, oldest first, and counted. It
runs in both processes: standard library alone.
"""

import gc
import json
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from agentd.egress.mark import Mark, map_mark
from agentd.linux import process, rights

MAX_MESSAGE = 160 << 10  # what a SEQPACKET socket takes with the usual buffers
FLUSH_SECONDS = 0.05
_MAX_ROWS = 64 << 10  # bytes of rows in a message, which a socket of the usual size takes
_MOST = 4096  # that wait for a host that does not take them
_MAX_FAULT = 2000  # characters
CONTROL_FD, MARK_FD = 3, 4
_MAX_FIRST = 64 << 10
T = TypeVar("T")

Row = dict[str, object]


def receive(control: socket.socket, fds: int) -> tuple[dict[str, Any], list[int], bool] | None:
    """Return what the host says, the descriptors that came along, ``fds`` at most, and whether that
    is all of it; None where it says nothing now. Once the host's end is closed the process ends."""
    try:
        data, found, flags = rights.receive(control, MAX_MESSAGE, fds, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        os._exit(0)
    if not data:
        os._exit(0)
    return json.loads(data), found, not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)


def begin(prepare: Callable[[socket.socket, dict[str, Any], Mark], tuple[T, list[str]]]) -> T:
    """Do what a process of the host's does first: take its control socket, its mark and the first
    message, ``prepare`` by these, and tell the host what holds from then on; where that fails tell
    why, and end."""
    os.closerange(MARK_FD + 1, os.sysconf("SC_OPEN_MAX"))  # what the host forgot to mark
    control = socket.socket(fileno=CONTROL_FD)
    control.set_inheritable(False)
    try:
        first = control.recv(_MAX_FIRST)
        if not first:
            os._exit(0)
        process.raise_file_limit()
        made, held = prepare(control, json.loads(first), map_mark(MARK_FD))
    except Exception as error:
        control.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        os._exit(1)
    control.send(json.dumps({"ready": held}).encode())
    gc.collect()
    gc.freeze()
    return made


class RowQueue:
    def __init__(
        self,
        control: socket.socket,
        later: Callable[[float, Callable[[], None]], object],
        collect: Callable[[], None] = lambda: None,
    ) -> None:
        """``control`` is the caller's; ``later`` calls back after so many seconds; ``collect`` adds
        what is told only as it is sent."""
        self._control, self._later, self._collect = control, later, collect
        self._rows: deque[Row] = deque()
        self._lost = 0
        self._synced: int | None = None
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

    def fault(self, what: BaseException | str) -> None:
        """Tell what went wrong, and of an error where."""
        text = what if isinstance(what, str) else _placed(what)
        self.add({"fault": text[-_MAX_FAULT:]})

    def arm(self) -> None:
        """Send it soon."""
        if not self._armed:
            self._armed = True
            self._later(FLUSH_SECONDS, self._flush)

    def sync(self, number: int) -> None:
        """Tell all that there is now, and then that it was told: later, where the host does not
        take it now, or it would take us for one that hangs."""
        self._synced = number
        self._flush()

    def _flush(self) -> None:
        self._armed = False
        self._collect()
        batch: list[Row] = []
        try:
            while self._rows:
                batch = self._batch()
                self._send({"rows": batch, "lost": self._lost})
                self._lost, batch = 0, []
            if self._synced is not None:
                self._send({"synced": self._synced})
                self._synced = None
        except OSError as error:
            if error.errno in rights.NO_ROOM:  # else the host is gone, as the loop will see
                self._rows.extendleft(reversed(batch))
                self.arm()

    def _batch(self) -> list[Row]:
        """Take as many rows as fit into a message: how long one is, hostile ends have a say in."""
        batch: list[Row] = []
        size = 0
        while self._rows:
            size += len(json.dumps(self._rows[0])) + len(", ")
            if size > _MAX_ROWS:
                break
            batch.append(self._rows.popleft())
        if not batch:  # no message has this one
            self._rows.popleft()
            self._lost += 1
        return batch

    def _send(self, message: Row) -> None:
        self._control.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)


def _placed(error: BaseException) -> str:
    """An error and where it was, by no module that would read our source."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{os.path.basename(code.co_filename)}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}; {' < '.join(reversed(places))}"
