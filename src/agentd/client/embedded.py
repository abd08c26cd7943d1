"""The daemon's pipeline in this very process: the only place of the client that imports it."""

import atexit
import os
import threading
from typing import TYPE_CHECKING

from agentd.daemon.execution import Execution
from agentd.daemon.pipeline import Pipeline
from agentd.sandbox.manager import Manager, SandboxHandle

if TYPE_CHECKING:
    from agentd.daemon.doctor import Finding

__all__ = ["Execution", "Pipeline", "SandboxHandle", "new", "principal", "shared"]

_lock = threading.Lock()
_shared: Pipeline | None = None


def new() -> Pipeline:
    """The caller closes its ``manager``."""
    return Pipeline(Manager())


def shared() -> Pipeline:
    """One for the whole process, closed when it exits; a forked child gets its own."""
    global _shared  # noqa: PLW0603  one zygote a process, however many sandboxes
    with _lock:
        if _shared is None or not _shared.manager.ours:
            _shared = new()
            atexit.register(_shared.manager.close)
        return _shared


def principal() -> str:
    """Whoever runs this process: the kernel has authenticated them already."""
    return f"uid:{os.geteuid()}"


def doctor() -> tuple[list["Finding"], dict[str, object]]:
    """Every backend's finding, and the facts of the machine."""
    from agentd.daemon import doctor

    return doctor.findings(), doctor.machine()
