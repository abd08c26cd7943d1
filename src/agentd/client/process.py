"""A running command, as the SDK holds it."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from agentd.client import arguments
from agentd.client.chunk import Chunk, Chunks
from agentd.client.wording import of_result
from agentd.model.errors import InvalidInput
from agentd.model.result import Result
from agentd.model.running import drive

if TYPE_CHECKING:
    from agentd.model.running import RunningCommand


class Process:
    """A running command: iterate for its output, ``wait`` for its Result. One thread
    drives it; another may write, signal and kill."""

    def __init__(self, running: "RunningCommand") -> None:
        self._running = running
        self._chunks = Chunks()
        self._unread = Unread()
        self._result: Result | None = None

    @property
    def id(self) -> str | None:
        """Return the daemon's name for it, for ``Sandbox.attach``; None without a daemon."""
        return self._running.id or None

    @property
    def pid(self) -> int | None:
        """Return its process id inside, once it has started."""
        return self._running.pid

    @property
    def cursors(self) -> dict[str, int]:
        """Return the bytes of each stream that were given out, for ``Sandbox.attach``."""
        return self._unread.cursors(self._running.cursors)

    @property
    def result(self) -> Result:
        """Return its Result; raises InvalidInput before the output is exhausted."""
        if self._result is None:
            raise not_ended()
        return self._result

    def __iter__(self) -> Iterator[Chunk]:
        """Yield its output; a loop that is left early leaves the rest to the next one."""
        if self._result is not None:
            return
        yield from self._given()
        for found, _ in drive(self._running):
            self._unread.add(found)
            yield from self._given()
        yield from self._chunks.rest()
        self.wait()

    def write(self, data: bytes | str) -> None:
        """Feed its stdin, which ``start(stdin=True)`` or a terminal has."""
        self._running.write(arguments.feed(data))

    def close_stdin(self) -> None:
        """Let it read the end of its stdin."""
        self._running.close_stdin()

    def signal(self, number: int) -> None:
        """Send a signal to its process group."""
        self._running.signal(number)

    def resize(self, rows: int, cols: int) -> None:
        """Tell its terminal the window's new size."""
        self._running.resize(rows, cols)

    def kill(self) -> None:
        """End it by SIGKILL; ``wait`` then tells how it ended."""
        self._running.kill()

    def wait(self) -> Result:
        """Wait for its end and return its Result; output that was not read is dropped."""
        if self._result is None:
            self._result = of_result(self._running.finish())
            self._running.close()
        return self._result

    def detach(self) -> None:
        """Let go of it: in a daemon's sandbox it goes on, and can be attached to."""
        self._running.detach()

    def close(self) -> None:
        """Free it; a command that still runs is killed."""
        self._running.close()

    def _given(self) -> Iterator[Chunk]:
        """Yield what has come; where the loop is left, the rest is kept for the next one."""
        for name, data in self._unread.taken():
            yield self._chunks.make(name, data, self._running.before)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Unread:
    """Pieces of output that have come and were not given out, as the loop was left before them."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[str, bytes]] = deque()

    def add(self, pieces: Iterable[tuple[str, bytes]]) -> None:
        self._pieces.extend(pieces)

    def taken(self) -> Iterator[tuple[str, bytes]]:
        while self._pieces:
            yield self._pieces.popleft()

    def cursors(self, came: Mapping[str, int]) -> dict[str, int]:
        """Count for each stream what was given out of the bytes that ``came``."""
        given = dict(came)
        for name, data in self._pieces:
            given["pty" if given.get("pty") else name] -= len(data)  # a terminal's are "stdout"
        return given


def not_ended() -> InvalidInput:
    return InvalidInput("the command has not ended", remediation="read its output first")
