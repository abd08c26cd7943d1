"""A sandbox whose sockets a relay serves, as its host holds it."""

import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agentd.egress import cassettes
from agentd.egress.asked import AskedPlaces
from agentd.egress.connections import ConnectionList, ConnectionLog
from agentd.model.cassette import RecordedExchange

if TYPE_CHECKING:
    from agentd.egress.keeper import RelayKeeper

_MAX_NAMES, _MAX_NAME = 1024, 253
_GOING_ON = "it was still going on"


class Admitted:
    """A sandbox whose sockets the relay serves, until it is closed."""

    def __init__(
        self, keeper: "RelayKeeper", id_: int, sockets: Sequence[socket.socket], table: Any
    ) -> None:
        self._keeper = keeper
        self.id = id_
        self.sockets = list(sockets)
        #: Whether its network was closed, for good.
        self.closed = False
        self.table = table
        self.log = ConnectionLog()
        #: Names that it was told addresses of: the next relay gives the same.
        self.names: dict[str, None] = {}
        self._spent = 0
        self.asked = AskedPlaces(lambda answer: keeper.tell({**answer, "answer": id_}))
        #: How long its cassette was as it was asked for last, and what was not in it then, by the
        #: connection.
        self._written: int | None = None
        self._going_on: dict[int, RecordedExchange] = {}

    @property
    def moved(self) -> int:
        """Return the bytes that count as moved for a relay that takes over from one that died."""
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
        elif "written" in row:
            self._going_on, self._written = {}, int(row["written"])
        elif "target" in row:
            where = str(row["name"]), int(row["port"]), str(row["target"])
            going_on = RecordedExchange(str(row["method"]), *where, unrecorded=_GOING_ON)
            self._going_on[int(row["n"])] = going_on
        elif "method" in row:
            self.log.take_request(row)
        else:
            self.log.take(generation, row)

    def set(self, table: Mapping[str, Any]) -> None:
        """Let other rules hold from now on; connections that they do not allow end. When it returns
        the relay has them, unless it does not say so in time. Raises SandboxError, InvalidInput."""
        self._keeper.set(self, table)
        self._keeper.sync(self)

    def give_secrets(self, secrets: Sequence[Any]) -> None:
        """Put these into its requests: those of ``terminator.credentials.pack_secrets``."""
        self._keeper.of_terminator(self, lambda term: term.give(self.id, secrets))

    def recorded(self) -> bytes:
        """Return the cassette of what it has asked until now, and of what has no answer yet. Raises
        Refused where none is recorded."""
        self._written, self._going_on = None, {}  # where there is none to tell, all is in it
        self._keeper.of_terminator(self, lambda term: term.ask_what_goes_on(self.id))
        self._keeper.sync(self)
        told = self._written, tuple(self._going_on.values())
        # Without the lock, for which all sandboxes wait: there may be 64 MiB of it.
        file = self._keeper.of_terminator(self, lambda term: term.recording(self.id))
        with file, cassettes.reading:
            return cassettes.recorded(file, *told)

    def count_for(self, owner: str) -> None:
        """Count its cassettes among what this owner's may take together."""
        self._keeper.of_terminator(self, lambda term: term.count_for(self.id, owner))

    def play(self, cassette: bytes) -> None:
        """Answer it, whose requests are replayed, from this, of ``cassettes.playable``."""
        self._keeper.of_terminator(self, lambda term: term.play(self.id, cassette))

    def connections(self, after: int = 0) -> ConnectionList:
        """Return what changed after the ``cursor`` of an earlier answer, and sums of all: what has
        been done by now, unless the relay does not say so in time."""
        self._keeper.sync(self)
        return self.log.after(after)

    def close(self) -> None:
        """Close its sockets; what it has open ends. Idempotent."""
        self._keeper.release(self)

    def close_sockets(self) -> None:
        self.closed = True
        sockets, self.sockets = self.sockets, []
        for sock in sockets:
            sock.close()
