"""The service contract in this very process: what is made here lives and ends with it.

Direct operations ask no policy: their caller runs the process. Calls do, and are written down.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec

from agentd.client import build, embedded
from agentd.model.api import (
    CallBody,
    ExecBody,
    ResultView,
    RunBody,
    SandboxBody,
    SandboxView,
    VolumeView,
)
from agentd.model.errors import InvalidInput, NotFound, Refused, Unsupported
from agentd.model.options import refuse_daemons, require_rules, with_rules
from agentd.model.principal import local
from agentd.model.running import execute
from agentd.model.typed import like
from agentd.sandbox import abilities, snapshots

if TYPE_CHECKING:
    from agentd.client import ports
    from agentd.client.embedded import Command, Pipeline, SandboxHandle, Snapshot
    from agentd.model import service
    from agentd.model.api import CallView
    from agentd.model.image import ImageView
    from agentd.model.network import ConnectionPage, NetworkView
    from agentd.model.port import Port, PortLink
    from agentd.model.principal import Principal
    from agentd.model.result import Result
    from agentd.model.service import Emit
    from agentd.model.spec import ExecRequest
    from agentd.sandbox.volume import Volume

_AS_USUAL = SandboxBody()


class _Noun:
    """One noun of the contract; what it has no method for takes a daemon."""

    def __init__(self, here: "EmbeddedService", name: str) -> None:
        self._here = here
        self._name = name

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def refused(*args: object, **fields: object) -> None:
            raise Refused(
                f"a daemon is needed for {self._name}.{name}",
                cause="what is in this process lives and ends with it",
                remediation="give url=, with agentd serve running",
            )

        return refused


class _Sandboxes(_Noun):
    def create(self, body: SandboxBody = _AS_USUAL, *, cancel: int = -1) -> SandboxView:
        """Nothing is waited for here, and what is made is not given up."""
        refuse_daemons(body)
        pipeline, who = self._here.pipeline, self._here.who
        if body.snapshot is None:
            template = None
            if body.template is not None:
                body, template = embedded.of_template(body)
            spec = build.sandbox_spec(**body.options())
            spec, values = embedded.given_secrets(embedded.with_own_hosts(spec), body)
            if body.volumes:
                spec = embedded.with_volumes(who, spec)
            if template is not None:
                spec = msgspec.structs.replace(spec, template=body.template or "")
                made = embedded.made_of(template, pipeline, who, spec, values)
                return self._here.adopt(made)
            return self._here.adopt(pipeline.open(who, spec, None, values))
        kept = snapshots.load(body.snapshot)
        spec = build.restored_spec(kept.spec, **body.options())
        spec, values = embedded.given_secrets(embedded.with_own_hosts(spec), body)
        return self._here.adopt(pipeline.open(who, spec, kept, values))

    def list(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        state: str | None = None,
        after: str = "",
        limit: int | None = None,
    ) -> tuple[SandboxView, ...]:
        ids = sorted(id for id in self._here.handles.copy() if id > after and not labels)
        views = (self._here.view(id) for id in ids)
        return tuple(view for view in views if state in (None, view.state))[:limit]

    def get(self, id: str) -> SandboxView:
        return self._here.view(id, usage=True)

    def pause(self, id: str) -> SandboxView:
        handle = self._here.handle(id)
        handle.tell_lease(None, still=True)
        try:
            self._here.pipeline.manager.pause(handle)
        finally:
            handle.tell_lease(None)  # in vain where it is paused
        return self._here.view(id)

    def resume(self, id: str) -> SandboxView:
        handle = self._here.handle(id)
        self._here.pipeline.manager.resume(handle)
        handle.tell_lease(None)
        return self._here.view(id)

    def kill(self, id: str) -> None:
        self._here.pipeline.end(self._here.handle(id))
        self._here.handles.pop(id, None)  # not before: what could not be ended is ended again

    def keep(self, id: str, path: str | os.PathLike[str] | None) -> "Snapshot":
        manager, where = self._here.pipeline.manager, None if path is None else os.fspath(path)
        return manager.snapshot(self._here.handle(id), where)

    def fork(self, id: str, count: int = 1) -> tuple[SandboxView, ...]:
        made = self._here.pipeline.fork(self._here.who, self._here.handle(id), count)
        return tuple(self._here.adopt(handle) for handle in made)

    def commit(self, id: str, name: str) -> "ImageView":
        return embedded.commit(self._here.pipeline, self._here.handle(id), name)

    def changes(self, id: str) -> tuple[str, ...]:
        handle = self._here.handle(id)
        with handle.telling():
            return handle.overlay().changes()

    def apply(self, id: str) -> None:
        handle = self._here.handle(id)
        with handle.telling():
            handle.overlay().apply()

    def ping(self, id: str) -> dict[str, object]:
        return dict(self._here.handle(id).guest.call("sys.ping"))


class _Commands(_Noun):
    def complete(
        self, sandbox: str, request: "ExecRequest", stdin: bytes = b"", cancel: int = -1
    ) -> "Result":
        handle = self._here.handle(sandbox)
        if cancel < 0:
            return self._here.pipeline.execute(self._here.who, handle, request, stdin)
        asked = msgspec.structs.replace(request, stdin=bool(stdin))
        with self.begin(sandbox, asked, capture=True) as running:
            return execute(running, stdin, cancel)

    def begin(
        self, sandbox: str, request: "ExecRequest", *, capture: bool = False, cancel: int = -1
    ) -> "Command":
        """Nothing is waited for here: what a policy wants approved is refused."""
        handle = self._here.handle(sandbox)
        return self._here.pipeline.start(self._here.who, handle, request, capture)

    def exec(self, sandbox: str, body: ExecBody) -> ResultView:
        return embedded.execute(body, partial(self.complete, sandbox))

    def run(self, body: RunBody) -> ResultView:
        embedded.check_run(body.exec)
        sandboxes = _Sandboxes(self._here, "sandboxes")
        made = sandboxes.create(body.sandbox)
        try:
            return self.exec(made.id, body.exec)
        finally:
            sandboxes.kill(made.id)


def _by_its_agent(name: str) -> Any:
    def ask(self: _Noun, sandbox: str, *args: Any, **options: Any) -> Any:
        return getattr(self._here.handle(sandbox).guest.files, name)(*args, **options)

    return ask


class _Files(_Noun):
    read = _by_its_agent("read_iter")
    write = _by_its_agent("write")
    list = _by_its_agent("list")
    stat = _by_its_agent("stat")
    mkdir = _by_its_agent("mkdir")
    move = _by_its_agent("move")
    remove = _by_its_agent("remove")
    watch = _by_its_agent("watch")
    read_tar = _by_its_agent("read_tar")
    write_tar = _by_its_agent("write_tar")


class _Ports(_Noun):
    def open(self, sandbox: str, port: int) -> "Port":
        return self._here.handle(sandbox).guest.tunnel(port)

    def link(self, sandbox: str, port: int, *, ttl: str | float = "1h") -> "PortLink":
        raise Unsupported(
            "a link to a port is a daemon's", remediation="let sandbox.ports.link make one here"
        )


class _Network(_Noun):
    def get(self, sandbox: str) -> "NetworkView":
        from agentd.egress import shown

        return shown.network(self._here.handle(sandbox).spec)

    def set(self, sandbox: str, net: "str | Iterable[str]") -> "NetworkView":
        handle = self._here.handle(sandbox)
        spec = with_rules(handle.spec, net)
        wall = handle.able(abilities.NETWORK, "change the network of")
        wall.set_network(spec.egress, spec.network_bounds)
        handle.spec = spec
        return self.get(sandbox)

    def cassette(self, sandbox: str) -> bytes:
        handle = self._with_rules(sandbox)
        return handle.able(abilities.CASSETTE, "record what is asked in").cassette()

    def play(self, sandbox: str, cassette: bytes) -> None:
        from agentd.egress.cassettes import in_memory

        handle = self._with_rules(sandbox)
        wall = handle.able(abilities.CASSETTE, "replay what is asked in")
        with in_memory(cassette) as path:
            wall.play(path)

    def connections(self, sandbox: str, after: int = 0) -> "ConnectionPage":
        from agentd.egress import shown

        handle = self._with_rules(sandbox)
        return shown.connections(handle.able(abilities.NETWORK, "tell the connections of"), after)

    def _with_rules(self, sandbox: str) -> "SandboxHandle":
        handle = self._here.handle(sandbox)
        require_rules(handle.spec)
        return handle


class _Volumes(_Noun):
    def create(self, name: str, size: str | int | None = None) -> VolumeView:
        return _shown(embedded.volumes().create(self._owner, name, size))

    def list(self) -> tuple[VolumeView, ...]:
        return tuple(_shown(volume) for volume in embedded.volumes().all(self._owner))

    def get(self, name: str) -> VolumeView:
        return _shown(embedded.volumes().get(self._owner, name))

    def snapshot(self, name: str, new: str) -> VolumeView:
        return _shown(embedded.volumes().snapshot(self._owner, name, new, self._lives))

    def delete(self, name: str) -> None:
        embedded.volumes().remove(self._owner, name, self._lives)

    def _lives(self, sandbox: str) -> bool:
        return sandbox in self._here.handles

    @property
    def _owner(self) -> str:
        return self._here.who.name


def _shown(volume: "Volume") -> VolumeView:
    from agentd.sandbox.volume import view

    return view(volume)


class _Capabilities(_Noun):
    def call(
        self,
        capability: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        sandbox: str | None = None,
        create: SandboxBody = _AS_USUAL,
        bundle: str | None = None,
        keep: bool = False,
        emit: "Emit | None" = None,
        cancel: int = -1,
    ) -> "CallView":
        body = CallBody(
            capability=capability,
            parameters=dict(parameters or {}),
            sandbox=sandbox,
            create=create,
            bundle=bundle or None,
            keep=keep,
        )
        handle, _ = self._here.handles.get(sandbox or "", (None, 0.0))
        return embedded.call(self._here.pipeline, self._here.who, body, emit, handle, cancel)

    def request(self, body: bytes, *, emit: "Emit | None" = None, cancel: int = -1) -> "CallView":
        raise InvalidInput(
            "a signed request is for a daemon", remediation="start one: agentd serve"
        )


class EmbeddedService:
    """Implements ``client.ports.Service`` over a pipeline, which its maker closes."""

    url = None
    snapshots: Any
    receipts: Any
    keys: Any
    secrets: Any
    approvals: Any
    audit: Any
    events: Any
    machine: Any

    def __init__(self, pipeline: "Pipeline", who: "Principal | None" = None) -> None:
        self.pipeline = pipeline
        self.who = who or local(f"uid:{os.geteuid()}")  # the kernel has authenticated us
        self.handles: dict[str, tuple[SandboxHandle, float]] = {}  # and when they were made
        self.sandboxes = cast("ports.Sandboxes", _Sandboxes(self, "sandboxes"))
        self.commands = cast("ports.Commands", _Commands(self, "commands"))
        self.files = cast("ports.Files", _Files(self, "files"))
        self.ports = _Ports(self, "ports")
        self.network = _Network(self, "network")
        self.volumes = _Volumes(self, "volumes")
        self.capabilities = cast("service.Capabilities", _Capabilities(self, "capabilities"))

    def __getattr__(self, name: str) -> _Noun:
        if name not in EmbeddedService.__annotations__:
            raise AttributeError(name)
        return _Noun(self, name)

    def handle(self, id: str) -> "SandboxHandle":
        try:
            return self.handles[id][0]
        except KeyError:
            raise NotFound(
                f"this process has no sandbox {id[:64]!r}", remediation="name a daemon, by its url"
            ) from None

    def adopt(self, handle: "SandboxHandle") -> SandboxView:
        """Take up one that the pipeline has made."""
        self.handles[handle.id] = handle, time.time()
        return self.view(handle.id)

    def view(self, id: str, *, usage: bool = False) -> SandboxView:
        handle, created = self.handle(id), self.handles[id][1]
        wall = handle.wall
        return like(
            SandboxView,
            handle.spec,
            id=id,
            state=str(handle.state),
            backend=handle.backend,
            level=handle.level.label,
            packages=handle.spec.locked,
            labels={},
            principal=self.who.name,
            created=created,
            deadline=None,
            workspace=wall.workspace,
            enforcement=dict(handle.enforcement),
            usage=wall.usage() if usage else {},
            abilities=abilities.names(wall),
            command=getattr(wall, "command", ()),
            fidelity=abilities.fidelity(wall),
        )

    def again(self) -> "EmbeddedService":
        return self

    def close(self) -> None:
        """Do nothing: what is in it ends with the pipeline."""
