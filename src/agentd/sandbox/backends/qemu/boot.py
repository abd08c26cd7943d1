"""What a machine of QEMU's starts from."""

import os
from typing import NamedTuple

from agentd.linux import kvm
from agentd.model.errors import SandboxError
from agentd.model.system import os_errors_as


class Boot(NamedTuple):
    """The files that a machine starts from, as paths; ``digest`` is the image's, which is
    ``foreign`` where its agent is not ours.
    """

    program: str
    kernel: str
    initramfs: str
    digest: str
    foreign: bool = False


class StateRefused(SandboxError):
    """QEMU cannot go on from a state."""


def open_kvm() -> int:
    """Open it with our rights, as the probe did: its mode is no matter of the monitor's."""
    with os_errors_as(
        SandboxError,
        f"cannot open {kvm.DEVICE}",
        "agentd doctor says what KVM lacks; then start agentd again",
    ):
        return os.open(kvm.DEVICE, os.O_RDWR | os.O_CLOEXEC)
