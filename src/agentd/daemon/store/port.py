"""The store port, small on purpose: reads from any thread, writes that are on disk when done."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import NamedTuple, Protocol, TypeVar

from agentd.daemon.store.records import Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Value = str | int | float | bytes | None
MAX_PAGE = 1000


class Amount(NamedTuple):
    rows: int
    total: int


class Reader(Protocol):
    """Every read may raise StoreError."""

    def get(self, kind: type[R], *key: Value) -> R | None: ...

    def find(
        self,
        kind: type[R],
        *,
        after: tuple[Value, ...] = (),
        limit: int = MAX_PAGE,
        labels: Mapping[str, str] | None = None,
        **equal: Value,
    ) -> list[R]:
        """A page in the order of the keys, from behind the key ``after``, ``MAX_PAGE`` at most.

        ``equal`` names columns; ``labels`` must all be among the record's.
        """

    def measure(self, kind: type[Record], column: str, **equal: Value) -> Amount:
        """How many rows there are, and the sum of one of their columns."""

    def least(
        self, kind: type[R], column: str, limit: int, *, positive: str = "", **equal: Value
    ) -> list[R]:
        """Rows with the least values of a column, without those that are infinite; ``positive`` is
        another column, which must be."""

    def heaviest(self, kind: type[Record], column: str, weight: str = "") -> Value:
        """The value of ``column`` that most rows have, or whose rows weigh the most; None without
        rows."""


class Transaction(Reader, Protocol):
    """Sees what it wrote; valid only within the function that it was given to."""

    def put(self, record: Record) -> None:
        """Insert, or replace what has its key."""

    def delete(self, kind: type[Record], *key: Value) -> bool:
        """Whether it was there."""

    def delete_before(self, kind: type[Record], column: str, value: float, limit: int) -> int:
        """Rows whose column is less, ``limit`` at most: how many went."""

    def take_before(self, kind: type[R], column: str, value: float, limit: int) -> list[R]:
        """The same: what went."""


class Store(Reader, Protocol):
    """Thread-safe.

    A write is a function that gets a Transaction. It runs alone, in whichever thread commits it, so
    it must be short and wait for nothing. What it raises undoes it and reaches the caller. When its
    value is there, it is on disk. Raises StoreBusy, and StoreError when the disk refuses.
    """

    def write(self, work: Callable[[Transaction], T], *, synced: bool = True) -> T:
        """Blocks until it is on disk; ``synced`` as for ``submit``."""

    def submit(
        self, work: Callable[[Transaction], T], *, synced: bool = True, urgent: bool = True
    ) -> "Future[T]":
        """One that is not ``urgent`` is written along with the next write, whoever makes that, and
        after a second by itself.

        Without ``synced`` a loss of power may undo it, the death of the daemon does not; the
        next synced write of any caller makes it lasting too."""

    def checkpoint(self) -> None:
        """What was deleted is in no file any more, unless the disk refuses."""

    def close(self) -> None:
        """After the writes that wait; idempotent."""
