"""Denials in the log, bounded: a caller who is refused all the time does not fill the disk.

Of each principal, and of each kind, a burst is written one by one, then so many a second; what
comes in between is counted, and one record tells how many there were. Kinds are apart so that none
hides another: what a program in a sandbox tries, what a quota has no room for, and the rest.
"""

import threading
import time
from collections.abc import Callable

import msgspec

from agentd.daemon import events
from agentd.daemon.admission.acts import CONNECT
from agentd.daemon.admission.admission import MISUSE
from agentd.model.audit import Event, Kind
from agentd.model.errors import QuotaExceeded
from agentd.model.events import EventKind

BURST = 200.0
PER_SECOND = 2.0
MAX_REASONS, MAX_REASON = 8, 256  # of those that an event tells, and characters of each
MAX_TOLD = 500  # characters of all reasons of a record: a policy's may repeat what was asked
MAX_PRINCIPALS = (
    1024  # with a kind each; the one who was quiet for longest is forgotten, once it is told
)


class _One(msgspec.Struct):
    left: float
    when: float
    count: int = 0
    since: float = 0.0
    last: Event | None = None


class Denials:
    """Bounds them by principal. Thread-safe. ``write`` is called outside of the lock; what it
    raises reaches the caller."""

    def __init__(
        self,
        write: Callable[[Event], object],
        clock: Callable[[], float] = time.monotonic,
        publish: events.Publish = events.nobody,
    ) -> None:
        self._write = write
        self._publish = publish
        self._clock = clock
        self._lock = threading.Lock()
        self._of: dict[tuple[str, str], _One] = {}

    def write(self, event: Event) -> None:
        """Write it now, or as one of many."""
        reasons = event.fields.get("reasons", ())
        self._publish(
            EventKind.DECISION,
            event.principal,
            event.sandbox,
            state="undecided" if event.kind is Kind.UNDECIDED else "denied",
            request=event.request,
            operation=event.capability or event.fields.get("op", ""),
            reasons=[str(each)[:MAX_REASON] for each in reasons[:MAX_REASONS]],
        )
        events = self._taken(_bounded(event))
        for each in events:
            self._write(each)

    def tick(self) -> None:
        """Tell of those that were counted and have room again."""
        now = self._clock()
        with self._lock:
            due = [one for one in self._of.values() if one.count and self._refilled(one, now) >= 1]
            events = [self._told(one, now) for one in due]
        for event in events:
            self._write(event)

    def close(self) -> None:
        """Tell of all that were counted."""
        now = self._clock()
        with self._lock:
            events = [self._told(one, now) for one in self._of.values() if one.count]
        for event in events:
            self._write(event)

    def _taken(self, event: Event) -> list[Event]:
        now = self._clock()
        with self._lock:
            events = []
            key = event.principal, _kind(event)
            one = self._of.pop(key, None) or _One(BURST, now)
            if len(self._of) >= MAX_PRINCIPALS:
                quiet = self._of.pop(next(iter(self._of)))
                events = [self._told(quiet, now)] if quiet.count else []
            self._of[key] = one  # the latest last
            if self._refilled(one, now) < 1:
                one.since = one.since or now
                one.count, one.last = one.count + 1, event
                return events
            if one.count:
                events.append(self._told(one, now))
            one.left -= 1
            return [*events, event]

    def _refilled(self, one: _One, now: float) -> float:
        one.left = min(BURST, one.left + (now - one.when) * PER_SECOND)
        one.when = now
        return one.left

    def _told(self, one: _One, now: float) -> Event:
        count, last, since = one.count, one.last, one.since
        one.count, one.last, one.since = 0, None, 0.0
        one.left -= 1
        if last is None:
            raise TypeError("nothing was counted")
        fields = {**last.fields, "repeated": count, "seconds": round(now - since, 3)}
        return msgspec.structs.replace(last, fields=fields)


def _kind(event: Event) -> str:
    if event.capability in (CONNECT, MISUSE):
        return event.capability
    return QuotaExceeded.code if event.fields.get("code") == QuotaExceeded.code else ""


def _bounded(event: Event) -> Event:
    fields, left = dict(event.fields), MAX_TOLD
    if "undecided" in fields:
        fields["undecided"] = str(fields["undecided"])[:left]
    reasons: list[str] = []
    for each in map(str, fields.get("reasons", ())):
        reasons += [each[:left]] if left > 0 else []
        left -= len(each)
    if "reasons" in fields:
        fields["reasons"] = reasons
    return msgspec.structs.replace(event, fields=fields)
