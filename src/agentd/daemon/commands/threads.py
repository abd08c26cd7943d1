"""The threads that drive commands."""

import contextvars
import threading
from collections.abc import Callable

from agentd.daemon.commands.command import Command
from agentd.model.errors import Full


def begin_thread(command: Command, run: Callable[[], None]) -> None:
    """Begin a thread in the request's own context: its id, and its trace.

    Raises Full where no thread is left; the command is killed then.
    """
    target = contextvars.copy_context().run
    thread = threading.Thread(target=target, args=(run,), name=command.id, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        command.abandon(error)
        raise Full(
            "no thread can be started for the command",
            cause=str(error),
            remediation="come back when others have ended, or raise the limit of processes",
        ) from error
