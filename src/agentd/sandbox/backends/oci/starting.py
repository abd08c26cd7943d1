"""The host's end of the launcher: asks for sandboxes, and gets their first processes."""

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from agentd.guest.zygote.messages import MAX_MESSAGE
from agentd.linux import privileges
from agentd.linux.cgroup import Group
from agentd.linux.paths import same_file
from agentd.model.errors import SandboxError
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.cgroups import ready_to_start
from agentd.sandbox.backends.child import Ended, reap, receive, send, start_python
from agentd.sandbox.backends.identity import Block

_MODULE = "agentd.sandbox.backends.oci.launcher"
_START_SECONDS = 60.0
_ANSWER_SECONDS = 60.0
_END_SECONDS = 5.0


class Contained(NamedTuple):
    """A sandbox whose first process runs, and whose agent was not heard yet."""

    pidfd: int
    disk: int  # of its scratch tmpfs
    listener: socket.socket
    block: Block | None
    group: Group | None
    detail: str  # why there is no group
    held: list[str]
    sockets: list[socket.socket]  # of a network that is restricted to rules


class Launcher:
    """Thread-safe. Closing it ends every sandbox that it started: the kernel sees to that."""

    def __init__(self) -> None:
        """Start the process and return at once; the first request waits for it."""
        ready_to_start()
        self._lock = threading.Lock()
        self._ready = False
        self._count = 0
        self._owner = os.getpid()
        #: Where its sandboxes' ids are from.
        self.ids = identity.configured()
        self._own = identity.take(self.ids) if privileges.may_mount() else None
        #: Whether each of its sandboxes has a user of its own.
        self.own_users = self._own is not None
        #: Whether mounts are made as the machine's root, by the host itself.
        self.may_mount = self.own_users
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.pid = start_python(_MODULE, (control,))
        except BaseException:
            self._control.close()
            if self._own is not None:
                self._own.release(ended=False)
            raise
        finally:
            control.close()

    def nobodys(self) -> range:
        """Ids that no process ever has: those of a block of the launcher's own."""
        return range(0) if self._own is None else range(self._own.id, self._own.id + identity.SIZE)

    def wait_ready(self) -> None:
        """Raises SandboxError with the launcher's own words when it has no namespaces."""
        with self._lock:
            self._wait_ready()

    def start(self, request: dict[str, object], fds: Sequence[int]) -> None:
        """Ask for a sandbox: the builder answers at the second descriptor. Raises SandboxError."""
        with self._lock:
            self._wait_ready()
            self._send({"op": "start", **request}, fds)

    def clone_tree(self, path: str, source: int, *, readonly: bool) -> int:
        """A detached mount of ``path``, made with the caller's own rights; ``source`` is a
        descriptor of what is meant. Raises OSError where the kernel refuses it, SandboxError."""
        with self._lock:
            self._wait_ready()
            self._count += 1
            self._send({"op": "mount", "n": self._count, "path": path, "ro": readonly}, [])
            answer, fds = receive(self._control, _ANSWER_SECONDS, "launcher")
        if "error" in answer:
            code = answer.get("errno")
            raise OSError(code if isinstance(code, int) else 0, str(answer["error"]), path)
        if not same_file(fds[0], source):
            os.close(fds[0])
            raise OSError(errno.ESTALE, "it was replaced meanwhile", path)
        return fds[0]

    def alive(self) -> bool:
        return not reap(self.pid)

    def close(self) -> None:
        """End the launcher and with it every sandbox; idempotent."""
        self._control.close()
        if os.getpid() != self._owner:
            return  # a forked copy of us: the launcher belongs to the original
        ended = self._await_end()
        if self._own is not None:
            self._own.release(ended)

    def _await_end(self) -> bool:
        """Return whether it ended by itself."""
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline:
            if reap(self.pid):
                return True
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        return False

    def _wait_ready(self) -> None:
        if self._ready:
            return
        answer, _ = receive(self._control, _START_SECONDS, "launcher")
        if "error" in answer:
            raise SandboxError(
                "no namespaces can be had for OCI runtimes", cause=str(answer["error"])
            )
        self._ready = True

    def _send(self, request: dict[str, object], fds: Sequence[int]) -> None:
        send(self._control, request, fds, "launcher", MAX_MESSAGE)


def await_started(
    answers: socket.socket, seconds: float, runtime: str
) -> tuple[list[str], list[int]]:
    """What is in force by now, and what is passed along: a pidfd of the sandbox's first process,
    its disk, and the sockets of its network; or its disk alone, before it is started.

    Raises SandboxError with the runtime's own words, Ended where the launcher was killed.
    """
    try:
        answer, fds = receive(answers, seconds, f"builder of {runtime}")
    except Ended:
        raise Ended("the sandbox could not be built", cause="its builder was killed") from None
    if "error" in answer:
        raise SandboxError(f"{runtime} could not build the sandbox", cause=str(answer["error"]))
    held = answer.get("held")
    return [str(name) for name in held] if isinstance(held, list) else [], fds
