"""A machine's network that is restricted to rules: it has no card, and its guest opens a stream to
the host for each connection that is dialled in it (``linux.dialled``)."""

import contextlib
import socket
from typing import Any

from agentd.linux import anyip, dialled
from agentd.model.enforcement import Control
from agentd.model.errors import AgentdError, Refused
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends import certificates
from agentd.sandbox.backends.linux import report
from agentd.sandbox.backends.linux.network import SandboxNetwork as SandboxNetwork  # noqa: PLC0414
from agentd.sandbox.backends.linux.network import reading, relay
from agentd.sandbox.backends.linux.network import rest as rest  # noqa: PLC0414
from agentd.sandbox.backends.linux.plan import egress_table

_OLDER = "net has no field 'authority'"  # in an agent's answer to sys.setup
_HOW = "no network card"


def table(spec: SandboxSpec) -> dict[str, Any] | None:
    """By which the relay decides; None where the network is not one of rules. Raises
    InvalidInput."""
    if spec.net != "restricted":
        return None
    return egress_table(spec.egress, spec.egress_bounds, spec.secrets)


def begin() -> None:
    """Start the relay, and do not wait for it. Raises SandboxError."""
    relay().begin()


def admitted(
    listener: socket.socket, spec: SandboxSpec, table: dict[str, Any], undo: contextlib.ExitStack
) -> SandboxNetwork:
    """Have the relay take the streams that come to ``listener``, which is its keeper's from now on;
    where some are read, with an authority of this machine's own. Raises SandboxError; the listener
    is closed then."""
    try:
        own = certificates.authority(table)
        read = reading(own, spec.egress_bounds)
        network = SandboxNetwork(
            relay().admit([listener], table, read), spec.secrets, own, how=_HOW
        )
    except BaseException:
        listener.close()
        raise
    undo.callback(network.close)
    return network


def setup(network: SandboxNetwork) -> dict[str, object]:
    """Return what sys.setup is told of it."""
    whom = network.certificate
    return {"relay": dialled.PORT} | ({} if whom is None else {"authority": whom})


def control(spec: SandboxSpec) -> Control:
    """Says of a network without a card; of one of rules these, as they were written."""
    if spec.net != "restricted":
        return Control(spec.net, True, _HOW)
    return report.network(spec.net, spec.egress, spec.secrets, _HOW, spec.egress_bounds)


def explained(error: AgentdError) -> AgentdError:
    """``error``, or what it means where the guest's kernel lacks what a network of rules takes, or
    its agent what it takes to have connections read."""
    if _OLDER in (error.cause or ""):
        return Refused(
            "secrets and rules about requests are nothing that the agent in this machine knows",
            cause="it is of an older release, and has no certificates to show to programs",
            remediation="build the image again (agentd image build --force), or leave them out",
        )
    if anyip.NONE not in (error.cause or ""):
        return error
    return Refused(
        "a network cannot be restricted to rules in this machine",
        cause=error.cause,
        remediation="use an image whose kernel has these modules, as those have that agentd image "
        "build makes without --kernel; or leave --net out",
    )
