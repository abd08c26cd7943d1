"""What of the agent is imported when it is first asked for, or in a quiet moment.

An agent that is born anew for each sandbox, as behind OCI runtimes and gVisor, would spend half its
start on what most sandboxes never ask for. Where the library gets out of reach, all of it is
imported first (``everything``).
"""

import sys
from collections.abc import Iterator, Mapping
from types import ModuleType

from agentd.guest.loop import Loop
from agentd.guest.operation import Channel, ChannelOperation, Starter

#: Operations, and the module in whose ``OPERATIONS`` each is.
OPERATIONS: Mapping[str, str] = {
    "fs.stat": "agentd.guest.fs",
    "fs.list": "agentd.guest.fs",
    "fs.mkdir": "agentd.guest.fs",
    "fs.move": "agentd.guest.fs",
    "fs.remove": "agentd.guest.fs",
    "fs.read": "agentd.guest.fs_read",
    "fs.write": "agentd.guest.fs_write",
    "fs.tar_read": "agentd.guest.fs_tar",
    "fs.tar_write": "agentd.guest.fs_tar",
    "fs.watch": "agentd.guest.watch",
    "tcp": "agentd.guest.tunnel",
}
# Beside operations: protocol v1, why a program could not be started, and a command's limits.
_OTHERS = ("agentd.guest.v1_server", "agentd.guest.diagnosis", "resource")
# After its birth and between two modules. What follows a sandbox's birth is its first command.
_QUIET_SECONDS = 0.25
_PAUSE_SECONDS = 0.02


def operations() -> dict[str, Starter]:
    """Returns starters of all ``OPERATIONS``; each imports its module when it is called."""
    return {name: _starter(name, module) for name, module in OPERATIONS.items()}


def _starter(name: str, module: str) -> Starter:
    def start(
        channel: Channel, request: dict[str, object], fds: list[int]
    ) -> ChannelOperation | None:
        starter: Starter = _import(module).OPERATIONS[name]
        return starter(channel, request, fds)

    return start


def everything() -> None:
    """Import all that is imported late here."""
    for module in _modules():
        _import(module)


def in_quiet_moments(loop: Loop) -> None:
    """Import it bit by bit while the loop runs: the files may be replaced one day, by a newer
    agent's, and memory or descriptors be used up by commands."""
    waiting = _modules()

    def step() -> None:
        for module in waiting:
            if module not in sys.modules:
                _import(module)
                loop.after(_PAUSE_SECONDS, step)
                return

    loop.after(_QUIET_SECONDS, step)


def _modules() -> Iterator[str]:
    return iter((*dict.fromkeys(OPERATIONS.values()), *_OTHERS))


def _import(module: str) -> ModuleType:
    return sys.modules.get(module) or __import__(module, fromlist=["OPERATIONS"])
