"""Names to addresses, within a time: getaddrinfo(3) itself knows none."""

import queue
import socket
import threading
from collections.abc import Callable, Sequence

from agentd.capability.fetch.deadline import Deadline
from agentd.model.capability import CallFailed
from agentd.model.errors import Unavailable
from agentd.model.system import scarce

MAX_LOOKUPS = 32  # at once; a name server that does not answer holds each for half a minute
MAX_ADDRESSES = 64
_NOT_NOW = "no name can be looked up now"

Resolver = Callable[[str], Sequence[str]]
_slots = threading.BoundedSemaphore(MAX_LOOKUPS)


def system(host: str) -> Sequence[str]:
    """Return the machine's addresses of a name, the preferred first. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def resolve(resolver: Resolver, host: str, deadline: Deadline) -> tuple[str, ...]:
    """Each address once. Raises CallFailed "resolve_failed" or "timeout"."""
    answers: queue.SimpleQueue[Sequence[str] | Exception] = queue.SimpleQueue()
    if not _slots.acquire(timeout=deadline.left()):
        raise deadline.passed()
    worker = threading.Thread(target=_look_up, args=(resolver, host, answers), daemon=True)
    try:
        worker.start()
    except RuntimeError as error:
        _slots.release()
        fix = "raise the limit of tasks, or ask again when less runs"
        raise Unavailable(_NOT_NOW, cause=str(error), remediation=fix) from None
    try:
        answer = answers.get(timeout=deadline.left())
    except queue.Empty:
        raise deadline.passed() from None
    if isinstance(answer, OSError) and (fix := scarce(answer)):
        raise Unavailable(_NOT_NOW, cause=answer.strerror or "", remediation=fix)
    if isinstance(answer, Exception) or not answer or len(answer) > MAX_ADDRESSES:
        raise CallFailed(
            "resolve_failed",
            f"the name {host} has no address",
            cause=answer.strerror or "" if isinstance(answer, OSError) else "",
            remediation="check the name",
        )
    return tuple(dict.fromkeys(answer))


def _look_up(
    resolver: Resolver, host: str, answers: "queue.SimpleQueue[Sequence[str] | Exception]"
) -> None:
    try:
        answers.put(resolver(host))
    except Exception as error:  # UnicodeError of a label that is too long, too
        answers.put(error)
    finally:
        _slots.release()
