"""fs.tar_read and fs.tar_write: trees as tar, made and taken by the agent; docs/guest-protocol.md.

No program of the sandbox has a part in it, which could be stopped, or say something else.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from agentd.guest import wire
from agentd.guest.fs_write import temporary_name
from agentd.guest.operation import Channel, ChannelOperation, Quiet, RequestError, get_bool
from agentd.guest.pack import Packer
from agentd.guest.removal import opened_up, remove_tree
from agentd.guest.resolve import get_path, naming, open_parent, open_path, split
from agentd.guest.stepped import Steps, plain
from agentd.guest.tar import TarError
from agentd.guest.unpack import Unpacker
from agentd.linux import abi, mounts
from agentd.linux.kernel import KERNEL

if TYPE_CHECKING:
    from agentd.guest.loop import Loop, Timer

# Pieces sent before the loop has its turn.
TURN = 4
_TREE = b"tree"
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TarRead(Quiet):
    """Owns ``parent``, the directory that the tree is in."""

    def __init__(self, channel: Channel, parent: int, name: bytes, top: bytes) -> None:
        self._channel = channel
        self._parent = parent
        self._packer = Packer(parent, name, top)
        self._pieces = self._packer.run()
        self._piece = memoryview(b"")
        self._timer: Timer | None = None

    def start(self) -> ChannelOperation | None:
        self._pump()
        return self if self._parent >= 0 else None

    def on_credit(self) -> None:
        if self._timer is None and self._parent >= 0:
            self._pump()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._pieces.close()
        parent, self._parent = self._parent, -1
        if parent >= 0:
            os.close(parent)

    def _pump(self) -> None:
        self._timer = None
        try:
            for _ in range(TURN):
                if not self._piece:
                    self._piece = memoryview(next(self._pieces))
                amount = min(self._channel.credit(), len(self._piece))
                if self._piece and not amount:
                    return  # on_credit goes on
                if amount:
                    self._channel.send(wire.DATA, bytes(self._piece[:amount]))
                    self._piece = self._piece[amount:]
        except StopIteration:
            self.close()
            self._channel.send_eof()
            self._channel.finish("result", count=self._packer.entries, size=self._packer.bytes)
            return
        except (OSError, TarError) as error:
            self.close()
            self._channel.fail(_refusal(error))
            return
        self._timer = self._channel.loop.after(0, self._pump)


def start_read(channel: Channel, request: dict[str, object]) -> ChannelOperation | None:
    path = get_path(request)
    if path.rstrip("/"):
        head, name = split(path)
        parent = open_path(head, os.O_PATH | os.O_DIRECTORY)
    else:
        name, parent = ".", open_path("/", os.O_PATH | os.O_DIRECTORY)
    top = os.fsencode(name)
    if path.endswith("/") and _is_link(parent, name):  # as cp(1) has it: what it leads to is meant
        os.close(parent)
        parent, name = open_path(path, os.O_PATH | os.O_DIRECTORY), "."
    return TarRead(channel, parent, os.fsencode(name), top).start()


def _is_link(parent: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except OSError:  # which the packer tells
        return False


class TarWrite(Quiet):
    """Owns ``root``, which the archive goes into, and what it leaves there unless it is kept."""

    def __init__(self, channel: Channel, root: int, name: bytes | None) -> None:
        self._channel = channel
        self._root = root
        self._unpacker = Unpacker(root, name)
        self._steps: Iterator[None] | None = None
        self._timer: Timer | None = None

    def on_data(self, kind: int, data: bytes) -> None:
        if kind != wire.DATA:
            raise RequestError("fs.tar_write takes DATA frames")
        if self._root < 0 or self._steps is not None:
            return
        try:
            self._unpacker.write(data)
        except (OSError, TarError) as error:
            self._fail(error)
            return
        if data:
            self._channel.grant(len(data))

    def on_eof(self, kind: int) -> None:
        if kind != wire.DATA_EOF or self._root < 0 or self._steps is not None:
            return
        self._steps = self._finishing()
        self._step()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._unpacker.close()
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    def _finishing(self) -> Iterator[None]:
        yield from self._unpacker.finish()

    def _step(self) -> None:
        self._timer = None
        try:
            next(self._steps or iter(()))
        except StopIteration:
            entries, size = self._unpacker.entries, self._unpacker.bytes
            self.close()
            self._channel.finish("result", count=entries, size=size)
            return
        except (OSError, TarError) as error:
            self._fail(error)
            return
        self._timer = self._channel.loop.after(0, self._step)

    def _fail(self, error: Exception) -> None:
        self.close()
        self._channel.fail(_refusal(error))


class TarWriteWhole(TarWrite):
    """A tree that appears as a whole under a path, or not at all. Owns ``parent`` as well.

    It is made in a directory beside, which is removed at the end with whatever is in it then: what
    was made so far, or what the tree has taken the place of.
    """

    def __init__(
        self, channel: Channel, parent: int, name: str, path: str, *, replace: bool
    ) -> None:
        self._loop = channel.loop
        self._parent = parent
        self._name = name
        self._path = path
        self._replace = replace
        self._beside = os.fsdecode(temporary_name(name))
        with naming(path):
            os.mkdir(self._beside, 0o700, dir_fd=parent)
        try:
            root = os.open(self._beside, _FOLDER, dir_fd=parent)
        except BaseException:
            with suppress(OSError):
                os.rmdir(self._beside, dir_fd=parent)
            raise
        super().__init__(channel, root, _TREE)

    def close(self) -> None:
        super().close()
        parent, self._parent = self._parent, -1
        if parent >= 0:
            _Removal(self._loop, parent, self._beside)

    def _finishing(self) -> Iterator[None]:
        yield from self._unpacker.finish()
        with naming(self._path):
            if not self._exchanged():
                # A filesystem that cannot: so there is nothing there for a moment.
                yield from self._cleared()
                os.rename(_TREE, self._name, src_dir_fd=self._root, dst_dir_fd=self._parent)
            self._unpacker.close_up()

    def _exchanged(self) -> bool:
        """Return whether it is in place, and what was there is where it came from."""
        try:
            self._rename(abi.RENAME_NOREPLACE)
            return True
        except OSError as error:
            if error.errno == errno.EINVAL and not self._replace:
                self._rename_plainly()
                return True
            if error.errno not in (errno.EEXIST, errno.EINVAL) or not self._replace:
                raise
        try:
            self._exchange()
            return True
        except OSError as error:
            # An overlay's lower directory is EXDEV.
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOENT):
                raise
        return False

    def _exchange(self) -> None:
        try:
            self._rename(abi.RENAME_EXCHANGE)
        except PermissionError:  # as of a directory that its owner may not write in
            with opened_up(self._parent, self._name):
                self._rename(abi.RENAME_EXCHANGE)

    def _rename_plainly(self) -> None:
        """On a file system that takes no flags, such as gVisor's: what another process puts there
        in between is replaced, unless it is a directory that holds something."""
        with suppress(FileNotFoundError):
            os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(_TREE, self._name, src_dir_fd=self._root, dst_dir_fd=self._parent)

    def _rename(self, flags: int) -> None:
        name = os.fsencode(self._name)
        KERNEL.renameat2(self._root, _TREE, self._parent, name, flags)

    def _cleared(self) -> Iterator[None]:
        try:
            os.unlink(self._name, dir_fd=self._parent)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
            for _ in remove_tree(self._parent, self._name, self._path, force=True):
                yield


class _Removal:
    """Removes a directory a slice at a time, after its operation has ended. Owns ``parent``."""

    def __init__(self, loop: "Loop", parent: int, name: str) -> None:
        self._loop = loop
        self._parent = parent
        self._steps: Steps = remove_tree(parent, name, name, force=True)
        self._step()

    def _step(self) -> None:
        try:
            next(self._steps)
        except (StopIteration, OSError, RequestError):
            os.close(self._parent)
            return
        self._loop.after(0, self._step)


def start_write(channel: Channel, request: dict[str, object]) -> ChannelOperation:
    path = get_path(request)
    replace = get_bool(request, "replace")
    if not get_bool(request, "whole"):
        if replace:
            raise RequestError("only a whole tree replaces what is there: ask for whole, too")
        return TarWrite(channel, open_path(path, os.O_PATH | os.O_DIRECTORY), None)
    parent, name = open_parent(path)
    try:
        with naming(path):
            _require_room(parent, name, path, replace)
        return TarWriteWhole(channel, parent, name, path, replace=replace)
    except BaseException:
        os.close(parent)
        raise


def _require_room(parent: int, name: str, path: str, replace: bool) -> None:
    """Refuse before any data is sent what could not be put there."""
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not replace:
        raise RequestError(f"{path} exists already: remove it, or replace it", errno.EEXIST)
    if stat.S_ISDIR(found.st_mode) and found.st_dev != os.fstat(parent).st_dev:
        raise RequestError(f"{path} is a mount point: put the tree into it instead", errno.EBUSY)
    below = os.path.join(os.readlink(f"/proc/self/fd/{parent}"), name, "")
    mounted = next((point for point in _mount_points() if point.startswith(below)), None)
    if mounted is not None:
        raise RequestError(f"{path} has a mount point in it, {mounted}", errno.EBUSY)


def _mount_points() -> list[str]:
    try:
        return mounts.points()
    except PermissionError:
        # At the process level Landlock closes /proc. Nothing inside can mount there, and what is
        # removed is removed past no mount (removal.py).
        return []


def _refusal(error: Exception) -> Exception:
    if isinstance(error, TarError):
        return RequestError(str(error), errno.EINVAL)
    return error


OPERATIONS = {"fs.tar_read": plain(start_read), "fs.tar_write": plain(start_write)}
