"""A snapshot for asyncio."""

from collections.abc import Callable, Coroutine
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self

from agentd.client.aio_method import AioOnThreads, aio
from agentd.client.ports import Snapshot
from agentd.client.signature import documented_by

if TYPE_CHECKING:
    from agentd.client.http.address import Address

P = ParamSpec("P")


@documented_by(Snapshot)
class AsyncSnapshot(AioOnThreads[Snapshot]):
    """Is a Snapshot for asyncio, for ``create(snapshot=...)`` as any.

    In an ``async with`` it is deleted at the end, unless it was given a path to keep it at.
    """

    export = aio(Snapshot.export)
    delete = aio(Snapshot.delete)

    @property
    def id(self) -> str:
        return self._blocking.id

    @property
    def path(self) -> str | None:
        return self._blocking.path

    @property
    def url(self) -> str | None:
        return self._blocking.url

    @property
    def fidelity(self) -> str:
        return self._blocking.fidelity

    @property
    def size(self) -> int:
        return self._blocking.size

    @property
    def address(self) -> "Address | None":
        """The daemon that keeps it, and as whom to ask it; or None."""
        return getattr(self._blocking, "address", None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._call(lambda snapshot: snapshot.__exit__(*exc))

    def __repr__(self) -> str:
        return f"<AsyncSnapshot {self.id}>"


def taken(
    method: Callable[Concatenate[Any, P], Snapshot],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, AsyncSnapshot]]:
    """Make a coroutine of ``method``, as ``aio`` does, whose snapshot is one for asyncio."""
    take = aio(method)

    async def awaited(
        self: AioOnThreads[Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncSnapshot:
        return AsyncSnapshot(self._threads, await take(self, *args, **kwargs))

    return update_wrapper(awaited, method)
