"""What a command in a sandbox is to its caller, however it reaches it; and one that has ended."""

from collections.abc import Iterator, Sequence
from typing import Protocol, Self

from agentd.model.control import check_signal, check_window
from agentd.model.drive import Stepped
from agentd.model.errors import InvalidInput, Refused
from agentd.model.result import Exit
from agentd.transport.events import Chunk


class Running(Protocol):
    """A command as a caller sees it. Not thread-safe: one thread, or ``extra_fds`` to wake it."""

    @property
    def pid(self) -> int | None: ...
    @property
    def truncated(self) -> bool: ...
    @property
    def exit(self) -> Exit | None: ...
    @property
    def backlog(self) -> int: ...
    def chunks(self) -> Iterator[Chunk]: ...
    def step(
        self, timeout: float | None = None, extra_fds: Sequence[int] = ()
    ) -> tuple[list[Chunk], list[int]]: ...
    def wait(self, timeout: float | None = None) -> Exit: ...
    def write(self, data: bytes) -> None: ...
    def close_stdin(self) -> None: ...
    def signal(self, number: int, target: str = "group") -> None: ...
    def resize(self, rows: int, cols: int) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


class SpawnFailed(InvalidInput):
    """A detached command never ran; ``exit`` says why."""

    def __init__(self, end: Exit) -> None:
        super().__init__(end.cause.message, remediation=end.cause.remediation)
        self.exit = end


class StdinNotStreamed(Refused):
    """The agent takes stdin whole, with the request."""


class HasEnded(Stepped):
    """A command that has ended, or could not be started, where one is expected that runs."""

    pid = None
    truncated = False
    backlog = 0

    def __init__(self, end: Exit | None) -> None:
        self.exit = end

    def step(
        self, timeout: float | None = None, extra_fds: Sequence[int] = ()
    ) -> tuple[list[Chunk], list[int]]:
        return [], []

    def wait(self, timeout: float | None = None) -> Exit:
        assert self.exit is not None  # noqa: S101  (it was made with one)
        return self.exit

    def write(self, data: bytes) -> None: ...
    def close_stdin(self) -> None: ...
    def signal(self, number: int, target: str = "group") -> None:
        check_signal(number, target)

    def resize(self, rows: int, cols: int) -> None:
        check_window(rows, cols)

    def kill(self) -> None: ...
    def close(self) -> None: ...
