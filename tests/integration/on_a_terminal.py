"""A command as a person sees it: on a terminal of a known width."""

import fcntl
import os
import struct
import subprocess
import termios
from collections.abc import Mapping
from pathlib import Path

_SECONDS = 60


def shown(
    argv: list[str], *, columns: int = 80, env: Mapping[str, str], cwd: Path | None = None
) -> str:
    """All that it writes, to standard output and error, its colours among it."""
    ours, theirs = os.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        with subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, env={"TERM": "xterm", **env}, cwd=cwd
        ) as process:
            os.close(theirs)
            theirs = -1
            out = _until_it_ends(ours)
            process.wait(_SECONDS)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)
    return out.decode().replace("\r\n", "\n")


def _until_it_ends(terminal: int) -> bytes:
    out = b""
    while True:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # EIO: nobody has its other end open any more
            return out
        if not data:
            return out
        out += data
