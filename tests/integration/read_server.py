"""A server of HTTPS or HTTP that says what it was asked, with an authority of its own."""

import contextlib
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from typing import Any


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the request, as JSON; /v1/big/N with so many bytes, /v1/full before it has the
    body, which it never takes; /v1/old as servers of HTTP/1.0, which end the connection, /v1/until
    with what ends with it, /v1/none not at all."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: "EchoServer"

    def answer(self) -> None:
        if self.path == "/v1/full":
            self.send_error(413)  # and closes
            return
        body = b""
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        elif length := int(self.headers.get("content-length", 0)):
            body = self.rfile.read(length)
        self.server.seen.append((self.requestline, self.headers.items(), body))
        self.reply(body)

    do_GET = do_POST = do_DELETE = do_PUT = do_HEAD = do_PATCH = do_OPTIONS = answer

    def reply(self, body: bytes) -> None:
        if self.path in ("/v1/old", "/v1/until", "/v1/none"):
            self._close(self.path.removeprefix("/v1/"))
        elif self.path.startswith("/v1/big/"):
            self._big(int(self.path.removeprefix("/v1/big/")))
        else:
            told = {"line": self.requestline, "headers": self.headers.items()}
            self.say(json.dumps({**told, "body": body.decode("latin-1")}).encode())

    def say(self, data: bytes, kind: str = "application/json", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _close(self, how: str) -> None:
        self.close_connection = True
        if how == "old":
            self.protocol_version = "HTTP/1.0"
            self.say(b"old", "text/plain")
        elif how == "until":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"until")

    def _big(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        while length > 0:
            self.wfile.write(b"x" * min(length, 1 << 20))
            length -= 1 << 20

    def log_message(self, *_: Any) -> None:
        pass


class EchoServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None, handler: type[Echo] = Echo) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.seen: list[tuple[str, list[tuple[str, str]], bytes]] = []
        if context is not None:
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def handle_error(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(
    context: ssl.SSLContext | None = None, handler: type[Echo] = Echo
) -> Iterator[EchoServer]:
    with EchoServer(context, handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
