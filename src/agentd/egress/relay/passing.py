"""Passes connections that are to be read to the terminator, both ends of each.

The relay keeps its own copies and reads no more from them: by them it ends a connection, whatever
the terminator does. Nothing goes on for want of a terminator: what it has ends with it.
"""

import json
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentd.egress.relay.budget import UNTOLD
from agentd.egress.relay.loop import IN, OUT, EventLoop
from agentd.linux import rights

if TYPE_CHECKING:
    from agentd.egress.relay.connection import RelayedConnection

NONE = "what reads its requests is not there now"
_MAX_MESSAGE = 4096
_REST_SECONDS = 0.1


class Passing:
    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._link: socket.socket | None = None
        self._passed: dict[int, RelayedConnection] = {}
        # Of these the ones that the terminator has not taken yet: one sandbox may begin hundreds.
        self._waiting: dict[int, tuple[int, Sequence[int]]] = {}
        self._full = self._rests = False

    def link(self, sock: socket.socket) -> None:
        """Take ``sock``, the way to the terminator of now. What another has ends."""
        self._unlink()
        sock.setblocking(False)
        self._link = sock
        self._loop.watch(sock.fileno(), IN, self._ready)

    def take(self, connection: "RelayedConnection", sandbox: int, ends: Sequence[int]) -> str:
        """Pass the program's end and the host's, if there is one, as descriptors, once the
        terminator has room for them; return why it cannot be, or "".

        Where it can ``connection.was_read`` is called once they were closed there.
        """
        if self._link is None:
            return NONE
        self._passed[connection.n] = connection
        self._waiting[connection.n] = sandbox, ends
        self._flush(self._link)
        return ""

    def take_back(self, n: int) -> bool:
        """Pass one no more, whose descriptors are to be closed; False where it was passed."""
        if self._waiting.pop(n, None) is None:
            return False
        self.forget(n)
        return True

    def forget(self, n: int) -> None:
        self._passed.pop(n, None)

    def _flush(self, link: socket.socket) -> None:
        while self._waiting and not self._rests:
            n, (sandbox, ends) = next(iter(self._waiting.items()))
            connection = self._passed[n]
            message: dict[str, object] = {"n": n, "sandbox": sandbox}
            message |= {"name": connection.name, "port": connection.port}
            if (budget := connection.tenant.budget) is not None:
                message["room"] = budget.left
            try:
                rights.send(link, json.dumps(message).encode(), ends, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._await_room(link, full=True)
                return
            except OSError as error:
                if error.errno in rights.NO_ROOM:
                    self._rest()
                else:
                    self._unlink()
                return
            del self._waiting[n]
        self._await_room(link, full=False)

    def _rest(self) -> None:
        """Wait for room of which no event tells."""

        def go_on() -> None:
            self._rests = False
            if self._link is not None:
                self._flush(self._link)

        self._rests = True
        self._loop.later(_REST_SECONDS, go_on, owner=0)

    def _await_room(self, link: socket.socket, *, full: bool) -> None:
        if full != self._full:
            self._full = full
            self._loop.change(link.fileno(), IN | OUT if full else IN)

    def _ready(self, mask: int) -> None:
        assert self._link is not None  # noqa: S101  (for the type checker)
        if mask & OUT:
            self._flush(self._link)
        if mask & ~OUT and self._link is not None:
            self._hear(self._link)

    def _hear(self, link: socket.socket) -> None:
        try:
            data = link.recv(_MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._unlink()
            return
        message = json.loads(data)
        n = message.get("moved", message.get("ended"))
        connection = self._passed.get(n)
        if connection is None:
            return
        self._loop.work_for(connection.tenant.id)
        connection.moved(message["sent"], message["received"])
        if "ended" in message:
            self.forget(n)
            connection.was_read(message["reason"])
        elif message["over"]:
            connection.tenant.overspend()

    def _unlink(self) -> None:
        link, self._link = self._link, None
        if link is None:
            return
        self._loop.forget(link.fileno())
        link.close()
        self._waiting.clear()
        self._full = False
        passed, self._passed = self._passed, {}
        for connection in passed.values():
            connection.was_read("what read its requests is gone")
        # It may have moved so much of each that it has not told.
        for tenant in {connection.tenant for connection in passed.values()}:
            tenant.spend(UNTOLD)
