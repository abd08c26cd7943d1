"""Machines of an image that is the user's own through and through, whose agent may know v1 alone.

Nothing can be said to such an agent: no limit can be set in the guest, and no clone of it could be
made another machine. So each is booted, and what only the guest can hold is refused.
"""

import socket
from collections.abc import Callable

from agentd.model.errors import Refused, SandboxError
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.vm.machine import MonitorProcess
from agentd.transport.handshake import greet

#: Of a machine's limits, what nothing but the cgroup around its monitor can hold.
NEEDED = ("cpus",)
_IN_GUEST = ("memory", "pids", "disk", "open_files")


def check(spec: SandboxSpec) -> None:
    """Raises Refused for what such a guest cannot be made to do."""
    limits = [f"--{name}" for name in _IN_GUEST if getattr(spec.limits, name) is not None]
    secrets = ["secrets"] * bool(spec.secrets)
    others = ["mounts"] * bool(spec.mounts) + secrets + ["a network"] * (spec.net != "none")
    users = ["--user"] * (spec.user is not None) + ["--writable"] * spec.writable
    for what in (*limits, *others, *users):
        raise Refused(
            f"image {spec.image} cannot be given {what}: its agent is not ours",
            remediation="leave it out, or build an image with our agent: agentd image build",
        )


def await_agent(
    process: MonitorProcess, open_stream: Callable[[float], socket.socket], seconds: float
) -> None:
    """Wait until it answers over vsock. ``open_stream`` waits for so many seconds.

    Raises SandboxError.
    """
    try:
        greet(open_stream(seconds), seconds).close()
    except SandboxError as error:
        if process.wait(0):
            raise SandboxError("the image did not boot", cause=process.why()) from error
        raise SandboxError(
            "no agent answers in the image",
            cause=process.log_tail(),
            remediation="have it listen on vsock port 5000",
        ) from error


class Foreign:
    """A mixin before a wall's class: the wall can be paused, its clock is behind then, and it has
    no snapshots.
    """

    workspace = "/"  # where the original agent starts commands

    def _tell(self, *operations: str) -> None:
        if operations != ("sys.clock",):
            raise Refused(
                "a machine whose agent is not ours cannot be snapshotted",
                remediation="build an image with our agent: agentd image build",
            )
