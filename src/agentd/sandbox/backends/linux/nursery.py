"""The host's end of one zygote: starts it, asks it for sandboxes, ends it."""

import array
import contextlib
import errno
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Sequence

from agentd.linux.fingerprint import fingerprint
from agentd.linux.paths import same_file
from agentd.model.errors import AgentdError, SandboxError
from agentd.sandbox.backends.child import Ended, reap, receive, start_python
from agentd.sandbox.backends.identity import SANDBOX_UID

_START_SECONDS = 20.0
_ANSWER_SECONDS = 20.0
_MODULE = "agentd.guest.zygote.main"


class Nursery:
    """Thread-safe. Closing it ends every sandbox of its zygote: the kernel sees to that."""

    def __init__(self, *, net: str, plain: dict[str, object] | None = None) -> None:
        """Starts the process and returns at once; the first request waits for it.

        ``plain`` is what most requests ask for: the zygote keeps one clone ahead for those.
        """
        self._lock = threading.Lock()
        #: Of the seccomp filter, once the zygote is ready.
        self.filter_digest = ""
        self._ready = False
        self._spare: tuple[int, socket.socket] | None = None
        self._owner = os.getpid()
        root = os.geteuid() == 0
        identity = SANDBOX_UID if root else None
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._mounts, mounts = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.pid = start_python(_MODULE, (control, mounts))
            self._send({"uid": identity, "gid": identity, "net": net, "plain": plain}, [])
        except BaseException:
            self._control.close()
            self._mounts.close()
            raise
        finally:
            control.close()
            mounts.close()

    def wait_ready(self) -> None:
        """Raises SandboxError with the zygote's own words when it could not build its root."""
        with self._lock:
            self._wait_ready()

    def spawn_spare(self, request: dict[str, object], fds: Sequence[int]) -> list[int] | None:
        """Give a plain request to the clone that waits for one: its pidfd; None without one."""
        with self._lock:
            self._collect_spare()
            spare, self._spare = self._spare, None
            if spare is None:
                return None
            pidfd, sock = spare
            with sock:
                try:
                    _send(sock, request, fds)
                except OSError:  # it died while it waited
                    os.close(pidfd)
                    return None
                except BaseException:
                    os.close(pidfd)
                    raise
            return [pidfd]

    def ask_next(self) -> None:
        """A spare was taken: the zygote clones another once nobody asks it for anything."""
        with self._lock, contextlib.suppress(Ended):  # whoever needs it says so
            self._send({"next": True}, [])

    def spawn(self, request: dict[str, object], fds: Sequence[int]) -> "Pending":
        """Send one request; its answer is taken by ``Pending.answer``, which must be called."""
        self._lock.acquire()
        try:
            self._wait_ready()
            self._send(request, fds)
        except BaseException:
            self._lock.release()
            raise
        return Pending(self)

    def clone_tree(self, path: str, source: int, *, readonly: bool) -> int:
        """A detached mount of ``path``, made with the caller's own rights. Raises OSError.

        The zygote is in a mount namespace of its own, where only a path leads to the folder:
        ``source`` is a descriptor of what is meant, and any other file is refused.
        """
        with self._lock:
            self._wait_ready()
            self._mounts.send(json.dumps({"path": path, "ro": readonly}).encode())
            answer, fds = receive(self._mounts, _ANSWER_SECONDS, "zygote")
        if "error" in answer:
            raise OSError(answer.get("errno"), str(answer["error"]), path)
        if not same_file(fds[0], source):
            os.close(fds[0])
            raise OSError(errno.ESTALE, "it was replaced meanwhile", path)
        return fds[0]

    def alive(self) -> bool:
        # A killed zygote closes its socket before it can be reaped (do_exit, kernel/exit.c).
        poll = select.poll()
        poll.register(self._control, 0)
        return not poll.poll(0) and not reap(self.pid)

    def close(self) -> None:
        """End the zygote and with it every sandbox; idempotent."""
        self._control.close()
        self._mounts.close()
        self._drop_spare()
        if os.getpid() != self._owner:
            return  # a forked copy of us: the zygote belongs to the original
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            if reap(self.pid):
                return
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _collect_spare(self) -> None:
        """Take the clone that the zygote may have sent since."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        if self._ready and poll.poll(0):
            self._keep_spare(receive(self._control, 0, "zygote")[1])

    def _keep_spare(self, fds: list[int]) -> None:
        self._drop_spare()
        self._spare = fds[0], socket.socket(fileno=fds[1])

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            os.close(spare[0])
            spare[1].close()

    def _wait_ready(self) -> None:
        if self._ready:
            return
        answer, _ = receive(self._control, _START_SECONDS, "zygote")
        if "error" in answer:
            raise SandboxError("the sandbox root could not be built", cause=str(answer["error"]))
        self.filter_digest = fingerprint(bytes.fromhex(str(answer["filter"])))
        self._ready = True

    def _send(self, request: dict[str, object], fds: Sequence[int]) -> None:
        try:
            _send(self._control, request, fds)
        except OSError as error:
            raise Ended("the zygote is gone", cause=str(error)) from error

    def _answer(self) -> list[int]:
        try:
            answer, fds = receive(self._control, _ANSWER_SECONDS, "zygote")
            if "spare" in answer:  # it was on its way when we asked
                self._keep_spare(fds)
                answer, fds = receive(self._control, _ANSWER_SECONDS, "zygote")
        finally:
            self._lock.release()
        if "error" in answer:
            raise SandboxError("the kernel refused the sandbox", cause=str(answer["error"]))
        return fds


_begun: Nursery | None = None


def begin() -> None:
    """Start a zygote that the process's first backend will adopt; returns at once."""
    global _begun  # noqa: PLW0603  (handed over before any backend exists)
    if _begun is None:
        with contextlib.suppress(AgentdError, OSError):  # said again by whoever needs it
            _begun = Nursery(net="none")


def adopt() -> Nursery | None:
    """The zygote that ``begin`` started, once."""
    global _begun
    nursery, _begun = _begun, None
    return nursery


class Pending:
    """A request on its way; holds the nursery's lock until it is answered."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery

    def answer(self) -> list[int]:
        """The pidfd, and the scratch mount of a copy-on-write sandbox. Raises SandboxError."""
        return self._nursery._answer()


def _send(sock: socket.socket, request: dict[str, object], fds: Sequence[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([json.dumps(request).encode()], rights)
