"""The places where an agent may listen, and how each is opened."""

import contextlib
import os
import select
import socket
import stat
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from agentd.guest import virtio
from agentd.guest.init import is_the_first, say

if TYPE_CHECKING:
    from agentd.guest.agent import Agent

FORMS = "vsock:PORT, unix:PATH, stdio, virtio:NAME or fd:N"
# A device of a virtual machine may appear late: its driver, or the host's message of its name.
RETRY_S = 0.05
MAX_RETRY_S = 1.0
_MAX_PORT = 0xFFFFFFFE  # VMADDR_PORT_ANY is one more
_RANGES = {"vsock": (1, _MAX_PORT), "fd": (3, 1 << 20)}


class ListenRefused(Exception):
    """The address cannot be listened on; the message says why, and the fix."""


def check(where: str) -> None:
    """Checks a place. Raises ListenRefused for what is no place to listen at."""
    kind, _, value = where.partition(":")
    if kind in _RANGES:
        low, high = _RANGES[kind]
        if not (value.isascii() and value.isdecimal() and low <= int(value[:12]) <= high):
            raise ListenRefused(
                f"--listen {where!r}: give {kind}: and a number from {low} to {high}"
            )
    elif where != "stdio" and not (kind in ("unix", "virtio") and value and "\0" not in value):
        raise ListenRefused(f"--listen {where!r}: give {FORMS}")


def say_open(where: str) -> None:
    """Tell that a place is open now, in the first agent's words where that is who we are."""
    kind, _, value = where.partition(":")
    say(f"Listening on {kind} port {value}" if is_the_first() else f"listening on {where}")


class ListenPlaces:
    """An agent's places, opened. ``keep_trying``: those that cannot be had yet, again and again."""

    def __init__(self, agent: "Agent", places: Sequence[str], *, keep_trying: bool) -> None:
        """Raises ListenRefused when none can be had and nothing is tried again."""
        self._agent = agent
        self._keep_trying = keep_trying
        self._alone = len(places) == 1 and not keep_trying
        self._closers: list[Callable[[], None]] = []
        self._delay = RETRY_S
        self.open: list[str] = []
        failures = self._try(places)
        if failures and not (self.open or keep_trying):
            self.close()
            raise ListenRefused("; ".join(failures.values()))
        for failure in failures.values():
            say(failure + (", trying on" if keep_trying else ""))
        if failures and keep_trying:
            agent.loop.after(self._delay, lambda: self._again(list(failures)))

    def close(self) -> None:
        """Closes what is left of the places; the agent closes its own sockets."""
        for closer in self._closers:
            closer()
        self._closers = []

    def _try(self, places: Sequence[str]) -> dict[str, str]:
        """Open each; those that cannot be had, and why."""
        failures = {}
        for where in places:
            kind, _, value = where.partition(":")
            try:
                with self._agent.privileged:
                    self._closers.append(_OPENERS[kind](self._agent, value, self._on_end))
            except ListenRefused as error:
                failures[where] = str(error)
            except OSError as error:
                failures[where] = f"cannot listen on {where}: {error.strerror or error}"
            else:
                self.open.append(where)
        return failures

    def _again(self, missing: list[str]) -> None:
        known = len(self.open)
        left = list(self._try(missing))
        for where in self.open[known:]:
            say_open(where)
        if left:
            self._delay = min(self._delay * 2, MAX_RETRY_S)
            self._agent.loop.after(self._delay, lambda: self._again(left))

    def _on_end(self) -> None:
        """The only connection of a place has ended."""
        if self._alone or self._keep_trying:
            self._agent.stop()


def _open_vsock(agent: "Agent", value: str, _: Callable[[], None]) -> Callable[[], None]:
    from agentd.guest.listener import vsock_socket

    try:
        agent.listen(vsock_socket(int(value)))
    except OSError as error:
        raise ListenRefused(
            f"no vsock here ({error.strerror}): load the kernel's vsock transport, or --listen"
            " unix:PATH, stdio, virtio:NAME or fd:N"
        ) from None
    return _nothing


def _open_unix(agent: "Agent", path: str, _: Callable[[], None]) -> Callable[[], None]:
    from agentd.guest.listener import unix_socket

    remove_stale(path)
    agent.listen(unix_socket(path))
    ours = os.lstat(path)

    def remove() -> None:
        # Another agent may have taken the path over.
        with contextlib.suppress(OSError):
            if os.path.samestat(ours, os.lstat(path)):
                os.unlink(path)

    return remove


def remove_stale(path: str) -> None:
    """Unlink a socket that nobody listens on. Raises ListenRefused if there is anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenRefused(f"{path} exists and is no socket: remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full, so somebody listens
    raise ListenRefused(f"something listens on {path} already: stop it or choose another path")


def _open_stdio(agent: "Agent", _: str, on_end: Callable[[], None]) -> Callable[[], None]:
    if not _can_wait(0):
        raise ListenRefused(
            "stdin is a plain file or /dev/null: pipe it in, cat FILE | agentd-guest ..."
        )
    pair = os.dup(0), os.dup(1)
    # What the agent opens later must not become 0 or 1, nor a stray print reach the host.
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    virtio.serve(agent, pair, on_end)
    return _nothing


def _can_wait(fd: int) -> bool:
    """Return whether epoll takes it: not a plain file."""
    with select.epoll() as epoll:
        try:
            epoll.register(fd, select.EPOLLIN)
        except PermissionError:
            return False
    return True


def _open_fd(agent: "Agent", value: str, on_end: Callable[[], None]) -> Callable[[], None]:
    try:
        sock = socket.socket(fileno=int(value))
    except OSError as error:
        raise ListenRefused(f"fd:{value} is no open socket ({error.strerror}): pass one") from None
    if sock.type != socket.SOCK_STREAM:
        sock.close()
        raise ListenRefused(f"fd:{value} is no stream socket: pass one made with SOCK_STREAM")
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        agent.listen(sock)
    else:
        virtio.serve(agent, sock, on_end)
    return _nothing


def _open_virtio(agent: "Agent", name: str, _: Callable[[], None]) -> Callable[[], None]:
    try:
        path = virtio.find(name)
    except virtio.NoPort as error:
        raise ListenRefused(str(error)) from None
    return virtio.VirtioPort(agent, virtio.open_port(path)).close


def _nothing() -> None:
    """There is nothing to undo."""


_OPENERS: dict[str, Callable[["Agent", str, Callable[[], None]], Callable[[], None]]] = {
    "fd": _open_fd,
    "stdio": _open_stdio,
    "unix": _open_unix,
    "virtio": _open_virtio,
    "vsock": _open_vsock,
}
