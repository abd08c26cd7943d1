"""Counts what the daemon does. This one counts nothing: metrics.py has one that does."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.daemon.commands.command import Command
    from agentd.daemon.sandboxes.live import Live


class Meter:
    """Counts; thread-safe, quick, and never raises."""

    def request(self, op: str, status: str, seconds: float) -> None:
        """Count a call of the service that ended; ``status`` is "ok" or the error's code."""

    def command(self, command: "Command") -> None:
        """Count a command that ended; its result is there."""

    def sandbox(self, live: "Live", source: str, seconds: float) -> None:
        """Count a sandbox that was made: "cold", "pool", "snapshot" or "fork"."""

    def sandbox_ended(self, live: "Live", reason: str) -> None: ...


NONE = Meter()
