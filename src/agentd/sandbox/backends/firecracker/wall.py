"""A running machine of Firecracker's, seen from the host."""

import contextlib
import socket

from agentd.linux import process
from agentd.linux.cgroup import Group
from agentd.model.enforcement import Enforcement
from agentd.model.errors import BackendLost
from agentd.sandbox.backends.firecracker import config, snapshot
from agentd.sandbox.backends.firecracker.plan import PORT, ceiling
from agentd.sandbox.backends.firecracker.process import FirecrackerProcess
from agentd.sandbox.backends.firecracker.snapshot import SavedMachine
from agentd.sandbox.backends.firecracker.version import Quirks, lacks
from agentd.sandbox.backends.vm import streams
from agentd.sandbox.backends.vm.foreign import Foreign
from agentd.sandbox.backends.vm.machine import STREAM_SECONDS, MachineWall


def open_stream(monitor: FirecrackerProcess, seconds: float) -> socket.socket:
    """Open a stream to the agent, once it listens. Raises MachineEnded, BackendLost."""

    def check() -> None:
        if not monitor.alive():
            raise monitor.ended()

    check()
    try:
        path = monitor.root.socket_path(config.VSOCK)
    except FileNotFoundError as error:
        raise BackendLost("the machine has no vsock", cause=str(error)) from error
    return streams.open_stream(f"hybrid:{path}:{PORT}", seconds, check)


class FirecrackerWall(MachineWall[FirecrackerProcess]):
    """Open connections end with a snapshot: Firecracker resets its vsock device, and tells the
    guest alone. What listens goes on listening.
    """

    def __init__(
        self,
        monitor: FirecrackerProcess,
        group: Group | None,
        enforcement: Enforcement,
        about: SavedMachine,
        quirks: Quirks,
    ) -> None:
        super().__init__(
            monitor,
            group,
            enforcement,
            pid=process.pidfd_of_fdinfo(monitor.pidfd),
            memory=about.memory,
            ceiling=ceiling(about.memory),
        )
        self.id = monitor.jail.id
        self.lacks = lacks(quirks)
        self._about = about

    def open_stream(self) -> socket.socket:
        self._check_running()
        if self._gone:
            raise BackendLost(f"sandbox {self.id} is gone")
        return self._own_stream()

    def save(self) -> dict[str, object]:
        group = self._group.name if self._group else None
        return {"jail": self._process.jail.folder, "group": group}

    def pause(self) -> None:
        with self._changing:
            self._process.request(config.state("Paused"))
            self._paused = True

    def resume(self) -> None:
        """Has it go on, and sets the guest's clock, which stood still."""
        with self._changing:
            self._process.request(config.state("Resumed"))
            self._paused = False
            self._tell("sys.clock")

    def thaw(self) -> None:
        """Let go on what was stopped for a snapshot."""
        self._tell("sys.thaw")

    def _own_stream(self) -> socket.socket:
        return open_stream(self._process, STREAM_SECONDS)

    def _check_snapshot(self, folder: str) -> None:
        self._ceiling.check_room(self._process.jail.root, self._memory)

    def _write_snapshot(self, folder: str) -> None:
        try:
            snapshot.take(self._process, self._memory)
            snapshot.collect(self._process.root, folder, self._about)
        finally:
            with contextlib.suppress(OSError):
                snapshot.discard(self._process.root)


class ForeignFirecrackerWall(Foreign, FirecrackerWall):
    """The wall of a machine whose agent is not ours."""
