"""A sandbox of gVisor, seen from the host."""

import socket

from agentd.model.errors import BackendLost
from agentd.sandbox.backends.linux.cow import OverlayWall
from agentd.sandbox.backends.linux.wall import LinuxWall


class GvisorWall(LinuxWall):
    """Its first process is gVisor's kernel, with which all commands end: they are none of the
    host's. What opens files for it, a process beside it, ends a moment later by itself."""

    #: Each time that gVisor's kernel finds a pipe full it waits for this one: output goes through a
    #: pipe of 1 MiB 1.6 times as fast as through one of the usual 64 KiB.
    pipe_bytes = 1 << 20

    def open_stream(self) -> socket.socket:
        """Raises BackendLost once gVisor's kernel has ended: what opens files for it holds the
        listener for a moment more, and would take a connection that nobody serves."""
        if not self.alive():
            raise BackendLost(f"sandbox {self.id} is gone", cause="gVisor's kernel has ended")
        return super().open_stream()

    def end(self) -> None:
        """Nothing runs in it any more: of its processes none is a command."""
        self._empty_it()

    def _runs_nothing(self) -> bool:
        """What runs in it is gVisor's to know."""
        return False


class GvisorOverlayWall(GvisorWall, OverlayWall):
    """One with a copy-on-write workspace."""
