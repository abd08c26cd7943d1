"""Servers of a test's own on loopback, which say whatever the test wants."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence

from agentd.capability.fetch.fetcher import Fetcher

Answer = Callable[["Server", socket.socket, bytes], None]


class Server:
    """``requests``: head and body of each, as they came."""

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.stopping = threading.Event()
        self._answer = answer
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    def close(self) -> None:
        self.stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connected,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connected: socket.socket) -> None:
        connected.settimeout(120)
        with connected, contextlib.suppress(OSError):
            if self._tls is not None:
                with self._tls.wrap_socket(connected, server_side=True) as wrapped:
                    self._speak(wrapped)
            else:
                self._speak(connected)

    def _speak(self, connected: socket.socket) -> None:
        request = read_request(connected)
        if request:
            self.requests.append(request)
            self._answer(self, connected, request)


def read_request(connected: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connected.recv(65536)
        if not piece:
            return data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            missing = int(line.split(b":")[1]) - len(body)
            while missing > 0:
                piece = connected.recv(missing)
                data += piece
                missing -= len(piece)
    return data


def says(
    body: bytes = b"", *, status: str = "200 OK", headers: Sequence[str] = (), length: bool = True
) -> Answer:
    """The same answer to everyone."""
    lines = [f"HTTP/1.1 {status}", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    data = "\r\n".join([*lines, "", ""]).encode() + body
    return lambda server, connected, request: connected.sendall(data)


def redirects(location: str, status: str = "302 Found") -> Answer:
    return says(status=status, headers=[f"Location: {location}"])


def fetcher(names: Mapping[str, Sequence[str]] | None = None, **options: object) -> Fetcher:
    """One that may reach loopback, and knows these names only."""
    known = names or {}

    def resolve(host: str) -> Sequence[str]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "name not known")
        return known[host]

    defaults: dict[str, object] = {
        "allowed_networks": ("127.0.0.0/8",),
        "ports": None,
        "resolver": resolve,
    }
    return Fetcher(**{**defaults, **options})  # type: ignore[arg-type]
