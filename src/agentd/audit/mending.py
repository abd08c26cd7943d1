"""What an operator does about a log that lost some of what was written to it."""

import os
import time
from collections.abc import Callable

from agentd.audit import continuity, files
from agentd.audit.chain import Chain
from agentd.audit.errors import LogDamaged, NoLog
from agentd.audit.lock import Lock
from agentd.audit.record import entry
from agentd.audit.verify import no_log
from agentd.model.audit import Event


def damage(directory: str) -> str:
    """Return what is wrong, or ""; a torn end is moved aside, as each start does. Raises
    AuditLocked, AuditError."""
    with _Held(directory):
        chain = Chain(directory)
        try:
            chain.load()
        except LogDamaged as error:
            return error.cause or error.message
        finally:
            chain.close()
        return ""


def accept(directory: str, clock: Callable[[], float] = time.time) -> list[Event]:
    """Write down what is gone, and let the log go on behind it; nothing where nothing is gone.

    Raises AuditLocked while a daemon runs, NoLog where none was ever written, AuditError, OSError.
    """
    _check_was_there(directory)
    if not damage(directory):
        return []
    with _Held(directory):
        chain = Chain(directory)
        try:
            owed = chain.load(accept=True)
            now = clock()
            chain.write([entry(event, now).body for event in owed])
        finally:
            chain.close()
        return owed


def _check_was_there(directory: str) -> None:
    """Raises NoLog where no log was ever written; a directory that is gone is made anew."""
    known = files.read_mark(directory) or continuity.of_receipts(directory)
    try:
        found = files.ls(directory)
    except NoLog:
        if known is None:
            raise
        os.makedirs(directory, mode=0o700)
        return
    if not found and known is None:
        raise no_log(directory)


class _Held:
    def __init__(self, directory: str) -> None:
        self._lock = Lock(directory)

    def __enter__(self) -> None:
        try:
            self._lock.acquire()
        except BaseException:
            self._lock.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self._lock.close()
