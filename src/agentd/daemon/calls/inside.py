"""A sandbox as a capability has it: the port's Inside over a handle, through the pipeline."""

import posixpath
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from agentd.daemon.pipeline import begin
from agentd.model.limits import DEFAULTS, Limits
from agentd.model.result import Result
from agentd.model.spec import ExecRequest

if TYPE_CHECKING:
    from agentd.daemon.execution import Execution
    from agentd.daemon.pipeline import Pipeline
    from agentd.model.principal import Principal
    from agentd.sandbox.manager import SandboxHandle
    from agentd.transport.files import Files

Emit = Callable[[str, bytes], None]
Bound = TypeVar("Bound", int, float)
_NO_LIMITS = Limits()


class HandleInside:
    """The handle stays the caller's to end."""

    def __init__(
        self,
        pipeline: "Pipeline",
        principal: "Principal",
        handle: "SandboxHandle",
        cancel: int = -1,
        *,
        admitted: bool = False,
        most: Limits = _NO_LIMITS,
    ) -> None:
        """``cancel``: a descriptor of the caller's that ends every command once it is readable.

        ``admitted``: the call was decided as a whole, and its commands are parts of it; otherwise
        each goes by the pipeline's gate. ``most`` is what the decision lets a command have.
        """
        self._pipeline = pipeline
        self._principal = principal
        self._handle = handle
        self._cancel = cancel
        self._admitted = admitted
        self._most = most

    @property
    def workspace(self) -> str:
        return self._handle.wall.workspace

    @property
    def files(self) -> "Files":
        return self._handle.guest.files

    def path(self, path: str) -> str:
        """As it stands: what a ``..`` behind a symlink means only the sandbox's kernel knows."""
        return posixpath.join(self.workspace, path)

    def execute(self, request: ExecRequest, stdin: bytes = b"", emit: Emit | None = None) -> Result:
        """A command to its end, no longer and with no more output than the sandbox's limits say.

        What ``emit`` raises ends the command and comes out here.
        """
        capture = emit is None and self._cancel < 0
        with self._start(self._bounded(request, bool(stdin)), capture) as execution:
            if stdin:
                execution.write(stdin)
                execution.close_stdin()
            return execution.finish() if capture else self._followed(execution, emit)

    def _start(self, request: ExecRequest, capture: bool) -> "Execution":
        if self._admitted:
            return begin(self._handle, request, capture=capture)
        return self._pipeline.start(self._principal, self._handle, request, capture)

    def _followed(self, execution: "Execution", emit: Emit | None) -> Result:
        kept = {"stdout": bytearray(), "stderr": bytearray()}
        cancel = (self._cancel,) if self._cancel >= 0 else ()
        while True:
            chunks, ready = execution.step(None, cancel)
            for name, data in chunks:
                kept[name] += data  # as many as the request's output_limit at most
                if emit is not None:
                    emit(name, bytes(data))
            if execution.exit is not None and not chunks:
                break
            if ready:
                cancel = ()  # it stays readable: looked at again, it would keep us awake
                execution.kill()
        stdout, stderr = map(bytes, kept.values())
        return msgspec.structs.replace(execution.finish(), stdout=stdout, stderr=stderr)

    def _bounded(self, request: ExecRequest, stdin: bool) -> ExecRequest:
        """A capability asks for bounds of its own; they do not widen the sandbox's."""
        limits, most = self._handle.spec.limits, self._most
        return msgspec.structs.replace(
            request,
            stdin=stdin,
            timeout=_least(request.timeout, limits.timeout, most.timeout),
            output_limit=_least(request.output_limit, limits.output, most.output, DEFAULTS.output),
        )


def _least(*bounds: Bound | None) -> Bound | None:
    return min((bound for bound in bounds if bound is not None), default=None)
