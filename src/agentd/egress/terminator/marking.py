"""Says for which sandbox a task does its next step, and tasks that it makes do theirs."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any, TypeVar

from agentd.egress.mark import Mark

#: What is made as a task now is that sandbox's.
OWNER: ContextVar[int] = ContextVar("OWNER", default=0)
_T = TypeVar("_T")


class MarkedSteps(Coroutine[Any, Any, _T]):
    """A coroutine as it is, with the mark set while it runs."""

    __slots__ = ("_mark", "_owner", "_steps")

    def __init__(self, steps: Coroutine[Any, Any, _T], mark: Mark, owner: int) -> None:
        self._steps, self._mark, self._owner = steps, mark, owner

    def send(self, value: Any) -> Any:
        self._mark[0] = self._owner
        try:
            return self._steps.send(value)
        finally:
            self._mark[0] = 0

    def throw(self, *error: Any) -> Any:
        self._mark[0] = self._owner
        try:
            return self._steps.throw(*error)
        finally:
            self._mark[0] = 0

    def close(self) -> None:
        self._steps.close()

    def __await__(self) -> Generator[Any, Any, _T]:
        return self._steps.__await__()


def task_factory(mark: Mark) -> Callable[..., "asyncio.Task[Any]"]:
    """Return what ``loop.set_task_factory`` takes."""

    def make(
        loop: asyncio.AbstractEventLoop, steps: Coroutine[Any, Any, Any], **more: Any
    ) -> "asyncio.Task[Any]":
        return asyncio.Task(MarkedSteps(steps, mark, OWNER.get()), loop=loop, **more)

    return make
