"""Where a daemon's calls run: its principals' sandboxes, or one made for the call."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from agentd.daemon.commands.command import Emit
from agentd.daemon.commands.commands import Commands
from agentd.daemon.config.schema import Config
from agentd.daemon.sandboxes import bodies
from agentd.daemon.sandboxes.sandboxes import Sandboxes
from agentd.model import context
from agentd.model.api import CallBody, Time
from agentd.model.errors import BackendLost, Forbidden, InvalidInput, NotFound
from agentd.model.labels import check_labels
from agentd.model.principal import Principal
from agentd.model.result import Result
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.policy.scopes import scope_of
from agentd.sandbox.handle import SandboxHandle


class Places:
    """The ``CallSandboxes`` of a daemon. Thread-safe."""

    def __init__(
        self, config: Callable[[], Config], sandboxes: Sandboxes, commands: Commands
    ) -> None:
        self._config = config
        self._sandboxes = sandboxes
        self._commands = commands

    def get(self, who: Principal, body: CallBody) -> tuple[SandboxHandle, Mapping[str, str]]:
        id_ = body.sandbox or ""
        try:
            who.require(scope_of(body.capability))
        except Forbidden:
            with suppress(NotFound):  # the record of it has the id, also of what goes by its name
                context.sandbox.set(self._sandboxes.get(who, id_).handle.id)
            raise
        live = self._sandboxes.get(who, id_)
        live.require_running("call a capability in it")
        return live.handle, live.record.labels

    def plan(self, who: Principal, body: CallBody) -> tuple[SandboxSpec, Mapping[str, str]]:
        who.require(scope_of(body.capability))
        if body.create.snapshot is not None:
            raise InvalidInput(
                "a call makes no sandbox of a snapshot",
                remediation="create one of it, and call in that",
            )
        for field in ("wait", "name", "idle_timeout", "on_idle"):
            if getattr(body.create, field) is not None:
                raise InvalidInput(
                    f"a sandbox that is made for a call has no {field!r}",
                    remediation=f"create one with {field}, and call in that",
                )
        if body.create.secrets:
            raise InvalidInput(
                "a sandbox that is made for a call has no secrets",
                remediation="create one with them, and call in that",
            )
        self._sandboxes.lease(bodies.ttl_of(body.create.ttl))
        return bodies.sandbox_spec(who, body.create, self._config()), check_labels(
            body.create.labels
        )

    def run(
        self,
        who: Principal,
        handle: SandboxHandle,
        request: ExecRequest,
        stdin: bytes,
        emit: Emit | None,
        cancel: int,
        *,
        kept: list[str] | None = None,
    ) -> Result:
        live = self._sandboxes.find(handle.id)
        if live is None:
            lost = f"sandbox {handle.id} has ended"
            raise handle.truly(BackendLost(lost, remediation="create a new one"))
        return self._commands.part(who, live, request, stdin, emit, cancel, kept)

    @contextmanager
    def made(
        self,
        who: Principal,
        spec: SandboxSpec,
        labels: Mapping[str, str],
        ttl: Time | None = None,
    ) -> Iterator[SandboxHandle]:
        who.require("create")
        seconds = bodies.ttl_of(ttl)
        live = self._sandboxes.create(who, spec, labels=labels, ttl=seconds, admitted=True)
        try:
            yield live.handle
        finally:
            self._sandboxes.end(live)
