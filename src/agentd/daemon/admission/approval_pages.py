"""Approvals as somebody sees them, a page at a time: what waits, the oldest first, then what ended
lately."""

from collections.abc import Iterator
from heapq import merge
from typing import NamedTuple

from agentd.daemon.store.records import ApprovalRecord
from agentd.daemon.store.view import View

PENDING = "pending"
ENDED = ("approved", "denied", "expired", "withdrawn")
MAX_BYTES = 4 << 20  # of what is asked, in one page
_AT_ONCE = 16  # rows, which may be of 64 KiB


class ApprovalPlace(NamedTuple):
    """Where one stands in the list: behind all that wait, or among them, by its id."""

    has_ended: bool = False
    id: str = ""


class ApprovalRows(NamedTuple):
    """``following`` is the place of the last one, where there are more."""

    rows: list[ApprovalRecord]
    following: ApprovalPlace | None


def page(store: View, after: ApprovalPlace, since: str, limit: int, **mine: str) -> ApprovalRows:
    """Return those behind a place, at most so many; of what has ended those whose ids come after
    ``since``. ``mine`` are columns that they have."""
    found: list[ApprovalRecord] = []
    size, last = 0, after
    for place, record in _walked(store, after, since, mine):
        if len(found) == limit or (found and size + record.size > MAX_BYTES):
            return ApprovalRows(found, last)
        found.append(record)
        size, last = size + record.size, place
    return ApprovalRows(found, None)


def pending(store: View) -> list[str]:
    """Return the ids of all that wait."""
    return [record.id for record in _of(store, PENDING, "", {})]


def _walked(
    store: View, after: ApprovalPlace, since: str, mine: dict[str, str]
) -> Iterator[tuple[ApprovalPlace, ApprovalRecord]]:
    if not after.has_ended:
        for record in _of(store, PENDING, after.id, mine):
            yield ApprovalPlace(False, record.id), record
    begin = max(since, after.id) if after.has_ended else since
    ended = (_of(store, state, begin, mine) for state in ENDED)
    for record in merge(*ended, key=lambda each: each.id):
        yield ApprovalPlace(True, record.id), record


def _of(store: View, state: str, after: str, mine: dict[str, str]) -> Iterator[ApprovalRecord]:
    while found := store.find(ApprovalRecord, after=(after,), limit=_AT_ONCE, state=state, **mine):
        yield from found
        after = found[-1].id
