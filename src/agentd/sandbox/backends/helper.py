"""The host's end of a process of ours that makes sandboxes when it is asked to."""

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

from agentd.guest.zygote.messages import MAX_MESSAGE
from agentd.linux.paths import same_file
from agentd.model.errors import SandboxError
from agentd.sandbox.backends.cgroups import ready_to_start
from agentd.sandbox.backends.child import await_end, reap, receive, send, start_python, unsent

Message = dict[str, object]


class Helper:
    """Thread-safe. Closing it ends every sandbox that it started: the kernel sees to that."""

    #: What it is called in errors, and what is said where it could not get ready.
    who: ClassVar[str]
    unready: ClassVar[str]
    #: One that ends is seen at once: this is for what hangs, and a starved machine takes its time.
    answer_seconds: ClassVar[float] = 60.0
    #: How long it may take to end once it is closed; then it is killed.
    end_seconds: ClassVar[float] = 5.0

    def __init__(self, module: str, *others: socket.socket) -> None:
        """Start the process and return at once; the first request waits for it. It gets ``others``
        beside the socket that it is asked at. Raises SandboxError."""
        ready_to_start()
        self._lock = threading.Lock()
        self._ready = False
        self._count = 0
        self._owner = os.getpid()
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with control:
            try:
                self.pid = start_python(module, (control, *others))
            except BaseException:
                self._control.close()
                raise

    def wait_ready(self) -> None:
        """Raises SandboxError with its own words where it could not get ready."""
        with self._lock:
            self._wait_ready()

    def alive(self) -> bool:
        return not reap(self.pid)

    def _wait_ready(self) -> None:
        if self._ready:
            return
        answer, _ = receive(self._control, self.answer_seconds, self.who)
        if "error" in answer:
            raise SandboxError(self.unready, cause=str(answer["error"]))
        self._is_ready(answer)
        self._ready = True

    def _is_ready(self, answer: Message) -> None:
        """Take what its first answer says, if anything."""

    def _next_number(self) -> int:
        self._count += 1
        return self._count

    def _send(self, request: Mapping[str, object], fds: Sequence[int] = ()) -> None:
        send(self._control, dict(request), fds, self.who, MAX_MESSAGE)

    def _receive(self, sock: socket.socket, number: int) -> tuple[Message, list[int]]:
        """Wait for the answer to request ``number``: others come, too."""
        deadline = time.monotonic() + self.answer_seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            answer, fds = receive(sock, left, self.who)
            if answer.get("n") == number or ("error" in answer and answer.get("n") is None):
                return answer, fds
            self._sort(answer, fds)

    def _sort(self, answer: Message, fds: list[int]) -> None:
        """Take an answer that nobody waits for: it came too late for its request."""
        for fd in fds:
            os.close(fd)

    def _mounted(self, answer: Message, fds: list[int], path: str, source: int) -> int:
        """The detached mount of ``path`` that it made, unless that is of another file than the
        descriptor ``source``. Raises OSError where the kernel refused it, SandboxError."""
        if "error" in answer:
            code = answer.get("errno")
            if code == errno.ETOOMANYREFS:
                raise unsent(self.who, OSError(code, str(answer["error"])))
            raise OSError(code if isinstance(code, int) else 0, str(answer["error"]), path)
        if not same_file(fds[0], source):
            os.close(fds[0])
            raise OSError(errno.ESTALE, "it was replaced meanwhile", path)
        return fds[0]

    def _end(self) -> bool | None:
        """End it and with it every sandbox, and say whether it ended by itself; None in a forked
        copy of us, which lets go of it alone. Idempotent."""
        self._control.close()
        if os.getpid() != self._owner:
            return None
        if await_end(self.pid, self.end_seconds):
            return True
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        return False
