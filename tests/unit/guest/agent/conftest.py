"""A real agent in a process of its own, and a blocking client to talk to it."""

import json
import os
import signal
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentd.guest import wire
from agentd.guest.agent import Ready

LAST = {"exited", "failed", "error", "result", "end"}


class Client:
    """One v2 connection. Grants credit back as it reads, unless told not to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(120)
        self.decoder = wire.FrameDecoder(wire.FROM_AGENT)
        self.events: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self.output: dict[tuple[int, int], bytearray] = defaultdict(bytearray)
        self.credit: dict[int, int] = defaultdict(lambda: wire.INITIAL_WINDOW)
        self.silent: set[int] = set()
        self.goaway: str | None = None
        self.hello: dict[str, Any] = {}
        self._next = 0

    def shake_hands(self) -> "Client":
        self.sock.sendall(wire.HELLO)
        line = b""
        while not line.endswith(b"\n"):
            line += self.sock.recv(1)
        self.hello = json.loads(line)
        return self

    def request(self, op: str, *fds: int, **fields: object) -> int:
        self._next += 1
        frame = wire.encode_json(wire.REQUEST, self._next, {"op": op, **fields})
        if fds:
            socket.send_fds(self.sock, [frame], list(fds))
        else:
            self.sock.sendall(frame)
        return self._next

    def send(self, kind: int, channel: int, payload: bytes = b"") -> None:
        self.sock.sendall(wire.encode(kind, channel, payload))

    def control(self, channel: int, **fields: object) -> None:
        self.sock.sendall(wire.encode_json(wire.CONTROL, channel, fields))

    def grant(self, channel: int, amount: int) -> None:
        self.sock.sendall(wire.encode_credit(channel, amount))

    def read(self) -> bool:
        """Take one portion in; False at the end of the stream."""
        try:
            data = self.sock.recv(1 << 16)
        except ConnectionResetError:
            return False
        for kind, channel, payload in self.decoder.feed(data):
            self._take(kind, channel, payload)
        return bool(data)

    def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            assert self.read(), f"the agent hung up: {self.goaway}"

    def wait(self, channel: int, *names: str) -> dict[str, Any]:
        """The first event of that name; by default of a channel's last ones."""
        wanted = set(names) or LAST

        def found() -> list[dict[str, Any]]:
            return [event for event in self.events[channel] if event["event"] in wanted]

        self.until(found)
        return found()[0]

    def wait_end(self) -> str | None:
        """The reason of the agent's GOAWAY, once it has hung up."""
        while self.read():
            pass
        return self.goaway

    def run(self, *argv: str, **fields: object) -> dict[str, Any]:
        return self.wait(self.request("exec", argv=list(argv), **fields))

    def stdout(self, channel: int) -> bytes:
        return bytes(self.output[channel, wire.STDOUT])

    def stderr(self, channel: int) -> bytes:
        return bytes(self.output[channel, wire.STDERR])

    def close(self) -> None:
        self.sock.close()

    def _take(self, kind: int, channel: int, payload: bytes) -> None:
        if kind == wire.EVENT:
            self.events[channel].append(json.loads(payload))
        elif kind == wire.CREDIT:
            self.credit[channel] += wire.decode_credit(payload)
        elif kind == wire.GOAWAY:
            self.goaway = json.loads(payload)["reason"]
        else:
            self.output[channel, kind] += payload
            if channel not in self.silent:
                self.grant(channel, len(payload))


class Remote:
    """An agent behind a SEQPACKET listener."""

    def __init__(self) -> None:
        self.listener, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ended: int | None = None
        self._clients: list[Client] = []
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                signal.alarm(0)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                self.listener.close()
                Ready(pid1=False).serve(theirs)
                status = 0
            finally:
                os._exit(status)
        theirs.close()

    def stream(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        socket.send_fds(self.listener, [b"c"], [theirs.fileno()])
        theirs.close()
        return ours

    def connect(self) -> Client:
        client = Client(self.stream())
        self._clients.append(client)
        return client.shake_hands()

    def end(self) -> int:
        """Close the listener; the agent's exit status."""
        for client in self._clients:
            client.close()
        self.listener.close()
        if self.ended is None:
            self.ended = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.ended


@pytest.fixture
def remote() -> Iterator[Remote]:
    agent = Remote()
    yield agent
    assert agent.end() == 0


@pytest.fixture
def client(remote: Remote) -> Client:
    return remote.connect()
