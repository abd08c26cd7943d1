"""A copy-on-write workspace: what the sandbox changed, and writing that to the host.

The upper directory of the overlay is read through a descriptor of its tmpfs, never through the
sandbox. It is hostile data: nothing is followed, nothing but files, directories and symbolic links
is taken, and set-id bits are dropped. Layout of an overlay made with ``userxattr``:
https://docs.kernel.org/filesystems/overlayfs.html
"""

import os
import stat
from collections.abc import Callable, Iterator

from agentd.sandbox.backends.wall import ProcessWall

_OPAQUE = "user.overlay.opaque"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_DEPTH = 256
_MAX_CHANGES = 1_000_000
_COPY_BYTES = 1 << 20


class OverlayWall(ProcessWall):
    """``attach_layers`` is called once, right after construction."""

    def attach_layers(self, scratch_fd: int, source: str) -> None:
        """Takes ownership of ``scratch_fd``, the tmpfs whose ``u`` is the upper directory."""
        self._scratch = scratch_fd
        self._source = source
        self._on_end = (*self._on_end, lambda: os.close(scratch_fd))

    def changes(self) -> tuple[str, ...]:
        found: list[str] = []

        def note(kind: str, path: str) -> None:
            if len(found) >= _MAX_CHANGES:
                raise OSError(f"over {_MAX_CHANGES} changes in the workspace")
            found.append(f"{kind} {path}")

        self._walk(lambda upper, lower: _list(upper, lower, "", note))
        return tuple(sorted(found, key=lambda line: line[2:]))

    def apply(self) -> None:
        owner = os.stat(self._source)
        ids = (owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None
        self._walk(lambda upper, lower: _apply(upper, lower, ids, 0))

    def _walk(self, visit: Callable[[int, int], None]) -> None:
        upper = os.open("u", _DIR, dir_fd=self._scratch)
        try:
            lower = os.open(self._source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                visit(upper, lower)
            finally:
                os.close(lower)
        finally:
            os.close(upper)


def _list(upper: int, lower: int | None, prefix: str, note: Callable[[str, str], None]) -> None:
    if prefix.count("/") > _MAX_DEPTH:
        raise OSError(f"workspace nested deeper than {_MAX_DEPTH} directories at {prefix}")
    names = set()
    for name, info in _entries(upper):
        names.add(name)
        path = prefix + name
        before = _lstat(name, lower)
        if _is_whiteout(info):
            note("D", path)
        elif stat.S_ISDIR(info.st_mode):
            merged = before is not None and stat.S_ISDIR(before.st_mode)
            if not merged:
                note("A" if before is None else "M", path + "/")
            _descend(name, upper, lower if merged else None, path + "/", note)
        else:
            note("A" if before is None else "M", path)
    if lower is not None and _is_opaque(upper):
        for name, _info in _entries(lower):
            if name not in names:
                note("D", prefix + name)


def _descend(
    name: str, upper: int, lower: int | None, prefix: str, note: Callable[[str, str], None]
) -> None:
    inner = os.open(name, _DIR, dir_fd=upper)
    below = os.open(name, _DIR, dir_fd=lower) if lower is not None else None
    try:
        _list(inner, below, prefix, note)
    finally:
        os.close(inner)
        if below is not None:
            os.close(below)


def _apply(upper: int, lower: int, ids: tuple[int, int] | None, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise OSError(f"workspace nested deeper than {_MAX_DEPTH} directories")
    if _is_opaque(upper):
        kept = {name for name, info in _entries(upper) if not _is_whiteout(info)}
        for name, _info in _entries(lower):
            if name not in kept:
                _remove(name, lower)
    for name, info in _entries(upper):
        before = _lstat(name, lower)
        if _is_whiteout(info):
            _remove(name, lower)
        elif stat.S_ISDIR(info.st_mode):
            _apply_directory(name, info, before, (upper, lower), ids, depth)
        elif stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
            if before is not None and stat.S_ISDIR(before.st_mode):
                _remove(name, lower)
            _replace(name, info, upper, lower, ids)


def _apply_directory(
    name: str,
    info: os.stat_result,
    before: os.stat_result | None,
    dirs: tuple[int, int],
    ids: tuple[int, int] | None,
    depth: int,
) -> None:
    upper, lower = dirs
    if before is not None and not stat.S_ISDIR(before.st_mode):
        _remove(name, lower)
        before = None
    if before is None:
        os.mkdir(name, 0o700, dir_fd=lower)
    inner = os.open(name, _DIR, dir_fd=upper)
    below = os.open(name, _DIR, dir_fd=lower)
    try:
        _apply(inner, below, ids, depth + 1)
        if before is None and ids is not None:
            os.fchown(below, *ids)
        os.fchmod(below, stat.S_IMODE(info.st_mode) & 0o777)
    finally:
        os.close(inner)
        os.close(below)


def _replace(
    name: str, info: os.stat_result, upper: int, lower: int, ids: tuple[int, int] | None
) -> None:
    """Write beside the target, then rename over it: a reader sees the old or the new, whole."""
    temporary = f".{name[:200]}.{os.urandom(6).hex()}"
    try:
        if stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(name, dir_fd=upper), temporary, dir_fd=lower)
            if ids is not None:
                os.chown(temporary, *ids, dir_fd=lower, follow_symlinks=False)
        else:
            _copy(name, temporary, info, upper, lower, ids)
        os.rename(temporary, name, src_dir_fd=lower, dst_dir_fd=lower)
    except OSError:
        _remove(temporary, lower)
        raise


def _copy(
    name: str,
    target: str,
    info: os.stat_result,
    upper: int,
    lower: int,
    ids: tuple[int, int] | None,
) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    source = os.open(name, flags, dir_fd=upper)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        out = os.open(target, flags, 0o600, dir_fd=lower)
        try:
            while os.sendfile(out, source, None, _COPY_BYTES):
                pass
            if ids is not None:
                os.fchown(out, *ids)
            os.fchmod(out, stat.S_IMODE(info.st_mode) & 0o777)
            os.utime(out, ns=(info.st_atime_ns, info.st_mtime_ns))
        finally:
            os.close(out)
    finally:
        os.close(source)


def _remove(name: str, directory: int) -> None:
    info = _lstat(name, directory)
    if info is None:
        return
    if stat.S_ISDIR(info.st_mode):
        from shutil import rmtree  # late: 5 ms that few sandboxes need

        rmtree(name, dir_fd=directory)  # descriptor-based, follows no link
    else:
        os.unlink(name, dir_fd=directory)


def _entries(directory: int) -> Iterator[tuple[str, os.stat_result]]:
    for name in os.listdir(directory):
        info = _lstat(name, directory)
        if info is not None:
            yield name, info


def _lstat(name: str, directory: int | None) -> os.stat_result | None:
    if directory is None:
        return None
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError:
        return False
