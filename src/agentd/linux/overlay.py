"""Overlays (overlayfs) as anybody may mount them in a user namespace: Linux 5.11 and ``userxattr``.

https://docs.kernel.org/filesystems/overlayfs.html has the kernel's words. Standard library only.
"""

from collections.abc import Sequence

from agentd.linux import abi
from agentd.linux.kernel import Kernel

#: How whoever finds that one cannot be had begins to say so.
NONE = "no overlay of"
_NOSUID_NODEV = abi.MS_NOSUID | abi.MS_NODEV


def mount(target: str, lowers: Sequence[int], disk: str, kernel: Kernel) -> None:
    """Show at ``target`` what ``lowers`` hold, the first on top, to be changed: on ``disk``.

    ``lowers`` are descriptors of detached mounts, with a map of owners or without; they are
    attached below ``disk`` and not closed. ``disk`` is a directory that nothing else uses: its
    file system bounds what is written, and ``u`` in it holds the changes: a snapshot may have
    brought some. Raises OSError;
    EOVERFLOW comes later, from a change of what belongs to nobody whom that file system knows.
    """
    paths = []
    for index, fd in enumerate(lowers):
        paths.append(f"{disk}/{index}")
        kernel.make_folder(paths[-1], 0o700)
        kernel.move_mount(fd, "", abi.AT_FDCWD, paths[-1], abi.MOVE_MOUNT_F_EMPTY_PATH)
    mount_paths(target, paths, disk, kernel)


def mount_paths(target: str, lowers: Sequence[str], disk: str, kernel: Kernel) -> None:
    """Mounts layers that have a path already, without comma and colon. Raises OSError."""
    upper, work = f"{disk}/u", f"{disk}/k"
    for path in (upper, work):
        kernel.make_folder(path, 0o755)
    options = f"{_layers(lowers)},upperdir={upper},workdir={work}"
    kernel.mount("overlay", target, "overlay", _NOSUID_NODEV, options)


def mount_readonly(target: str, lowers: Sequence[str], kernel: Kernel) -> None:
    """Show two layers or more, of which none can be written. Raises OSError.

    The kernel asks whether who mounts it may read a file below, beside who opens it.
    """
    kernel.mount("overlay", target, "overlay", abi.MS_RDONLY | _NOSUID_NODEV, _layers(lowers))


def _layers(paths: Sequence[str]) -> str:
    # Without userxattr, what replaces a lower directory fails with EIO in a user namespace.
    return f"userxattr,lowerdir={':'.join(paths)}"
