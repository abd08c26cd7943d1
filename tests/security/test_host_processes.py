"""Threat: seeing, signalling or slowing the host's processes, and other sandboxes'.

Controls: a pid namespace with a /proc of its own (linux); Landlock's signal scope and its closed
/proc, a user of its own, seccomp for what takes a pid (landlock).
"""

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

Process = subprocess.Popen[bytes]

SIGNAL = """
pid = int(sys.argv[1])
said("kill", tried(os.kill, pid, 0))
said("group", tried(os.killpg, os.getpgid(pid) if len(sys.argv) > 2 else pid, 0))
pidfd = tried(os.pidfd_open, pid)
said("pidfd", pidfd if isinstance(pidfd, str) else
     tried(signal.pidfd_send_signal, pidfd, 0))
said("queue", call("rt_sigqueueinfo", pid, 0, struct.pack("=iii4x112x", 0, 0, -1)))
said("thread", call("tgkill", pid, pid, 0))
"""
SEE = """
pid = sys.argv[1]
said("listed", pid in (tried(os.listdir, "/proc") or ()))
for name in ("stat", "status", "cmdline", "environ", "maps", "mem", "cgroup", "net/tcp"):
    said(name, opens(f"/proc/{pid}/{name}"))
for name in ("cwd", "root", "exe", "ns/pid"):
    got = tried(os.readlink, f"/proc/{pid}/{name}")
    said(name, got if got in errno.errorcode.values() else "opened")
"""
# Reads and changes of scheduling that leave the victim as it is.
SLOW = """
pid = int(sys.argv[1])
said("priority", tried(os.setpriority, os.PRIO_PROCESS, pid, 0))
said("user", tried(os.setpriority, os.PRIO_USER, 0, 0))
said("affinity", tried(os.sched_setaffinity, pid, range(1024)))
said("scheduler", call("sched_setscheduler", pid, 0, struct.pack("=i", 0)))
said("ioprio", call("ioprio_set", 1, pid, 0))
said("limits", call("prlimit64", pid, 7, 0, ctypes.create_string_buffer(16)))
"""
REFUSED = {"linux": {"ESRCH"}, "oci": {"ESRCH"}, "gvisor": {"ENOSYS"}, "landlock": {"EPERM"}}
UNSEEN = {"ENOENT", "EACCES", "ESRCH", "False"}


def test_no_signal_reaches_the_host(
    sandbox: Callable[..., Any], enclosed: str, bystander: Process
) -> None:
    answers = sandbox(enclosed).attack(SIGNAL, str(bystander.pid))
    assert set(answers.values()) <= REFUSED[enclosed] | {"ESRCH"}
    assert bystander.poll() is None


def test_off_signals_reach_the_host(sandbox: Callable[..., Any], bystander: Process) -> None:
    """No wall; then a wall whose pid namespace, user and Landlock are missing."""
    assert sandbox("host").attack(SIGNAL, str(bystander.pid), "own")["kill"] == "None"
    box = sandbox("landlock", without={"landlock", "identity"})
    answers = box.attack(SIGNAL, str(bystander.pid), "own", cwd="/")
    assert answers == dict.fromkeys(("kill", "group", "pidfd"), "None") | dict.fromkeys(
        ("queue", "thread"), "0"
    )


@pytest.mark.parametrize("off", ["landlock", "identity"])
def test_scope_and_user_each_stop_signals(
    sandbox: Callable[..., Any], bystander: Process, off: str
) -> None:
    """As an ordinary user there is no second user, and Landlock ABI 6 stands alone."""
    box = sandbox("landlock", without={off})
    if off == "landlock" and int(box.attack('said("uid", os.getuid())')["uid"]) == os.getuid():
        pytest.skip("takes root: without it commands keep the caller's user")
    assert box.attack(SIGNAL, str(bystander.pid), cwd="/")["kill"] == "EPERM"


def test_no_host_process_is_seen(
    sandbox: Callable[..., Any], enclosed: str, bystander: Process
) -> None:
    answers = sandbox(enclosed).attack(SEE, str(bystander.pid))
    assert {name: got for name, got in answers.items() if got not in UNSEEN} == {}


def test_off_a_host_process_is_seen(sandbox: Callable[..., Any], bystander: Process) -> None:
    answers = sandbox("host").attack(SEE, str(bystander.pid))
    assert answers == dict.fromkeys(answers, "opened") | {"listed": "True"}
    open_proc = sandbox("landlock", without={"landlock"}).attack(SEE, str(bystander.pid))
    assert open_proc["listed"] == "True"
    assert open_proc["cmdline"] == open_proc["stat"] == "opened"


def test_only_own_processes_are_listed(sandbox: Callable[..., Any]) -> None:
    """PID 1, which is the agent, and the command; a /proc of the zygote's would show more."""
    script = 'said("pids", sorted(int(p) for p in os.listdir("/proc") if p.isdigit()))'
    script += '\nsaid("own", [1, os.getpid()])'
    one = sandbox("linux")
    sandbox("linux")  # a sibling of the same zygote
    answers = one.attack(script)
    assert answers["pids"] == answers["own"]
    off = sandbox("linux", without={"proc"})
    sandbox("linux", without={"proc"})
    answers = off.attack(script)
    assert len(answers["pids"].split()) > 2


@pytest.mark.parametrize("off", [{"proc"}, {"proc", "landlock"}], ids=["proc", "and landlock"])
def test_a_sibling_is_out_of_reach_even_where_proc_shows_it(
    sandbox: Callable[..., Any], off: set[str]
) -> None:
    """Of one zygote all have the same uid outside: pid and user namespaces keep them apart."""
    one, sibling = sandbox("linux", without=off), sandbox("linux", without=off)
    sibling.run(("sh", "-c", "sleep 60 </dev/null >/dev/null 2>&1 &"))
    # A number there is the zygote's; ours are numbers of another namespace. Others come and go.
    script = """
import time
def sleeper():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if tried(lambda: open(f"/proc/{pid}/comm").read()) == "sleep\\n":
            return pid
deadline = time.monotonic() + 120
while not (pid := sleeper()) and time.monotonic() < deadline:
    time.sleep(0.01)
said("sleep", "seen" if pid else "unseen")
said("kill", tried(os.kill, int(pid), 0))
said("mem", opens(f"/proc/{pid}/mem", os.O_RDWR))
said("environ", opens(f"/proc/{pid}/environ"))
said("root", opens(f"/proc/{pid}/root/workspace"))
said("cwd", opens(f"/proc/{pid}/cwd"))
said("fd", opens(f"/proc/{pid}/fd/0"))
"""
    answers = one.attack(script)
    assert answers.pop("sleep") == "seen"
    assert answers.pop("kill") == "ESRCH"
    assert set(answers.values()) == {"EACCES"}


def test_siblings_do_not_end_each_other(sandbox: Callable[..., Any]) -> None:
    """What a zygote does between its requests leaves the running sandboxes alone."""
    boxes = []
    for _ in range(4):
        boxes.append(sandbox("linux"))
        time.sleep(0.1)  # the zygote has time to prepare the next one
    assert [box.attack('said("alive", 1)') for box in boxes] == [{"alive": "1"}] * 4


def test_everybody_is_only_the_sandbox(sandbox: Callable[..., Any], bystander: Process) -> None:
    """kill(-1) of the linux wall's root meets nobody else; a real signal, so never run walless."""
    box = sandbox("linux", user="root")
    assert box.attack('said("all", tried(os.kill, -1, signal.SIGKILL))') == {"all": "ESRCH"}
    assert bystander.poll() is None
    assert box.attack('said("alive", 1)') == {"alive": "1"}


def test_no_host_process_is_slowed(
    sandbox: Callable[..., Any], walled: str, bystander: Process
) -> None:
    answers = sandbox(walled).attack(SLOW, str(bystander.pid))
    assert answers.pop("user") == "EPERM"
    assert set(answers.values()) <= REFUSED[walled]


def test_off_a_host_process_is_slowed(sandbox: Callable[..., Any], bystander: Process) -> None:
    """Seccomp alone stops it between processes of one user with the same capabilities."""
    kept = sandbox("landlock", without={"identity", "capabilities"})
    assert set(kept.attack(SLOW, str(bystander.pid)).values()) == {"EPERM"}
    box = sandbox("landlock", without={"identity", "capabilities", "seccomp"})
    answers = box.attack(SLOW, str(bystander.pid))
    assert answers["priority"] == answers["affinity"] == "None"
    assert answers["scheduler"] == answers["ioprio"] == answers["limits"] == "0"
