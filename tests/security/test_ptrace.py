"""Threat: reading or changing another process: ptrace, process_vm_*, stolen descriptors.

Controls: at the process level seccomp refuses the calls, against any process, a child of one's own
included. In a pid namespace of their own commands may trace each other. The agent, whose memory
holds every command's output, is not dumpable, nor is a child of its that has no program yet: so
they are neither traced nor read, and /proc/PID/mem and its like are closed. One option of ptrace
lets two processes keep each other from ever being gone: the filter asks the agent, which grants it
to whoever is above what it traces.
"""

import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from tests.security.conftest import PRELUDE, PYTHON, Box

from agentd.linux import abi
from agentd.model.spec import ExecRequest

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


def test_at_the_process_level_no_process_is_traced(sandbox: Callable[..., Any]) -> None:
    assert sandbox("landlock").attack(CHILD) == dict.fromkeys(CALLS, "EPERM")


def test_off_a_child_is_traced(sandbox: Callable[..., Any]) -> None:
    done = sandbox("landlock", without={"seccomp"}).attack(CHILD)
    assert done == dict.fromkeys(CALLS, "done")


@pytest.mark.parametrize("spec", [{}, {"user": "root"}, {"net": "host"}], ids=str)
def test_in_its_own_namespace_a_child_is_traced(
    sandbox: Callable[..., Any], spec: dict[str, str]
) -> None:
    answers = sandbox("linux", **spec).attack(CHILD)
    assert answers == dict.fromkeys(CALLS, "done") | {"madvise": "EPERM"}


def test_the_agent_is_closed(sandbox: Callable[..., Any], enclosed: str) -> None:
    answers = sandbox(enclosed).attack(AGENT)
    # As docs/gvisor.md says: its kernel asks for these who owns a process, and not what it allows.
    open_there = {"environ", "maps", "auxv", "io", "fd"} if enclosed == "gvisor" else set()
    left = {name: got for name, got in answers.items() if name not in open_there}
    assert {name: got for name, got in left.items() if got not in REFUSED} == {}


def test_the_agent_is_closed_without_landlock(sandbox: Callable[..., Any], walled: str) -> None:
    """Not being dumpable holds alone, even for uid 0 inside."""
    user = {"user": "root"} if walled != "landlock" else {}
    answers = sandbox(walled, without={"landlock"}, **user).attack(AGENT)
    if walled == "oci":
        # The agent was executed in the namespace of which this is root, who so owns the folder:
        # the numbers are seen, and what they are of is not.
        assert answers.pop("fd").isdecimal()
    assert {name: got for name, got in answers.items() if got not in REFUSED} == {}


@pytest.mark.parametrize("name", ["mem", "environ", "maps", "fd"])
def test_off_the_agent_is_open(sandbox: Callable[..., Any], walled: str, name: str) -> None:
    # A change of uid clears dumpable by itself; without one the workspace is another user's.
    box = sandbox(walled, without={"landlock", "dumpable", "identity"})
    answers = box.attack(AGENT, cwd="/")
    assert answers[name] not in REFUSED


# On the agent itself; an address that cannot be tells EFAULT of EPERM.
TRACE_AGENT = """
agent = os.getppid()
local = (ctypes.c_char * 8)()
word, far = struct.pack("=QQ", ctypes.addressof(local), 8), struct.pack("=QQ", 4096, 8)
for name, request in (("seize", 0x4206), ("attach", 16)):
    got = call("ptrace", request, agent, 0, 0)
    said(name, got)
    if got == 0:
        call("ptrace", 17, agent, 0, 0)
said("readv", call("process_vm_readv", agent, word, 1, far, 1, 0))
said("writev", call("process_vm_writev", agent, word, 1, far, 1, 0))
fd = os.pidfd_open(agent)
said("getfd", {call("pidfd_getfd", fd, number, 0) for number in range(3, 16)})
said("kcmp", call("kcmp", os.getpid(), agent, 0, 0, 0))
"""
SPECS = [{}, {"user": "root"}, {"net": "host"}]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_agent_is_not_traced(sandbox: Callable[..., Any], spec: dict[str, Any]) -> None:
    answers = sandbox("linux", **spec).attack(TRACE_AGENT)
    assert answers == dict.fromkeys(answers, "EPERM") | {"getfd": "{'EPERM'}"}


def test_not_being_dumpable_holds_alone(sandbox: Callable[..., Any]) -> None:
    """Even against uid 0 inside with every capability that its namespace has."""
    without = {"seccomp", "landlock", "capabilities"}
    answers = sandbox("linux", without=without, user="root").attack(TRACE_AGENT)
    assert answers == dict.fromkeys(answers, "EPERM") | {"getfd": "{'EPERM'}"}


def test_off_the_agent_is_traced(sandbox: Callable[..., Any]) -> None:
    answers = sandbox("linux", without={"dumpable"}).attack(TRACE_AGENT)
    assert answers["seize"] == "0" and answers["kcmp"] in ("1", "2"), answers
    assert answers["readv"] == answers["writev"] == "EFAULT"
    assert "EPERM" not in answers["getfd"]


# Stops each process that is born after it, waits until it stands, and tries one that is still as
# the agent has forked it: by its name.
HUNT = """
def line(pid, name):
    with open(f"/proc/{pid}/status") as file:
        return next(line.split()[1] for line in file if line.startswith(name))
last = os.getpid()
print("hunting", flush=True)
while True:
    for pid in range(last + 1, last + 40):
        if isinstance(tried(os.kill, pid, signal.SIGSTOP), str):
            continue
        last = max(last, pid)
        try:
            while line(pid, "State:") not in "TZX":
                pass
            young = line(pid, "State:") == "T" and line(pid, "Name:") == line(1, "Name:")
        except (OSError, StopIteration):
            continue
        if young:
            said("seize", call("ptrace", 0x4206, pid, 0, 0))
            said("mem", opens(f"/proc/{pid}/mem"))
            said("environ", opens(f"/proc/{pid}/environ"))
            os.kill(pid, signal.SIGCONT)
            sys.exit()
        os.kill(pid, signal.SIGCONT)
"""


def hunted(box: Box) -> dict[str, str]:
    argv = (PYTHON, "-I", "-c", PRELUDE + HUNT)
    hunter = box.guest.start(ExecRequest(argv, cwd=box.workspace))
    said = b""
    try:
        while b"hunting" not in said:
            chunks, _ = hunter.step(10)
            assert hunter.exit is None
            said += b"".join(data for _, data in chunks)
        while hunter.exit is None:
            box.guest.run(ExecRequest(("true",), cwd=box.workspace, timeout=5.0))
            chunks, _ = hunter.step(0)
            said += b"".join(data for _, data in chunks)
    finally:
        hunter.close()
    return dict(line.split("=", 1) for line in said.decode().splitlines() if "=" in line)


def test_a_command_that_has_no_program_yet_is_not_traced(sandbox: Callable[..., Any]) -> None:
    answers = hunted(sandbox("linux"))
    assert answers["seize"] == "EPERM"
    assert {answers["mem"], answers["environ"]} <= set(REFUSED)


def test_off_a_command_that_has_no_program_yet_is_traced(sandbox: Callable[..., Any]) -> None:
    assert hunted(sandbox("linux", without={"dumpable"}))["seize"] == "0"


def test_a_command_that_makes_the_agent_its_tracer_is_told_as_it_ends(
    sandbox: Callable[..., Any],
) -> None:
    script = """
    signal.signal(signal.SIGUSR1, lambda *_: said("handled", 1))
    said("traceme", call("ptrace", 0, 0, 0, 0))
    os.kill(os.getpid(), signal.SIGUSR1)
    sys.exit(7)
    """
    ran = sandbox("linux").run(textwrap.dedent(script))
    assert (ran.exit.exit_code, ran.stdout) == (7, "traceme=0\nhandled=1\n")


# Each asks to see another exit; whoever asks goes at once, and takes its request with it.
TRACE_EXIT = """
SEIZE, INTERRUPT, SETOPTIONS, OLD = 0x4206, 0x4207, 0x4200, 21
libc = ctypes.CDLL(None)
libc.prctl(0x59616D61, ctypes.c_long(-1), 0, 0, 0)  # PR_SET_PTRACER: Yama
def asked(victim, request=SEIZE, data=0x40):
    if request != SEIZE:
        assert call("ptrace", SEIZE, victim, 0, 0) == 0
        call("ptrace", INTERRUPT, victim, 0, 0)  # options are set while it stands
        os.waitpid(victim, 0x40000000)  # __WALL
    return call("ptrace", request, victim, 0, data)
def child(action):
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(into, str(action()).encode())
        os._exit(0)
    os.close(into)
    said = os.read(out, 64).decode()
    os.waitpid(pid, 0)
    return said
def sleeper():
    pid = os.fork()
    if pid == 0:
        signal.pause()
    return pid
def end(pid):
    os.kill(pid, 9)
    while True:
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSTOPPED(status):
            break
        call("ptrace", 17, pid, 0, 0)
me = os.getpid()
"""
OLDER = (
    TRACE_EXIT
    + """
said("parent", child(lambda: asked(me)))
said("parent, more", child(lambda: asked(me, data=0x5F)))
said("parent, high bits", child(lambda: asked(1 << 32 | me)))
said("parent, later", child(lambda: asked(me, SETOPTIONS)))
said("parent, the old way", child(lambda: asked(me, OLD)))
brother = sleeper()
said("brother", child(lambda: asked(brother)))
said("brother, later", child(lambda: asked(brother, SETOPTIONS)))
said("nobody", asked(4000000))
end(brother)
"""
)
YOUNGER = (
    TRACE_EXIT
    + """
pid = sleeper()
said("child", asked(pid))
end(pid)
pid = sleeper()
said("child, later", asked(pid, SETOPTIONS))
end(pid)
out, into = os.pipe()
middle = os.fork()
if middle == 0:
    os.write(into, str(sleeper()).encode())
    signal.pause()
said("grandchild", asked(int(os.read(out, 64))))
os.kill(middle, 9)
"""
)


def test_nobody_asks_to_see_the_exit_of_what_is_not_below_it(sandbox: Callable[..., Any]) -> None:
    said = sandbox("linux").attack(OLDER)
    assert len(said) == 8
    assert set(said.values()) <= {"EPERM"}, said


def test_off_it_may(sandbox: Callable[..., Any]) -> None:
    said = sandbox("linux", without={"seccomp"}).attack(OLDER)
    assert said.pop("nobody") == "ESRCH"
    assert {name for name, answer in said.items() if answer != "0"} <= {"parent, the old way"}, said


@pytest.mark.parametrize("user", ["sandbox", "root"])
def test_whoever_is_above_may(sandbox: Callable[..., Any], user: str) -> None:
    assert set(sandbox("linux", user=user).attack(YOUNGER).values()) == {"0"}


def test_the_agent_answers_while_many_ask(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux")
    script = TRACE_EXIT + 'print("asking", flush=True)\nwhile True:\n    asked(1)\n'
    argv = (PYTHON, "-I", "-c", PRELUDE + script)
    many = [box.guest.start(ExecRequest(argv, cwd=box.workspace)) for _ in range(4)]
    try:
        for one in many:
            one.step(10)
        assert box.run(["echo", "here"]).stdout == "here\n"
    finally:
        for one in many:
            one.kill()
            one.close()
    assert box.run(["echo", "still"]).stdout == "still\n"


# x86: the number of the call lies at ORIG_RAX, which a tracer may change where the call begins.
PAST_THE_FILTER = """
SEIZE, INTERRUPT, SYSCALL, CONT, PEEK, POKE = 0x4206, 0x4207, 24, 7, 3, 6
ready, out = os.pipe(), os.pipe()
victim = os.fork()
if victim == 0:
    os.read(ready[0], 1)
    os.write(out[1], str(call("getppid")).encode())
    os._exit(0)
said("suspend", call("ptrace", SEIZE, victim, 0, 1 << 21))  # PTRACE_O_SUSPEND_SECCOMP
assert call("ptrace", SEIZE, victim, 0, 1) == 0
call("ptrace", INTERRUPT, victim, 0, 0)
os.waitpid(victim, 0)
said("suspend later", call("ptrace", 0x4200, victim, 0, 1 << 21))
os.write(ready[1], b"x")
word = ctypes.c_long()
while True:
    call("ptrace", SYSCALL, victim, 0, 0)
    status = os.waitpid(victim, 0)[1]
    if os.WIFSTOPPED(status) and os.WSTOPSIG(status) == 0x85:
        call("ptrace", PEEK, victim, 120, ctypes.byref(word))
        if word.value == NR["getppid"]:
            call("ptrace", POKE, victim, 120, NR["io_setup"])
            break
call("ptrace", 17, victim, 0, 0)
said("changed", os.read(out[0], 64).decode())
os.waitpid(victim, 0)
"""


@pytest.mark.skipif(abi.MACHINE != "x86_64", reason="the attack knows x86-64's registers")
def test_no_tracer_leads_past_the_filter(sandbox: Callable[..., Any]) -> None:
    answers = sandbox("linux", user="root").attack(PAST_THE_FILTER)
    assert answers.pop("suspend") in ("EPERM", "EINVAL")
    assert answers.pop("suspend later") in ("EPERM", "EINVAL")
    assert answers == {"changed": "ENOSYS"}


@pytest.mark.skipif(abi.MACHINE != "x86_64", reason="the attack knows x86-64's registers")
def test_off_a_tracer_changes_the_call(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux", without={"seccomp"})
    assert box.attack(PAST_THE_FILTER)["changed"] != "ENOSYS"
