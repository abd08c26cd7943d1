"""The root of a virtual machine's sandbox that starts of an OCI image: a disk, with ours on top.

Layers, the first on top: what is written, on the sandbox's tmpfs, where it may be; directories of
ours that something is mounted on; the image, a disk that the monitor lets nobody write. So a link
of the image's is nowhere in the way of a mount, and what the image lacks is there. The machine's
own root stays as it was: the agent leaves it, and all that it starts.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from agentd.guest import vm_scratch
from agentd.guest.zygote.image_root import covered, etc_at, make_folders
from agentd.guest.zygote.own_root import mount_point
from agentd.guest.zygote.root import write
from agentd.linux import abi, overlay
from agentd.linux.kernel import KERNEL, Kernel

_STATE = vm_scratch.STATE
_IMAGE, _TOP, ROOT = f"{_STATE}/image", f"{_STATE}/top", f"{_STATE}/root"
_FILE_SYSTEM = "erofs"
_BLOCK = "/sys/block"
_NOSUID_NODEV = abi.MS_NOSUID | abi.MS_NODEV
# Of the machine: what is mounted in them comes along. The agent's state, which is not in /run then.
_SHARED = ("/dev", "/proc", "/sys")
#: Writable places.
SCRATCH = ("/tmp", vm_scratch.HOME, vm_scratch.WORKSPACE)
# Each is put in place later, as the machine is told who it is.
_FILES = ("/etc/hosts", "/etc/hostname", "/etc/machine-id", "/etc/resolv.conf")


class Shared(NamedTuple):
    """A directory of the host's, by the tag of its device; ``target`` is behind no link."""

    tag: str
    target: str
    readonly: bool


def build(
    serial: str,
    *,
    writable: bool,
    places: Iterable[tuple[str, bool]],
    shares: Sequence[Shared],
    shown: Sequence[str] = (),
    kernel: Kernel = KERNEL,
) -> None:
    """Mount it at ``ROOT``. Raises OSError: ENODEV where a device is not found, perhaps not yet.

    ``serial`` is the disk's; ``places`` is what is mounted on, or begun in, a path behind the
    image's links each, and whether it is a directory; ``shown`` are writable places where the image
    has something. Nothing is left mounted where it fails.
    """
    disk = find(serial)
    with contextlib.ExitStack() as undo:
        _mount_image(disk, undo, kernel)
        _on(_TOP, "tmpfs", "tmpfs", _NOSUID_NODEV, "mode=0755,size=4m,nr_inodes=8k", undo, kernel)
        _make_places(places)
        os.makedirs(ROOT, 0o755, exist_ok=True)
        try:
            if writable:
                overlay.mount_paths(ROOT, (_TOP, _IMAGE), vm_scratch.UPPER, kernel)
            else:
                overlay.mount_readonly(ROOT, (_TOP, _IMAGE), kernel)
        except OSError as error:
            # ENODEV is of a device that may come; a file system will not.
            raise OSError(errno.EOPNOTSUPP, f"no overlay of the image: {error.strerror}") from None
        undo.callback(kernel.umount, ROOT, abi.MNT_DETACH)
        for path in (*_SHARED, *SCRATCH):
            if path in shown:
                vm_scratch.show(path, _IMAGE + path, ROOT, kernel)
            else:
                kernel.mount(path, ROOT + path, None, abi.MS_BIND | abi.MS_REC)
        kernel.mount(_STATE, ROOT + _STATE, None, abi.MS_BIND)
        for share in shares:
            _mount_share(share, kernel)
        undo.pop_all()


def enter(kernel: Kernel = KERNEL) -> None:
    """Leave the machine's root for it, in a mount namespace of this process. Raises OSError.

    It is moved onto the old one: that is the kernel's initial root file system, which pivot_root(2)
    does not leave.
    """
    kernel.unshare(abi.CLONE_NEWNS)
    kernel.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
    os.chdir(ROOT)
    kernel.mount(".", "/", None, abi.MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def find(serial: str) -> str:
    """Finds the path of the disk that has it. Raises OSError, ENODEV where none has."""
    for name in os.listdir(_BLOCK):
        with contextlib.suppress(OSError), open(f"{_BLOCK}/{name}/serial", "rb") as file:
            if file.read(64).strip() == serial.encode() and os.path.exists(f"/dev/{name}"):
                return f"/dev/{name}"
    raise OSError(errno.ENODEV, f"no disk {serial}")


def _mount_image(disk: str, undo: contextlib.ExitStack, kernel: Kernel) -> None:
    flags = abi.MS_RDONLY | _NOSUID_NODEV
    try:
        _on(_IMAGE, disk, _FILE_SYSTEM, flags, None, undo, kernel)
    except OSError as error:
        why = "the kernel has none" if error.errno == errno.ENODEV else error.strerror
        raise OSError(errno.EOPNOTSUPP, f"no {_FILE_SYSTEM} of the image: {why}") from None


def _on(
    target: str,
    source: str,
    kind: str,
    flags: int,
    options: str | None,
    undo: contextlib.ExitStack,
    kernel: Kernel,
) -> None:
    os.makedirs(target, 0o755, exist_ok=True)
    kernel.mount(source, target, kind, flags, options)
    undo.callback(kernel.umount, target, abi.MNT_DETACH)


def _make_places(places: Iterable[tuple[str, bool]]) -> None:
    root = os.open(_IMAGE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        etc = etc_at(root, (*covered(bare=False), _STATE))
        make_folders(_TOP, etc, root)
    finally:
        os.close(root)
    for path in (*_SHARED, _STATE):
        os.makedirs(_TOP + path, 0o755, exist_ok=True)
    for path in _FILES:
        write(_TOP + etc + path.removeprefix("/etc"), b"")
    for path, is_dir in places:
        mount_point(_TOP + path, is_dir, shown=path)


def _mount_share(share: Shared, kernel: Kernel) -> None:
    flags = _NOSUID_NODEV | (abi.MS_RDONLY if share.readonly else 0)
    try:
        kernel.mount(share.tag, ROOT + share.target, "virtiofs", flags)
    except OSError as error:
        if error.errno == errno.EINVAL:  # there is no such tag (virtio_fs_get_tree() in the kernel)
            raise OSError(errno.ENODEV, f"no device {share.tag}") from None
        raise
