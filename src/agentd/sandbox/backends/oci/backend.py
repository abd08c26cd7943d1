"""The ``oci`` backend: a runtime that the machine has, runc or crun, builds the wall."""

import os

from agentd.image.runtime.store import PLACE
from agentd.model.enforcement import Enforcement
from agentd.model.isolation import IsolationLevel
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux import image as images
from agentd.sandbox.backends.linux.born import room
from agentd.sandbox.backends.linux.cow import OverlayWall
from agentd.sandbox.backends.linux.disk import SandboxDisk
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.linux.wall import LinuxWall
from agentd.sandbox.backends.oci import config, report
from agentd.sandbox.backends.oci.container import Contained, ContainerBackend
from agentd.sandbox.backends.oci.request import Lent, has_image
from agentd.sandbox.backends.oci.runtimes import RUNTIMES

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_AGENT = "agentd.guest.zygote.contained"


class OciBackend(ContainerBackend[LinuxWall]):
    name = "oci"
    level = IsolationLevel.NAMESPACE
    known = RUNTIMES
    runtimes = tuple(RUNTIMES)
    images = True
    writable = True  # of an image
    abilities = frozenset({"changes", "pause", "snapshot", "fork"})
    fidelity = LinuxWall.fidelity

    def requirements(self) -> tuple[str, ...]:
        return (
            "runc or crun",
            "Linux 5.12 or newer",
            "user namespaces",
            "seccomp filters",
            "cgroups for memory and CPU limits",
        )

    def restore(self, plan: LinuxPlan, folder: str) -> LinuxWall:
        return self._build(plan, folder)

    def _bundle(self, plan: LinuxPlan, lent: Lent, block: Block | None) -> dict[str, object]:
        argv, files = config.agent_argv(), config.agent_files()
        if has_image(plan):
            agent = self._agents()
            argv, files = agent.argv((), _AGENT), ((agent.folder, PLACE),)
        made = config.of_plan(
            plan,
            lent.mounts(plan),
            own_users=block is not None,
            argv=argv,
            shown=lent.shown(plan),
            without=self._without,
        )
        return {"config": made, "agent": files}

    def _kind(self, plan: LinuxPlan) -> type[LinuxWall]:
        return OverlayWall if plan.cow else LinuxWall

    def _attach(self, wall: LinuxWall, plan: LinuxPlan, born: Contained, lent: Lent) -> None:
        attach(wall, plan, born, lent)

    def _enforcement(
        self, plan: LinuxPlan, controls: list[str], born: Contained, runtime: str, lent: Lent
    ) -> Enforcement:
        return report.enforcement(
            plan,
            controls,
            born.group,
            born.detail,
            runtime=runtime,
            own_user=born.block is not None,
            lent={loan.mount.target: loan.how for loan in lent.loans},
            image=None if lent.image is None else lent.image.image,
        )


def attach(wall: LinuxWall, plan: LinuxPlan, born: Contained, lent: Lent) -> None:
    """Give a wall its disk, its image, and what is beneath its copy-on-write workspace."""
    wall.attach_disk(SandboxDisk(born.disk, room(plan, lent.loans)))
    images.attach(lent.image, wall)
    if isinstance(wall, OverlayWall):
        wall.attach_source(os.open(".", _FOLDER, dir_fd=lent.loans[0].source))
