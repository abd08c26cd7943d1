"""Whose connections a listener's are: no caller, known or not, keeps another out.

One whose caller is not known yet is a stranger's. Where all seats are taken a newcomer gets that of
a stranger: the oldest one's of whichever address has the most. A principal gets another seat while
it has fewer than principals have left, so there is always one that no principal holds.
"""

from collections import Counter
from typing import TYPE_CHECKING

from agentd.model.errors import Full

if TYPE_CHECKING:
    from agentd.ingest.web.link import Link

_TURNED_AWAY = 64  # that are told so; the next ones are cut


class Seats:
    """Limits the connections of one listener; belongs to the event loop."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._strangers: dict[str, dict[Link, None]] = {}  # by address, oldest first
        self._strange = 0
        self._known: Counter[str] = Counter()  # by principal
        self._turned_away: set[Link] = set()

    def enter(self, one: "Link") -> bool:
        """Take a seat; False where every one is a principal's: it is to be told so, or was cut."""
        if self._strange + self._known.total() >= self._size and not self._make_room():
            if len(self._turned_away) >= _TURNED_AWAY:
                one.cut()
            else:
                self._turned_away.add(one)
            return False
        self._strangers.setdefault(one.address, {})[one] = None
        self._strange += 1
        return True

    def identify(self, one: "Link", principal: str) -> None:
        """Make ``one`` a connection of ``principal``'s. Raises Full where that has too many."""
        if one.principal == principal:
            return
        others = self._known.total() - bool(one.principal)
        if self._known[principal] >= self._size - others:
            raise Full(
                "too many connections of one caller",
                cause=f"{self._known[principal]} of {self._size} are {principal}'s",
                remediation="close some, or use one for several requests",
                retry_after=5.0,
            )
        if one.principal:
            self._forget(one.principal)
        else:
            self._remove_stranger(one)
        self._known[principal] += 1

    def leave(self, one: "Link") -> None:
        """Give its seat back. Idempotent."""
        if one in self._turned_away:
            self._turned_away.remove(one)
        elif one.principal:
            self._forget(one.principal)
        else:
            self._remove_stranger(one)

    def _make_room(self) -> bool:
        if not self._strangers:
            return False
        most = max(self._strangers.values(), key=len)
        # A request that is being looked at has better reasons to stay.
        victim = next((one for one in most if not one.has_asked), next(iter(most)))
        self._remove_stranger(victim)
        victim.cut()
        return True

    def _remove_stranger(self, one: "Link") -> None:
        of_address = self._strangers.get(one.address, {})
        if one in of_address:
            del of_address[one]
            self._strange -= 1
            if not of_address:
                del self._strangers[one.address]

    def _forget(self, principal: str) -> None:
        self._known[principal] -= 1
        if self._known[principal] <= 0:
            del self._known[principal]
