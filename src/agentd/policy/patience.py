"""How long a worker that compiles or loads is waited for: as long as it works, within bounds.

A clock alone would end a compile for the machine's being slow or busy. One that hangs is known by
this: it neither computes, nor stands in line for a processor or a disk.
"""

import os
import time

CPU_SECONDS = 60.0  # that one compile or load may compute; the shipped bundles take below 1
IDLE_SECONDS = 20.0  # in which it may do nothing at all
MOST_SECONDS = 600.0  # in all, whatever it does
_WORKING = "RD"  # of proc(5): it runs or would, or waits for a disk
_TICKS = os.sysconf("SC_CLK_TCK")  # a second
_UNSTOP = (
    "see that nothing stops agentd's processes (SIGSTOP, a debugger, a frozen cgroup), and try "
    "again"
)
_MORE = (
    "give agentd more of the machine (CPU limits of its cgroup or container, what else runs), and "
    "try again"
)


class Patience:
    """With the process ``pid``, from now on. ``over`` is to be asked every ``slice`` seconds."""

    def __init__(self, pid: int) -> None:
        self.slice = min(1.0, IDLE_SECONDS / 4)
        self._path = f"/proc/{pid}/stat"
        self._begin = time.monotonic()
        # Counted, not measured: whoever waits may have been frozen along with the worker.
        self._idle = 0.0
        self._computed = 0.0
        self._first = self._computed = self._look()[1]

    def over(self) -> tuple[str, str]:
        """Return why to wait no longer, and what helps; ("", "") while there is hope."""
        state, computed = self._look()
        working = computed != self._computed or state in _WORKING
        self._computed = computed
        self._idle = 0.0 if working else self._idle + self.slice
        passed = time.monotonic() - self._begin
        waited = f"no answer came within {passed:.3g} s"
        if self._idle >= IDLE_SECONDS:
            stopped = ", for it is stopped" if state in "Tt" else ""
            return f"{waited}, and in the last {self._idle:g} s it did nothing{stopped}", _UNSTOP
        if passed >= MOST_SECONDS:
            got = f"{computed - self._first:.3g} s of a processor"
            return f"{waited}, of which it got {got}", _MORE
        return "", ""

    def _look(self) -> tuple[str, float]:
        """Return its state, and the seconds that it has computed."""
        try:
            with open(self._path, "rb") as file:
                # Behind the name, which may hold anything: state is the 3rd field, utime the 14th.
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return "X", self._computed
        return fields[0].decode(), (int(fields[11]) + int(fields[12])) / _TICKS
