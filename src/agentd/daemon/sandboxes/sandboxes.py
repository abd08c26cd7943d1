"""The sandboxes of a daemon: made, found, renewed, ended, and taken over from the daemon before.

What is acknowledged is in the store first. A sandbox that the store does not know is nobody's, and
is ended; one that the supervisor has lost is written down as ended.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from agentd.daemon import events
from agentd.daemon.config.schema import Config
from agentd.daemon.observe import meter, trace
from agentd.daemon.pipeline import NO_VALUES, Pipeline, SecretValues, check_forks
from agentd.daemon.sandboxes import bodies
from agentd.daemon.sandboxes.adoption import GRACE_SECONDS, Adoption, ended, without_env
from agentd.daemon.sandboxes.changes import Changing
from agentd.daemon.sandboxes.live import NO_ORIGIN, Live
from agentd.daemon.sandboxes.names import Names, recalled
from agentd.daemon.sandboxes.pauses import Pauses, agents
from agentd.daemon.sandboxes.pools import Pools
from agentd.daemon.sandboxes.starting import built
from agentd.daemon.service.quotas import Ledger, about_to_end
from agentd.daemon.store.errors import StoreError
from agentd.daemon.store.records import SandboxRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model import context
from agentd.model.api import SandboxView
from agentd.model.errors import AgentdError, BackendLost, InvalidInput, NotFound
from agentd.model.idle import NEVER, IdleRule
from agentd.model.labels import check_labels
from agentd.model.principal import Principal
from agentd.model.spec import SandboxSpec
from agentd.model.units import format_duration
from agentd.sandbox import guard
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.lifecycle import State
from agentd.sandbox.supervisor import remote
from agentd.sandbox.supervisor.client import SupervisorLink

if TYPE_CHECKING:
    from agentd.sandbox.snapshots import Snapshot


class Sandboxes(Changing, Pauses, Adoption):
    """Owns a daemon's sandboxes. Thread-safe. ``on_made(live)`` is called once for each that is
    ready, and ``on_end(live, reason)`` once it has ended."""

    def __init__(
        self,
        config: Callable[[], Config],
        store: SqliteStore,
        link: SupervisorLink,
        pipeline: Pipeline,
        pool: Pools,
        ledger: Ledger,
        on_made: Callable[[Live], None],
        on_end: Callable[[Live, str], None],
        counts: meter.Meter = meter.NONE,
        publish: events.Publish = events.nobody,
    ) -> None:
        self._config = config
        self._store = store
        self._link = link
        self._pipeline = pipeline
        self._pool = pool
        self._ledger = ledger
        self._on_made = on_made
        self._on_end = on_end
        self._meter = counts
        self._publish = publish
        self._lock = threading.Lock()
        self._relabelling = threading.Lock()
        self._resting: set[str] = set()
        self._expiring: set[str] = set()
        self._live: dict[str, Live] = {}
        self._by_wall: dict[str, Live] = {}
        self.names = Names()
        self.draining = False

    # --- made and ended ---

    def create(
        self,
        principal: Principal,
        spec: SandboxSpec,
        *,
        labels: Mapping[str, str] | None = None,
        ttl: float | None = None,
        snapshot: "Snapshot | None" = None,
        admitted: bool = False,
        wait: float = 0.0,
        name: str = "",
        idle: IdleRule = NEVER,
        values: SecretValues = NO_VALUES,
        origin: Mapping[str, str] = NO_ORIGIN,
    ) -> Live:
        """Make a sandbox, ready and written down. ``admitted``: it is part of a call that was
        decided as a whole; ``wait``: seconds at most that it waits for room in the principal's
        quota; ``name``: one that ``names.making`` holds; ``values``: of its secrets; ``origin``: as
        ``Live`` has it. Raises Full, QuotaExceeded, Refused, ..."""
        seconds = self.lease(ttl)
        checked = check_labels(labels or {})
        self._admit()
        asked = spec.isolation
        of = "" if snapshot is None else origin.get("snapshot", snapshot.id)
        if not admitted:
            spec = self._pipeline.admit(principal, spec, checked, snapshot=of)
        self._ledger.take(principal.name, spec.limits, wait=wait)
        begun = time.monotonic()
        try:
            handle = None if snapshot is not None else self._claim(spec)
            source = "cold" if snapshot is None else "snapshot"
            source = source if handle is None else "pool"
            if handle is None:
                with trace.span("sandbox.open"), bodies.telling_least(spec, asked, self._config()):
                    handle = built(self._pipeline, spec, snapshot, self._config(), values)
            try:
                live = self._write_down(
                    principal.name, handle, checked, seconds, origin, name, idle, of
                )
                self._meter.sandbox(live, source, time.monotonic() - begun)
                return live
            except BaseException:
                self._pipeline.close(handle)
                raise
        except BaseException:
            self._ledger.give_back(principal.name, spec.limits)
            raise

    def _claim(self, spec: SandboxSpec) -> SandboxHandle | None:
        """Claim one from the pool that lives: a zygote that is killed takes its own along."""
        while (handle := self._pool.claim(spec)) is not None:
            if handle.wall.alive():
                return handle
            self._pipeline.close(handle)
        return None

    def fork(
        self,
        principal: Principal,
        source: Live,
        count: int,
        spec: SandboxSpec,
        values: SecretValues = NO_VALUES,
    ) -> list[Live]:
        """Make copies with the source's labels and secrets, and a lease of their own; or none."""
        check_forks(count)  # before there is room taken for each
        source.require_running("fork it")
        self._admit()
        taken = 0
        handles: list[SandboxHandle] = []
        made: list[Live] = []
        try:
            for _ in range(count):
                self._ledger.take(principal.name, source.handle.spec.limits)
                taken += 1
            labels, idle = source.record.labels, source.idle
            begun = time.monotonic()
            handles = self._pipeline.fork(principal, source.handle, count, labels, spec, values)
            each = (time.monotonic() - begun) / count
            seconds, origin = self.lease(None), {"fork_of": source.id}
            of = source.record.snapshot
            for handle in handles:
                live = self._write_down(
                    principal.name, handle, labels, seconds, origin, idle=idle, snapshot=of
                )
                made.append(live)
                self._meter.sandbox(live, "fork", each)
            return made
        except BaseException:
            for live in made:
                self.end(live, "not_recorded")
            for handle in handles[len(made) :]:
                self._pipeline.close(handle)
            for _ in range(taken - len(made)):
                self._ledger.give_back(principal.name, source.handle.spec.limits)
            raise

    def end(self, live: Live, reason: str = "destroyed") -> None:
        """End everything in it, then write that down; idempotent."""
        if not live.begin_end(reason):
            return
        try:
            self._finish(live, reason)
        finally:  # what cannot be freed is no more of use for that, and takes no share of anybody's
            self._forget(live)

    def end_at_once(self, live: Live) -> Callable[[], None] | None:
        """End it as far as an answer waits for that: nothing runs in it any more, and the call does
        the rest. None where that takes time, and ``end`` has to. Never blocks."""
        if not live.begin_end_if_idle("destroyed"):
            return None
        self._forget(live)
        return lambda: self._finish(live, "destroyed")

    def _finish(self, live: Live, reason: str) -> None:
        try:
            self._on_end(live, reason)
            self._meter.sandbox_ended(live, reason)
            # Should it not be written, the next daemon finds it gone and writes it down.
            with contextlib.suppress(StoreError):
                self._store.submit(lambda t: t.put(ended(live.record)), synced=False, urgent=False)
        finally:  # nobody knows of it any more: what runs in it would go on until its lease ends
            self._pipeline.close(live.handle)

    def lost(self, wall: str, reason: str) -> None:
        """Take note that a wall has ended by itself, or by its lease, as the supervisor says."""
        with self._lock:
            live = self._by_wall.get(wall)
        if live is not None:
            word, _, live.why = reason.partition(": ")
            self.end(live, word)

    def sort_out(self) -> int:
        """End those that the supervisor of now does not have: how many."""
        there = {held.id for held in remote.held(self._link)}
        gone = [live for live in self.all() if live.record.save.get("wall") not in there]
        for live in gone:
            try:
                self.end(live, "backend_lost")
            except Exception as error:  # the others have ended, too
                guard.tell(error)
        return len(gone)

    # --- found ---

    def get(self, principal: Principal, id_: str) -> Live:
        """Find one by its id, or by the name of one's own. Raises NotFound, also for another's."""
        live = self._live.get(id_) or self._live.get(self.names.find(principal.name, id_))
        if live is None or live.ending or not principal.owns(live.record.principal):
            raise NotFound(
                f"there is no sandbox {id_[:64]!r}",
                remediation="agentd ls lists yours; one whose lease has ended is gone",
            )
        return live

    def named(self, principal: Principal, name: str) -> Live | None:
        """Find the one that ``principal`` calls so, if it lives."""
        found = self.find(self.names.find(principal.name, name))
        return None if found is None or found.ending else found

    def find(self, id_: str) -> Live | None:
        """Return the sandbox whoever owns it; None where it has ended."""
        with self._lock:
            return self._live.get(id_)

    def recall(self, principal: Principal, id_: str) -> SandboxRecord:
        """Find its record, also after it has ended, for as long as that is kept; of several that
        had a name, that of the newest. Raises NotFound."""
        live = self.find(id_) or self.named(principal, id_)
        record = recalled(self._store, principal.name, id_) if live is None else live.record
        if record is None or not principal.owns(record.principal):
            raise NotFound(
                f"there is no sandbox {id_[:64]!r}",
                remediation="what has ended long ago is forgotten",
            )
        return record

    def views(
        self, principal: Principal, labels: Mapping[str, str], state: str | None, after: str
    ) -> Iterator[SandboxView]:
        """List what ``principal`` may see, in the order of the ids, from behind ``after`` on.

        Raises InvalidInput.
        """
        if state is not None and state not in list(State):
            raise InvalidInput(
                f"there is no state {state[:64]!r}", remediation=f"give one of: {', '.join(State)}"
            )
        with self._lock:
            ids = sorted(id_ for id_ in self._live if id_ > after)
        for id_ in ids:
            view = None
            with contextlib.suppress(AgentdError):  # it has ended meanwhile
                live = self.get(principal, id_)
                fits = state is None or live.handle.state == state
                if fits and labels.items() <= live.record.labels.items():
                    view = live.view()
            if view is not None:
                yield view

    def all(self) -> list[Live]:
        with self._lock:
            return list(self._live.values())

    # --- the record ---

    def _write_down(
        self,
        owner: str,
        handle: SandboxHandle,
        labels: Mapping[str, str],
        seconds: float,
        origin: Mapping[str, str],
        name: str = "",
        idle: IdleRule = NEVER,
        snapshot: str = "",
    ) -> Live:
        now = time.time()
        record = SandboxRecord(
            id=handle.id,
            principal=owner,
            spec=without_env(handle.spec),
            backend=handle.backend,
            level=handle.level.label,
            state=str(handle.state),
            created=now,
            deadline=now + seconds,
            labels=dict(labels),
            save=dict(handle.wall.save()),
            name=name,
            idle_timeout=idle.seconds,
            on_idle=idle.then,
            snapshot=snapshot,
        )
        live = Live(handle, record, seconds, origin)
        self.wake_by_use(live)
        if not live.wall.alive():
            raise BackendLost(f"sandbox {handle.id} has ended", remediation="create another")
        live.wall.tell_lease(seconds + GRACE_SECONDS, handle.spec.env)
        live.count_cassettes()
        with contextlib.suppress(AgentdError):
            handle.guest.tell("sys.lease", ms=agents(seconds))
        self._put(record, undo=lambda: self.end(live, "not_recorded"))
        self._keep(live)
        self._on_made(live)
        return live

    def _put(self, record: SandboxRecord, undo: Callable[[], None] | None = None) -> None:
        """Written, not synced: no sandbox outlives a loss of power. Where the answer is written
        too, with that; should it not be, there is ``undo``."""
        answer = context.recorded()
        if answer is None:
            self._store.write(lambda t: t.put(record), synced=False)
        elif answer.lasting:  # it tells of a command, and waits for both
            self._store.submit(lambda t: t.put(record), synced=False, urgent=False)
        else:
            answer.along(lambda t: t.put(record), undo)

    def _keep(self, live: Live) -> None:
        with self._lock:
            self._live[live.id] = live
            self._by_wall[live.wall.id] = live
        self.names.keep(live.record.principal, live.record.name, live.id)

    def _forget(self, live: Live) -> None:
        with self._lock:
            self._live.pop(live.id, None)
            self._by_wall.pop(str(live.record.save.get("wall")), None)
        self.names.forget(live.record.principal, live.record.name, live.id)
        self._ledger.give_back(live.record.principal, live.record.spec.limits)

    def _admit(self) -> None:
        if self.draining:
            raise about_to_end()

    def lease(self, ttl: float | None) -> float:
        """Return the seconds of a lease that is asked for. Raises InvalidInput for too many."""
        leases = self._config().leases
        seconds = float(leases.default) if ttl is None else ttl
        if seconds > leases.max:
            raise InvalidInput(
                f"a lease of {format_duration(seconds)} is longer than the "
                f"{format_duration(leases.max)} allowed",
                remediation="ask for less, and renew it",
            )
        return seconds
