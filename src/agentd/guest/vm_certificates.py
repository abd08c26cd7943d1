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


def show(authority: str, kernel: Kernel = KERNEL) -> None:
    """Shows ``authority``, PEM, to programs; an empty one leaves what the root has. Raises
    OSError."""
    found = certificates.places()
    own = []
    for name, covered in found.items():
        kept = f"{vm_scratch.STATE}/own-{os.path.basename(name)}"  # what is behind mounts then
        if not os.path.exists(kept):
            vm_scratch.write(kept, certificates.read(covered))
        own.append(certificates.read([kept]))
    made = certificates.contents(own, authority)
    os.makedirs(_FOLDER, 0o755, exist_ok=True)
    for name, content in made.items():
        vm_scratch.write(f"{_FOLDER}/{os.path.basename(name)}", content)
    os.makedirs(CERTIFICATES, 0o755, exist_ok=True)
    if not os.path.samefile(_FOLDER, CERTIFICATES):
        kernel.mount(_FOLDER, CERTIFICATES, None, abi.MS_BIND)
        kernel.mount(None, CERTIFICATES, None, abi.MS_REMOUNT | abi.MS_BIND | abi.MS_RDONLY)
    for name in made:
        for place in found[name]:
            if not os.path.samefile(name, place):
                kernel.mount(name, place, None, abi.MS_BIND)
