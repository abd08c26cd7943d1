"""What the supervisor holds of one sandbox, and how it describes it to a daemon."""

import contextlib
import math
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from agentd.model.enforcement import Control
from agentd.model.errors import SandboxError
from agentd.model.result import Cause
from agentd.model.spec import SandboxSpec
from agentd.model.units import counted
from agentd.sandbox import abilities
from agentd.sandbox.ports import Wall


class WallRecord(msgspec.Struct, frozen=True):
    """Describes a wall to a daemon, which can go on with it by this after a restart."""

    id: str
    spec: SandboxSpec
    backend: str
    workspace: str
    passes_descriptors: bool
    enforcement: dict[str, Control]
    can: tuple[str, ...]  # names of abilities
    fidelity: str
    counted: dict[str, object] | None  # the group to read counters from, see linux.cgroup.saved
    deadline: float | None  # seconds since 1970
    paused: bool = False
    pipe_owner: tuple[int, int] | None = None
    lacks: dict[str, str] = {}  # abilities that it has not, and why
    workdir: str | None = None
    command: tuple[str, ...] = ()  # the image's
    pipe_bytes: int = 0  # that a pipe of its output holds, if not as many as usual


class LastSeen(NamedTuple):
    """What is known of a wall that ended by itself, once it is freed."""

    ending: Cause | None = None
    counters: Mapping[str, int] = {}

    @property
    def why(self) -> str:
        """How it ended: a code and words."""
        if self.ending is not None:
            return f"{self.ending.code}: {self.ending.message}"
        ooms = self.counters.get("oom", 0)
        if ooms:
            often = counted(ooms, "time")
            return f"oom: its first process ended, and memory had run out in it ({often})"
        return "its first process ended"


NOT_SEEN = LastSeen()


class HeldWall:
    """A sandbox with its wall. ``deadline`` is of CLOCK_BOOTTIME: suspend counts, clock steps
    do not."""

    def __init__(self, id_: str, spec: SandboxSpec, backend: str, wall: Wall) -> None:
        self.id = id_
        self.spec = spec
        self.backend = backend
        self.wall = wall
        self.deadline: float | None = None
        self.paused = False
        self.lock = threading.Lock()

    def ending(self) -> Cause | None:
        """Return how it ended by itself; None where that is unknown."""
        teller = abilities.TELLS_END.of(self.wall)
        return None if teller is None else teller.ending()

    def last_seen(self) -> LastSeen:
        """Look at one that has ended by itself, while it is not freed."""
        with contextlib.suppress(SandboxError):  # a third party's: it is freed all the same
            return LastSeen(self.ending(), self.wall.counters())
        return NOT_SEEN

    def describe(self) -> WallRecord:
        snapshots = abilities.SNAPSHOT.of(self.wall)
        deadline = None if self.deadline is None else time.time() + self.deadline - boottime()
        return WallRecord(
            id=self.id,
            spec=self.spec,
            backend=self.backend,
            workspace=self.wall.workspace,
            passes_descriptors=self.wall.passes_descriptors,
            enforcement=dict(self.wall.enforcement),
            can=abilities.forwarded(self.wall),
            fidelity="" if snapshots is None else snapshots.fidelity,
            counted=getattr(self.wall, "counted", None),
            deadline=deadline,
            paused=self.paused,
            pipe_owner=getattr(self.wall, "pipe_owner", None),
            lacks=dict(abilities.lacking(self.wall)),
            workdir=getattr(self.wall, "workdir", None),
            command=getattr(self.wall, "command", ()),
            pipe_bytes=getattr(self.wall, "pipe_bytes", 0),
        )


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def after(seconds: object) -> float | None:
    """Return when a lease of so many seconds ends; None for none. Raises ValueError: one that is no
    number would never end."""
    if seconds is None:
        return None
    left = float(str(seconds))
    if not math.isfinite(left):
        raise ValueError(f"a lease of {left} seconds has no end")
    return boottime() + left
