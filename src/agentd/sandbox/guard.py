"""Keeps a thread alive that must not die: an unexpected error is printed, and it goes on."""

import threading
from collections.abc import Callable


def tell(error: BaseException) -> None:
    """Prints an error as an ended thread's is: to the daemon's log, else to standard error."""
    about = type(error), error, error.__traceback__, threading.current_thread()
    threading.excepthook(threading.ExceptHookArgs(about))


def run(work: Callable[..., object], *args: object) -> None:
    """Runs ``work`` for an executor whose futures are not read."""
    try:
        work(*args)
    except Exception as error:
        tell(error)
