"""A machine's network that is restricted to rules: it has no card, and its guest opens a stream to
the host for each connection that is dialled in it (``linux.dialled``)."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from agentd.linux import anyip, dialled
from agentd.model.enforcement import Control
from agentd.model.errors import AgentdError, Refused
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends import certificates
from agentd.sandbox.backends.linux import report
from agentd.sandbox.backends.linux.network import SandboxNetwork, relay, rest
from agentd.sandbox.backends.linux.plan import egress_table

__all__ = [
    "SETUP",
    "SandboxNetwork",
    "admitted",
    "begin",
    "control",
    "explained",
    "ports",
    "rest",
    "table",
]

#: What sys.setup is told of it.
SETUP: dict[str, object] = {"relay": dialled.PORT}
_HOW = "no network card"


def table(spec: SandboxSpec) -> dict[str, Any] | None:
    """By which the relay decides; None where the network is not one of rules. Raises InvalidInput,
    Refused."""
    if spec.net != "restricted":
        return None
    found = egress_table(spec.egress, spec.egress_bounds, spec.secrets)
    if spec.secrets or certificates.reads(found):
        what = "use secrets" if spec.secrets else "have its requests judged"
        raise Refused(
            f"a virtual machine cannot {what}: its programs are shown no certificate authority "
            "but their own",
            remediation="use --backend linux, or rules without methods and paths and no secrets",
        )
    return found


def begin() -> None:
    """Start the relay, and do not wait for it. Raises SandboxError."""
    relay().begin()


def admitted(
    listener: socket.socket, table: dict[str, Any], undo: contextlib.ExitStack
) -> SandboxNetwork:
    """Have the relay take the streams that come to ``listener``, which is its keeper's from now on.
    Raises SandboxError; it is closed then."""
    network = SandboxNetwork(relay().admit([listener], table), how=_HOW)
    undo.callback(network.close)
    return network


@contextlib.contextmanager
def ports(path: str | None) -> Iterator[dict[int, int]]:
    """A descriptor of the socket that the port of a network leads to, by port; of none without a
    path. Raises OSError."""
    if path is None:
        yield {}
        return
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield {dialled.PORT: fd}
    finally:
        os.close(fd)


def control(spec: SandboxSpec) -> Control:
    """What is said of a network without a card; of one of rules these, as they were written."""
    if spec.net != "restricted":
        return Control(spec.net, True, _HOW)
    return report.network(spec.net, spec.egress, how=_HOW, bounds=spec.egress_bounds)


def explained(error: AgentdError) -> AgentdError:
    """``error``, or what it means where the guest's kernel lacks what a network of rules takes."""
    if anyip.NONE not in (error.cause or ""):
        return error
    return Refused(
        "a network cannot be restricted to rules in this machine",
        cause=error.cause,
        remediation="use an image whose kernel has these modules, as those have that agentd image "
        "build makes without --kernel; or leave --net out",
    )
