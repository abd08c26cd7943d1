"""What is laid out on the host for attacks to find: secrets, listeners, a process. All of it goes
again; nobody but the attacks is meant to see it."""

import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from agentd.linux import privileges
from agentd.model.egress import THIS_HOST

VARIABLE = "AGENTD_SELFTEST_SECRET"
METADATA = "169.254.169.254"  # where clouds hand out credentials
_ID = "/usr/bin/id"
# Whom nobody has (RFC 5737, RFC 3849): by the way there a host's own addresses are found.
_FAR = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
_TALK_SECONDS = 10.0
_OWNS_NOTHING = 2_000_000_077
_SIGUSR1_BIT = 1 << 9
_IPC_RMID, _IPC_CREAT, _IPC_EXCL = 0, 0o1000, 0o2000
_LIFE = 600  # seconds that the holder outlives a host that forgot it
# Blocked, a signal that reached it stays to be seen in /proc.
_HOLDER = f"""
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
signal.alarm({_LIFE})
print(flush=True)
sys.stdin.read()
"""


@dataclass
class Planted:
    """``marker`` is the secret, in every one of these places. ``segment`` is the key of a System V
    shared memory segment, None where the kernel has none; ``program`` a set-uid ``id``, None where
    we are not root."""

    marker: str
    folder: str
    secret: str  # mode 0666 in a folder that all may enter: nothing but the wall keeps anyone out
    private: str  # mode 0600
    shared: str  # a folder, mode 0777, to be mounted read-write
    holder: int  # pid of a process that has the marker in its environment and arguments
    tcp: socket.socket
    udp: socket.socket
    abstract: socket.socket
    path: socket.socket
    log: socket.socket  # of datagrams, at a path
    own: tuple[socket.socket, ...]  # streams and datagrams, at the host's own addresses
    granted: int  # port of the service that a network of rules may reach
    segment: int | None
    program: str | None

    def halves(self) -> tuple[str, str]:
        """Return the marker in two, so that a hunt does not find its own arguments."""
        half = len(self.marker) // 2
        return self.marker[:half], self.marker[half:]

    def listeners(self) -> tuple[str, ...]:
        """TCP port, UDP port, the abstract name and the two paths, of the five listeners."""
        ports = (str(sock.getsockname()[1]) for sock in (self.tcp, self.udp))
        abstract: bytes = self.abstract.getsockname()
        paths = (str(sock.getsockname()) for sock in (self.path, self.log))
        return (*ports, abstract[1:].decode(), *paths)

    def rule(self) -> str:
        """Return the rule of a restricted network: what listens there says ``granted``."""
        return f"{THIS_HOST}:{self.granted}"

    def arrived(self) -> set[str]:
        """Names of the listeners that somebody came to since the last call."""
        named = {name: (getattr(self, name),) for name in ("tcp", "udp", "abstract", "path", "log")}
        return {
            name for name, socks in (*named.items(), ("own", self.own)) if any(map(_came, socks))
        }

    def carriers(self) -> list[int]:
        """Pids of the host's processes, but for the holder, that have the marker as an argument."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                if self.marker.encode() in file.read(1 << 16) and int(name) != self.holder:
                    found.append(int(name))
        return found

    def signalled(self) -> bool:
        """Return whether SIGUSR1 ever reached the holder. Raises OSError where it is gone."""
        with open(f"/proc/{self.holder}/status", encoding="ascii", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
        return bool(pending & _SIGUSR1_BIT)


@contextlib.contextmanager
def plant() -> Iterator[Planted]:
    """Raises OSError; nothing is left behind then."""
    with contextlib.ExitStack() as stack:
        marker = secrets.token_hex(16)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentd-selftest-"))
        os.chmod(folder, 0o1777)  # noqa: S103  the careless case: only the wall keeps anyone out
        secret = _file(f"{folder}/secret", marker, 0o666)
        private = _file(f"{folder}/private", marker, 0o600)
        shared = f"{folder}/shared"
        os.mkdir(shared)
        os.chmod(shared, 0o777)  # noqa: S103  whoever the sandbox's user is outside
        _set_variable(stack, marker)
        fd = os.open(secret, os.O_RDONLY)
        stack.callback(os.close, fd)
        os.set_inheritable(fd, True)
        yield Planted(
            marker,
            folder,
            secret,
            private,
            shared,
            _holder(stack, marker),
            *_listeners(stack, folder),
            _own(stack),
            _granted(stack),
            _segment(stack),
            _program(stack),
        )


def no_metadata_route(_: Planted) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((METADATA, 80))  # only looks the route up, sends nothing
        except OSError as error:
            return f"this machine itself has no route to {METADATA}: {error.strerror}"
    return ""


def no_segment(planted: Planted) -> str:
    return "" if planted.segment is not None else "this kernel has no System V shared memory"


def no_program(planted: Planted) -> str:
    return "" if planted.program else "takes root, to lay out a set-uid program of another user's"


def _file(path: str, text: str, mode: int) -> str:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
    os.chmod(path, mode)
    return path


def _set_variable(stack: contextlib.ExitStack, marker: str) -> None:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = marker
    if before is None:
        stack.callback(os.environ.pop, VARIABLE, None)
    else:
        stack.callback(os.environ.__setitem__, VARIABLE, before)


def _holder(stack: contextlib.ExitStack, marker: str) -> int:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _HOLDER, marker],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    stack.enter_context(process)
    stack.callback(process.kill)
    if process.stdout is None or not process.stdout.readline():
        raise OSError("a process to be attacked could not be started")
    return process.pid


def _listeners(
    stack: contextlib.ExitStack, folder: str
) -> tuple[socket.socket, socket.socket, socket.socket, socket.socket, socket.socket]:
    addresses = (
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        (socket.AF_UNIX, socket.SOCK_STREAM, f"\0agentd-selftest-{secrets.token_hex(6)}"),
        (socket.AF_UNIX, socket.SOCK_STREAM, f"{folder}/socket"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, f"{folder}/log"),
    )
    opened = []
    for family, kind, address in addresses:
        sock = stack.enter_context(socket.socket(family, kind))
        sock.bind(address)
        sock.setblocking(False)
        if kind == socket.SOCK_STREAM:
            sock.listen(16)
        opened.append(sock)
    for name in ("socket", "log"):
        os.chmod(f"{folder}/{name}", 0o777)  # noqa: S103  as a container engine's at its worst
    tcp, udp, abstract, path, log = opened
    return tcp, udp, abstract, path, log


def _came(sock: socket.socket) -> bool:
    """Whether somebody did since the last call, to a listener or with a datagram."""
    came = False
    with contextlib.suppress(BlockingIOError):
        while True:
            if sock.type == socket.SOCK_STREAM:
                sock.accept()[0].close()
            else:
                sock.recv(100)
            came = True
    return came


def _own(stack: contextlib.ExitStack) -> tuple[socket.socket, ...]:
    """At the addresses that the host has towards others: they take what comes, and say nothing."""
    opened = []
    for family, far in _FAR:
        with contextlib.suppress(OSError):
            with socket.socket(family, socket.SOCK_DGRAM) as towards:
                towards.connect((far, 9))  # only looks the route up
                address = towards.getsockname()[0]
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sock = stack.enter_context(socket.socket(family, kind))
                sock.bind((address, 0))
                sock.setblocking(False)
                if kind == socket.SOCK_STREAM:
                    sock.listen(16)
                opened.append(sock)
    return tuple(opened)


def _granted(stack: contextlib.ExitStack) -> int:
    """Return the port of a service on the host's loopback, which says ``granted`` to whoever
    speaks."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    thread = threading.Thread(target=_serve, args=(server,), daemon=True)
    thread.start()
    stack.callback(thread.join)
    stack.callback(server.shutdown, socket.SHUT_RDWR)
    port: int = server.getsockname()[1]
    return port


def _serve(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError):
                client.settimeout(_TALK_SECONDS)
                if client.recv(100):
                    client.sendall(b"granted")


def _segment(stack: contextlib.ExitStack) -> int | None:
    libc = ctypes.CDLL(None, use_errno=True)
    for _ in range(8):
        key = secrets.randbelow((1 << 31) - 1) + 1  # 0 is IPC_PRIVATE
        found = libc.shmget(key, 1, _IPC_CREAT | _IPC_EXCL | 0o666)
        if found >= 0:
            stack.callback(libc.shmctl, found, _IPC_RMID, None)
            return key
    return None


def _program(stack: contextlib.ExitStack) -> str | None:
    if privileges.missing(privileges.CHOWN, privileges.FOWNER) or not os.path.exists(_ID):
        return None
    # A folder of its own: it is mounted into a sandbox, and the secrets must not be.
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentd-selftest-"))
    os.chmod(folder, 0o755)  # noqa: S103  the program must be reached
    program = f"{folder}/id"
    shutil.copy(_ID, program)
    # Not root's: id may be one program of many names, which all would run as its owner.
    os.chown(program, _OWNS_NOTHING, _OWNS_NOTHING)
    os.chmod(program, 0o4755)  # noqa: S103  the point of it
    return program
