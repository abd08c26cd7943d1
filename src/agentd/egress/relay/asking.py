"""What is asked about before it is allowed: which connections wait, and what was answered.

A connection waits here without a thread, and nothing of it leaves. Whom the host asks is nothing
that the relay knows; it remembers answers, which the host tells again where it does not.
"""

from typing import TYPE_CHECKING, NamedTuple

from agentd.egress.table import EgressTable, EgressVerdict

if TYPE_CHECKING:
    from agentd.egress.relay.connection import RelayedConnection
    from agentd.egress.relay.loop import EventLoop
    from agentd.egress.relay.records import Reports

MAX_WAITING = 64  # connections of a sandbox
ASK_SECONDS = 900.0  # that one waits at most, whatever becomes of whom the host asks
WAITING = "it waits to be allowed"
_FULL = f"{MAX_WAITING} connections of the sandbox wait to be allowed"
_MAX_ANSWERS = 512  # that are remembered

#: The name that was dialled, or the address where a number was, and the port.
Place = tuple[str, int]


class _Answer(NamedTuple):
    allowed: bool
    reason: str
    until: float | None  # of the loop's clock; None: for good


class Questions:
    """Holds those of one sandbox."""

    def __init__(self, sandbox: int, loop: "EventLoop", reports: "Reports") -> None:
        self._sandbox, self._loop, self._reports = sandbox, loop, reports
        self._answers: dict[Place, _Answer] = {}
        self._waiting: dict[Place, dict[RelayedConnection, None]] = {}
        self._count = 0

    def allows(self, place: Place) -> bool:
        found = self._answer(place)
        return found is not None and found.allowed

    def hindrance(self, place: Place, *, waits: bool = False) -> str:
        """Return why a connection there, which may be one that ``waits``, is refused; "" where it
        is allowed or may wait."""
        found = self._answer(place)
        if found is not None:
            return found.reason
        if self._count >= MAX_WAITING and not waits and not self._make_room(place):
            return _FULL
        return ""

    def wait(self, connection: "RelayedConnection", rule: str) -> None:
        """Let it wait until it is answered; the first to a place has the host asked."""
        host, port = connection.place
        waiting = self._waiting.setdefault((host, port), {})
        if not waiting:
            row: dict[str, object] = {"sandbox": self._sandbox, "ask": host}
            self._reports.tell_now({**row, "port": port, "rule": rule})
        waiting[connection] = None
        self._count += 1

    def forget(self, connection: "RelayedConnection") -> None:
        """Let it wait no more."""
        waiting = self._waiting.get(connection.place, {})
        if connection in waiting:
            del waiting[connection]
            self._count -= 1
        if not waiting:
            self._waiting.pop(connection.place, None)

    def _make_room(self, place: Place) -> bool:
        """End one whose program says nothing more, if there is one: most of them have given up.
        Else, where none waits for ``place``, the last of those for which the most wait."""
        waiting = (each for some in self._waiting.values() for each in some)
        over = next((each for each in waiting if each.over), None)
        if over is not None:
            over.end("the program went away", reset=True)
            return True
        most = max(self._waiting.values(), key=len)
        if place in self._waiting or len(most) == 1:
            return False
        next(reversed(most)).refuse(_FULL)
        return True

    def answered(self, place: Place, allowed: bool, reason: str, seconds: float | None) -> None:
        """Let what waits go on, or refuse it; for ``seconds``, or for good, what comes as well."""
        if len(self._answers) >= _MAX_ANSWERS:
            self._answers.clear()
        until = None if seconds is None else self._loop.now + seconds
        self._answers[place] = _Answer(
            allowed, "" if allowed else reason or "it was refused", until
        )
        for connection in list(self._waiting.get(place, ())):
            connection.rules_changed()

    def keep(self, table: EgressTable) -> None:
        """Forget answers that no rule of ``table`` asks for."""
        self._answers = {
            place: found for place, found in self._answers.items() if table.asks(*place)
        }

    def _answer(self, place: Place) -> _Answer | None:
        found = self._answers.get(place)
        if found is not None and found.until is not None and found.until < self._loop.now:
            del self._answers[place]
            return None
        return found


def holds(connection: "RelayedConnection", verdict: EgressVerdict, questions: Questions) -> bool:
    """Return whether it is not to be dialled now: it waits to be allowed, or is refused."""
    if verdict.ask and not questions.allows(connection.place):
        if why := questions.hindrance(connection.place, waits=connection.waits):
            connection.refuse(why)
        elif not connection.waits:
            questions.wait(connection, verdict.rule)
            connection.waits = connection.asked = True
            connection.allow_seconds(ASK_SECONDS)
        return True
    if connection.waits:
        questions.forget(connection)
        connection.waits = False
        connection.allow_seconds()
    return False
