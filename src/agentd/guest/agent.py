"""The agent: connections of both protocols over one process engine. docs/guest-protocol.md."""

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from agentd._version import __version__
from agentd.guest import late, questions, spawn, system, wire
from agentd.guest.attach import attach
from agentd.guest.connection import HostConnection, guarded, report
from agentd.guest.exec import CommandOperations
from agentd.guest.history import History
from agentd.guest.listener import FdListener, SocketListener, adopt
from agentd.guest.loop import READ, Loop
from agentd.guest.operation import Channel, RequestError, Starter
from agentd.guest.processes import Processes
from agentd.guest.stream import HostStream
from agentd.linux import process

if TYPE_CHECKING:
    from agentd.guest.budget import Budget

# The host keeps to half of it: one that it has closed may still count here for a moment.
MAX_CONNECTIONS = 256
FEATURES = (
    "exec",
    "fds",
    "pty",
    "detach",
    "fs",
    "tar",
    "watch",
    "watching",
    "tcp",
    "sys",
    "accept",
)


class Agent:
    """Serves connections until ``stop``. Sets up the process it runs in: umask, descriptors.

    ``pid1``: the agent is alone in its PID namespace, so that "the whole sandbox" is every process
    there is. ``operations`` are added to exec, signal, list, attach and sys.accept. ``hello`` is
    merged into the handshake's reply. ``paths`` are looked at to tell a full disk.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        pid1: bool,
        features: Iterable[str] = FEATURES,
        hello: Mapping[str, object] | None = None,
        operations: Mapping[str, Starter] | None = None,
        paths: Iterable[str] = (),
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.loop = loop
        self.pid1 = pid1
        os.umask(0o022)
        os.chdir("/")
        spawn.sweep_descriptors()
        if not pid1:
            become_subreaper()
        self.processes = Processes(loop, disk_paths=paths)
        # Told of each connection: True as it is accepted, False as it ends.
        self.on_connection: Callable[[bool], None] | None = None
        # Around what takes rights over files that the agent does without otherwise.
        self.privileged: AbstractContextManager[object] = nullcontext()
        self._budget: Budget | None = None
        self._hello = {"agent": __version__, "features": list(features), **(hello or {})}
        self._max_connections = max_connections
        # By which a host tells whether it still is the agent that it gave a request to.
        self._instance = os.urandom(8).hex()
        self._streams: set[HostStream] = set()
        self._listeners: list[FdListener | SocketListener] = []
        self._stopped = False
        self._history = History()
        commands = CommandOperations(self.processes, self._history, whole_sandbox=pid1)
        self.signal_all = commands.signal_all
        self._operations: dict[str, Starter] = {
            **(operations or {}),
            "exec": commands.exec,
            "signal": commands.signal,
            "list": commands.list_all,
            "attach": partial(attach, commands),
            "sys.accept": self._sys_accept,
        }

    def extend(
        self, make: Callable[[Mapping[str, Starter]], Mapping[str, Starter]], feature: str
    ) -> None:
        """Add operations, or put them in the place of those there are, under a feature's name."""
        self._operations.update(make(self._operations))
        features = self._hello["features"]
        if isinstance(features, list):
            features.append(feature)

    def serve_stream(self, source: socket.socket | tuple[int, int]) -> bool:
        """Serve one connection and own it; False when there is no room for another after it.

        One too many is closed at once.
        """
        stream = HostStream(self.loop, source)
        if self._stopped or len(self._streams) >= self._max_connections:
            stream.close()
            return False
        self._streams.add(stream)
        if self.on_connection is not None:
            self.on_connection(True)
        stream.on_close = partial(self._on_close, stream)
        try:
            stream.start(_Handshake(self, stream))
        except OSError:  # the kernel has no room to watch it; the next is taken all the same
            stream.close()
        return len(self._streams) < self._max_connections

    def listen_fds(self, sock: socket.socket) -> None:
        """Serve every descriptor that comes through a SEQPACKET socket; its EOF ends the agent."""
        self._listeners.append(FdListener(self.loop, sock, self._accept, self.stop))

    def listen(self, sock: socket.socket) -> None:
        """Serve a bound stream socket."""
        self._listeners.append(SocketListener(self.loop, sock, self.serve_stream))

    def serve_v1(self, stream: HostStream, first: bytes) -> None:
        """Go on in v1 with what has come."""
        from agentd.guest import budget, v1  # few hosts speak it
        from agentd.guest.v1_server import V1Server

        if self._budget is None:
            self._budget = budget.of_machine(v1.MAX_LINE)
        V1Server(stream, self.processes, budget=self._budget).start(first)

    def upgrade(self, stream: HostStream, first: bytes) -> None:
        """Go on in v2 after the hello line."""
        boot = {
            "pid1": self.pid1,
            "uptime_ms": int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000),
            "instance": self._instance,
        }
        reply = json.dumps({"agentd": 2, **self._hello, "boot": boot}, separators=(",", ":"))
        HostConnection(stream, self._operations, reply.encode() + b"\n", first)

    def restart(self, stream: HostStream, first: bytes) -> None:
        """Begins anew for a new host, whose first bytes have come; drops the old one's."""
        stream.drop_pending()
        stream.user = handshake = _Handshake(self, stream)
        stream.resume()
        handshake.on_bytes(first)

    def stop(self) -> None:
        """End every connection and command, and the loop; idempotent."""
        if self._stopped:
            return
        self._stopped = True
        for listener in self._listeners:
            listener.close()
        for stream in list(self._streams):
            guarded(stream.abort)
        guarded(self._history.close)
        self.processes.end_all()
        self.loop.stop()

    def _accept(self, sock: socket.socket) -> None:
        self.serve_stream(sock)

    def _on_close(self, stream: HostStream) -> None:
        self._streams.discard(stream)
        if self.on_connection is not None:
            self.on_connection(False)
        if self._stopped:
            return
        for listener in self._listeners:
            if isinstance(listener, SocketListener):
                listener.resume()

    def _sys_accept(self, channel: Channel, request: dict[str, object], fds: list[int]) -> None:
        if len(fds) != 1:
            raise RequestError("one descriptor must be passed with the request", errno.EBADF)
        accepted: list[socket.socket] = []
        adopt(fds[0], accepted.append)
        if not accepted:
            raise RequestError("the descriptor is no stream socket", errno.ENOTSOCK)
        if len(self._streams) >= self._max_connections:
            accepted[0].close()
            raise RequestError(f"{self._max_connections} connections are open", errno.EAGAIN)
        self.serve_stream(accepted[0])
        channel.finish("result")


class _Handshake:
    """The stream's user until its first line is known to be v2's hello or not."""

    def __init__(self, agent: Agent, stream: HostStream) -> None:
        self._agent = agent
        self._stream = stream
        self._first = b""

    def on_bytes(self, data: bytes) -> None:
        self._first += data
        if self._first.startswith(wire.HELLO):
            self._agent.upgrade(self._stream, self._first[len(wire.HELLO) :])
        elif not wire.HELLO.startswith(self._first):
            self._agent.serve_v1(self._stream, self._first)

    def on_eof(self) -> None:
        if not self._first:
            self._stream.finish()
        else:
            self._agent.serve_v1(self._stream, self._first)

    def on_drained(self) -> None:
        """Nothing was written yet."""

    def on_lost(self) -> None:
        """Nothing was started yet."""


def builtin_operations(agent_context: system.SystemContext) -> dict[str, Starter]:
    """Returns everything that this package offers beyond the agent's own operations."""
    return {**late.operations(), **system.operations(agent_context)}


def create(loop: Loop, *, pid1: bool, paths: Iterable[str] = ("/tmp",)) -> Agent:
    """Makes an agent with all operations. ``paths``: whose disks count as the sandbox's."""
    disks = list(paths)
    context = system.SystemContext(
        pid1=pid1, paths=disks, on_shutdown=system.stop_agent(loop, pid1)
    )
    agent = Agent(loop, pid1=pid1, operations=builtin_operations(context), paths=disks)
    # Outside a namespace of its own a signal to all would reach the whole machine.
    context.signal_all = agent.signal_all
    context.stand_still = agent.processes.stand_still
    return agent


class Ready:
    """An agent that is built and serves nobody yet. Owns its loop; ``serve`` frees it."""

    def __init__(self, *, pid1: bool, paths: Iterable[str] = ("/tmp",)) -> None:
        self._loop = Loop(on_error=report)
        try:
            self._agent = create(self._loop, pid1=pid1, paths=paths)
        except BaseException:
            self._loop.close()
            raise

    def answer_asked(self, fd: int) -> None:
        """Answer what the filter around us asks at ``fd``, which is -1 where it asks nothing."""
        if fd >= 0:
            self._loop.watch(fd, READ, lambda _: questions.answer(fd))

    def import_late(self) -> None:
        """Import what nobody has asked for in quiet moments, once it serves."""
        late.in_quiet_moments(self._loop)

    def serve(self, sock: socket.socket, env: Mapping[str, str] | None = None) -> None:
        """Be the agent on a SEQPACKET listener until its EOF; in the main thread.

        Commands start with ``env``; None is this process's own environment.
        """
        try:
            if env is not None:
                self._agent.processes.set_environment(env)
            self._agent.listen_fds(sock)
            self._loop.run()
            self._agent.stop()
            self._agent.processes.close()
        finally:
            self._loop.close()


def become_subreaper() -> None:
    """Has orphans come to us, to be reaped and ended with us (Linux 3.4)."""
    try:
        process.set_child_subreaper()
    except OSError as error:
        report(error)


def preload() -> None:
    """Import all that is imported late: after pivot_root the library may be out of reach."""
    spawn.preload()
    late.everything()
