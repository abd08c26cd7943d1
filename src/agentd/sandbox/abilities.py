"""What some walls can do and others cannot, as one table.

Whoever needs an ability asks its row for it: ``PAUSE.of(wall)`` is the wall, typed as what it can
do, or None. The supervisor answers the operations of these rows, and the wall that stands for one
in the supervisor has the same methods and forwards them; a new ability is a new row here and a
Protocol in ``ports``. A wall has an ability where it has all methods of the row: it says so
nowhere else, so that the two cannot differ.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar, cast

import msgspec

from agentd.model.errors import Unsupported
from agentd.sandbox import backends
from agentd.sandbox.ports import (
    CopyOnWrite,
    EndsEarly,
    Leased,
    Pausable,
    Restores,
    Snapshots,
    TellsEnd,
)

P = TypeVar("P")


class Nothing(msgspec.Struct, frozen=True):
    """The arguments of an operation that has none."""


class Folder(msgspec.Struct, frozen=True):
    folder: str


class Operation(NamedTuple):
    """A method, which goes over the supervisor's socket under its own name."""

    name: str
    #: Its fields are the method's arguments in order, and fields of the message.
    arguments: type[msgspec.Struct] = Nothing
    #: The type of what the method returns; None where that is nothing.
    result: Any = None
    #: Whether the result can be too large for a message: a file with it is passed along.
    in_file: bool = False
    #: Whether the sandbox stands still afterwards; None: as before.
    paused: bool | None = None


class Ability(msgspec.Struct, Generic[P], frozen=True):
    """``P`` is the Protocol with the methods."""

    name: str
    operations: tuple[Operation, ...]

    def of(self, owner: object) -> P | None:
        """``owner``, where it has this ability."""
        able = all(hasattr(owner, operation.name) for operation in self.operations)
        return cast("P", owner) if able else None


# --- of walls, also of those behind a supervisor; the names are on its wire ---

PAUSE: Ability[Pausable] = Ability(
    "pause", (Operation("pause", paused=True), Operation("resume", paused=False))
)
SNAPSHOT: Ability[Snapshots] = Ability("snapshot", (Operation("snapshot", Folder),))
CHANGES: Ability[CopyOnWrite] = Ability(
    "changes",
    (Operation("changes", result=tuple[str, ...], in_file=True), Operation("apply")),
)
FORWARDED: tuple[Ability[Any], ...] = (PAUSE, SNAPSHOT, CHANGES)

# --- of backends ---

FORK: Ability[Restores] = Ability("fork", (Operation("restore"),))

# --- of walls, between agentd's own parts ---

ENDS_EARLY: Ability[EndsEarly] = Ability(
    "ends_early", (Operation("begin_kill"), Operation("end"), Operation("first_process"))
)
TELLS_END: Ability[TellsEnd] = Ability("tells_end", (Operation("ending"),))
LEASED: Ability[Leased] = Ability("leased", (Operation("renew"), Operation("tell_lease")))


def names(wall: object) -> tuple[str, ...]:
    """The forwarded abilities that ``wall`` has."""
    return tuple(ability.name for ability in FORWARDED if ability.of(wall) is not None)


def operations(able: Iterable[str]) -> Iterator[Operation]:
    """The operations of these abilities; names that this version does not know are left out."""
    known = frozenset(able)
    return (one for ability in FORWARDED if ability.name in known for one in ability.operations)


def incapable(name: str, ability: Ability[Any], what: str) -> Unsupported:
    """That a backend's sandbox lacks ``ability``, and which backends' have it."""
    able = ", ".join(backends.able(ability.name))
    return Unsupported(
        f"backend {name} cannot {what} a sandbox",
        remediation=f"use a backend that can: {able}" if able else "no backend here can",
    )
