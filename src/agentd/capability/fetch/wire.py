"""Sockets for httpcore that go to the addresses given and nowhere else, and are bounded."""

import contextlib
import socket
import ssl
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

import httpcore

from agentd.capability.fetch.address import Network, is_named
from agentd.capability.fetch.deadline import Deadline
from agentd.model.capability import CallFailed
from agentd.model.errors import Unavailable
from agentd.model.system import scarce

MAX_HEAD = 64 << 10  # bytes of status line and headers, interim responses included
_READ = 64 << 10
MAX_ATTEMPTS = 4  # addresses


class Pinned(httpcore.NetworkBackend):
    """Connects to the first of ``addresses`` that answers. ``address``: which that was."""

    def __init__(
        self, addresses: Sequence[str], allowed: Sequence[Network], deadline: Deadline
    ) -> None:
        self.address = ""
        self.stream: WireStream | None = None
        self._addresses = addresses
        self._allowed = allowed
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> "WireStream":
        """``host`` is not looked at: it was resolved once, and what came of that was checked."""
        problem: OSError | None = None
        tried = self._addresses[:MAX_ATTEMPTS]
        for index, address in enumerate(tried):
            try:
                # One that does not answer leaves time for the others.
                connected = self._connect(address, port, 1 / (len(tried) - index))
            except OSError as error:
                problem = error
                continue
            self.address = address
            self.stream = WireStream(connected, self._deadline)
            return self.stream
        self._deadline.left()
        if problem is not None and (fix := scarce(problem)):
            raise Unavailable(
                "no connection can be made now", cause=problem.strerror or "", remediation=fix
            )
        raise CallFailed(
            "connect_failed",
            f"{host} port {port} cannot be reached",
            cause=problem.strerror or str(problem) if problem else "",
            remediation="check the host and the port, or try again later",
        )

    def _connect(self, address: str, port: int, share: float) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.settimeout(self._deadline.left() * share)
            made.connect((address, port))
            self._check_ends(made, address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            made.close()
            raise
        return made

    def _check_ends(self, made: socket.socket, address: str) -> None:
        """This machine's own public address is as good as loopback for what listens on all."""
        here, there = ip_address(made.getsockname()[0]), ip_address(made.getpeername()[0])
        if there != ip_address(address) or (here == there and not is_named(address, self._allowed)):
            raise refused(address)


class WireStream(httpcore.NetworkStream):
    """Each wait ends with the deadline, whatever httpcore thinks."""

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self._socket = connected
        self._deadline = deadline
        self._head = MAX_HEAD
        self.head_done = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        most = min(max_bytes, _READ) if self.head_done else min(max_bytes, self._head)
        if most <= 0:
            raise CallFailed("bad_response", f"the server's headers are over {MAX_HEAD} bytes")
        try:
            self._socket.settimeout(self._deadline.left())
            data = self._socket.recv(most)
        except TimeoutError:
            raise self._deadline.passed() from None
        except OSError as error:
            raise httpcore.ReadError(error.strerror or str(error)) from None
        if not self.head_done:
            self._head -= len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        while view:
            try:
                self._socket.settimeout(self._deadline.left())
                view = view[self._socket.send(view) :]
            except TimeoutError:
                raise self._deadline.passed() from None
            except OSError as error:
                raise httpcore.WriteError(error.strerror or str(error)) from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> "WireStream":
        try:
            self._socket.settimeout(self._deadline.left())
            self._socket = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname)
        except TimeoutError:
            self.close()
            raise self._deadline.passed() from None
        except (OSError, ValueError) as error:
            self.close()
            raise _tls_failed(server_hostname or "", error) from None
        except BaseException:
            self.close()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object" and isinstance(self._socket, ssl.SSLSocket):
            return self._socket
        return None


def refused(host: str) -> CallFailed:
    """The address is not told: a name's is the network's own business."""
    return CallFailed(
        "address_refused",
        f"the address of {host} is not a public one",
        cause="private, local, metadata and other special addresses are not fetched from",
        remediation="ask for a public server, or have the operator allow its network",
    )


def _tls_failed(host: str, error: Exception) -> CallFailed:
    cause = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
    return CallFailed(
        "tls_failed",
        f"no trusted TLS connection to {host} could be made",
        cause=str(cause)[:300],
        remediation="check the name and the server's certificate",
    )
