"""``ingest.service.Service`` as the daemon has it: each call checked, then done by whose it is."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from agentd._version import __version__
from agentd.audit.receipt import peek
from agentd.auth.keys import KeyService
from agentd.daemon import doctor
from agentd.daemon.admission import acts
from agentd.daemon.admission.approvals import Approvals
from agentd.daemon.admission.control import AdmissionControl
from agentd.daemon.calls import catalogue
from agentd.daemon.calls.calls import Calls
from agentd.daemon.calls.ends import Ends
from agentd.daemon.calls.places import Places
from agentd.daemon.commands.commands import Commands
from agentd.daemon.commands.output import Output
from agentd.daemon.config.schema import Config
from agentd.daemon.pipeline import Pipeline
from agentd.daemon.sandboxes import bodies
from agentd.daemon.sandboxes.live import Live
from agentd.daemon.sandboxes.names import taken
from agentd.daemon.sandboxes.sandboxes import Sandboxes
from agentd.daemon.sandboxes.snapshots import SnapshotOwner, Snapshots
from agentd.daemon.service.audits import Audits
from agentd.daemon.service.files import Files
from agentd.daemon.service.keys import Keys
from agentd.daemon.service.quotas import Ledger
from agentd.daemon.service.repeats import Repeats
from agentd.model import context
from agentd.model.answer import Answer
from agentd.model.api import (
    ApprovalView,
    AuditHead,
    Authorise,
    BackendView,
    CallBody,
    CallView,
    CapabilityView,
    Carry,
    DecideBody,
    ExecBody,
    LabelsBody,
    ProcessView,
    Repeat,
    ResultView,
    RunBody,
    SandboxBody,
    SandboxPage,
    SandboxView,
    SnapshotView,
    Stats,
    Work,
)
from agentd.model.canonical import loads_strict
from agentd.model.errors import AgentdError, InvalidInput, NotFound
from agentd.model.principal import Principal
from agentd.model.units import parse_duration
from agentd.sandbox.journal.events import STREAMS
from agentd.sandbox.pool import SandboxPool
from agentd.transport.tunnel import Tunnel

if TYPE_CHECKING:
    from agentd.daemon.admission.signed import SignedRequests
    from agentd.daemon.idempotency import Idempotency


class DaemonService(Files, Keys):
    """Thread-safe, but for ``once``, which belongs to the event loop."""

    def __init__(
        self,
        *,
        config: Callable[[], Config],
        keys: Callable[[], KeyService],
        ledger: Ledger,
        pipeline: Pipeline,
        pool: SandboxPool,
        sandboxes: Sandboxes,
        commands: Commands,
        snapshots: Snapshots,
        approvals: Approvals,
        control: AdmissionControl,
        signed: "Callable[[], SignedRequests]",
        idempotency: "Callable[[], Idempotency]",
    ) -> None:
        self._config = config
        self._keys = keys
        self._ledger = ledger
        self._pipeline = pipeline
        self._pool = pool
        self._sandboxes = sandboxes
        self._commands = commands
        self._snapshots = snapshots
        self._approvals = approvals
        self._control = control
        self._signed = signed
        self._calls = Calls(
            control.registry,
            control.gate,
            Places(config, sandboxes, commands),
        )
        self._repeats = Repeats(config, control.gate, self._calls, sandboxes, snapshots, signed)
        self.ends = Ends()
        self._idempotency = idempotency
        self._gate = control.gate
        self._audits = Audits(control)
        self._started = time.time()
        self.not_ready = "it is starting"
        self.check: Callable[[], str] = lambda: ""  # why it cannot work, while it runs

    # --- sandboxes ---

    def create(self, who: Principal, body: SandboxBody) -> SandboxView:
        return self._create(who, body).view()

    def list(
        self,
        who: Principal,
        labels: Mapping[str, str],
        limit: int,
        cursor: str,
        state: str = "",
    ) -> SandboxPage:
        who.require("read")
        return self._sandboxes.page(who, labels, limit, cursor, state)

    def relabel(self, who: Principal, id_: str, body: LabelsBody) -> SandboxView:
        live = self._live(who, "create", id_)
        self._sandboxes.relabel(who, live, body.labels)
        return live.view()

    def get(self, who: Principal, id_: str) -> SandboxView:
        return self._live(who, "read", id_).view(usage=True)

    def delete(self, who: Principal, id_: str) -> None:
        self._sandboxes.end(self._live(who, "create", id_))

    def delete_at_once(self, who: Principal, id_: str) -> Callable[[], None] | None:
        try:
            return self._sandboxes.end_at_once(self._live(who, "create", id_))
        except AgentdError:
            return None  # ``delete`` says so

    def renew(self, who: Principal, id_: str, ttl: str | float) -> SandboxView:
        live = self._live(who, "create", id_)
        self._sandboxes.renew(live, parse_duration(ttl, "ttl"))
        return live.view()

    def pause(self, who: Principal, id_: str) -> SandboxView:
        live = self._live(who, "create", id_)
        self._sandboxes.pause(live)
        return live.view()

    def resume(self, who: Principal, id_: str) -> SandboxView:
        live = self._live(who, "create", id_)
        self._sandboxes.resume(live)
        return live.view()

    def snapshot(self, who: Principal, id_: str) -> SnapshotView:
        live, _ = self._open(who, id_, acts.SNAPSHOT, "take a snapshot of it")
        new = "snp-" + os.urandom(8).hex()
        place = self._snapshots.place(new)
        try:
            os.mkdir(os.path.dirname(place), 0o700)
            kept = self._pipeline.manager.snapshot(live.handle, place)
            about = SnapshotOwner(sandbox=live.id, principal=who.name, created=time.time())
            self._snapshots.write_down(new, about)
        except BaseException:
            self._snapshots.discard(new)
            raise
        return SnapshotView(new, live.id, kept.fidelity, about.created, kept.size)

    def snapshots(self, who: Principal) -> Sequence[SnapshotView]:
        who.require("snapshot")
        return self._snapshots.all(who)

    def get_snapshot(self, who: Principal, snapshot: str) -> SnapshotView:
        who.require("snapshot")
        found = self._snapshots.view(who, snapshot)
        if found is None:
            raise NotFound(f"there is no snapshot {snapshot[:64]!r}")
        return found

    def delete_snapshot(self, who: Principal, snapshot: str) -> None:
        who.require("snapshot")
        self._snapshots.remove(who, snapshot)

    def fork(self, who: Principal, id_: str, count: int) -> Sequence[SandboxView]:
        live = self._live(who, "snapshot", id_)
        return [copy.view() for copy in self._sandboxes.fork(who, live, count)]

    # --- commands ---

    def exec(self, who: Principal, id_: str, body: ExecBody) -> ResultView:
        return self._commands.exec(who, self._live(who, "run", id_), body)

    def start(self, who: Principal, id_: str, body: ExecBody) -> ProcessView:
        return self._commands.start(who, self._live(who, "run", id_), body)

    def run(self, who: Principal, body: RunBody) -> ResultView:
        who.require("run")
        live = self._create(who, body.sandbox)
        try:
            return self._commands.exec(who, live, body.exec)
        finally:
            self._sandboxes.end(live)

    def processes(self, who: Principal, id_: str) -> Sequence[ProcessView]:
        return [c.view() for c in self._commands.all(self._live(who, "read", id_))]

    def process(self, who: Principal, id_: str, process: str) -> ProcessView:
        return self._commands.get(self._live(who, "read", id_), process).view()

    def follow(
        self,
        who: Principal,
        id_: str,
        process: str,
        cursors: Mapping[str, int],
        notify: Callable[[], None],
        streams: Sequence[str] = STREAMS,
    ) -> Output:
        command = self._commands.get(self._live(who, "read", id_), process)
        follower = command.journal.follow(cursors, streams=streams, notify=notify)
        return Output(follower)

    def stdin(self, who: Principal, id_: str, process: str, data: bytes, *, eof: bool) -> None:
        self._commands.get(self._live(who, "run", id_), process).write(data, eof=eof)

    def signal(self, who: Principal, id_: str, process: str, signal: int, target: str) -> None:
        self._commands.get(self._live(who, "run", id_), process).signal(signal, target)

    def resize(self, who: Principal, id_: str, process: str, rows: int, cols: int) -> None:
        self._commands.get(self._live(who, "run", id_), process).resize(rows, cols)

    # --- capabilities ---

    def capabilities(self, who: Principal) -> Sequence[CapabilityView]:
        who.require("read")
        return catalogue.views(self._control.registry)

    def call(
        self,
        who: Principal,
        body: CallBody,
        raw: bytes,
        *,
        emit: Callable[[str, bytes], None] | None = None,
        cancel: int = -1,
    ) -> CallView:
        acting = self._signed().acting(who, loads_strict(raw))
        with self._ledger.command(acting.name), self.ends.one(context.waiting_client()) as end:
            # Whoever follows it has a descriptor of their own, and is told by that.
            told = cancel if cancel >= 0 else end
            view = self._calls.call(acting, body, emit, via="http", cancel=told)
        self._ledger.used_cpu(acting.name, view.usage.cpu_ms / 1000)
        return view

    def receipt(self, who: Principal, id_: str) -> bytes:
        who.require("read")
        found = self._control.records.get(id_)
        if found is None or not who.owns(peek(found).predicate.execution.principal):
            raise NotFound(
                f"there is no receipt {id_[:64]!r}",
                remediation="its id is the request's; the oldest are dropped",
            )
        return found

    def receipt_key(self, who: Principal) -> str:
        who.require("read")
        return self._control.key.public_pem().decode()

    # --- ports ---

    def tunnel(self, who: Principal, id_: str, port: int) -> Tunnel:
        live, admission = self._open(who, id_, acts.PORT, "reach a port of it", port=port)
        admission.begin(written=True)
        with contextlib.ExitStack() as undo:
            undo.enter_context(admission)
            tunnel = live.handle.guest.tunnel(port)
            tunnel.on_close = undo.pop_all().close
        return tunnel

    # --- approvals ---

    def approvals(self, who: Principal) -> Sequence[ApprovalView]:
        return self._approvals.ls(who)

    def approval(self, who: Principal, id_: str) -> ApprovalView:
        return self._approvals.get(who, id_)

    def decide_approval(self, who: Principal, id_: str, body: DecideBody) -> ApprovalView:
        return self._approvals.decide(who, id_, body.allow, body.note)

    def withdraw_approval(self, who: Principal, id_: str) -> ApprovalView:
        return self._approvals.recall(who, id_)

    # --- the audit log ---

    def audit_head(self, who: Principal) -> AuditHead:
        return self._audits.head(who)

    def audit_records(self, who: Principal, first: int, limit: int) -> object:
        return self._audits.records(who, first, limit)

    # --- the daemon itself ---

    def version(self) -> Mapping[str, str]:
        return {"agentd": __version__, "api": "v1"}

    def backends(self, who: Principal) -> Sequence[BackendView]:
        who.require("read")
        return [
            BackendView(
                name=found.name,
                level=found.level,
                usable=found.availability.usable,
                blockers=tuple({"what": b.what, "fix": b.fix} for b in found.availability.blockers),
                notes=found.availability.notes,
                images=found.images,
                abilities=found.abilities,
            )
            for found in doctor.findings()
        ]

    def stats(self, who: Principal) -> Stats:
        who.require("read")
        return Stats(
            sandboxes=len(self._sandboxes.all()),
            processes=self._commands.running(),
            pool=self._pool.sizes(),
            queue=self._ledger.waiting,
            totals={
                "commands": self._commands.count,
                "uptime_seconds": round(time.time() - self._started, 1),
            },
        )

    def ready(self) -> str:
        if self._sandboxes.draining:
            return "it is about to end"
        return self.not_ready or self.check() or self._control.damage

    def readmit(self, who: Principal, repeat: Repeat, approved: frozenset[str] | None) -> None:
        self._repeats.readmit(who, repeat, approved)

    async def once(
        self,
        who: Principal,
        key: str,
        request: bytes,
        work: Work,
        carry: Carry,
        *,
        lasting: bool = True,
        authorise: Authorise | None = None,
    ) -> Answer:
        digest = sha256(request).hexdigest()
        with context.recording(lasting=lasting):
            return await self._idempotency().run(
                who.name, key, digest, work, carry, lasting=lasting, authorise=authorise
            )

    def _create(self, who: Principal, body: SandboxBody) -> Live:
        who.require("create")
        if body.name is None:
            return self._make(who, body)
        with self._sandboxes.names.making(who.name, body.name, wait=False):
            if self._sandboxes.named(who, body.name) is not None:
                raise taken(body.name)
            return self._make(who, body)

    def get_or_create(self, who: Principal, name: str, body: SandboxBody) -> SandboxView:
        who.require("create")
        if body.name not in (None, name):
            raise InvalidInput(
                f"the body's name {body.name[:64]!r} is not that of the path",
                remediation="leave it out",
            )
        named = msgspec.structs.replace(body, name=name)
        with self._sandboxes.names.making(who.name, name, wait=True):
            found = self._sandboxes.named(who, name)
            return (found or self._make(who, named)).view()

    def _make(self, who: Principal, body: SandboxBody) -> Live:
        ttl, wait = bodies.ttl_of(body), bodies.wait_of(body)
        kept = None if body.snapshot is None else self._snapshots.get(who, body.snapshot)
        if kept is None:
            spec = bodies.sandbox_spec(who, body, self._config())
        else:
            spec = bodies.restored_spec(who, kept.spec, body, self._config())
        return self._sandboxes.create(
            who,
            spec,
            labels=body.labels,
            ttl=ttl,
            snapshot=kept,
            wait=wait,
            name=body.name or "",
        )

    def _live(self, who: Principal, scope: str, id_: str) -> Live:
        who.require(scope)
        return self._sandboxes.get(who, id_)
