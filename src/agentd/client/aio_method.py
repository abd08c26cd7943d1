"""Coroutines made of blocking methods: the same parameters, answer and documentation."""

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from inspect import signature
from operator import methodcaller
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, cast

from agentd.client.aio_thread import Threads, Wake
from agentd.client.cut import Cut

P = ParamSpec("P")
B = TypeVar("B")
R = TypeVar("R")
_OVER: Final = object()


class Aio(Protocol):
    """An object whose methods are made of those of a blocking one."""

    async def _call(self, work: Callable[[Any], R]) -> R:
        """Do ``work``, which takes the blocking object, in a thread."""


class AioOnThreads(Generic[B]):
    def __init__(self, threads: Threads, blocking: B) -> None:
        self._threads, self._blocking = threads, blocking

    async def _call(self, work: Callable[[B], R]) -> R:
        return await self._threads.call(functools.partial(work, self._blocking), cut=Cut())


def aio(
    method: Callable[Concatenate[Any, P], R],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    """Make a coroutine of a blocking object's method."""

    async def awaited(self: Aio, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._call(methodcaller(method.__name__, *args, **kwargs))

    return functools.update_wrapper(awaited, method)


def aio_each(
    method: Callable[Concatenate[Any, P], Iterator[R]],
    work: Callable[..., Iterator[R]] | None = None,
) -> Callable[Concatenate[Any, P], AsyncGenerator[R, None]]:
    """Make an asynchronous generator of a blocking object's method that gives pieces, by ``work``
    where that is given: another of its methods, which does the same.

    Cancelling the wait for a piece ends it: at once where the method takes a descriptor, ``wake``,
    and has begun.
    """
    name = (work or method).__name__

    async def each(
        self: AioOnThreads[Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[R, None]:
        bound, wake, cut = getattr(self._blocking, name), Wake(), Cut()
        try:
            more = {"wake": wake.fd} if "wake" in signature(bound).parameters else {}
            begin = functools.partial(bound, *args, **{**more, **kwargs})
            pieces = await self._threads.call(begin, wake, cut)
            try:
                step = functools.partial(next, pieces, _OVER)
                while (piece := await self._threads.call(step, wake, cut)) is not _OVER:
                    yield cast("R", piece)
            finally:
                close = getattr(pieces, "close", None)
                if close is not None:
                    close()
        finally:
            wake.close()

    return functools.update_wrapper(each, method)


def cancellable(
    method: Callable[Concatenate[Any, P], R],
    work: Callable[Concatenate[Any, int, P], R],
    *,
    cuts: bool = False,
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    """Make a coroutine of ``method`` by ``work``, which does the same and takes a descriptor first:
    once that is readable, as it is when the task is cancelled, it ends what it has begun. With
    ``cuts`` its requests are cut off, too: of a call a daemon does no more then."""

    async def awaited(self: AioOnThreads[Any], /, *args: P.args, **kwargs: P.kwargs) -> R:
        wake = Wake()
        try:
            done = functools.partial(work, self._blocking, wake.fd, *args, **kwargs)
            return await self._threads.call(done, wake, Cut() if cuts else None)
        finally:
            wake.close()

    return functools.update_wrapper(awaited, method)
