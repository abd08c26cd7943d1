"""The certificates that programs of a machine trust whose connections are read: those of its root,
and of an authority of its own. What they are elsewhere says ``zygote.certificates``.

A copy of a machine begins with its source's memory, and has another authority: the one file is
written anew where it is, so that whoever opens it from then on, by whatever mount, finds the
copy's.
"""

import os

from agentd.guest import vm_scratch
from agentd.guest.zygote import certificates
from agentd.guest.zygote.root import CERTIFICATES
from agentd.linux import abi
from agentd.linux.kernel import KERNEL, Kernel

_FOLDER = f"{vm_scratch.STATE}/certificates"
_SYSTEMS = f"{vm_scratch.STATE}/system.pem"  # as the root has them, which are behind mounts then


def show(authority: str, kernel: Kernel = KERNEL) -> None:
    """``authority`` is PEM; an empty one leaves what the root has. Raises OSError."""
    places = certificates.places()
    if not os.path.exists(_SYSTEMS):
        vm_scratch.write(_SYSTEMS, certificates.bundle(next(iter(places), None), ""))
    os.makedirs(_FOLDER, 0o755, exist_ok=True)
    name = os.path.basename(certificates.BUNDLE)
    vm_scratch.write(f"{_FOLDER}/{name}", certificates.bundle(_SYSTEMS, authority))
    os.makedirs(CERTIFICATES, 0o755, exist_ok=True)
    if not os.path.samefile(_FOLDER, CERTIFICATES):
        kernel.mount(_FOLDER, CERTIFICATES, None, abi.MS_BIND)
        kernel.mount(None, CERTIFICATES, None, abi.MS_REMOUNT | abi.MS_BIND | abi.MS_RDONLY)
    for place in places:
        if not os.path.samefile(certificates.BUNDLE, place):
            kernel.mount(certificates.BUNDLE, place, None, abi.MS_BIND)
