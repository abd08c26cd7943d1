"""fs.read: a file as DATA frames, as fast as the host grants credit; docs/guest-protocol.md.

Regular files only: opening a device or a fifo acts on it, and reading one may never end.
"""

import errno
import os
import stat
from typing import TYPE_CHECKING

from agentd.guest import wire
from agentd.guest.fs import type_name
from agentd.guest.operation import Channel, ChannelOperation, Quiet, RequestError, get_int
from agentd.guest.resolve import get_path, open_path
from agentd.guest.stepped import plain

if TYPE_CHECKING:
    from agentd.guest.loop import Timer

CHUNK = 256 << 10
# Chunks sent before the loop has its turn.
TURN = 4
MAX_OFFSET = (1 << 63) - 1


class FileRead(Quiet):
    """Sends ``length`` bytes from ``offset`` on, or up to the size that the file had when opened.

    A file whose size is 0 may be one of /proc, which have none: it is read to its end.
    """

    def __init__(
        self, channel: Channel, fd: int, path: str, offset: int, length: int | None
    ) -> None:
        size = os.fstat(fd).st_size
        self._channel = channel
        self._fd = fd
        self._path = path
        self._position = offset
        self._end = size if size else MAX_OFFSET
        if length is not None:
            self._end = min(self._end, offset + length)
        self._timer: Timer | None = None

    def start(self) -> ChannelOperation | None:
        self._pump()
        return self if self._fd >= 0 else None

    def on_credit(self) -> None:
        if self._timer is None:
            self._pump()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _pump(self) -> None:
        self._timer = None
        try:
            for _ in range(TURN):
                if self._fd < 0 or not self._send_chunk():
                    return
        except OSError as error:
            self.close()
            self._channel.fail(OSError(error.errno, _reason(error), self._path))
            return
        self._timer = self._channel.loop.after(0, self._pump)

    def _send_chunk(self) -> bool:
        """False when it has ended or must wait for credit."""
        left = self._end - self._position
        if left > 0:
            amount = min(self._channel.credit(), CHUNK, left)
            if amount <= 0:
                return False
            data = os.pread(self._fd, amount, self._position)
            if data:
                self._position += len(data)
                self._channel.send(wire.DATA, data)
                return True
        size = os.fstat(self._fd).st_size or self._position
        self.close()
        self._channel.send_eof()
        self._channel.finish("result", size=size)
        return False


def start(channel: Channel, request: dict[str, object]) -> ChannelOperation | None:
    path = get_path(request)
    offset = get_int(request, "offset", 0, 0, MAX_OFFSET)
    length = None
    if request.get("length") is not None:
        length = get_int(request, "length", 0, 0, MAX_OFFSET)
    return FileRead(channel, _open_regular(path), path, offset, length).start()


def _open_regular(path: str) -> int:
    # Opening is an action for some files (a watchdog arms, a fifo lets its writer go on): look
    # first. The second look is for a path that was swapped in between.
    probe = open_path(path, os.O_PATH)
    try:
        _require_regular(probe, path)
    finally:
        os.close(probe)
    fd = open_path(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _require_regular(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _require_regular(fd: int, path: str) -> None:
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        raise RequestError(f"{path} is a directory: use fs.list", errno.EISDIR)
    if not stat.S_ISREG(mode):
        raise RequestError(
            f"{path} is a {type_name(mode)}, not a regular file: read it with a command, cat",
            errno.EINVAL,
        )


def _reason(error: OSError) -> str:
    if error.errno == errno.EAGAIN:
        return "it has nothing to read now: read it with a command, cat"
    return error.strerror or "unknown error"


OPERATIONS = {"fs.read": plain(start)}
