"""The caller's terminal in raw mode, and always restored."""

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from agentd.model.errors import InvalidInput
from agentd.model.spec import Pty

_DEFAULT = Pty()


def size(fd: int) -> Pty:
    """A terminal that does not know its size (a serial line) has the usual one."""
    columns, rows = os.get_terminal_size(fd)
    return Pty(rows or _DEFAULT.rows, columns or _DEFAULT.cols)


def require(fd: int) -> None:
    if not os.isatty(fd):
        raise InvalidInput(
            "--tty needs a terminal on standard input", remediation="drop -t, or use -i"
        )


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Keys go through as they are typed, Ctrl-C too: the terminal inside makes sense of them."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
