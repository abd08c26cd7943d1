"""fs.write: the host's DATA into a file that appears whole or not at all; docs/guest-protocol.md.

Atomic by rename: a reader sees the old file or the new one. Not durable: nothing is synced, since
a sandbox's disk ends with the sandbox. A symlink at the path is replaced, not written through.
"""

import errno
import os
import stat
from contextlib import suppress

from agentd.guest import wire
from agentd.guest.fs import type_name
from agentd.guest.operation import Channel, ChannelOperation, Quiet, RequestError, get_bool, get_int
from agentd.guest.resolve import get_path, naming, open_parent
from agentd.guest.stepped import plain

# NAME_MAX is 255; the temporary name adds 25 bytes to what it keeps of the name.
_KEPT = 230


class FileWrite(Quiet):
    """Owns the temporary file, and ``parent``, the directory that both names are in."""

    def __init__(self, channel: Channel, parent: int, name: str, path: str, mode: int) -> None:
        self._channel = channel
        self._parent = parent
        self._name = name
        self._path = path
        self._mode = mode
        self._size = 0
        self._temporary = temporary_name(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with naming(path):
            self._fd = os.open(self._temporary, flags, self._mode & 0o777, dir_fd=parent)

    def on_data(self, kind: int, data: bytes) -> None:
        if kind != wire.DATA:
            raise RequestError("fs.write takes DATA frames")
        if self._fd < 0:
            return
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self._fail(error)
            return
        self._size += len(data)
        if data:
            self._channel.grant(len(data))

    def on_eof(self, kind: int) -> None:
        if kind != wire.DATA_EOF or self._fd < 0:
            return
        try:
            if stat.S_IMODE(os.fstat(self._fd).st_mode) != self._mode:
                os.fchmod(self._fd, self._mode)
            fd, self._fd = self._fd, -1
            os.close(fd)  # some filesystems tell of a full disk only here
            os.rename(self._temporary, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        except OSError as error:
            self._fail(error)
            return
        self._temporary = b""
        self.close()
        self._channel.finish("result", size=self._size)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        if self._parent < 0:
            return
        if self._temporary:
            # A command may have removed it, or its directory may be read-only by now.
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._parent)
        os.close(self._parent)
        self._parent = -1

    def _fail(self, error: OSError) -> None:
        self.close()
        self._channel.fail(OSError(error.errno, error.strerror, self._path))


def temporary_name(name: str) -> bytes:
    return b".%s.%s.agentd" % (os.fsencode(name)[:_KEPT], os.urandom(8).hex().encode())


def start(channel: Channel, request: dict[str, object]) -> ChannelOperation:
    path = get_path(request)
    mode = get_int(request, "mode", 0o644, 0, 0o7777)
    parents = get_bool(request, "parents")
    if path.endswith("/"):
        raise RequestError(f"{path} names a directory: name a file", errno.EISDIR)
    parent, name = open_parent(path, parents=parents)
    try:
        _require_writable(parent, name, path)
        return FileWrite(channel, parent, name, path, mode)
    except BaseException:
        os.close(parent)
        raise


def _require_writable(parent: int, name: str, path: str) -> None:
    """Refuse before any data is sent what a rename would refuse, or would destroy: /dev/null."""
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise RequestError(f"{path} is a directory: name a file", errno.EISDIR)
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise RequestError(
            f"{path} is a {type_name(mode)}, not a regular file: write it with a command, tee",
            errno.EINVAL,
        )


OPERATIONS = {"fs.write": plain(start)}
