"""The output of a command: the pump that reads it, and the ring that remembers it."""

import array
import contextlib
import fcntl
import os
import termios
from collections.abc import Callable

from agentd.guest.loop import READ, Loop

STDOUT = 1
STDERR = 2
READ_BYTES = 64 << 10
# Of a stream that has filled its pipe so often, more is read at a time, from a larger pipe.
WIDE_BYTES = 256 << 10
_WIDE_AFTER = 32
RING_BYTES = 1 << 20
NO_LIMIT = 1 << 62
# Reads at the exit, before the loop has its turn again.
_EXIT_READS = 32


class Pump:
    """Reads one pipe or PTY and delivers it, never more than ``window()`` at once.

    With no window it does not read: the command is held up by the kernel's buffer. Beyond
    ``limit`` bytes it delivers no more and says ``on_over`` once. ``on_end`` is its last call.
    Owns ``fd``.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        *,
        limit: int | None,
        window: Callable[[], int],
        deliver: Callable[[bytes], None],
        on_over: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._left = NO_LIMIT if limit is None else limit
        self._budget = NO_LIMIT
        self._window = window
        self._deliver = deliver
        self._on_over = on_over
        self._on_end = on_end
        self._watching = False
        self._read_bytes = READ_BYTES
        self._full_reads = 0
        self._mark: int | None = None
        self.total = 0
        # It was ended while somebody wrote to it.
        self.cut = False
        self.closed = False
        os.set_blocking(fd, False)
        self.resume()

    def resume(self) -> None:
        """Goes on: the window may have opened."""
        if not self.closed and not self._watching:
            self._watching = True
            self._loop.watch(self._fd, READ, self._ready)

    def read_out(self) -> None:
        """Delivers what is there as the command has exited; ends here where nobody holds it."""
        reads = 0
        while not self.closed and reads < _EXIT_READS and self._step():
            reads += 1

    def mark(self) -> None:
        """Remember this moment: ``drain`` cuts what is written after it, and ``cut`` says so."""
        if not self.closed:
            self._mark = self._written()

    def drain(self) -> None:
        """Deliver what has been written by now, then end.

        A grandchild that holds the pipe, or goes on writing to it, cannot hold up the end.
        """
        if self.closed or self._budget != NO_LIMIT:
            return
        self._budget = self._held()
        while not self.closed and self._step():
            pass

    def close(self) -> None:
        """Stop without a further call; idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._watching:
            self._loop.forget(self._fd)
        os.close(self._fd)

    def _ready(self, _: int) -> None:
        self._step()

    def _step(self) -> bool:
        """One read. False when there is nothing to be had now, or no window for it."""
        if not self._budget:
            self.cut = self._mark is not None and self._written() > self._mark
            self._end()
            return False
        # Past the limit one more byte tells whether there is more; it is not delivered.
        room = self._window() if self._left else 1
        if room <= 0:
            self._hold()
            return False
        try:
            data = os.read(self._fd, min(room, self._read_bytes, self._left or 1, self._budget))
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            # EIO: the last slave of a PTY was closed.
            data = b""
        if not data:
            self._end()
            return False
        self._budget -= len(data) if self._budget != NO_LIMIT else 0
        if not self._left:
            self._over()
            return False
        self._left -= len(data)
        self.total += len(data)
        if len(data) == READ_BYTES:
            self._widen()
        self._deliver(data)
        return True

    def _written(self) -> int:
        """Bytes that were ever written to it."""
        return self.total + self._held()

    def _held(self) -> int:
        """Bytes that wait in it."""
        held = array.array("i", [0])
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, termios.FIONREAD, held)
        return held[0]

    def _widen(self) -> None:
        self._full_reads += 1
        if self._full_reads == _WIDE_AFTER:
            # EPERM: the user has too many pages in pipes. A PTY has no size.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, WIDE_BYTES)
                self._read_bytes = WIDE_BYTES

    def _hold(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.forget(self._fd)

    def _over(self) -> None:
        self.close()
        self._on_over()
        self._on_end()

    def _end(self) -> None:
        self.close()
        self._on_end()


class OutputRing:
    """The last ``size`` bytes of a stream, addressed by absolute cursors."""

    def __init__(self, size: int = RING_BYTES) -> None:
        self._size = size
        self._data = bytearray()
        self.end = 0

    def __len__(self) -> int:
        return len(self._data)

    @property
    def start(self) -> int:
        """Returns the cursor of the oldest byte still held."""
        return self.end - len(self._data)

    def append(self, data: bytes) -> None:
        self._data += data
        self.end += len(data)
        if len(self._data) > self._size:
            del self._data[: len(self._data) - self._size]

    def read(self, cursor: int, length: int) -> tuple[int, bytes]:
        """Returns ``(cursor, bytes)``: from there, or from the oldest byte when that is gone."""
        cursor = max(cursor, self.start)
        first = cursor - self.start
        return cursor, bytes(self._data[first : first + length])
