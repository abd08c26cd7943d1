"""tcp: a connection to a port inside, carried as DATA; docs/guest-protocol.md."""

import errno
import os
import socket
from collections import deque

from agentd.guest import wire
from agentd.guest.loop import READ, WRITE
from agentd.guest.operation import Channel, ChannelOperation, Quiet, RequestError, get_int
from agentd.guest.stepped import plain

CHUNK = 256 << 10
# In this order. The error told is the first one's: ::1 fails otherwise where there is no IPv6.
_ADDRESSES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class TunnelOperation(Quiet):
    """Both directions under credit; what waits to be written is bounded by what was granted."""

    def __init__(self, channel: Channel, port: int) -> None:
        self._channel = channel
        self._port = port
        self._addresses = list(_ADDRESSES)
        self._error: OSError | None = None
        self._socket: socket.socket | None = None
        self._connected = False
        self._pending: deque[memoryview] = deque()
        self._host_done = False
        self._peer_done = False
        self._shut = False
        self._closed = False

    def start(self) -> ChannelOperation | None:
        self._connect_next()
        return None if self._closed else self

    def on_data(self, kind: int, data: bytes) -> None:
        if kind != wire.DATA:
            raise RequestError("tcp takes DATA frames")
        if self._host_done:
            raise RequestError("data after its end")
        if data and not self._closed:
            self._pending.append(memoryview(data))
            self._go(WRITE)

    def on_eof(self, kind: int) -> None:
        if kind == wire.DATA_EOF and not self._closed:
            self._host_done = True
            self._go(WRITE)

    def on_credit(self) -> None:
        if not self._closed:
            self._watch()

    def close(self) -> None:
        self._closed = True
        self._pending.clear()
        self._drop_socket()

    def _connect_next(self) -> None:
        while self._addresses:
            family, host = self._addresses.pop(0)
            try:
                self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                code = self._socket.connect_ex((host, self._port))
            except OSError as error:
                code = error.errno or errno.EIO
            if code in (0, errno.EINPROGRESS):
                self._watch()
                return
            self._refused(code)
        self.close()
        self._channel.fail(self._error or OSError(errno.ECONNREFUSED, "no address to connect to"))

    def _refused(self, code: int) -> None:
        self._drop_socket()
        if self._error is None:
            self._error = OSError(code, f"{os.strerror(code)}: port {self._port} inside")

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._channel.loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _watch(self) -> None:
        if self._socket is None:
            return
        if not self._connected:
            wanted = WRITE
        else:
            reads = not self._peer_done and self._channel.credit() > 0
            wanted = (READ if reads else 0) | (WRITE if self._pending else 0)
        if wanted:
            self._channel.loop.watch(self._socket.fileno(), wanted, self._ready)
        else:
            self._channel.loop.forget(self._socket.fileno())

    def _ready(self, events: int) -> None:
        if self._socket is None:
            return
        if self._connected:
            self._go(events)
            return
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._refused(code)
            self._connect_next()
            return
        self._connected = True
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._channel.event("connected")
        self._go(WRITE)

    def _go(self, events: int) -> None:
        """Move what can be moved, then wait for more or end."""
        if not self._connected:
            return
        try:
            if events & WRITE:
                self._write()
            if events & READ:
                self._read()
        except OSError as error:
            self.close()
            self._channel.fail(error)
            return
        if self._closed:
            return
        if self._shut and self._peer_done:
            self.close()
            self._channel.finish("end")
        else:
            self._watch()

    def _write(self) -> None:
        while self._pending and self._socket is not None:
            try:
                sent = self._socket.send(self._pending[0])
            except BlockingIOError:
                return
            if sent == len(self._pending[0]):
                self._pending.popleft()
            else:
                self._pending[0] = self._pending[0][sent:]
            self._channel.grant(sent)
        if self._host_done and not self._shut and self._socket is not None:
            self._shut = True
            self._socket.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        amount = min(self._channel.credit(), CHUNK)
        if self._socket is None or self._peer_done or amount <= 0:
            return
        try:
            data = self._socket.recv(amount)
        except BlockingIOError:
            return
        if data:
            self._channel.send(wire.DATA, data)
        else:
            self._peer_done = True
            self._channel.send_eof()


def start(channel: Channel, request: dict[str, object]) -> ChannelOperation | None:
    if "port" not in request:
        raise RequestError("'port' is missing: an integer from 1 to 65535")
    return TunnelOperation(channel, get_int(request, "port", 0, 1, 65535)).start()


OPERATIONS = {"tcp": plain(start)}
