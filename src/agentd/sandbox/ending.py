"""How a wall ended by itself, as far as that is known."""

from collections.abc import Mapping

from agentd.model.result import Cause, CauseCode
from agentd.sandbox.abilities import TELLS_END
from agentd.sandbox.ports import Wall

# A wall that dies takes its agent's stream along first; the process itself follows.
DEATH_SECONDS = 1.0
OUT_OF_MEMORY = Cause.of(CauseCode.OOM, "the sandbox ran out of memory and ended")


def of_wall(wall: Wall, before: Mapping[str, int], *, gone: bool) -> Cause | None:
    """Return why, where it is ``gone``, or memory has run out in it since its counters were
    ``before``; None where that is unknown."""
    teller = TELLS_END.of(wall) if gone else None
    told = None if teller is None else teller.ending()
    if told is None and grown(before, wall.counters(), "oom"):
        told = OUT_OF_MEMORY
    return told


def grown(before: Mapping[str, int], after: Mapping[str, int], name: str) -> bool:
    return after.get(name, 0) > before.get(name, 0)
