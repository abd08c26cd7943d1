"""Idle connections to one agent, kept for reuse."""

import socket
import threading
from collections.abc import Callable

from agentd.model.errors import BackendLost
from agentd.transport.connection import Connection
from agentd.transport.handshake import greet
from agentd.transport.v1 import V1Connection

MAX_IDLE = 8


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
        self._closed = False

    def take(self) -> Connection | V1Connection:
        """An idle connection that still is one, or a new one. Raises BackendLost, GuestError."""
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
