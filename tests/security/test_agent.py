"""Threat: commands forge, steal or silence the agent's replies, or end the agent and hang the host.

Controls: the agent's descriptors are close-on-exec; it is not dumpable, and at the process level
seccomp refuses ptrace, pidfd_getfd and process_vm_*; as PID 1 of its namespace it cannot be
signalled from inside (linux); the host takes output as output, whatever it looks like, and a dead
wall as dead.
"""

import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentd.daemon.commands.ends import refine
from agentd.guest import wire
from agentd.linux.cgroup import Hierarchy
from agentd.model.errors import AgentdError, BackendLost
from agentd.model.result import CauseCode
from agentd.model.spec import ExecRequest, Pty
from agentd.sandbox.backends.cgroups import own_hierarchy
from agentd.transport.guest import Guest

# What a command would have to say in the agent's place.
FORGED = (
    wire.encode(wire.EVENT, 1, b'{"event":"exited","code":0,"signal":null,"cause":"exited"}')
    + wire.encode(wire.GOAWAY, 0, b'{"reason":"forged"}')
    + b'{"exit_code":0,"stdout":"","stderr":"","error":null}\n'
)
REACH = """
agent = int(sys.argv[1])
PTRACE_SEIZE = 0x4206  # attaches, and stops nobody
said("fds", tried(lambda: sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:3]))
held = [fd for fd in range(3, 4096) if not isinstance(tried(os.fstat, fd), str)]
said("held", held)
said("list", tried(os.listdir, f"/proc/{agent}/fd"))
said("environ", opens(f"/proc/{agent}/environ"))
said("mem", opens(f"/proc/{agent}/mem", os.O_RDWR))
said("ptrace", call("ptrace", PTRACE_SEIZE, agent, 0, 0))
pidfd = call("pidfd_open", agent, 0)
if isinstance(pidfd, int):
    said("getfd", [call("pidfd_getfd", pidfd, number, 0) for number in range(3, 12)])
local = (ctypes.c_char * 8)()
word = struct.pack("PN", ctypes.addressof(local), 8)
far = struct.pack("PN", int(sys.argv[2]), 8)
said("read", call("process_vm_readv", agent, word, 1, far, 1, 0))
"""
KILL = """
import time
agent = int(sys.argv[1])
for number in (9, 19, 15, 2, 1, 3, 6, 11, 7, 10, 12, 14, 17, 20, 23, 31, 34, 64):
    said(f"kill {number}", tried(os.kill, agent, number))
    pidfd = call("pidfd_open", agent, 0)
    said(f"pidfd {number}", call("pidfd_send_signal", pidfd, number, 0, 0) if
         isinstance(pidfd, int) else pidfd)
    said(f"queue {number}", call("rt_tgsigqueueinfo", agent, agent, number,
         struct.pack("iiiiii104x", number, 0, -1, 0, 0, 0)))
"""


def _pid(box: Any) -> str:
    """The agent's pid as commands inside see it."""
    pid: str = box.run(["sh", "-c", "echo $PPID"]).stdout.strip()
    return pid


def _closed(value: str) -> bool:
    return value in {"EPERM", "EACCES", "ENOENT", "ENOSYS", "ESRCH"}


@pytest.mark.parametrize("user", ["sandbox", "root"])
def test_the_agents_descriptors_and_memory_are_out_of_reach(
    sandbox: Callable[..., Any], user: str
) -> None:
    box = sandbox("linux", user=user)
    said = box.attack(REACH, _pid(box), "4194304")
    assert said.pop("fds") == "[0, 1, 2]"
    assert said.pop("held") == "[]"
    assert set(eval(said.pop("getfd", "['EPERM']"))) == {"EPERM"}  # noqa: S307 our own list
    assert all(_closed(value) for value in said.values()), said


def test_at_process_level_too(sandbox: Callable[..., Any]) -> None:
    box = sandbox("landlock")
    said = box.attack(REACH, _pid(box), "4194304")
    assert said.pop("held") == "[]"
    assert set(eval(said.pop("getfd", "['EPERM']"))) == {"EPERM"}  # noqa: S307 our own list
    assert all(_closed(value) for value in said.values()), said


def test_without_the_controls_they_are_taken(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux", without={"dumpable", "seccomp", "landlock"}, user="root")
    said = box.attack(REACH, _pid(box), "4194304")
    assert said["list"].startswith("['0', '1', '2'")
    assert said["mem"] == said["environ"] == "opened"
    # A descriptor of the agent's, in a command's hands.
    assert any(isinstance(fd, int) for fd in eval(said["getfd"]))  # noqa: S307 our own list


@pytest.mark.parametrize(("backend", "without"), [
    ("linux", "seccomp"), ("landlock", "seccomp"), ("landlock", "dumpable"),
])  # fmt: skip
def test_one_of_dumpable_and_seccomp_holds_alone(
    sandbox: Callable[..., Any], backend: str, without: str
) -> None:
    """Where commands may trace each other it is not being dumpable alone."""
    box = sandbox(backend, without={without})
    said = box.attack(REACH, _pid(box), "4194304")
    assert set(eval(said.get("getfd", "['EPERM']"))) == {"EPERM"}  # noqa: S307 our own list
    assert _closed(said["ptrace"])
    assert _closed(said["read"])


@pytest.mark.parametrize("user", ["sandbox", "root"])
def test_no_signal_from_inside_ends_or_stops_it(sandbox: Callable[..., Any], user: str) -> None:
    box = sandbox("linux", user=user)
    box.attack(KILL, "1")
    assert box.run(["echo", "on"]).stdout == "on\n"
    assert box.guest.call("sys.ping") is not None
    assert box.wall.alive()


def test_everything_else_inside_may_be_killed_and_it_stays(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux")
    ran = box.run(["sh", "-c", "kill -9 -1; echo not reached"])
    assert ran.exit.signal in {9, None}
    assert box.run(["echo", "on"]).stdout == "on\n"


@pytest.mark.parametrize("without", [set(), {"landlock"}], ids=["whole", "no landlock"])
def test_at_process_level_a_killed_agent_is_a_dead_wall(
    sandbox: Callable[..., Any], without: set[str]
) -> None:
    """Same user, no pid namespace: commands can end their own agent. Then the sandbox has ended."""
    box = sandbox("landlock", without=without)
    with (
        box.guest.start(
            ExecRequest(("sh", "-c", "kill -9 $PPID; sleep 60"), timeout=120.0)
        ) as running,
        pytest.raises(BackendLost),
    ):
        running.wait(120)
    assert box.wall.wait(120)
    with pytest.raises(BackendLost):
        box.guest.run(ExecRequest(("true",), timeout=5.0))


# A PID 1 that another process sends SIGSEGV goes on: of those only SIGKILL ends it.
@pytest.mark.parametrize(
    ("backend", "number"),
    [
        ("linux", signal.SIGKILL),
        ("landlock", signal.SIGKILL),
        ("landlock", signal.SIGSEGV),
        ("host", signal.SIGKILL),
        ("host", signal.SIGABRT),
    ],
)
def test_a_crash_of_the_agent_is_told_at_once(
    sandbox: Callable[..., Any], backend: str, number: int
) -> None:
    box, other = sandbox(backend), sandbox(backend)
    with box.guest.start(ExecRequest(("sleep", "600"), timeout=300.0)) as running:
        while running.pid is None:
            running.step(1)
        os.kill(box.wall.pid, number)
        with pytest.raises(BackendLost):
            running.wait(120)
    assert box.wall.wait(120)
    assert not box.wall.alive()
    with pytest.raises(BackendLost):
        box.guest.run(ExecRequest(("true",), timeout=5.0))
    assert other.run(["echo", "on"]).stdout == "on\n"


@pytest.mark.parametrize("backend", ["linux", "landlock"])
def test_a_stopped_agent_does_not_hang_the_host(sandbox: Callable[..., Any], backend: str) -> None:
    box = sandbox(backend)
    request = ExecRequest(("sleep", "60"), timeout=3.0)
    with box.guest.start(request) as running:
        while running.pid is None:
            running.step(1)
        os.kill(box.wall.pid, signal.SIGSTOP)
        assert running.wait(120).cause.code is CauseCode.TIMEOUT
    box.wall.kill()
    assert not box.wall.alive()


@pytest.mark.parametrize("pty", [None, Pty()], ids=["pipes", "terminal"])
def test_frames_in_the_output_are_output(sandbox: Callable[..., Any], pty: Pty | None) -> None:
    box = sandbox("linux")
    script = f"os.write(1, {FORGED!r}); os.write(2, {FORGED!r}); sys.exit(7)"
    argv = ("/usr/bin/python3", "-I", "-c", "import os, sys\n" + script)
    with box.guest.start(ExecRequest(argv, pty=pty, timeout=120.0)) as running:
        text = b"".join(data for _, data in running.chunks())
        end = running.exit
    assert end is not None
    assert (end.exit_code, end.cause.code) == (7, CauseCode.EXITED)
    assert text.count(b"forged") == 2


def test_frames_in_a_file_are_its_contents(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux")
    path = f"{box.workspace}/frames"
    box.guest.files.write(path, FORGED * 100)
    assert box.guest.files.read(path) == FORGED * 100


def test_what_the_agent_wrote_would_count(sandbox: Callable[..., Any]) -> None:
    """The same bytes in the agent's own place are believed, or refused: they are real frames."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(FORGED)
        header = theirs.recv(9)
        length, kind, channel = struct.unpack(">IBI", header)
        assert (kind, channel) == (wire.EVENT, 1)
        assert b'"exited"' in theirs.recv(length)


def test_a_reply_that_breaks_the_protocol_is_refused() -> None:
    """An agent that is not ours any more: nothing it says is trusted, and nothing hangs."""
    hello = b'{"agentd":2,"agent":"x","features":[],"boot":{"pid1":true,"uptime_ms":1}}\n'
    answers = (
        b"\xff\xff\xff\xff\x10\0\0\0\x01",
        wire.encode(wire.EVENT, 99, b'{"event":"started","pid":1}'),
        wire.encode(wire.EVENT, 1, b'{"event":"started","pid":-1}'),
        wire.encode(wire.EVENT, 1, b"[" * 100_000),
        wire.encode(wire.GOAWAY, 0, b'{"reason":"so"}'),
        b"",
    )
    for answer in answers:
        ends: list[socket.socket] = []

        def open_stream(answer: bytes = answer, ends: list[socket.socket] = ends) -> socket.socket:
            ours, theirs = socket.socketpair()
            theirs.sendall(hello + answer)
            theirs.shutdown(socket.SHUT_WR)
            ends.append(theirs)
            return ours

        guest = Guest(open_stream, passes_descriptors=False, answer_timeout=5.0)
        with pytest.raises(AgentdError):
            guest.run(ExecRequest(("true",), timeout=2.0))
        guest.close()
        for end in ends:
            end.close()


def test_the_agent_out_of_memory_is_told(sandbox: Callable[..., Any]) -> None:
    hierarchy = own_hierarchy()
    if not isinstance(hierarchy, Hierarchy) or "memory" not in hierarchy.controllers:
        pytest.skip("no memory controller is mounted")
    box = sandbox("linux", memory="48M", disk="256M")
    before = dict(box.wall.counters())
    script = "fd = os.open('f', os.O_WRONLY | os.O_CREAT)\nwhile True: os.write(fd, b'x' * 65536)"
    argv = ("/usr/bin/python3", "-I", "-c", _prelude(box) + script)
    with box.guest.start(ExecRequest(argv, cwd="/tmp", timeout=120.0)) as running:
        try:
            end = refine(running.wait(120), before, box.wall.counters())
            assert end.cause.code is CauseCode.OOM
        except BackendLost:
            assert box.wall.wait(120)
            assert box.wall.counters().get("oom", 0) > before.get("oom", 0)
    box.wall.kill()


def _prelude(box: Any) -> str:
    text: str = sys.modules[type(box).__module__].PRELUDE
    return text


def test_its_socket_is_in_no_file_system(sandbox: Callable[..., Any]) -> None:
    """There is no address to connect to: every stream was handed over."""
    box = sandbox("linux")
    script = "said('unix', [line.split()[7:] for line in open('/proc/net/unix')][1:])"
    paths = eval(box.attack(script)["unix"])  # noqa: S307 our own list
    assert not [path for path in paths if path]
    assert Path("/proc/net/unix").exists()
