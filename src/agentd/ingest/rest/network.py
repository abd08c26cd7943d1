"""What a sandbox may reach, and what it did."""

from agentd.ingest.rest.cassettes import LINES, get_cassette, put_cassette
from agentd.ingest.rest.download import BYTES
from agentd.ingest.rest.operation import Arguments, OperationTable, Parameter
from agentd.model.network import ConnectionPage, NetworkBody, NetworkView
from agentd.model.service import Service

OPERATIONS = OperationTable()
_NETWORK = "/v1/sandboxes/{id}/network"
_CASSETTE = _NETWORK + "/cassette"
_AFTER = (Parameter("after", int, 0, help="next of the page before"),)


@OPERATIONS.row("GET", _NETWORK, "read")
def _get(service: Service, a: Arguments) -> NetworkView:
    """Show its network, and the rules that hold."""
    return service.network.get(a.id)


@OPERATIONS.row("PUT", _NETWORK, "egress", body=NetworkBody, waits=True)
def _set(service: Service, a: Arguments) -> NetworkView:
    """Let other rules hold from now on."""
    return service.network.set(a.id, a.body.net)


OPERATIONS.row("GET", _CASSETTE, "read", answer=LINES)(get_cassette)
OPERATIONS.row("PUT", _CASSETTE, "create", body=BYTES, status=204)(put_cassette)


@OPERATIONS.row("GET", _NETWORK + "/connections", "read", query=_AFTER, waits=True)
def _connections(service: Service, a: Arguments) -> ConnectionPage:
    """Tell what it connected to, and what it was refused."""
    return service.network.connections(a.id, a.query["after"])
