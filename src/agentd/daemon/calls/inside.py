"""A sandbox as a capability has it: the port's Inside over a handle; or none."""

import posixpath
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

import msgspec

from agentd.capability.call import Emit
from agentd.model.errors import AgentdError
from agentd.model.limits import DEFAULTS, Limits
from agentd.model.result import Result
from agentd.model.spec import ExecRequest

if TYPE_CHECKING:
    from agentd.sandbox.manager import SandboxHandle
    from agentd.transport.files import GuestFiles

Run = Callable[[ExecRequest, bytes, Emit | None, int], Result]
Bound = TypeVar("Bound", int, float)
_NO_LIMITS = Limits()


class HandleInside:
    """Gives a capability a sandbox; the handle stays the caller's to end."""

    def __init__(
        self, handle: "SandboxHandle", run: Run, cancel: int = -1, most: Limits = _NO_LIMITS
    ) -> None:
        """``run`` brings a command to its end; ``cancel``: a descriptor of the caller's that ends
        every command once it is readable. ``most`` is what the decision lets a command have.
        """
        self._handle = handle
        self._run = run
        self._cancel = cancel
        self._most = most

    @property
    def workspace(self) -> str:
        return self._handle.wall.workspace

    @property
    def files(self) -> "GuestFiles":
        return self._handle.guest.files

    def path(self, path: str) -> str:
        """Join it as it stands: what ``..`` behind a symlink means only the kernel there knows."""
        return posixpath.join(self.workspace, path)

    def execute(self, request: ExecRequest, stdin: bytes = b"", emit: Emit | None = None) -> Result:
        """Run a command to its end, no longer and with no more output than the sandbox's limits
        say.

        What ``emit`` raises ends the command and comes out here.
        """
        return self._run(self._bounded(request, bool(stdin)), stdin, emit, self._cancel)

    def _bounded(self, request: ExecRequest, stdin: bool) -> ExecRequest:
        """A capability asks for bounds of its own; they do not widen the sandbox's."""
        limits, most = self._handle.spec.limits, self._most
        return msgspec.structs.replace(
            request,
            stdin=stdin,
            timeout=_least(request.timeout, limits.timeout, most.timeout),
            output_limit=_least(request.output_limit, limits.output, most.output, DEFAULTS.output),
        )


class Nowhere:
    """Raises on every use: a capability that says it needs no sandbox gets none."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AgentdError(
            f"there is no sandbox to use {name!r} of",
            cause="the capability says that it needs none",
            remediation="let its needs say so: Needs(sandbox=True)",
        )


def _least(*bounds: Bound | None) -> Bound | None:
    return min((bound for bound in bounds if bound is not None), default=None)
