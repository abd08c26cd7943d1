"""What happens to a principal's sandboxes, as a feed that is read from an id on.

In memory, and bounded: who comes back after the oldest events are gone, or after a restart, is told
that some are missing, and looks at the sandboxes themselves. The audit log is what keeps all.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from agentd.model.errors import InvalidInput
from agentd.model.events import EventKind, EventPage, EventView
from agentd.model.principal import ADMIN, Principal

MAX_KEPT = 16_384  # events of everybody; one has about half a kilobyte
MAX_OF_ONE = 2_048  # of one principal, so that none pushes out what others wait for
MAX_PAGE = 1000
MAX_FORGETFUL = 4096  # principals of whom it is known which of their events are gone

Notify = Callable[[], object]


class Publish(Protocol):
    """Tell what happened: ``EventFeed.publish``, or ``nobody``."""

    def __call__(
        self, kind: EventKind, principal: str, sandbox: str = "", **about: Any
    ) -> None: ...


def nobody(kind: EventKind, principal: str, sandbox: str = "", **about: Any) -> None:
    """Tell it to nobody: where no daemon is, none listens."""


class EventFeed:
    """Keeps the latest events. Thread-safe; ``read`` and ``publish`` never wait."""

    def __init__(self) -> None:
        # Ids of another daemon's life are told from ours by it.
        self._life = f"{time.time_ns() // 1_000_000:x}"
        self._prefix = f"evt-{self._life}-"  # of an id, before its number
        self._lock = threading.Lock()
        self._kept: dict[int, EventView] = {}  # by number, in order
        self._of: dict[str, deque[int]] = {}  # numbers of each principal's
        self._gone: dict[str, int] = {}  # the last that was dropped, of each principal
        self._gone_of_others = 0  # the same, of those who are not in it
        self._last = 0
        self._listeners: dict[object, tuple[Principal, Notify]] = {}

    def publish(self, kind: EventKind, principal: str, sandbox: str = "", **about: Any) -> None:
        """Tell it to those who may see it: ``principal``, whose it is, and admins."""
        with self._lock:
            self._last += 1
            self._kept[self._last] = EventView(
                f"{self._prefix}{self._last}", kind, time.time(), principal, sandbox, about
            )
            own = self._of.setdefault(principal, deque())
            own.append(self._last)
            if len(own) > MAX_OF_ONE:
                self._drop(own[0])
            elif len(self._kept) > MAX_KEPT:
                self._drop(next(iter(self._kept)))
            event = self._kept[self._last]
            told = [notify for who, notify in self._listeners.values() if _sees(who, event)]
        for notify in told:
            notify()

    def read(self, who: Principal, after: str = "", limit: int = 100) -> EventPage:
        """Return the events behind the id ``after``, the oldest first; without it the oldest kept.

        Raises InvalidInput.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidInput(
                f"limit {limit} is out of range", remediation=f"give 1 to {MAX_PAGE}"
            )
        life, number = self._place(after)
        with self._lock:
            ours = not after or life == self._life
            start = min(number, self._last) if ours else 0
            newest_first = self._numbers(who)
            found = []
            for n in newest_first:
                if n <= start:
                    break
                found.append(n)
            page = tuple([self._kept[n] for n in reversed(found[-limit:])])
            # What others did meanwhile is passed over, too: the next page begins behind it.
            more = len(found) > limit
            following = page[-1].id if more else f"{self._prefix}{self._last}"
            lost = bool(after) and (not ours or start < self._dropped(who))
            before = found[-1] - 1 if found else self._last
            first = f"{self._prefix}{before}" if lost else ""
            return EventPage(page, following, lost, first)

    def listen(self, who: Principal, notify: Notify) -> Callable[[], None]:
        """Call ``notify``, in any thread, after each event that ``who`` may see, until what this
        returns is called."""
        token = object()
        with self._lock:
            self._listeners[token] = (who, notify)

        def stop() -> None:
            with self._lock:
                self._listeners.pop(token, None)

        return stop

    def _numbers(self, who: Principal) -> Iterator[int]:
        """Yield the numbers of what ``who`` may see, the newest first; under the lock."""
        if who.may(ADMIN) or not who.may("approve"):
            return reversed(self._kept if who.may(ADMIN) else self._of.get(who.name, ()))
        return (n for n in reversed(self._kept) if _sees(who, self._kept[n]))

    def _dropped(self, who: Principal) -> int:
        """The last that ``who`` can have missed; under the lock."""
        if who.may("approve"):  # or is an admin
            return max(self._gone.values(), default=0)
        return self._gone.get(who.name, self._gone_of_others)

    def _drop(self, number: int) -> None:
        owner = self._kept.pop(number).principal
        own = self._of[owner]
        own.popleft()  # the oldest of all is the oldest of its principal
        if not own:
            del self._of[owner]
        self._gone.pop(owner, None)
        self._gone[owner] = number  # the latest last
        if len(self._gone) > MAX_FORGETFUL:
            self._gone_of_others = self._gone.pop(next(iter(self._gone)))

    def _place(self, after: str) -> tuple[str, int]:
        """Raises InvalidInput."""
        if not after:
            return "", 0
        prefix, _, rest = after.partition("-")
        life, _, number = rest.partition("-")
        known = number.isascii() and number.isdecimal() and len(number) < 19
        if prefix != "evt" or not life.isalnum() or not known:
            raise InvalidInput(
                f"{after[:64]!r} is no event's id",
                remediation="give the id of an event, or `next` of the page before",
            )
        return life, int(number)


def _sees(who: Principal, event: EventView) -> bool:
    """Approvals are everybody's who may approve."""
    return who.owns(event.principal) or (event.kind == EventKind.APPROVAL and who.may("approve"))
