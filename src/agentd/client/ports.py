"""What stands behind the SDK's objects: a sandbox of this process, or one of a daemon."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from agentd.model.api import CallView
    from agentd.model.enforcement import Enforcement
    from agentd.model.result import Result, SandboxInfo
    from agentd.model.spec import ExecRequest


@runtime_checkable
class Snapshot(Protocol):
    """A sandbox's state, for ``Sandbox.create(snapshot=...)``, any number of times.

    In a with statement it is deleted at the end, unless it was given a path to keep it at.
    """

    @property
    def id(self) -> str: ...
    @property
    def path(self) -> str | None:
        """The folder it is kept in; None where a daemon keeps it."""

    @property
    def fidelity(self) -> str:
        """What is in it: "memory" is processes and files, "files" is files alone."""

    @property
    def size(self) -> int:
        """Bytes of its files together."""

    def delete(self) -> None:
        """Idempotent. Sandboxes that were made of it stay as they are."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


class Running(Protocol):
    """A command that runs. One thread drives it; another may write, signal and kill."""

    @property
    def id(self) -> str | None:
        """The daemon's name for it; None for one of this process."""

    @property
    def pid(self) -> int | None: ...
    @property
    def exit(self) -> object | None:
        """Not None once it has ended."""

    @property
    def backlog(self) -> int:
        """Bytes of stdin that it has not taken yet."""

    @property
    def cursors(self) -> Mapping[str, int]:
        """Bytes of each stream that were given out."""

    @property
    def before(self) -> Mapping[str, bytes]:
        """Of a stream that was taken up amid its output, up to 3 bytes ahead of that."""

    def step(
        self, timeout: float | None = None, extra_fds: Sequence[int] = ()
    ) -> tuple[list[tuple[str, bytes]], list[int]]:
        """Chunks of output, ("stdout" | "stderr", bytes), and the readable ones of ``extra_fds``:
        what is there, or after ``timeout`` seconds nothing. No bytes: some are lost here."""

    def chunks(self) -> Iterator[tuple[str, bytes]]: ...
    def write(self, data: bytes) -> None: ...
    def close_stdin(self) -> None: ...
    def signal(self, number: int) -> None: ...
    def resize(self, rows: int, cols: int) -> None: ...
    def kill(self) -> None: ...
    def finish(self) -> "Result":
        """Waits for its end; output that nobody took is dropped, unless it is captured."""

    def detach(self) -> None:
        """Let go of it without ending it. Raises Refused where it could not go on."""

    def close(self) -> None:
        """Let go of it; a command that has not ended is killed."""

    def __enter__(self) -> "Running": ...
    def __exit__(self, *exc: object) -> None: ...


class Held(Protocol):
    """A sandbox. Thread-safe."""

    lasting: bool
    """Whether it outlives this process, so that to forget it is no mistake."""

    @property
    def id(self) -> str: ...
    @property
    def url(self) -> str | None:
        """The daemon's address; None for one of this process."""

    @property
    def state(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def info(self) -> "SandboxInfo": ...
    @property
    def enforcement(self) -> "Enforcement": ...
    @property
    def files(self) -> Any:
        """With the methods of transport.files.Files."""

    def execute(self, request: "ExecRequest", stdin: bytes, wake: int = -1) -> "Result":
        """Waits for its end; ``wake`` readable kills it."""

    def start(self, request: "ExecRequest", *, capture: bool = False) -> Running: ...
    def attach(self, process: str, cursors: Mapping[str, int]) -> Running: ...
    def call(
        self,
        capability: str,
        parameters: Mapping[str, Any],
        emit: "Callable[[str, bytes], None] | None",
        bundle: str,
        cancel: int = -1,
    ) -> "CallView":
        """``cancel``: a descriptor that ends it once it is readable."""

    def changes(self) -> tuple[str, ...]: ...
    def apply(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def snapshot(self, path: str | os.PathLike[str] | None) -> Snapshot: ...
    def fork(self, count: int) -> "Sequence[Held]": ...
    def ping(self) -> dict[str, object]: ...
    def renew(self, ttl: str | float) -> None: ...
    def kill(self) -> None:
        """End everything in it; idempotent."""

    def forget(self) -> None:
        """Let go of it: it goes on where it outlives this process, and is ended where not."""
