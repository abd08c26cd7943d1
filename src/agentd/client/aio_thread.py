"""A blocking call of the SDK, made on a thread for a task that may be cancelled meanwhile."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")
# Commands and file operations of one sandbox at the same time; more of them wait their turn.
MAX_THREADS = 16


class Wake:
    """A pipe that ends a thread's poll when its task is cancelled."""

    def __init__(self) -> None:
        self.fd, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def set(self) -> None:
        os.write(self._write_end, b"c")

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._write_end)


class Work(Generic[T]):
    """A call on its way through a thread. ``run_in_executor`` and ``shield`` have three futures for
    it, and as many rounds of the loop, which a short command's caller waits for."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()
        self._has_ended = asyncio.Event()

    def run(self) -> None:
        """Do the work, in the thread."""
        try:
            settle = partial(self._succeed, self._call())
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
    """The threads of one sandbox."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=name)
        self._has_shut = False

    def shutdown(self, wait: bool = True) -> None:
        self._has_shut = True
        self._pool.shutdown(wait)

    async def call(self, call: Callable[[], T], wake: Wake | None = None) -> T:
        """Makes a call on one of them. A cancelled task sets ``wake`` and waits for its end."""
        work = Work(call)
        self._submit(work)
        try:
            return await work.future
        except asyncio.CancelledError:
            if wake is not None:
                wake.set()
            await work.wait_ended()  # the cancellation is what counts, not what came of it
            raise

    def _submit(self, work: Work[Any]) -> None:
        try:
            self._pool.submit(work.run)
        except RuntimeError:
            if not self._has_shut:
                raise
            # What is asked of what was closed the blocking object refuses, in its own words.
            threading.Thread(target=work.run, name="agentd-closed", daemon=True).start()
