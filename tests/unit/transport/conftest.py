"""A scripted agent: a thread at the other end of a socket pair that speaks frames by hand."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from agentd.guest import wire
from agentd.transport.guest import Guest

HELLO = b'{"agentd":2,"agent":"0","features":["watching"],"boot":{"pid1":true,"uptime_ms":1}}\n'


class Peer:
    """The agent's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._decoder = wire.FrameDecoder(wire.FROM_HOST)
        self._frames: list[tuple[int, int, bytes]] = []
        self.fds: list[int] = []  # that came with the greeting: the first request's

    def take_fds(self) -> list[int]:
        fds, self.fds = self.fds, []
        return fds

    def greet(self, reply: bytes = HELLO) -> None:
        got = b""
        while len(got) < len(wire.HELLO):
            data, fds, _, _ = socket.recv_fds(self.sock, len(wire.HELLO) - len(got), 8)
            if not data:
                raise EOFError
            got += data
            self.fds += fds
        assert got == wire.HELLO
        self.sock.sendall(reply)

    def frame(self) -> tuple[int, int, bytes]:
        while not self._frames:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    def request(self) -> tuple[int, dict[str, object]]:
        kind, channel, payload = self.frame()
        assert kind == wire.REQUEST
        return channel, json.loads(payload)

    def send(self, kind: int, channel: int, payload: bytes = b"") -> None:
        self.sock.sendall(wire.encode(kind, channel, payload))

    def event(self, channel: int, name: str, **fields: object) -> None:
        self.sock.sendall(wire.encode_json(wire.EVENT, channel, {"event": name, **fields}))

    def exited(self, channel: int, code: int | None = 0, **fields: object) -> None:
        values = {"code": code, "signal": None, "cause": "exited"} | fields
        self.event(channel, "exited", **values)

    def until_closed(self) -> None:
        while self.sock.recv(1 << 16):
            pass


class Fake:
    """Hands out streams; ``script`` serves each of them in a thread."""

    def __init__(self, script: Callable[[Peer], None]) -> None:
        self.script = script
        self.connections = 0
        self.errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def open_stream(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.connections += 1
        thread = threading.Thread(target=self._serve, args=(theirs,))
        thread.start()
        self._threads.append(thread)
        return ours

    def _serve(self, sock: socket.socket) -> None:
        peer = Peer(sock)
        with sock:
            try:
                self.script(peer)
            except (EOFError, OSError):
                pass
            except BaseException as error:
                self.errors.append(error)
            finally:
                for fd in peer.take_fds():
                    os.close(fd)

    def close(self) -> None:
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()
        if self.errors:
            raise self.errors[0]


@pytest.fixture
def agent() -> Iterator[Callable[..., Guest]]:
    """``agent(script, **options)``: a Guest whose agent follows ``script`` on each connection.

    The greeting is done before, unless ``greeted=False``.
    """
    fakes: list[Fake] = []
    guests: list[Guest] = []

    def build(script: Callable[[Peer], None], *, greeted: bool = True, **options: object) -> Guest:
        def served(peer: Peer) -> None:
            if greeted:
                peer.greet()
            script(peer)

        fake = Fake(served)
        fakes.append(fake)
        options = {
            "passes_descriptors": False,
            "handshake_timeout": 5.0,
            "answer_timeout": 5.0,
        } | options
        guest = Guest(fake.open_stream, **options)  # type: ignore[arg-type]
        guest.fake = fake  # type: ignore[attr-defined]
        guests.append(guest)
        return guest

    yield build
    for guest in guests:
        guest.close()
    for fake in fakes:
        fake.close()
