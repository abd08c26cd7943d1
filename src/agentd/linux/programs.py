"""Asking other programs: each ends in time, and what it prints is text, whatever its bytes."""

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
    """Run a program to its end, with nothing to read, and return what it printed. Raises OSError;
    a TimeoutError, which is one, where it was killed after ``seconds``."""
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


def ended(code: int) -> str:
    """Say how a program ended that has this code, as subprocess has it."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def answer(argv: Sequence[str], seconds: float, env: Mapping[str, str] | None = None) -> str:
    """Return what a program prints, run in /. Raises OSError where it does not run or does not end
    with 0: what it said of that, its last 400 characters."""
    said = ask(argv, seconds, env=env, cwd="/")
    if said.code:
        raise OSError(said.err.strip()[-400:] or ended(said.code))
    return said.out
