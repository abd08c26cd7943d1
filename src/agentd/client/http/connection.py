"""HTTP/1.1 connections to a daemon, over unix sockets, TCP or TLS, and a pool of them."""

import contextlib
import errno
import http.client
import math
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from agentd.client import cut
from agentd.client.http.address import Address
from agentd.client.http.errors import Unreachable
from agentd.client.http.names import addresses
from agentd.model.errors import Full, InvalidInput

CONNECT_SECONDS = 10.0
MAX_IDLE = 8
MAX_OPEN = 128  # requests of one client at the same time; more of them wait
MAX_WAIT = 60.0  # seconds for one of those
# A request up to this size leaves in one write; no answer waits for a second one.
_CORK = 256 << 10
_WAKE_AGAIN_MS = 50
# A signal that comes just as a wait begins is handled, and ``wake`` readable for it, by its end.
_HANDLED_MS = 1000
_FULL_SECONDS = 0.05  # between looks at a queue that is full
_SOON_SECONDS = 1.0  # in which a command has begun, or a sandbox is made, that waits for nobody
# A peer that is gone without a word is noticed within two minutes, tcp(7).
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


class Woken(Exception):
    """The descriptor ``wake`` became readable before the next byte came."""


class NeverAsked(Woken):
    """It did before there was a connection: nothing was said to anybody."""


def soon_or_never(seconds: float = _SOON_SECONDS) -> Callable[[], bool]:
    """Return what leaves an answer that has not come so long after it was given up: what takes
    longer waits for somebody. It raises Woken."""
    given_up: list[float] = []

    def is_left() -> bool:
        given_up.append(time.monotonic())
        if given_up[-1] - given_up[0] > seconds:
            raise Woken
        return False

    return is_left


class _Wakes:
    """A socket whose blocking reads end when another descriptor becomes readable; or, where there
    is an ``on_wake``, call that, until it is True or the next byte is there."""

    wake = -1
    on_wake: Callable[[], bool] | None = None

    def recv_into(self, *args: Any, **options: Any) -> int:
        if self.wake >= 0 and not (hasattr(self, "pending") and self.pending()):
            self._wait()
        return int(super().recv_into(*args, **options))  # type: ignore[misc]

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self.wake, select.POLLIN)
        poller.register(self, select.POLLIN)  # type: ignore[arg-type]
        while not (found := poller.poll(_HANDLED_MS)):
            pass
        if self.wake not in (fd for fd, _ in found):
            return
        if self.on_wake is None:
            raise Woken
        poller.unregister(self.wake)
        while not self.on_wake() and not poller.poll(_WAKE_AGAIN_MS):
            pass
        self.wake = -1


class _Socket(_Wakes, socket.socket):
    pass


class _TLSSocket(_Wakes, ssl.SSLSocket):
    pass


def dial(
    address: Address,
    context: ssl.SSLContext | None = None,
    begun: Callable[[socket.socket], object] = lambda sock: None,
    wake: int = -1,
) -> socket.socket:
    """Connect a socket; ``begun`` gets it before anything is waited for, so that it can be cut.
    Raises Unreachable, GivenUp, and NeverAsked once ``wake`` is readable."""
    try:
        if address.path:
            plain: socket.socket = _Socket(socket.AF_UNIX, socket.SOCK_STREAM)
            return _connected(plain, address, wake)
        return _tuned(_reached(address, begun, wake), address, context, begun, wake)
    except (OSError, ssl.SSLError) as error:
        fix = _way_out(error)
        if address.path and isinstance(error, PermissionError):
            fix = "start one of your own with agentd serve, or have its operator let you reach "
            fix += "the socket: group and mode of its [[listen]]"
        elif address.path and isinstance(error, TimeoutError):
            fix = "try again: it is busy, or it hangs, and then its operator has to end it"
        raise Unreachable(
            f"no daemon answers at {address}", cause=error.strerror or str(error), remediation=fix
        ) from error


def _way_out(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        fix = "name the file of the certificates that vouch for it in AGENTD_CA; or correct the "
        return f"{fix}address: its name must be one that its certificate has"
    if isinstance(error, ssl.SSLError):
        return "write http:// where it has no TLS; or correct the address"
    return "start one with agentd serve, or correct the address"


def _connected(plain: socket.socket, address: Address, wake: int) -> socket.socket:
    until = time.monotonic() + CONNECT_SECONDS
    try:
        plain.setblocking(False)
        while (why := plain.connect_ex(address.path)) == errno.EAGAIN:
            # A busy daemon's queue is full, and nothing tells of room in it.
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "it takes no connections now")
            _rest(min(left, _FULL_SECONDS), wake)
        if why:
            raise OSError(why, os.strerror(why))
        plain.setblocking(True)
    except BaseException:
        plain.close()
        raise
    return plain


def _rest(seconds: float, wake: int) -> None:
    """Raises GivenUp, NeverAsked."""
    poller = select.poll()
    if wake >= 0:
        poller.register(wake, select.POLLIN)
    if poller.poll(0):
        raise NeverAsked
    cut.of_this_thread().sleep(seconds)


def _reached(
    address: Address, begun: Callable[[socket.socket], object], wake: int
) -> socket.socket:
    """Connect by TCP to the first of its addresses that answers. Raises as ``dial``."""
    last = OSError(errno.EADDRNOTAVAIL, "no address is known by that name")

    def wait(named: socket.socket) -> None:
        begun(named)
        _await(named, select.POLLIN, wake)

    for family, kind, number, _, where in addresses(address.host, address.port, wait):
        try:
            plain = _Socket(family, kind, number)
        except OSError as error:  # as of IPv6, which "localhost" has too, where the kernel has none
            last = error
            continue
        try:
            plain.setblocking(False)
            begun(plain)
            why = plain.connect_ex(where)
            if why == errno.EINPROGRESS:
                # From its begin on a cut wakes who waits; who went before is seen there.
                _await(plain, select.POLLOUT, wake, time.monotonic() + CONNECT_SECONDS)
                why = plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not why:
                return plain
        except TimeoutError:
            why = errno.ETIMEDOUT
        except BaseException:
            plain.close()
            raise
        plain.close()
        last = OSError(why, os.strerror(why))
    raise last


def _await(sock: socket.socket, events: int, wake: int, until: float = math.inf) -> None:
    """Wait for one of a socket that begins. Raises GivenUp, NeverAsked, TimeoutError."""
    poller = select.poll()
    poller.register(sock, events)
    if wake >= 0:
        poller.register(wake, select.POLLIN)
    found: dict[int, int] = {}
    while not found and (left := until - time.monotonic()) > 0:
        cut.of_this_thread().check()
        found = dict(poller.poll(min(left * 1000, _HANDLED_MS)))
    cut.of_this_thread().check()
    if wake in found:
        raise NeverAsked
    if not found:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _tuned(
    plain: socket.socket,
    address: Address,
    context: ssl.SSLContext | None,
    begun: Callable[[socket.socket], object],
    wake: int,
) -> socket.socket:
    made = plain
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            plain.setsockopt(socket.IPPROTO_TCP, option, value)
        if context is not None:
            made = tls_socket = context.wrap_socket(
                plain, server_hostname=address.host, do_handshake_on_connect=False
            )
            begun(made)
            _shake_hands(tls_socket, wake)
        made.settimeout(None)
    except BaseException:
        made.close()
        raise
    return made


def _shake_hands(made: ssl.SSLSocket, wake: int) -> None:
    """Raises as ``_await``, and OSError."""
    until = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            made.do_handshake()
            return
        except ssl.SSLWantReadError:
            _await(made, select.POLLIN, wake, until)
        except ssl.SSLWantWriteError:
            _await(made, select.POLLOUT, wake, until)


def tls(address: Address) -> ssl.SSLContext | None:
    """Return its context of TLS. Raises InvalidInput where its files cannot be used."""
    if not address.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=address.ca or None)
        if address.cert:
            context.load_cert_chain(address.cert, address.cert_key or None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(
            f"the certificates for {address} cannot be used: {error}",
            remediation="correct AGENTD_CA, AGENTD_CERT and AGENTD_CERT_KEY",
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _TLSSocket
    return context


class Connection(http.client.HTTPConnection):
    """One of them; a small request leaves in one write."""

    def __init__(self, address: Address, context: ssl.SSLContext | None) -> None:
        super().__init__(address.host or "localhost", address.port or None)
        self._address = address
        self._context = context
        self._corked: list[bytes] | None = None
        self._held = 0
        self._dialled: Any = None

    def connect(self, wake: int = -1) -> None:
        self.sock = self._dialled = dial(self._address, self._context, self._begin, wake)
        cut.of_this_thread().check()

    def _begin(self, sock: socket.socket) -> None:
        self._dialled = sock

    def cut(self) -> None:
        """End it, both ways, for who waits to send or for an answer; from any thread."""
        if self._dialled is not None:
            with contextlib.suppress(OSError):
                # Not TLS's own, which would take its state away from under that thread.
                socket.socket.shutdown(self._dialled, socket.SHUT_RDWR)

    def request(self, *args: Any, **options: Any) -> None:
        self._corked, self._held = [], 0
        try:
            super().request(*args, **options)
            self._flush()
        finally:
            self._corked = None

    def send(self, data: Any) -> None:
        if self._corked is None:
            super().send(data)
            return
        self._corked.append(data)
        self._held += len(data)
        if self._held >= _CORK:
            self._flush()

    def wake_by(
        self, fd: int, then: Callable[[], bool] | None = None, *, dials_on: bool = False
    ) -> None:
        """Reads of its answer raise Woken, or do ``then``, once ``fd`` is readable; -1: never. To
        be connected first it waits no longer than that, either, unless it ``dials_on``."""
        if self._dialled is None:
            self.connect(-1 if dials_on else fd)
        # An answer that ends with its connection has taken ``sock`` away by now.
        self._dialled.wake, self._dialled.on_wake = fd, then

    @property
    def usable(self) -> bool:
        """Whether the server has neither closed it nor sent what nobody asked for."""
        if self.sock is None:
            return False
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        return not poller.poll(0)

    def _flush(self) -> None:
        data, self._corked, self._held = self._corked or [], [], 0
        if data:
            super().send(data[0] if len(data) == 1 else b"".join(data))


class Pool:
    """Thread-safe. A forked child begins with an empty one."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._context: ssl.SSLContext | None = None
        self._condition = threading.Condition()
        self._idle: list[Connection] = []
        self._open = 0
        self._owner = os.getpid()

    def take(self, *, fresh: bool = False, ends: bool = False) -> Connection:
        """Take one, to be given back. Raises Full when too many are taken for too long, unless it
        is for what ``ends`` something: there is room for that, or nobody could make any."""
        deadline, context = time.monotonic() + MAX_WAIT, self.context()
        with self._condition:
            self._check_owner()
            while self._open >= MAX_OPEN and not ends:
                cut.of_this_thread().check()
                left = deadline - time.monotonic()
                if not self._condition.wait(min(left, _SOON_SECONDS)) and left <= _SOON_SECONDS:
                    raise Full(
                        f"{MAX_OPEN} requests to {self.address} are under way",
                        remediation="wait for some of them, or use another process",
                    )
            self._open += 1
            while self._idle:
                connection = self._idle.pop()  # the warmest
                if connection.usable and not fresh:
                    return connection
                connection.close()
        return Connection(self.address, context)

    def give_back(self, connection: Connection, *, reusable: bool) -> None:
        with self._condition:
            self._open = max(0, self._open - 1)
            self._condition.notify()
            if reusable and connection.sock is not None and len(self._idle) < MAX_IDLE:
                connection.wake_by(-1)
                self._idle.append(connection)
                return
        with contextlib.suppress(OSError):
            connection.close()

    def context(self) -> ssl.SSLContext | None:
        if self.address.tls and self._context is None:
            self._context = tls(self.address)
        return self._context

    def close(self, keep: int = 0) -> None:
        """Close all idle ones but the ``keep`` warmest. Those that are taken are closed when they
        come back, or are kept for the next use."""
        with self._condition:
            self._check_owner()
            count = max(0, len(self._idle) - keep)
            idle, self._idle = self._idle[:count], self._idle[count:]
        for connection in idle:
            connection.close()

    def _check_owner(self) -> None:
        if self._owner != os.getpid():
            # The parent's: to write to them would garble its requests. Closing our copies does not.
            for connection in self._idle:
                connection.close()
            self._owner, self._idle, self._open = os.getpid(), [], 0
