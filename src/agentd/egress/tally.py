"""What the networks of all sandboxes of a process have done, of those that have ended as well."""

import os
import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.egress.admitted import Admitted


class NetworkTally:
    """Counts alone, of which none goes back. Thread-safe."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew. In a child of ours all of it, and the lock's holder, are the parent's."""
        self._lock = threading.Lock()
        self.starts = self.deaths = 0  # of relays
        self._there: dict[int, Admitted] = {}
        self._ended: Counter[str] = Counter()
        self._told: Counter[str] = Counter()

    def begin(self, admitted: "Admitted") -> None:
        with self._lock:
            self._there[id(admitted)] = admitted

    def end(self, admitted: "Admitted") -> None:
        """Keep what a sandbox did that is not asked about any more. Idempotent."""
        with self._lock:
            if self._there.pop(id(admitted), None) is not None:
                self._ended.update(_sums(admitted))

    def counts(self) -> dict[str, int]:
        """Return sums by name: ``allowed`` and ``denied`` connections and names, ``sent`` and
        ``received`` bytes, ``names`` that were given addresses, ``lost`` rows, ``starts`` and
        ``deaths`` of relays; and of now ``sandboxes``."""
        with self._lock:
            found = Counter(self._ended)
            for each in self._there.values():
                found.update(_sums(each))
            found.update(starts=self.starts, deaths=self.deaths)
            # What is first allowed, and then names another host, is denied after all.
            self._told |= found
            return {**self._told, "sandboxes": len(self._there)}


def _sums(admitted: "Admitted") -> dict[str, int]:
    return {**admitted.log.totals(), "names": len(admitted.names)}


#: Of this process.
TALLY = NetworkTally()
os.register_at_fork(after_in_child=TALLY.forget)
