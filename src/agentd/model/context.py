"""Which request a thread is at work for; standard library only, for it is on every path."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_NO_HEADERS: Mapping[str, str] = {}
_request: ContextVar[str] = ContextVar("agentd_request", default="")
_recorded: "ContextVar[Recording | None]" = ContextVar("agentd_recorded", default=None)
_gone: "ContextVar[Gone | None]" = ContextVar("agentd_gone", default=None)
_room: "ContextVar[Callable[[int], None] | None]" = ContextVar("agentd_room", default=None)
#: The sandbox that a thread or task works on, for the log; "" where it is none.
sandbox: ContextVar[str] = ContextVar("agentd_sandbox", default="")
#: For whom a thread or task works, for who shares something out among callers; "" for nobody.
principal: ContextVar[str] = ContextVar("agentd_principal", default="")
_trace: ContextVar[Mapping[str, str]] = ContextVar("agentd_trace", default=_NO_HEADERS)


def new_id() -> str:
    return "req-" + os.urandom(8).hex()


def current() -> str:
    """Return the request's id, or "" outside of one."""
    return _request.get()


def trace_headers() -> Mapping[str, str]:
    """traceparent and tracestate, as the request brought them."""
    return _trace.get()


def begin(gone: "Gone", trace: Mapping[str, str]) -> str:
    """Begin a request, return its id. The calling task has no other until it ends."""
    id_ = new_id()
    _request.set(id_)
    _trace.set(trace)
    _gone.set(gone)
    return id_


@contextmanager
def request(id_: str, trace: Mapping[str, str] = _NO_HEADERS) -> Iterator[str]:
    """Until the end of the block, what this thread or task does is done for the request ``id_``."""
    tokens = _request.set(id_), _trace.set(trace)
    try:
        yield id_
    finally:
        _request.reset(tokens[0])
        _trace.reset(tokens[1])


class Recording:
    """A request whose whole answer is written to the store before it is given. ``lasting``: as of
    ``Idempotency.run``; what does not last goes along, in one with the answer."""

    def __init__(self, lasting: bool) -> None:
        self.lasting = lasting
        self.works: list[Callable[[Any], object]] = []
        self.approved: set[str] = set()  # acts that somebody allowed, by their names
        self._undo: list[Callable[[], object]] = []

    def along(
        self, work: Callable[[Any], object], undo: Callable[[], object] | None = None
    ) -> None:
        """``work`` is for the store's transaction. ``undo`` takes back what was done, should the
        store refuse; without one it stays done, and is answered."""
        self.works.append(work)
        if undo is not None:
            self._undo.append(undo)

    def take_back(self) -> bool:
        """Return whether there was something that must not be answered."""
        for undo in reversed(self._undo):
            undo()
        return bool(self._undo)


def recorded() -> Recording | None:
    """This request, if its whole answer will be written to the store."""
    return _recorded.get()


@contextmanager
def recording(*, lasting: bool) -> Iterator[Recording]:
    token = _recorded.set(made := Recording(lasting))
    try:
        yield made
    finally:
        _recorded.reset(token)


class Gone:
    """Whether the client of a request has gone away. Thread-safe."""

    def __init__(self, is_shut: Callable[[], bool] = bool) -> None:
        """``is_shut`` tells whether it was cut off, for the daemon shuts down."""
        self.is_shut = is_shut
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []
        self.is_set = False

    @property
    def has_left(self) -> bool:
        """Whether it has gone by itself."""
        return self.is_set and not self.is_shut()

    def set(self) -> None:
        """Idempotent."""
        with self._lock:
            self.is_set = True
            for callback in self._callbacks:
                callback()
            self._callbacks.clear()

    @contextmanager
    def telling(self, callback: Callable[[], object]) -> Iterator[None]:
        """``callback`` runs once it is set, at once where it is already, and never behind the end
        of the block. It runs in any thread, and must not wait for anything."""
        with self._lock:
            if self.is_set:
                callback()
            else:
                self._callbacks.append(callback)
        try:
            yield
        finally:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)


NEVER = Gone()


def client() -> Gone:
    """Return whether this request's client has gone; where nobody can tell, it never has."""
    return _gone.get() or NEVER


def waiting_client() -> Gone:
    """Enter the context of a request that ends when its client has gone. One with an
    Idempotency-Key is not: who sends it again gets its answer."""
    return NEVER if _recorded.get() is not None else _gone.get() or NEVER


def make_room(size: int) -> None:
    """Wait until an answer may have ``size`` bytes in memory, with all that it is made of. Raises
    an AgentdError where its client has gone meanwhile."""
    made = _room.get()
    if made is not None:
        made(size)


@contextmanager
def answering(make_room: Callable[[int], None]) -> Iterator[None]:
    """Until the end of the block, an answer is made whose door has this room for it."""
    token = _room.set(make_room)
    try:
        yield
    finally:
        _room.reset(token)


@contextmanager
def of_client(gone: Gone) -> Iterator[None]:
    token = _gone.set(gone)
    try:
        yield
    finally:
        _gone.reset(token)
