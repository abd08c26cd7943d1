"""Sandboxes and snapshots."""

from agentd.ingest.rest.operation import Arguments, Operation
from agentd.ingest.rest.pages import QUERY, page
from agentd.ingest.rest.query import Parameter, labels
from agentd.ingest.rest.respond import Reply
from agentd.ingest.service import Service
from agentd.model.api import (
    ForkBody,
    LabelsBody,
    RenewBody,
    SandboxBody,
    SandboxPage,
    SandboxView,
    SnapshotView,
)
from agentd.model.principal import Principal

_ONE = "/v1/sandboxes/{id}"
_LIMIT = 100


def _list(service: Service, who: Principal, a: Arguments) -> SandboxPage:
    q = a.query
    return service.list(who, labels(q["label"]), q["limit"], q["cursor"], q["state"])


def _snapshots(service: Service, who: Principal, a: Arguments) -> Reply:
    return page(service.snapshots(who), lambda v: (v.created, v.id), **a.query)


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/sandboxes",
        scope="create",
        help="make a sandbox",
        call=lambda s, who, a: s.create(who, a.body),
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
        call=lambda s, who, a: s.get(who, a.id),
        answer=SandboxView,
        control=True,
    ),
    Operation(
        method="PUT",
        path=_ONE,
        scope="create",
        help="the sandbox that one has given this name, made if there is none",
        call=lambda s, who, a: s.get_or_create(who, a.id, a.body),
        body=SandboxBody,
        answer=SandboxView,
        waits=True,
    ),
    Operation(
        method="PATCH",
        path=_ONE,
        scope="create",
        help="change its labels; null takes one away",
        call=lambda s, who, a: s.relabel(who, a.id, a.body),
        body=LabelsBody,
        answer=SandboxView,
        waits=True,
    ),
    Operation(
        method="DELETE",
        path=_ONE,
        scope="create",
        help="end a sandbox and all that is in it",
        call=lambda s, who, a: s.delete(who, a.id),
        at_once=lambda s, who, a: s.delete_at_once(who, a.id),
        status=204,
        control=True,
    ),
    Operation(
        method="POST",
        path=_ONE + "/renew",
        scope="create",
        help="let its lease end so many seconds from now",
        call=lambda s, who, a: s.renew(who, a.id, a.body.ttl),
        body=RenewBody,
        answer=SandboxView,
        control=True,
    ),
    Operation(
        method="POST",
        path=_ONE + "/pause",
        scope="create",
        help="stop everything in it where it is",
        call=lambda s, who, a: s.pause(who, a.id),
        answer=SandboxView,
        control=True,
    ),
    Operation(
        method="POST",
        path=_ONE + "/resume",
        scope="create",
        help="let it go on",
        call=lambda s, who, a: s.resume(who, a.id),
        answer=SandboxView,
        control=True,
    ),
    Operation(
        method="POST",
        path=_ONE + "/snapshot",
        scope="snapshot",
        help="keep its state, to create others from",
        call=lambda s, who, a: s.snapshot(who, a.id),
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
        call=lambda s, who, a: s.fork(who, a.id, a.body.count),
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
        call=lambda s, who, a: s.changes(who, a.id),
        answer=list[str],
        waits=True,
    ),
    Operation(
        method="POST",
        path=_ONE + "/apply",
        scope="files",
        help="change the workspace itself as the copy was changed",
        call=lambda s, who, a: s.apply(who, a.id),
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
        call=lambda s, who, a: s.get_snapshot(who, a.id),
        answer=SnapshotView,
    ),
    Operation(
        method="DELETE",
        path="/v1/snapshots/{id}",
        scope="snapshot",
        help="delete a snapshot",
        call=lambda s, who, a: s.delete_snapshot(who, a.id),
        status=204,
        control=True,
    ),
)
