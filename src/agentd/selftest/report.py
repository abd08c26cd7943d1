"""What a self-test found out."""

from enum import StrEnum

import msgspec

from agentd._version import __version__
from agentd.model.availability import Blocker
from agentd.model.spec import DEFAULT_IMAGE


class Verdict(StrEnum):
    STOPPED = "stopped"
    THROUGH = "got through"
    NOT_APPLICABLE = "not applicable"  # the wall makes no such promise here; the detail says why
    WORKS = "works"  # of a check: what a sandbox must still be able to do
    BROKEN = "broken"
    UNDECIDED = "undecided"  # it could not be tried: nothing is proven

    @property
    def bad(self) -> bool:
        return self in (Verdict.THROUGH, Verdict.BROKEN, Verdict.UNDECIDED)


class AttackRow(msgspec.Struct, frozen=True):
    """The result of one attack behind one wall. ``controls``: each of them alone stops it, as a
    sandbox's enforcement report names them; empty for a check."""

    name: str
    controls: tuple[str, ...]
    verdict: Verdict
    detail: str = ""
    ms: float = 0.0


class BackendReport(msgspec.Struct, frozen=True):
    """``attacks`` is empty where the backend is not usable."""

    name: str
    level: str
    usable: bool
    blockers: tuple[Blocker, ...] = ()
    attacks: tuple[AttackRow, ...] = ()

    @property
    def bad(self) -> tuple[AttackRow, ...]:
        return tuple(row for row in self.attacks if row.verdict.bad)

    @property
    def stops(self) -> bool:
        """Whether any attack was stopped: what stops none is no wall, whatever it says it is."""
        return any(row.verdict is Verdict.STOPPED for row in self.attacks)

    @property
    def held(self) -> bool:
        return self.usable and self.stops and not self.bad


class SelftestReport(msgspec.Struct, frozen=True):
    """``passed``: every wall that was asked for by name was tried, at least one was tried at all,
    each that was tried stopped an attack, and no row of any is bad."""

    machine: dict[str, object]
    backends: tuple[BackendReport, ...]
    passed: bool
    image: str = DEFAULT_IMAGE
    agentd: str = __version__
