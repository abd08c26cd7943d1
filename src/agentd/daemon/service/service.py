"""``model.service.Service`` as a daemon has it: what one caller may ask, by nouns."""

import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Generic, TypeVar

from agentd.daemon.observe.observed import observed
from agentd.daemon.service.approvals import DaemonApprovals
from agentd.daemon.service.audit import DaemonAudit, DaemonReceipts
from agentd.daemon.service.capabilities import DaemonCapabilities
from agentd.daemon.service.commands import DaemonCommands
from agentd.daemon.service.events import DaemonEvents
from agentd.daemon.service.files import DaemonFiles
from agentd.daemon.service.keys import DaemonKeys
from agentd.daemon.service.machine import DaemonMachine
from agentd.daemon.service.network import DaemonNetwork
from agentd.daemon.service.noun import Noun, Parts
from agentd.daemon.service.ports import DaemonPorts
from agentd.daemon.service.sandboxes import DaemonSandboxes, DaemonSnapshots
from agentd.daemon.service.secrets import DaemonSecrets
from agentd.daemon.service.volumes import DaemonVolumes
from agentd.model import context
from agentd.model.answer import Answer, Authorise, Carry, Work
from agentd.model.api import Repeat
from agentd.model.errors import Forbidden, NotFound
from agentd.model.principal import Principal


class DaemonRepeats(Noun):
    """Implements ``model.door.Repeats``."""

    @observed("readmit")
    def readmit(self, repeat: Repeat, approved: frozenset[str] | None) -> None:
        self._parts.repeats.readmit(self._who, repeat, approved)

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
        digest = sha256(request).hexdigest()
        with context.recording(lasting=lasting):
            return await self._parts.idempotency().run(
                self._who.name, key, digest, work, carry, lasting=lasting, authorise=authorise
            )


N = TypeVar("N", bound=Noun)


class _Bound(Generic[N]):
    """An attribute of the service: that noun, bound to the service's caller."""

    def __init__(self, noun: type[N]) -> None:
        self._noun = noun

    def __get__(self, service: "DaemonService", _: object = None) -> N:
        return self._noun(service._parts, service._caller)


class DaemonService:
    """Implements ``model.door.DoorService``. Thread-safe; one a request."""

    sandboxes = _Bound(DaemonSandboxes)
    commands = _Bound(DaemonCommands)
    files = _Bound(DaemonFiles)
    network = _Bound(DaemonNetwork)
    snapshots = _Bound(DaemonSnapshots)
    volumes = _Bound(DaemonVolumes)
    secrets = _Bound(DaemonSecrets)
    capabilities = _Bound(DaemonCapabilities)
    receipts = _Bound(DaemonReceipts)
    keys = _Bound(DaemonKeys)
    approvals = _Bound(DaemonApprovals)
    audit = _Bound(DaemonAudit)
    events = _Bound(DaemonEvents)
    machine = _Bound(DaemonMachine)
    repeats = _Bound(DaemonRepeats)

    def __init__(
        self, parts: Parts, caller: Principal, again: Callable[[], Principal] | None = None
    ) -> None:
        """``again`` authenticates the caller anew; without it nothing can change who that is."""
        self._parts = parts
        self._caller = caller
        self._again = again

    @property
    def caller(self) -> Principal:
        """Whom it is bound to: no door can set another."""
        return self._caller

    def require(self, op: str, scopes: Sequence[str], sandbox: str = "") -> None:
        begun = time.perf_counter()
        try:
            for scope in scopes:
                self._caller.require(scope)
        except Forbidden as error:
            id_ = sandbox if sandbox.startswith("sbx-") else ""
            self._parts.observer.over(op, self._caller.name, id_, begun, error)
            raise

    def reauthorise(self, scopes: Sequence[str], sandbox: str = "") -> "DaemonService":
        who = self._caller if self._again is None else self._again()
        for scope in scopes:
            who.require(scope)
        known = self._parts.sandboxes
        live = known.find(sandbox) or known.named(self._caller, sandbox)
        if live is not None and not who.owns(live.record.principal):
            raise NotFound(f"there is no sandbox {live.id!r}", remediation="it is another's now")
        return DaemonService(self._parts, who, self._again)

    @property
    def ports(self) -> DaemonPorts:
        return DaemonPorts(self._parts, self._caller, self._again)
