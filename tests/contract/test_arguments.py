"""What commands may not do to the agent, to others' files and to the machine by a call's arguments.

And what looks alike, and ordinary programs need.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.client.sandbox import Process, Sandbox
from agentd.testing.walls.claims import needs

confined = pytest.mark.parametrize("kind", ["landlock", "linux"], indirect=True)
namespaced = pytest.mark.parametrize("kind", ["linux"], indirect=True)

PRELUDE = """
import ctypes, errno, fcntl, os, resource, socket, struct, subprocess, sys
_libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    got = _libc.syscall(ctypes.c_long(number), *words)
    return errno.errorcode[ctypes.get_errno()] if got == -1 else got
def tried(action, *args):
    try:
        return action(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
X86 = os.uname().machine == "x86_64"
NR = dict(zip(
    ("prlimit64", "setpriority", "ioprio_set", "sched_setaffinity", "sched_setscheduler",
     "sched_setparam", "sched_setattr", "fcntl", "setsockopt"),
    (302, 141, 251, 203, 144, 142, 314, 72, 54) if X86 else
    (261, 140, 30, 122, 119, 118, 274, 25, 208)))
HIGH = 0xDEAD << 32
"""
# Each would, where it succeeds, leave the agent unable to start or to serve the next command.
CRIPPLE = """
import itertools, time
# CORE is not among them: it only matters when the agent crashes.
limits = dict(fsize=1, data=2, stack=3, nproc=6, nofile=7, memlock=8, as_=9, sigpending=11)
none = struct.pack("=QQ", 0, 0)
idle = struct.pack("=IIQiIQQQ", 48, 5, 0, 0, 0, 0, 0, 0)
answers = {}
for pid in (1, 1 | HIGH):
    answers |= {f"{name} {pid}": call(NR["prlimit64"], pid, number, none, 0)
                for name, number in limits.items()}
    answers |= {
        f"affinity {pid}": call(NR["sched_setaffinity"], pid, 8, struct.pack("=Q", 1)),
        f"scheduler {pid}": call(NR["sched_setscheduler"], pid, 5, struct.pack("=i", 0)),
        f"param {pid}": call(NR["sched_setparam"], pid, struct.pack("=i", 0)),
        f"attr {pid}": call(NR["sched_setattr"], pid, idle, 0),
    }
for which, who in itertools.product((0, 1, 2), (1, 1 | HIGH)):
    answers[f"priority {which} {who}"] = call(NR["setpriority"], which, who, 19)
    answers[f"io {which} {who}"] = call(NR["ioprio_set"], which + 1, who, 3 << 13)
for who in (0, HIGH, os.getuid()):
    answers[f"user's priority {who}"] = call(NR["setpriority"], 2, who, 19)
    answers[f"user's io {who}"] = call(NR["ioprio_set"], 3, who, 3 << 13)
print({name: got for name, got in answers.items() if got != "EPERM"})
"""
LEASES = """
os.chdir(sys.argv[1])
path = "leased"
open(path, "w").close()
folder = os.open(".", os.O_RDONLY)
with open(path) as file:
    print({
        "read lease": tried(fcntl.fcntl, file, 1024, 0),
        "high half": call(NR["fcntl"], file.fileno(), 1024 | HIGH, 0),
        "delegation": call(NR["fcntl"], file.fileno(), 1040, struct.pack("=IHH", 0, 0, 0)),
        "dnotify": tried(fcntl.fcntl, folder, 1026, 1),
        "asked": tried(fcntl.fcntl, file, 1025),
    })
"""
# A pair, as the process level has no other socket; the level is looked at before the kind.
FILTERS = """
ours, theirs = socket.socketpair()
program = struct.pack("=HBBI", 6, 0, 0, 0xFFFF)
keep = ctypes.create_string_buffer(program)
header = struct.pack("@HP", 1, ctypes.addressof(keep))
def option(level, name, value):
    return call(NR["setsockopt"], ours.fileno(), level, name, value, len(value))
answers = {f"{name} {high}": option(1 | high, name | high, header)
           for name in (26, 50, 51, 52) for high in (0, HIGH)}
answers |= {"ulp": option(6, 31, b"tls"), "encap": option(17, 100, struct.pack("=i", 2)),
            "encap by udplite": option(136, 100, struct.pack("=i", 2))}
print({name: got for name, got in answers.items() if got != "EPERM"},
      tried(ours.setsockopt, 1, socket.SO_RCVBUF, 65536))
"""
PIPES = """
reader, writer = os.pipe()
print([tried(fcntl.fcntl, writer, 1031, size) for size in (4096, 65536, 65537, 1 << 20)],
      call(NR["fcntl"], writer, 1031 | HIGH, 1 << 20 | HIGH))
"""
# What nice, renice, taskset, chrt, ionice and prlimit do to themselves and to their children.
OWN = """
child = subprocess.Popen(["sleep", "60"])
pid = child.pid
resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64))
os.setpriority(os.PRIO_PROCESS, pid, 19)
os.sched_setaffinity(pid, os.sched_getaffinity(0))
os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))
print(call(NR["ioprio_set"], 1, pid, 3 << 13), resource.prlimit(pid, resource.RLIMIT_NOFILE),
      os.getpriority(os.PRIO_PROCESS, pid), os.sched_getscheduler(pid) == os.SCHED_BATCH)
child.kill()
child.wait()
"""
THEMSELVES = """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.nice(1)
os.setpriority(os.PRIO_PGRP, 0, 19)
os.sched_setaffinity(0, os.sched_getaffinity(0))
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
print(call(NR["ioprio_set"], 1, 0, 3 << 13), os.getpriority(os.PRIO_PROCESS, 0))
"""


HOLD = """
held = open("held", "rb")
print(tried(fcntl.fcntl, held, 1024, fcntl.F_WRLCK), tried(fcntl.fcntl, held, 1024, 0), flush=True)
sys.stdin.read()
"""


def _python(script: str, *args: str) -> list[str]:
    return ["/usr/bin/python3", "-I", "-c", PRELUDE + script, *args]


def _first(process: Process) -> bytes:
    """Its first line, which comes while it runs."""
    seen = b""
    for chunk in process:
        seen += chunk.data
        if seen.endswith(b"\n"):
            break
    return seen


def _said(sandbox: Sandbox, script: str, *args: str) -> str:
    needs(sandbox, "/usr/bin/python3")
    result = sandbox.run(_python(script, *args))
    assert result.exit_code == 0, result.stderr
    return result.text.strip()


@confined
def test_the_agent_cannot_be_crippled(sandbox: Sandbox, workspace: str) -> None:
    assert _said(sandbox, CRIPPLE) == "{}"
    result = sandbox.run("echo on; exec python3 -c 'print(len(bytearray(1 << 20)))'")
    assert result.text == "on\n1048576\n"
    sandbox.files.write(f"{workspace}/after", b"x" * 4096)
    assert sandbox.files.read(f"{workspace}/after") == b"x" * 4096


@namespaced
def test_a_command_may_do_the_same_to_its_children(sandbox: Sandbox) -> None:
    assert _said(sandbox, OWN) == "0 (64, 64) 19 True"


@confined
def test_a_command_may_do_the_same_to_itself(sandbox: Sandbox) -> None:
    assert _said(sandbox, THEMSELVES) == "0 19"


@confined
def test_there_are_no_leases_and_no_dnotify(sandbox: Sandbox, workspace: str) -> None:
    refused = dict.fromkeys(("read lease", "high half", "delegation", "dnotify"), "EPERM")
    assert _said(sandbox, LEASES, workspace) == str(refused | {"asked": 2})


@namespaced
def test_a_program_of_the_commands_own_does_not_hold_the_agent_up(
    sandbox: Sandbox, workspace: str
) -> None:
    """Whoever runs a leased program waits for its holder: that would be the agent."""
    needs(sandbox, "/usr/bin/python3")
    sandbox.run("cp /usr/bin/true held", check=True)
    with sandbox.start(_python(HOLD), stdin=True) as holder:
        assert _first(holder) == b"EPERM EPERM\n"
        assert sandbox.run([f"{workspace}/held"], timeout=30).exit_code == 0
        holder.kill()


@namespaced
def test_a_read_only_mount_keeps_nobody_waiting(make: Callable[..., Sandbox], folder: Path) -> None:
    file = folder / "held"
    file.write_text("on")
    sandbox = make(workspace=f"{folder}:ro")
    needs(sandbox, "/usr/bin/python3")
    with sandbox.start(_python(HOLD), stdin=True) as holder:
        assert _first(holder) == b"EPERM EPERM\n"
        # A lease would be broken by this, and EWOULDBLOCK is what it says meanwhile.
        os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
        holder.kill()


@confined
def test_no_socket_has_a_filter_or_a_protocol_above(sandbox: Sandbox) -> None:
    assert _said(sandbox, FILTERS) == "{} None"


@confined
def test_no_pipe_is_larger_than_a_new_one(sandbox: Sandbox) -> None:
    assert _said(sandbox, PIPES) == "[4096, 65536, 'EPERM', 'EPERM'] EPERM"
