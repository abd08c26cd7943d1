"""What a clone does that is made ahead of the requests for it, and which it can serve."""

import os
import socket
from collections.abc import Sequence

from agentd.guest.zygote.messages import MAX_MESSAGE
from agentd.linux import landlock
from agentd.model.mount import WORKSPACE
from agentd.sandbox.backends import shared
from agentd.sandbox.backends.child import send
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux.image import LinuxImageRoot
from agentd.sandbox.backends.linux.loans import Lender, Loan
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.linux.spares import SpareKind
from agentd.sandbox.backends.users import parse_user


def kind_of(plan: LinuxPlan, lent: Sequence[Loan], root: LinuxImageRoot | None) -> SpareKind | None:
    """Of which kind a clone must be to serve the request; None where it takes one of its own.

    Those of a kind differ in what is left to the request: limits, name, environment, and what is
    mounted where no root has to be made for it.
    """
    if plan.cow or plan.bare or any(loan.copy is not None for loan in lent):
        return None
    if root is not None:
        elsewhere = any(mount.target != WORKSPACE for mount in plan.mounts)
        kind = SpareKind(plan.uid, plan.spec.writable, root.files(), mounted=bool(plan.mounts))
        return None if elsewhere else kind
    special = plan.private_root or plan.spec.writable or plan.uid != parse_user(None)
    return None if special else SpareKind(plan.uid)


def common(plan: LinuxPlan, *, machine_root: bool) -> dict[str, object]:
    """Return what a clone needs to prepare for requests of the plan's kind, but for its root."""
    return {
        "uid": plan.uid,
        "net": plan.spec.net,
        "disk": plan.limits.disk,
        "inodes": plan.inodes,
        "scratch_fd": None,
        "user_counts": shared.user_counts(),
        "machine_root": machine_root,
        "landlock_abi": landlock.abi_version(),
    }


def prepare(
    message: dict[str, object],
    lender: Lender,
    plan: LinuxPlan,
    root: LinuxImageRoot | None,
    listener: socket.socket,
    block: Block | None,
) -> None:
    """Send ``message`` to a clone that is being made, with the root that its kind has.

    Raises SandboxError, and Refused for an image with links in a circle."""
    fds: list[int] = []
    try:
        if root is not None:
            message["image"] = root.request(1, plan)
            message["mounts"] = [{"target": mount.target} for mount in plan.mounts]
            fds.append(root.mount(lender, block))
        send(listener, message, fds, "sandbox", MAX_MESSAGE)
    finally:
        for fd in fds:
            os.close(fd)
