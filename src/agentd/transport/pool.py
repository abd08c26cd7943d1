"""Idle connections to one agent, kept for reuse."""

import socket
import threading
import weakref
from collections.abc import Callable

from agentd.model.errors import BackendLost, Full
from agentd.transport.connection import Connection
from agentd.transport.handshake import greet
from agentd.transport.v1 import V1Connection

MAX_IDLE = 8
# In use at once: the agent's own bound was 128, and it closes what is one too many. The last few
# are for what must always be possible: a lease that is renewed, a signal.
MAX_USED = 120
_RESERVE = 6


class Pool:
    """Thread-safe. The latest one used comes first: its caches are warm."""

    def __init__(
        self,
        open_stream: Callable[[], socket.socket],
        timeout: float,
        max_idle: int = MAX_IDLE,
        *,
        known: bool = False,
    ) -> None:
        """``known``: the agent is ours, and speaks v2; no answer to a greeting is waited for."""
        self._open_stream = open_stream
        self._timeout = timeout
        self._max_idle = max_idle
        self._known = known
        self._lock = threading.Lock()
        self._idle: list[Connection | V1Connection] = []
        # Their users close them; whoever is let go of counts no more.
        self._used: weakref.WeakSet[Connection | V1Connection] = weakref.WeakSet()
        self._opening = 0
        self._closed = False

    def take(self, *, urgent: bool = False) -> Connection | V1Connection:
        """An idle connection that still is one, or a new one. Raises Full where too many are in
        use, BackendLost, GuestError. There are more for what is ``urgent``."""
        self._enter(MAX_USED + (_RESERVE if urgent else 0))
        connection = None
        try:
            connection = self._found()
        finally:
            with self._lock:
                self._opening -= 1
                if connection is not None:
                    self._used.add(connection)
        return connection

    def _enter(self, most: int) -> None:
        with self._lock:
            if len(self._used) + self._opening >= most:
                for connection in [one for one in self._used if one.fileno() < 0]:
                    self._used.discard(connection)
            if len(self._used) + self._opening >= most:
                raise Full(
                    f"{most} commands, transfers, watches and tunnels of this sandbox are the most",
                    remediation="wait until one of them has ended, or use another sandbox",
                )
            self._opening += 1

    def _found(self) -> Connection | V1Connection:
        while True:
            with self._lock:
                if self._closed:
                    raise BackendLost("the sandbox was closed")
                connection = self._idle.pop() if self._idle else None
            if connection is None and self._known:
                return Connection(self._open_stream(), greets=True)
            if connection is None:
                return greet(self._open_stream(), self._timeout)
            if connection.idle():
                return connection
            connection.close()

    def give_back(self, connection: Connection | V1Connection) -> None:
        with self._lock:
            self._used.discard(connection)
            if not self._closed and len(self._idle) < self._max_idle:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Idempotent; connections in use close when they are given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
