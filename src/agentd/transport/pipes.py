"""A command's standard streams as pipes, passed to an agent on the same kernel."""

import os
import select
from collections import deque

READ = 64 << 10


class Pipes:
    """Our ends, by name; the agent's ends until ``hand_over`` closes our copies of them.

    Ours never block: a guest may open its end for reading through /proc and steal what poll
    promised us.
    """

    def __init__(self, stdin: bool) -> None:
        self.outputs: dict[int, str] = {}
        self.stdin: int | None = None
        self.theirs: list[int] = []
        self.names: list[str] = []
        try:
            if stdin:
                theirs, self.stdin = os.pipe2(os.O_CLOEXEC)
                self._give("stdin", theirs)
                os.set_blocking(self.stdin, False)
            for name in ("stdout", "stderr"):
                ours, theirs = os.pipe2(os.O_CLOEXEC)
                self.outputs[ours] = name
                self._give(name, theirs)
                os.set_blocking(ours, False)
        except BaseException:
            self.close()
            raise

    def _give(self, name: str, fd: int) -> None:
        self.theirs.append(fd)
        self.names.append(name)

    def hand_over(self) -> None:
        """The agent has its ends: without our copies, its close is our end of file."""
        while self.theirs:
            os.close(self.theirs.pop())

    def read(self, fd: int) -> bytes | None:
        """What is there, or None where nothing is now; b"" at the end, and ``fd`` is closed."""
        try:
            data = os.read(fd, READ)
        except BlockingIOError:
            return None
        if not data:
            del self.outputs[fd]
            os.close(fd)
        return data

    def close_stdin(self) -> None:
        if self.stdin is not None:
            fd, self.stdin = self.stdin, None
            os.close(fd)

    def close(self) -> None:
        self.hand_over()
        self.close_stdin()
        while self.outputs:
            os.close(self.outputs.popitem()[0])

    def register(self, poller: "select.poll", outputs: bool, stdin: bool) -> None:
        if outputs:
            for fd in self.outputs:
                poller.register(fd, select.POLLIN)
        if stdin and self.stdin is not None:
            poller.register(self.stdin, select.POLLOUT)


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
        """At most ``limit`` of the next bytes; they stay until ``drop``."""
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
