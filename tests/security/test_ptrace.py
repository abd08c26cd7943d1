"""Threat: reading or changing another process: ptrace, process_vm_*, stolen descriptors.

Controls: seccomp refuses the calls, against any process, a child of one's own included. For the
agent, whose memory holds every command's output, a second one: it is not dumpable, so that
/proc/PID/mem and its like are closed to a command of the same uid.
"""

from collections.abc import Callable
from typing import Any

import pytest

CALLS = ("traceme", "attach", "seize", "readv", "writev", "getfd", "madvise", "kcmp")
# The victim is a child, since the kernel itself has nothing against any of this there.
CHILD = """
buffer = ctypes.create_string_buffer(b"secret", 8)
address = ctypes.addressof(buffer)
ready, hold = os.pipe(), os.pipe()
victim = os.fork()
if victim == 0:
    os.write(ready[1], b"x")
    os.close(hold[1])
    os.read(hold[0], 1)
    os._exit(0)
os.read(ready[0], 1)
mine = ctypes.create_string_buffer(8)
local = struct.pack("=QQ", ctypes.addressof(mine), 6)
remote = struct.pack("=QQ", address, 6)
pidfd = os.pidfd_open(victim)
ATTACH, SEIZE, DETACH, TRACEME = 16, 0x4206, 17, 0

def traced(request):
    got = call("ptrace", request, victim, 0, 0)
    if got == 0:
        if request == ATTACH:
            os.waitpid(victim, 0)
            call("ptrace", DETACH, victim, 0, 0)
        return "done"
    return got

said("attach", traced(ATTACH))
said("seize", traced(SEIZE))
said("readv", "done" if (got := call("process_vm_readv", victim, local, 1, remote, 1, 0)) == 6
     and mine.value == b"secret" else got)
said("writev", "done" if (got := call("process_vm_writev", victim, local, 1, remote, 1, 0)) == 6
     else got)
said("getfd", "done" if isinstance(got := call("pidfd_getfd", pidfd, ready[0], 0), int) else got)
# Bad flags: with good ones the kernel has an EPERM of its own (CAP_SYS_NICE).
said("madvise", "done" if (got := call("process_madvise", pidfd, remote, 1, 20, -1)) == "EINVAL"
     else got)
said("kcmp", "done" if (got := call("kcmp", os.getpid(), victim, 0, 0, 0)) != "EPERM" else got)
os.close(hold[1])
os.waitpid(victim, 0)
tracer = os.fork()
if tracer == 0:
    os._exit(42 if call("ptrace", TRACEME, 0, 0, 0) == 0 else 1)
said("traceme", "done" if os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1]) == 42 else "EPERM")
"""
# The agent is the command's parent.
AGENT = """
agent = os.getppid()
for name, flags in (("mem", os.O_RDWR), ("environ", os.O_RDONLY), ("maps", os.O_RDONLY),
                    ("auxv", os.O_RDONLY), ("io", os.O_RDONLY), ("syscall", os.O_RDONLY)):
    path = f"/proc/{agent}/{name}"
    got = opens(path, flags)
    if got == "opened":
        got = tried(lambda: len(open(path, "rb").read(16)) if name != "mem" else "opened")
    said(name, got)
said("fd", tried(lambda: len(os.listdir(f"/proc/{agent}/fd"))))
said("cwd", tried(os.readlink, f"/proc/{agent}/cwd"))
said("root", tried(os.readlink, f"/proc/{agent}/root"))
said("exe", tried(os.readlink, f"/proc/{agent}/exe"))
"""
REFUSED = ("EACCES", "EPERM", "ENOENT")


def test_no_process_is_traced(sandbox: Callable[..., Any], walled: str) -> None:
    assert sandbox(walled).attack(CHILD) == dict.fromkeys(CALLS, "EPERM")


def test_off_a_child_is_traced(sandbox: Callable[..., Any], walled: str) -> None:
    assert sandbox(walled, without={"seccomp"}).attack(CHILD) == dict.fromkeys(CALLS, "done")


def test_the_agent_is_closed(sandbox: Callable[..., Any], walled: str) -> None:
    answers = sandbox(walled).attack(AGENT)
    assert {name: got for name, got in answers.items() if got not in REFUSED} == {}


def test_the_agent_is_closed_without_landlock(sandbox: Callable[..., Any], walled: str) -> None:
    """Not being dumpable holds alone, even for uid 0 inside."""
    user = {"user": "root"} if walled == "linux" else {}
    answers = sandbox(walled, without={"landlock"}, **user).attack(AGENT)
    assert {name: got for name, got in answers.items() if got not in REFUSED} == {}


@pytest.mark.parametrize("name", ["mem", "environ", "maps", "fd"])
def test_off_the_agent_is_open(sandbox: Callable[..., Any], walled: str, name: str) -> None:
    # A change of uid clears dumpable by itself; without one the workspace is another user's.
    box = sandbox(walled, without={"landlock", "dumpable", "identity"})
    answers = box.attack(AGENT, cwd="/")
    assert answers[name] not in REFUSED
