"""The root of a sandbox that starts of an OCI image: its files, with places for ours on top.

Two layers that nobody writes to: directories of ours that something is mounted on, and the image.
So a link of the image's is nowhere in the way of a mount, and what the image lacks is there. But
for /etc: where that is a link, what it leads to stays to be seen, with files of ours in it. Runs in
the forked child. Standard library only.
"""

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from agentd.guest.zygote import cgroup_view
from agentd.guest.zygote.own_root import Target, enter_stage, mount_point
from agentd.guest.zygote.root import (
    CERTIFICATES,
    EMPTY_FILE,
    EMPTY_FOLDER,
    SANDBOX_HOME,
    STAGE,
    write,
)
from agentd.linux import abi, inside, overlay
from agentd.linux.kernel import KERNEL, Kernel

_NOSUID_NODEV = abi.MS_NOSUID | abi.MS_NODEV
_SCRATCH = ("/tmp", "/workspace", SANDBOX_HOME)
# As the shared root has them. Beside these three of ours it has parts of the host's there.
_SHARED = (
    *("/dev", "/proc", "/sys"),
    *(EMPTY_FILE, EMPTY_FOLDER, CERTIFICATES, cgroup_view.STATIC),
)
#: Where the sandbox's tmpfs is in a root without folders of ours.
SHM = "/dev/shm"
# Of the shared root, which has them as every sandbox does: names of hosts are the sandbox's own.
FILES = ("/etc/hosts", "/etc/resolv.conf")
# What is there of the image's is covered later.
_COVERED = ("/dev", "/proc", "/sys", "/.agentd")


def build(
    image: int,
    places: Iterable[Target],
    scratch: str | None,
    kernel: Kernel = KERNEL,
    *,
    bare: bool = False,
    shown: Sequence[str] = (),
) -> list[int]:
    """Make the root of a detached mount of the image's, and enter it. Raises OSError.

    ``places`` is what else is mounted, a path behind the image's links each. With ``scratch``,
    where the sandbox's tmpfs is mounted, the root can be written to, and what is lies on that. With
    ``bare`` there are no folders of ours: the tmpfs is at SHM then, for the steps to come.

    Returns detached mounts of ``shown``, folders of the image's, for what is to lie above them.
    """
    kernel.mount("tmpfs", STAGE, "tmpfs", _NOSUID_NODEV, "mode=0755,size=4m,nr_inodes=8k")
    top, below = f"{STAGE}/t", f"{STAGE}/i"
    for path in (top, below):
        kernel.mkdir(path, 0o755)
    kernel.move_mount(image, "", abi.AT_FDCWD, below, abi.MOVE_MOUNT_F_EMPTY_PATH)
    flags = abi.OPEN_TREE_CLONE | abi.OPEN_TREE_CLOEXEC
    lowers = [kernel.open_tree(abi.AT_FDCWD, below + path, flags) for path in shown]
    shared = [(path, os.path.isdir(path)) for path in _SHARED if os.path.exists(path)]
    root = os.open(below, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        etc = etc_at(root, covered(bare=bare))
        if bare:
            _make_like(top, etc, below)
        else:
            make_folders(top, etc, root)
    finally:
        os.close(root)
    make_places(top, (*shared, *places), dict(_files(etc)))
    try:
        if scratch:
            kernel.make_folder(f"{scratch}/r", 0o755)
            overlay.mount_paths(STAGE, (top, below), f"{scratch}/r", kernel)
        else:
            overlay.mount_readonly(STAGE, (top, below), kernel)
    except OSError as error:
        code = error.errno or errno.EINVAL
        raise OSError(code, f"{overlay.NONE} the image: {error.strerror}") from None
    for path, _ in shared:
        kernel.mount(path, STAGE + path, None, abi.MS_BIND | abi.MS_REC)
    if scratch:
        kernel.mount(scratch, STAGE + (SHM if bare else scratch), None, abi.MS_BIND)
    enter_stage(kernel)
    return lowers


def covered(*, bare: bool) -> tuple[str, ...]:
    """Return the folders that are of ours, whatever an image has there."""
    return _COVERED if bare else (*_COVERED, *_SCRATCH)


def etc_at(root: int, ours: Sequence[str]) -> str:
    """Return where files of ours go: the image's /etc, behind its links, or one of our own where
    they lead to no folder of the image's that is to be seen. ``ours`` are the folders that lie on
    top of it."""
    found = inside.Layered(root, ours).folder("/etc") or "/etc"
    return (
        "/etc" if f"{found}/".startswith(tuple(f"{path}/" for path in ours)) else found.rstrip("/")
    )


def make_folders(top: str, etc: str, root: int) -> None:
    """Make the directories of ours that every sandbox has; for a link of the image's that leads to
    a folder there is none, but where something is mounted."""
    seen = inside.Layered(root, _SCRATCH)
    for path in ("/run", "/var"):
        if seen.folder(path) in (None, path):
            os.makedirs(top + path, 0o755, exist_ok=True)
    for path in (*_SCRATCH, etc):
        os.makedirs(top + path, 0o755, exist_ok=True)


def _make_like(top: str, path: str, image: str) -> None:
    """With the modes that the image's have: what is written in one takes the folders along."""
    done = ""
    for part in path.strip("/").split("/"):
        done = f"{done}/{part}"
        os.makedirs(top + done, 0o755, exist_ok=True)
        if os.path.isdir(image + done) and not os.path.islink(image + done):
            os.chmod(top + done, os.lstat(image + done).st_mode & 0o7777)


def make_places(top: str, places: Iterable[Target], files: Mapping[str, bytes]) -> None:
    """Make the rest of the layer on top: ``files``, and what else is mounted on."""
    for path, data in files.items():
        write(top + path, data)
    for path, is_dir in places:
        mount_point(top + path, is_dir, shown=path)


def _files(etc: str) -> Iterator[tuple[str, bytes]]:
    for path in FILES:
        if os.path.exists(path):
            with open(path, "rb") as file:
                yield etc + path.removeprefix("/etc"), file.read(1 << 20)


def import_nothing() -> None:
    """Let this interpreter find no module any more: what it does not have yet would be the
    image's. The builtin ones, which are no files, stay."""
    sys.path.clear()
    sys.path_importer_cache.clear()
    sys.path_hooks.clear()
