"""A machine as it was when its agent first answered, in one file, so that the next is not booted.

The memory comes first, at its size, for Firecracker maps that much of its file and no more; what
it calls the state follows.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from agentd.model.errors import SandboxError
from agentd.sandbox.backends.firecracker import config, snapshot
from agentd.sandbox.backends.firecracker.plan import FirecrackerPlan
from agentd.sandbox.backends.firecracker.process import FirecrackerProcess
from agentd.sandbox.backends.firecracker.version import Version
from agentd.sandbox.backends.vm.ceiling import Ceiling
from agentd.sandbox.backends.vm.template import PARTIAL


class NotKept(SandboxError):
    """There is no template, and the machine that it was to be made of has been ended."""


def key(plan: FirecrackerPlan, version: Version, image: str) -> str:
    """Return the key of a template: all that it depends on."""
    about = snapshot.of(plan, version, image)
    parts = (about.version, about.cpu, about.image, about.memory, about.vcpus, config.ARGUMENTS)
    return " ".join(map(str, ("firecracker", *parts)))


def write(monitor: FirecrackerProcess, ceiling: Ceiling, memory: int, target: int) -> None:
    """Keep the state of a machine that was told nothing yet. It goes on; its connections do not.

    Raises NotKept.
    """
    try:
        ceiling.check_room(monitor.jail.root, memory)
        with ceiling.raised(memory):
            _write(monitor, memory, target)
    except SandboxError as error:
        raise NotKept("no template could be kept", cause=str(error)) from error


def _write(monitor: FirecrackerProcess, memory: int, target: int) -> None:
    try:
        snapshot.take(monitor, memory)
        snapshot.pack(monitor.root, target, memory)
    finally:
        with contextlib.suppress(OSError):
            snapshot.discard(monitor.root)


@contextlib.contextmanager
def binds(state: int, memory: int, folder: str) -> Iterator[dict[str, str]]:
    """Name the files for the jail that is restored into. ``state`` is a template, open to read."""
    # It must have a name to be bound (move_mount(2)); what a killed process leaves goes with the
    # other partial files there.
    with tempfile.NamedTemporaryFile(dir=folder, suffix=PARTIAL) as file:
        os.fchmod(file.fileno(), 0o444)
        snapshot.copy_rest(state, file.fileno(), memory)
        paths = {config.STATE: file.fileno(), config.MEMORY: state}
        yield {name: f"/proc/self/fd/{fd}" for name, fd in paths.items()}
