"""The memory that all connections of protocol v1 may hold together: of long requests and outputs.

v1 has no credit: a client that does not read its reply keeps it in the agent. Init and agent are
exempt from the OOM killer, so that a machine whose memory they held would panic.
"""

import os

from agentd.guest.v1 import MAX_VALUES

# The first bytes of a line and of an output are not counted: whatever others hold, short requests
# are served and short replies arrive.
FREE_LINE = 128 << 10
FREE_OUTPUT = 128 << 10
_MIN_LINE = 8 << 20
_MIN_VALUES = 64 << 10
# One full output can always be had.
_MIN_SIZE = 64 << 20


class Budget:
    """``line`` and ``values`` bound one request, ``size`` all there is."""

    def __init__(self, size: int, line: int, values: int = MAX_VALUES) -> None:
        self.size = size
        self.line = line
        self.values = values
        self.held = 0


class BudgetShare:
    """The part of a budget that one connection holds, for one purpose."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0

    def hold(self, amount: int) -> bool:
        """Hold ``amount`` from now on; return False, and change nothing, where there is no room."""
        grown = self._budget.held - self.held + amount
        if amount > self.held and grown > self._budget.size:
            return False
        self._budget.held = grown
        self.held = amount
        return True


def of_machine(max_line: int) -> Budget:
    """Takes a quarter of the memory; a request is held several times over while it is parsed."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Budget(
        size=max(memory // 4, _MIN_SIZE),
        line=min(max_line, max(_MIN_LINE, memory // 16)),
        values=min(MAX_VALUES, max(_MIN_VALUES, memory // 1024)),
    )
