"""What runs in a sandbox cannot make its agent stand still while it starts a command."""

from collections.abc import Callable
from typing import Any

import pytest

from agentd.model.errors import OperationFailed
from agentd.model.result import CauseCode
from agentd.model.spec import ExecRequest

# Stops every process that is born after it, as soon as it is there: also one that the agent has
# made, and that has not got its program yet.
STOP_ALL = """
import os, signal, sys, time
own = {os.getpid(), os.getppid()}
last = os.getpid()
print("hunting", flush=True)
until = time.monotonic() + 25
while time.monotonic() < until:
    for pid in range(last + 1, last + 40):
        try:
            os.kill(pid, signal.SIGSTOP)
            last = max(last, pid)
        except OSError:
            pass
"""
# Holds a lease on a program of ours: whoever executes it waits, up to 45 s.
LEASE = """
import fcntl, os, shutil, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which it is told that somebody waits
shutil.copy("/bin/true", "leased")
os.chmod("leased", 0o755)
fd = os.open("leased", os.O_RDONLY)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
time.sleep(40)
"""


def started(box: Any, script: str, word: str) -> Any:
    """A command that goes on; once it has said the word."""
    running = box.guest.start(
        ExecRequest(("/usr/bin/python3", "-I", "-c", script), cwd=box.workspace)
    )
    said = b""
    while word.encode() not in said:
        chunks, _ = running.step(10)
        assert running.exit is None, running.exit
        said += b"".join(data for _, data in chunks)
    return running


@pytest.mark.parametrize("backend", ["linux", "landlock"])
def test_a_child_that_is_stopped_before_it_has_its_program(
    sandbox: Callable[..., Any], backend: str
) -> None:
    box = sandbox(backend)
    hunter = started(box, STOP_ALL + 'print("over")', "hunting")
    try:
        for _ in range(40):
            exit_, *_ = box.guest.run(ExecRequest(("true",), cwd=box.workspace, timeout=0.5))
            assert exit_.ok or exit_.cause.code == CauseCode.TIMEOUT, exit_
            assert box.guest.files.list(box.workspace) is not None
    finally:
        hunter.kill()
        hunter.close()


def test_a_leased_program(sandbox: Callable[..., Any]) -> None:
    box = sandbox("host")
    holder = started(box, LEASE, "leased")
    try:
        waits = box.guest.start(ExecRequest(("./leased",), cwd=box.workspace, timeout=2.0))
        assert box.run(("echo", "here"), timeout=20.0).stdout == "here\n"
        with pytest.raises(OperationFailed, match="unavailable"):
            box.guest.files.read(f"{box.workspace}/leased")
        assert waits.exit is None
        while waits.exit is None:
            waits.step(10)
        assert waits.exit.cause.code == CauseCode.TIMEOUT
        waits.close()
    finally:
        holder.kill()
        holder.close()
