"""``model.door.DoorService`` of a daemon in memory."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from tests.unit.ingest.fake_nouns import FakeCommands, FakeFiles, FakeSandboxes, Noun
from tests.unit.ingest.fake_sandbox import FakePort

from agentd.model.answer import Answer, Authorise, Carry, Work
from agentd.model.api import (
    ApprovalView,
    AuditHead,
    AuditPage,
    BackendView,
    CallBody,
    CallView,
    CapabilityView,
    KeyView,
    Repeat,
    SandboxBody,
    SnapshotView,
    Stats,
    VolumeView,
)
from agentd.model.cassette import joined, parse
from agentd.model.egress import network
from agentd.model.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
)
from agentd.model.events import EventPage
from agentd.model.kept_secret import SecretView
from agentd.model.mount import VOLUME_NAME
from agentd.model.network import ConnectionPage, ConnectionView, NetworkView
from agentd.model.port import PortDomain, PortLink
from agentd.model.principal import SCOPES, Principal
from agentd.model.service import Emit
from agentd.model.template import TemplateView

if TYPE_CHECKING:
    from tests.unit.ingest.fake import FakeDaemon

_AS_USUAL = SandboxBody()


class Mismatch(InvalidInput):
    code = "idempotency_mismatch"


class FakePorts(Noun):
    def open(self, sandbox: str, port: int) -> FakePort:
        self.sandbox("ports", sandbox)
        return FakePort(port)

    def link(self, sandbox: str, port: int, *, ttl: str | float = "1h") -> PortLink:
        found, links = self.sandbox("ports", sandbox), self.daemon.links
        token = links.add(self.who.name, found.id, port, float(ttl), lambda: self.who)
        url = PortDomain().url(found.id, port, token)
        return PortLink(url=url, sandbox=found.id, port=port, expires=1.0)


class FakeNetwork(Noun):
    def get(self, sandbox: str) -> NetworkView:
        self.sandbox("read", sandbox)
        return NetworkView("restricted", ("pypi",))

    def set(self, sandbox: str, net: str | Iterable[str]) -> NetworkView:
        self.sandbox("egress", sandbox)
        return NetworkView(*network(net))

    def cassette(self, sandbox: str) -> bytes:
        self.sandbox("read", sandbox)
        return joined([], 0)

    def play(self, sandbox: str, cassette: bytes) -> None:
        self.sandbox("create", sandbox)
        parse(cassette)

    def connections(self, sandbox: str, after: int = 0) -> ConnectionPage:
        self.sandbox("read", sandbox)
        row = ConnectionView(1, "pypi.org", "192.0.2.1", 443, allowed=True, rule="pypi")
        return ConnectionPage((row,) if after < 1 else (), 1, {"allowed": 1}, {"pypi.org": 1})


class FakeSnapshots(Noun):
    def list(self) -> tuple[SnapshotView, ...]:
        self.who.require("snapshot")
        return tuple(self.daemon.kept.values())

    def get(self, id: str) -> SnapshotView:
        self.who.require("snapshot")
        if id not in self.daemon.kept:
            raise NotFound("there is no such snapshot")
        return self.daemon.kept[id]

    def export(self, id: str) -> Iterator[bytes]:
        self.who.require("admin")
        return iter([self.get(id).id.encode()])

    def delete(self, id: str) -> None:
        self.who.require("snapshot")
        if self.daemon.kept.pop(id, None) is None:
            raise NotFound("there is no such snapshot")


class FakeVolumes(Noun):
    def create(self, name: str, size: str | int | None = None) -> VolumeView:
        self.who.require("volumes")
        if not VOLUME_NAME.fullmatch(name):
            raise InvalidInput("that is not a name")
        if name in self.daemon.volumes:
            raise Conflict("there is one already")
        self.daemon.volumes[name] = VolumeView(name, self.who.name, 1.0)
        return self.daemon.volumes[name]

    def list(self) -> tuple[VolumeView, ...]:
        self.who.require("volumes")
        return tuple(self.daemon.volumes.values())

    def get(self, name: str) -> VolumeView:
        self.who.require("volumes")
        if name not in self.daemon.volumes:
            raise NotFound("there is no such volume")
        return self.daemon.volumes[name]

    def snapshot(self, name: str, new: str) -> VolumeView:
        self.get(name)
        return self.create(new)

    def delete(self, name: str) -> None:
        self.get(name)
        del self.daemon.volumes[name]


class FakeSecrets(Noun):
    def set(self, name: str, value: str) -> SecretView:
        self.who.require("secrets")
        if len(value) < 8:
            raise InvalidInput("that is too short")
        self.daemon.secrets[name] = SecretView(name, self.who.name, 1.0, 1.0)
        return self.daemon.secrets[name]

    def list(self) -> tuple[SecretView, ...]:
        self.who.require("secrets")
        return tuple(self.daemon.secrets.values())

    def delete(self, name: str) -> None:
        self.who.require("secrets")
        if self.daemon.secrets.pop(name, None) is None:
            raise NotFound("there is no such secret")


class FakeCapabilities(Noun):
    def list(self) -> tuple[CapabilityView, ...]:
        self.who.require("read")
        return CapabilityView("echo.v1", "what it is told"), CapabilityView("odd.v1", blocker="x")

    def call(
        self,
        capability: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        sandbox: str | None = None,
        create: SandboxBody = _AS_USUAL,
        bundle: str | None = None,
        emit: Emit | None = None,
        cancel: int = -1,
    ) -> CallView:
        raise NotImplementedError("REST asks by ``request``")

    def request(self, body: bytes, *, emit: Emit | None = None, cancel: int = -1) -> CallView:
        found = msgspec.json.decode(body, type=CallBody)
        return self.daemon.call(self.who, found, body, emit=emit, cancel=cancel)


class FakeReceipts(Noun):
    def get(self, id: str) -> bytes:
        self.who.require("read")
        if id != "req-1":
            raise NotFound(f"there is no receipt {id[:64]!r}")
        return b'{"payload": ""}'

    def key(self) -> str:
        self.who.require("read")
        return "a key"


class FakeKeys(Noun):
    def create(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        ttl: str | float | None = None,
        principal: str | None = None,
    ) -> KeyView:
        self.who.require("keys")
        if unknown := set(scopes) - set(SCOPES):
            raise InvalidInput(f"there is no scope {unknown.pop()[:64]!r}")
        if not set(scopes) <= self.who.scopes:
            raise Forbidden("more than you have")
        view = KeyView(f"k{len(self.daemon.api_keys)}", name, tuple(scopes), 1.0, None, False)
        self.daemon.api_keys[view.id] = view
        return msgspec.structs.replace(view, secret="agd_secret")

    def list(self) -> tuple[KeyView, ...]:
        self.who.require("keys")
        return tuple(self.daemon.api_keys.values())

    def get(self, id: str) -> KeyView:
        self.who.require("keys")
        if id not in self.daemon.api_keys:
            raise NotFound("there is no such key")
        return self.daemon.api_keys[id]

    def revoke(self, id: str) -> None:
        self.who.require("keys")
        if self.daemon.api_keys.pop(id, None) is None:
            raise NotFound("there is no such key")


class FakeApprovals(Noun):
    def list(self) -> tuple[ApprovalView, ...]:
        self.who.require("read")
        return tuple(self.daemon.asked.values())

    def page(
        self, limit: int, after: tuple[float, str] | None = None
    ) -> tuple[tuple[ApprovalView, ...], tuple[float, str] | None]:
        def place(view: ApprovalView) -> tuple[float, str]:
            return float(view.state != "pending"), view.id

        rest = sorted((v for v in self.list() if place(v) > (after or (0.0, ""))), key=place)
        return tuple(rest[:limit]), place(rest[limit - 1]) if len(rest) > limit else None

    def get(self, id: str) -> ApprovalView:
        self.who.require("read")
        if id not in self.daemon.asked:
            raise NotFound(f"there is no approval {id[:64]!r}")
        return self.daemon.asked[id]

    def decide(self, id: str, *, allow: bool, note: str = "") -> ApprovalView:
        self.who.require("approve")
        found = self.get(id)
        if found.state != "pending":
            raise Conflict(f"it is {found.state}")
        state = "approved" if allow else "denied"
        self.daemon.asked[id] = msgspec.structs.replace(
            found, state=state, decided=2.0, decided_by=self.who.name, note=note
        )
        return self.daemon.asked[id]

    def withdraw(self, id: str) -> ApprovalView:
        raise NotFound(f"there is no approval {id!r}")


class FakeAudit(Noun):
    def head(self) -> AuditHead:
        self.who.require("admin")
        return AuditHead(f"1:{'0' * 64}", 1)

    def records(self, start: int = 1, limit: int = 1000) -> AuditPage:
        self.who.require("admin")
        return AuditPage(())


class FakeMachine(Noun):
    def version(self) -> Mapping[str, str]:
        return {"agentd": "0.0.fake", "api": "v1"}

    def backends(self) -> tuple[BackendView, ...]:
        self.who.require("read")
        return (BackendView("fake", "none", True, (), ()),)

    def templates(self) -> tuple[TemplateView, ...]:
        self.who.require("read")
        return ()

    def stats(self) -> Stats:
        self.who.require("read")
        return Stats(len(self.daemon.sandboxes), 0, {}, 0, {})


class FakeRepeats(Noun):
    def readmit(self, repeat: Repeat, approved: frozenset[str] | None) -> None:
        self.who.require("files" if repeat.body is None else "run")

    async def once(
        self,
        key: str,
        request: bytes,
        work: Work,
        carry: Carry,
        *,
        lasting: bool = True,
        authorise: Authorise | None = None,
    ) -> Answer:
        keyed, name = self.daemon.keyed, self.who.name
        found = keyed.get((name, key))
        if found is None:
            task = asyncio.ensure_future(carry(work))
            keyed[name, key] = request, task
            try:
                return await asyncio.shield(task)
            except InvalidInput:
                del keyed[name, key]
                raise
        if authorise is not None:
            authorise(None)
        if found[0] != request:
            raise Mismatch("the key was used for another request")
        return msgspec.structs.replace(await asyncio.shield(found[1]), replayed=True)


class FakeEvents(Noun):
    """Over the real feed, in which nothing happens."""

    def read(self, after: str = "", *, limit: int = 100, wait: str | float = 0) -> EventPage:
        self.who.require("read")
        return self.daemon.events.read(self.who, after, limit)

    def listen(self, notify: Callable[[], object]) -> Callable[[], None]:
        self.who.require("read")
        return self.daemon.events.listen(self.who, notify)


class FakeService:
    """``model.door.DoorService`` of one caller."""

    def __init__(
        self,
        daemon: "FakeDaemon",
        caller: Principal,
        again: Callable[[], Principal] | None = None,
    ) -> None:
        self.daemon = daemon
        self.caller = caller
        self.again = again or (lambda: caller)
        self.sandboxes = FakeSandboxes(daemon, caller)
        self.commands = FakeCommands(daemon, caller)
        self.files = FakeFiles(daemon, caller)
        self.ports = FakePorts(daemon, caller)
        self.snapshots = FakeSnapshots(daemon, caller)
        self.network = FakeNetwork(daemon, caller)
        self.volumes = FakeVolumes(daemon, caller)
        self.secrets = FakeSecrets(daemon, caller)
        self.capabilities = FakeCapabilities(daemon, caller)
        self.receipts = FakeReceipts(daemon, caller)
        self.keys = FakeKeys(daemon, caller)
        self.approvals = FakeApprovals(daemon, caller)
        self.audit = FakeAudit(daemon, caller)
        self.events = FakeEvents(daemon, caller)
        self.machine = FakeMachine(daemon, caller)
        self.repeats = FakeRepeats(daemon, caller)

    def require(self, op: str, scopes: Sequence[str], sandbox: str = "") -> None:
        for scope in scopes:
            self.caller.require(scope)

    def reauthorise(self, scopes: Sequence[str], sandbox: str = "") -> "FakeService":
        who = self.again()
        for scope in scopes:
            who.require(scope)
        if sandbox in self.daemon.sandboxes:
            Noun(self.daemon, who).sandbox(scopes[0], sandbox)
        return FakeService(self.daemon, who, self.again)
