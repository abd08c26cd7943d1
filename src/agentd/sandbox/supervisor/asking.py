"""The daemon of now is asked what rules of sandboxes ask; where there is none it is refused."""

import contextlib
from collections.abc import Callable, Iterable

from agentd.egress.asked import AskedPlace
from agentd.sandbox.abilities import ASKS
from agentd.sandbox.supervisor.held import HeldWall
from agentd.sandbox.supervisor.wire import Message

NO_DAEMON = "no daemon is there to be asked"
_GONE = "the daemon went away before it had decided"


class DaemonAsking:
    """Thread-safe, as what it is given is."""

    def __init__(self, tell: Callable[[Message], bool], submit: Callable[..., object]) -> None:
        """``tell`` sends to the daemon, False where there is none; ``submit`` has a thread do it:
        whoever tells of a question does not wait."""
        self._tell, self._submit = tell, submit

    def attach(self, entry: HeldWall) -> None:
        """Have the daemon asked what this one's rules ask."""
        wall = ASKS.of(entry.wall)
        if wall is not None:
            wall.set_asker(lambda asked: self._begin(entry, asked))

    def _begin(self, entry: HeldWall, asked: AskedPlace) -> None:
        with contextlib.suppress(RuntimeError):  # we are ending, and all sandboxes with us
            self._submit(self._ask, entry, asked)

    def _ask(self, entry: HeldWall, asked: AskedPlace) -> None:
        told = self._tell({"event": "asked", "id": entry.id, **asked._asdict()})
        wall = ASKS.of(entry.wall)
        if not told and wall is not None:
            wall.answer(asked.host, asked.port, False, NO_DAEMON, 0.0)


def answer(entry: HeldWall, message: Message) -> bool:
    """Raises KeyError, TypeError, ValueError for what is no answer of the daemon's."""
    wall = ASKS.of(entry.wall)
    if wall is not None:
        seconds = message["seconds"]
        wall.answer(
            str(message["host"]),
            int(str(message["port"])),
            message["allowed"] is True,
            str(message["reason"]),
            None if seconds is None else float(str(seconds)),
        )
    return True


def refuse(entries: Iterable[HeldWall]) -> None:
    """Whoever was asked is gone."""
    for entry in entries:
        wall = ASKS.of(entry.wall)
        if wall is not None:
            wall.refuse_open(_GONE)
