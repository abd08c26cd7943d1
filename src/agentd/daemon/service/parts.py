"""What the nouns of a daemon's service stand on: its parts, the same for all callers."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from agentd.auth.keys import KeyService
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
from agentd.model.api import Stats
from agentd.sandbox.volumes import VolumeStore

if TYPE_CHECKING:
    from agentd.daemon.admission.signed import SignedRequests
    from agentd.daemon.idempotency import Idempotency


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
