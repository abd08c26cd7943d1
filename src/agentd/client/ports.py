"""What the SDK and the command line stand on: the service contract, of this process or a daemon's,
and the little that whoever holds a sandbox asks beside it."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from agentd.model import service

if TYPE_CHECKING:
    from agentd.model.api import SandboxBody, SandboxView
    from agentd.model.result import Result
    from agentd.model.running import RunningCommand
    from agentd.model.spec import ExecRequest


@runtime_checkable
class SnapshotLike(Protocol):
    """What a snapshot is, for asyncio or not: ``Sandbox.create(snapshot=...)`` takes it."""

    @property
    def id(self) -> str: ...
    @property
    def path(self) -> str | None:
        """Return the folder it is kept in; None where a daemon keeps it."""

    @property
    def url(self) -> str | None:
        """Return the daemon that keeps it, where ``create`` makes sandboxes of it; or None."""

    @property
    def fidelity(self) -> str:
        """Return what is in it: "memory" is processes and files, "files" is files alone."""

    @property
    def size(self) -> int:
        """Return the bytes of its files together."""


class Snapshot(SnapshotLike, Protocol):
    """A sandbox's state, for ``Sandbox.create(snapshot=...)``, any number of times.

    In a with statement it is deleted at the end, unless it was given a path to keep it at.
    """

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write it as an archive of an OCI image, ``oci-archive:PATH``: the image that it was taken
        of, with what was changed as one more layer.

        Raises InvalidInput, Refused for one of memory, SandboxError where it is damaged; of a
        daemon's Forbidden without the scope ``admin``.
        """

    def delete(self) -> None:
        """Delete it; sandboxes that were made of it stay as they are. Idempotent."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


class Sandboxes(service.Sandboxes, Protocol):
    def create(self, body: "SandboxBody" = ..., *, cancel: int = -1) -> "SandboxView":
        """Make one. The descriptor ``cancel`` readable gives it up where it takes long: what a
        daemon still makes then ends with its lease."""

    def keep(self, id: str, path: str | os.PathLike[str] | None) -> Snapshot:
        """Take a snapshot, and give it as an object. Raises InvalidInput for a ``path`` where a
        daemon keeps it, and as ``snapshot`` does."""

    def ping(self, id: str) -> dict[str, object]:
        """Ask the agent inside whether it answers. Raises BackendLost when it is gone."""


class Commands(service.Commands, Protocol):
    """Commands that this process drives: bytes in and out, and a handle in the place of an id."""

    def complete(
        self, sandbox: str, request: "ExecRequest", stdin: bytes = b"", cancel: int = -1
    ) -> "Result":
        """Run one to its end, its output captured; ``cancel`` readable kills it."""

    def begin(
        self, sandbox: str, request: "ExecRequest", *, capture: bool = False, cancel: int = -1
    ) -> "RunningCommand":
        """Start one; ``capture`` keeps its output for the Result, and ``cancel`` readable gives up
        a start that waits."""

    def attach(
        self, sandbox: str, process: str, cursors: Mapping[str, int], *, capture: bool = False
    ) -> "RunningCommand":
        """Take up one that runs, its output from the cursors on; ``capture`` as of ``begin``.
        Raises NotFound."""


class Files(service.Files, Protocol):
    def read(
        self, sandbox: str, path: str, offset: int = 0, length: int | None = None, *, wake: int = -1
    ) -> Iterator[bytes]:
        """Read a file; the descriptor ``wake`` readable ends it early."""

    def write(
        self,
        sandbox: str,
        path: str,
        data: bytes | Iterable[bytes],
        *,
        mode: int = 0o644,
        parents: bool = False,
    ) -> int:
        """Write a file; bytes are sent again after a lost connection."""


class Service(service.Service, Protocol):
    @property
    def url(self) -> str | None:
        """Return the daemon's address; None for this process."""

    @property
    def sandboxes(self) -> Sandboxes: ...
    @property
    def commands(self) -> Commands: ...
    @property
    def files(self) -> Files: ...
    def again(self) -> "Service":
        """Return the same once more, to be closed by itself."""

    def close(self) -> None:
        """Free what it holds; idempotent."""
