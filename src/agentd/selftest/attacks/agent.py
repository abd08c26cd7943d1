"""The agent inside the sandbox: what it says is what the caller is told."""

from agentd.guest import wire
from agentd.model.result import CauseCode
from agentd.selftest.attack import (
    FILTERED,
    Attack,
    AttackOutcome,
    Judged,
    by,
    said_only,
    unfinished,
)
from agentd.selftest.report import Verdict

# What a command would have to say in the agent's place.
_FORGED = (
    wire.encode(wire.EVENT, 1, b'{"event":"exited","code":0,"signal":null,"cause":"exited"}')
    + wire.encode(wire.GOAWAY, 0, b'{"reason":"forged"}')
    + b'{"exit_code":0,"stdout":"","stderr":"","error":null}\n'
)
_STATUS = 7
_DESCRIPTORS = """
held = [fd for fd in range(3, 4096) if not isinstance(tried(os.fstat, fd), str)]
said("held", held)
"""
_FORGE = f"""
frames = {_FORGED!r}
for fd in range(3, 64):
    tried(os.write, fd, frames)
os.write(1, frames)
os.write(2, frames)
said("end", "reached")
sys.stdout.flush()
os._exit({_STATUS})
"""
# SEIZE attaches and stops nobody; an address that cannot be tells EFAULT of EPERM.
_REACH = """
agent = os.getppid()
said("seize", call("ptrace", 0x4206, agent, 0, 0))
local = (ctypes.c_char * 8)()
word = struct.pack("PN", ctypes.addressof(local), 8)
far = struct.pack("PN", 4096, 8)
said("read", call("process_vm_readv", agent, word, 1, far, 1, 0))
fd = call("pidfd_open", agent, 0)
got = [call("pidfd_getfd", fd, n, 0) for n in range(3, 12)] if isinstance(fd, int) else [fd]
said("descriptors", "EPERM" if set(got) <= {"EPERM", "ENOSYS"} else got)
"""
_PROC = """
agent = os.getppid()
said("mem", opens(f"/proc/{agent}/mem"))
said("environ", opens(f"/proc/{agent}/environ"))
said("maps", opens(f"/proc/{agent}/maps"))
said("auxv", opens(f"/proc/{agent}/auxv"))
"""
_KILL = """
for number in (9, 19, 15, 2, 1, 3, 6, 11, 10, 17, 34):
    for pid in {1, os.getppid()}:
        tried(os.kill, pid, number)
        fd = tried(os.pidfd_open, pid)
        if isinstance(fd, int):
            tried(signal.pidfd_send_signal, fd, number)
            os.close(fd)
"""

# The limits are read, the rest is set to what nearly every process has.
_CRIPPLE = """
agent = os.getppid()
said("limits", call("prlimit64", agent, 7, 0, ctypes.create_string_buffer(16)))
said("limits, high bits", call("prlimit64", 1 << 32 | agent, 7, 0, ctypes.create_string_buffer(16)))
said("priority", call("setpriority", 0, agent, os.getpriority(os.PRIO_PROCESS, 0)))
said("io priority", call("ioprio_set", 1, agent, 0))
said("scheduler", call("sched_setscheduler", agent, 0, struct.pack("=i", 0)))
said("processors", tried(os.sched_setaffinity, agent, os.sched_getaffinity(0)))
"""


def _judge_forge(seen: AttackOutcome) -> Judged:
    early = unfinished(seen)
    if early is not None:
        return early
    end = seen.result
    told = (end.exit_code, end.cause.code)
    whole = _FORGED in end.stdout and _FORGED in end.stderr
    if told == (_STATUS, CauseCode.EXITED) and whole:
        return Verdict.STOPPED, "its frames are output, its end is what it was"
    return Verdict.THROUGH, f"exit code {end.exit_code}, {end.cause.code}, was believed"


def _judge_kill(seen: AttackOutcome) -> Judged:
    """Another command is run after this one by the runner's ``alive``: here it is what it said."""
    return unfinished(seen) or (Verdict.STOPPED, "they go on")


_HELD = by("descriptors", "descriptors", "descriptors")
_OWN_AGENT = "whoever takes over the machine's agent is still in the machine"
ATTACKS = (
    Attack(
        "hold a descriptor of the agent or the host",
        _DESCRIPTORS,
        _HELD,
        said_only({"[]"}, "it holds 0, 1 and 2 alone"),
    ),
    Attack("forge the agent's answers", _FORGE, _HELD, _judge_forge),
    Attack(
        "trace the agent, take its descriptors",
        _REACH,
        by("seccomp agent_protected user", "agent_protected", ""),
        otherwise=_OWN_AGENT,
    ),
    Attack(
        "read the agent's memory in /proc",
        _PROC,
        by("landlock agent_protected user", "agent_protected", ""),
        otherwise=_OWN_AGENT,
    ),
    Attack("limit and slow down the agent", _CRIPPLE, FILTERED, otherwise=_OWN_AGENT),
    Attack(
        "kill the agent and PID 1",
        _KILL,
        by("", "pid_namespace", "virtual_machine", userspace_kernel=False),
        _judge_kill,
        otherwise="without a pid namespace a command can end its own agent, and so its sandbox",
        fresh=True,
    ),
)
