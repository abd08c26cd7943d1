"""A sandbox's disk: one tmpfs, bounded in bytes and inodes, seen at every writable place.

It is mounted on the workspace, and its own subdirectory is put on top at the end, so that nothing
but the subdirectories can be reached (``stack`` has what lies on it). Standard library only.
"""

import contextlib
import os
from collections.abc import Mapping

from agentd.guest.zygote import stack, var
from agentd.guest.zygote.asked import Request, dicts, number
from agentd.guest.zygote.image_root import SHM
from agentd.guest.zygote.root import SANDBOX_HOME
from agentd.guest.zygote.wall_kernel import WallKernel
from agentd.linux import abi, overlay

WORKSPACE = "/workspace"
# Writable places. Each is a directory of one tmpfs, so that one size bounds them all.
_SCRATCH = (("t", "/tmp", 0o1777), ("h", SANDBOX_HOME, 0o755), ("s", SHM, 0o1777))
_VAR = [top.strip("/") for top in var.TOPS]
QUEUES = "/dev/mqueue"
# All sandboxes of the machine have some 3000 together (kernel.pty.max).
_MAX_TERMINALS = 512
_NOTHING: Mapping[str, int] = {}
_NOSUID_NODEV = abi.MS_NOSUID | abi.MS_NODEV


def build(
    box: Request,
    fds: list[int],
    coming: list[int],
    kernel: WallKernel,
    lowers: Mapping[str, int] = _NOTHING,
) -> None:
    """Mount it. What it opens of it, for the host to take snapshots by, is added to ``fds``, and
    ``coming`` gets what a fork will show. ``lowers`` are what an image has at a writable place."""
    if not is_writable(box):  # a writable root has it already
        mount(box, fds, kernel)
    view = SHM if is_bare(box) else WORKSPACE
    disk = kernel.open_folder(view)
    if box.get("shared") is not None:
        view = stack.mount_shared(fds[number(box["shared"])], WORKSPACE, kernel)
    for name, target, mode in _SCRATCH:
        if target == SHM or not is_bare(box):
            _show(name, target, mode, view, lowers, kernel)
    if not is_writable(box) and not box.get("image"):
        _own_var(view, kernel)
    fds.append(disk)
    if _is_stackable(box) and not lowers:
        kernel.make_folder(f"{view}/w", 0o755)
        places = [name for name in stack.PLACES if not box.get("image") or name not in _VAR]
        coming.extend(stack.prepare(WORKSPACE, places, size(box), kernel))
        if coming:
            fds.append(kernel.open_mount_namespace())
    devpts = f"newinstance,ptmxmode=0666,mode=0620,max={_MAX_TERMINALS}"
    kernel.mount("devpts", "/dev/pts", "devpts", abi.MS_NOSUID | abi.MS_NOEXEC, devpts)
    # Of this ipc namespace. A kernel may be built without message queues.
    with contextlib.suppress(OSError):
        kernel.mount("mqueue", QUEUES, "mqueue", _NOSUID_NODEV | abi.MS_NOEXEC)


def _own_var(view: str, kernel: WallKernel) -> None:
    """/var and /run, on the scratch tmpfs: for who has no root to write to."""
    found = var.contents()
    new = tuple(f"{top}/" for top in var.TOPS if kernel.make_folder(f"{view}{top}", 0o755))
    for path, mode in found.folders:
        if path.startswith(new):
            kernel.mkdir(f"{view}{path}", mode)
    for path, target in found.links:
        if path.startswith(new):
            kernel.symlink(target, f"{view}{path}")
    for top in var.TOPS:
        kernel.mount(f"{view}{top}", top, None, abi.MS_BIND)


def mount(box: Request, fds: list[int], kernel: WallKernel) -> None:
    if box["scratch_fd"] is None:
        options = f"mode=0755,{size(box)}"
        kernel.mount("tmpfs", WORKSPACE, "tmpfs", _NOSUID_NODEV, options)
    else:
        fd = fds[number(box["scratch_fd"])]
        kernel.move_mount(fd, "", abi.AT_FDCWD, WORKSPACE, abi.MOVE_MOUNT_F_EMPTY_PATH)


def size(box: Request) -> str:
    return f"size={box['disk']},nr_inodes={box['inodes']}"


def resize(box: Request, kernel: WallKernel) -> None:
    """Resizes one that is mounted already."""
    flags = abi.MS_REMOUNT | _NOSUID_NODEV
    # Where nothing of an image's is below, and so no overlay in the way.
    kernel.mount("tmpfs", SHM, "tmpfs", flags, size(box))


def show_workspace(box: Request, kernel: WallKernel, lowers: Mapping[str, int] = _NOTHING) -> None:
    """Shows a directory of it, on top of the tmpfs itself."""
    view = f"{WORKSPACE}/{stack.MERGED}" if box.get("shared") is not None else WORKSPACE
    _show("w", WORKSPACE, 0o755, view, lowers, kernel)


def _show(
    name: str, target: str, mode: int, view: str, lowers: Mapping[str, int], kernel: WallKernel
) -> None:
    """A directory of it at a writable place; above what the image has there, changes of that. An
    older snapshot has brought a directory all the same."""
    if name not in lowers or os.path.isdir(f"{view}/{name}"):
        kernel.make_folder(f"{view}/{name}", mode)
        kernel.mount(f"{view}/{name}", target, None, abi.MS_BIND)
        return
    own = f"{view}/{stack.ABOVE}{name}"
    kernel.make_folder(own, 0o755)
    kernel.make_folder(f"{own}/u", mode)
    overlay.mount(target, [lowers[name]], own, kernel)


def is_writable(box: Request) -> bool:
    """Tells whether all of the root can be written to, on the scratch tmpfs."""
    image = box.get("image")
    return bool(box.get("layer")) or (isinstance(image, dict) and bool(image["writable"]))


def is_bare(box: Request) -> bool:
    """Tells whether all of its root is an image's: it has no folders of ours but SHM."""
    image = box.get("image")
    return isinstance(image, dict) and bool(image.get("bare"))


def _is_stackable(box: Request) -> bool:
    """Whether a fork may share what is on its disk: nothing else is over or below that."""
    alone = box.get("shared") is None and not box.get("cow") and not dicts(box.get("mounts"))
    return alone and not is_writable(box)
