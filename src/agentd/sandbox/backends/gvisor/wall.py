"""A sandbox of gVisor, seen from the host."""

from agentd.sandbox.backends.wall import NamespaceWall


class GvisorWall(NamespaceWall):
    """Its first process is gVisor's kernel, with which all commands end: they are none of the
    host's. What opens files for it, a process beside it, ends a moment later by itself."""

    def end(self) -> None:
        """Nothing runs in it any more: of its processes none is a command."""
        self._empty_it()
