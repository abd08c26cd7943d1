"""A registry of the tests' own, which leads whoever pulls where it likes; and where it may lead."""

import base64
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

#: What a service of this machine tells everybody who asks, as a cloud's tells its credentials.
SECRET = "the-secret-of-this-machine"


class Asked(ThreadingHTTPServer):
    """Remembers each request: its path, and the Authorization that it came with."""

    daemon_threads = True
    block_on_close = True

    def __init__(self, handler: type[BaseHTTPRequestHandler], address: str, port: int = 0) -> None:
        super().__init__((address, port), handler)
        self.asked: list[tuple[str, str]] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    server: Any
    timeout = 20

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes, **fields: str) -> None:
        self.send_response(status)
        for name, value in {**fields, "Content_Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))
        self.get()

    do_HEAD = do_GET

    def get(self) -> None:
        raise NotImplementedError

    def give(self) -> None:
        """Give a blob of the layout, and whatever else is wanted a token."""
        blob = self.server.layout / "blobs/sha256" / self.path.rpartition("sha256:")[2]
        token = json.dumps({"Token": SECRET}).encode()
        self.answer(200, blob.read_bytes() if blob.is_file() else token)


class _Service(_Handler):
    def get(self) -> None:
        self.give()


class _Registry(_Handler):
    def get(self) -> None:
        server = self.server
        if not self.path.startswith("/v2/"):
            self.give()
        elif server.realm and "Authorization" not in self.headers:
            told = f'Bearer realm="{server.realm}",service="x"'
            self.answer(401, b"{}", WWW_Authenticate=told)
        elif self.path == "/v2/":
            self.answer(200, b"{}")
        elif "/manifests/" in self.path:
            (only,) = json.loads((server.layout / "index.json").read_text())["manifests"]
            blob = server.layout / "blobs/sha256" / only["digest"][7:]
            fields = {"Content_Type": only["mediaType"], "Docker_Content_Digest": only["digest"]}
            self.answer(200, blob.read_bytes(), **fields)
        elif server.blobs:
            self.answer(307, b"", Location=f"{server.blobs}/elsewhere{self.path}")
        else:
            self.give()


class _Proxy(_Handler):
    """One that connects, by names of its own."""

    def do_CONNECT(self) -> None:
        login = self.headers.get("Proxy-Authorization", "")
        said = base64.b64decode(login.removeprefix("Basic ")).decode()
        self.server.asked.append((self.path, said))
        host, _, port = self.path.rpartition(":")
        far = self.server.places.get(host)
        if far is None:
            self.answer(502, b"")
            return
        self.send_response(200)
        self.end_headers()
        with socket.create_connection((far, int(port)), timeout=20) as sock:
            up = threading.Thread(target=_copy, args=(self.connection, sock), daemon=True)
            up.start()
            _copy(sock, self.connection)
            up.join()
        self.close_connection = True


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@contextmanager
def _served(
    handler: type[_Handler], address: str, port: int = 0, tls: Path | None = None, **more: object
) -> Iterator[Any]:
    with Asked(handler, address, port) as server:
        vars(server).update(more)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls / "cert.pem", tls / "key.pem")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def service(layout: Path, address: str = "127.0.0.1", port: int = 0) -> Iterator[Any]:
    """One that gives everybody a token, and blobs of a layout, whatever its path."""
    with _served(_Service, address, port, layout=layout) as server:
        yield server


@contextmanager
def registry(
    layout: Path,
    address: str = "127.0.0.1",
    port: int = 0,
    *,
    realm: str = "",
    blobs: str = "",
    tls: Path | None = None,
) -> Iterator[Any]:
    """One with the image of a layout: tokens for it are had at ``realm``, its blobs at ``blobs``,
    both URLs."""
    more = {"layout": layout, "realm": realm, "blobs": blobs}
    with _served(_Registry, address, port, tls, **more) as server:
        yield server


@contextmanager
def proxy(address: str, port: int, **places: str) -> Iterator[Any]:
    """One that connects to ``places``, addresses by names with "_" for ".", whatever leads there
    else. It remembers what was asked for, and by whom."""
    by_name = {name.replace("_", "."): found for name, found in places.items()}
    with _served(_Proxy, address, port, places=by_name) as server:
        yield server


def own_address() -> str:
    """One of this machine's that is not its loopback's; "" where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return ""
        address = str(sock.getsockname()[0])
    return "" if address.startswith("127.") else address
