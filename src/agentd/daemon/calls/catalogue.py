"""The registry, as it is told over any wire."""

from typing import Any

import msgspec

from agentd.capability.registry import Registry
from agentd.model.api import CapabilityView
from agentd.model.capability import About, Example
from agentd.policy.scopes import scope_of


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
