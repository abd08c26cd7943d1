"""Other programs, asked something: what they say is bounded in time, and text whatever it is."""

import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Said(NamedTuple):
    """``code`` is below zero where a signal ended it."""

    code: int
    out: str
    err: str


def ask(
    argv: Sequence[str],
    seconds: float | None,
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Said:
    """Run a program that reads nothing, and ends. Raises OSError, of it TimeoutError where it has
    not ended after so many seconds, and is killed."""
    try:
        done = subprocess.run(
            argv,
            input="",  # not /dev/null, which a chroot may lack
            capture_output=True,
            env=env,
            cwd=cwd,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{argv[0]} took more than {seconds:g} s") from None
    return Said(done.returncode, done.stdout, done.stderr)
