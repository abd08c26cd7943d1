"""Standard input and output where the command line takes them for a file, as ``-``."""

import os
import sys
from typing import BinaryIO

from agentd.model.errors import InvalidInput

_FIX = "name a file instead of -"


def opened_input() -> BinaryIO:
    """Return standard input, to read bytes from. Raises InvalidInput where it was closed before we
    started."""
    if sys.stdin is None:
        raise InvalidInput("standard input is closed", remediation=_FIX)
    return sys.stdin.buffer


def check_output() -> None:
    """Raises InvalidInput where standard output was closed before we started: ``main`` has put one
    in its place that keeps nothing."""
    if sys.__stdout__ is None:
        raise InvalidInput("standard output is closed", remediation=_FIX)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            _wait_writable(fd)


def _wait_writable(fd: int) -> None:
    # Whoever shares the terminal or pipe with us may have made it non-blocking.
    import select

    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    poller.poll()
