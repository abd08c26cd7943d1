"""Keeps a thread alive that must not die: an unexpected error is printed, and it goes on."""

import threading
from collections.abc import Callable

from agentd.model.errors import AgentdError, without_frames


def tell(error: BaseException) -> None:
    """Print an error as an ended thread's is: to the daemon's log, else to standard error. One of
    agentd's own says what happened and what to do: where in the code that was helps nobody."""
    if isinstance(error, AgentdError):
        without_frames(error)
    if isinstance(error, SystemExit):  # of which an ended thread's says nothing
        error = RuntimeError(f"SystemExit: {error}").with_traceback(error.__traceback__)
    about = type(error), error, error.__traceback__, threading.current_thread()
    threading.excepthook(threading.ExceptHookArgs(about))


def run(work: Callable[..., object], *args: object) -> None:
    """Runs ``work`` for an executor whose futures are not read."""
    try:
        work(*args)
    except (Exception, SystemExit) as error:
        tell(error)
