"""Lists a page at a time: the answer is the array alone, ``Agentd-Next`` the next page's cursor.

A cursor is the place of the last item in the list's own order, so it holds when that item has gone.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from agentd.ingest.rest.api import Reply
from agentd.ingest.rest.operation import Parameter
from agentd.model.errors import InvalidInput

T = TypeVar("T")
Place = tuple[float, str]
NEXT = "agentd-next"
MAX_PAGE = 1000
QUERY = (
    Parameter("limit", int, MAX_PAGE, help=f"how many at most, up to {MAX_PAGE}"),
    Parameter("cursor", default="", help="Agentd-Next of the page before"),
)


def page(items: Sequence[T], place: Callable[[T], Place], limit: int, cursor: str) -> Reply:
    """Answer with the page of ``items`` behind the cursor. Raises InvalidInput."""
    after = place_of(limit, cursor)
    rest = sorted((i for i in items if after is None or place(i) > after), key=place)
    shown = rest[:limit]
    return reply(shown, place(shown[-1]) if len(rest) > limit else None)


def reply(shown: Sequence[T], following: Place | None) -> Reply:
    """Answer with a page; ``following`` is the place of its last item, where there are more."""
    return Reply(200, shown, {} if following is None else {NEXT: "{!r}:{}".format(*following)})


def place_of(limit: int, cursor: str) -> Place | None:
    """Return the place that the page is behind; None for the first. Raises InvalidInput."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidInput(f"limit {limit} is out of range", remediation=f"give 1 to {MAX_PAGE}")
    return _parse(cursor) if cursor else None


def _parse(cursor: str) -> Place:
    number, colon, name = cursor.partition(":")
    with contextlib.suppress(ValueError):
        place = float(number)
        if colon and name and math.isfinite(place):
            return place, name
    raise not_a_cursor(cursor)


def not_a_cursor(cursor: str) -> InvalidInput:
    return InvalidInput(
        f"cursor={cursor[:64]!r} is none", remediation="give that of the page before, as it is"
    )
