"""A command's standard streams as pipes, passed to an agent on the same kernel."""

import array
import contextlib
import fcntl
import os
import select
import termios
import time
from collections import deque
from collections.abc import Iterator

READ = 64 << 10
# What a command has left behind may still write for so long after its exit.
LATE = 0.1
# Who writes in the last half of that, and holds on, would have gone on: told as truncated.
LAST = 0.05
# Reads of a pipe at the exit, before the caller gets what was read.
_EXIT_READS = 32


class Pipes:
    """Our ends, by name; the agent's ends until ``hand_over`` closes our copies of them.

    Ours never block: a guest may open its end for reading through /proc and steal what poll
    promised us.
    """

    def __init__(
        self, stdin: bool, owner: tuple[int, int] | None = None, stdout_bytes: int = 0
    ) -> None:
        """``owner`` is whose the pipes are: who opens /dev/stdout anew, opens a file of theirs.
        ``stdout_bytes``: how many that one holds, where the caller may have so many; 0: as usual.
        """
        self.outputs: dict[int, str] = {}
        self.taken = {"stdout": 0, "stderr": 0}
        self.stdin: int | None = None
        self.theirs: list[int] = []
        self.names: list[str] = []
        try:
            for name in ("stdin", "stdout", "stderr") if stdin else ("stdout", "stderr"):
                reads, writes = os.pipe2(os.O_CLOEXEC)
                ours, theirs = (writes, reads) if name == "stdin" else (reads, writes)
                if name == "stdin":
                    self.stdin = ours
                else:
                    self.outputs[ours] = name
                self.theirs.append(theirs)
                if owner is not None:
                    with contextlib.suppress(PermissionError):  # root without CAP_CHOWN
                        os.fchown(theirs, *owner)
                if stdout_bytes and name == "stdout":
                    with contextlib.suppress(OSError):  # more than a user may have in pipes
                        fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, stdout_bytes)
                self.names.append(name)
                os.set_blocking(ours, False)
        except BaseException:
            self.close()
            raise

    def hand_over(self) -> None:
        """Close our copies of the agent's ends: its close is our end of file then."""
        while self.theirs:
            os.close(self.theirs.pop())

    def read(self, fd: int, limit: int = READ) -> bytes | None:
        """Return what is there, or None where nothing is; b"" at the end, and ``fd`` is closed."""
        try:
            data = os.read(fd, min(limit, READ))
        except BlockingIOError:
            return None
        if data:
            self.taken[self.outputs[fd]] += len(data)
        else:
            del self.outputs[fd]
            os.close(fd)
        return data

    def at_exit(self) -> Iterator[tuple[str, bytes]]:
        """Yield (name, bytes) of what is there at the exit; all of it where nobody holds a pipe."""
        for fd, name in list(self.outputs.items()):
            for _ in range(_EXIT_READS):
                data = self.read(fd)
                if not data:
                    break
                yield name, data

    def rest(self) -> Iterator[tuple[str, bytes]]:
        """Yield (name, bytes) of what is in them by now: who holds them may write for ever."""
        for fd, name in list(self.outputs.items()):
            left = _held(fd)
            while left > 0 and (data := self.read(fd, left)):
                left -= len(data)
                yield name, data

    def written(self) -> dict[int, int]:
        """Count the bytes that were ever written to each that is open."""
        return {fd: self.taken[name] + _held(fd) for fd, name in self.outputs.items()}

    def close_stdin(self) -> None:
        if self.stdin is not None:
            fd, self.stdin = self.stdin, None
            os.close(fd)

    def close(self) -> None:
        """Close all that is open; idempotent."""
        if self.theirs:
            self.hand_over()
        if self.stdin is not None:
            self.close_stdin()
        while self.outputs:
            os.close(self.outputs.popitem()[0])

    __del__ = close  # those of a command that is forgotten go with it

    def register(self, poller: "select.poll", outputs: bool, stdin: bool) -> None:
        if outputs:
            for fd in self.outputs:
                poller.register(fd, select.POLLIN)
        if stdin and self.stdin is not None:
            poller.register(self.stdin, select.POLLOUT)


class Late:
    """The wait, after a command's exit, for what it left behind and what that still writes.

    It is over once nobody holds a pipe, or after LATE seconds. ``due`` is when to ask again.
    """

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes
        self._marks: dict[int, int] | None = None
        self.due = time.monotonic() + LATE - LAST

    def stop(self) -> None:
        """Wait no longer; nothing counts as cut."""
        self._marks = {}
        self.due = 0.0

    def over(self) -> bool:
        if not self._pipes.outputs:
            return True
        now = time.monotonic()
        if now < self.due:
            return False
        if self._marks is None:
            self._marks = self._pipes.written()
            self.due = now + LAST
            return False
        return True

    def cut(self) -> bool:
        """Return whether somebody went on writing until now to a pipe that is open."""
        marks = self._marks or {}
        return any(count > marks.get(fd, count) for fd, count in self._pipes.written().items())


class Feed:
    """Bytes on their way to a command's stdin, in order, without copying what the caller gave."""

    def __init__(self) -> None:
        self._parts: deque[memoryview] = deque()
        self.size = 0
        self.ended = False

    def add(self, data: bytes) -> None:
        if data:
            self._parts.append(memoryview(data))
            self.size += len(data)

    def head(self, limit: int) -> memoryview:
        """Return at most ``limit`` of the next bytes; they stay until ``drop``."""
        return self._parts[0][:limit]

    def drop(self, amount: int) -> None:
        self.size -= amount
        if amount == len(self._parts[0]):
            self._parts.popleft()
        else:
            self._parts[0] = self._parts[0][amount:]

    def clear(self) -> None:
        self._parts.clear()
        self.size = 0


def _held(fd: int) -> int:
    """Count the bytes that wait in a pipe."""
    found = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, termios.FIONREAD, found)
    return found[0]
