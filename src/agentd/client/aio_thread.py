"""A blocking call of the SDK, made on a thread for a task that may be cancelled meanwhile."""

import asyncio
import contextlib
import contextvars
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

from agentd.client.cut import Cut

T = TypeVar("T")
# Commands and file operations of one sandbox at the same time; more of them wait their turn.
MAX_THREADS = 16


class Wake:
    """A pipe that ends a thread's poll when its task is cancelled."""

    def __init__(self) -> None:
        self.fd, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # Also where it is forgotten, with a stream that never began or a command that was left.
        self._free = weakref.finalize(self, _close_both, self.fd, self._write_end)
        self._free.atexit = False

    def set(self) -> None:
        os.write(self._write_end, b"c")

    def close(self) -> None:
        """Idempotent."""
        self._free()


def _close_both(one: int, other: int) -> None:
    os.close(one)
    os.close(other)


class Work(Generic[T]):
    """A call on its way through a thread. ``run_in_executor`` and ``shield`` have three futures for
    it, and as many rounds of the loop, which a short command's caller waits for."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._context = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()
        self._has_ended = asyncio.Event()

    def run(self) -> None:
        """Do the work, in the thread."""
        try:
            settle = partial(self._succeed, self._context.run(self._call))
        except BaseException as error:
            settle = partial(self._fail, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(settle)

    async def wait_ended(self) -> None:
        await self._has_ended.wait()

    def _succeed(self, result: T) -> None:
        self._has_ended.set()
        if not self.future.done():
            self.future.set_result(result)

    def _fail(self, error: BaseException) -> None:
        self._has_ended.set()
        if not self.future.done():
            self.future.set_exception(error)


class Threads:
    """The threads of one sandbox, or of a client: at most so many at work at once."""

    def __init__(self, name: str, most: int = MAX_THREADS) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix=name)
        self._most = most
        self._lock = threading.Lock()
        self._asked = 0  # that have not ended, those that wait for their turn among them
        self._has_shut = False

    def shutdown(self, wait: bool = True) -> None:
        self._has_shut = True
        self._pool.shutdown(wait)

    async def call(
        self,
        call: Callable[[], T],
        wake: Wake | None = None,
        cut: Cut | None = None,
        *,
        ends: bool = False,
    ) -> T:
        """Make a call on one of them; ``ends``: without waiting for a turn, as it may end what
        they are all at work for.

        A cancelled task waits for the call's end, unless that had no turn yet. It sets ``wake``
        and ``cut``.
        """
        work = Work(call if cut is None else partial(cut.run, call))
        turn = self._submit(work, ends)
        try:
            return await work.future
        except asyncio.CancelledError:
            if turn is None or not turn.cancel():
                await _hasten(work, wake, cut)
            raise  # the cancellation is what counts, not what came of it

    def _submit(self, work: Work[Any], ends: bool) -> "Future[None] | None":
        with self._lock:
            has_room = self._asked < self._most or not ends
            self._asked += has_room
        if has_room:
            try:
                turn = self._pool.submit(work.run)
            except RuntimeError:
                self._over()
                if not self._has_shut:
                    raise
            else:
                turn.add_done_callback(self._over)
                return turn
        # What is asked of what was closed the blocking object refuses, in its own words.
        threading.Thread(target=work.run, name="agentd-beside", daemon=True).start()
        return None

    def _over(self, turn: object = None) -> None:
        with self._lock:
            self._asked -= 1


async def _hasten(work: Work[Any], wake: Wake | None, cut: Cut | None) -> None:
    if wake is not None:
        wake.set()
    if cut is not None:
        cut.set()
    await work.wait_ended()
