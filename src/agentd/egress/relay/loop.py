"""One epoll loop: edge-triggered events, timers, and what is to be taken up again soon."""

import heapq
import select
import time
from collections import deque
from collections.abc import Callable

from agentd.egress.mark import Mark, no_mark

IN, OUT = select.EPOLLIN, select.EPOLLOUT
#: What a socket that is read and written is watched for, told once for each change.
BOTH = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
GONE = select.EPOLLERR | select.EPOLLHUP
_EVENTS = 256
# Cancelled timers stay in the heap until their time; more than this share of it and it is made new.
_STALE = 2

Handler = Callable[[int], None]


class Later:
    """One call to come. Idempotent ``cancel``."""

    __slots__ = ("_call", "due", "owner")

    def __init__(self, due: float, call: Callable[[], None], owner: int) -> None:
        self.due, self.owner = due, owner
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self._call = None

    def __lt__(self, other: "Later") -> bool:
        return self.due < other.due

    @property
    def stale(self) -> bool:
        return self._call is None

    def run(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


class EventLoop:
    """Of one thread. ``now`` is ``time.monotonic()`` of when the events at hand were fetched.

    A handler that raises ends nothing: ``fault`` is told, with what it was about to handle.

    What is watched for, or called later, belongs to whom the loop works for as it is asked for
    that: ``owner``, a sandbox or 0 for nobody. ``mark`` has it while it is handled, so that a host
    who shares that memory knows at whose doing we died.
    """

    def __init__(self, fault: Callable[[BaseException], None], mark: Mark | None = None) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, tuple[Handler, int]] = {}
        # Watched for since events were fetched last: none of those can be theirs.
        self._fresh: set[int] = set()
        self._timers: list[Later] = []
        self._soon: deque[tuple[Callable[[], None], int]] = deque()
        self._fault = fault
        self._mark = no_mark() if mark is None else mark
        self.owner = 0
        self.now = time.monotonic()

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Call ``handler`` with the events of ``fd``, which the caller keeps open meanwhile."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler, self.owner
        self._fresh.add(fd)

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Forget a descriptor before it is closed: another of its number may come at once."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def drop(self, fd: int) -> None:
        """``forget`` a descriptor that nobody else has, and which is closed next: the kernel
        forgets it by that."""
        self._handlers.pop(fd, None)

    def work_for(self, owner: int) -> None:
        """Do for that sandbox what is done from now on, until the next handler."""
        self.owner = self._mark[0] = owner

    def later(self, seconds: float, call: Callable[[], None], *, owner: int | None = None) -> Later:
        timer = Later(self.now + seconds, call, self.owner if owner is None else owner)
        if len(self._timers) > 1024 and len(self._timers) > _STALE * len(self._handlers):
            self._timers = [each for each in self._timers if not each.stale]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, timer)
        return timer

    def soon(self, call: Callable[[], None], *, owner: int | None = None) -> None:
        """Call it after everybody else had a turn."""
        self._soon.append((call, self.owner if owner is None else owner))

    def run(self) -> None:
        """Run until a handler raises SystemExit."""
        while True:
            self.turn()

    def turn(self) -> None:
        events = self._epoll.poll(self._wait(), _EVENTS)
        self.now = time.monotonic()
        self._fresh.clear()
        for fd, mask in events:
            found = self._handlers.get(fd)
            if found is None or fd in self._fresh:
                continue  # one before it closed this one, and its number may be another's by now
            handler, owner = found
            self.work_for(owner)
            try:
                handler(mask)
            except Exception as error:
                self._fault(error)
        for _ in range(len(self._soon)):
            self._guard(*self._soon.popleft())
        while self._timers and self._timers[0].due <= self.now:
            timer = heapq.heappop(self._timers)
            self._guard(timer.run, timer.owner)
        self.work_for(0)

    def _wait(self) -> float:
        while self._timers and self._timers[0].stale:
            heapq.heappop(self._timers)
        if self._soon:
            return 0
        if not self._timers:
            return -1
        return max(self._timers[0].due - time.monotonic(), 0)

    def _guard(self, call: Callable[[], None], owner: int) -> None:
        self.work_for(owner)
        try:
            call()
        except Exception as error:
            self._fault(error)
