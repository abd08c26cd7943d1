"""Between bytes that come one at a time, of a server inside or of a client, others have turns."""

import asyncio
import contextlib
import re
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from hashlib import sha1

from tests.unit.ingest.harness import Running
from tests.unit.ingest.rest.test_ports import Inside, _to
from websockets.sync.client import unix_connect

_MANY = 12_000
_CLIENTS, _FRAMES = 16, 30_000  # as many as a socket takes of six bytes each
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


@contextlib.contextmanager
def _busiest(running: Running) -> Iterator[Callable[[], float]]:
    """The most CPU time that the event loop took between two turns of a task by then, in seconds;
    how busy the machine is makes no difference."""
    longest, going, begun = [0.0], [True], threading.Event()

    async def tick() -> None:
        last = time.thread_time()
        while going[0]:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            longest[0], last = max(longest[0], now - last), now
            begun.set()

    def most() -> float:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), running.loop).result(120)
        return longest[0]

    ticking = asyncio.run_coroutine_threadsafe(tick(), running.loop)
    try:
        assert begun.wait(120)
        yield most
    finally:
        going[0] = False
        ticking.result(120)


def test_a_body_in_single_bytes_keeps_the_loop_from_nobody(running: Running) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    id_ = running.sandbox()
    with Inside(head + b"1\r\na\r\n" * _MANY + b"0\r\n\r\n") as inside, _busiest(running) as most:
        reply = running.ask("GET", _to(id_, inside.port))
        assert reply.body == b"a" * _MANY
        assert most() < 0.5


class _Flood(Inside):
    """Opens a WebSocket, and sends empty messages without end of which each takes two bytes."""

    def __init__(self) -> None:
        super().__init__()

    @property
    def answer(self) -> bytes:
        key = next(
            line.split(b":")[1].strip()
            for line in self.heads[-1].split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key:")
        )
        accept = b64encode(sha1(key + _GUID).digest())  # noqa: S324  as the RFC has it
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        frames = b"\x82\x00" * _MANY + b"\x88\x02\x03\xe8"
        return head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + frames

    @answer.setter
    def answer(self, _: bytes) -> None:
        """Its own is made anew for each."""


def test_messages_without_end_keep_the_loop_from_nobody(running: Running) -> None:
    id_ = running.sandbox()
    with _Flood() as inside, _busiest(running) as most:
        where = f"ws://localhost{_to(id_, inside.port)}"
        with unix_connect(running.path, where, max_size=None) as client:
            assert sum(1 for _ in client) == _MANY
        assert most() < 0.5


def _attached(running: Running, stack: contextlib.ExitStack, where: str) -> socket.socket:
    """A WebSocket to a process's streams, open, of which each byte is the test's."""
    client = stack.enter_context(running.raw())
    head = f"GET {where}/attach HTTP/1.1\r\nHost: localhost\r\n"
    head += "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    head += "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    client.sendall(head.encode())
    _read_until(client, b"started")
    return client


def _read_until(client: socket.socket, end: bytes) -> bytes:
    found = b""
    while end not in found:
        found += client.recv(1 << 16)
    return found


def _frame(data: bytes, kind: int = 0x82) -> bytes:
    """A client's, masked with zeros."""
    return bytes((kind, 0x80 | len(data), 0, 0, 0, 0)) + data


def test_clients_empty_frames_keep_the_loop_from_nobody(running: Running) -> None:
    id_, process = running.process("cat")
    with contextlib.ExitStack() as stack:
        where = f"/v1/sandboxes/{id_}/processes/{process}"
        clients = [_attached(running, stack, where) for _ in range(_CLIENTS)]
        most = stack.enter_context(_busiest(running))
        sent = threading.Event()
        stack.callback(sent.set)
        running.loop.call_soon_threadsafe(sent.wait, 120)  # then all of it is there at once
        for number, client in enumerate(clients):
            client.sendall(_frame(b"", kind=0x8A) * _FRAMES + _frame(b"done %x" % number))
        sent.set()
        for number, client in enumerate(clients):
            _read_until(client, b"done %x" % number)
        assert most() < 0.5


def test_messages_that_come_at_once_are_all_taken(running: Running) -> None:
    id_, process = running.process("cat")
    lines = [b"line %d\n" % number for number in range(500)]
    with contextlib.ExitStack() as stack:
        client = _attached(running, stack, f"/v1/sandboxes/{id_}/processes/{process}")
        client.sendall(b"".join(map(_frame, lines)))
        echoed = _read_until(client, lines[-1])
    assert re.findall(rb"line [0-9]+\n", echoed) == lines
