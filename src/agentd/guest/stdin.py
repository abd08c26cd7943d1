"""The way in of a command: what the host sends, written to a pipe or a PTY."""

import os
from collections import deque
from collections.abc import Callable

from agentd.guest.loop import WRITE, Loop


class Stdin:
    """Feeds a pipe or a PTY without ever blocking. A reader that is gone is no error."""

    def __init__(self, loop: Loop, fd: int, *, terminal: bool) -> None:
        self._loop = loop
        self._fd = fd
        self._terminal = terminal
        self._queue: deque[tuple[bytes | memoryview, Callable[[int], None] | None]] = deque()
        self._eof = False
        self.closed = False
        os.set_blocking(fd, False)

    def feed(self, data: bytes, taken: Callable[[int], None] | None) -> None:
        """Write it in time; ``taken(bytes)`` is called as it goes."""
        if self.closed or self._eof:
            if taken is not None:
                taken(len(data))
            return
        self._queue.append((data, taken))
        if len(self._queue) == 1:
            self._write()

    def feed_eof(self) -> None:
        if self.closed or self._eof:
            return
        if self._terminal:
            # A terminal's end of file is a character (VEOF), good at the start of a line.
            self.feed(b"\x04", None)
            return
        self._eof = True
        if not self._queue:
            self.close()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.forget(self._fd)
        os.close(self._fd)
        while self._queue:
            data, taken = self._queue.popleft()
            if taken is not None:
                taken(len(data))

    def _write(self, _: int = 0) -> None:
        while self._queue:
            data, taken = self._queue[0]
            try:
                count = os.write(self._fd, data)
            except (BlockingIOError, InterruptedError):
                self._watch()
                return
            except OSError:
                self.close()
                return
            if count == len(data):
                self._queue.popleft()
            else:
                # A view: what is left of a long text would be copied for each pipe's fill.
                self._queue[0] = (memoryview(data)[count:], taken)
            if taken is not None:
                taken(count)
        if self._eof:
            self.close()
        elif not self.closed:
            self._loop.forget(self._fd)

    def _watch(self) -> None:
        self._loop.watch(self._fd, WRITE, self._write)
