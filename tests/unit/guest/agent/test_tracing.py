"""Commands that trace, and are traced: what is told of their end stays true."""

import os
import signal
import sys
from typing import Any

import pytest

from agentd.guest import tracing

CALLS = """
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None)
def ptrace(request, pid, data=0):
    assert libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), None, ctypes.c_long(data)) == 0
TRACEME, SEIZE = 0, 0x4206
"""
# A grandchild of the agent, in a session of its own, that traces its parent and says nothing more.
HELD = CALLS + (
    """
libc.prctl(0x59616d61, ctypes.c_long(-1), 0, 0, 0)  # PR_SET_PTRACER: Yama
ready, hold = os.pipe(), os.pipe()
if os.fork() == 0:
    os.setsid()
    ptrace(SEIZE, os.getppid())
    os.write(ready[1], b"x")
    os.read(hold[0], 1)
    time.sleep(600)
os.read(ready[0], 1)
print("held", flush=True)
"""
)


def python(script: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script]


@pytest.mark.parametrize(("then", "code", "number"), [
    ("signal.signal(10, lambda *_: None); os.kill(os.getpid(), 10); sys.exit(7)", 7, None),
    ("os.execv('/bin/sh', ['sh', '-c', 'exit 5'])", 5, None),
    ("os.kill(os.getpid(), signal.SIGTERM)", None, signal.SIGTERM),
    ("os.kill(os.getpid(), signal.SIGKILL)", None, signal.SIGKILL),
], ids=["handled", "exec", "terminated", "killed"])  # fmt: skip
def test_a_command_that_the_agent_is_to_trace(
    client: Any, then: str, code: int | None, number: int | None
) -> None:
    ended = client.run(*python(CALLS + "ptrace(TRACEME, 0)\n" + then))
    assert (ended["code"], ended["signal"]) == (code, number)
    assert client.run("true")["code"] == 0


def test_a_traced_command_is_killed_with_whoever_keeps_its_end(client: Any) -> None:
    script = HELD + "time.sleep(600)"
    channel = client.request("exec", argv=python(script), limits={"wall_ms": 3000})
    ended = client.wait(channel)
    assert client.stdout(channel) == b"held\n"
    assert (ended["signal"], ended["cause"]) == (signal.SIGKILL, "timeout")


def test_the_agent_ends_with_what_keeps_anothers_end(remote: Any) -> None:
    client = remote.connect()
    channel = client.request("exec", argv=python(HELD + "time.sleep(600)"))
    client.until(lambda: client.stdout(channel) == b"held\n")
    assert remote.end() == 0


def test_only_what_descends_from_it_has_an_exit_to_be_seen() -> None:
    """By the very numbers of this process, its child and its grandchild."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild == 0:
            signal.pause()
        os.write(tell, str(grandchild).encode())
        signal.pause()
    grandchild = int(os.read(ready, 16))
    try:
        above = (os.getpid(), child, grandchild)
        for old, one in enumerate(above):
            for young, other in enumerate(above):
                assert tracing.descends(other, one) is (young > old)
        assert not tracing.descends(grandchild, os.getpid(), most=1)
        assert not tracing.descends(4_000_000, os.getpid())
        assert not tracing.descends(child, 4_000_000)
    finally:
        for pid in (grandchild, child):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)
