"""What is dialled in a machine, passed on to its host: a stream a connection, and one for what is
asked by DNS (``linux.dialled``)."""

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from agentd.guest.loop import READ, Loop
from agentd.linux import anyip, dialled
from agentd.linux.dialled import BrokenStream, FrameParser, Shuttle
from agentd.linux.waiting import is_ready

MAX_CONNECTIONS = 576  # the host takes no more
MAX_ASKED = 256  # questions that wait for an answer
MAX_QUERY = 1024
MAX_UNSENT = MAX_ASKED * MAX_QUERY  # bytes of questions that the host has not taken yet
_ACCEPTS = 32
_BUFFER = 64 << 10  # of the kernel's, a connection and direction, to programs
_STREAM_BUFFER = 128 << 10  # and to the host
_CONNECT_SECONDS = 20
_HOST_CID = 2
# linux/vm_sockets.h
_AF_VSOCK = 40
_BUFFER_SIZE, _CONNECT_TIMEOUT = 0, 6
_ALL = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_RESET = struct.pack("=ii", 1, 0)  # struct linger: on, and no time
_SERVFAIL = 2
_libc = ctypes.CDLL(None)

Dial = Callable[[], socket.socket]


def dial_host(port: int) -> socket.socket:
    """Makes a stream to a port of the machine's host, which is being made. Raises OSError."""
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    stream = socket.socket(_AF_VSOCK, kind, 0)
    try:
        _be_patient(stream)
        stream.setsockopt(_AF_VSOCK, _BUFFER_SIZE, _STREAM_BUFFER)
        code = stream.connect_ex((_HOST_CID, port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except BaseException:
        stream.close()
        raise
    return stream


def _be_patient(stream: socket.socket) -> None:
    """Two seconds are usual, and a host may be busy. By libc: of a socket of this family Python
    sets numbers alone."""
    seconds = struct.pack("=qq", _CONNECT_SECONDS, 0)  # struct timeval
    _libc.setsockopt(stream.fileno(), _AF_VSOCK, _CONNECT_TIMEOUT, seconds, len(seconds))


class Front:
    """Accepts at the sockets, and asks the host by streams."""

    def __init__(self, loop: Loop, sockets: list[socket.socket], dial: Dial) -> None:
        """``dial`` gives a stream to the host that is being made, and does not block. Raises
        OSError where there is no way to it."""
        self.loop, self.dial = loop, dial
        self._count = 0
        self._full: list[socket.socket] = []
        self._asking = Asking(self)
        for sock in sockets:
            sock.setblocking(False)
            if sock.type == socket.SOCK_STREAM:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
                loop.watch(sock.fileno(), READ, partial(self._accept, sock))
            else:
                loop.watch(sock.fileno(), READ, partial(self._asking.read, sock))

    def ended(self) -> None:
        """Takes note that a connection has ended."""
        self._count -= 1
        listeners, self._full = self._full, []
        for listener in listeners:
            self.loop.watch(listener.fileno(), READ, partial(self._accept, listener))

    def _accept(self, listener: socket.socket, _: int) -> None:
        for _ in range(_ACCEPTS):
            if self._count >= MAX_CONNECTIONS:
                self.loop.forget(listener.fileno())
                self._full.append(listener)
                return
            try:
                client, _ = listener.accept()
            except OSError:  # nothing more, or it went away
                return
            try:
                client.setblocking(False)
                to = anyip.destination(client, client.family == socket.AF_INET6)
                if to is None:
                    raise OSError(errno.ECONNREFUSED, "our own listener")
                stream = self.dial()
            except OSError:
                reset(client)
                continue
            self._count += 1
            kind = dialled.TCP4 if len(to[0]) == 4 else dialled.TCP6
            Passed(self, client, stream, dialled.header(kind, *to))


class Passed:
    """One connection, to the host."""

    def __init__(
        self, front: Front, client: socket.socket, stream: socket.socket, head: bytes
    ) -> None:
        self._front, self._client, self._stream = front, client, stream
        self._head = memoryview(head)
        self._shuttle = Shuttle(stream, client)
        self._hung = self._closed = False
        self._connected = False
        front.loop.watch(stream.fileno(), _ALL, self._stream_ready)
        front.loop.watch(client.fileno(), _ALL, self._client_ready)

    def _client_ready(self, _: int) -> None:
        if self._connected:
            self._ready()

    def _stream_ready(self, _: int) -> None:
        self._hung = self._hung or _hung(self._stream)
        if not self._connected:
            code = self._stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code or self._hung:
                self._close(broken=True)
                return
        self._ready()

    def _ready(self) -> None:
        if self._closed:
            return
        try:
            more = self._go()
        except OSError:
            self._close(broken=True)
            return
        if self._shuttle.finished:
            self._close(broken=False)
        elif more:
            self._front.loop.soon(self._ready)

    def _go(self) -> bool:
        try:
            while self._head:
                self._head = self._head[self._stream.send(self._head) :]
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno == errno.ENOTCONN:  # it is still being made
                return False
            raise
        self._connected = True
        more = self._shuttle.move()
        if self._hung and not more:
            self._shuttle.gone()
        return more

    def _close(self, *, broken: bool) -> None:
        if self._closed:
            return
        self._closed = True
        for sock in (self._stream, self._client):
            self._front.loop.forget(sock.fileno())
        self._stream.close()
        if broken:
            reset(self._client)
        else:
            self._client.close()
        self._front.ended()


class _Asked(NamedTuple):
    """Who asked what, and the control message of an answer from the address that was asked."""

    sock: socket.socket
    place: tuple[str, int]
    source: list[tuple[int, int, bytes]]
    query: bytes


class Asking:
    """What is asked by DNS: over one stream, which is made when something is asked. Where it is
    lost, what has no answer is asked again over another, once."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._stream: socket.socket | None = None
        self._out = bytearray()
        self._frames = FrameParser()
        self._said = bytearray()
        self._asked: dict[int, _Asked] = {}
        self._number = 0
        self._answered = False  # over this stream

    def read(self, sock: socket.socket, _: int) -> None:
        for _ in range(_ACCEPTS):
            try:
                query, told, _flags, place = sock.recvmsg(MAX_QUERY, anyip.PKTINFO_SPACE)
            except BlockingIOError:
                return
            except OSError:  # what an answer met: whoever asked is gone
                continue
            self._ask(_Asked(sock, place, anyip.source(sock, told), query))

    def _ask(self, asked: _Asked) -> None:
        if len(self._out) > MAX_UNSENT:
            return  # the host does not keep up: it is lost, as datagrams are
        if len(self._asked) >= MAX_ASKED:
            del self._asked[next(iter(self._asked))]  # the oldest, whoever asked has given up
        self._number = self._number + 1 & 0xFFFFFFFF
        self._asked[self._number] = asked
        if self._stream is None:
            self._connect()
        else:
            self._put(self._number, asked.query)
            self._ready(0)

    def _put(self, number: int, query: bytes) -> None:
        head = dialled.FRAME.pack(dialled.NUMBER.size + len(query))
        self._out += head + dialled.NUMBER.pack(number) + query

    def _connect(self) -> None:
        try:
            self._stream = self._front.dial()
        except OSError:
            self._give_up()
            return
        self._frames, self._said, self._answered = FrameParser(), bytearray(), False
        self._out = bytearray(dialled.header(dialled.DNS))
        for number, asked in self._asked.items():
            self._put(number, asked.query)
        self._front.loop.watch(self._stream.fileno(), _ALL, self._ready)

    def _ready(self, _: int) -> None:
        if self._stream is None:
            return
        try:
            self._flush(self._stream)
            self._take(self._stream)
        except OSError as error:
            if error.errno != errno.ENOTCONN or _hung(self._stream):
                self._lost()

    def _flush(self, stream: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._out:
                del self._out[: stream.send(self._out)]

    def _take(self, stream: socket.socket) -> None:
        while True:
            try:
                data = stream.recv(dialled.MAX_FRAME)
            except BlockingIOError:
                return
            if not data:
                raise BrokenStream("the host takes no questions")
            for piece, last in self._frames.feed(data):
                self._said += piece
                if last:
                    said, self._said = bytes(self._said), bytearray()
                    self._answer(said)

    def _answer(self, said: bytes) -> None:
        size = dialled.NUMBER.size
        asked = self._asked.pop(int.from_bytes(said[:size], "big"), None)
        self._answered = True
        if asked is not None:
            _reply(asked, said[size:])

    def _lost(self) -> None:
        stream, self._stream = self._stream, None
        self._out.clear()
        if stream is not None:
            self._front.loop.forget(stream.fileno())
            stream.close()
        if self._asked and self._answered:
            self._connect()
        else:
            self._give_up()

    def _give_up(self) -> None:
        """There is nobody to ask: say so, rather than let programs wait."""
        for asked in self._asked.values():
            _reply(asked, _failure(asked.query))
        self._asked.clear()


def _reply(asked: _Asked, message: bytes) -> None:
    with contextlib.suppress(OSError):  # it is lost, as datagrams are
        asked.sock.sendmsg([message], asked.source, socket.MSG_DONTWAIT, asked.place)


def _failure(query: bytes) -> bytes:
    """SERVFAIL, in the query's own words (RFC 1035, 4.1.1)."""
    if len(query) < 12:
        return b""
    return query[:2] + bytes((query[2] | 0x80, 0x80 | _SERVFAIL)) + query[4:]


def _hung(stream: socket.socket) -> bool:
    """Whether the host has closed it: it never says by half a close that it has said all."""
    return is_ready(stream, events=select.POLLRDHUP)


def reset(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    client.close()
