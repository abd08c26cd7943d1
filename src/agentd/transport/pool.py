"""Idle connections to one agent, kept for reuse."""

import socket
import threading
import weakref
from collections.abc import Callable

from agentd.model.errors import BackendLost, Full
from agentd.transport.connection import V2Connection
from agentd.transport.handshake import greet
from agentd.transport.v1 import V1Connection

MAX_IDLE = 8
# In use at once: the agent's own bound was 128, and it closes what is one too many. The last few
# are for what must always be possible: a lease that is renewed, a signal.
MAX_USED = 120
_RESERVE = 6


class Connections:
    """Thread-safe. The latest one used comes first: its caches are warm."""

    def __init__(
        self,
        open_stream: Callable[[], socket.socket],
        timeout: float,
        *,
        known: bool = False,
    ) -> None:
        """``known``: the agent is ours, and speaks v2; no answer to a greeting is waited for."""
        self._open_stream = open_stream
        self._timeout = timeout
        self._known = known
        self._lock = threading.Lock()
        self._idle: list[V2Connection | V1Connection] = []
        # Their users close them; whoever is let go of counts no more. With each its generation.
        self._used: weakref.WeakKeyDictionary[V2Connection | V1Connection, int] = (
            weakref.WeakKeyDictionary()
        )
        self._generation = 0
        self._opening = 0
        self._closed = False

    def take(self, *, urgent: bool = False) -> V2Connection | V1Connection:
        """Return an idle connection that still is one, or a new one. Raises Full where too many are
        in use, BackendLost, GuestError. There are more for what is ``urgent``."""
        most = MAX_USED + (_RESERVE if urgent else 0)
        with self._lock:
            if len(self._used) + self._opening >= most:
                for old in [one for one in self._used if one.fileno() < 0]:
                    del self._used[old]
            if len(self._used) + self._opening >= most:
                raise Full(
                    f"{most} commands, transfers, watches and tunnels of this sandbox are the most",
                    remediation="wait until one of them has ended, or use another sandbox",
                )
            self._opening += 1
            generation = self._generation  # of a connection that is taken now
        connection = None
        try:
            connection = self._found()
        finally:
            with self._lock:
                self._opening -= 1
                if connection is not None:
                    self._used[connection] = generation
        return connection

    def in_use(self) -> bool:
        """Return whether anybody has one now."""
        with self._lock:
            return self._opening > 0 or any(one.fileno() >= 0 for one in self._used)

    def renew(self, *, lost: bool = False) -> None:
        """Use none of the connections there are again: what is behind them may have forgotten
        them. ``lost``: it has, as a machine has after a snapshot of it, and whoever waits at one
        is told of its end."""
        with self._lock:
            self._generation += 1
            idle, self._idle = self._idle, []
            used = list(self._used) if lost else []
        for connection in idle:
            connection.close()
        for connection in used:
            connection.shut()

    def _found(self) -> V2Connection | V1Connection:
        while True:
            with self._lock:
                if self._closed:
                    raise BackendLost("the sandbox was closed")
                connection = self._idle.pop() if self._idle else None
            if connection is None and self._known:
                return V2Connection(self._open_stream())
            if connection is None:
                return greet(self._open_stream(), self._timeout)
            if connection.idle():
                if isinstance(connection, V2Connection) and not self._known:
                    connection.reuse(lambda: greet(self._open_stream(), self._timeout))
                return connection
            connection.close()

    def give_back(self, connection: V2Connection | V1Connection) -> None:
        if isinstance(connection, V2Connection):
            connection.settle()
        with self._lock:
            generation = self._used.pop(connection, -1)
            fresh = generation == self._generation and not self._closed
            if fresh and len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close those that idle; connections in use close when they are given back. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
