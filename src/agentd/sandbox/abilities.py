"""What some walls can do and others cannot, as one table.

Whoever needs an ability asks its row for it: ``PAUSE.of(wall)`` is the wall, typed as what it can
do, or None. The supervisor answers the methods of these rows, and the wall that stands for one
in the supervisor has the same methods and forwards them; a new ability is a new row here and a
Protocol in ``ports``. A wall has an ability where it has all methods of the row: it says so
nowhere else, so that the two cannot differ. What takes something that this machine or this very
sandbox may not have is in the wall's ``lacks``, with the reason.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar, cast

import msgspec

from agentd.egress.connections import ConnectionList
from agentd.model.egress import EgressBounds
from agentd.model.enforcement import Control
from agentd.model.errors import Unsupported
from agentd.model.isolation import IsolationLevel
from agentd.model.secret import SecretValue
from agentd.sandbox import backends
from agentd.sandbox.ports import (
    Asks,
    Branches,
    CopyOnWrite,
    EndsEarly,
    HasCassette,
    HoldsSecrets,
    Leased,
    Networked,
    Pausable,
    Restores,
    Served,
    Snapshotable,
    TellsEnd,
)

P = TypeVar("P")


class Nothing(msgspec.Struct, frozen=True):
    """The arguments of a method that has none."""


class Folder(msgspec.Struct, frozen=True):
    folder: str


class Rules(msgspec.Struct, frozen=True):
    egress: tuple[str, ...]
    egress_bounds: EgressBounds


class GivenValues(msgspec.Struct, frozen=True):
    values: dict[str, SecretValue]


class OwnerName(msgspec.Struct, frozen=True):
    owner: str


class CassetteFile(msgspec.Struct, frozen=True):
    path: str


class After(msgspec.Struct, frozen=True):
    after: int


class Method(NamedTuple):
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
    #: Whether the arguments are in the sandbox's spec from then on, under their names.
    in_spec: bool = False
    #: The control that is reported as the result says from then on; "" where none changes.
    control: str = ""


class Ability(msgspec.Struct, Generic[P], frozen=True):
    """``P`` is the Protocol with the methods, and the attributes that it has besides."""

    name: str
    methods: tuple[Method, ...]
    attributes: tuple[str, ...] = ()
    #: Whether callers are told of it, as something that they can ask for.
    told: bool = True

    def of(self, owner: object) -> P | None:
        """Returns ``owner``, where it has this ability."""
        if self.name in lacking(owner):
            return None
        wanted = (*self.attributes, *(method.name for method in self.methods))
        return cast("P", owner) if all(hasattr(owner, name) for name in wanted) else None


# --- of walls, also of those behind a supervisor; the names are on its wire ---

PAUSE: Ability[Pausable] = Ability(
    "pause", (Method("pause", paused=True), Method("resume", paused=False))
)
SNAPSHOT: Ability[Snapshotable] = Ability(
    "snapshot", (Method("snapshot", Folder),), attributes=("fidelity",)
)
#: As a snapshot, for forks alone that are made at once: it may share what it has with them.
BRANCH: Ability[Branches] = Ability("branch", (Method("branch", Folder),), told=False)
CHANGES: Ability[CopyOnWrite] = Ability(
    "changes", (Method("changes", result=tuple[str, ...], in_file=True), Method("apply"))
)
NETWORK: Ability[Networked] = Ability(
    "network",
    (
        Method("set_network", Rules, result=Control, in_spec=True, control="network"),
        Method("connections", After, result=ConnectionList, in_file=True),
    ),
)
#: Values go in once, and come out for forks alone.
SECRETS: Ability[HoldsSecrets] = Ability(
    "secrets",
    (Method("give_secrets", GivenValues), Method("held_secrets", result=dict[str, SecretValue])),
    told=False,
)
CASSETTE: Ability[HasCassette] = Ability(
    "cassette",
    (
        Method("count_for", OwnerName),
        Method("cassette", result=bytes, in_file=True),
        Method("play", CassetteFile),
    ),
    told=False,
)
SERVED: Ability[Served] = Ability("served", (Method("is_served", result=bool),), told=False)
FORWARDED: tuple[Ability[Any], ...] = (
    *(PAUSE, SNAPSHOT, BRANCH, CHANGES),
    *(NETWORK, SECRETS, CASSETTE, SERVED),
)

# --- of backends ---

FORK: Ability[Restores] = Ability("fork", (Method("restore"),))

# --- of walls, between agentd's own parts ---

ENDS_EARLY: Ability[EndsEarly] = Ability(
    "ends_early", (Method("begin_kill"), Method("end"), Method("first_process"))
)
ASKS: Ability[Asks] = Ability(
    "asks", (Method("set_asker"), Method("answer"), Method("refuse_open"))
)
TELLS_END: Ability[TellsEnd] = Ability("tells_end", (Method("ending"),))
LEASED: Ability[Leased] = Ability("leased", (Method("renew"), Method("tell_lease")))


def names(wall: object) -> tuple[str, ...]:
    """Returns the abilities that ``wall`` has, of those that callers are told of."""
    told = {ability.name for ability in FORWARDED if ability.told}
    return tuple(name for name in forwarded(wall) if name in told)


def forwarded(wall: object) -> tuple[str, ...]:
    """Returns all that ``wall`` has and a supervisor forwards."""
    return tuple(ability.name for ability in FORWARDED if ability.of(wall) is not None)


def lacking(wall: object) -> Mapping[str, str]:
    """Returns what this one cannot though others of its backend can: abilities' names, and why."""
    return getattr(wall, "lacks", {})


def fidelity(wall: object) -> str:
    """Return what its snapshots keep, "memory" or "files"; "" where it has none."""
    able = SNAPSHOT.of(wall)
    return "" if able is None else able.fidelity


def methods(able: Iterable[str]) -> Iterator[Method]:
    """Returns these abilities' methods; names that this version does not know are left out."""
    known = frozenset(able)
    return (one for ability in FORWARDED if ability.name in known for one in ability.methods)


def incapable(name: str, ability: Ability[Any], what: str, why: str = "") -> Unsupported:
    """Returns a refusal: that a backend's sandbox lacks ``ability``, and which backends' have it.
    ``why`` is of one that others of the same backend have."""
    others = backends.able(ability.name)
    if why:
        # What one of ours lacks is the host's (a cgroup): no wall but a machine has it.
        lack = {each for each in backends.BUILTIN if _on_hosts_kernel(each)}
        lack = (lack if name in lack else set()) | {name}
        others = tuple(each for each in others if each not in lack)
    able = ", ".join(others)
    return Unsupported(
        f"backend {name} cannot {what} a sandbox",
        cause=why,
        remediation=f"use a backend that can: {able}" if able else "no backend here can",
    )


def _on_hosts_kernel(name: str) -> bool:
    """Whether the host's control groups hold its sandboxes: all but a machine's."""
    return backends.level(name) < IsolationLevel.MICROVM
