"""Threat: calls that are harmless but for their arguments: limits, priorities and processors of the
agent, leases on files that others open, socket filters, large pipes.

Control: seccomp, by what the kernel itself looks at: the low half of a word.
With it every call is EPERM (tests/contract/test_arguments.py tries each by the doors).
"""

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentd.model.errors import AgentdError

LIMIT = """
said("limit", call("prlimit64", 1, int(sys.argv[1]), struct.pack("=QQ", 0, 0), 0))
"""
SLOW = """
said("affinity", call("sched_setaffinity", 1, 8, struct.pack("=Q", 1)))
said("priority", call("setpriority", 0, 1, 19))
said("io", call("ioprio_set", 1, 1, 3 << 13))
said("scheduler", call("sched_setscheduler", 1, os.SCHED_IDLE, struct.pack("=i", 0)))
"""
USERS = """
said("user", call("setpriority", 2, int(sys.argv[1]), 19))
said("io", call("ioprio_set", 3, int(sys.argv[1]), 3 << 13))
"""
REST = """
import fcntl
ours, theirs = socket.socketpair()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(1, socket.SO_REUSEPORT, 1)
udp.bind(("127.0.0.1", 0))
keep = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0xFFFF))
header = struct.pack("@HP", 1, ctypes.addressof(keep))
number = struct.pack("=i", 2)  # UDP_ENCAP_ESPINUDP
open("held", "w").close()
held, folder = os.open("held", os.O_RDONLY), os.open(".", os.O_RDONLY)
reader, writer = os.pipe()
said("lease", call("fcntl", held, 1024, fcntl.F_WRLCK))
said("dnotify", call("fcntl", folder, 1026, 1))
said("pipe", call("fcntl", writer, 1031, 1 << 17))
said("filter", call("setsockopt", ours.fileno(), 1, 26, header, 16))
said("reuseport filter", call("setsockopt", udp.fileno(), 1, 51, header, 16))
said("encap", call("setsockopt", udp.fileno(), 17, 100, number, 4))
said("encap by udplite", call("setsockopt", udp.fileno(), 136, 100, number, 4))
"""
# Not without the control: a kernel that has such modules would load them.
MODULES = """
ours, _ = socket.socketpair()
for name, request in (("bridge", 0x8940), ("VLAN", 0x8982)):
    said(name, call("ioctl", ours.fileno(), request, 0))
    said(name + ", high bits", call("ioctl", ours.fileno(), 1 << 32 | request, 0))
"""
KNOBS = ("NOFILE", "STACK", "FSIZE", "AS", "DATA", "NPROC")


def _works(box: Any) -> bool:
    try:
        return bool(box.run(["sh", "-c", "echo on > /tmp/on; cat /tmp/on"]).stdout == "on\n")
    except AgentdError:
        return False


@pytest.mark.parametrize("name", KNOBS)
def test_no_limit_of_the_agents_is_changed(sandbox: Callable[..., Any], name: str) -> None:
    number = str(getattr(resource, f"RLIMIT_{name}"))
    box = sandbox("linux")
    limits = Path(f"/proc/{box.wall.pid}/limits")
    before = limits.read_text()
    assert box.attack(LIMIT, number) == {"limit": "EPERM"}
    assert limits.read_text() == before
    assert _works(box)


@pytest.mark.parametrize("name", KNOBS)
def test_off_a_limit_ends_all_later_commands(sandbox: Callable[..., Any], name: str) -> None:
    box = sandbox("linux", without={"seccomp"})
    assert _works(box)
    assert box.attack(LIMIT, str(getattr(resource, f"RLIMIT_{name}"))) == {"limit": "0"}
    assert not _works(box)


def test_the_agent_is_not_slowed(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux")
    before = _pace(box.wall.pid)
    assert set(box.attack(SLOW).values()) == {"EPERM"}
    for user in ("0", "1000"):
        assert set(box.attack(USERS, user).values()) == {"EPERM"}
    assert _pace(box.wall.pid) == before


def test_off_the_agent_is_slowed(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux", without={"seccomp"})
    assert set(box.attack(SLOW).values()) == {"0"}
    assert _pace(box.wall.pid) == (os.SCHED_IDLE, 19, {0})
    box = sandbox("linux", without={"seccomp"})
    assert set(box.attack(USERS, "1000").values()) == {"0"}
    assert os.getpriority(os.PRIO_PROCESS, box.wall.pid) == 19


def _pace(pid: int) -> tuple[int, int, set[int]]:
    return (
        os.sched_getscheduler(pid),
        os.getpriority(os.PRIO_PROCESS, pid),
        os.sched_getaffinity(pid),
    )


def test_the_rest_is_refused(sandbox: Callable[..., Any]) -> None:
    assert set(sandbox("linux").attack(REST).values()) == {"EPERM"}


def test_no_module_is_loaded_by_a_socket(sandbox: Callable[..., Any]) -> None:
    assert sandbox("linux").attack(MODULES) == dict.fromkeys(
        ("bridge", "bridge, high bits", "VLAN", "VLAN, high bits"), "EPERM"
    )


def test_off_the_rest_is_there(sandbox: Callable[..., Any]) -> None:
    """EPERM of UDP_ENCAP is the kernel's own where it has no such code."""
    answers = sandbox("linux", without={"seccomp"}).attack(REST)
    assert answers["pipe"] == str(1 << 17)
    held = ("lease", "dnotify", "filter", "reuseport filter")
    assert [answers[name] for name in held] == ["0"] * 4
    assert answers["encap"] == answers["encap by udplite"]
