"""A sink that answers that it will not take the records: what is lost is told, with the reason, and
telling of it does not fill the log."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from tests.security.daemons import running, until


class Refusing(HTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen = b""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Refusing)
        self.server.seen += self.rfile.read(int(self.headers["content-length"]))
        self.send_response(401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def sink() -> Iterator[Refusing]:
    made = Refusing()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def test_a_loss_is_told_once_a_minute_and_why(sink: Refusing) -> None:
    begun = time.monotonic()
    config = f'[audit]\nsinks = ["http://127.0.0.1:{sink.server_port}/"]\n'
    with running(config) as daemon:
        daemon.until_recorded(kind="loss")
        for number in range(10):
            daemon.key(f"who{number}")
            until(lambda: f'"who{number}"'.encode() in sink.seen)  # noqa: B023
        losses = daemon.records(kind="loss")
        minutes = (time.monotonic() - begun) / 60
        assert len(losses) <= 2 + minutes, len(losses)
        assert {record.fields["reason"] for record in losses} == {"status 401"}
