"""A running command, as whoever started it holds it: driven by ``drive``, in one thread."""

from collections.abc import Iterator, Mapping
from typing import Protocol, Self

from agentd.model.drive import TakesInput
from agentd.model.result import Result


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
