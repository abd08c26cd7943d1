"""Part of git_clone: a program with an end, whose output is looked at and not kept."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable

from agentd.capability.inside.common import Failed

MAX_STDERR = 1 << 16  # bytes; the last ones
_PIECE = 1 << 16


def run(
    argv: list[str], env: dict[str, str], end: float, take: Callable[[bytes], object]
) -> tuple[int, str]:
    """(its return code, the end of its stderr). ``take`` has its stdout, and ends it by raising.

    Raises Failed("timeout") at ``end``, of the monotonic clock. It and its children are gone then.
    """
    process = subprocess.Popen(
        argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        stderr = _follow(process, end, take)
        return process.wait(max(end - time.monotonic(), 0)), stderr.decode(errors="replace")
    except subprocess.TimeoutExpired:
        raise _late() from None
    finally:
        # Not reaped yet, or its group has others: the number is still its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _follow(process: subprocess.Popen[bytes], end: float, take: Callable[[bytes], object]) -> bytes:
    stderr = b""
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(end - time.monotonic(), 0))
            if not ready:
                raise _late()
            for key, _ in ready:
                data = os.read(key.fd, _PIECE)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    take(data)
                else:
                    stderr = (stderr + data)[-MAX_STDERR:]
    return stderr


def _late() -> Failed:
    return Failed("timeout", "git took too long", "raise timeout_ms, or clone less")
