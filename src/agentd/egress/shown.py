"""A sandbox's network as its callers are told of it."""

from typing import TYPE_CHECKING, Protocol

from agentd.egress.compile import compile_table
from agentd.model.egress import RESTRICTED, THIS_HOST
from agentd.model.network import ConnectionPage, ConnectionView, NetworkView
from agentd.model.typed import convert

if TYPE_CHECKING:
    from agentd.egress.connections import ConnectionList
    from agentd.model.spec import SandboxSpec


class TellsConnections(Protocol):
    def connections(self, after: int) -> "ConnectionList": ...


def network(spec: "SandboxSpec") -> NetworkView:
    """Return its rules. Where the operator's hosts lead is not told."""
    if spec.net != RESTRICTED:
        return NetworkView(spec.net)
    table = compile_table(spec.egress, spec.egress_bounds, spec.secrets)
    terminated = tuple(table.get("terminated", ()))
    own = tuple(name for name in table["hosts"] if name != THIS_HOST)
    return NetworkView(spec.net, spec.egress, tuple(table["rules"]), terminated, own)


def connections(wall: TellsConnections, after: int) -> ConnectionPage:
    found = wall.connections(after)
    return ConnectionPage(
        connections=tuple(convert(row, ConnectionView) for row in found.rows),
        next=found.cursor,
        totals=found.totals,
        hosts=found.hosts,
    )
