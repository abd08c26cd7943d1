"""A running machine of Firecracker's, seen from the host."""

import contextlib
import socket
import threading
import time

from agentd.linux import process
from agentd.linux.cgroup import Group
from agentd.model.enforcement import Enforcement
from agentd.model.errors import AgentdError, BackendLost, SandboxError
from agentd.sandbox.backends.firecracker import config, snapshot
from agentd.sandbox.backends.firecracker.plan import PORT
from agentd.sandbox.backends.firecracker.process import Monitor
from agentd.sandbox.backends.firecracker.snapshot import About
from agentd.sandbox.backends.firecracker.version import Quirks, check_pause
from agentd.transport.dial import dial
from agentd.transport.guest import Guest

_STREAM_SECONDS = 10.0
# A connection that Firecracker holds for a guest without a driver is never answered: give it up
# and ask again (github.com/firecracker-microvm/firecracker#1253).
_TRY_SECONDS = 1.0
_ANSWER_SECONDS = 10.0


def open_stream(monitor: Monitor, seconds: float) -> socket.socket:
    """To the agent, once it listens. Raises MonitorEnded, BackendLost."""
    deadline = time.monotonic() + seconds
    while True:
        if not monitor.alive():
            raise monitor.ended()
        try:
            path = monitor.root.socket_path(config.VSOCK)
            left = deadline - time.monotonic()
            return dial(f"hybrid:{path}:{PORT}", min(_TRY_SECONDS, max(left, 0.05)))
        except FileNotFoundError as error:
            raise BackendLost("the machine has no vsock", cause=str(error)) from error
        except BackendLost:
            if time.monotonic() >= deadline:
                raise


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
            tell(self._monitor, "sys.clock")

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
            tell(self._monitor, "sys.freeze")
            try:
                self._write()
                snapshot.collect(self._monitor.root, folder, self._about)
            finally:
                with contextlib.suppress(OSError):
                    snapshot.discard(self._monitor.root)
                tell(self._monitor, "sys.clock", "sys.thaw")

    def thaw(self) -> None:
        """Let go on what was stopped for a snapshot."""
        tell(self._monitor, "sys.thaw")

    def _write(self) -> None:
        self._monitor.request(config.state("Paused"))
        try:
            self._monitor.request(config.snapshot())
        finally:
            self._monitor.request(config.state("Resumed"))


def tell(monitor: Monitor, *operations: str) -> None:
    """Operations of the agent's, over a connection of their own. Raises SandboxError."""
    guest = Guest(
        lambda: open_stream(monitor, _STREAM_SECONDS),
        passes_descriptors=False,
        answer_timeout=_ANSWER_SECONDS,
    )
    try:
        for name in operations:
            fields = {"unix_ns": time.time_ns()} if name == "sys.clock" else {}
            guest.call(name, **fields)
    except SandboxError:
        raise
    except AgentdError as error:
        what = f"the guest refused {operations[0]}"
        raise SandboxError(what, cause=str(error)) from error
    finally:
        guest.close()
