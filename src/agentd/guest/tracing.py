"""What ptrace(2) does to whoever waits for a command.

A tracer is told of all that its tracee does, its end included, in the parent's place. So a command
that asks to be traced by its parent (PTRACE_TRACEME) stops at each signal until we let it go; and
one that another process traces is not told as ended to us before that process allows it.
"""

import contextlib
import os
import signal

from agentd.linux.kernel import KERNEL

# A chain of processes, each of which is the next one's parent or tracer.
_MAX_CHAIN = 4096
# Of those that ask: each step is a read of /proc, and they may ask again and again.
_MAX_ASKED_CHAIN = 64


def let_go(pid: int, number: int) -> None:
    """Lets go a child that made us its tracer has stopped at that signal: it goes on as one that
    nobody traces. SIGTRAP is what execve(2) sends the traced alone, and is not handed on."""
    with contextlib.suppress(OSError):  # it has been killed meanwhile
        KERNEL.stop_tracing(pid, 0 if number == signal.SIGTRAP else number)


def may_see_exit(caller: int, tracee: int) -> bool:
    """Return whether ``caller`` may trace the exit of ``tracee``, which has to descend from it: a
    tracer that is older than its tracee can be in no circle, in which none would end.

    The number may be taken anew before the call goes on, but only by what is younger still.
    """
    return caller > 0 and descends(tracee, caller, _MAX_ASKED_CHAIN)


def descends(thread: int, from_: int, most: int = _MAX_CHAIN) -> bool:
    """Return whether a thread's process descends from another's, in ``most`` steps.

    A chain that is read twice was one in between: a number that ends and is taken anew in the
    middle of a walk has lost its children.
    """
    chain = _chain(thread, from_, most)
    return bool(chain) and chain == _chain(thread, from_, most)


def _chain(thread: int, from_: int, most: int) -> list[int]:
    """The process of ``thread``, its parent and so on, to the process of ``from_``; [] for none."""
    ancestor = _number(f"/proc/{from_}", b"Tgid:")
    found = [_number(f"/proc/{thread}", b"Tgid:")]
    while len(found) <= most:
        found.append(_number(f"/proc/{found[-1]}", b"PPid:"))
        if found[-1] in (0, ancestor):
            return found if found[-1] == ancestor != 0 else []
    return []


def tracers(pid: int) -> set[int]:
    """Finds the threads that keep a killed process from being gone: those that trace one of its
    threads, those that trace them, and so on; as far as they descend from us."""
    found: set[int] = set()
    waiting = [pid]
    while waiting and len(found) < _MAX_CHAIN:
        for tracer in _direct(waiting.pop()):
            if tracer not in found and tracer != pid and _is_below_us(tracer):
                found.add(tracer)
                waiting.append(tracer)
    return found


def _direct(pid: int) -> set[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return set()
    return {_number(f"/proc/{pid}/task/{thread}", b"TracerPid:") for thread in threads} - {0}


def _is_below_us(pid: int) -> bool:
    return descends(pid, os.getpid())


def _number(folder: str, name: bytes) -> int:
    try:
        with open(f"{folder}/status", "rb") as file:
            for line in file:
                if line.startswith(name):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0
