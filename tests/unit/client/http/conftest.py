"""A daemon that answers what the test says."""

import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import pytest

from agentd.client.http import address
from agentd.client.http.client import HttpClient, close_resting

DROP = object()  # the connection ends without an answer


class Scripted(socketserver.ThreadingUnixStreamServer):
    """``answers`` gives, one request after the other, ``(status, headers, body)``, DROP, or a
    function of the handler that writes by itself; the last holds for all that follow."""

    def __init__(self, path):
        super().__init__(path, Handler)
        self.answers = []
        self.requests = []
        self.connections = 0
        self._lock = threading.Lock()

    def next_answer(self, request):
        with self._lock:
            self.requests.append(request)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.connections += 1

    def address_string(self):
        return "unix"

    def log_message(self, *args):
        pass

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _answer(self):
        body = self._body()
        request = SimpleNamespace(
            method=self.command, path=self.path, headers=self.headers, body=body
        )
        answer = self.server.next_answer(request)
        if answer is DROP:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif callable(answer):
            answer(self)
        else:
            status, headers, content = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Transfer-Encoding" not in headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline() or b"0", 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    do_GET = do_POST = do_PUT = do_DELETE = _answer


@pytest.fixture
def daemon(tmp_path):
    with Scripted(str(tmp_path / "s")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        close_resting()  # the server waits for it
        server.shutdown()
        thread.join()


@pytest.fixture
def client(daemon, monkeypatch):
    monkeypatch.setattr("agentd.client.http.client.DELAYS", (0.0, 0.0, 0.0))
    made = HttpClient(address.parse(f"unix:{daemon.server_address}", api_key="agd_id_secret"))
    yield made
    made.close()


@pytest.fixture
def drop():
    return DROP
