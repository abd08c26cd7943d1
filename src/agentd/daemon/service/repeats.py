"""Whether a repeat of a request may have the answer that was recorded for the first.

It is asked what the request itself would be asked now: scopes, whose the sandbox is, the policy.
Nothing is done. A sandbox that has ended is judged by what the store still knows of it.
"""

from collections.abc import Callable, Sequence

from agentd.daemon.admission import acts, oblige
from agentd.daemon.admission.acts import Act, Place
from agentd.daemon.admission.gate import Gate
from agentd.daemon.admission.signed import SignedRequests
from agentd.daemon.calls.calls import Calls
from agentd.daemon.commands.begin import request_of
from agentd.daemon.commands.ends import completed
from agentd.daemon.config.schema import Config
from agentd.daemon.sandboxes import bodies, given_secrets
from agentd.daemon.sandboxes.sandboxes import Sandboxes
from agentd.daemon.sandboxes.snapshots import Snapshots
from agentd.model.api import CallBody, ExecBody, Repeat, RunBody, SandboxBody
from agentd.model.canonical import loads_strict
from agentd.model.isolation import IsolationLevel
from agentd.model.labels import check_labels
from agentd.model.principal import Principal
from agentd.model.spec import SandboxSpec
from agentd.policy.scopes import scope_of

Approved = frozenset[str] | None


class Repeats:
    """Judges repeats. Thread-safe."""

    def __init__(
        self,
        config: Callable[[], Config],
        gate: Gate,
        calls: Calls,
        sandboxes: Sandboxes,
        snapshots: Snapshots,
        signed: Callable[[], SignedRequests],
    ) -> None:
        self._config = config
        self._gate = gate
        self._calls = calls
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._signed = signed

    def readmit(self, who: Principal, repeat: Repeat, approved: Approved) -> None:
        """Raise what the request would be refused with now. ``approved``: as of ``Authorise``."""
        body = repeat.body
        if isinstance(body, CallBody):
            self._call(who, body, repeat.raw, approved)
        elif isinstance(body, RunBody):
            who.require("run")
            spec = self._create(who, body.sandbox, approved)
            place = Place.new(spec, check_labels(body.sandbox.labels))
            self._command(who, place, body.exec, approved)
        elif isinstance(body, SandboxBody):
            self._create(who, body, approved)
        elif isinstance(body, ExecBody):
            who.require("run")
            self._command(who, self._place(who, repeat.sandbox), body, approved)
        else:
            who.require("files")
            place = self._place(who, repeat.sandbox)
            paths = (repeat.path, repeat.to) if repeat.to else (repeat.path,)
            act, *also = (
                acts.operation_at(who, acts.WRITE, place, {"path": path}) for path in paths
            )
            self._existing(act, approved, also)

    def _create(self, who: Principal, body: SandboxBody, approved: Approved) -> SandboxSpec:
        who.require("create")
        if body.snapshot is None:
            spec = bodies.sandbox_spec(who, body, self._config())
        else:
            kept = self._snapshots.get(who, body.snapshot)
            spec = bodies.restored_spec(who, kept.spec, body, self._config())
        if given_secrets.takes_stored(spec, body.secrets):
            who.require("secrets")
        act = acts.creation(who, spec, check_labels(body.labels), body.snapshot or "")
        within = oblige.new_sandbox if body.snapshot is None else oblige.restored_sandbox
        with self._gate.reopen(act, approved).obliging() as obligations:
            return within(spec, obligations)

    def _command(self, who: Principal, place: Place, body: ExecBody, approved: Approved) -> None:
        request = request_of(body, body.stdin_open or bool(body.stdin))
        live = self._sandboxes.find(place.id)
        if live is not None:
            request = completed(request, live.handle)
        self._existing(acts.command(who, place, request), approved)

    def _existing(self, act: Act, approved: Approved, also: Sequence[Act] = ()) -> None:
        with self._gate.reopen(act, approved, also).obliging() as obligations:
            oblige.existing_sandbox(act.place.spec, act.place.level, obligations)

    def _call(self, who: Principal, body: CallBody, raw: bytes, approved: Approved) -> None:
        acting = self._signed().acting(who, loads_strict(raw), repeat=True)
        place = None
        if body.sandbox is not None:
            acting.require(scope_of(body.capability))
            place = self._place(acting, body.sandbox)
        self._calls.readmit(acting, body, place, approved, via="http")

    def _place(self, who: Principal, id_: str) -> Place:
        """Raises NotFound."""
        record = self._sandboxes.recall(who, id_)
        live = self._sandboxes.find(record.id)
        if live is not None:
            return Place.of(live.handle, record.labels)
        level = IsolationLevel.parse(record.level)
        return Place(record.spec, level, record.id, record.backend, record.labels)
