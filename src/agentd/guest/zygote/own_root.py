"""A root of one sandbox's own: the shared one again, with places for mounts in it.

The shared root is read-only, and a directory made in it would be seen by the other sandboxes. Runs
in the forked child. Standard library only.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Sequence

from agentd.guest.zygote.root import EMPTY_FOLDER, STAGE, write
from agentd.linux import abi, mounts, overlay
from agentd.linux.kernel import KERNEL, Kernel

# Of a directory in which a mount gets its place, each entry is a mount of its own.
_MAX_ENTRIES = 1024
_NOSUID_NODEV = abi.MS_NOSUID | abi.MS_NODEV

Target = tuple[str, bool]  # where a mount goes, and whether it is a directory


def build(
    targets: Sequence[Target], writable: Sequence[str], private: bool, kernel: Kernel = KERNEL
) -> None:
    """Make the root again, enter it, and make it read-only. Raises OSError.

    A target in one of the ``writable`` places gets its place there, later. With ``private`` what is
    of the host in the root is not shared with others (``make_private``).
    """
    places = [(_resolved(target), is_dir) for target, is_dir in targets]
    inside = tuple(f"{path}/" for path in writable)
    places = [p for p in places if p[0] not in writable and not p[0].startswith(inside)]
    kernel.mount("tmpfs", STAGE, "tmpfs", _NOSUID_NODEV, "mode=0755,size=4m,nr_inodes=8k")
    _Copy(_opened(path for path, _ in places), private, kernel).again("/")
    for path, is_dir in places:
        mount_point(STAGE + path, is_dir, shown=path)
    enter_stage(kernel)
    kernel.mount_setattr(abi.AT_FDCWD, "/", 0, set_=abi.MOUNT_ATTR_RDONLY)


def enter_stage(kernel: Kernel) -> None:
    """Leave the root for the one that was built on top of it."""
    os.chdir(STAGE)
    kernel.pivot_root(".", ".")
    kernel.umount(".", abi.MNT_DETACH)
    os.chdir("/")


def mount_point(target: str, is_dir: bool, *, shown: str = "") -> None:
    """Make what a mount is put on, where it is not there yet. Raises OSError: ENOTDIR or EISDIR
    where something else is there, which is named as it is ``shown`` inside."""
    above = target if is_dir else os.path.dirname(target)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        os.makedirs(above, 0o755, exist_ok=True)
        if not is_dir:
            with contextlib.suppress(FileExistsError):  # in a private root it is read-only
                os.close(os.open(target, flags, 0o644))
    except (FileExistsError, NotADirectoryError):
        if not os.path.lexists(target):
            raise OSError(errno.ENOTDIR, "a file is on its way", shown or target) from None
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        # As where something else is there: the host tells it as the caller's to mend.
        why = "nothing can be made in the host's own folder that it is in"
        raise OSError(errno.ENOTDIR, why, shown or target) from None
    found = os.lstat(target).st_mode
    if is_dir and not stat.S_ISDIR(found):
        what = "link" if stat.S_ISLNK(found) else "file"
        raise OSError(errno.ENOTDIR, f"no folder goes where a {what} is", shown or target)
    if not is_dir and stat.S_ISDIR(found):
        raise OSError(errno.EISDIR, "no file goes where a folder is", shown or target)


def _resolved(target: str) -> str:
    """Return the path behind the links on the way: /var/run/x is /run/x."""
    folder, name = os.path.split(target)
    return os.path.join(os.path.realpath(folder), name)


def _opened(places: Iterable[str]) -> frozenset[str]:
    """Return the directories that are there, and in which a place is: they are made anew."""
    above = {path[:end] or "/" for path in places for end in _slashes(path)}
    return frozenset(path for path in above if os.path.isdir(path))


def _slashes(path: str) -> list[int]:
    return [index for index, letter in enumerate(path) if letter == "/"]


class _Copy:
    """Makes the parts of the root again below the stage."""

    def __init__(self, opened: frozenset[str], private: bool, kernel: Kernel) -> None:
        self._opened = opened
        self._private = private
        self._kernel = kernel
        self._mounted = frozenset(mounts.points())

    def again(self, path: str, of_the_host: bool = False) -> None:
        """Make the entries of a directory again. Raises OSError, also for too many of them."""
        of_the_host = of_the_host or (path != "/" and path in self._mounted)
        if of_the_host:
            self._check(path)
        for entry in os.scandir(path):
            target = STAGE + entry.path
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), target)
            elif entry.path == STAGE:
                os.mkdir(target, 0o755)
            elif entry.path in self._opened:
                os.mkdir(target, 0o755)
                self.again(entry.path, of_the_host)
            elif self._private and entry.path not in ("/dev", "/proc", "/sys"):
                make_private(entry.path, target, self._kernel)
            else:
                mount_point(target, entry.is_dir())
                self._kernel.mount(entry.path, target, None, abi.MS_BIND | abi.MS_REC)

    def _check(self, path: str) -> None:
        """Of one of the host's own: all that is in it would have to be mounted one by one."""
        if self._private:
            why = "nothing can be mounted in it with sandbox.private_programs"
        elif len(os.listdir(path)) > _MAX_ENTRIES:
            why = f"it has more than {_MAX_ENTRIES} entries, so nothing can be mounted in it"
        else:
            return
        # As where something else is there: the host tells it as the caller's to mend.
        raise OSError(errno.ENOTDIR, why, path)


def make_private(path: str, target: str, kernel: Kernel = KERNEL) -> None:
    """Make a part of the root again at ``target``: behind overlays what is mounted, else a copy.

    The files are then others, to inotify and to file locks, than those which the host and other
    sandboxes use. Raises OSError, also for a mount in another: no overlay can be had of that.
    """
    _make_again(path, target, frozenset(mounts.points()), kernel)


def _make_again(path: str, target: str, mounted: frozenset[str], kernel: Kernel) -> None:
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
    elif not os.path.isdir(path):
        with open(path, "rb") as file:
            write(target, file.read())
    else:
        os.mkdir(target)
        if path in mounted:
            _overlay(path, target, kernel)
            return
        for name in os.listdir(path):
            _make_again(f"{path}/{name}", f"{target}/{name}", mounted, kernel)


def _overlay(path: str, target: str, kernel: Kernel) -> None:
    # Two directories make one that is read-only; the empty one adds nothing.
    try:
        overlay.mount_readonly(target, (EMPTY_FOLDER, path), kernel)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: no overlay of {path}, perhaps as something is mounted in it; "
            "leave sandbox.private_programs out",
        ) from None
