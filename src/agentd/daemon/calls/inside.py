"""A sandbox as a capability has it: the port's Inside over a handle, through the pipeline."""

import posixpath
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from agentd.model.limits import DEFAULTS
from agentd.model.result import Result
from agentd.model.spec import ExecRequest

if TYPE_CHECKING:
    from agentd.daemon.execution import Execution
    from agentd.daemon.pipeline import Pipeline, Principal
    from agentd.sandbox.manager import SandboxHandle
    from agentd.transport.files import Files

Emit = Callable[[str, bytes], None]
Bound = TypeVar("Bound", int, float)


class HandleInside:
    """Commands go through the pipeline's steps, as any do; the handle stays the caller's to end."""

    def __init__(
        self,
        pipeline: "Pipeline",
        principal: "Principal",
        handle: "SandboxHandle",
        cancel: int = -1,
    ) -> None:
        """``cancel``: a descriptor of the caller's that ends every command once it is readable."""
        self._cancel = cancel
        self._pipeline = pipeline
        self._principal = principal
        self._handle = handle

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
        asked = self._bounded(request)
        if emit is None and self._cancel < 0:
            return self._pipeline.execute(self._principal, self._handle, asked, stdin)
        asked = msgspec.structs.replace(asked, stdin=bool(stdin))
        with self._pipeline.start(self._principal, self._handle, asked) as execution:
            if stdin:
                execution.write(stdin)
                execution.close_stdin()
            return self._followed(execution, emit)

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

    def _bounded(self, request: ExecRequest) -> ExecRequest:
        """A capability asks for bounds of its own; they do not widen the sandbox's."""
        limits = self._handle.spec.limits
        return msgspec.structs.replace(
            request,
            timeout=_least(request.timeout, limits.timeout),
            output_limit=_least(request.output_limit, limits.output, DEFAULTS.output),
        )


def _least(*bounds: Bound | None) -> Bound | None:
    return min((bound for bound in bounds if bound is not None), default=None)
