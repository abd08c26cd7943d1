"""Addresses of ports for browsers."""

from agentd.ingest.rest.operation import Arguments, OperationTable
from agentd.model.port import LinkBody, PortLink
from agentd.model.service import Service

OPERATIONS = OperationTable()


@OPERATIONS.row(
    "POST",
    "/v1/sandboxes/{id}/links",
    "ports",
    body=LinkBody,
    status=201,
    waits=True,  # somebody may have to approve of it
    keyless="send it without: each link is another one",
)
def _link(service: Service, a: Arguments) -> PortLink:
    """Make an address of a port, for a browser."""
    return service.ports.link(a.id, a.body.port, ttl=a.body.ttl)
