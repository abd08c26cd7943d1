"""The bytes of a file, as they come."""

from collections.abc import Iterator


class Content:
    """Pieces of a file, and where they lie in it: an iterator. ``close`` one that is left.

    ``size`` is the whole file's; None where it has none, as those of /proc: then all of it comes.
    """

    def __init__(self, pieces: Iterator[bytes], first: int = 0, size: int | None = None) -> None:
        self.first = first
        self.size = size
        self._pieces = pieces

    def __iter__(self) -> "Content":
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        """Idempotent."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
