"""Threat: a new user namespace brings every capability back; setns leaves the sandbox.

Control: seccomp refuses unshare, setns, and clone with a namespace flag; clone3, whose flags a
filter cannot read, does not exist.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest

FLAGS = {
    "user": 0x10000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "time": 0x00000080,
}
# The child of a clone that came to pass ends at once; its status tells.
MAKE = f"""
flags = {FLAGS!r}
def cloned(got):
    if got == 0:
        os._exit(42)
    return "made" if isinstance(got, int) and os.waitpid(got, 0)[1] == 42 << 8 else got
def in_child(action):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if action() == 0 else ctypes.get_errno())
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return errno.errorcode[status] if status else "made"
USER = flags["user"]
for name, flag in flags.items():
    said(f"unshare {{name}}", in_child(lambda: call("unshare", USER | flag)))
    if name != "time":  # lies in clone's exit signal
        said(f"clone {{name}}", cloned(call("clone", USER | flag | signal.SIGCHLD, 0, 0, 0, 0)))
args = struct.pack("=11Q", USER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
said("clone3", cloned(call("clone3", args, len(args))))
# The high half of the flags: the kernel cuts it off, so must the filter.
said("clone high", cloned(call("clone", 1 << 32 | USER | signal.SIGCHLD, 0, 0, 0, 0)))
"""
ENTER = f"""
for name, flag in {FLAGS!r}.items():
    for pid in ("self", os.getppid()):
        fd = tried(os.open, f"/proc/{{pid}}/ns/{{name}}", os.O_RDONLY)
        if isinstance(fd, int):
            said(f"{{pid}} {{name}}", call("setns", fd, flag))
pidfd = os.pidfd_open(os.getppid())
said("pidfd", call("setns", pidfd, 0x10000000 | 0x00020000))
said("bad", call("setns", -1, 0))
"""
GAIN = """
got = call("unshare", 0x10000000)
said("unshare", got)
open("/proc/self/setgroups", "w").write("deny") if got == 0 else None
said("gained", [line.split()[1] for line in open("/proc/self/status")
                if line.startswith("CapEff")][0])
"""
PLAIN = """
import subprocess, threading
said("thread", (thread := threading.Thread(target=int)).start() or thread.join() or "ran")
said("fork", os.waitpid(os.fork() or os._exit(0), 0)[1])
said("exec", subprocess.run(["true"]).returncode)
"""


def test_no_namespace_is_made(sandbox: Callable[..., Any], walled: str) -> None:
    answers = sandbox(walled).attack(MAKE)
    assert answers.pop("clone3") == "ENOSYS"
    assert answers == dict.fromkeys(answers, "EPERM")


def test_off_every_namespace_is_made(sandbox: Callable[..., Any], walled: str) -> None:
    answers = sandbox(walled, without={"seccomp"}).attack(MAKE)
    assert answers == dict.fromkeys(answers, "made")


def test_no_namespace_is_entered(sandbox: Callable[..., Any], walled: str) -> None:
    answers = sandbox(walled).attack(ENTER)
    assert answers == dict.fromkeys(answers, "EPERM")


def test_off_setns_reaches_the_kernel(sandbox: Callable[..., Any], walled: str) -> None:
    assert sandbox(walled, without={"seccomp"}).attack(ENTER)["bad"] == "EBADF"


def test_off_root_inside_enters_its_own(sandbox: Callable[..., Any]) -> None:
    """What seccomp alone keeps from a process that has its capabilities."""
    off = {"capabilities", "landlock", "seccomp", "dumpable"}
    answers = sandbox("linux", without=off, user="root").attack(ENTER)
    assert answers["self net"] == answers["self uts"] == "0"
    kept = sandbox("linux", without=off - {"seccomp"}, user="root").attack(ENTER)
    assert kept == dict.fromkeys(kept, "EPERM")


def test_capabilities_do_not_come_back(sandbox: Callable[..., Any]) -> None:
    no = "0" * 16
    assert sandbox("linux").attack(GAIN) == {"unshare": "EPERM", "gained": no}
    off = sandbox("linux", without={"seccomp", "landlock"}).attack(GAIN)
    assert off["unshare"] == "0"
    assert off["gained"] != no


def test_threads_and_forks_pass(sandbox: Callable[..., Any], enclosed: str) -> None:
    """The rules read flags: without this a filter that refuses everything would pass above."""
    assert sandbox(enclosed).attack(PLAIN) == {"thread": "ran", "fork": "0", "exec": "0"}


@pytest.mark.parametrize("kind", ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"])
def test_every_namespace_is_the_sandboxs_own(sandbox: Callable[..., Any], kind: str) -> None:
    script = f'said("ns", os.readlink("/proc/self/ns/{kind}"))'
    one, other = sandbox("linux"), sandbox("linux")
    seen = {one.attack(script)["ns"], other.attack(script)["ns"]}
    seen |= {os.readlink(f"/proc/self/ns/{kind}"), sandbox("host").attack(script)["ns"]}
    assert len(seen) == 3
