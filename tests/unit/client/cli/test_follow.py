import contextlib
import os
import pty
import select
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from agentd.client.cli import follow as follow_
from agentd.client.cli import terminal
from agentd.client.cli.follow import Follow
from agentd.client.cli.interrupts import Interrupts


class Running(SimpleNamespace):
    """A command that says back what it hears, and ends at the end of its stdin."""

    def __init__(self):
        super().__init__(exit=None, backlog=0, heard=[], sizes=[], steps=0)

    def step(self, timeout, extra_fds):
        self.steps += 1
        ready = select.select(list(extra_fds), [], [], timeout)[0]
        return [], ready

    def write(self, data):
        self.heard.append(data)

    def close_stdin(self):
        self.exit = "ended"

    def resize(self, rows, cols):
        self.sizes.append((rows, cols))


@pytest.fixture
def stdin():
    """A terminal as our descriptor 0; what is written here is typed there."""
    saved = os.dup(0)
    ours, theirs = pty.openpty()
    os.dup2(theirs, 0)
    os.close(theirs)
    yield ours
    os.dup2(saved, 0)
    os.close(saved)
    os.close(ours)


def test_on_one_terminal_the_other_stream_does_not_cut_a_character():
    ours, theirs = pty.openpty()
    told, tell = os.pipe()
    script = r"printf '<\342'; read x; printf '>' >&2; read x; printf '\202\254|'"
    words = [sys.executable, "-m", "agentd", "run", "-i", "--isolation", "none", "--", "sh", "-c"]
    with subprocess.Popen([*words, script], stdin=told, stdout=theirs, stderr=theirs) as run:
        os.close(told)
        os.close(theirs)
        seen = b""
        for wanted in (b"<", b">"):
            while wanted not in seen:
                seen += os.read(ours, 100)
            os.write(tell, b"\n")
        while b"|" not in seen:
            seen += os.read(ours, 100)
        os.close(tell)
    os.close(ours)
    assert seen.decode().partition("<")[2] == ">\N{EURO SIGN}|"
    assert run.returncode == 0


@pytest.mark.parametrize(
    "keys", [[b"ab\x10\x11cd"], [b"ab", b"\x10", b"\x11"], [b"ab\x10", b"\x11"]]
)
def test_ctrl_p_ctrl_q_lets_go(stdin, keys, monkeypatch):
    monkeypatch.setattr(follow_, "HELD_SECONDS", 600.0)
    running = Running()
    with Interrupts() as interrupts:
        follow = Follow(running, interrupts, tty=True, leaves=True)
        thread = _types(stdin, keys, running)
        assert follow.run() is False
        thread.join()
    assert b"".join(running.heard) == b"ab"


def _types(fd, keys, running):
    """A thread that types, each key once what was before it is waited for no more: the first one
    once the terminal is raw."""

    def typing():
        for count, key in enumerate(keys):
            for _ in range(18_000):
                if running.steps > count:
                    break
                time.sleep(0.01)
            os.write(fd, key)

    thread = threading.Thread(target=typing)
    thread.start()
    return thread


def test_a_lone_ctrl_p_is_a_key(stdin):
    running = Running()
    running.write = lambda data: (running.heard.append(data), running.close_stdin())
    with Interrupts() as interrupts:
        thread = _types(stdin, [b"\x10x"], running)
        assert Follow(running, interrupts, tty=True, leaves=True).run() is True
        thread.join()
    assert running.heard == [b"\x10x"]


def test_a_ctrl_p_with_nothing_behind_it_is_a_key_in_a_moment(stdin, monkeypatch):
    monkeypatch.setattr(follow_, "HELD_SECONDS", 0.05)
    running = Running()
    running.write = lambda data: (running.heard.append(data), running.close_stdin())
    with Interrupts() as interrupts:
        thread = _types(stdin, [b"\x10"], running)
        assert Follow(running, interrupts, tty=True, leaves=True).run() is True
        thread.join()
    assert running.heard == [b"\x10"]


def test_ctrl_q_that_output_kept_from_us_still_lets_go(stdin, monkeypatch):
    """As a terminal does that takes its time for a flood of output."""
    monkeypatch.setattr(follow_, "HELD_SECONDS", 0.0)

    class Flooding(Running):
        def step(self, timeout, extra_fds):
            if self.steps == 0:
                os.write(stdin, b"\x10")
            if self.steps == 1:
                self.steps = 2
                return [("stdout", b"x")], []
            return super().step(60 if self.steps == 0 else timeout, extra_fds)

    def slowly(fd, data):
        os.write(stdin, b"\x11")
        assert select.select([0], [], [], 60)[0]

    monkeypatch.setattr(follow_, "write_all", slowly)
    running = Flooding()
    with Interrupts() as interrupts:
        assert Follow(running, interrupts, tty=True, leaves=True).run() is False
    assert running.heard == []


def test_a_ctrl_p_before_the_end_of_the_terminal_is_passed_on_before_it(monkeypatch):
    running, reads = Running(), [b"\x10", b""]
    running.step = lambda timeout, fds: ([], [0])
    running.close_stdin = lambda: (running.heard.append("end"), setattr(running, "exit", "ended"))
    monkeypatch.setattr(terminal, "raw", contextlib.nullcontext)
    monkeypatch.setattr(follow_.os, "read", lambda fd, size: reads.pop(0))
    with Interrupts() as interrupts:
        Follow(running, interrupts, tty=True, leaves=True).run()
    assert running.heard == [b"\x10", "end"]


def test_it_ticks():
    running, ticks = Running(), []

    def tick():
        ticks.append(1)
        if len(ticks) == 3:
            running.exit = "ended"

    with Interrupts() as interrupts:
        assert Follow(running, interrupts, ticks={tick: 0.01}).run() is True
    assert len(ticks) == 3
