"""One direction of a connection: bytes go from socket to socket through a pipe, never through us.

splice(2) moves them within the kernel. A pipe is only had while bytes are in it, so that an idle
connection costs two descriptors; where the other end does not read, its bytes stay in its pipe and
in the sender's window: nobody else waits for it.
"""

import contextlib
import fcntl
import os
import socket

from agentd.egress.relay.budget import TrafficBudget

_SETPIPE_SZ = 1031  # F_SETPIPE_SZ, linux/fcntl.h
_CHUNK = 1 << 20
_PIPE_BYTES = 1 << 20
_POOL = (
    32  # pipes kept for the next: they and what they hold are this user's, whose share is 64 MiB
)
_TURNS = 16  # then others have theirs
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

Ends = tuple[int, int]


class SparePipes:
    """Empty pipes. ``made`` counts all that exist."""

    def __init__(self) -> None:
        self._spare: list[Ends] = []
        self.made = 0

    def take(self) -> Ends:
        """Take one. Raises OSError (EMFILE)."""
        if self._spare:
            return self._spare.pop()
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.made < _POOL:
            with contextlib.suppress(OSError):  # this user has its share of large ones
                fcntl.fcntl(ends[1], _SETPIPE_SZ, _PIPE_BYTES)
        self.made += 1
        return ends

    def give(self, ends: Ends, *, empty: bool) -> None:
        if empty and len(self._spare) < _POOL:
            self._spare.append(ends)
            return
        os.close(ends[0])
        os.close(ends[1])
        self.made -= 1


class Flow:
    """``moved`` bytes have reached ``target``. ``finished``: the end of the stream has as well.
    ``starved``: there was no room for more in ``budget``, when it was looked."""

    __slots__ = (
        "_budget", "_ended", "_held", "_pipe", "_pipes", "_source", "_target", "finished", "moved",
        "starved",
    )  # fmt: skip

    def __init__(
        self,
        source: socket.socket,
        target: socket.socket,
        pipes: SparePipes,
        budget: TrafficBudget | None = None,
    ) -> None:
        self._source, self._target = source.fileno(), target
        self._budget = budget
        self.starved = False
        self._pipes = pipes
        self._pipe: Ends | None = None
        self._held = 0
        self._ended = False
        self.finished = False
        self.moved = 0

    def pump(self) -> bool:
        """Move what can be moved now; True where there may be more, and others have their turn
        first. Raises OSError where an end is broken."""
        if self.finished:
            return False
        self.starved = False
        target = self._target.fileno()
        for _ in range(_TURNS):
            if not self._held and not self._fill():
                return False
            try:
                moved = os.splice(self._pipe[0], target, self._held, flags=_FLAGS)  # type: ignore[index]
            except BlockingIOError:
                return False
            self._held -= moved
            self.moved += moved
        return True

    @property
    def waits(self) -> bool:
        """Return whether bytes wait for ``target`` to take them."""
        return self._held > 0

    def close(self) -> None:
        self._release()
        self.finished = True

    def _fill(self) -> bool:
        """Take more from the source into the empty pipe; False where there is none."""
        if not self._ended:
            most = _CHUNK if self._budget is None else self._budget.room(_CHUNK)
            if not most:
                self.starved = True
                self._release()
                return False
            if self._pipe is None:
                self._pipe = self._pipes.take()
            try:
                self._held = os.splice(self._source, self._pipe[1], most, flags=_FLAGS)
            except BlockingIOError:
                self._release()
                return False
            if self._budget is not None:
                self._budget.spend(self._held)
            if self._held:
                return True
            self._ended = True
        self._release()
        self.finished = True
        with contextlib.suppress(OSError):  # it went away itself: the other direction meets that
            self._target.shutdown(socket.SHUT_WR)
        return False

    def _release(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            self._pipes.give(pipe, empty=not self._held)
            self._held = 0
