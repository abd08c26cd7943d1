"""What changes of a sandbox that is there: its lease, its labels, the rules of its network.

A change that the store refuses has no effect: neither on what callers are told, nor on the wall.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from agentd.daemon.sandboxes.adoption import GRACE_SECONDS, without_env
from agentd.daemon.sandboxes.pauses import tell_agent
from agentd.model.errors import AgentdError, NotFound
from agentd.model.events import EventKind
from agentd.model.labels import check_labels

if TYPE_CHECKING:
    from agentd.daemon import events
    from agentd.daemon.pipeline import Pipeline
    from agentd.daemon.sandboxes.live import Live
    from agentd.daemon.store.records import SandboxRecord
    from agentd.model.principal import Principal
    from agentd.model.spec import SandboxSpec
    from agentd.sandbox.ports import Networked


class Changing:
    """The part of ``Sandboxes`` that makes such changes."""

    _pipeline: "Pipeline"
    _publish: "events.Publish"
    _relabelling: threading.Lock

    def _put(self, record: "SandboxRecord", undo: Callable[[], None] | None = None) -> None:
        raise NotImplementedError

    def lease(self, ttl: float | None) -> float:
        raise NotImplementedError

    def renew(self, live: "Live", ttl: float) -> None:
        """Let its lease end ``ttl`` seconds from now, not before."""
        seconds = self.lease(ttl)
        self._change(live, deadline=time.time() + seconds)
        self._lease(live, seconds)
        live.lease(seconds)
        record = live.record
        self._publish(EventKind.RENEWED, record.principal, record.id, deadline=record.deadline)

    def relabel(self, who: "Principal", live: "Live", changes: Mapping[str, str | None]) -> None:
        """Change its labels, judged as a new one's, and anew where others changed them meanwhile.
        Raises InvalidInput, and what refuses it."""
        gate = self._pipeline.gate
        while True:
            before = live.record.labels
            labels = {**before, **changes}
            kept = check_labels({k: v for k, v in labels.items() if v is not None}, before)
            if gate is not None:
                gate.sandbox(who, live.record.spec, kept, snapshot=live.record.snapshot)
            with self._relabelling:
                if live.record.labels == before:  # whoever waits for an approval holds up nobody
                    return self._change(live, labels=kept)

    def restrict(self, live: "Live", wall: "Networked", spec: "SandboxSpec") -> None:
        """Let the rules of ``spec`` hold from now on, or none but those that did."""
        with live.standing:
            before = live.record.spec
            self._change(live, spec=without_env(spec))
            try:
                wall.set_network(spec.egress, spec.network_bounds)
            except BaseException:
                with contextlib.suppress(AgentdError):  # it has ended, or the next daemon sees it
                    self._change(live, spec=before)
                raise
            live.handle.spec = spec

    def _lease(self, live: "Live", seconds: float) -> None:
        """Ours ends first, then the supervisor's, then the agent's own: each where the one before
        is in no state to."""
        with live.handle.telling():
            live.wall.renew(seconds + GRACE_SECONDS)
        tell_agent(live, seconds)

    def _change(self, live: "Live", **fields: object) -> None:
        with live.lock:
            if live.ending:
                raise NotFound(f"sandbox {live.id} has ended")
            before = {name: getattr(live.record, name) for name in fields}
            record = live.record = msgspec.structs.replace(live.record, **fields)
        try:
            self._put(record)
        except BaseException:
            with live.lock:
                live.record = msgspec.structs.replace(live.record, **before)
            raise
