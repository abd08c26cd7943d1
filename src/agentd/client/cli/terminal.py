"""The caller's terminal, standard input, in raw mode, and always restored."""

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from agentd.model.errors import InvalidInput
from agentd.model.spec import Pty

_DEFAULT = Pty()


def size() -> Pty:
    """Return its size; of one that does not know its own (a serial line) the usual one."""
    columns, rows = os.get_terminal_size(0)
    return Pty(rows or _DEFAULT.rows, columns or _DEFAULT.cols)


def require() -> None:
    if not os.isatty(0):
        raise InvalidInput(
            "--tty needs a terminal on standard input", remediation="drop -t, or use -i"
        )


@contextmanager
def raw() -> Iterator[None]:
    """Pass keys on as they are typed, Ctrl-C too: the terminal inside makes sense of them."""
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
