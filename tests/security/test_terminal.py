"""Threat: code types into the terminal that started it (TIOCSTI, TIOCLINUX), to run as its user.

Controls: no descriptor of the host's terminal inside, a session of its own, and seccomp's refusal
of these requests.
"""

import contextlib
import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.model.spec import ExecRequest, Pty

TYPED = "typed by the sandbox"
# Every way to a terminal that a process has, and the request with a high bit set (CVE-2019-7303).
ATTACK = """
import fcntl, glob, termios
STI, LINUX, SETD = termios.TIOCSTI, 0x541C, 0x5423
def requests(fd):
    text = b"typed by the sandbox\\n"
    yield "sti", [fcntl_(fd, STI, bytes([c])) for c in text][-1]
    high = [call("ioctl", fd, STI | 1 << 32, ctypes.byref(ctypes.c_char(bytes([c])))) for c in text]
    yield "high", high[-1]
    yield "linux", fcntl_(fd, LINUX, b"\\x03")
    yield "setd", fcntl_(fd, SETD, struct.pack("i", 0))
def fcntl_(fd, request, data):
    return "done" if isinstance(tried(fcntl.ioctl, fd, request, data), (int, bytes)) else \
        tried(fcntl.ioctl, fd, request, data)
found = [0, 1, 2]
others = ["/dev/console", *glob.glob("/dev/pts/*"), *glob.glob("/dev/tty*")]
for path in ["/dev/tty", *(others if walled else [])]:
    fd = tried(os.open, path, os.O_RDWR | os.O_NOCTTY)
    if isinstance(fd, int):
        found.append(fd)
for fd in found:
    for name, answer in requests(fd):
        said(f"{name} {fd}", answer)
said("end", "reached")
"""
OWN = """
import fcntl, termios, tty
tty.setraw(0)
said("sti", tried(fcntl.ioctl, 0, termios.TIOCSTI, b"x"))
said("linux", tried(fcntl.ioctl, 0, 0x541C, b"\\x03"))
said("setd", tried(fcntl.ioctl, 0, 0x5423, struct.pack("i", 0)))
import select
said("typed", bool(select.select([0], [], [], 0)[0]))
"""


class Terminal:
    """A terminal of the host's, with a user who types nothing."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)

    def run(self, argv: list[str]) -> str:
        """``argv`` as its foreground session; what it wrote."""
        # The session's leader lives on: a terminal loses its input with its leader.
        code = (
            "import fcntl, subprocess, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
            "subprocess.run(sys.argv[1:], timeout=120); print('\\nleader', flush=True);"
            "sys.stderr.close(); import signal; signal.pause()"
        )
        leader = subprocess.Popen(
            [sys.executable, "-c", code, *argv],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )
        try:
            return self._output("\nleader")
        finally:
            self.typed = self._typed()
            leader.kill()
            leader.wait()

    def _output(self, last: str) -> str:
        text, deadline = "", time.monotonic() + 120
        while last not in text and time.monotonic() < deadline:
            if select.select([self.master], [], [], 1)[0]:
                text += os.read(self.master, 65536).decode(errors="replace")
        return text

    def _typed(self) -> str:
        """What waits to be read by the next program, as if the user had typed it."""
        os.set_blocking(self.slave, False)
        with contextlib.suppress(BlockingIOError):
            return os.read(self.slave, 65536).decode(errors="replace")
        return ""

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.fixture
def legacy() -> None:
    """Since Linux 6.2 an administrator can switch TIOCSTI off for everyone."""
    setting = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if setting.exists() and setting.read_text().strip() != "1":
        pytest.skip("dev.tty.legacy_tiocsti is 0: this kernel refuses TIOCSTI to everyone")


def _script(prelude: str, *, walled: bool = True) -> list[str]:
    """Without a wall it would type into every terminal of this machine, other tests' among them."""
    return ["/usr/bin/python3", "-I", "-c", f"{prelude}\nwalled = {walled}\n{ATTACK}"]


@pytest.fixture
def prelude(request: pytest.FixtureRequest) -> str:
    """The attacks' common beginning, from the conftest's own module."""
    module = sys.modules[request.getfixturevalue("sandbox").__self__.__class__.__module__]
    text: str = module.PRELUDE
    return text


def test_the_host_terminal_gets_nothing(terminal: Terminal, enclosed: str, prelude: str) -> None:
    agentd = [sys.executable, "-m", "agentd", "run", "--backend", enclosed, "--"]
    output = terminal.run([*agentd, *_script(prelude)])
    assert "end=reached" in output
    assert "=done" not in output, output
    assert terminal.typed == ""


@pytest.mark.parametrize("flag", ["--tty", "-t"])
def test_nor_from_a_terminal_inside(terminal: Terminal, prelude: str, flag: str) -> None:
    agentd = [sys.executable, "-m", "agentd", "run", "--backend", "linux", flag, "--"]
    output = terminal.run([*agentd, *_script(prelude)])
    assert "end=reached" in output
    assert "=done" not in output, output
    assert terminal.typed == ""


@pytest.mark.usefixtures("legacy")
def test_without_a_wall_it_is_typed(terminal: Terminal, prelude: str) -> None:
    output = terminal.run(_script(prelude, walled=False))
    assert "sti 0=done" in output
    assert TYPED in terminal.typed


def _in_own_terminal(box: Any, prelude: str) -> dict[str, str]:
    request = ExecRequest(
        ("/usr/bin/python3", "-I", "-c", prelude + OWN), pty=Pty(), cwd="/", timeout=120.0
    )
    with box.guest.start(request) as running:
        text = b"".join(data for _, data in running.chunks()).decode()
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def test_the_filter_refuses_the_requests(sandbox: Callable[..., Any], prelude: str) -> None:
    said = _in_own_terminal(sandbox("linux"), prelude)
    assert said == {"sti": "EPERM", "linux": "EPERM", "setd": "EPERM", "typed": "False"}


@pytest.mark.usefixtures("legacy")
def test_without_the_filter_they_work(sandbox: Callable[..., Any], prelude: str) -> None:
    said = _in_own_terminal(sandbox("linux", without={"seccomp"}), prelude)
    assert said["typed"] == "True"
    assert said["linux"] != "EPERM"  # a pseudo-terminal is no virtual console
    assert said["setd"] != "EPERM"


def test_the_terminal_here_is_a_real_one(terminal: Terminal) -> None:
    assert os.isatty(terminal.slave)
    assert fcntl.ioctl(terminal.slave, termios.TIOCGWINSZ, b"\0" * 8)
