"""What is known of a sandbox's connections: the last of them, what was refused before, and sums of
all."""

import threading
from collections import OrderedDict, deque
from operator import itemgetter
from typing import Any, NamedTuple

MOST = 1000
#: Of what was refused before these, and of alarms: a program that does something more a thousand
#: times hides neither from who looks at its end.
MOST_REFUSED = 256
_MOST_HOSTS = 256
_MAX_TEXT = 400
Row = dict[str, Any]


class ConnectionList(NamedTuple):
    """``rows`` in the order in which they changed, ``cursor`` for what changes after them.

    A row: ``n``, ``name``, ``address`` (that was dialled), ``port`` (None: the name was not
    resolved), ``rule``, ``allowed``, ``reason``, ``ended``; of connections ``sent`` and
    ``received`` (bytes, as the sandbox sees them), ``ms``, and ``asked``, where somebody had to be
    asked about it; one that waits for that is neither allowed nor ended. With a ``method`` it is a
    request of a connection that is read, with its ``path`` and the ``status`` of its answer; of
    these only what was denied is in the sums. ``totals``: ``allowed``,
    ``denied``, ``asked``, ``sent``, ``received``, and ``lost``, the rows that nobody could take in
    time.
    ``hosts``: connections that were allowed, by host.
    """

    rows: list[Row]
    cursor: int
    totals: dict[str, int]
    hosts: dict[str, int]


class ConnectionLog:
    """Keeps the last ``MOST`` rows, and ``MOST_REFUSED`` before them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: OrderedDict[int, tuple[int, Row]] = OrderedDict()
        self._refused: deque[tuple[int, Row]] = deque(maxlen=MOST_REFUSED)
        self._alarms: deque[tuple[int, Row]] = deque(maxlen=MOST_REFUSED)
        # Its number here, and as what it counts: allowed, denied, or (None) neither as yet.
        self._by_relay: dict[tuple[int, int], tuple[int, bool | None]] = {}
        self._n = 0
        self._changes = 0
        self._totals = dict.fromkeys(_SUMS, 0)
        self._hosts: dict[str, int] = {}

    def take(self, generation: int, row: Row) -> None:
        """Take a row of the relay, whose own ``n`` counts by ``generation``."""
        row = _plain(row)
        with self._lock:
            key = generation, row.get("n", 0)
            n, counted = self._by_relay.pop(key, (0, None))
            if not n:
                self._n = n = self._n + 1
                self._totals["asked"] += bool(row.get("asked"))
            waits = not (row["allowed"] or row["ended"])
            if counted is None and not waits:
                self._count(row)
            elif counted and not row["allowed"]:  # it was, until it said whom it talks to
                self._totals["allowed"] -= 1
                self._totals["denied"] += 1
            if row["ended"]:
                self._totals["sent"] += row.get("sent", 0)
                self._totals["received"] += row.get("received", 0)
            else:
                self._by_relay[key] = n, None if waits else row["allowed"]
            self._put(n, {**row, "n": n})

    def take_request(self, row: Row) -> None:
        """Take a row of the terminator."""
        made = _plain({**row, "address": ""})
        made |= {name: str(row[name])[:_MAX_TEXT] for name in ("method", "path")}
        made["status"] = int(row["status"])
        if row.get("alarm"):
            made["alarm"] = True
        with self._lock:
            self._n += 1
            if not made["allowed"]:
                self._totals["denied"] += 1
            self._put(self._n, {**made, "n": self._n})

    def repeats(self, count: int) -> None:
        """Count so many denials more, each of which was told once."""
        with self._lock:
            self._totals["denied"] += count

    def lost(self, count: int) -> None:
        with self._lock:
            self._totals["lost"] += count

    def cut(self) -> None:
        """End what was open: its relay died."""
        with self._lock:
            for n, counted in self._by_relay.values():
                self._totals["denied"] += counted is None
                found = self._rows.get(n)
                if found is not None:
                    self._put(n, {**found[1], "ended": True, "reason": "the relay died"})
            self._by_relay.clear()

    def close(self, why: str) -> None:
        """Note that it has no network any more: told as something that was refused."""
        row = {"name": "", "address": "", "port": None, "rule": "", "reason": why}
        self.take(0, {**row, "allowed": False, "ended": True})

    @property
    def moved(self) -> int:
        """Return the bytes of connections that have ended, both ways."""
        with self._lock:
            return self._totals["sent"] + self._totals["received"]

    def totals(self) -> dict[str, int]:
        """Return those of ``after``, without its rows."""
        with self._lock:
            return dict(self._totals)

    def after(self, cursor: int) -> ConnectionList:
        with self._lock:
            kept = sorted((*self._alarms, *self._refused), key=itemgetter(0))
            kept += self._rows.values()
            rows = [row for change, row in kept if change > cursor]
            return ConnectionList(rows, self._changes, dict(self._totals), dict(self._hosts))

    def _put(self, n: int, row: Row) -> None:
        self._changes += 1
        self._rows.pop(n, None)
        self._rows[n] = (self._changes, row)
        while len(self._rows) > MOST:
            _, (change, old) = self._rows.popitem(last=False)
            if old.get("alarm"):
                self._alarms.append((change, old))
            elif old["ended"] and not old["allowed"]:
                self._refused.append((change, old))

    def _count(self, row: Row) -> None:
        self._totals["allowed" if row["allowed"] else "denied"] += 1
        host = row["name"] or row["address"]
        if row["allowed"] and (host in self._hosts or len(self._hosts) < _MOST_HOSTS):
            self._hosts[host] = self._hosts.get(host, 0) + 1


_SUMS = ("allowed", "denied", "asked", "sent", "received", "lost")
_TEXTS, _NUMBERS = ("name", "address", "rule", "reason"), ("n", "sent", "received")


def _plain(row: Row) -> Row:
    """What a row is to have and no more: who tells it parses what hostile ends send.

    Raises KeyError, TypeError, ValueError."""
    port = row["port"]
    found: Row = {name: str(row[name])[:_MAX_TEXT] for name in _TEXTS}
    found |= {name: int(row[name]) for name in _NUMBERS if name in row}
    found |= {name: bool(row[name]) for name in ("allowed", "ended")}
    found["port"] = None if port is None else int(port)
    if row.get("asked"):
        found["asked"] = True
    if "ms" in row:
        found["ms"] = float(row["ms"])
    return found
