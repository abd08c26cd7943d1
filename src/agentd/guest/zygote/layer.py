"""What a writable root begins as: the shared root again, owned by who may change it.

Made once, by the zygote, on a tmpfs that no sandbox writes to; each sandbox's overlays have it as
their lower layer. /etc and what is small beside it is copied. Of the trees that are too large, the
programs above all, it has the directories alone, and lies over them: so root of a sandbox may make,
replace and remove what is in them, while the host's files stay the host's, and what only the
host's root may read stays unread. Standard library only.
"""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from agentd.guest.zygote import accounts, var
from agentd.linux import abi, idmap, mounts, overlay, process
from agentd.linux.kernel import KERNEL

#: Where it is mounted in the zygote: every sandbox has its scratch tmpfs on top.
PLACE = "/workspace"
_OPTIONS = "mode=0755,size=96m,nr_inodes=64k"
# Of one tree that is copied, and of all directories of one that is not.
_MOST_FILES = 4096
_MOST_BYTES = 8 << 20
_MOST_FOLDERS = 40_000
# As hier(7) has them: whoever may write to a root installs into these without making them first.
_EXPECTED = ("/media", "/mnt", "/opt", "/root", "/srv")
# Of the kernel, or of each sandbox's own.
_OTHERS = frozenset({"/dev", "/proc", "/sys", "/tmp", var.BEHIND, PLACE})


class Layer:
    """``trees`` are those that are not copied, and need overlays of their own: where they are in
    the zygote's root, and where in the sandbox's."""

    def __init__(self) -> None:
        """Takes a fifth of a second, and 10 MiB of memory. Raises OSError, also where something is
        mounted in one of the trees: no overlay shows that."""
        points = [path for path in mounts.points() if not _is_other(path) and path != "/"]
        self.trees: list[tuple[str, str]] = []
        KERNEL.mount("tmpfs", PLACE, "tmpfs", abi.MS_NOSUID | abi.MS_NODEV, _OPTIONS)
        try:
            self._copy("/", frozenset(points))
            for path in _EXPECTED:
                os.makedirs(PLACE + path, 0o755, exist_ok=True)
            _walk(accounts.PLACE, PLACE, _copy_file)
            for name in ("shadow", "gshadow"):
                os.chmod(f"{PLACE}/etc/{name}", 0o600)
            KERNEL.mount_setattr(abi.AT_FDCWD, PLACE, 0, set_=abi.MOUNT_ATTR_RDONLY)
        except BaseException:
            KERNEL.umount(PLACE, abi.MNT_DETACH)
            raise

    def lent(self, id_: int | None) -> int:
        """Opens a detached mount, whose owner is ``id_`` of the zygote's namespace, or the caller.
        Raises OSError."""
        if id_ is None:
            return mounts.clone_tree(PLACE, readonly=True)
        line = f"0 {id_} 1"
        process.set_dumpable(True)  # otherwise the maps are the machine's root's to write
        try:
            userns = idmap.nested_namespace(line, line)
        finally:
            process.set_dumpable(False)
        try:
            return mounts.clone_tree(PLACE, readonly=True, idmap_fd=userns)
        finally:
            os.close(userns)

    def _copy(self, folder: str, points: frozenset[str]) -> None:
        for entry in sorted(os.scandir(folder), key=lambda found: found.name):
            path, target = entry.path, PLACE + entry.path
            source = os.readlink(path) if entry.is_symlink() else path
            if path in _OTHERS:
                _make(path, target)
            elif source in points or source.startswith(f"{var.BEHIND}/"):
                self._tree(source, path, points)
            elif entry.is_dir(follow_symlinks=False):
                _make(path, target)
                self._copy(path, points)
            else:
                _copy_file(path, target)

    def _tree(self, source: str, path: str, points: frozenset[str]) -> None:
        inner = next((point for point in points if point.startswith(f"{source}/")), None)
        if inner is not None:
            raise OSError(errno.EINVAL, f"{overlay.NONE} {path}: {inner} is a mount")
        _make(source, PLACE + path)
        small = _is_small(source)
        _walk(source, PLACE + path, _copy_file if small else None)
        if not small:
            self.trees.append((source, path))


def _is_other(path: str) -> bool:
    return any(path == other or path.startswith(f"{other}/") for other in _OTHERS)


def _is_small(path: str) -> bool:
    files = size = 0
    for folder, folders, names in os.walk(path):
        files += len(folders) + len(names)
        if files > _MOST_FILES:
            return False
        for name in names:
            with suppress(OSError):
                size += os.lstat(f"{folder}/{name}").st_size
        if size > _MOST_BYTES:
            return False
    return True


def _walk(top: str, target: str, copy: Callable[[str, str], None] | None) -> None:
    """Make what is below ``top`` again: directories that everybody may enter, and with ``copy``
    what else there is."""
    count = 0
    for folder, folders, names in os.walk(top):
        links = [name for name in folders if os.path.islink(f"{folder}/{name}")]
        folders[:] = [n for n in folders if n not in links and _is_open(f"{folder}/{n}")]
        count += len(folders)
        if count > _MOST_FOLDERS:
            return  # what is deeper is there all the same, as the host's
        there = target + folder.removeprefix(top)
        for name in folders:
            _make(f"{folder}/{name}", f"{there}/{name}")
        for name in [*links, *names] if copy is not None else ():
            assert copy is not None  # noqa: S101  (for the type checker)
            copy(f"{folder}/{name}", f"{there}/{name}")


def _is_open(path: str) -> bool:
    """Return whether everybody may list and enter it. Another one is left as it is."""
    return os.lstat(path).st_mode & 0o005 == 0o005


def _make(path: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    os.chmod(target, stat.S_IMODE(os.lstat(path).st_mode) & 0o1777)


def _copy_file(path: str, target: str) -> None:
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(path), target)
        return
    if not stat.S_ISREG(found.st_mode):
        return
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # not to be read by everybody
        return
    with open(source, "rb") as file, open(target, "wb") as copy:
        copy.write(file.read())
        os.fchmod(copy.fileno(), stat.S_IMODE(found.st_mode) & 0o777)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
