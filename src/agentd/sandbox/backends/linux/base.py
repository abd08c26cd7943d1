"""What the backends have in common whose walls are namespaces of this kernel's."""

import contextlib
import os
from collections.abc import Sequence

from agentd.model.errors import SandboxError
from agentd.sandbox.backends.cgroups import lacking
from agentd.sandbox.backends.child import Ended
from agentd.sandbox.backends.linux import image as images
from agentd.sandbox.backends.linux import report
from agentd.sandbox.backends.linux.cow import OverlayWall
from agentd.sandbox.backends.linux.disk import SandboxDisk
from agentd.sandbox.backends.linux.image import LinuxImageRoot
from agentd.sandbox.backends.linux.loans import Loan
from agentd.sandbox.backends.linux.network import SandboxNetwork
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.linux.wall import LinuxWall

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class NamespaceBackend:
    images = True
    writable = True
    volumes = True
    abilities = frozenset({"changes", "pause", "snapshot", "fork", "network"})
    fidelity = LinuxWall.fidelity

    @property
    def lacks(self) -> dict[str, str]:
        return lacking()

    def launch(self, plan: LinuxPlan) -> LinuxWall:
        return self._build(plan, None)

    def restore(self, plan: LinuxPlan, folder: str) -> LinuxWall:
        return self._build(plan, folder)

    def _build(self, plan: LinuxPlan, kept: str | None) -> LinuxWall:
        """``kept`` is the state of a snapshot, whose files it begins with."""
        try:
            return self._launch(plan, kept)
        except Ended:  # the process that makes sandboxes was killed: the next one will do
            return self._launch(plan, kept)
        except SandboxError as error:
            if (refused := report.refusal(plan.spec, error.cause)) is not None:
                raise refused from error
            raise

    def _launch(self, plan: LinuxPlan, kept: str | None) -> LinuxWall:
        """Raises Ended where the process that makes sandboxes is gone."""
        raise NotImplementedError


def beneath(plan: LinuxPlan, lent: Sequence[Loan], undo: contextlib.ExitStack) -> int | None:
    """Open the host's folder beneath a copy-on-write workspace, None without one. ``lent`` is what
    is mounted, the workspace first.

    Before there is a wall, as all that may fail: a wall closes what ``undo`` closes, too, and by
    then the number may be another's.
    """
    if not plan.cow:
        return None
    source = os.open(".", _FOLDER, dir_fd=lent[0].source)
    undo.callback(os.close, source)
    return source


def furnish(
    wall: LinuxWall,
    disk: SandboxDisk | None,
    network: SandboxNetwork | None,
    root: LinuxImageRoot | None,
    source: int | None,
) -> LinuxWall:
    """Give a new wall what it owns from then on. ``source`` is of ``beneath``."""
    wall.attach_disk(disk)
    wall.attach_network(network)
    images.attach(root, wall)
    if source is not None and isinstance(wall, OverlayWall):
        wall.attach_source(source)
    return wall
