"""Sandboxes and snapshots."""

from agentd.ingest.rest.api import Reply
from agentd.ingest.rest.download import TAR, get_snapshot
from agentd.ingest.rest.operation import Arguments, OperationTable, Parameter, labels
from agentd.ingest.rest.pages import QUERY, not_a_cursor, page
from agentd.model import api
from agentd.model.api import SandboxPage, SandboxView, SnapshotView
from agentd.model.door import DoorService
from agentd.model.errors import InvalidInput
from agentd.model.image import ImageView

OPERATIONS = OperationTable()
_ALL = "/v1/sandboxes"
_ONE = _ALL + "/{id}"
_SNAPSHOT = "/v1/snapshots/{id}"
_LIMIT, _MOST = 100, 500
_LIST_QUERY = (
    Parameter("label", default=(), repeat=True, help="key=value"),
    Parameter("state", default=None, help="those in this state alone"),
    Parameter("limit", int, _LIMIT),
    Parameter("cursor", default="", help="next of the page before"),
)


@OPERATIONS.row(
    "POST", _ALL, "create", body=api.SandboxBody, once=True, lasting=False, status=201, waits=True
)
def _create(service: DoorService, a: Arguments) -> SandboxView:
    """Make a sandbox."""
    return service.sandboxes.create(a.body)


@OPERATIONS.row("GET", _ALL, "read", query=_LIST_QUERY)
def _list(service: DoorService, a: Arguments) -> SandboxPage:
    """List one's sandboxes, a page at a time."""
    limit = a.query["limit"]
    if not 1 <= limit <= _MOST:
        raise InvalidInput(f"limit {limit} is out of range", remediation=f"give 1 to {_MOST}")
    after = a.query["cursor"]
    if after and not after.startswith("sbx-"):
        raise not_a_cursor(after)
    found = service.sandboxes.list(
        labels=labels(a.query["label"]),
        state=a.query["state"],
        after=after,
        limit=limit + 1,  # whether there is another page
    )
    shown = found[:limit]
    return SandboxPage(shown, next=shown[-1].id if len(found) > limit else None)


@OPERATIONS.row("GET", _ONE, "read", control=True)
def _get(service: DoorService, a: Arguments) -> SandboxView:
    """Show a sandbox, with its usage."""
    return service.sandboxes.get(a.id)


@OPERATIONS.row("PUT", _ONE, "create", body=api.SandboxBody, waits=True)
def _get_or_create(service: DoorService, a: Arguments) -> SandboxView:
    """Find the sandbox that one has given this name, or make it."""
    return service.sandboxes.get_or_create(a.id, a.body)


@OPERATIONS.row("PATCH", _ONE, "create", body=api.LabelsBody, waits=True)
def _relabel(service: DoorService, a: Arguments) -> SandboxView:
    """Change its labels; null takes one away."""
    return service.sandboxes.relabel(a.id, a.body.labels)


@OPERATIONS.row(
    "DELETE", _ONE, "create", control=True, at_once=lambda s, a: s.sandboxes.kill_at_once(a.id)
)
def _kill(service: DoorService, a: Arguments) -> None:
    """End a sandbox and all that is in it."""
    service.sandboxes.kill(a.id)


@OPERATIONS.row("POST", _ONE + "/renew", "create", body=api.RenewBody, control=True)
def _renew(service: DoorService, a: Arguments) -> SandboxView:
    """Let its lease end so many seconds from now."""
    return service.sandboxes.renew(a.id, a.body.ttl)


@OPERATIONS.row("POST", _ONE + "/pause", "create", control=True)
def _pause(service: DoorService, a: Arguments) -> SandboxView:
    """Stop everything in it where it is."""
    return service.sandboxes.pause(a.id)


@OPERATIONS.row("POST", _ONE + "/resume", "create", control=True)
def _resume(service: DoorService, a: Arguments) -> SandboxView:
    """Let it go on."""
    return service.sandboxes.resume(a.id)


_UNKEPT = "leave it out; GET /v1/snapshots tells whether it was made"
_UNCOMMITTED = "leave it out; an image of that name is replaced"
_UNFORKED = "leave it out; GET /v1/sandboxes tells whether they were made"


@OPERATIONS.row("POST", _ONE + "/snapshot", "snapshot", keyless=_UNKEPT, status=201, waits=True)
def _snapshot(service: DoorService, a: Arguments) -> SnapshotView:
    """Keep its state, to create others from."""
    return service.sandboxes.snapshot(a.id)


@OPERATIONS.row(
    "POST", _ONE + "/fork", "snapshot", body=api.ForkBody, keyless=_UNFORKED, status=201, waits=True
)
def _fork(service: DoorService, a: Arguments) -> tuple[SandboxView, ...]:
    """Make copies of it that go on by themselves."""
    return service.sandboxes.fork(a.id, a.body.count)


@OPERATIONS.row(
    "POST",
    _ONE + "/commit",
    "admin",
    body=api.CommitBody,
    keyless=_UNCOMMITTED,
    status=201,
    waits=True,
)
def _commit(service: DoorService, a: Arguments) -> ImageView:
    """Name an OCI image of what it is now."""
    return service.sandboxes.commit(a.id, a.body.name)


@OPERATIONS.row("GET", _ONE + "/changes", "files", waits=True)
def _changes(service: DoorService, a: Arguments) -> tuple[str, ...]:
    """Tell what it has changed in its copy of the workspace."""
    return service.sandboxes.changes(a.id)


@OPERATIONS.row("POST", _ONE + "/apply", "files", waits=True)
def _apply(service: DoorService, a: Arguments) -> None:
    """Change the workspace itself as the copy was changed."""
    service.sandboxes.apply(a.id)


@OPERATIONS.row("GET", "/v1/snapshots", "snapshot", query=QUERY, answer=list[SnapshotView])
def _snapshots(service: DoorService, a: Arguments) -> Reply:
    """List one's snapshots, the oldest first."""
    return page(service.snapshots.list(), lambda v: (v.created, v.id), **a.query)


@OPERATIONS.row("GET", _SNAPSHOT, "snapshot")
def _get_snapshot(service: DoorService, a: Arguments) -> SnapshotView:
    """Show a snapshot."""
    return service.snapshots.get(a.id)


OPERATIONS.row("GET", _SNAPSHOT + "/export", "admin", answer=TAR)(get_snapshot)


@OPERATIONS.row("DELETE", _SNAPSHOT, "snapshot", control=True)
def _delete_snapshot(service: DoorService, a: Arguments) -> None:
    """Delete a snapshot."""
    service.snapshots.delete(a.id)
