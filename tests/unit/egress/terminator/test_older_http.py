"""Programs of HTTP/1.0 at hosts of HTTP/1.1."""

import socket
from pathlib import Path

from tests.unit.egress.terminator.world import HOST, judging, read_head

_GET = f"GET /v1/x HTTP/1.0\r\nHost: {HOST}\r\n\r\n"
_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_body_comes_whole_and_without_the_trailers_of_its_chunks(tmp_path: Path) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(_HEAD + b"2\r\nok\r\n0\r\nX-Sum: 6\r\n\r\n")

    with judging(tmp_path) as made, made.program(serve, [f"GET {HOST}/v1/**"]) as it:
        assert it.ask(f"once({_GET!r})").endswith("\r\n\r\nok")
        assert not it.keeper.faults
