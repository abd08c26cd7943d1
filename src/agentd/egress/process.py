"""One relay's process as its host sees it, or one terminator's: started, told things, ended for
sure."""

import contextlib
import io
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from agentd.egress.mark import MARK_BYTES
from agentd.egress.rows import MAX_MESSAGE  # a table has to fit
from agentd.linux import privileges, python, rights
from agentd.model.errors import InvalidInput, SandboxError

MODULE = "agentd.egress.relay.main"
_SEND_SECONDS = 20.0
_END_SECONDS, _REST_SECONDS = 1.0, 0.05
_KILLED = os.CLD_KILLED, signal.SIGKILL  # and not exit code 9
_NOBODY = 65534


class RelayUser(Protocol):
    """A user id that is one relay's."""

    id: int

    def release(self) -> None:
        """Note that no process has it any more."""


TakeUser = Callable[[], RelayUser | None]


class RelayProcess:
    """Thread-compatible; a terminator's, too. It parses what hostile ends send, so nothing it says
    is believed without a look, and it is killed rather than waited for."""

    def __init__(
        self,
        take: TakeUser | None,
        module: str | None = None,
        libraries: Sequence[str] = (),
        first: Mapping[str, Any] | None = None,
    ) -> None:
        """Return at once; it says later that it is ready. ``first`` is told it beside its user.
        Without a ``module`` it is a relay's. Raises SandboxError."""
        self._user: RelayUser | None = None
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(_SEND_SECONDS)
        self._mark, self._killed = -1, False
        try:
            self._mark = os.memfd_create("agentd-mark", os.MFD_CLOEXEC)
            os.ftruncate(self._mark, MARK_BYTES)
            self.pid = python.start(module or MODULE, (theirs.fileno(), self._mark), libraries)
            self._pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            self.control.close()
            if self._mark >= 0:
                os.close(self._mark)
            raise SandboxError("the network relay cannot be started", cause=str(error)) from error
        finally:
            theirs.close()
        if take is not None:
            with contextlib.suppress(SandboxError):  # none is left: it is nobody then
                self._user = take()
        try:
            user = _nobody() if self._user is None else self._user.id
            self.send(pack({**(first or {}), "user": user}))
        except BaseException:
            self.close()
            raise

    def send(self, data: bytes, sockets: Sequence[socket.socket | io.FileIO] = ()) -> None:
        """Send it. Raises SandboxError where it is gone or takes nothing: it is ended then."""
        fds, until = [sock.fileno() for sock in sockets], time.monotonic() + _SEND_SECONDS
        try:
            while not self._takes(data, fds, until):
                time.sleep(_REST_SECONDS)
        except OSError as error:
            self.kill(gone=isinstance(error, (BrokenPipeError, ConnectionResetError)))
            raise SandboxError("the network relay takes no messages", cause=str(error)) from error

    def _takes(self, data: bytes, fds: Sequence[int], until: float) -> bool:
        """Send it; False where there is no room for it just now. Raises OSError."""
        try:
            socket.send_fds(self.control, [data], fds)
        except OSError as error:
            if error.errno not in rights.NO_ROOM or time.monotonic() > until:
                raise
            return False
        return True

    def listen(
        self, hear: Callable[[dict[str, Any]], None], look: Callable[[], None], seconds: float
    ) -> str:
        """Hand what it says to ``hear`` until it is gone, and ``look`` every so many seconds,
        however much it says. Return what was wrong with that, if anything: it ends no thread of
        ours, and whoever says it is to be ended."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        due = time.monotonic() + seconds
        while True:
            try:
                said = poll.poll(max(due - time.monotonic(), 0) * 1000)
                if time.monotonic() >= due:
                    look()
                    due = time.monotonic() + seconds
                if not said:
                    continue
                data = self.control.recv(MAX_MESSAGE)
                if not data:
                    return ""
                message = json.loads(data)
                if not isinstance(message, dict):
                    raise ValueError("no object")
                hear(message)
            except Exception as error:
                return f"{type(error).__name__}: {error}"

    def worked_for(self) -> int:
        """Return the sandbox for which it did something when it ended; 0: nobody, or it says so.

        Where another killed it, as the kernel does that is out of memory, it is nobody: what each
        sandbox can have it hold is bounded, and whoever it worked for just then did nothing."""
        if self._was_killed():
            return 0
        # Not as memory: who has the file could make it shorter.
        return int.from_bytes(os.pread(self._mark, MARK_BYTES, 0), sys.byteorder)

    def _was_killed(self) -> bool:
        """Return whether somebody else's SIGKILL ended it. One that has not ended is waited for a
        little: it may have closed its end of the socket alone."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if self._killed or not poll.poll(_END_SECONDS * 1000):
            return False
        with contextlib.suppress(ChildProcessError):  # it was somebody else's to collect
            ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
            return ended is not None and (ended.si_code, ended.si_status) == _KILLED
        return False

    def shut(self) -> None:
        """End it: whoever receives sees that."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)

    def kill(self, *, gone: bool = False) -> None:
        """Kill it, whatever it does; ``gone``: it seems to have ended before, not by our doing."""
        self._killed = self._killed or not gone
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def abandon(self) -> None:
        """Let go of it in a process that did not start it, and which it is to outlive."""
        self.control.close()
        os.close(self._pidfd)
        os.close(self._mark)

    def close(self) -> None:
        """Wait until it has ended, and its id is nobody's."""
        self.control.close()
        self.kill()
        with contextlib.suppress(ChildProcessError):  # it was somebody else's to collect
            os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        os.close(self._mark)
        user, self._user = self._user, None
        if user is not None:
            user.release()


def pack(message: Mapping[str, Any]) -> bytes:
    """Write a message. Raises InvalidInput where it is too large."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE:
        raise InvalidInput(
            f"the network's rules take {len(data)} bytes, over {MAX_MESSAGE}",
            remediation="use fewer, or wildcards, as *.example.com",
        )
    return data


def _nobody() -> int | None:
    """Nobody's id, where we are root that may become another; else None: it stays as we are."""
    if os.geteuid() != 0 or privileges.no_users(_NOBODY, _NOBODY + 1):
        return None
    return _NOBODY
