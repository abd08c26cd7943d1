"""What a caller can call by name."""

from collections.abc import Mapping
from typing import Any

from agentd.daemon.calls import catalogue
from agentd.daemon.calls.ends import readable_once
from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun
from agentd.model import context, typed
from agentd.model.api import CallBody, CallView, CapabilityView, SandboxBody
from agentd.model.canonical import loads_strict
from agentd.model.principal import Principal
from agentd.model.service import Emit

_AS_USUAL = SandboxBody()
_NOT_SIGNED: Mapping[str, Any] = {}


class DaemonCapabilities(Noun):
    """Implements ``model.service.Capabilities``."""

    @observed("capabilities")
    def list(self) -> tuple[CapabilityView, ...]:
        self._who.require("read")
        return tuple(catalogue.views(self._parts.control.registry))

    @observed("call")
    def call(
        self,
        capability: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        sandbox: str | None = None,
        create: SandboxBody = _AS_USUAL,
        bundle: str | None = None,
        keep: bool = False,
        emit: Emit | None = None,
        cancel: int = -1,
    ) -> CallView:
        body = CallBody(
            capability=capability,
            parameters=dict(parameters or {}),
            sandbox=sandbox,
            create=create,
            bundle=bundle,
            keep=keep,
        )
        acting = self._parts.signed().acting(self._who, _NOT_SIGNED)
        return self._call(acting, body, emit, cancel)

    @observed("call")
    def request(self, body: bytes, *, emit: Emit | None = None, cancel: int = -1) -> CallView:
        found = typed.decoder(CallBody).decode(body)
        # The same bytes are what was signed, and what is done.
        acting = self._parts.signed().acting(self._who, loads_strict(body))
        return self._call(acting, found, emit, cancel)

    def _call(self, acting: Principal, body: CallBody, emit: Emit | None, cancel: int) -> CallView:
        parts = self._parts
        with parts.ledger.command(acting.name), readable_once(context.waiting_client()) as end:
            # Whoever follows it has a descriptor of their own, and is told by that.
            told = cancel if cancel >= 0 else end
            view = parts.calls.call(acting, body, emit, via="http", cancel=told)
        parts.ledger.used_cpu(acting.name, view.usage.cpu_ms / 1000)
        return view
