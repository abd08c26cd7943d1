"""What works on this machine, in the words that refusals use."""

from dataclasses import dataclass

from agentd.linux import probe
from agentd.model.availability import Availability, Blocker
from agentd.model.errors import AgentdError
from agentd.sandbox import backends
from agentd.sandbox.ports import Backend


@dataclass(frozen=True)
class Finding:
    name: str
    level: str
    requirements: tuple[str, ...]
    availability: Availability


def findings() -> list[Finding]:
    return [_examine(name) for name in backends.names()]


def machine() -> dict[str, object]:
    return probe.gather().as_dict()


def _examine(name: str) -> Finding:
    try:
        backend: Backend = backends.load(name)
    except Exception as error:  # a third party's module may raise anything when imported
        blocker = Blocker(f"cannot be loaded: {error}", "mend or uninstall the package it is in")
        return Finding(name, "unknown", (), Availability(False, (blocker,)))
    try:
        return Finding(name, backend.level.label, backend.requirements(), _probe(backend))
    finally:
        backend.close()


def _probe(backend: Backend) -> Availability:
    try:
        return backend.probe()
    except (AgentdError, OSError) as error:
        return Availability(False, (Blocker(str(error), "see the message; then try again"),))
