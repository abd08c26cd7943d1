"""A virtio-serial port: one byte stream, on which one host follows the other."""

import contextlib
import os
import select
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from agentd.guest.loop import READ
from agentd.linux.waiting import is_ready

if TYPE_CHECKING:
    from agentd.guest.agent import Agent
    from agentd.guest.stream import HostStream

# Under QEMU 10.0 without KVM about one wake-up of a reader in ten thousand was seen to be lost.
LOST_S = 0.1
PORTS = "/sys/class/virtio-ports"


class NoPort(Exception):
    """No port has that name; the message names those there are."""


def find(name: str, root: str = PORTS) -> str:
    """Finds the device of the port that the host named so. Raises NoPort."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for port in os.listdir(root):
            path = os.path.join(root, port, "name")
            # A port exists before the host's message with its name has arrived.
            with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
                found[file.read().strip()] = port
    if name not in found:
        names = ", ".join(sorted(found)) or "none"
        raise NoPort(f"no virtio port is named {name!r}: choose one of those here ({names})")
    return f"/dev/{found[name]}"


def open_port(path: str) -> int:
    """Opens a descriptor of the port. Raises OSError, EBUSY where another agent has it."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


class VirtioPort:
    """Serves one host after the other. The port stays open: it can be opened only once.

    Without a host it is always ready to read an end of file, so its level says nothing. But the
    kernel wakes its waiters whenever a host comes or goes (drivers/char/virtio_console.c,
    handle_control_message, VIRTIO_CONSOLE_PORT_OPEN): an edge, which epoll passes on at once.
    """

    def __init__(self, agent: "Agent", fd: int) -> None:
        self._agent = agent
        self._fd = fd
        self._serving = False
        self._epoll = select.epoll()
        self._epoll.register(fd, _EDGES)
        agent.loop.watch(self._epoll.fileno(), READ, self._changed)
        self._look()

    def close(self) -> None:
        if not self._epoll.closed:
            self._agent.loop.forget(self._epoll.fileno())
            self._epoll.close()
            os.close(self._fd)

    def _changed(self, _: int) -> None:
        self._epoll.poll(0)  # takes the edge off
        self._look()

    def _look(self) -> None:
        if self._serving or self._epoll.closed or not _has_host(self._fd):
            return
        self._serving = True
        # Meanwhile the stream watches the port, and every byte would be an edge here too.
        self._epoll.modify(self._fd, select.EPOLLET)
        copy = os.dup(self._fd)
        stream = serve(self._agent, (copy, copy), self._served, port=True)
        if stream is not None:
            self._watch_over(stream)

    def _watch_over(self, stream: "HostStream") -> None:
        if not stream.closed:
            stream.look_again()
            self._agent.loop.after(LOST_S, partial(self._watch_over, stream))

    def _served(self) -> None:
        self._serving = False
        if not self._epoll.closed:
            self._epoll.modify(self._fd, _EDGES)
            # Not at once: a host that is still there but broke the protocol would be asked again
            # from within the end of its own stream.
            self._agent.loop.soon(self._look)


_EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET


def _has_host(fd: int) -> bool:
    return not is_ready(fd, events=0)  # POLLHUP: no host is connected


def serve(
    agent: "Agent", source: object, on_close: Callable[[], None], *, port: bool = False
) -> "HostStream | None":
    """Serve one stream; ``on_close`` is called when it has ended. ``port``: hosts share it.

    A host that leaves while the next one comes is not seen to leave: that one's hello tells.
    """
    before = set(agent._streams)
    agent.serve_stream(source)  # type: ignore[arg-type]
    added = agent._streams - before
    if not added:
        on_close()
        return None
    stream = added.pop()
    inner = stream.on_close
    if port:
        stream.restart = partial(agent.restart, stream)
        stream.has_host = partial(_has_host, stream.write_fd)

    def closed() -> None:
        if inner is not None:
            inner()
        on_close()

    stream.on_close = closed
    return stream
