"""Policy, audit and receipts, put together: of a daemon, or of a process that calls by itself.

STATE/audit/        the log                 STATE/receipts/       the newest receipts
STATE/receipt.key   signs them              STATE/policy/         what policies compile to
STATE/writers/      who writes to a log that several processes share, and lives
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.audit import writers
from agentd.audit.chain import Keep
from agentd.audit.errors import AuditError
from agentd.audit.issuing import AtOnce, Behind
from agentd.audit.keypair import KeyPair
from agentd.audit.log import AuditLog
from agentd.audit.receipts import ReceiptStore
from agentd.audit.record import LogEntry
from agentd.audit.shared import SharedLog, SharedReceipts
from agentd.capability.registry import Registry
from agentd.daemon import events
from agentd.daemon.admission.denials import Denials
from agentd.daemon.admission.gate import Gate
from agentd.daemon.admission.interrupted import Before, end_dead
from agentd.daemon.admission.records import Records
from agentd.daemon.config import schema
from agentd.model import context
from agentd.model.audit import Event, Kind, Position
from agentd.model.decision import Asked
from agentd.policy import learning
from agentd.policy.store import PolicyStore

if TYPE_CHECKING:
    from agentd.audit.sinks.port import AuditSink
    from agentd.daemon.admission.parked import Parked

POLICY = "AGENTD_POLICY"  # names the bundle of calls without a daemon
AUDIT, RECEIPTS, KEY, COMPILED = "audit", "receipts", "receipt.key", "policy"
WRITERS = "writers"


_ANYTHING_PUBLIC = schema.CapabilitySettings()


class AdmissionControl:
    """Owns them. Thread-safe. ``close`` it last of all: what ends meanwhile is written down."""

    def __init__(
        self,
        state: str,
        policy: schema.PolicySettings,
        audit: schema.AuditSettings,
        approvals: "Parked | None" = None,
        capabilities: schema.CapabilitySettings = _ANYTHING_PUBLIC,
        *,
        shared: bool = False,
        publish: events.Publish = events.nobody,
    ) -> None:
        """``shared``: other processes write to the same log.

        Raises AuditError, BundleError, PinMismatch.
        """
        with contextlib.ExitStack() as undo:
            kept = SharedReceipts if shared else ReceiptStore
            self.receipts = kept(os.path.join(state, RECEIPTS), int(audit.receipts))
            undo.callback(self.receipts.close)
            self.key = KeyPair.load_or_create(os.path.join(state, KEY))
            self.log = _log(os.path.join(state, AUDIT), audit, shared)
            undo.callback(self.log.close)
            self._parked = approvals
            if approvals is not None:
                approvals.log = self.log
            self.denials = Denials(self.log.submit, publish=publish)
            undo.callback(self._tell_denials)
            issuer = self._issuer(self.log)
            undo.callback(issuer.close)
            self._cache = os.path.join(state, COMPILED)
            self.policy: PolicyStore | None = None
            undo.callback(self._close_policy)
            self.policy = self._opened(policy)
            self.registry = _registry(capabilities)
            self.records = Records(self.log, issuer, self.denials.write)
            if isinstance(self.log, Waiting):
                self._take_over(os.path.join(state, WRITERS), self.log, undo)
            self.gate = Gate(self.policy, self.records, approvals, _learn())
            self._undo = undo.pop_all()

    def note(
        self,
        kind: Kind,
        principal: str = "",
        sandbox: str = "",
        *,
        lazily: bool = False,
        **fields: object,
    ) -> None:
        """Write down what happened, by itself or within a request; not ``lazily``, it is where our
        death leaves it when this returns."""
        event = _event(kind, principal, sandbox, fields)
        if lazily:
            self.log.submit(event, lazily=True)
        else:
            self.log.append(event, synced=False)

    def record(self, kind: Kind, principal: str, **fields: object) -> None:
        """Write down what a caller is about to have done: it is on disk when this returns. Raises
        AuditError, and then it must not be done."""
        self.log.append(_event(kind, principal, "", fields))

    def reload(self, policy: schema.PolicySettings) -> None:
        """Let another policy hold, once that is written down. Raises BundleError, PinMismatch,
        AuditError; then the old one holds."""
        old = self.policy
        if old is not None and policy.bundle is not None:
            old.reload(policy.bundle, policy.sha256, self._note_change)
            return
        new = self._opened(policy)
        try:
            self._note_change("none" if new is None else new.digest)
        except BaseException:
            if new is not None:
                new.close()
            raise
        self.policy = self.gate.policy = new
        if old is not None:
            old.close()

    def _note_change(self, after: str) -> None:
        """Write down that another policy is to hold. Raises AuditError."""
        before = "none" if self.policy is None else self.policy.digest
        if after != before:
            self.record(Kind.POLICY_CHANGED, "", before=before, after=after)

    def denied(self, principal: str, sandbox: str, **fields: object) -> None:
        """Write down what a scope or a quota refused. Raises AuditError."""
        self.denials.write(_event(Kind.DENIAL, principal, sandbox, fields))

    def before(self) -> Before:
        """Find what the daemon before left open, as a daemon; what it had asked of approvers is
        ended in the log. Raises AuditError."""
        if not isinstance(self.log, AuditLog):
            raise TypeError("only a daemon goes on with what another began")
        before = Before(self.log, self.records)
        if self._parked is not None:
            self._parked.end(before.asked)
        return before

    def _take_over(self, folder: str, log: "Waiting", undo: contextlib.ExitStack) -> None:
        """End what those who died had begun, and count this process among the living."""
        end_dead(folder, log.directory, self.records, time.time())
        writer = writers.WriterOnce(folder, log.seq())
        undo.callback(writer.close)
        log.writer = writer.name

    def _tell_denials(self) -> None:
        with contextlib.suppress(AuditError):
            self.denials.close()

    @property
    def damage(self) -> str:
        """Tell what is wrong with the log's past, where it is a daemon's: then nothing is done."""
        return self.log.damage if isinstance(self.log, AuditLog) else ""

    def look(self) -> str:
        """Look at the disk, and return ``damage``."""
        return self.log.look() if isinstance(self.log, AuditLog) else ""

    @property
    def counts(self) -> Mapping[str, int]:
        """Return the log's counts: commits, records, failures, lost, ...; none of a shared one."""
        log = self.log
        return msgspec.structs.asdict(log.counts) if isinstance(log, AuditLog) else {}

    def close(self) -> None:
        """Close the log, and all beside it. Idempotent."""
        self._undo.close()

    def _opened(self, policy: schema.PolicySettings) -> PolicyStore | None:
        if policy.bundle is None:
            return None
        os.makedirs(self._cache, 0o700, exist_ok=True)
        return PolicyStore(policy.bundle, sha256=policy.sha256, cache=self._cache)

    def _issuer(self, log: "AuditLog | Waiting") -> AtOnce:
        """Return the issuer of a process that ends soon after its call: nothing can be put off."""
        if isinstance(log, AuditLog):
            return Behind(self.receipts, self.key, log.directory)
        return AtOnce(self.receipts, self.key)

    def _close_policy(self) -> None:
        if self.policy is not None:
            self.policy.close()


class Waiting:
    """A SharedLog as calls write to it: nothing is put off, for nobody would come back to it."""

    def __init__(self, log: SharedLog) -> None:
        self._append = log.append
        self.close = log.close
        self.seq = log.seq
        self.directory = log.directory
        self.writer = ""  # what this process is called in what it begins

    def append(
        self, event: Event | LogEntry, secrets: Iterable[str] = (), *, synced: bool = True
    ) -> Position:
        if self.writer and isinstance(event, Event) and event.kind is Kind.START:
            fields = {**event.fields, writers.FIELD: self.writer}
            event = msgspec.structs.replace(event, fields=fields)
        return self._append(event, secrets)

    def submit(
        self, event: Event | LogEntry, secrets: Iterable[str] = (), *, lazily: bool = False
    ) -> None:
        self.append(event, secrets)


def _event(kind: Kind, principal: str, sandbox: str, fields: Mapping[str, object]) -> Event:
    """Make an event of the request at work, if any."""
    request = context.current()
    return Event(kind=kind, principal=principal, request=request, sandbox=sandbox, fields=fields)


def _log(directory: str, audit: schema.AuditSettings, shared: bool) -> "AuditLog | Waiting":
    keep = Keep(int(audit.file), audit.files, None if audit.keep is None else float(audit.keep))
    if shared:
        return Waiting(SharedLog(directory, keep=keep))
    return AuditLog(directory, keep=keep, sinks=_sinks(audit.sinks))


def _sinks(places: Sequence[str]) -> "dict[str, AuditSink]":
    return {place: _sink(place) for place in places}


def _sink(place: str) -> "AuditSink":
    from agentd.audit.sinks.http import HttpSink, OtlpSink
    from agentd.audit.sinks.lines import StdoutSink, SyslogSink

    kind, _, rest = place.partition(":")
    if kind == "stdout":
        return StdoutSink()
    if kind == "syslog":
        return SyslogSink(rest) if rest else SyslogSink()
    return OtlpSink(rest) if kind == "otlp" else HttpSink(place)


def _registry(config: schema.CapabilitySettings) -> Registry:
    """Raises InvalidInput for hosts or networks that are none."""
    registry = Registry()
    if config != _ANYTHING_PUBLIC:
        from agentd.capability.fetch.fetcher import Fetcher

        fetcher = Fetcher(allowed_hosts=config.fetch_hosts, allowed_networks=config.fetch_networks)
        # The one that the registry has is the whole process's.
        fetch: Any = type(registry.get("http.fetch.v1"))
        registry.use(fetch(fetcher))
    return registry


def _learn() -> Callable[[Asked], None] | None:
    """Note it for ``agentd policy learn``, which says by this variable where to."""
    path = os.environ.get(learning.VARIABLE)
    return (lambda asked: learning.record(asked, path)) if path else None
