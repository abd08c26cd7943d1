"""How far slow work has come: told by whoever does it, shown by whoever waits for it.

Between them lie ports that should not carry it: it goes with the context (contextvars), so that
each thread and task hears of its own work alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# What is being done, in a few words; how much of it is done, 0.0 to 1.0, or None if unknown.
Listener = Callable[[str, float | None], None]

_listener: "ContextVar[Listener | None]" = ContextVar("agentd_progress", default=None)


NOTE = "note: "  # begins a stage that is to be read later, too: it stays where stages are drawn


def report(stage: str, fraction: float | None = None) -> None:
    """Tell whoever listens. May raise what the listener raises, to give the work up."""
    listener = _listener.get()
    if listener is not None:
        listener(stage, fraction)


def report_steps(stage: str, done: int, total: int) -> None:
    """Report counted work; ``total`` is 0 where it is not known."""
    report(stage, done / total if total else None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Has ``listener`` hear what is reported within the block, in this thread or task."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
