"""A tree of files as a tar, descriptor by descriptor: no link is followed, nothing waited for.

What the tree's owner changes meanwhile cannot lead elsewhere, and cannot make it go on for ever: a
file is read to the size that it had when it was opened.
"""

import errno
import os
import stat
from collections.abc import Generator, Iterator

from agentd.guest import tar
from agentd.guest.tar import TarEntry, TarError, shown

CHUNK = 256 << 10
# Entries looked at before the caller has its turn.
SLICE = 128

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# It went, or became something else, between being listed and being opened.
_CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
# Whoever unpacks it elsewhere is to become no program's user: set-id bits stay behind.
_MODE = 0o1777
_SPECIAL = {stat.S_IFIFO: "a fifo", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class Packer:
    """``entries`` and ``bytes`` count what was packed, ``skipped`` the sockets left out, of which
    ``first_skipped`` is one."""

    def __init__(self, parent: int, name: bytes, top: bytes) -> None:
        """The entry ``name`` of the directory ``parent``, which is to be called ``top``."""
        self.entries = 0
        self.bytes = 0
        self.skipped = 0
        self.first_skipped = b""
        self._parent = parent
        self._name = name
        self._top = top
        self._out = bytearray()
        self._entry: TarEntry | None = None  # of the tree itself

    def run(self) -> Generator[bytes, None, None]:
        """Yields the archive in pieces; an empty one only gives the caller its turn.

        What ends it early (TarError, OSError) is told in the archive too, then raised.
        """
        try:
            yield from self._walk()
        except (OSError, TarError) as error:
            yield self._taken() + tar.encode_error(_reason(error))
            raise
        if self.skipped:
            sockets = "socket" if self.skipped == 1 else "sockets"
            told = f"{self.skipped} {sockets}, as {shown(self.first_skipped)}"
            if self._entry is not None:
                self._out += tar.encode(self._entry, told)
        self._out += tar.END
        yield self._taken()

    def _walk(self) -> Iterator[bytes]:
        # Of each open directory: its descriptor, its path, and what is still to be read of it.
        levels: list[tuple[int, bytes, os._ScandirIterator[str]]] = []
        try:
            below = yield from self._add(self._parent, self._name, self._top)
            while below is not None or levels:
                if below is not None:
                    levels.append((*below, _listing(len(levels), *below)))
                fd, path, names = levels[-1]
                item = next(names, None)
                if item is None:
                    levels.pop()
                    os.close(fd)
                    below = None
                    continue
                name = os.fsencode(item.name)
                below = yield from self._add(fd, name, path + b"/" + name)
        finally:
            for fd, _, names in levels:
                names.close()
                os.close(fd)

    def _add(
        self, parent: int, name: bytes, path: bytes
    ) -> Generator[bytes, None, tuple[int, bytes] | None]:
        """One entry; of a directory its descriptor and path, to go on in."""
        self.entries += 1
        if self.entries > tar.MAX_ENTRIES:
            raise TarError(f"there are over {tar.MAX_ENTRIES} files in it")
        if len(path) > tar.MAX_PATH:
            raise TarError(f"the path {shown(path[:60])}... is over {tar.MAX_PATH} bytes")
        if self.entries % SLICE == 0:  # whatever they are: of some there is nothing to send
            yield b""
        try:
            return (yield from self._of_its_kind(parent, name, path))
        except FileNotFoundError:
            if path == self._top:
                raise
            return None  # it has gone since it was listed
        except OSError as error:
            if error.errno in _CHANGED:
                raise TarError(f"{shown(path)} changed while it was read: copy again") from None
            reason = "it cannot be read now" if error.errno == errno.EAGAIN else error.strerror
            raise OSError(error.errno, f"{shown(path)}: {reason}") from None

    def _of_its_kind(
        self, parent: int, name: bytes, path: bytes
    ) -> Generator[bytes, None, tuple[int, bytes] | None]:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFLNK:
            target = os.readlink(name, dir_fd=parent)
            yield from self._put(TarEntry(path, "link", 0o777, 0, int(info.st_mtime), target))
        elif kind == stat.S_IFSOCK:
            self.skipped += 1
            self.first_skipped = self.first_skipped or path
        elif kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise TarError(
                f"{shown(path)} is {_SPECIAL.get(kind, 'of an unknown kind')}: "
                "only files, folders and links are copied"
            )
        else:
            fd = os.open(name, _OPEN, dir_fd=parent)
            info = os.fstat(fd)
            if stat.S_ISDIR(info.st_mode):
                try:
                    yield from self._put(
                        TarEntry(path, "dir", info.st_mode & _MODE, 0, int(info.st_mtime))
                    )
                except BaseException:
                    os.close(fd)
                    raise
                return fd, path
            try:
                if not stat.S_ISREG(info.st_mode):
                    raise TarError(f"{shown(path)} changed while it was read: copy again")
                yield from self._file(fd, info, path)
            finally:
                os.close(fd)
        return None

    def _file(self, fd: int, info: os.stat_result, path: bytes) -> Iterator[bytes]:
        self.bytes += info.st_size
        if self.bytes > tar.MAX_BYTES:
            raise TarError(
                f"{shown(path)} ({info.st_size} bytes) is more than what is left of the "
                f"{tar.MAX_BYTES} bytes that a tree may have"
            )
        yield from self._put(
            TarEntry(path, "file", info.st_mode & _MODE, info.st_size, int(info.st_mtime))
        )
        left, cut = info.st_size, False
        while left:
            data = b"" if cut else os.read(fd, min(CHUNK, left))
            if not data:  # the archive stays one, so that this can be told in it
                cut, data = True, bytes(min(CHUNK, left))
            left -= len(data)
            self._out += data
            if len(self._out) >= CHUNK:
                yield self._taken()
        self._out += bytes(tar.padding(info.st_size))
        if cut:
            raise TarError(f"{shown(path)} became shorter while it was read: copy again")

    def _put(self, entry: TarEntry) -> Iterator[bytes]:
        self._entry = self._entry or entry
        self._out += tar.encode(entry)
        if len(self._out) >= CHUNK:
            yield self._taken()

    def _taken(self) -> bytes:
        out, self._out = bytes(self._out), bytearray()
        return out


def _listing(depth: int, fd: int, path: bytes) -> "os._ScandirIterator[str]":
    """What is in a directory, whose descriptor is closed where that cannot be told."""
    try:
        if depth >= tar.MAX_DEPTH:
            raise TarError(f"{shown(path)} is over {tar.MAX_DEPTH} folders deep")
        return os.scandir(fd)
    except BaseException:
        os.close(fd)
        raise


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
