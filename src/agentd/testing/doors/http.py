"""One request over HTTP/1.1, each on a connection of its own."""

import contextlib
import http.client
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple

_SECONDS = 120.0  # that an answer may take


class Answer(NamedTuple):
    """``headers`` by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Connection(http.client.HTTPConnection):
    """``address`` is ``unix:PATH`` or ``HOST:PORT``."""

    def __init__(self, address: str) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._address = address

    def connect(self) -> None:
        kind, _, path = self._address.partition(":")
        if kind == "unix":
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(_SECONDS)
            self.sock.connect(path)
        else:
            host, _, port = self._address.rpartition(":")
            self.sock = socket.create_connection((host, int(port)), _SECONDS)


def ask(
    address: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Return the whole answer. An answer that is cut short raises http.client.IncompleteRead."""
    with contextlib.closing(_Connection(address)) as connection:
        try:
            connection.request(method, path, body, dict(headers or {}))
        except (BrokenPipeError, ConnectionResetError):
            # It may have refused before it had read all: then it has said why.
            if connection.sock is None:
                raise
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())


def hang_up(
    address: str,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str],
    when: Callable[[], None],
) -> None:
    """Send a request, and close its connection once ``when`` has returned, unanswered."""
    with contextlib.closing(_Connection(address)) as connection:
        connection.request(method, path, body, dict(headers))
        when()
