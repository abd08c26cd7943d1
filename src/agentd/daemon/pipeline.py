"""The whole flow, top to bottom: who asks, whether they may, where it runs, what came of it.

Every way in comes here with a principal that it has authenticated. The gate then decides, and
writes down what it decided and how it ended: policy, approval, audit and receipt.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from agentd.daemon.commands.begin import BeginStreamed
from agentd.daemon.commands.command import Command, Emit
from agentd.daemon.commands.ends import DESTROYED, completed
from agentd.daemon.config_file import find
from agentd.model.egress import RESTRICTED, EgressBounds
from agentd.model.errors import InvalidInput
from agentd.model.isolation import IsolationLevel
from agentd.model.principal import Principal
from agentd.model.result import Result
from agentd.model.secret import SecretValue
from agentd.model.snapshot import MAX_FORKS
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.abilities import SECRETS
from agentd.sandbox.manager import Manager, SandboxHandle

if TYPE_CHECKING:
    from agentd.daemon.admission.gate import Gate
    from agentd.daemon.config import Config
    from agentd.daemon.packages.rules import PackageRules
    from agentd.sandbox.snapshots import Snapshot

Labels = Mapping[str, str]
SecretValues = Mapping[str, SecretValue]
_NO_LABELS: Labels = {}
NO_VALUES: SecretValues = {}


class Pipeline:
    """Makes sandboxes and commands. Thread-safe where its gate is. Without one its holder may do
    all: it is their process."""

    def __init__(
        self,
        manager: Manager,
        gate: "Gate | None" = None,
        package_rules: "Callable[[], PackageRules] | None" = None,
    ) -> None:
        """Without ``package_rules`` those hold that a daemon with this environment would have."""
        self.package_rules = package_rules or own_package_rules
        self.manager = manager
        self.gate = gate

    def open(
        self,
        who: Principal,
        spec: SandboxSpec,
        snapshot: "Snapshot | None" = None,
        values: SecretValues = NO_VALUES,
    ) -> SandboxHandle:
        """Make a sandbox, or one as a snapshot has it. ``values`` are those of its secrets.

        Raises Refused, InvalidInput and SandboxError; nothing is left behind then.
        """
        of = "" if snapshot is None else snapshot.id
        return self.build(self.admit(who, spec, snapshot=of), snapshot, values)

    def admit(
        self, who: Principal, spec: SandboxSpec, labels: Labels = _NO_LABELS, *, snapshot: str = ""
    ) -> SandboxSpec:
        """Return the spec as it may be built, or restored of the ``snapshot`` of that id."""
        if self.gate is None:
            return spec
        return self.gate.sandbox(who, spec, labels, snapshot=snapshot)

    def build(
        self,
        spec: SandboxSpec,
        snapshot: "Snapshot | None" = None,
        values: SecretValues = NO_VALUES,
    ) -> SandboxHandle:
        """Make a sandbox of a spec that was admitted."""
        if snapshot is not None:
            handle = self.manager.restore(spec, snapshot)
        elif spec.packages:
            from agentd.daemon.packages.provide import created  # late: few ask for any

            handle = created(self.manager, spec, self.package_rules())
        else:
            handle = self.manager.create(spec)
        return self._give([handle], values)[0]

    def fork(
        self,
        who: Principal,
        handle: SandboxHandle,
        count: int,
        labels: Labels = _NO_LABELS,
        spec: SandboxSpec | None = None,
        values: SecretValues = NO_VALUES,
    ) -> list[SandboxHandle]:
        """Make ``count`` copies of a sandbox as it is now: all of them or none. ``spec`` is theirs
        where it is not the sandbox's own; ``values`` are of secrets that are not as it has them."""
        check_forks(count)
        if self.gate is not None:
            self.gate.fork(who, handle, count, labels)
        if handle.spec.secrets:
            with handle.telling():
                held = handle.able(SECRETS, "tell the secrets of").held_secrets()
            values = held | dict(values)
        return self._give(self.manager.fork(handle, [spec or handle.spec] * count), values)

    def _give(self, handles: list[SandboxHandle], values: SecretValues) -> list[SandboxHandle]:
        """Have the secrets of new sandboxes put for them; none is left where one cannot be had."""
        try:
            for handle in handles if values else ():
                handle.able(SECRETS, "use secrets in").give_secrets(dict(values))
        except BaseException:
            for handle in handles:
                self.close(handle)
            raise
        return handles

    def execute(
        self, who: Principal, handle: SandboxHandle, request: ExecRequest, stdin: bytes = b""
    ) -> Result:
        """Run one command to its end, its output captured and bounded."""
        asked = msgspec.structs.replace(request, stdin=bool(stdin))
        with self.start(who, handle, asked, capture=True) as command:
            if stdin:
                command.feed(stdin)
            return command.finish()

    def start(
        self, who: Principal, handle: SandboxHandle, request: ExecRequest, capture: bool = False
    ) -> Command:
        """Start a command whose stdin the caller feeds, and whose output it takes as it comes.

        ``capture`` keeps the output for the Result instead, 64 MiB a stream unless limited.
        """
        whole = completed(request, handle)
        if self.gate is None:
            return Command(handle, BeginStreamed(whole, capture=capture))
        within, admission = self.gate.command(who, handle, whole, _NO_LABELS)
        return Command(handle, BeginStreamed(within, capture=capture), admission)

    def end(self, handle: SandboxHandle) -> None:
        """End it: what runs in it says that it was ended."""
        handle.why = DESTROYED
        self.close(handle)

    def close(self, handle: SandboxHandle) -> None:
        self.manager.destroy(handle)


def check_forks(count: int) -> None:
    """Raises InvalidInput for a number of copies that is none, or too many at once."""
    if not 1 <= count <= MAX_FORKS:
        raise InvalidInput(f"cannot fork {count} sandboxes", remediation=f"give 1 to {MAX_FORKS}")


def own_package_rules() -> "PackageRules":
    """Return this process's. Raises InvalidInput for a configuration that is wrong."""
    from agentd.daemon.packages import rules

    read = _own_config(find(os.environ))
    return msgspec.structs.replace(
        rules.of(read), bounds=_own(read), isolation=IsolationLevel.NAMESPACE
    )


def with_own_hosts(spec: SandboxSpec) -> SandboxSpec:
    """Return it with the hosts and the certificates that the configuration names for networks of
    rules: the one that a daemon of this process's would have. Raises InvalidInput where that is
    wrong."""
    if spec.net != RESTRICTED:
        return spec
    path = find(os.environ)
    if path and path != os.environ.get("AGENTD_CONFIG") and not os.access(path, os.R_OK):
        path = None  # the machine's, and not for everybody
    if path is None and not any(name.startswith("AGENTD_EGRESS__") for name in os.environ):
        return spec  # what is usual: it names none
    return msgspec.structs.replace(spec, egress_bounds=_own(_own_config(path)))


def _own_config(path: str | None) -> "Config":
    from agentd.daemon import config

    return config.load(path, dict(os.environ), ())


def _own(read: "Config") -> EgressBounds:
    """One may reach for oneself whatever one likes; a daemon grants it."""
    return msgspec.structs.replace(read.egress.bounds(), allow=None)


def run(
    handle: SandboxHandle,
    request: ExecRequest,
    stdin: bytes = b"",
    emit: Emit | None = None,
    cancel: int = -1,
) -> Result:
    """Run a command to its end without asking the gate, as one of a call that was decided."""
    begin = BeginStreamed(completed(request, handle), capture=emit is None and cancel < 0)
    with Command(handle, begin) as command:
        if stdin:
            command.feed(stdin)
        return command.follow(emit, cancel)
