"""Streams that have begun when they are returned."""

from collections.abc import Generator
from typing import TypeVar, cast

T = TypeVar("T")


def begun(stream: Generator[T | None, None, None]) -> Generator[T, None, None]:
    """Take the None that a generator yields once it has begun, and return the rest.

    A generator that never ran has nothing to end; one that is dropped after this ends what it
    holds. Raises what kept it from beginning.
    """
    next(stream, None)
    return cast("Generator[T, None, None]", stream)
