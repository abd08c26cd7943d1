"""Which request a thread is at work for; standard library only, for it is on every path."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_NO_HEADERS: Mapping[str, str] = {}
_request: ContextVar[str] = ContextVar("agentd_request", default="")
_recorded: ContextVar[bool] = ContextVar("agentd_recorded", default=False)
_trace: ContextVar[Mapping[str, str]] = ContextVar("agentd_trace", default=_NO_HEADERS)


def new_id() -> str:
    return "req-" + os.urandom(8).hex()


def current() -> str:
    """The request's id, or "" outside of one."""
    return _request.get()


def trace_headers() -> Mapping[str, str]:
    """traceparent and tracestate, as the request brought them."""
    return _trace.get()


@contextmanager
def request(id_: str, trace: Mapping[str, str] = _NO_HEADERS) -> Iterator[str]:
    """Until the end of the block, what this thread or task does is done for the request ``id_``."""
    tokens = _request.set(id_), _trace.set(trace)
    try:
        yield id_
    finally:
        _request.reset(tokens[0])
        _trace.reset(tokens[1])


def recorded() -> bool:
    """Whether this request's whole answer will be written to the store before it is given."""
    return _recorded.get()


@contextmanager
def recording() -> Iterator[None]:
    token = _recorded.set(True)
    try:
        yield
    finally:
        _recorded.reset(token)
