"""The caller's terminal, standard input, in raw mode, and always restored."""

import contextlib
import os
import select
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from agentd.model.errors import InvalidInput
from agentd.model.spec import Pty

_DEFAULT = Pty()
_PIECE, _MAX_TYPED = 64 << 10, 1 << 20
_QUIET_SECONDS = 0.02


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
    """Pass keys on as they are typed, Ctrl-C too: the terminal inside makes sense of them. Those
    that were typed ahead are the command's as well, as they are a shell's.

    What was not passed on is thrown away: among it is what the terminal answered when the command
    had it do so, and a shell would take that for its next lines."""
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)
        yield
    finally:
        try:
            _discard()
        finally:
            termios.tcsetattr(0, termios.TCSAFLUSH, before)


def _discard() -> None:
    """What is typed already: a terminal hands it on piece by piece."""
    left = _MAX_TYPED
    with contextlib.suppress(OSError):
        while left > 0 and select.select([0], [], [], _QUIET_SECONDS)[0]:
            found = os.read(0, _PIECE)
            left -= len(found) or left
