"""Sandboxes that outlived the daemon before: what both the store and the supervisor know."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from agentd.daemon.sandboxes.live import Live
from agentd.daemon.store.records import SandboxRecord
from agentd.model.errors import AgentdError
from agentd.model.spec import SandboxSpec
from agentd.sandbox.choose import Choice
from agentd.sandbox.lifecycle import State
from agentd.sandbox.supervisor import remote

if TYPE_CHECKING:
    from agentd.daemon.pipeline import Pipeline
    from agentd.daemon.service.quotas import Ledger
    from agentd.daemon.store.sqlite import SqliteStore
    from agentd.sandbox.supervisor.client import SupervisorLink
    from agentd.sandbox.supervisor.held import WallRecord

# The supervisor ends it a little later than we do, so that the cause is told by us.
GRACE_SECONDS = 5.0
ENDED = "ended"


class Adoption:
    """The part of ``Sandboxes`` that goes on with them."""

    _store: "SqliteStore"
    _link: "SupervisorLink"
    _pipeline: "Pipeline"
    _ledger: "Ledger"

    def all(self) -> list[Live]:
        raise NotImplementedError

    def wake_by_use(self, live: Live) -> None:
        raise NotImplementedError

    def _keep(self, live: Live) -> None:
        raise NotImplementedError

    def _put(self, record: SandboxRecord, undo: Callable[[], None] | None = None) -> None:
        raise NotImplementedError

    def adopt(self, tell: Callable[[SandboxRecord], None]) -> tuple[int, int]:
        """Go on with what the store and the supervisor both know: how many, and how many not.
        ``tell`` is told of those that the store alone knew, which have ended."""
        there = {held.id: held for held in remote.held(self._link)}
        adopted = gone = 0
        found = self._records()
        for record in found:
            held = there.pop(str(record.save.get("wall")), None)
            if held is None:
                tell(record)  # first: should we die in between, the next daemon finds it again
                self._put(ended(record))
                gone += 1
            else:
                self._take_over(record, held)
                adopted += 1
        self._hand_over(found)
        for nobodys in there.values():
            remote.wall_of(self._link, nobodys).kill()
        return adopted, gone + len(there)

    def _take_over(self, record: SandboxRecord, held: "WallRecord") -> None:
        told = held.spec  # the wall's rules hold: we died before it had ours
        holds = told.egress, told.network_bounds
        if (record.spec.egress, record.spec.network_bounds) != holds:
            spec = msgspec.structs.replace(
                record.spec, egress=told.egress, egress_bounds=told.egress_bounds
            )
            record = msgspec.structs.replace(record, spec=spec)
            self._put(record)
        backend = self._pipeline.manager.backend(record.backend)
        wall = remote.wall_of(self._link, held)
        spec = msgspec.structs.replace(record.spec, env=record.spec.env or held.spec.env)
        handle = self._pipeline.manager.adopt(
            record.id, Choice(backend, remote.RemotePlan(spec)), wall, paused=held.paused
        )
        self._ledger.take(record.principal, record.spec.limits, force=True)
        live = Live(handle, record, _left(record, held))
        self.wake_by_use(live)
        self._keep(live)

    def _hand_over(self, records: Sequence[SandboxRecord]) -> None:
        """Variables that an agentd before this one wrote to the store go to the supervisor. One
        that is as old does not take them: then they stay until their sandbox ends."""
        if not any(record.spec.env for record in records):
            return
        old = [live for live in self.all() if live.record.spec.env]
        for live in old:
            left = live.left or 0.0
            with contextlib.suppress(AgentdError):
                live.wall.tell_lease(left + GRACE_SECONDS, live.record.spec.env)
        known = {held.id: held.spec.env for held in remote.held(self._link)} if old else {}
        for live in old:
            if known.get(live.wall.id) == live.record.spec.env:
                live.record = msgspec.structs.replace(
                    live.record, spec=without_env(live.record.spec)
                )
                self._put(live.record)
        self._store.checkpoint()

    def _records(self) -> list[SandboxRecord]:
        found: list[SandboxRecord] = []
        for state in (State.READY, State.PAUSED):
            after: tuple[str, ...] = ()
            while page := self._store.find(SandboxRecord, after=after, state=str(state)):
                found += page
                after = (page[-1].id,)
        return found


def _left(record: SandboxRecord, held: "WallRecord") -> float | None:
    """Seconds that a lease goes on. The supervisor has counted them, whoever set the clock since;
    what it tells is by the clock of now."""
    if record.deadline is None:
        return None
    if held.deadline is None:
        return record.deadline - time.time()
    return held.deadline - time.time() - GRACE_SECONDS


def without_env(spec: SandboxSpec) -> SandboxSpec:
    """Drop variables, often secrets: the supervisor keeps them for the next daemon, and no file."""
    return msgspec.structs.replace(spec, env={})


def reason_of(record: SandboxRecord) -> str:
    """Why one ended while no daemon was there."""
    late = record.deadline is not None and record.deadline <= time.time()
    return "lease_expired" if late else "backend_lost"


def ended(record: SandboxRecord) -> SandboxRecord:
    spec = without_env(record.spec)
    return msgspec.structs.replace(record, spec=spec, state=ENDED, deadline=None, ended=time.time())
