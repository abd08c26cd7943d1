"""Connections of a sandbox that wait for somebody to allow them: a person at a terminal is told."""

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from agentd.client.cli import output, table
from agentd.client.cli.remote import safe
from agentd.model.egress import asks
from agentd.model.errors import AgentdError

if TYPE_CHECKING:
    from agentd.client.ports import Service
    from agentd.model.api import SandboxView

_LOOK_SECONDS = 2.0


def ticks(
    service: "Service", options: argparse.Namespace, name: str, sandbox: "SandboxView | None" = None
) -> dict[Callable[[], object], float]:
    """Return what to call while a command runs, and every how many seconds: nothing but where a
    rule has somebody asked, and a line would not stand in what a program draws or reads.
    ``sandbox`` None is the one that ``options.id`` names."""
    if options.tty or options.json or not table.is_terminal(sys.stderr):
        return {}
    with suppress(AgentdError):  # who may run commands may not look at sandboxes
        view = sandbox or service.sandboxes.get(options.id)
        if any(map(asks, view.egress)):
            told: set[str] = set()
            return {lambda: _tell(service, view.id, told, name): _LOOK_SECONDS}
    return {}


def _tell(service: "Service", sandbox: str, told: set[str], name: str) -> None:
    """Say of each question once which one it is. Who may not list them is told nothing."""
    from agentd.client.cli.approval import where

    with suppress(AgentdError):
        for view in service.approvals.list():
            if view.state != "pending" or view.asked.get("sandbox") != sandbox or view.id in told:
                continue
            told.add(view.id)
            if waits := where(view):
                line = f"{waits} waits to be allowed: agentd approval approve {view.id}"
                output.say(safe(line), name, colour=output.YELLOW)
