"""A sandbox whose sockets a relay serves, as its host holds it."""

import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agentd.egress.asked import AskedPlaces
from agentd.egress.connections import ConnectionList, ConnectionLog

if TYPE_CHECKING:
    from agentd.egress.keeper import RelayKeeper

_MAX_NAMES, _MAX_NAME = 1024, 253


class Admitted:
    """A sandbox whose sockets the relay serves, until it is closed."""

    def __init__(
        self, keeper: "RelayKeeper", id_: int, sockets: Sequence[socket.socket], table: Any
    ) -> None:
        self._keeper = keeper
        self.id = id_
        self.sockets = list(sockets)
        self.table = table
        self.log = ConnectionLog()
        #: Names that it was told addresses of: the next relay gives the same.
        self.names: dict[str, None] = {}
        self._spent = 0
        self.asked = AskedPlaces(lambda answer: keeper.tell({**answer, "answer": id_}))

    @property
    def moved(self) -> int:
        """Bytes that count as moved for a relay that takes over from one that died."""
        return max(self._spent, self.log.moved)

    def hear(self, generation: int, row: dict[str, Any]) -> None:
        """Take what the relay of that ``generation`` tells of it, or the terminator. Raises
        KeyError, TypeError, ValueError for what neither says."""
        if "failed" in row:
            self.close_sockets()  # programs are refused then, and do not wait
        elif "ask" in row:
            self.asked.ask(row)
        elif "repeats" in row:
            self.log.repeats(int(row["repeats"]))
        elif "named" in row:
            if len(self.names) < _MAX_NAMES:
                self.names[str(row["named"])[:_MAX_NAME]] = None
        elif "spent" in row:
            self._spent = max(self._spent, int(row["spent"]))
        elif "method" in row:
            self.log.take_request(row)
        else:
            self.log.take(generation, row)

    def set(self, table: Mapping[str, Any]) -> None:
        """Other rules from now on; connections that they do not allow end. When it returns the
        relay has them, unless it does not say so in time. Raises SandboxError, InvalidInput."""
        self._keeper.set(self, table)
        self._keeper.sync()

    def give_secrets(self, secrets: Sequence[Any]) -> None:
        """Have these put into its requests: those of ``terminator.credentials.pack_secrets``."""
        self._keeper.of_terminator(self, lambda term: term.give(self.id, secrets))

    def recorded(self) -> bytes:
        """Return the cassette of what it has asked until now. Raises Refused where none is
        recorded."""
        self._keeper.sync()
        return self._keeper.of_terminator(self, lambda term: term.recorded(self.id))

    def play(self, cassette: bytes) -> None:
        """Have it, whose requests are replayed, answered from this one, which was looked at."""
        self._keeper.of_terminator(self, lambda term: term.play(self.id, cassette))

    def connections(self, after: int = 0) -> ConnectionList:
        """What changed after the ``cursor`` of an earlier answer, and sums of all: what has been
        done by now, unless the relay does not say so in time."""
        self._keeper.sync()
        return self.log.after(after)

    def close(self) -> None:
        """Its sockets are closed, and what it has open ends. Idempotent."""
        self._keeper.release(self)

    def close_sockets(self) -> None:
        sockets, self.sockets = self.sockets, []
        for sock in sockets:
            sock.close()
