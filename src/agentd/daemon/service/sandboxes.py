"""A caller's sandboxes and their snapshots."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import msgspec

from agentd.daemon.admission import acts
from agentd.daemon.observe.observed import observed
from agentd.daemon.sandboxes import bodies, given_secrets
from agentd.daemon.sandboxes.live import Live
from agentd.daemon.sandboxes.names import taken
from agentd.daemon.sandboxes.snapshots import SnapshotOwner
from agentd.daemon.service.noun import Noun
from agentd.model import context
from agentd.model.api import SandboxBody, SandboxView, SnapshotView
from agentd.model.audit import Kind
from agentd.model.errors import AgentdError, InvalidInput, NotFound
from agentd.model.idle import idle_rule
from agentd.model.image import ImageView
from agentd.model.principal import ADMIN
from agentd.model.secret import SecretValue
from agentd.model.units import parse_duration
from agentd.policy.scopes import scope_of

_AS_USUAL = SandboxBody()
_CHANGES = 128 << 20  # bytes of the longest list of changes, in its copies
_BUILD_SECONDS = 60.0  # that somebody else may take to make the sandbox of a name


class DaemonSandboxes(Noun):
    """Implements ``model.service.Sandboxes``."""

    @observed("create")
    def create(self, body: SandboxBody = _AS_USUAL) -> SandboxView:
        return self.made(body).view()

    @observed("get_or_create")
    def get_or_create(self, name: str, body: SandboxBody = _AS_USUAL) -> SandboxView:
        self._who.require("create")
        if body.name not in (None, name):
            raise InvalidInput(
                f"the body's name {body.name[:64]!r} is not that of the path",
                remediation="leave it out",
            )
        named = msgspec.structs.replace(body, name=name)
        sandboxes = self._parts.sandboxes
        wait = bodies.wait_of(body) + _BUILD_SECONDS
        with sandboxes.names.making(self._who.name, name, wait=wait):
            return (sandboxes.named(self._who, name) or self._make(named)).view()

    @observed("list")
    def list(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        state: str | None = None,
        after: str = "",
        limit: int | None = None,
    ) -> tuple[SandboxView, ...]:
        self._who.require("read")
        found = self._parts.sandboxes.views(self._who, labels or {}, state, after)
        return tuple(itertools.islice(found, limit))

    @observed("get")
    def get(self, id: str) -> SandboxView:
        return self._live("read", id).view(usage=True)

    @observed("relabel")
    def relabel(self, id: str, labels: Mapping[str, str | None]) -> SandboxView:
        live = self._live("create", id)
        self._parts.sandboxes.relabel(self._who, live, labels)
        return live.view()

    @observed("renew")
    def renew(self, id: str, ttl: str | float) -> SandboxView:
        live = self._live("create", id)
        self._parts.sandboxes.renew(live, parse_duration(ttl, "ttl"))
        return live.view()

    @observed("pause")
    def pause(self, id: str) -> SandboxView:
        live = self._live("create", id)
        self._parts.sandboxes.pause(live)
        return live.view()

    @observed("resume")
    def resume(self, id: str) -> SandboxView:
        live = self._live("create", id)
        self._parts.sandboxes.resume(live)
        return live.view()

    @observed("delete")
    def kill(self, id: str) -> None:
        self._parts.sandboxes.end(self._live("create", id))

    def kill_at_once(self, id: str) -> Callable[[], None] | None:
        """Do as ``DoorSandboxes`` says."""
        try:
            self._who.require("create")
            live = self._parts.sandboxes.get(self._who, id)
            rest = self._parts.sandboxes.end_at_once(live)
        except AgentdError:
            return None  # ``kill`` says so
        return None if rest is None else partial(self._finish, live.id, rest)

    @observed("delete")  # counted as what it begins
    def _finish(self, id: str, rest: Callable[[], None]) -> None:
        rest()

    @observed("snapshot")
    def snapshot(self, id: str) -> SnapshotView:
        live, _ = self._open(id, acts.SNAPSHOT, "take a snapshot of it")
        snapshots, owner = self._parts.snapshots, self._who.name
        with snapshots.making(owner) as new:
            kept = self._parts.pipeline.manager.snapshot(live.handle, snapshots.place(new))
            about = SnapshotOwner(live.id, owner, time.time(), live.record.principal)
            snapshots.write_down(new, about)
        return SnapshotView(new, live.id, kept.fidelity, about.created, kept.size)

    @observed("fork")
    def fork(self, id: str, count: int = 1) -> tuple[SandboxView, ...]:
        live = self._live(scope_of(acts.FORK), id)
        has = msgspec.structs.replace(live.handle.spec, backend=live.handle.backend)
        spec = bodies.forked_spec(self._who, has, self._parts.config())
        values = given_secrets.stored_values(
            spec, self._stored, self._if_another(live.record.principal)
        )
        made = self._parts.sandboxes.fork(self._who, live, count, spec, values)
        return tuple(copy.view() for copy in made)

    @observed("commit")
    def commit(self, id: str, name: str) -> ImageView:
        from agentd.daemon.commits import commit  # late: few need it

        self._who.require(ADMIN)  # everybody's sandboxes start of what has the name
        live, _ = self._open(id, acts.SNAPSHOT, "commit it", image=name)
        return commit(self._parts.pipeline.manager, live.handle, name)

    @observed("changes")
    def changes(self, id: str) -> tuple[str, ...]:
        live = self._live(scope_of(acts.WRITE), id)  # it tells what ``apply`` would write
        self._judge(live, acts.LIST, path=live.wall.workspace)
        overlay = live.handle.overlay()
        context.make_room(_CHANGES)  # before they are listed, for each copy is large
        with live.handle.telling():
            return tuple(overlay.changes())

    @observed("apply")
    def apply(self, id: str) -> None:
        live = self._live(scope_of(acts.WRITE), id)
        with self._judge(live, acts.WRITE, "apply", path=live.wall.workspace) as admission:
            admission.begin()
            with live.handle.telling():
                live.handle.overlay().apply()

    def made(self, body: SandboxBody) -> Live:
        """Make one that is ready, for ``create`` and ``run``."""
        self._who.require("create")
        if body.name is None:
            return self._make(body)
        sandboxes = self._parts.sandboxes
        with sandboxes.names.making(self._who.name, body.name):
            if sandboxes.named(self._who, body.name) is not None:
                raise taken(body.name)
            return self._make(body)

    def _make(self, body: SandboxBody) -> Live:
        who, parts = self._who, self._parts
        ttl, wait = bodies.ttl_of(body.ttl), bodies.wait_of(body)
        idle = idle_rule(body.idle_timeout, body.on_idle)
        kept, another = None, ""
        if body.snapshot is None:
            spec = bodies.sandbox_spec(who, body, parts.config())
        else:
            kept = parts.snapshots.get(who, body.snapshot)
            another = self._if_another(parts.snapshots.owner(who, body.snapshot))
            spec = bodies.restored_spec(who, kept.spec, body, parts.config())
        spec, values = given_secrets.given(spec, body.secrets, self._stored, another)
        return parts.sandboxes.create(
            who,
            spec,
            labels=body.labels,
            ttl=ttl,
            snapshot=kept,
            wait=wait,
            name=body.name or "",
            idle=idle,
            values=values,
            origin={} if body.snapshot is None else {"snapshot": body.snapshot},
        )

    def _if_another(self, principal: str) -> str:
        return principal if principal != self._who.name else ""

    def _stored(self, name: str) -> SecretValue:
        """Raises Forbidden, NotFound."""
        self._who.require("secrets")
        return self._parts.secrets.value(self._who.name, name)


class DaemonSnapshots(Noun):
    """Implements ``model.service.Snapshots``."""

    @observed("snapshots")
    def list(self) -> tuple[SnapshotView, ...]:
        self._who.require("snapshot")
        return tuple(self._parts.snapshots.all(self._who))

    @observed("get_snapshot")
    def get(self, id: str) -> SnapshotView:
        self._who.require("snapshot")
        found = self._parts.snapshots.view(self._who, id)
        if found is None:
            raise NotFound(
                f"there is no snapshot {id[:64]!r}", remediation="agentd snapshot ls lists yours"
            )
        return found

    @observed("export_snapshot")
    def export(self, id: str) -> Iterator[bytes]:
        from agentd.sandbox import exports  # late: few need it

        self._who.require(ADMIN)  # no policy is asked about the files that are in it
        kept = self._parts.snapshots.get(self._who, id)
        self._parts.control.record(Kind.SNAPSHOT_EXPORTED, self._who.name, id=id)
        return exports.pieces(kept.export)

    @observed("delete_snapshot")
    def delete(self, id: str) -> None:
        self._who.require("snapshot")
        self._parts.snapshots.check(self._who, id)
        self._parts.control.record(Kind.SNAPSHOT_DELETED, self._who.name, id=id)
        self._parts.snapshots.discard(id)
