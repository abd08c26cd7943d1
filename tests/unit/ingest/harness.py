"""A server in a thread, over real sockets, and clients to ask it with."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from tests.unit.ingest.fake import FakeDaemon

from agentd.ingest.rest.app import mount as rest
from agentd.ingest.web import listeners
from agentd.ingest.web.door import Mount
from agentd.ingest.web.limits import WebLimits
from agentd.ingest.web.listeners import Listener
from agentd.ingest.web.routes import Doors
from agentd.ingest.web.server import Server
from agentd.ingest.web.web import MetricsSource, Web

ALICE = {"X-API-Key": "agd_alice"}
BOB = {"X-API-Key": "agd_bob"}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float = 120) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Reply:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error, which has all four fields."""
        assert set(self.json) == {"code", "message", "cause", "remediation"}
        code: str = self.json["code"]
        return code


class Running:
    def __init__(
        self,
        folder: Path,
        limits: WebLimits | None = None,
        more: Sequence[Listener] = (),
        metrics: Callable[[], bytes] | None = None,
        doors: Callable[[Web, FakeDaemon], dict[str, Mount]] = lambda web, service: {},
    ) -> None:
        self.service = FakeDaemon()
        self.path = str(folder / "s")
        self.limits = limits or WebLimits()
        tcp = listeners.tcp("127.0.0.1", 0)
        self.port: int = tcp[0].socket.getsockname()[1]
        self._listeners = [listeners.unix(self.path), *tcp, *more]
        self._metrics = metrics
        self._doors = doors
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self.drain_seconds: float | None = None
        self.drained: bool | None = None

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.stop = asyncio.Event()
        metrics = None if self._metrics is None else MetricsSource(self._metrics, public=True)
        web = Web(self.limits, metrics, lambda: self.service.not_ready)
        mounts = {"rest": rest(web, self.service)} | self._doors(web, self.service)
        doors = Doors(web, mounts)
        self.server = Server(web, self.service, [(one, doors) for one in self._listeners])
        await self.server.start()
        self._started.set()
        await self.stop.wait()
        if self.drain_seconds is not None:
            self.drained = await self.server.drain(self.drain_seconds)
        await self.server.close()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(120)
        return self

    @property
    def thread(self) -> int | None:
        """Of the event loop."""
        return self._thread.ident

    def begin_to_end(self, drain: float | None = None) -> None:
        self.drain_seconds = drain
        self.loop.call_soon_threadsafe(self.stop.set)

    def join(self) -> None:
        """Wait until it has ended; of itself, as nothing in its sandboxes is ended before."""
        self._thread.join(120)

    def __exit__(self, *exc: object) -> None:
        for sandbox in self.service.sandboxes.values():
            for process in sandbox.processes.values():
                process.blocked.set()
                if process.result is None:
                    process.end()
        with contextlib.suppress(RuntimeError):
            self.begin_to_end(self.drain_seconds)
        self._thread.join(120)
        assert not self._thread.is_alive()

    # -- clients --

    def connect(self) -> UnixConnection:
        return UnixConnection(self.path)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        *,
        tcp: bool = False,
    ) -> Reply:
        """``body`` as it is where it is bytes, else as JSON."""
        connection: http.client.HTTPConnection = (
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            if tcp
            else self.connect()
        )
        sent = dict(headers or {})
        raw = body
        if body is not None and not isinstance(body, bytes):
            raw = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        with contextlib.closing(connection):
            connection.request(method, path, raw, sent)  # type: ignore[arg-type]
            return Reply(connection.getresponse())

    def raw(self) -> socket.socket:
        found = socket.socket(socket.AF_UNIX)
        found.connect(self.path)  # without a timeout it waits for room in the backlog
        found.settimeout(120)
        return found

    def say(self, data: bytes) -> bytes:
        """All that comes back until the server hangs up."""
        with self.raw() as client:
            client.sendall(data)
            return read_all(client)

    def sandbox(self) -> str:
        made = self.ask("POST", "/v1/sandboxes", {})
        assert made.status == 201
        id_: str = made.json["id"]
        return id_

    def process(self, *argv: str) -> tuple[str, str]:
        """A sandbox, and a started process in it."""
        id_ = self.sandbox()
        made = self.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": argv, "wait": False})
        assert made.status == 201
        return id_, made.json["id"]


def read_all(client: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def sse(response: http.client.HTTPResponse) -> Iterator[dict[str, str]]:
    """Events, without comments."""
    event: dict[str, str] = {}
    for line in response:
        text = line.decode().rstrip("\n")
        if text.startswith(":"):
            continue
        if not text:
            if event:
                yield event
            event = {}
            continue
        name, _, value = text.partition(": ")
        event[name] = value
