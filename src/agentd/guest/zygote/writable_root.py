"""A root of one sandbox's own that can be written to: overlays, whose changes lie on its scratch.

Runs in the forked child. Standard library only.
"""

import errno
from collections.abc import Sequence

from agentd.guest.zygote import var
from agentd.guest.zygote.own_root import enter_stage
from agentd.guest.zygote.root import STAGE
from agentd.linux import abi, overlay
from agentd.linux.kernel import Kernel

_AS_THEY_ARE = ("/dev", "/proc", "/sys", var.BEHIND)


def build(layer: int, trees: Sequence[tuple[str, str]], scratch: str, kernel: Kernel) -> None:
    """Enter a root that shows ``layer``, a detached mount, and each of ``trees`` with its part of
    the layer on top (``zygote.layer.Layer``). ``scratch`` is where the sandbox's tmpfs is mounted,
    in the root of now and the next. Raises OSError."""
    disk = f"{scratch}/r"
    kernel.make_folder(disk, 0o755)
    kernel.make_folder(f"{disk}/t", 0o755)
    kernel.move_mount(layer, "", abi.AT_FDCWD, f"{disk}/t", abi.MOVE_MOUNT_F_EMPTY_PATH)
    _mount("", [f"{disk}/t"], f"{disk}/root", kernel)
    for source, path in trees:
        # By its name: a snapshot's goes to the same tree again.
        name = path[1:].replace("-", "--").replace("/", "-")
        _mount(path, [f"{disk}/t{path}", source], f"{disk}/o-{name}", kernel)
    for path in _AS_THEY_ARE:
        kernel.mount(path, STAGE + path, None, abi.MS_BIND | abi.MS_REC)
    kernel.mount(scratch, STAGE + scratch, None, abi.MS_BIND)
    enter_stage(kernel)


def _mount(path: str, lowers: Sequence[str], disk: str, kernel: Kernel) -> None:
    kernel.make_folder(disk, 0o755)
    try:
        overlay.mount_paths(STAGE + path, lowers, disk, kernel)
    except OSError as error:
        code = error.errno or errno.EINVAL
        raise OSError(code, f"{overlay.NONE} {path or '/'}: {error.strerror}") from None
