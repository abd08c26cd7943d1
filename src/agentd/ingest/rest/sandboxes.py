"""Sandboxes and snapshots."""

from agentd.ingest.rest.operation import Arguments, Operation
from agentd.ingest.rest.pages import QUERY, page
from agentd.ingest.rest.query import Parameter, labels
from agentd.ingest.rest.respond import Reply
from agentd.model.api import (
    ForkBody,
    LabelsBody,
    RenewBody,
    SandboxBody,
    SandboxPage,
    SandboxView,
    SnapshotView,
)
from agentd.model.door import DoorService
from agentd.model.errors import InvalidInput

_ONE = "/v1/sandboxes/{id}"
_LIMIT, _MOST = 100, 500


def _list(service: DoorService, a: Arguments) -> SandboxPage:
    limit = a.query["limit"]
    if not 1 <= limit <= _MOST:
        raise InvalidInput(f"limit {limit} is not from 1 to {_MOST}")
    found = service.sandboxes.list(
        labels=labels(a.query["label"]),
        state=a.query["state"] or None,
        after=a.query["cursor"],
        limit=limit + 1,  # whether there is another page
    )
    shown = found[:limit]
    return SandboxPage(shown, next=shown[-1].id if len(found) > limit else None)


def _snapshots(service: DoorService, a: Arguments) -> Reply:
    return page(service.snapshots.list(), lambda v: (v.created, v.id), **a.query)


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/sandboxes",
        scope="create",
        help="make a sandbox",
        call=lambda s, a: s.sandboxes.create(a.body),
        body=SandboxBody,
        answer=SandboxView,
        status=201,
        waits=True,
        once=True,
        lasting=False,
    ),
    Operation(
        method="GET",
        path="/v1/sandboxes",
        scope="read",
        help="one's sandboxes, a page at a time",
        call=_list,
        query=(
            Parameter("label", default=(), repeat=True, help="key=value"),
            Parameter("state", default="", help="those in this state alone"),
            Parameter("limit", int, _LIMIT),
            Parameter("cursor", default="", help="next of the page before"),
        ),
        answer=SandboxPage,
    ),
    Operation(
        method="GET",
        path=_ONE,
        scope="read",
        help="a sandbox, with its usage",
        call=lambda s, a: s.sandboxes.get(a.id),
        answer=SandboxView,
        control=True,
    ),
    Operation(
        method="PUT",
        path=_ONE,
        scope="create",
        help="the sandbox that one has given this name, made if there is none",
        call=lambda s, a: s.sandboxes.get_or_create(a.id, a.body),
        body=SandboxBody,
        answer=SandboxView,
        waits=True,
    ),
    Operation(
        method="PATCH",
        path=_ONE,
        scope="create",
        help="change its labels; null takes one away",
        call=lambda s, a: s.sandboxes.relabel(a.id, a.body.labels),
        body=LabelsBody,
        answer=SandboxView,
        waits=True,
    ),
    Operation(
        method="DELETE",
        path=_ONE,
        scope="create",
        help="end a sandbox and all that is in it",
        call=lambda s, a: s.sandboxes.kill(a.id),
        at_once=lambda s, a: s.sandboxes.kill_at_once(a.id),
        status=204,
        control=True,
    ),
    Operation(
        method="POST",
        path=_ONE + "/renew",
        scope="create",
        help="let its lease end so many seconds from now",
        call=lambda s, a: s.sandboxes.renew(a.id, a.body.ttl),
        body=RenewBody,
        answer=SandboxView,
        control=True,
    ),
    Operation(
        method="POST",
        path=_ONE + "/pause",
        scope="create",
        help="stop everything in it where it is",
        call=lambda s, a: s.sandboxes.pause(a.id),
        answer=SandboxView,
        control=True,
    ),
    Operation(
        method="POST",
        path=_ONE + "/resume",
        scope="create",
        help="let it go on",
        call=lambda s, a: s.sandboxes.resume(a.id),
        answer=SandboxView,
        control=True,
    ),
    Operation(
        method="POST",
        path=_ONE + "/snapshot",
        scope="snapshot",
        help="keep its state, to create others from",
        call=lambda s, a: s.sandboxes.snapshot(a.id),
        answer=SnapshotView,
        status=201,
        waits=True,
        keyless="leave it out; GET /v1/snapshots tells whether it was made",
    ),
    Operation(
        method="POST",
        path=_ONE + "/fork",
        scope="snapshot",
        help="copies of it that go on by themselves",
        call=lambda s, a: s.sandboxes.fork(a.id, a.body.count),
        body=ForkBody,
        answer=list[SandboxView],
        status=201,
        waits=True,
        keyless="leave it out; GET /v1/sandboxes tells whether they were made",
    ),
    Operation(
        method="GET",
        path=_ONE + "/changes",
        scope="files",
        help="what it has changed in its copy of the workspace",
        call=lambda s, a: s.sandboxes.changes(a.id),
        answer=list[str],
        waits=True,
    ),
    Operation(
        method="POST",
        path=_ONE + "/apply",
        scope="files",
        help="change the workspace itself as the copy was changed",
        call=lambda s, a: s.sandboxes.apply(a.id),
        status=204,
        waits=True,
    ),
    Operation(
        method="GET",
        path="/v1/snapshots",
        scope="snapshot",
        help="one's snapshots, the oldest first",
        call=_snapshots,
        query=QUERY,
        answer=list[SnapshotView],
    ),
    Operation(
        method="GET",
        path="/v1/snapshots/{id}",
        scope="snapshot",
        help="a snapshot",
        call=lambda s, a: s.snapshots.get(a.id),
        answer=SnapshotView,
    ),
    Operation(
        method="DELETE",
        path="/v1/snapshots/{id}",
        scope="snapshot",
        help="delete a snapshot",
        call=lambda s, a: s.snapshots.delete(a.id),
        status=204,
        control=True,
    ),
)
