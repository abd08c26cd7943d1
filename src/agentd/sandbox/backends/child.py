"""Starting agentd's own processes, and talking with them by messages."""

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from agentd.linux import python, rights
from agentd.linux.waiting import is_ready
from agentd.model.errors import InvalidInput, SandboxError
from agentd.model.system import scarce

_MAX_MESSAGE = 64 << 10
_MAX_FDS = 8
_END_POLL = 0.001
_READY_SECONDS = 30.0  # a machine may be busy
# The kernel's word where it has no memory for a seccomp filter (agentd.linux.seccomp).
_ENOTSUPP = 524
# What a mount meets in the root (agentd.guest.zygote.own_root).
_MISPLACED = (errno.ENOTDIR, errno.EISDIR)
_MORE_FILTERS = "sysctl -w net.core.bpf_jit_limit=1073741824, or end what loads many filters"


class Ended(SandboxError):
    """The process at the other end died before it answered."""


class Starved(SandboxError):
    """The kernel is out of what a message takes; both ends live."""


def start_python(module: str, sockets: Sequence[socket.socket]) -> int:
    """Calls ``agentd.linux.python.start``. Raises SandboxError."""
    try:
        return python.start(module, sockets)
    except OSError as error:
        raise SandboxError(
            f"cannot start {sys.executable}", cause=str(error), remediation=scarce(error)
        ) from error


def _silent(what: str) -> SandboxError:
    return SandboxError(
        what,
        cause="the machine is too busy, or one of the file systems that it is made of hangs",
        remediation="ps -eo pid,stat,wchan,args shows what waits: for a disk, in state D",
    )


def receive(sock: socket.socket, seconds: float, who: str) -> tuple[dict[str, object], list[int]]:
    """Receive one message and its descriptors, from our own process.

    Raises SandboxError, Ended, and Starved where what was passed along could not be taken.
    """
    if not is_ready(sock, seconds):
        raise _silent(f"the {who} gave no answer within {seconds:g} s")
    try:
        data, fds, flags = rights.receive(sock, _MAX_MESSAGE, _MAX_FDS)
    except ConnectionResetError:  # it ended before it had read all that it was sent
        raise Ended(f"the {who} ended unexpectedly") from None
    if flags & socket.MSG_CTRUNC:
        rights.close_all(fds)
        raise Starved(
            f"no descriptor is left for what the {who} passes",
            remediation="close some, or raise the limit of open files (ulimit -n)",
        )
    if not data:
        raise Ended(f"the {who} ended unexpectedly")
    return json.loads(data), fds


def send(
    sock: socket.socket, message: dict[str, object], fds: Sequence[int], who: str, most: int
) -> None:
    """Send one message of at most ``most`` bytes to our own process.

    Raises InvalidInput for a longer one, Ended where the process is gone, Starved where the kernel
    passes no descriptors on.
    """
    data = json.dumps(message).encode()
    if len(data) > most:
        raise InvalidInput(
            f"the request takes {len(data)} bytes, over {most}",
            remediation="give the sandbox less environment; write large values to a file in it",
        )
    try:
        rights.send(sock, data, fds)
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.EBADF, errno.ENOTCONN):
            raise Ended(f"the {who} is gone", cause=str(error)) from error
        raise unsent(who, error) from error


def unsent(who: str, error: OSError) -> "Starved":
    """Return what a send to a process that is alive fails of."""
    crowded = error.errno == errno.ETOOMANYREFS
    cause = "this user's processes have too many descriptors on their way" if crowded else ""
    return Starved(
        f"the {who} could not be sent a message",
        cause=cause or str(error),
        remediation="end what holds them, or raise the limit of open files (ulimit -n)"
        if crowded
        else "try again when the machine has memory and descriptors left",
    )


def misplaced(why: str) -> InvalidInput:
    """Return the error for a mount that finds something of another kind where it goes."""
    return InvalidInput(
        "a mount has no place where it was to go",
        cause=why,
        remediation="mount it elsewhere, such as at /data",
    )


class Readiness(NamedTuple):
    """The names of the controls that a new sandbox has put in force, and what it passes along: its
    network's sockets, and descriptors of its disk. The caller's to close."""

    controls: list[str]
    sockets: list[socket.socket]
    disk: list[int]


def await_ready(listener: socket.socket, seconds: float = _READY_SECONDS) -> Readiness:
    """Wait for a new sandbox's word that it is confined.

    Read before any untrusted code runs. Raises SandboxError, Ended, InvalidInput for a mount that
    finds something else where it goes.
    """
    if not is_ready(listener, seconds):
        raise _silent(f"the sandbox was not ready within {seconds:g} s")
    try:
        answer, fds = receive(listener, seconds, "sandbox")
    except Ended:
        # A connection that was reset is told once, and before what was said over it.
        try:
            answer, fds = receive(listener, 0, "sandbox")
        except SandboxError:
            raise Ended(
                "the sandbox could not be built", cause="it ended before it was ready"
            ) from None
    if "error" in answer:
        if answer.get("errno") in _MISPLACED:
            raise misplaced(str(answer["error"]))
        fix = _MORE_FILTERS if answer.get("errno") == _ENOTSUPP else ""
        raise SandboxError(
            "the sandbox could not be built", cause=str(answer["error"]), remediation=fix
        )
    controls, many = answer["controls"], answer.get("sockets")
    count = many if isinstance(many, int) else 0
    names = [str(name) for name in controls] if isinstance(controls, list) else []
    return Readiness(names, [socket.socket(fileno=fd) for fd in fds[:count]], fds[count:])


def await_end(pid: int, seconds: float) -> bool:
    """Wait for our child to end, and collect it; return whether it has ended by then."""
    deadline = time.monotonic() + seconds
    while not reap(pid):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_END_POLL)
    return True


def reap(pid: int) -> bool:
    """Return whether our child has ended; collects it. Never blocks."""
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True
