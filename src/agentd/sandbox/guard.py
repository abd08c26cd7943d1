"""What a thread that must live does with an error nobody expected: it tells, and goes on."""

import threading
from collections.abc import Callable


def tell(error: BaseException) -> None:
    """As the end of a thread would be told: to the daemon's log, else to standard error."""
    about = type(error), error, error.__traceback__, threading.current_thread()
    threading.excepthook(threading.ExceptHookArgs(about))


def run(work: Callable[..., object], *args: object) -> None:
    """For an executor, whose futures nobody looks at."""
    try:
        work(*args)
    except Exception as error:
        tell(error)
