"""One sandbox: its sockets, its rules, its names, and what it has open."""

import socket
from typing import TYPE_CHECKING

from agentd.egress.relay import synthetic
from agentd.egress.relay.asking import Questions
from agentd.egress.relay.synthetic import Synthetic
from agentd.egress.table import EgressTable, EgressVerdict

if TYPE_CHECKING:
    from agentd.egress.relay.budget import TrafficBudget
    from agentd.egress.relay.connection import RelayedConnection
    from agentd.egress.relay.loop import EventLoop, Later
    from agentd.egress.relay.records import Reports
    from agentd.egress.relay.refusal import HttpRefusal
    from agentd.egress.relay.streams import GuestStream

MAX_CONNECTIONS = 512
MAX_DIALLING = 128
MAX_ASKING = 64  # names that are asked of the host's servers at the same time
#: Names a second that are asked of the host's servers for one sandbox, and how many at once.
NAMES_A_SECOND, NAMES_AT_ONCE = 50.0, 200.0

_MAX_VERDICTS = 512


class Tenant:
    __slots__ = (
        "_allowance", "_clocked", "_resting", "_since", "_verdicts", "_wild", "asking",
        "asking_streams", "budget", "closed", "connections", "denials", "dialling", "has_ipv6",
        "id", "questions", "repeats", "sockets", "streams", "synthetic", "table",
        "told",
    )  # fmt: skip

    def __init__(
        self,
        id_: int,
        table: EgressTable,
        sockets: list[socket.socket],
        loop: "EventLoop",
        reports: "Reports",
    ) -> None:
        self.id = id_
        self.questions = Questions(id_, loop, reports)
        self.table = table
        self.sockets = sockets
        self.synthetic = Synthetic()
        self.connections: set[RelayedConnection] = set()
        self.dialling = 0
        self.denials: set[tuple[object, ...]] = set()
        self.repeats = 0
        self._verdicts: dict[tuple[str, int], EgressVerdict] = {}
        self._wild: set[str] = set()
        self.asking = 0
        self.closed = False
        #: What it may move; None where that is not bounded.
        self.budget: TrafficBudget | None = None
        self._resting: dict[RelayedConnection, None] = {}  # until there is room in it
        self._clocked = False  # whether that is looked at later
        #: Whether its programs can dial IPv6 at all; of a machine's nobody here knows.
        self.has_ipv6 = any(
            sock.family in (socket.AF_INET6, socket.AF_UNIX) and sock.type == socket.SOCK_STREAM
            for sock in sockets
        )
        #: Of a machine: what its guest has open, and how many of that are for questions of DNS.
        self.streams: dict[GuestStream, None] = {}
        self.asking_streams = 0
        #: Who is told why it was refused, each with the clock that ends it.
        self.told: dict[HttpRefusal, Later] = {}
        self._allowance, self._since = NAMES_AT_ONCE, loop.now

    def is_wild(self, name: str) -> bool:
        """Return whether only a wildcard allows it."""
        return not self.table.has_whole(name)

    def verdict(self, name: str, port: int) -> EgressVerdict:
        """Return what its rules say of a connection to that name; looked up once."""
        found = self._verdicts.get((name, port))
        if found is None:
            if len(self._verdicts) >= _MAX_VERDICTS:
                self._verdicts.clear()
            found = self._verdicts[name, port] = self.table.of_name(name, port)
        return found

    def change(self, table: EgressTable) -> None:
        """Let other rules hold from now on."""
        self.table = table
        self._verdicts.clear()
        self.denials.clear()
        self.questions.keep(table)

    def spend(self, count: int) -> None:
        """Count so many bytes that what reads its requests has moved."""
        if self.budget is None:
            return
        self.budget.spend(count)
        if why := self.budget.over:
            self._end_all(why)

    def overspend(self) -> None:
        """Note that what reads its requests had no room for more."""
        if self.budget is not None and self.budget.left is not None:
            self.spend(self.budget.left)

    def starved(self, connection: "RelayedConnection", loop: "EventLoop") -> None:
        """Note that its budget has no room: for now, or, for all that are open, for ever."""
        if self.budget is None or connection not in self.connections:
            return
        if why := self.budget.over:
            self._end_all(why)
            return
        self._resting[connection] = None
        # One clock for all of them, in their order: each with its own would wake for nothing, as
        # the first to wake takes what there is.
        if not self._clocked:
            self._clocked = True
            loop.later(self.budget.seconds(), lambda: self._rested(loop))

    def _rested(self, loop: "EventLoop") -> None:
        if self.budget is not None and (why := self.budget.over):
            self._end_all(why)
            self._resting.clear()
        while self._resting and (self.budget is None or self.budget.room(1)):
            connection = next(iter(self._resting))
            del self._resting[connection]
            connection.go_on()
        self._clocked = bool(self._resting) and self.budget is not None
        if self._clocked and self.budget is not None:
            loop.later(self.budget.seconds(), lambda: self._rested(loop))

    def _end_all(self, why: str) -> None:
        for each in list(self.connections):
            each.refuse(why)

    def may_ask(self, now: float) -> bool:
        """Take one of the names that it may have asked for now; False where it has had them."""
        self._allowance = min(self._allowance + (now - self._since) * NAMES_A_SECOND, NAMES_AT_ONCE)
        self._since = now
        if self._allowance < 1 or self.asking >= MAX_ASKING:
            return False
        self._allowance -= 1
        return True

    def may_ask_for(self, name: str) -> bool:
        """Return whether the host's servers may be asked for one name more that only a wildcard
        allows: it tells the domain's owner as much where there is no such name."""
        if not self.is_wild(name) or name in self._wild or self.synthetic.has(name):
            return True
        if len(self._wild) >= synthetic.MAX_WILD:
            return False
        self._wild.add(name)
        return True
