"""A running machine of Firecracker's, seen from the host."""

import contextlib
import socket
import threading

from agentd.linux import process
from agentd.linux.cgroup import Group
from agentd.model.cause import Cause
from agentd.model.enforcement import Enforcement
from agentd.model.errors import BackendLost, SandboxError
from agentd.sandbox.backends.firecracker import config, snapshot
from agentd.sandbox.backends.firecracker.plan import PORT, ceiling
from agentd.sandbox.backends.firecracker.process import Monitor
from agentd.sandbox.backends.firecracker.snapshot import About
from agentd.sandbox.backends.firecracker.version import Quirks, check_pause
from agentd.sandbox.backends.vm import streams
from agentd.sandbox.backends.vm.ceiling import Ceiling
from agentd.sandbox.backends.vm.foreign import Foreign
from agentd.sandbox.backends.vm.handshake import tell

# A guest may be slow, as eight beside each other are.
_STREAM_SECONDS = 30.0


def open_stream(monitor: Monitor, seconds: float) -> socket.socket:
    """To the agent, once it listens. Raises MachineEnded, BackendLost."""

    def check() -> None:
        if not monitor.alive():
            raise monitor.ended()

    check()
    try:
        path = monitor.root.socket_path(config.VSOCK)
    except FileNotFoundError as error:
        raise BackendLost("the machine has no vsock", cause=str(error)) from error
    return streams.open_stream(f"hybrid:{path}:{PORT}", seconds, check)


class FirecrackerWall:
    """``Pausable`` and ``Snapshots`` too. Thread-safe."""

    passes_descriptors = False
    workspace = "/workspace"
    fidelity = "memory"

    def __init__(
        self,
        monitor: Monitor,
        group: Group | None,
        enforcement: Enforcement,
        about: About,
        quirks: Quirks,
    ) -> None:
        self.id = monitor.jail.id
        self.enforcement = enforcement
        self.pid = process.pidfd_of_fdinfo(monitor.pidfd)
        self._monitor = monitor
        self._group = group
        self._about = about
        self._quirks = quirks
        self._ceiling = Ceiling(group, ceiling(about.memory))
        self._changing = threading.Lock()  # of its state: one pause or snapshot at a time
        self._ending = threading.Lock()
        self._paused = False
        self._gone = False

    @property
    def _pidfd(self) -> int:
        return self._monitor.pidfd

    def open_stream(self) -> socket.socket:
        if self._paused:
            raise SandboxError("the machine is paused", remediation="resume it first")
        if self._gone:
            raise BackendLost(f"sandbox {self.id} is gone")
        return open_stream(self._monitor, _STREAM_SECONDS)

    def counters(self) -> dict[str, int]:
        return self._group.counters() if self._group is not None and not self._gone else {}

    def usage(self) -> dict[str, int]:
        return self._group.usage() if self._group is not None and not self._gone else {}

    def alive(self) -> bool:
        return not self._gone and self._monitor.alive()

    def wait(self, timeout: float | None = None) -> bool:
        return self._gone or self._monitor.wait(timeout)

    def ending(self) -> Cause:
        return self._monitor.ending().cause()

    def kill(self) -> None:
        with self._ending:
            if self._gone:
                return
            self._gone = True
            self._monitor.end()
            if self._group is not None:
                with contextlib.suppress(OSError):  # reaped by name later
                    self._group.remove()

    def save(self) -> dict[str, object]:
        return {
            "jail": self._monitor.jail.folder,
            "group": self._group.name if self._group else None,
        }

    def pause(self) -> None:
        """Raises Refused for a release whose vsock would not survive it."""
        check_pause(self._quirks)
        with self._changing:
            self._monitor.request(config.state("Paused"))
            self._paused = True

    def resume(self) -> None:
        """The guest's clock stood still: it is set again."""
        with self._changing:
            self._monitor.request(config.state("Resumed"))
            self._paused = False
            self._tell("sys.clock")

    def snapshot(self, folder: str) -> None:
        """What runs in the guest is stopped before and goes on after: a restored machine must not
        run it before it has random numbers and a clock of its own.

        Open connections end: Firecracker resets its vsock device. What listens goes on listening.
        """
        with self._changing:
            if self._paused:
                raise SandboxError(
                    "a paused machine has no snapshot", remediation="resume it first"
                )
            jail = self._monitor.jail.root
            self._ceiling.check_room(jail, self._about.memory)
            self._tell("sys.freeze")
            try:
                with self._ceiling.raised(self._about.memory):
                    self._write_into(folder)
            finally:
                self._tell("sys.clock", "sys.thaw")

    def thaw(self) -> None:
        """Let go on what was stopped for a snapshot."""
        self._tell("sys.thaw")

    def _tell(self, *operations: str) -> None:
        """Operations of the agent's, over a stream of their own. Raises SandboxError."""
        tell(open_stream(self._monitor, _STREAM_SECONDS), operations, _STREAM_SECONDS)

    def _write_into(self, folder: str) -> None:
        try:
            snapshot.take(self._monitor)
            snapshot.collect(self._monitor.root, folder, self._about)
        finally:
            with contextlib.suppress(OSError):
                snapshot.discard(self._monitor.root)


class ForeignWall(Foreign, FirecrackerWall):
    """Of a machine whose agent is not ours."""
