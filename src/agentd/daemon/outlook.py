"""What ``agentd run`` without options gets on this machine: found out by making it."""

from collections.abc import Mapping

import msgspec

from agentd.model.availability import Blocker
from agentd.model.enforcement import Control, unheld
from agentd.model.errors import AgentdError
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import SandboxSpec
from agentd.sandbox.choose import choose
from agentd.sandbox.manager import Manager


class Outlook(msgspec.Struct, frozen=True):
    """``backend`` and ``level`` are empty where no sandbox can be had; ``blocker`` says why.

    ``unheld`` are the default limits that nothing enforces. ``weaker`` is the level that can be had
    where the default one cannot, or empty. ``tried``: such a sandbox was made. A virtual machine
    is not, since it takes seconds and may build an image.
    """

    backend: str
    level: str
    tried: bool
    unheld: Mapping[str, Control] = {}
    blocker: Blocker | None = None
    weaker: str = ""


def outlook() -> Outlook:
    manager = Manager()
    try:
        return _of(manager, SandboxSpec())
    except AgentdError as error:
        return Outlook("", "", tried=True, blocker=_blocker(error), weaker=_weaker(manager))
    finally:
        manager.close()


def _of(manager: Manager, spec: SandboxSpec) -> Outlook:
    """Raises AgentdError as ``Manager.create`` does."""
    backend = choose(spec, manager.backend).backend
    if backend.level >= IsolationLevel.MICROVM:
        return Outlook(backend.name, backend.level.label, tried=False)
    handle = manager.create(spec)
    try:
        missing = unheld(handle.enforcement)
        return Outlook(handle.backend, handle.level.label, tried=True, unheld=missing)
    finally:
        manager.destroy(handle)


def _blocker(error: AgentdError) -> Blocker:
    return Blocker(
        f"{error.message}: {error.cause}" if error.cause else error.message, error.remediation
    )


def _weaker(manager: Manager) -> str:
    try:
        return _of(manager, SandboxSpec(isolation=IsolationLevel.PROCESS)).level
    except AgentdError:
        return ""
