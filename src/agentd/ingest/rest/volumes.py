"""Named volumes."""

from agentd.ingest.rest.api import Reply
from agentd.ingest.rest.operation import Arguments, OperationTable
from agentd.ingest.rest.pages import QUERY, page
from agentd.model.api import VolumeBody, VolumeView
from agentd.model.errors import InvalidInput
from agentd.model.service import Service

OPERATIONS = OperationTable()
_ALL = "/v1/volumes"
_ONE = _ALL + "/{name}"
_NAMED = "leave it out: a repeat finds the volume, and is a conflict"


@OPERATIONS.row("POST", _ALL, "volumes", body=VolumeBody, status=201, keyless=_NAMED)
def _create(service: Service, a: Arguments) -> VolumeView:
    """Make an empty volume."""
    return service.volumes.create(a.body.name, a.body.size)


@OPERATIONS.row("GET", _ALL, "volumes", query=QUERY, answer=list[VolumeView])
def _list(service: Service, a: Arguments) -> Reply:
    """List one's volumes, the oldest first."""
    return page(service.volumes.list(), lambda v: (v.created, v.name), **a.query)


@OPERATIONS.row("GET", _ONE, "volumes")
def _get(service: Service, a: Arguments) -> VolumeView:
    """Show a volume, and which sandboxes have it."""
    return service.volumes.get(a.path["name"])


@OPERATIONS.row(
    "POST", _ONE + "/snapshot", "volumes", body=VolumeBody, status=201, keyless=_NAMED, waits=True
)
def _snapshot(service: Service, a: Arguments) -> VolumeView:
    """Make another, of the body's name, that has what this one has now."""
    if a.body.size is not None:
        raise InvalidInput("a snapshot has the size of its volume", remediation="leave size out")
    return service.volumes.snapshot(a.path["name"], a.body.name)


@OPERATIONS.row("DELETE", _ONE, "volumes", waits=True)
def _delete(service: Service, a: Arguments) -> None:
    """Delete a volume and all that is in it."""
    service.volumes.delete(a.path["name"])
