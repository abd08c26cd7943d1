"""``model.service.Service`` as a daemon has it: what one caller may ask, by nouns."""

from collections.abc import Callable, Sequence
from hashlib import sha256

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
from agentd.daemon.service.noun import Noun
from agentd.daemon.service.parts import Parts
from agentd.daemon.service.ports import DaemonPorts
from agentd.daemon.service.sandboxes import DaemonSandboxes, DaemonSnapshots
from agentd.daemon.service.secrets import DaemonSecrets
from agentd.daemon.service.volumes import DaemonVolumes
from agentd.model import context
from agentd.model.answer import Answer, Authorise, Carry, Work
from agentd.model.api import Repeat
from agentd.model.errors import NotFound
from agentd.model.principal import Principal


class DaemonService:
    """Implements ``model.door.DoorService``. Thread-safe; one a request."""

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
    def sandboxes(self) -> DaemonSandboxes:
        return DaemonSandboxes(self._parts, self._caller)

    @property
    def commands(self) -> DaemonCommands:
        return DaemonCommands(self._parts, self._caller)

    @property
    def files(self) -> DaemonFiles:
        return DaemonFiles(self._parts, self._caller)

    @property
    def ports(self) -> DaemonPorts:
        return DaemonPorts(self._parts, self._caller, self._again)

    @property
    def network(self) -> DaemonNetwork:
        return DaemonNetwork(self._parts, self._caller)

    @property
    def snapshots(self) -> DaemonSnapshots:
        return DaemonSnapshots(self._parts, self._caller)

    @property
    def volumes(self) -> DaemonVolumes:
        return DaemonVolumes(self._parts, self._caller)

    @property
    def secrets(self) -> DaemonSecrets:
        return DaemonSecrets(self._parts, self._caller)

    @property
    def capabilities(self) -> DaemonCapabilities:
        return DaemonCapabilities(self._parts, self._caller)

    @property
    def receipts(self) -> DaemonReceipts:
        return DaemonReceipts(self._parts, self._caller)

    @property
    def keys(self) -> DaemonKeys:
        return DaemonKeys(self._parts, self._caller)

    @property
    def approvals(self) -> DaemonApprovals:
        return DaemonApprovals(self._parts, self._caller)

    @property
    def audit(self) -> DaemonAudit:
        return DaemonAudit(self._parts, self._caller)

    @property
    def events(self) -> DaemonEvents:
        return DaemonEvents(self._parts, self._caller)

    @property
    def machine(self) -> DaemonMachine:
        return DaemonMachine(self._parts, self._caller)

    @property
    def repeats(self) -> "DaemonRepeats":
        return DaemonRepeats(self._parts, self._caller)


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
