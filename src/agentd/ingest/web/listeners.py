"""The sockets that are listened on."""

import contextlib
import errno
import grp
import ipaddress
import os
import socket
import ssl
import stat
import struct
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Self

from agentd.model.errors import Conflict, InvalidInput

BACKLOG = 1024
_FIRST_FD = 3  # sd_listen_fds(3), SD_LISTEN_FDS_START


class Listener:
    """Owns its socket. ``name`` is for the log: unix:/path, or http(s)://host:port."""

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        self.socket = sock
        self.tls = tls
        self.path: str | None = None  # to be removed with it
        #: Binds it anew where its file was removed; None where that is not ours to do.
        self.again: Callable[[], Listener] | None = None
        self._file: tuple[int, int] | None = None
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX and isinstance(sock.getsockname(), str):
            self._file = _file_of(sock.getsockname())

    @property
    def name(self) -> str:
        address = self.socket.getsockname()
        if self.socket.family == socket.AF_UNIX:
            return f"unix:{address}"
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"{'https' if self.tls else 'http'}://{host}:{address[1]}"

    @property
    def is_local(self) -> bool:
        """Return whether a browser of this machine reaches it by TCP."""
        if self.socket.family == socket.AF_UNIX:
            return False
        address = ipaddress.ip_address(self.socket.getsockname()[0])
        return address.is_loopback or address.is_unspecified

    def own(self, path: str) -> Self:
        """Remove the file when it closes, unless it is another's by then."""
        self.path, self._file = path, _file_of(path)
        return self

    def lost(self) -> str:
        """Return why nobody can connect to its socket any more, "" where they can."""
        if self._file is None:
            return ""
        path = self.socket.getsockname()
        found = _file_of(path)
        if found == self._file:
            return ""
        return f"the socket {path} {'was removed' if found is None else 'is another one now'}"

    def close(self) -> None:
        """Close the socket, and remove its file if that is ours. Idempotent."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                if self._file is not None and _file_of(self.path) == self._file:
                    os.unlink(self.path)
            self.path = None
        self.socket.close()


def unix(path: str, *, mode: int = 0o600, group: str | None = None) -> Listener:
    """Listen, with permissions before anybody can connect. Raises Conflict where somebody listens
    there, InvalidInput for a file that is no socket or a group that is not there, OSError."""
    gid = _gid(group)
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        listener = Listener(sock).own(path)
        listener.again = partial(unix, path, mode=mode, group=group)
        try:
            # Until listen() every connect() is refused (unix(7)).
            if gid >= 0:
                os.chown(path, -1, gid)
            os.chmod(path, mode)
            sock.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except BaseException:
        sock.close()
        raise
    return listener


def tcp(host: str, port: int, *, tls: ssl.SSLContext | None = None) -> list[Listener]:
    """Listen on each address of the host. Raises InvalidInput for a host that has none, OSError."""
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise InvalidInput(
            f"the host {host!r} has no address",
            cause=str(error),
            remediation="name one that this machine knows, or give its address",
        ) from None
    listeners: list[Listener] = []
    try:
        for family, kind, proto, _, address in dict.fromkeys(found):
            # asyncio looks at the protocol number before it sets TCP_NODELAY: without IPPROTO_TCP
            # an answer in two writes waits for the client's delayed acknowledgement, 40 ms.
            sock = socket.socket(family, kind, proto or socket.IPPROTO_TCP)
            listeners.append(Listener(sock, tls))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def tls_context(cert: str, key: str | None = None, client_ca: str | None = None) -> ssl.SSLContext:
    """Make a context of TLS 1.2 and up; with ``client_ca`` every client must have a certificate of
    it. Raises InvalidInput for files that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(
            "the TLS files cannot be used",
            cause=str(error),
            remediation="give cert and key in PEM, which belong together, and client_ca in PEM",
        ) from None
    return context


def inherited(environ: MutableMapping[str, str]) -> list[Listener]:
    """Take those that systemd passes (sd_listen_fds(3)), and forget that."""
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    listeners = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)  # finds out its family, type and protocol
        if sock.type != socket.SOCK_STREAM or not sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            sock.close()
            raise InvalidInput(
                f"descriptor {fd} from systemd is no listening stream socket",
                remediation="have the unit pass ListenStream= ones alone",
            )
        listeners.append(Listener(sock))
    return listeners


def _file_of(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _remove_stale(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise InvalidInput(
            f"{path} is there and no socket", remediation="remove it, or use another"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        number = probe.connect_ex(path)
        who = os.strerror(number) if number else f"process {_peer(probe)} does"
    if number != errno.ECONNREFUSED:
        raise Conflict(
            f"somebody listens on {path} already",
            cause=who,
            remediation="stop that daemon, or use another path",
        )
    os.unlink(path)


def _peer(connected: socket.socket) -> int:
    """The process that listens on the other side (unix(7), SO_PEERCRED)."""
    credentials = struct.Struct("3i")
    found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return int(credentials.unpack(found)[0])


def _gid(group: str | None) -> int:
    if group is None:
        return -1
    try:
        return int(group) if group.isascii() and group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise InvalidInput(
            f"there is no group {group!r}", remediation="give another, or its number"
        ) from None
