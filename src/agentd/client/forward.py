"""Ports of a sandbox for programs of this machine: each a port of 127.0.0.1 that leads inside."""

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from agentd.client import arguments
from agentd.client.cut import Cut, GivenUp
from agentd.model.errors import AgentdError, BackendLost, InvalidInput, Unsupported
from agentd.model.port import PortLink, host_name
from agentd.model.units import parse_duration

if TYPE_CHECKING:
    from agentd.model.port import Port
    from agentd.model.service import Ports

HOST = "127.0.0.1"
MOST = 64  # connections at once, a thread each; more are refused
_PIECE = 64 << 10
_RETRY_SECONDS = 0.1
_LAST_SECONDS = 5.0  # that a server has for each piece of what a client said that has gone
_LAST_PORT = 65535
_RESET = struct.pack("=ii", 1, 0)  # struct linger: on, and no time


class Forward:
    """A port of this machine that leads to one inside, until ``close``.

    Every user of this machine can connect to it, as to any port of 127.0.0.1.
    """

    def __init__(self, connect: Callable[[], "Port"], host_port: int = 0) -> None:
        """``host_port`` 0 takes one that is free. Raises InvalidInput where it is taken."""
        self._connect = connect
        try:
            self._listener = socket.create_server((HOST, host_port))
        except OSError as error:
            raise InvalidInput(
                f"port {host_port} of this machine cannot be had",
                cause=error.strerror or str(error),
                remediation="give another one, or 0 for any that is free",
            ) from error
        self.host_port: int = self._listener.getsockname()[1]
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._carriers: set[_Carrier] = set()
        self._closed = False
        name = f"agentd-forward-{self.host_port}"
        self._thread = threading.Thread(target=self._accept, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def address(self) -> tuple[str, int]:
        """Return it as ``socket.create_connection`` takes it."""
        return HOST, self.host_port

    @property
    def url(self) -> str:
        """Return the URL of a server inside that speaks HTTP."""
        return f"http://{HOST}:{self.host_port}"

    def named(self, sandbox: str, port: int) -> str:
        """Return a URL for a browser, by a name that no other port has: cookies keep to a host's
        name, and look at no port (RFC 6265, 8.5)."""
        return f"http://{host_name(sandbox, port)}:{self.host_port}"

    def close(self) -> None:
        """End it and its connections; idempotent. A forked copy only lets go of it."""
        with self._lock:
            closed, self._closed = self._closed, True
            carriers = tuple(self._carriers)
        if closed:
            return
        if os.getpid() == self._owner:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
            self._thread.join()
            for carrier in carriers:
                carrier.stop()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Forward {HOST}:{self.host_port}>"

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
                self._carry(client)
            except OSError:  # it was closed, or descriptors are short just now
                time.sleep(_RETRY_SECONDS)

    def _carry(self, client: socket.socket) -> None:
        """Raises OSError."""
        with contextlib.ExitStack() as undo:
            undo.callback(_reset, client)
            with self._lock:
                if self._closed or len(self._carriers) >= MOST:
                    return
                carrier = _Carrier(client, self._connect, self._over)
                self._carriers.add(carrier)
            undo.pop_all()
        try:
            carrier.start()
        except RuntimeError:  # no thread is to be had
            carrier.free()

    def _over(self, carrier: "_Carrier") -> None:
        with self._lock:
            self._carriers.discard(carrier)


class _Carrier(threading.Thread):
    """One connection, both ways."""

    def __init__(
        self,
        client: socket.socket,
        connect: Callable[[], "Port"],
        over: "Callable[[_Carrier], None]",
    ) -> None:
        super().__init__(name="agentd-forwarded", daemon=True)
        self._client = client
        self._connect = connect
        self._over = over
        self._cut = Cut()  # of being connected, which a daemon may have wait for somebody
        self._lock = threading.Lock()  # of ``_wake``
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._up = b""  # to the port
        self._down = b""  # to the client
        self._client_ended = False
        self._port_ended = False

    def stop(self) -> None:
        """Wait until it has ended, where it has begun."""
        self._cut.set()
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
        self.join()

    def free(self) -> None:
        if self._port_ended and not self._down:
            self._client.close()
        else:
            _reset(self._client)
        with self._lock:
            os.close(self._wake)
            self._wake = -1
        self._over(self)

    def run(self) -> None:
        try:
            # Where it breaks the client hears of that by the reset of its connection alone.
            with contextlib.suppress(AgentdError, OSError, GivenUp):
                self._carry(self._cut.run(self._connect))
        finally:
            self.free()

    def _carry(self, port: "Port") -> None:
        try:
            self._client.setblocking(False)
            while not (self._client_ended and self._port_ended) and self._wait(port):
                self._receive(port)
                self._send(port)
        finally:
            port.close()

    def _wait(self, port: "Port") -> bool:
        """Until something can be done. False where it is to stop, or the client has gone."""
        wants = not (self._down or self._port_ended)
        if wants and port.pending():
            return True
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        reads = 0 if self._up or self._client_ended else select.POLLIN
        shown = reads | (select.POLLOUT if self._down else 0)
        # A client that has closed, to whom nothing more is said, is told of at once and for ever:
        # what it said last is read all the same, as long as the port takes it.
        said_all = self._port_ended and not self._down
        gone = said_all and self._has_closed()
        if shown or not gone:
            poller.register(self._client, shown)
        # Room for what is unsent arrives as something to read, too. What there is to read already,
        # while the client takes nothing, would tell of room for ever: then it is looked for.
        stuck = bool(self._up and self._down)
        if wants or (self._up and not stuck):
            poller.register(port.fileno(), select.POLLIN)
        wait = _LAST_SECONDS if gone else _RETRY_SECONDS if stuck else None
        found = dict(poller.poll(None if wait is None else wait * 1000))
        if gone and not found:
            return False
        breaks = select.POLLERR | (0 if said_all else select.POLLHUP)
        broken = found.get(self._client.fileno(), 0) & breaks
        return self._wake not in found and not broken

    def _has_closed(self) -> bool:
        poller = select.poll()
        poller.register(self._client, 0)
        return bool(poller.poll(0))

    def _receive(self, port: "Port") -> None:
        if not (self._up or self._client_ended):
            with contextlib.suppress(BlockingIOError):
                self._up = self._client.recv(_PIECE)
                if not self._up:
                    self._client_ended = True
                    port.half_close()
        if not (self._down or self._port_ended):
            with contextlib.suppress(TimeoutError):
                self._down = port.recv(0)
                self._port_ended = not self._down

    def _send(self, port: "Port") -> None:
        try:
            if self._up:
                self._up = self._up[port.send_some(self._up) :]
        except BackendLost:  # it reads no more; what it has still to say is worth hearing
            self._up, self._client_ended = b"", True
        if self._down:
            with contextlib.suppress(BlockingIOError):
                self._down = self._down[self._client.send(self._down) :]
        elif self._port_ended:
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_WR)


def _reset(client: socket.socket) -> None:
    """Close it so that it is told that what it has is not all."""
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    client.close()


class SandboxPorts:
    """The TCP ports of a sandbox, for what listens inside."""

    def __init__(self, ports: "Ports", sandbox: str, forwards: "Forwards") -> None:
        self._ports = ports
        self._sandbox = sandbox
        self._forwards = forwards

    def url(self, port: int) -> str:
        """Return the address, on this machine, of a server inside that speaks HTTP.

        It leads there until the sandbox is closed, by ``forward``; the same each time it is asked.
        """
        number = arguments.whole(port, "port", 1, _LAST_PORT)
        return self._forwards.shared(number, lambda: self.forward(number)).url

    def link(self, port: int, *, ttl: str | float = "1h") -> "PortLink":
        """Return the address of a server inside for a browser, on a host of its own: its pages
        share no origin and no cookies with those of any other port.

        A daemon that listens on TCP gives one that is valid for ``ttl``, for whoever has it.
        Elsewhere it is a port of this machine, by ``forward``, which lasts until the sandbox is
        closed. Browsers know names below localhost; of other programs not all do: those take
        ``url``. Raises Refused for more than the daemon's ports.max_ttl.
        """
        number = arguments.whole(port, "port", 1, _LAST_PORT)
        parse_duration(ttl, "ttl")
        try:
            return self._ports.link(self._sandbox, number, ttl=ttl)
        except Unsupported:
            shared = self._forwards.shared(number, lambda: self.forward(number))
            return PortLink(
                url=shared.named(self._sandbox, number), sandbox=self._sandbox, port=number
            )

    def forward(self, port: int, host_port: int = 0) -> Forward:
        """Let a port of 127.0.0.1 lead to one inside: whatever connects there is connected inside.

        ``host_port`` 0 takes one that is free. It ends with its ``close`` or with statement, and
        with the sandbox. Raises InvalidInput where the port of this machine is taken.
        """
        number = arguments.whole(port, "port", 1, _LAST_PORT)
        here = arguments.whole(host_port, "host_port", 0, _LAST_PORT)
        forward = Forward(lambda: self._ports.open(self._sandbox, number), here)
        return self._forwards.add(forward)

    def open(self, port: int) -> "Port":
        """Connect to one: bytes both ways, without waiting. To be closed.

        Raises OperationFailed where nothing listens there.
        """
        return self._ports.open(self._sandbox, arguments.whole(port, "port", 1, _LAST_PORT))


class Forwards:
    """Those of one sandbox, which end with it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: list[Forward] = []
        self._shared: dict[int, Forward] = {}

    def add(self, forward: Forward) -> Forward:
        with self._lock:
            self._all = [one for one in self._all if not one.closed]
            self._all.append(forward)
        return forward

    def shared(self, port: int, make: Callable[[], Forward]) -> Forward:
        """Return the one that ``port`` has in common for all who ask, made for the first."""
        with self._lock:
            found = self._shared.get(port)
        if found is None:
            made = make()
            with self._lock:
                found = self._shared.setdefault(port, made)
            if found is not made:
                made.close()
        return found

    def close(self) -> None:
        """Close all of them. Idempotent."""
        with self._lock:
            forwards, self._all, self._shared = self._all, [], {}
        for forward in forwards:
            forward.close()
