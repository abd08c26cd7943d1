"""What callers share, a fair part each: threads for their calls, and memory for their bytes.

The service blocks; the event loop must not. Each kind of call has threads of its own.
concurrent.futures would do; a request goes through here and back, and this costs it half as much.
"""

import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from agentd.ingest.web.limits import WebLimits
from agentd.model.errors import AgentdError, Full, without_frames
from agentd.model.holds import Holds

P = ParamSpec("P")
R = TypeVar("R")
STREAM = 256 << 10  # bytes that wait for the client of an answer without an end, at most
_IDLE = 30.0  # seconds until a thread with nothing to do ends
#: Whose share of a room a task's calls take: a principal's name, before that an address.
caller: ContextVar[str] = ContextVar("agentd_caller", default="")


class _Work:
    __slots__ = ("args", "call", "caller", "context", "future", "kwargs", "loop")

    def __init__(self, call: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        self.call, self.args, self.kwargs = call, args, kwargs
        self.caller = caller.get()
        self.context = copy_context()  # as asyncio.to_thread: the call knows its request
        self.loop = asyncio.get_running_loop()
        self.future = self.loop.create_future()


class Room:
    """Runs at most ``size`` calls at once, and of one caller while it has fewer than are left:
    alone it gets half of them, beside another a third, and there are always some for the next. One
    more is refused, or with ``queue`` waits its turn, which goes round the callers.

    For one event loop. Its threads keep no process from ending: what they wait for may last.
    """

    def __init__(self, name: str, size: int, *, queue: bool = False) -> None:
        self.name = name
        self._size = size
        self._is_queue = queue
        self._lock = threading.Lock()
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._threads = 0
        self._busy = 0  # calls that have not ended, on the loop's side
        self._of: Counter[str] = Counter()  # the same, by caller
        self._waiting: dict[str, deque[_Work]] = {}

    def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[R]":
        """Start a call; what this returns is awaited for its end. Raises Full.

        A caller that is cancelled leaves its call running: it holds its place to its end.
        """
        work = _Work(call, args, kwargs)
        if self._has_room(work.caller):
            self._begin(work)
        elif self._is_queue:
            self._waiting.setdefault(work.caller, deque()).append(work)
        else:
            raise Full(
                "too many requests wait for sandboxes",
                cause=f"{self._of[work.caller]} of the {self._busy} of this kind ({self.name}) are"
                f" yours, and {self._size} the most",
                remediation="send it again later",
            )
        return work.future

    def _has_room(self, who: str) -> bool:
        return self._of[who] < self._size - self._busy

    def _begin(self, work: _Work) -> None:
        self._busy += 1
        self._of[work.caller] += 1
        with self._lock:
            self._work.put(work)
            missing = self._threads < min(self._busy, self._size)
            self._threads += missing
        if missing:
            self._start()

    def close(self) -> None:
        """End the threads; wait for no call: the service is what ends them."""
        with self._lock:
            for _ in range(self._threads):
                self._work.put(None)
            self._threads = 0

    def _start(self) -> None:
        """Where no thread can be had, those that are there do the work; where none is, nobody."""
        try:
            threading.Thread(target=self._serve, name=f"http-{self.name}", daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self._threads -= 1
                abandoned = [] if self._threads else self._left()
            full = Full(
                "no thread can be started for the request",
                cause=str(error),
                remediation="raise the limit of processes (ulimit -u, pids.max), or send it again",
            )
            for work in abandoned:
                self._done(work, None, full)

    def _left(self) -> list[_Work]:
        """Return what waits; under the lock."""
        found: list[_Work] = []
        with contextlib.suppress(Empty):
            while True:
                work = self._work.get_nowait()
                if work is not None:
                    found.append(work)
        return found

    def _done(self, work: _Work, result: Any, error: BaseException | None) -> None:
        self._busy -= 1
        self._of[work.caller] -= 1
        if not self._of[work.caller]:
            del self._of[work.caller]
        if self._waiting:
            self._let_in()
        if work.future.done():  # its caller was cancelled
            return
        if error is None:
            work.future.set_result(result)
        else:
            work.future.set_exception(error)

    def _let_in(self) -> None:
        """Start the calls that wait and now have room, in turns of their callers."""
        for who in list(self._waiting):
            if not self._has_room(who):
                continue
            queue = self._waiting.pop(who)
            work = queue.popleft()
            if queue:
                self._waiting[who] = queue  # behind the others
            if not work.future.done():  # else its caller was cancelled
                self._begin(work)

    # --- in a thread ---

    def _serve(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=_IDLE)
            except Empty:
                if self._retire():
                    return
                continue
            if work is None:
                return
            _perform(work, self._done)
            del work  # what it holds is not kept until the next one comes

    def _retire(self) -> bool:
        with self._lock:
            idle = self._work.empty()
            self._threads -= idle
            return idle


def _perform(work: _Work, done: Callable[[_Work, Any, BaseException | None], None]) -> None:
    result: Any = None
    failure: BaseException | None = None
    try:
        result = work.context.run(work.call, *work.args, **work.kwargs)
    except AgentdError as error:
        failure = without_frames(error)
    except BaseException as error:  # told to the log, with its traceback
        failure = error
    with contextlib.suppress(RuntimeError):  # the loop is closed
        work.loop.call_soon_threadsafe(done, work, result, failure)
    del work, failure  # an error's traceback has this frame


class ThreadRooms:
    def __init__(self, limits: WebLimits) -> None:
        self.short = Room("short", limits.short, queue=True)
        self.control = Room("control", limits.control)
        self.waits = Room("waits", limits.waits)
        self.transfers = Room("transfers", limits.transfers, queue=True)
        self.uploads = Room("uploads", limits.uploads)
        self.tunnels = Room("tunnels", limits.tunnels)
        self.watches = Room("watches", limits.watches)

    def close(self) -> None:
        for room in vars(self).values():
            room.close()


class AnswerRoom:
    """Counts what one answer holds of them, from when it is made until its client has taken it:
    first in the thread that makes it, then on the loop."""

    def __init__(self, holds: Holds, who: str) -> None:
        self._holds = holds
        self._who = who
        self._size = 0

    def make_room(self, size: int) -> None:
        """Wait for ``size`` bytes, with none: others wait for those. Raises Unwanted."""
        if size > self._size:
            self.resize(0)
            self._size = self._holds.wait(self._who, size)

    def resize(self, size: int, *, refuse: bool = False) -> None:
        """Hold ``size`` bytes. Raises Full, if more may be ``refuse``d."""
        if size > self._size:
            self._holds.take(self._who, size - self._size, refuse=refuse)
        elif size < self._size:
            self._holds.give_back(self._who, self._size - size)
        self._size = size
