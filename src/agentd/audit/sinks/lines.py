"""Sinks that write lines: standard output, and syslog (RFC 5424)."""

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Any

from agentd.audit.record import decode
from agentd.audit.sinks.port import Rejected, Unsent
from agentd.model.errors import InvalidInput

_SECONDS = 10.0
_PRIORITY = 13 * 8 + 5  # facility "log audit", severity "notice" (RFC 5424, 6.2.1)
_MAX_DATAGRAM = 65_000  # bytes, of UDP
_DEV_LOG = "/dev/log"


class StdoutSink:
    """Lines as they are, to a descriptor that stays its owner's."""

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
        self._begun = 0  # bytes of the next line that are there already

    def send(self, lines: Sequence[bytes]) -> None:
        data, at = memoryview(b"".join(lines)), self._begun
        try:
            while at < len(data):
                at += os.write(self._fd, data[at:])
        except OSError as error:
            raise Unsent(error.strerror or str(error), self._whole(lines, at)) from error
        self._begun = 0

    def _whole(self, lines: Sequence[bytes], at: int) -> int:
        """Return how many lines went through; that which was begun goes on the next time."""
        sent = 0
        while at >= len(lines[sent]):
            at -= len(lines[sent])
            sent += 1
        self._begun = at
        return sent


class SyslogSink:
    """To ``address``: a path (as /dev/log), ``udp:HOST:PORT`` or ``tcp:HOST:PORT``.

    TCP has octet counting (RFC 6587). A record that is too long for a datagram is dropped.
    """

    def __init__(self, address: str = _DEV_LOG) -> None:
        """Raises InvalidInput."""
        self._how, self._host, self._port = _parse(address)
        self._path: Any = address
        self._name = _word(socket.gethostname())
        self._socket: socket.socket | None = None

    def send(self, lines: Sequence[bytes]) -> None:
        refused = 0
        for sent, line in enumerate(lines):
            message = self._message(line)
            if self._how == "udp" and len(message) > _MAX_DATAGRAM:
                refused += 1
                continue
            try:
                self._put(message)
            except OSError as error:
                self.close()
                raise Unsent(error.strerror or str(error), sent) from error
        if refused:
            raise Rejected(f"it is longer than {_MAX_DATAGRAM} bytes", refused)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _put(self, message: bytes) -> None:
        if self._socket is None:
            self._socket = self._connected()
        if self._how == "tcp":
            message = b"%d %b" % (len(message), message)
        self._socket.sendall(message)

    def _connected(self) -> socket.socket:
        if self._how == "tcp":
            return socket.create_connection((self._host, self._port), _SECONDS)
        family, where = socket.AF_UNIX, self._path
        if self._how == "udp":
            family, where = _resolved(self._host, self._port)
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        with contextlib.ExitStack() as stack:
            stack.callback(made.close)
            made.settimeout(_SECONDS)
            made.connect(where)
            stack.pop_all()
        return made

    def _message(self, line: bytes) -> bytes:
        record = decode(line)
        head = f"<{_PRIORITY}>1 {record.time} {self._name} agentd {os.getpid()} "
        return b"%b%b - %b" % (head.encode(), _word(record.kind).encode(), line.rstrip(b"\n"))


def check_syslog(address: str) -> None:
    """Raises InvalidInput for what a SyslogSink is not made of."""
    _parse(address)


def _parse(address: str) -> tuple[str, str, int]:
    if address.startswith("/"):
        return "unix", "", 0
    how, _, rest = address.partition(":")
    host, _, port = rest.rpartition(":")
    number = int(port) if port.isascii() and port.isdecimal() else -1
    if how not in ("udp", "tcp") or not host or not 0 <= number <= 65535:
        raise InvalidInput(
            f"{address!r} is no address of a syslog",
            remediation="use a path, udp:HOST:PORT or tcp:HOST:PORT",
        )
    return how, host.strip("[]"), number


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    return family, where


def _word(text: str) -> str:
    """Printable ASCII without spaces, as the header wants it."""
    return "".join(c if "!" <= c <= "~" else "_" for c in text)[:255] or "-"
