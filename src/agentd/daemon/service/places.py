"""Where a daemon's calls run: its principals' sandboxes, or one made for the call."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from agentd.daemon.config.schema import Config
from agentd.daemon.service import bodies
from agentd.daemon.service.sandboxes import Sandboxes, check_labels
from agentd.model.api import CallBody
from agentd.model.errors import InvalidInput
from agentd.model.principal import Principal
from agentd.model.spec import SandboxSpec
from agentd.policy.scopes import scope_of
from agentd.sandbox.handle import SandboxHandle


class Places:
    """``calls.Sandboxes`` of a daemon. Thread-safe."""

    def __init__(self, config: Callable[[], Config], sandboxes: Sandboxes) -> None:
        self._config = config
        self._sandboxes = sandboxes

    def get(self, who: Principal, body: CallBody) -> tuple[SandboxHandle, Mapping[str, str]]:
        who.require(scope_of(body.capability))
        live = self._sandboxes.get(who, body.sandbox or "")
        live.require_running("call a capability in it")
        return live.handle, live.record.labels

    def plan(self, who: Principal, body: CallBody) -> tuple[SandboxSpec, Mapping[str, str]]:
        who.require(scope_of(body.capability))
        if body.create.snapshot is not None:
            raise InvalidInput(
                "a call makes no sandbox of a snapshot",
                remediation="create one of it, and call in that",
            )
        return bodies.sandbox_spec(who, body.create, self._config()), check_labels(
            body.create.labels
        )

    @contextmanager
    def made(
        self, who: Principal, spec: SandboxSpec, labels: Mapping[str, str]
    ) -> Iterator[SandboxHandle]:
        who.require("create")
        live = self._sandboxes.create(who, spec, labels=labels, admitted=True)
        try:
            yield live.handle
        finally:
            self._sandboxes.end(live)
