"""The programs of this folder that run in sandboxes, as texts, and how they are run."""

import os
from collections.abc import Callable
from functools import cache

from agentd.daemon.commands.begin import BeginStreamed
from agentd.daemon.commands.command import Command, Emit
from agentd.daemon.commands.ends import completed
from agentd.model.result import Result
from agentd.model.running import drive
from agentd.model.spec import ExecRequest
from agentd.sandbox.handle import SandboxHandle

_TICK = 1.0  # seconds


def run(
    handle: SandboxHandle,
    request: ExecRequest,
    emit: Emit | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Result:
    """Run a command to its end, without stdin. ``tick`` is called about once a second, and may
    raise to give it up."""
    begin = BeginStreamed(completed(request, handle), capture=emit is None)
    with Command(handle, begin) as command:
        command.feed(b"")
        if emit is None:
            return command.follow()
        for chunks, _ in drive(command, timeout=lambda: _TICK):
            for name, data in chunks:
                emit(name, data)
            tick()
        return command.finish()


@cache
def text(name: str) -> str:
    """Return the source of ``probe`` or ``driver``."""
    path = os.path.join(os.path.dirname(__file__), f"{name}.py")
    with open(path, encoding="utf-8") as file:
        return file.read()
