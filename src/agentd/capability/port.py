"""The two ports: what a capability is, and what it is given to work with."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from agentd.model.capability import About, Outcome
from agentd.model.result import Result
from agentd.model.spec import ExecRequest


class InsideFiles(Protocol):
    """The sandbox's files, through its agent. Raises OperationFailed with the errno.

    Relative paths are taken from the agent's directory: pass absolute ones (``Inside.path``).
    """

    def read_iter(
        self, path: str, offset: int = 0, length: int | None = None
    ) -> Iterator[bytes]: ...
    def write(self, path: str, data: bytes, *, mode: int = 0o644, parents: bool = False) -> int: ...
    def list(self, path: str) -> list[Any]:
        """Entries: name, path, type ("file", "dir", "link", ...), size, mode, uid, gid, mtime
        (seconds), target (of a link)."""

    def stat(self, path: str) -> Any: ...
    def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = False) -> None: ...
    def remove(self, path: str, *, recursive: bool = False) -> None: ...


class Inside(Protocol):
    """A sandbox as a call sees it. What comes from it is untrusted: bound it, check it."""

    @property
    def workspace(self) -> str:
        """Absolute, as seen inside."""

    @property
    def files(self) -> InsideFiles: ...

    def path(self, path: str) -> str:
        """Absolute, from the workspace."""

    def execute(
        self,
        request: ExecRequest,
        stdin: bytes = b"",
        emit: Callable[[str, bytes], None] | None = None,
    ) -> Result:
        """Run a command to its end. Its output is in the result (bounded by ``output_limit``, 64
        MiB a stream otherwise), and goes to ``emit`` ("stdout" or "stderr") as it comes, too."""


class Call(Protocol):
    """A call: its checked parameters, and where to emit output before its end."""

    @property
    def parameters(self) -> dict[str, Any]: ...
    @property
    def request_id(self) -> str: ...
    @property
    def timeout(self) -> float:
        """Seconds that it may take at most."""

    def emit(self, kind: str, data: bytes) -> None:
        """A piece for who follows the call: "stdout", "stderr", or a kind of the capability's."""


class Capability(Protocol):
    """Thread-safe: one object serves all calls."""

    about: About

    def run(self, call: Call, inside: Inside) -> Outcome:
        """Raises CallFailed for what the caller can fix, other AgentdErrors as they come."""
