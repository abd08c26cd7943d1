"""What may be asked for by name: a capability, a call of it, and what came of that."""

from collections.abc import Mapping
from typing import Any

import msgspec

from agentd.model.errors import InvalidInput
from agentd.model.isolation import IsolationLevel
from agentd.model.result import Result


class Needs(msgspec.Struct, frozen=True):
    """The needs of a capability, of where it runs; policies decide on them, too."""

    level: IsolationLevel = IsolationLevel.PROCESS  # the least wall
    network: bool = False  # beyond the sandbox's own loopback
    writes: bool = False  # it changes files of the sandbox
    sandbox: bool = True  # False: it acts in the daemon itself, which bounds it

    def told(self) -> dict[str, Any]:
        """Tell them as JSON has them: the level by its label."""
        return {**msgspec.structs.asdict(self), "level": self.level.label}


class Bounds(msgspec.Struct, frozen=True):
    """The bounds of one call. ``timeout`` in seconds, where its parameters say nothing; ``output``
    in bytes of the JSON of its value."""

    timeout: float = 60.0
    output: int = 16 << 20


class Example(msgspec.Struct, frozen=True):
    """Shown by ``agentd capability show``, and run by the tests.

    ``files`` are there before (paths in the workspace); ``value`` holds members that the outcome's
    value has, too; ``error`` is the code that it ends with, "" for success.
    """

    about: str
    parameters: Mapping[str, Any]
    files: Mapping[str, str] = {}
    value: Mapping[str, Any] = {}
    error: str = ""


class About(msgspec.Struct, frozen=True):
    """A capability's description. ``name`` ends with its version: ``shell.exec.v1``.

    ``schema`` is the JSON Schema (2020-12) of its parameters, an object that refuses unknown ones.
    """

    name: str
    summary: str
    schema: Mapping[str, Any]
    needs: Needs = Needs()
    bounds: Bounds = Bounds()
    examples: tuple[Example, ...] = ()


class Outcome(msgspec.Struct, frozen=True):
    """``value`` is JSON; ``end`` is of the command that did it, where there was one."""

    value: Mapping[str, Any]
    end: Result | None = None


class CallFailed(InvalidInput):
    """The capability did what it was asked and it cannot be had: a missing file, a bad query.

    ``code`` is one of the capability's own, as "not_found" or "too_large".
    """

    def __init__(self, code: str, message: str, *, cause: str = "", remediation: str = "") -> None:
        super().__init__(message, cause=cause, remediation=remediation)
        self.code = code
