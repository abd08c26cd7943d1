"""A copy-on-write workspace: what the sandbox changed, and writing that to the host.

The upper directory of the overlay is read through a descriptor of its tmpfs, never through the
sandbox. It is hostile data: nothing is followed, nothing but files, directories and symbolic links
is taken, set-id bits are dropped, holes stay holes, and no more is written to the host than the
sandbox could hold. Layout of an overlay made with ``userxattr``:
https://docs.kernel.org/filesystems/overlayfs.html
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from agentd.linux import nameless
from agentd.model.errors import SandboxError
from agentd.sandbox import sparse
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.linux import placing
from agentd.sandbox.backends.linux.applying import (
    MAX_CHANGES,
    MAX_DEPTH,
    Check,
    cannot,
    entries,
    is_opaque,
    said,
    told,
    too_deep,
)
from agentd.sandbox.backends.linux.closed import is_closed, opened
from agentd.sandbox.backends.linux.disk import SandboxDisk
from agentd.sandbox.backends.linux.lower import Lower, enter, lstat, mounted_beneath
from agentd.sandbox.backends.linux.wall import LinuxWall

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_TEXT = 32 << 20  # of the paths of all changes


class OverlayWall(LinuxWall):
    """``u`` on its disk is the upper directory. ``attach_source`` is called once, right after
    construction."""

    def attach_source(self, source: int) -> None:
        """Takes ownership of a descriptor of the host's directory beneath, whose name may mean
        another one by now."""
        self._source = source

    def _close_disk(self) -> None:
        super()._close_disk()
        os.close(self._source)

    def changes(self) -> tuple[str, ...]:
        found: list[str] = []
        size = 0

        def note(kind: str, path: str) -> None:
            nonlocal size
            size += len(path)
            if len(found) >= MAX_CHANGES or size > _MAX_TEXT:
                raise cannot(f"there are over {MAX_CHANGES} of them, or over {_MAX_TEXT} bytes")
            found.append(f"{kind} {path}")

        with self._disk_held() as disk, told():
            self._walk(disk, lambda upper, lower: _list(upper, lower, "", note))
        return tuple(sorted(found, key=lambda line: line[2:]))

    def apply(self) -> None:
        """To the end, whoever ends the sandbox meanwhile: nobody wants a folder half changed."""
        with self._disk_held() as disk:
            self._apply(disk)

    def _apply(self, disk: SandboxDisk) -> None:
        owner = os.fstat(self._source)
        ids = (owner.st_uid, owner.st_gid) if identity.available() else None
        size = os.fstatvfs(disk.fd)
        budget = size.f_blocks * size.f_frsize
        host = Lower(ids)
        with told():
            check = Check(budget, host, mounted_beneath(self._source))
            self._walk(disk, check.all)
        writer = _Writer(host, budget)
        try:
            self._walk(disk, lambda upper, lower: writer.apply(upper, lower, 0))
        except OSError as error:
            raise SandboxError(
                "the changes could be applied in part only",
                cause=said(error),
                remediation="end what still runs in the sandbox, make room, and apply them again",
            ) from error

    def _walk(self, disk: SandboxDisk, visit: Callable[[int, int], None]) -> None:
        upper = os.open("u", _DIR, dir_fd=disk.fd)
        try:
            lower = os.open(".", _DIR, dir_fd=self._source)
            try:
                visit(upper, lower)
            finally:
                os.close(lower)
        finally:
            os.close(upper)


def _list(
    upper: int,
    lower: int | None,
    prefix: str,
    note: Callable[[str, str], None],
    opaque: bool = False,
) -> None:
    """``opaque``: nothing of the host's shows, here and in all that is beneath."""
    opaque = opaque or is_opaque(upper)
    if prefix.count("/") > MAX_DEPTH:
        raise too_deep(prefix)
    names = set()
    for name, info in entries(upper):
        names.add(name)
        path = prefix + name
        before = lstat(name, lower)
        if _is_whiteout(info):
            note("D", path)
        elif stat.S_ISDIR(info.st_mode):
            merged = before is not None and stat.S_ISDIR(before.st_mode)
            if not merged or _permissions(before) != _permissions(info):
                note("A" if before is None else "M", path + "/")
            _descend(name, info, upper, lower if merged else None, path + "/", note, opaque)
        else:
            note("A" if before is None else "M", path)
    if lower is not None and opaque:
        for name, _info in entries(lower):
            if name not in names:
                note("D", prefix + name)


def _descend(
    name: str,
    info: os.stat_result,
    upper: int,
    lower: int | None,
    prefix: str,
    note: Callable[[str, str], None],
    opaque: bool,
) -> None:
    below = None
    with opened(name, upper, info, _DIR) as inner:
        try:
            if lower is not None:
                with contextlib.suppress(OSError):  # a mount, of which the sandbox saw nothing
                    below = enter(name, lower)
            _list(inner, below, prefix, note, opaque)
        finally:
            if below is not None:
                os.close(below)


class _Writer:
    """Writes an upper directory to the host, at most ``budget`` bytes.

    What is replaced keeps its group, as far as the writer may give that; what is new has the one
    that its folder gives (setgid), or the writer's own.

    Hard links and files rewritten meanwhile could ask for more than the sandbox ever held.
    """

    def __init__(self, host: Lower, budget: int) -> None:
        self._host = host
        self._budget = self._left = budget

    def apply(self, upper: int, lower: int, depth: int, opaque: bool = False) -> None:
        opaque = opaque or is_opaque(upper)
        if depth > MAX_DEPTH:
            raise OSError(errno.ENAMETOOLONG, f"nested deeper than {MAX_DEPTH} folders")
        with self._host.opened(lower):
            if self._host.may_write(lower):
                placing.sweep(lower)
            if opaque:
                kept = {name for name, info in entries(upper) if not _is_whiteout(info)}
                for name, _info in entries(lower):
                    if name not in kept:
                        self._host.remove(name, lower)
            for name, info in entries(upper):
                self._entry(name, info, upper, lower, depth, opaque)

    def _entry(
        self,
        name: str,
        info: os.stat_result,
        upper: int,
        lower: int,
        depth: int,
        opaque: bool,
    ) -> None:
        before = lstat(name, lower)
        if _is_whiteout(info):
            self._host.remove(name, lower)
        elif stat.S_ISDIR(info.st_mode):
            self._directory(name, info, before, upper, lower, depth, opaque)
        elif stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
            if before is not None and stat.S_ISDIR(before.st_mode):
                self._host.remove(name, lower)
                before = None
            self._replace(name, info, before, upper, lower)

    def _directory(
        self,
        name: str,
        info: os.stat_result,
        before: os.stat_result | None,
        upper: int,
        lower: int,
        depth: int,
        opaque: bool,
    ) -> None:
        if before is not None and not stat.S_ISDIR(before.st_mode):
            self._host.remove(name, lower)
            before = None
        if before is None:
            with self._host.acting():
                os.mkdir(name, 0o700, dir_fd=lower)
        below = -1
        with opened(name, upper, info, _DIR) as inner:
            try:
                below = enter(name, lower)
                self.apply(inner, below, depth + 1, opaque)
                if _permissions(os.fstat(below)) != _permissions(info):
                    self._host.set_mode(below, _permissions(info))
            finally:
                if below >= 0:
                    os.close(below)

    def _replace(
        self, name: str, info: os.stat_result, before: os.stat_result | None, upper: int, lower: int
    ) -> None:
        """A reader sees the old or the new, whole."""
        if stat.S_ISREG(info.st_mode):
            self._copy(name, info, before, upper, lower)
            return
        temporary = nameless.temporary_name()
        try:
            text = os.readlink(name, dir_fd=upper)
            with self._host.acting():
                os.symlink(text, temporary, dir_fd=lower)
                os.rename(temporary, name, src_dir_fd=lower, dst_dir_fd=lower)
        except OSError:
            self._host.remove(temporary, lower)
            raise

    def _copy(
        self,
        name: str,
        info: os.stat_result,
        before: os.stat_result | None,
        upper: int,
        lower: int,
    ) -> None:
        with opened(name, upper, info, _FILE) as source:
            found = os.fstat(source)  # of what was opened, whatever stood there before
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EAGAIN, "it changed into another kind meanwhile", name)
            mode = _permissions(info if is_closed(info) else found)
            with self._host.acting():
                out, temporary = placing.create(lower)
            try:
                self._copy_data(source, out, found.st_size)
                with self._host.acting():
                    temporary = temporary or nameless.named(out, lower)
                self._host.keep_group(out, before)
                os.fchmod(out, mode)
                os.utime(out, ns=(found.st_atime_ns, found.st_mtime_ns))
                with self._host.acting():
                    os.rename(temporary, name, src_dir_fd=lower, dst_dir_fd=lower)
            except OSError:
                if temporary:
                    self._host.remove(temporary, lower)
                raise
            finally:
                os.close(out)

    def _copy_data(self, source: int, out: int, size: int) -> None:
        """A hole of exabytes costs the sandbox nothing, and us neither."""
        for count in sparse.copy(source, out, size):
            self._left -= count
            if self._left < 0:
                text = f"all exceed {self._budget} bytes, the sandbox's disk limit"
                raise OSError(errno.EFBIG, text)


def _permissions(info: os.stat_result | None) -> int:
    return stat.S_IMODE(info.st_mode) & 0o777 if info is not None else 0


def _is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0
