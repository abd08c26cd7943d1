"""Dials for one program that is in a network namespace without a way out.

What it dials there arrives at sockets of that namespace: SOCKS 5 (RFC 1928), by which it says where
it wants to be, or a socket that stands for one place. ``Destinations`` says whether it may.
"""

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from agentd.egress.destinations import Barred, Destinations, Place, resolved
from agentd.egress.proxies import Proxies
from agentd.linux import rights
from agentd.linux.bounded import limit, receive

#: Of one program: so many descriptors are passed at once (SCM_MAX_FD is 253).
MOST_ENTRANCES = 128
_MOST = 64  # connections at once
_KEPT = 16  # of what was not reached
# Each is of all of it, however slowly its bytes come.
_SAY_SECONDS = 20.0  # the program has to say where it wants to be
_DIAL_SECONDS, _NEXT_SECONDS = 30.0, 5.0  # for its addresses, and for each but the last
_ANSWER_SECONDS = 30.0  # a proxy's
_END_SECONDS, _ROOM_SECONDS = 1.0, 0.05
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PIECE = 1 << 20  # bytes that are moved at once
_SOCKS, _NO_LOGIN, _CONNECT = 5, 0, 1
_DONE, _FAILED = 0, 4  # "host unreachable": why, is told by ``unreached``
_IPV4, _NAME, _IPV6 = 1, 3, 4
_FAMILIES = {_IPV4: (socket.AF_INET, 4), _IPV6: (socket.AF_INET6, 16)}
_NOW = struct.pack("ii", 1, 0)  # SO_LINGER: what is closed is reset


class Entrance(NamedTuple):
    """A socket of the namespace: where it listens, and where it leads. Without ``to`` it speaks
    SOCKS, and what is asked for there is asked for by ``scheme``, "http" or "https"."""

    address: str
    port: int
    to: Place | None = None
    scheme: str = ""


class Unreached(NamedTuple):
    """``barred``: nobody was asked, as it is not allowed; ``grant`` is the rule that would do."""

    place: Place
    reason: str
    barred: bool
    grant: str = ""


class Dialler:
    """Serves from its begin until ``close``: by a thread, and two for each connection."""

    def __init__(
        self,
        control: socket.socket,
        entrances: Sequence[Entrance],
        destinations: Destinations,
        proxies: Proxies,
    ) -> None:
        """``control`` is this one's from now on: over it come the sockets of ``entrances``, all in
        one message, whose bytes are their numbers."""
        self._entrances, self._destinations, self._proxies = entrances, destinations, proxies
        #: What was not reached, the first few.
        self.unreached: list[Unreached] = []
        self._lock = threading.Lock()
        self._closed = False
        self._open: set[socket.socket] = set()
        self._connections: set[threading.Thread] = set()
        self._thread = _thread(self._serve, control)
        self._thread.start()

    def close(self) -> None:
        """End all that is open. Idempotent."""
        with self._lock:
            self._closed = True
            for sock in self._open:
                with contextlib.suppress(OSError):  # it ended already
                    sock.shutdown(socket.SHUT_RDWR)
            threads = [self._thread, *self._connections]
        end = time.monotonic() + _END_SECONDS
        for thread in threads:  # but who asks a name server cannot be woken
            thread.join(max(0, end - time.monotonic()))

    def _serve(self, control: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(self._held(control))
            numbers, fds, _ = rights.receive(control, MOST_ENTRANCES, MOST_ENTRANCES)
            found = {fd: stack.enter_context(socket.socket(fileno=fd)) for fd in fds}
            if len(fds) != len(numbers):
                raise OSError("no descriptor is left")  # closed, they refuse whoever dials
            poll = select.poll()
            for fd, listener in found.items():
                stack.enter_context(self._held(listener))
                poll.register(fd, select.POLLIN)
            leads = {fd: self._entrances[number] for fd, number in zip(fds, numbers, strict=True)}
            while fds and not self._closed:
                for fd, _ in poll.poll():
                    try:
                        self._take(found[fd].accept()[0], leads[fd])
                    except OSError as error:  # it was shut, or there is no descriptor for it
                        if error.errno not in _NO_ROOM:
                            raise
                        time.sleep(_ROOM_SECONDS)

    def _take(self, near: socket.socket, entrance: Entrance) -> None:
        with self._lock:
            if len(self._connections) < _MOST and not self._closed:
                thread = _thread(self._connection, near, entrance)
                with contextlib.suppress(RuntimeError):  # no thread is left
                    thread.start()
                    self._connections.add(thread)
                    return
        near.close()

    def _connection(self, near: socket.socket, entrance: Entrance) -> None:
        try:
            with contextlib.suppress(OSError), self._held(near):
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._carry(near, entrance)
        finally:
            with self._lock:
                self._connections.discard(threading.current_thread())

    def _carry(self, near: socket.socket, entrance: Entrance) -> None:
        """Raises OSError where an end is gone."""
        place = entrance.to or _asked_for(near, time.monotonic() + _SAY_SECONDS)
        with contextlib.ExitStack() as ends:
            far = self._dial(place, entrance.scheme, ends)
            if entrance.to is None:
                code = _FAILED if far is None else _DONE
                near.settimeout(_SAY_SECONDS)
                near.sendall(struct.pack(">4B4xH", _SOCKS, code, 0, _IPV4, 0))
            elif far is None:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW)
            if far is None:
                return
            for end in (near, far):
                end.settimeout(None)
            down = _thread(_copy, far, near)
            try:
                down.start()
            except RuntimeError as error:
                raise OSError("no thread is left") from error
            _copy(near, far)
            down.join()

    def _dial(self, place: Place, scheme: str, ends: contextlib.ExitStack) -> socket.socket | None:
        """Return a socket that leads to a place, which ``ends`` closes; None, and note why, where
        there is no way."""
        try:
            proxy = self._proxies.of(scheme, place)
            if proxy is None:
                return self._connected(self._destinations.find(place), place.port, ends)
            self._destinations.check_passed_on(place)
            far = self._connected(resolved(proxy.place.host), proxy.place.port, ends)
            proxy.connect(far, place, time.monotonic() + _ANSWER_SECONDS)
            return far
        except Barred as why:
            self._note(Unreached(place, why.reason, True, why.grant))
        except OSError as error:
            self._note(Unreached(place, error.strerror or str(error), False))
        return None

    def _connected(
        self, addresses: Sequence[str], port: int, ends: contextlib.ExitStack
    ) -> socket.socket:
        """Connect to the first that answers. Raises OSError: the last one's."""
        failed = OSError("it has no address")
        end = time.monotonic() + _DIAL_SECONDS
        for left, address in zip(range(len(addresses) - 1, -1, -1), addresses, strict=True):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                far = socket.socket(family)
                ends.enter_context(self._held(far))
                limit(far, min(end, time.monotonic() + _NEXT_SECONDS) if left else end)
                far.connect((address, port))
                far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                failed = error
            else:
                return far
        raise failed

    def _note(self, what: Unreached) -> None:
        with self._lock:
            if len(self.unreached) < _KEPT and what not in self.unreached:
                self.unreached.append(what)

    @contextlib.contextmanager
    def _held(self, sock: socket.socket) -> Iterator[None]:
        """Have ``close`` end it meanwhile, and close it then. Raises OSError where all was
        closed."""
        try:
            with self._lock:
                if self._closed:
                    raise OSError("it was closed")
                self._open.add(sock)
            yield
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()


def _thread(call: Callable[..., None], *args: object) -> threading.Thread:
    return threading.Thread(target=call, args=args, name="agentd-dialler", daemon=True)


def _asked_for(near: socket.socket, end: float) -> Place:
    """Raises OSError where it does not speak SOCKS 5, wants more than to be connected, or has not
    said it by ``end``."""
    version, methods = _exactly(near, 2, end)
    if version != _SOCKS or _NO_LOGIN not in _exactly(near, methods, end):
        raise OSError("it speaks no SOCKS 5 without a login")
    limit(near, end)
    near.sendall(bytes((_SOCKS, _NO_LOGIN)))
    version, command, _, kind = _exactly(near, 4, end)
    if version != _SOCKS or command != _CONNECT:
        raise OSError("it does not want to be connected")
    if kind == _NAME:
        host = _exactly(near, _exactly(near, 1, end)[0], end).decode("ascii", "replace")
    elif kind in _FAMILIES:
        family, length = _FAMILIES[kind]
        host = socket.inet_ntop(family, _exactly(near, length, end))
    else:
        raise OSError("it names no address")
    return Place(host, int.from_bytes(_exactly(near, 2, end)))


def _exactly(sock: socket.socket, count: int, end: float) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := receive(sock, count - len(data), end)):
            raise OSError("it ended")
        data += more
    return data


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Until the source ends. The bytes go through a pipe, by splice(2), and never through us."""
    try:
        with contextlib.ExitStack() as stack:
            out, into = os.pipe()
            stack.callback(os.close, out)
            stack.callback(os.close, into)
            while count := os.splice(source.fileno(), into, _PIECE):
                while count:
                    count -= os.splice(out, target.fileno(), count)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):  # nothing more comes of it, either way
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
