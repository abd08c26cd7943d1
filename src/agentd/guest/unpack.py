"""A tar made into files, descriptor by descriptor: nothing is followed, nothing lies outside.

Every directory on the way is opened without following a link, every file is made anew, links come
last, and set-id bits, devices and the like never come. What was made is the caller's to throw away
where it raises.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress

from agentd.guest import tar
from agentd.guest.tar import TarEntry, TarError, shown

# Of all links and directories, which are remembered until the end: bytes of their names.
MAX_KEPT = 64 << 20
# Steps that judging all links together may take; one takes about as many as its target has parts.
MAX_STEPS = 10_000_000
SLICE = 256

_MAX_HOPS = 40  # as the kernel, path_resolution(7)
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_HOLE = bytes(64 << 10)
Parts = tuple[bytes, ...]


class Unpacker:
    """Takes an archive as it comes. Raises TarError, OSError.

    ``root`` is a descriptor of a directory, which stays the caller's. With a ``name`` the archive
    must be one tree, which becomes that entry of ``root``, new; without, what is in it is put over
    what is there. ``strict`` is for a host: no hard links, no link that leads out of the tree, no
    bits that let others write.
    """

    def __init__(self, root: int, name: bytes | None = None, *, strict: bool = False) -> None:
        self.entries = 0
        self.bytes = 0
        self._root = root
        self._name = name
        self._strict = strict
        self._decoder = tar.TarDecoder()
        self._top: Parts | None = None
        # The directories that are open: the way from the root to where the last entry went.
        self._way: list[tuple[bytes, int]] = []
        self._links: dict[bytes, bytes] = {}
        self._folders: list[tuple[bytes, int, int]] = []
        self._kept = 0
        self._file = -1
        self._entry: TarEntry | None = None
        self._left = 0
        # Of a new tree that its owner may not write in: its top, and the mode that it gets last.
        self._closed: tuple[int, int] | None = None

    @property
    def skipped(self) -> str:
        """Returns what the packer left out, in its words."""
        return self._decoder.skipped

    def write(self, data: bytes) -> None:
        for found in self._decoder.feed(data):
            if isinstance(found, TarEntry):
                self._begin(found)
            else:
                self._data(found)

    def finish(self) -> Iterator[None]:
        """Does the rest, once the archive has ended; in steps, for who has others to serve."""
        self._decoder.close()
        if self._name is not None and self._top is None:
            raise TarError("the archive is empty")
        judge = _Judge(self._links)
        for number, (path, target) in enumerate(self._links.items()):
            if self._strict and judge.leads_out(path, target):
                where = b"/".join((self._top or ()) + tuple(path.split(b"/")[1:]))
                raise TarError(f"the link {shown(where)} -> {shown(target)} leads out of the tree")
            self._make_link(path, target)
            if number % SLICE == 0:
                yield
        for number, folder in enumerate(reversed(self._folders)):
            self._settle(*folder)
            if number % SLICE == 0:
                yield
        self._leave()

    def close_up(self) -> None:
        """Gives a new tree that is in its place the mode by which its owner may not write there:
        who may not write in a directory may not move it (rename(2), EACCES). Raises OSError."""
        if self._closed is not None:
            fd, mode = self._closed
            with self._forgiving():
                os.fchmod(fd, mode)

    def close(self) -> None:
        """Frees the descriptors; idempotent."""
        self._leave()
        if self._closed is not None:
            os.close(self._closed[0])
            self._closed = None

    def _leave(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        while self._way:
            os.close(self._way.pop()[1])

    # --- an entry ---

    def _begin(self, entry: TarEntry) -> None:
        self.entries += 1
        if self.entries > tar.MAX_ENTRIES:
            raise TarError(f"there are over {tar.MAX_ENTRIES} files in it")
        self.bytes += entry.size
        if self.bytes > tar.MAX_BYTES:
            raise TarError(
                f"{shown(entry.path)} ({entry.size} bytes) is more than what is left of the "
                f"{tar.MAX_BYTES} bytes that a tree may have"
            )
        parts = self._placed(entry)
        with self._naming(entry.path):
            if entry.kind == "dir":
                self._make_folder(parts, entry)
            elif not parts:
                raise TarError(f"{shown(entry.path)} is no name for a {entry.kind}")
            elif entry.kind == "link":
                self._keep_link(parts, entry)
            elif entry.kind == "hard":
                self._make_hard(parts, entry)
            else:
                self._make_file(parts, entry)

    def _placed(self, entry: TarEntry) -> Parts:
        """Return where it goes, beneath the root."""
        parts = split(entry.path)
        if self._name is None:
            return parts
        if self._top is None:
            if len(parts) > 1:
                raise TarError(f"the archive begins with {shown(entry.path)}, and not with a tree")
            self._top = parts
        elif parts[: len(self._top)] != self._top:
            raise TarError(f"{shown(entry.path)} is a second tree, where one was asked for")
        return (self._name, *parts[len(self._top) :])

    def _make_folder(self, parts: Parts, entry: TarEntry) -> None:
        if not parts:
            return  # the root's own mode is whose it is
        parent, name = self._enter(parts[:-1]), parts[-1]
        mode = self._mode(entry.mode) | 0o700
        try:
            os.mkdir(name, mode, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(_mode_of(parent, name)):
                raise
        path = b"/".join(parts)
        self._keep(len(path))
        # Of a host's own tree the owner may go into every folder.
        mode = mode if self._strict else self._mode(entry.mode)
        self._folders.append((path, mode, entry.mtime))

    def _make_file(self, parts: Parts, entry: TarEntry) -> None:
        parent, name = self._enter(parts[:-1]), parts[-1]
        self._clear(parent, name)
        mode = self._mode(entry.mode)
        self._file = os.open(name, _NEW, mode, dir_fd=parent)
        self._entry, self._left = entry, entry.size
        if not entry.size:
            self._end_file()

    def _data(self, data: memoryview) -> None:
        entry = self._entry
        if entry is None or self._file < 0:
            raise TarError("the archive holds data that belongs to no file")
        self._left -= len(data)
        with self._naming(entry.path):
            write_holes(self._file, data)
            if not self._left:
                self._end_file()

    def _end_file(self) -> None:
        entry, fd = self._entry, self._file
        if entry is None:
            return
        if entry.size:
            os.ftruncate(fd, entry.size)
        mode = self._mode(entry.mode)
        with self._forgiving():
            if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
                os.fchmod(fd, mode)
        with self._forgiving():
            os.utime(fd, (entry.mtime, entry.mtime))
        self._file, self._entry = -1, None
        os.close(fd)  # some filesystems tell of a full disk only here

    def _make_hard(self, parts: Parts, entry: TarEntry) -> None:
        if self._strict:
            raise TarError(f"{shown(entry.path)} is a hard link")
        source = self._placed(TarEntry(entry.target, "file"))
        if not source:
            raise TarError(f"the hard link {shown(entry.path)} leads to no file")
        below = self._open(source[:-1])
        try:
            if not stat.S_ISREG(_mode_of(below, source[-1])):
                raise TarError(f"the hard link {shown(entry.path)} leads to no file")
            parent, name = self._enter(parts[:-1]), parts[-1]
            self._clear(parent, name)
            os.link(source[-1], name, src_dir_fd=below, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(below)

    def _keep_link(self, parts: Parts, entry: TarEntry) -> None:
        if not entry.target or len(entry.target) > tar.MAX_PATH or b"\0" in entry.target:
            raise TarError(f"the link {shown(entry.path)} has a target that no link may have")
        path = b"/".join(parts)
        self._keep(len(path) + len(entry.target))
        self._links[path] = entry.target

    def _make_link(self, path: bytes, target: bytes) -> None:
        parts = tuple(path.split(b"/"))
        with self._naming(path):
            parent = self._enter(parts[:-1])
            self._clear(parent, parts[-1])
            os.symlink(target, parts[-1], dir_fd=parent)

    def _settle(self, path: bytes, mode: int, mtime: int) -> None:
        """A directory's own mode and time, which making files in it would have changed."""
        with self._naming(path):
            fd = self._open(tuple(path.split(b"/")), os.O_RDONLY)
            try:
                if path == self._name and not mode & stat.S_IWUSR:
                    self._closed = (os.dup(fd), mode)
                    mode |= stat.S_IWUSR
                with self._forgiving():
                    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
                        os.fchmod(fd, mode)
                with self._forgiving():
                    os.utime(fd, (mtime, mtime))
            finally:
                os.close(fd)

    # --- places ---

    @property
    def _is_new(self) -> bool:
        return self._name is not None

    def _enter(self, parts: Parts) -> int:
        """A directory beneath the root, made where it is missing; ours to close."""
        kept = 0
        for (name, _), part in zip(self._way, parts, strict=False):
            if name != part:
                break
            kept += 1
        while len(self._way) > kept:
            os.close(self._way.pop()[1])
        fd = self._way[-1][1] if self._way else self._root
        for part in parts[kept:]:
            with suppress(FileExistsError):  # what is no directory, the open tells
                os.mkdir(part, 0o755, dir_fd=fd)
            fd = os.open(part, _FOLDER, dir_fd=fd)
            self._way.append((part, fd))
        return fd

    def _open(self, parts: Parts, flags: int = os.O_PATH) -> int:
        """A directory that is there; the caller's to close."""
        fd = os.open(".", _FOLDER, dir_fd=self._root)
        for index, part in enumerate(parts, 1):
            how = flags if index == len(parts) else os.O_PATH
            above = fd
            try:
                fd = os.open(
                    part, how | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above
                )
            finally:
                os.close(above)
        return fd

    def _clear(self, parent: int, name: bytes) -> None:
        """Take away what a file or link comes in the place of: never a directory."""
        if not self._is_new:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)

    def _mode(self, mode: int) -> int:
        return (mode & 0o755) | 0o600 if self._strict else mode & 0o777

    def _naming(self, path: bytes) -> "_Naming":
        return _Naming(path, is_new=self._is_new)

    def _keep(self, size: int) -> None:
        self._kept += size + 100  # and what Python needs for it
        if self._kept > MAX_KEPT:
            raise TarError(f"the names of its folders and links take over {MAX_KEPT} bytes")

    def _forgiving(self) -> AbstractContextManager[None]:
        """Some walls let nobody change a mode or a time: there both stay as they are."""
        return nullcontext() if self._strict else suppress(PermissionError)


def write_holes(fd: int, data: bytes | memoryview) -> None:
    """Writes ``data``, and passes over 64 KiB of zeros: holes stay holes, where the caller
    sets the file's size at its end. Raises OSError."""
    for start in range(0, len(data), len(_HOLE)):
        piece = bytes(data[start : start + len(_HOLE)])
        if piece[0] == 0 and piece == _HOLE[: len(piece)]:
            os.lseek(fd, len(piece), os.SEEK_CUR)
            continue
        written = 0
        while written < len(piece):
            written += os.write(fd, piece[written:])


def split(path: bytes) -> Parts:
    """Returns the parts of an entry's name. Raises TarError for one that would leave the tree."""
    parts = tuple(part for part in path.split(b"/") if part not in (b"", b"."))
    if b".." in parts or b"\0" in path:
        raise TarError(f"the name {shown(path)} leads out of the tree")
    if len(path) > tar.MAX_PATH or len(parts) > tar.MAX_DEPTH + 1:
        raise TarError(
            f"the path {shown(path[:60])}... is over {tar.MAX_PATH} bytes, "
            f"or over {tar.MAX_DEPTH} folders deep"
        )
    if any(len(part) > tar.MAX_NAME for part in parts):
        raise TarError(f"a name in {shown(path[:60])}... is over {tar.MAX_NAME} bytes")
    return parts


class _Judge:
    """Judges where links lead, once all of them are there. The first part of each path is the
    tree's."""

    def __init__(self, links: dict[bytes, bytes]) -> None:
        self._links = links
        self._steps = 0

    def leads_out(self, path: bytes, target: bytes) -> bool:
        """Return whether following it may leave the tree: as the kernel would, link by link."""
        stack = path.split(b"/")[:-1]
        hops = 0
        # A link in the place of the tree itself has nothing beneath that it could lead to.
        if not stack or target.startswith(b"/"):
            return True
        todo = target.split(b"/")[::-1]
        while todo:
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise TarError("the links in it are too many, or too tangled")
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                stack.pop()
                if not stack:
                    return True
                continue
            stack.append(part)
            further = self._links.get(b"/".join(stack))
            if further is not None:
                hops += 1
                if hops > _MAX_HOPS:
                    return False  # the kernel gives up as well
                if further.startswith(b"/"):
                    return True
                stack.pop()
                todo += further.split(b"/")[::-1]
        return False


def _mode_of(parent: int, name: bytes) -> int:
    return os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode


class _Naming:
    """An OSError raised inside names ``path``; in a new tree only the archive can be in the way."""

    def __init__(self, path: bytes, *, is_new: bool) -> None:
        self._path = path
        self._is_new = is_new

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            if self._is_new and error.errno in _IN_THE_WAY:
                text = f"{shown(self._path)} stands where something else of it does"
                raise TarError(text) from None
            text = f"{shown(self._path)}: {error.strerror}"
            raise OSError(error.errno, text) from None
