"""What the nouns of a daemon's service have in common: the parts that they stand on, the same for
all callers; the caller, and the way to a sandbox."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from agentd.auth.keys import KeyService
from agentd.daemon.admission import acts
from agentd.daemon.admission.approvals import Approvals
from agentd.daemon.admission.control import AdmissionControl
from agentd.daemon.calls.calls import Calls
from agentd.daemon.commands.commands import Commands
from agentd.daemon.config.schema import Config
from agentd.daemon.events import EventFeed
from agentd.daemon.observe.observed import Observer
from agentd.daemon.pipeline import Pipeline
from agentd.daemon.sandboxes.asked import AskedConnections
from agentd.daemon.sandboxes.sandboxes import Sandboxes
from agentd.daemon.sandboxes.snapshots import Snapshots
from agentd.daemon.secrets import SecretStore
from agentd.daemon.service.links import Links
from agentd.daemon.service.quotas import Ledger
from agentd.daemon.service.repeats import Repeats
from agentd.model import context
from agentd.model.api import Stats
from agentd.policy.scopes import scope_of
from agentd.sandbox.volumes import VolumeStore

if TYPE_CHECKING:
    from agentd.daemon.admission.acts import Act
    from agentd.daemon.admission.admission import Admission
    from agentd.daemon.admission.signed import SignedRequests
    from agentd.daemon.idempotency import Idempotency
    from agentd.daemon.sandboxes.live import Live
    from agentd.model.principal import Principal


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Thread-safe, each of them. What a new configuration replaces is asked for each time."""

    config: Callable[[], Config]
    keys: Callable[[], KeyService]
    signed: "Callable[[], SignedRequests]"
    idempotency: "Callable[[], Idempotency]"
    stats: Callable[[], Stats]
    ledger: Ledger
    pipeline: Pipeline
    sandboxes: Sandboxes
    commands: Commands
    snapshots: Snapshots
    volumes: VolumeStore
    secrets: SecretStore
    calls: Calls
    approvals: Approvals
    asked: AskedConnections
    control: AdmissionControl
    events: EventFeed
    repeats: Repeats
    links: Links  # to ports, that were given out
    observer: Observer


class Noun:
    """Bound to its caller. Thread-safe."""

    def __init__(self, parts: Parts, caller: "Principal") -> None:
        self._parts = parts
        self._who = caller
        self._observer = parts.observer

    def _live(self, scope: str, id_: str) -> "Live":
        """Raises Forbidden, NotFound."""
        sandboxes = self._parts.sandboxes
        named = sandboxes.named(self._who, id_) if not id_.startswith("sbx-") else None
        if named is not None:  # the log has its id all the same, of what is refused, too
            context.sandbox.set(named.id)
        self._who.require(scope)
        return sandboxes.get(self._who, id_)

    def _open(
        self, id_: str, name: str, doing: str, operation: str = "", /, **parameters: object
    ) -> "tuple[Live, Admission]":
        """Return a sandbox, and what is to be done there in a capability's words, ``name``, which
        may stand for more than one ``operation``.

        Raises Forbidden, NotFound, Conflict (``doing`` says what for), and what the policy refuses.
        """
        live = self._live(scope_of(name), id_)
        live.require_running(doing)
        return live, self._judge(live, name, operation, **parameters)

    def _judge(
        self, live: "Live", name: str, operation: str = "", /, **parameters: object
    ) -> "Admission":
        act = self._act(live, name, **parameters)
        if operation:
            act = msgspec.structs.replace(act, how={"operation": operation})
        return self._parts.control.gate.operation(act, live.handle)

    def _act(self, live: "Live", name: str, **parameters: object) -> "Act":
        return acts.operation(self._who, name, live.handle, live.record.labels, **parameters)
