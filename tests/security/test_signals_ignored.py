"""Threat: processes that ignore every signal, or hide from their starter, live on after the end.

Controls: SIGKILL to the whole pid namespace by the kernel when its PID 1 ends (linux); the
monitor, which adopts every orphan and kills until none is left (landlock, host); the process group
for a command's own timeout.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentd.model.result import CauseCode
from agentd.model.spec import ExecRequest

IGNORE = """
import time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    except (OSError, ValueError):
        pass
"""
STUBBORN = IGNORE + "print('up', flush=True)\nwhile True: time.sleep(1)\n"
# setsid twice over, both parents gone, its output closed, its name changed.
DAEMON = (
    IGNORE
    + """
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid() if os.getpid() != os.getsid(0) else None
            if os.fork() == 0:
                for fd in (0, 1, 2):
                    os.close(fd)
                os.execv("/bin/sleep", ["[kworker/0:1]", sys.argv[1]])
        os._exit(0)
    try:
        os.wait()
    except ChildProcessError:  # SIGCHLD is ignored: it reaps itself
        pass
print("up", flush=True)
"""
)
# Children that make children while they are being killed.
REBORN = (
    IGNORE
    + """
print("up", flush=True)
while True:
    try:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv("/bin/sleep", ["sleep", sys.argv[1]])
            os._exit(0)
        os.waitpid(-1, os.WNOHANG)
    except OSError:
        time.sleep(0.01)
    time.sleep(0.002)
"""
)
BACKENDS = ["linux", "landlock", "host"]


@pytest.fixture
def token() -> str:
    """A number of seconds nobody else sleeps."""
    return f"86{int.from_bytes(os.urandom(4)):010d}"


def _alive(token: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if token.encode() in line:
                found.append(int(entry.name))
    return found


def _argv(box: Any, script: str, *args: str) -> tuple[str, ...]:
    prelude = sys.modules[type(box).__module__].PRELUDE
    return ("/usr/bin/python3", "-I", "-c", prelude + script, *args)


def _until(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("backend", BACKENDS)
def test_its_time_ends_it(sandbox: Callable[..., Any], token: str, backend: str) -> None:
    box = sandbox(backend)
    for seconds in (1.0, 5.0, 25.0):  # a busy machine may need more until it is up
        ran = box.run(STUBBORN, token, timeout=seconds)
        assert ran.exit.cause.code is CauseCode.TIMEOUT
        if ran.stdout:
            break
    assert ran.stdout == "up\n"
    assert _until(lambda: not _alive(token))
    assert box.run(["echo", "on"]).stdout == "on\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancelling_ends_it(sandbox: Callable[..., Any], token: str, backend: str) -> None:
    box = sandbox(backend)
    with box.guest.start(ExecRequest(_argv(box, STUBBORN, token), timeout=30.0)) as running:
        assert next(iter(running.chunks()))[1] == b"up\n"
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            running.signal(number)
        running.step(0.2)
        assert running.exit is None, "it was meant to ignore them"
        running.kill()
        assert running.wait().cause.code is CauseCode.CANCELLED
    assert _until(lambda: not _alive(token))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("attack", [DAEMON, REBORN, STUBBORN], ids=["daemon", "reborn", "stubborn"])
def test_the_end_of_the_sandbox_ends_all(
    sandbox: Callable[..., Any], token: str, backend: str, attack: str
) -> None:
    box = sandbox(backend, pids=40)
    neighbour = sandbox(backend)
    with box.guest.start(ExecRequest(_argv(box, attack, token, "5"), timeout=30.0)) as running:
        assert next(iter(running.chunks()))[1] == b"up\n"
        assert _until(lambda: len(_alive(token)) >= (1 if attack is STUBBORN else 5))
        box.wall.kill()
        assert _alive(token) == [], "kill() returns when all has ended"
    assert not box.wall.alive()
    assert neighbour.run(["echo", "on"]).stdout == "on\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_daemon_outlives_its_command_but_not_the_sandbox(
    sandbox: Callable[..., Any], token: str, backend: str
) -> None:
    """What proves the kill: the command's own end does not reach them."""
    box = sandbox(backend)
    assert box.run(DAEMON, token, "3").stdout == "up\n"
    # One that becomes another program has no command line for a moment.
    assert _until(lambda: len(_alive(token)) == 3)
    assert box.run(["echo", "on"]).stdout == "on\n"
    box.wall.kill()
    assert _alive(token) == []


def test_without_a_wall_they_live_on(token: str) -> None:
    """The same daemons of a plain subprocess: gone with nobody."""
    prelude = "import os, signal, sys, time\n"
    subprocess.run(
        [sys.executable, "-I", "-c", prelude + DAEMON, token, "2"],
        timeout=120,
        check=True,
        stdout=subprocess.PIPE,
    )
    all_there = _until(lambda: len(_alive(token)) == 2)
    for pid in _alive(token):
        os.kill(pid, signal.SIGKILL)
    assert all_there
    assert _until(lambda: not _alive(token))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stopped_command_can_be_killed(
    sandbox: Callable[..., Any], token: str, backend: str
) -> None:
    box = sandbox(backend)
    script = "print('up', flush=True)\nos.killpg(0, signal.SIGSTOP)\nimport time; time.sleep(60)"
    with box.guest.start(ExecRequest(_argv(box, script, token), timeout=30.0)) as running:
        assert next(iter(running.chunks()))[1] == b"up\n"
        running.kill()
        assert running.wait().cause.code is CauseCode.CANCELLED
    assert _until(lambda: not _alive(token))
