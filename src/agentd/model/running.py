"""A running command: the loop that drives it, the same for each kind; what it is to whoever started
it, and to who asked an agent for it; and one that has ended."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, Self, TypeVar

from agentd.model.control import check_signal, check_window
from agentd.model.errors import InvalidInput, Refused
from agentd.model.result import Exit, Result

_PIECE = 64 << 10
_BACKLOG = 256 << 10  # bytes of stdin given ahead of the command

Round = tuple[list[tuple[str, bytes]], list[int]]
R_co = TypeVar("R_co", covariant=True)


class Driven(Protocol):
    """A running command, as far as the loop sees it."""

    @property
    def exit(self) -> object | None:
        """Not None once it has ended."""

    def step(self, timeout: float | None = None, extra_fds: Sequence[int] = ()) -> Round:
        """Waits for one round: chunks of output, ``("stdout" | "stderr", bytes)``, and the readable
        ones of ``extra_fds``. Both are empty after ``timeout`` seconds, and may be before."""


class Stepped:
    """The methods that a command's class gets from its ``step``, ``exit`` and ``close``."""

    def chunks(self: Driven) -> Iterator[tuple[str, bytes]]:
        """Yields its output, ``("stdout" | "stderr", bytes)``, as it comes, until its end."""
        for found, _ in drive(self):
            yield from found

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class TakesInput(Driven, Protocol[R_co]):
    """A command that takes stdin and has a result."""

    @property
    def backlog(self) -> int: ...
    def write(self, data: bytes) -> None: ...
    def close_stdin(self) -> None: ...
    def kill(self) -> None: ...
    def finish(self) -> R_co: ...


def drive(
    command: Driven,
    waiting: Callable[[], Sequence[int]] = tuple,
    timeout: Callable[[], float | None] | None = None,
) -> Iterator[Round]:
    """Yields each round of ``command.step`` until the command has ended and nothing of its output
    is left.

    ``waiting`` gives the descriptors that end a round once they are readable, ``timeout`` the
    seconds that it lasts at most; both are asked before each round. One that stays readable has to
    be left out by ``waiting``, or rounds follow each other without a pause.

    To leave the loop early stops nothing: the command is still the caller's to kill and close.
    Raises what ``step`` raises.
    """
    while True:
        # After the end nothing but these descriptors would end a round: they are left out.
        fds = waiting() if command.exit is None else ()
        chunks, ready = command.step(None if timeout is None else timeout(), fds)
        yield chunks, ready
        if command.exit is not None and not chunks:
            return


def execute(command: TakesInput[R_co], stdin: bytes, wake: int = -1) -> R_co:
    """Feeds ``stdin``, waits for the end and returns the result; ``wake`` readable kills it."""
    left = memoryview(stdin)

    def feed() -> None:
        nonlocal left
        while left and command.exit is None and command.backlog < _BACKLOG:
            command.write(bytes(left[:_PIECE]))
            left = left[_PIECE:]
            if not left:
                command.close_stdin()

    feed()
    for _, ready in drive(command, lambda: () if wake < 0 else (wake,)):
        if ready:
            command.kill()
            break
        feed()
    return command.finish()


class RunningCommand(TakesInput[Result], Protocol):
    """One thread drives it; another may write, signal and kill."""

    @property
    def id(self) -> str:
        """The daemon's name for it; empty for one of this process."""

    @property
    def pid(self) -> int | None: ...
    @property
    def cursors(self) -> Mapping[str, int]:
        """Bytes of each stream that ``step`` gave out."""

    @property
    def before(self) -> Mapping[str, bytes]:
        """Of a stream that was taken up amid its output, up to 3 bytes ahead of that."""

    def chunks(self) -> Iterator[tuple[str, bytes]]: ...
    def signal(self, number: int) -> None: ...
    def resize(self, rows: int, cols: int) -> None: ...
    def detach(self) -> None:
        """Let go of it without ending it. Raises Refused where it could not go on."""

    def close(self) -> None:
        """Let go of it; a command that has not ended is killed."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


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
    def chunks(self) -> Iterator[tuple[str, bytes]]: ...
    def step(
        self, timeout: float | None = None, extra_fds: Sequence[int] = ()
    ) -> tuple[list[tuple[str, bytes]], list[int]]: ...
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
    ) -> tuple[list[tuple[str, bytes]], list[int]]:
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
