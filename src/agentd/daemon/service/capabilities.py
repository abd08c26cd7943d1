"""What a caller can call by name: the registry, as it is told over any wire, and the calls."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from agentd.capability.registry import Registry
from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun
from agentd.model import context, typed
from agentd.model.api import CallBody, CallView, CapabilityView, SandboxBody
from agentd.model.canonical import loads_strict
from agentd.model.capability import About, Example
from agentd.model.principal import Principal
from agentd.model.service import Emit
from agentd.policy.scopes import scope_of

_AS_USUAL = SandboxBody()
_NOT_SIGNED: Mapping[str, Any] = {}


class DaemonCapabilities(Noun):
    """Implements ``model.service.Capabilities``."""

    @observed("capabilities")
    def list(self) -> tuple[CapabilityView, ...]:
        self._who.require("read")
        return tuple(views(self._parts.control.registry))

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


def views(registry: Registry) -> list[CapabilityView]:
    """List those that can be called, then those that cannot, with the reason."""
    found = registry.all()
    broken = [CapabilityView(name, blocker=str(error)) for name, error in found.broken.items()]
    return [view(capability.about) for capability in found.capabilities] + broken


def view(about: About) -> CapabilityView:
    return CapabilityView(
        name=about.name,
        summary=about.summary,
        scope=scope_of(about.name),
        needs=about.needs.told(),
        parameters=dict(about.schema),
        examples=tuple(_example(example) for example in about.examples),
    )


def _example(example: Example) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(example)
    return found


@contextmanager
def readable_once(gone: context.Gone) -> Iterator[int]:
    """Yield a descriptor, the block's own, that is readable once who waits has ``gone``."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        with gone.telling(lambda: os.write(writer, b"e")):
            yield reader
    finally:
        os.close(writer)
        os.close(reader)
