"""What is looked at before the changes of a copy-on-write workspace are written: is there a way?

Nothing is written where there is none: what is in the way is told, as a ``Conflict``.
"""

import contextlib
import os
import stat
from collections.abc import Iterator

from agentd.model.errors import Conflict
from agentd.sandbox.backends.linux import placing
from agentd.sandbox.backends.linux.closed import opened
from agentd.sandbox.backends.linux.lower import Lower, enter, lstat, shown

MAX_DEPTH = 256
MAX_CHANGES = 1_000_000
_OPAQUE = "user.overlay.opaque"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Check:
    """Whether all changes can be written, before any is: depth, number, sizes, rights and room.

    ``points`` are mounts beneath the folder, of which the sandbox saw nothing.
    """

    def __init__(self, budget: int, host: Lower, points: frozenset[str]) -> None:
        self._budget = budget
        self._host = host
        self._points = points
        self._count = 0
        self._bytes = 0
        self._largest = (0, "")

    def all(self, upper: int, lower: int) -> None:
        """Raises Conflict, which names what is in the way."""
        self._folder(upper, lower, "")
        self._room(lower)

    def _folder(
        self, upper: int, lower: int | None, prefix: str, beneath_opaque: bool = False
    ) -> None:
        if prefix.count("/") > MAX_DEPTH:
            raise too_deep(prefix)
        writes = is_opaque(upper)
        opaque = writes or beneath_opaque
        if writes:
            self._none_mounted(prefix)
        names = set()
        for name, info in entries(upper):
            names.add(name)
            path = prefix + name
            self._count += 1
            if self._count > MAX_CHANGES:
                raise cannot(f"there are over {MAX_CHANGES} of them")
            before = lstat(name, lower)
            merged = before is not None and stat.S_ISDIR(before.st_mode)
            self._none_mounted(path)
            if not stat.S_ISDIR(info.st_mode):
                self._none_mounted(path + "/")
                writes = True
                self._file(info, path)
                self._removed(name, lower, path, 0)
                continue
            writes = writes or not merged
            below = None
            with opened(name, upper, info, _DIR) as inner:
                try:
                    below = enter(name, lower) if merged and lower is not None else None
                    self._folder(inner, below, path + "/", opaque)
                finally:
                    if below is not None:
                        os.close(below)
        if lower is not None and opaque:
            for name, _info in entries(lower):
                if name not in names:
                    writes = True
                    self._removed(name, lower, prefix + name, 0)
        if writes and lower is not None:
            self._written(lower, prefix)

    def _removed(self, name: str, lower: int | None, path: str, depth: int) -> None:
        """A folder that goes must be empty, or may be written, and so what is in it."""
        before = lstat(name, lower)
        if lower is None or before is None or not stat.S_ISDIR(before.st_mode):
            return
        if depth > MAX_DEPTH:
            raise too_deep(path)
        below = enter(name, lower)
        try:
            inside = os.listdir(below)
            if inside:
                self._written(below, path + "/")
            for inner in inside:
                self._removed(inner, below, f"{path}/{inner}", depth + 1)
        finally:
            os.close(below)

    def _written(self, lower: int, path: str) -> None:
        if not self._host.may_write(lower):
            raise cannot(f"{shown(path) or 'the folder itself'} may not be written here")

    def _none_mounted(self, path: str) -> None:
        """At a path of the host's, or beneath one that ends with a slash or is the top."""
        for point in self._points:
            if point == path or (path[-1:] in ("", "/") and point.startswith(path)):
                raise cannot(
                    f"something is mounted at {shown(point)}, and what it hides was changed"
                )

    def _file(self, info: os.stat_result, path: str) -> None:
        if not stat.S_ISREG(info.st_mode):
            return
        self._bytes += min(info.st_size, info.st_blocks * 512)
        self._largest = max(self._largest, (info.st_size, path))
        if self._bytes > self._budget:
            raise cannot(
                f"with {shown(path)} they are over {self._budget} bytes, the sandbox's disk limit"
            )

    def _room(self, lower: int) -> None:
        space = os.fstatvfs(lower)
        left = (space.f_bfree if os.geteuid() == 0 else space.f_bavail) * space.f_frsize
        if self._bytes > left:
            raise cannot(f"they take {self._bytes} bytes, and {left} are left on the disk here")
        size, path = self._largest
        if not size:
            return
        fd, temporary = placing.create(lower)
        try:
            os.ftruncate(fd, size)  # each filesystem has a largest size of its own
        except OSError as error:
            raise cannot(f"{shown(path)} has {size} bytes: {error.strerror}") from None
        finally:
            os.close(fd)
            if temporary:
                os.unlink(temporary, dir_fd=lower)


def cannot(why: str) -> Conflict:
    return Conflict(
        f"the changes cannot be applied: {why}",
        remediation="change that, or copy what you want: agentd cp, files.download in the SDK",
    )


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Have what cannot be read, here or there, or goes meanwhile, told as what is in the way."""
    try:
        yield
    except OSError as error:
        raise cannot(said(error)) from error


def said(error: OSError) -> str:
    name = error.filename if isinstance(error.filename, (str, bytes)) else ""
    return f"{shown(name)}: {error.strerror}" if name else f"{error.strerror or error}"


def too_deep(path: str) -> Conflict:
    return cannot(f"{shown(path)} is nested deeper than {MAX_DEPTH} folders")


def entries(directory: int) -> Iterator[tuple[str, os.stat_result]]:
    for name in os.listdir(directory):
        info = lstat(name, directory)
        if info is not None:
            yield name, info


def is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError:
        return False
