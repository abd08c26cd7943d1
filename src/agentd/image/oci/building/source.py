"""Where COPY and ADD take files from: the context, or the root of an image or stage.

Read descriptor by descriptor: a link on the way, or as what is named itself, leads nowhere but
within the source; one that is met in a folder is copied as a link. What is there may change
meanwhile, and be hostile.
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from agentd.image.oci.bounds import BOUNDS
from agentd.image.oci.building.ignore import Ignored, fitting
from agentd.image.oci.owners import ATTRIBUTE, owner_of
from agentd.linux.paths import open_inside
from agentd.model.errors import InvalidInput
from agentd.model.units import readable_size

MAX_FILES = 1 << 20
_MAX_DEPTH = 256
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PLACE = os.O_PATH
_PIECE = 1 << 20
_MAGIC = frozenset("*?[")


class Unusable(ValueError):
    """What a COPY names cannot be copied; the text says why."""


class Item(NamedTuple):
    """A file to be copied. ``path`` is below what was named, "" for that itself; ``content`` is
    the SHA-256 of a plain file's data in hex, and of a link it is what it says; ``owner`` is a
    user and a group."""

    path: str
    kind: int  # as stat.S_IFMT has it: S_IFDIR, S_IFREG, S_IFLNK or S_IFIFO
    mode: int
    size: int
    modified: int  # in whole seconds
    content: str
    source: str  # its path in the source
    owner: tuple[int, int]


class FileSource:
    """``what`` is what an error calls it; of one that is ``owned``, an unpacked root, files are
    whose they are in the image, and else root's."""

    def __init__(
        self, folder: str, what: str, ignored: Ignored | None = None, *, owned: bool = False
    ) -> None:
        """Raises InvalidInput where it is no directory."""
        self.what, self._ignored, self._owned = what, ignored or Ignored(), owned
        self._count = self._bytes = 0
        try:
            self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidInput(
                f"{what} {folder} cannot be read: {error.strerror}",
                remediation="give a directory that you may read",
            ) from error

    def close(self) -> None:
        os.close(self._root)

    def matches(self, pattern: str) -> list[str]:
        """Return the paths that a COPY's word means, sorted, which may be none; itself where it has
        no ``*``, ``?``, ``[``. Raises Unusable, BadPattern."""
        parts = [part for part in pattern.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise Unusable(f"{pattern} leads out of the {self.what}")
        found = [""]
        for part in parts:
            if not _MAGIC & set(part):
                found = [_below(path, part) for path in found]
                continue
            fits = fitting(part)
            found = [
                _below(path, name) for path in found for name in self._names(path) if fits(name)
            ]
        magic = bool(_MAGIC & set(pattern))
        return sorted(path for path in found if not magic or not self._is_hidden(path))

    def items(self, path: str) -> Iterator[Item]:
        """Yield it and all in it, each folder before what is in it, by name. Raises Unusable."""
        fd = self._opened(path)
        try:
            info = os.fstat(fd)
            path = self._place(fd, path)
            self._check_seen(path, folder=stat.S_ISDIR(info.st_mode))
            if stat.S_ISDIR(info.st_mode):
                try:
                    inner = open_inside(self._root, path or ".", os.O_RDONLY | os.O_DIRECTORY)
                except OSError as error:
                    raise Unusable(f"{path} cannot be read: {error.strerror}") from error
                try:
                    yield self._item("", info, "", path, inner)
                    yield from self._folder(inner, "", path, 1)
                finally:
                    os.close(inner)
                return
            if not stat.S_ISREG(info.st_mode):
                raise Unusable(f"{path} is neither a file nor a folder")
        finally:
            os.close(fd)
        with self.opened(path) as file:
            self._count_bytes(os.fstat(file))
            yield self._item("", os.fstat(file), _digest(file), path, file)

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """Open a plain file; return its descriptor. Raises Unusable."""
        try:
            fd = open_inside(self._root, path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise Unusable(f"{path} cannot be read: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Unusable(f"{path} was replaced while it was read")
            yield fd
        finally:
            os.close(fd)

    def _folder(self, fd: int, above: str, source: str, depth: int) -> Iterator[Item]:
        if depth > _MAX_DEPTH:
            raise Unusable(f"{source[:200]} is nested deeper than {_MAX_DEPTH} folders")
        for name in sorted(os.listdir(fd)):
            path, place = _below(above, name), _below(source, name)
            left_out = self._is_left_out(place)
            if left_out and not self._ignored.again:
                continue
            try:
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(info.st_mode):
                yield from self._inner(name, fd, path, place, depth, left_out=left_out)
            elif not left_out and not stat.S_ISSOCK(info.st_mode):
                yield self._entry(name, fd, info, path, place)

    def _inner(
        self, name: str, fd: int, path: str, place: str, depth: int, *, left_out: bool
    ) -> Iterator[Item]:
        try:
            inner = os.open(name, _FOLDER, dir_fd=fd)
        except OSError as error:
            raise Unusable(f"{place} cannot be read: {error.strerror}") from error
        try:
            told = self._item(path, os.fstat(inner), "", place, inner)
            below = self._folder(inner, path, place, depth + 1)
            if left_out:  # it is made for what of it is taken all the same
                first = next(below, None)
                if first is None:
                    return
                yield told
                yield first
            else:
                yield told
            yield from below
        finally:
            os.close(inner)

    def _entry(self, name: str, fd: int, info: os.stat_result, path: str, place: str) -> Item:
        if stat.S_ISLNK(info.st_mode):
            return self._item(path, info, os.readlink(name, dir_fd=fd), place)
        if stat.S_ISFIFO(info.st_mode):
            return self._item(path, info, "", place)
        if not stat.S_ISREG(info.st_mode):
            raise Unusable(f"{place} is a device")
        try:
            file = os.open(name, _FILE, dir_fd=fd)
        except OSError as error:
            raise Unusable(f"{place} cannot be read: {error.strerror}") from error
        try:
            told = os.fstat(file)
            self._count_bytes(told)
            if not stat.S_ISREG(told.st_mode):
                raise Unusable(f"{place} was replaced while it was read")
            return self._item(path, told, _digest(file), place, file)
        finally:
            os.close(file)

    def _item(
        self, path: str, info: os.stat_result, content: str, place: str, fd: int = -1
    ) -> Item:
        self._count += 1
        if self._count > MAX_FILES:
            raise Unusable(f"the {self.what} has over {MAX_FILES:,} files")
        kind, mode = stat.S_IFMT(info.st_mode), stat.S_IMODE(info.st_mode)
        size = info.st_size if kind == stat.S_IFREG else 0
        return Item(path, kind, mode, size, int(info.st_mtime), content, place, self._owner(fd))

    def _owner(self, fd: int) -> tuple[int, int]:
        """Whose a file or folder was; that of a link or a FIFO is not known in a flat root."""
        if fd < 0 or not self._owned:
            return 0, 0
        with contextlib.suppress(OSError):
            return owner_of(os.getxattr(fd, ATTRIBUTE)) or (0, 0)
        return 0, 0

    def _count_bytes(self, info: os.stat_result) -> None:
        """Before they are read, holes of sparse files among them."""
        self._bytes += info.st_size
        if self._bytes > BOUNDS.unpacked:
            most = readable_size(BOUNDS.unpacked)
            raise Unusable(f"more than {most} of the {self.what} is copied")

    def _opened(self, path: str) -> int:
        try:
            return open_inside(self._root, path or ".", _PLACE)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                raise
            raise Unusable(f"{path} is not in the {self.what}{self._link(path)}") from error

    def _link(self, path: str) -> str:
        with contextlib.suppress(OSError):
            fd = open_inside(self._root, path, _PLACE | os.O_NOFOLLOW)
            try:
                return f": it is a link to {os.readlink('', dir_fd=fd)[:200]}, which is not"
            finally:
                os.close(fd)
        return ""

    def _names(self, path: str) -> list[str]:
        try:
            fd = open_inside(self._root, path or ".", os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return []
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def _place(self, fd: int, path: str) -> str:
        """Where what ``path`` led to is in the source; links lead around no .dockerignore."""
        if not self._ignored:
            return path
        root, real = (os.readlink(f"/proc/self/fd/{each}") for each in (self._root, fd))
        if real == root:
            return ""
        top = root.rstrip("/") + "/"
        if not real.startswith(top):
            raise Unusable(f"{path} was moved while it was read")
        return real.removeprefix(top)

    def _check_seen(self, path: str, *, folder: bool) -> None:
        if self._is_left_out(path) and not (folder and self._ignored.again):
            raise Unusable(f"{path} is left out of the {self.what} by .dockerignore")

    def _is_hidden(self, path: str) -> bool:
        """Whether it is left out, or what it is a link to."""
        if self._is_left_out(path) or not self._ignored:
            return self._is_left_out(path)
        try:
            fd = open_inside(self._root, path or ".", _PLACE)
        except OSError:
            return False
        try:
            place = self._place(fd, path)
            is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
            return self._is_left_out(place) and not (is_folder and self._ignored.again)
        finally:
            os.close(fd)

    def _is_left_out(self, path: str) -> bool:
        return bool(path) and self._ignored.leaves_out(path)


def read_small(folder: str, name: str, most: int) -> str | None:
    """Read a text file right in a folder, through no link; None where there is none. Raises
    InvalidInput."""
    try:
        fd = os.open(os.path.join(folder, name), _FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidInput(
            f"{folder}/{name} cannot be read: {error.strerror}", remediation="make it a plain file"
        ) from error
    try:
        check_plain(fd, f"{folder}/{name}")
        return text_of(fd, f"{folder}/{name}", most)
    finally:
        os.close(fd)


def check_plain(fd: int, name: str) -> None:
    """Check that it is a plain file. Raises InvalidInput."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        fix = "make it a plain file; what comes by a pipe is given with -f -"
        raise InvalidInput(f"{name} is no plain file", remediation=fix)


def text_of(fd: int, name: str, most: int) -> str:
    """Read all of a plain file, or of what comes by a pipe. Raises InvalidInput."""
    data = b""
    while len(data) <= most and (piece := os.read(fd, most + 1 - len(data))):
        data += piece
    if len(data) > most:
        raise InvalidInput(f"{name} has over {most} bytes", remediation="make it smaller")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name} is not UTF-8", remediation="save it as that") from error


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _digest(fd: int) -> str:
    total = hashlib.sha256()
    while data := os.read(fd, _PIECE):
        total.update(data)
    return total.hexdigest()
