"""One Firecracker process, seen from the host: its start in the jail, its API, its end."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

from agentd.guest.zygote.messages import MAX_MESSAGE
from agentd.linux import cgroup, dialled
from agentd.model.errors import BackendLost, SandboxError
from agentd.sandbox.backends.child import await_end, receive, send, start_python
from agentd.sandbox.backends.firecracker import exits, jailer
from agentd.sandbox.backends.firecracker.api import ApiClient, ApiError
from agentd.sandbox.backends.firecracker.config import ApiRequest
from agentd.sandbox.backends.firecracker.jailer import Jail, Root
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.vm.ending import Ending, MachineEnded
from agentd.sandbox.backends.vm.machine import MonitorProcess

_WARDEN = "agentd.sandbox.backends.firecracker.warden"
_START_SECONDS = 30.0
_API_SECONDS = 30.0
_ANSWER_SECONDS = 30.0
#: Of one request. Loading a snapshot, and pausing, which waits 30 s for the vCPUs, take longest.
REQUEST_SECONDS = 60.0
_END_SECONDS = 15.0
# For the process to end where its answer says nothing of that.
_DYING_SECONDS, _REFUSED_SECONDS = 1.0, 0.2
_POLL_SECONDS = 0.002


class FirecrackerProcess(MonitorProcess):
    """Until ``end`` everything raises MachineEnded once it has ended."""

    def __init__(
        self,
        jail: Jail,
        argv: list[str],
        binds: Mapping[str, str],
        group: cgroup.Group | None = None,
        block: Block | None = None,
        *,
        listens: str = "",
    ) -> None:
        """Returns when its API answers. ``binds`` are files of the host by their name in the jail.
        ``block`` has its user's id, and is released when it has ended. ``listens``: the name in the
        jail of a socket at which we listen, ``take_listener``.

        Raises SandboxError, and leaves nothing behind then.
        """
        super().__init__(group)
        self.jail = jail
        self._block = block
        self._owner = os.getpid()
        with contextlib.ExitStack() as undo:
            jailer.prepare(jail, binds)
            undo.callback(jailer.remove, jail)
            self._listener = jailer.listen(jail, listens, dialled.BACKLOG) if listens else None
            undo.callback(self._close_listener)
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._control.close)
            with theirs:
                self._guard = start_python(_WARDEN, (theirs,))
            undo.callback(self._end_warden)
            self.pidfd = self._started(argv, binds)
            undo.callback(os.close, self.pidfd)
            self.root = Root(jail)
            undo.callback(self.root.close)
            self.api = ApiClient(self._connect())
            undo.pop_all()

    def take_listener(self) -> socket.socket | None:
        """The caller's to close; once."""
        listener, self._listener = self._listener, None
        return listener

    def _close_listener(self) -> None:
        listener = self.take_listener()
        if listener is not None:
            listener.close()

    def perform(self, requests: Iterable[ApiRequest]) -> None:
        for request in requests:
            self.request(request)

    def request(self, request: ApiRequest, seconds: float = REQUEST_SECONDS) -> Any:
        """Raises ApiError for a refusal, MachineEnded, BackendLost where no answer came."""
        try:
            return self.api.request(*request, seconds)
        except (ApiError, BackendLost) as error:
            # A load that fails takes the process with it: the reason is in its status and log.
            lost = isinstance(error, BackendLost)
            if self.wait(_DYING_SECONDS if lost else _REFUSED_SECONDS):
                raise self.ended() from error
            if lost:
                self._dial_again()
            raise

    def _dial_again(self) -> None:
        """The connection of a request that got no answer is closed: it could come later."""
        with contextlib.suppress(SandboxError):
            self.api = ApiClient(self._connect())

    def _seen_ending(self) -> Ending:
        self._ending = exits.of_status(*self._look(), oom=self._oom())
        return self._ending

    def ended(self) -> MachineEnded:
        """Return the error to raise once it has ended."""
        return MachineEnded(self.ending())

    def _log(self) -> str:
        return self._look()[1]

    def _look(self) -> tuple[int | None, str]:
        """``(status, log)`` as its warden has them."""
        with contextlib.suppress(SandboxError, OSError):
            send(self._control, {"op": "look"}, [], "warden", MAX_MESSAGE)
            answer, _ = receive(self._control, _ANSWER_SECONDS, "warden")
            return _seen(answer)
        return None, ""

    def end(self) -> None:
        """Kill it and remove its jail; idempotent, never raises. A forked copy only lets go."""
        if self._ended:
            return
        ours = os.getpid() == self._owner
        if ours:
            if self.wait(0):
                self.ending()  # while there is somebody to ask
            self._kill()
            self.wait(_END_SECONDS)
        self._ended = True
        self._close_listener()
        self.api.close()
        self.root.close()
        os.close(self.pidfd)
        self._control.close()
        if ours:
            self._end_warden()
            jailer.remove(self.jail)  # where the guard could not: it was killed
            if self._block is not None:
                self._block.release(ended=False)

    def _started(self, argv: list[str], binds: Mapping[str, str]) -> int:
        """The pidfd of Firecracker."""
        doors: list[int] = []
        files: list[int] = []
        try:
            doors = self._group.doors() if self._group is not None else []
            files += [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in binds.values()]
            request: dict[str, object] = {
                "argv": argv,
                "folder": self.jail.folder,
                "root": self.jail.root,
                "binds": list(binds),
            }
            send(self._control, request, [*files, *doors], "warden", MAX_MESSAGE)
        except OSError as error:
            raise SandboxError("firecracker cannot be started", cause=str(error)) from error
        finally:
            for fd in (*files, *doors):
                os.close(fd)
        answer, passed = receive(self._control, _START_SECONDS, "warden")
        if "error" in answer:
            raise self._failed(answer)
        return passed[0]

    def _failed(self, answer: dict[str, object]) -> SandboxError:
        """The jailer's own words are the last that it printed."""
        found = exits.of_status(*_seen(answer), oom=self._oom())
        return SandboxError(
            f"firecracker could not be started: {answer['error']}",
            cause=found.text,
            remediation=found.fix,
        )

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + _API_SECONDS
        while True:
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                stream.connect(self.root.socket_path(jailer.API))
                return stream
            except (FileNotFoundError, ConnectionRefusedError):
                stream.close()
            except BaseException:
                stream.close()
                raise
            if self.wait(_POLL_SECONDS):
                raise self.ended()
            if time.monotonic() > deadline:
                raise BackendLost("firecracker opened no API", cause=f"within {_API_SECONDS:g} s")

    def _end_warden(self) -> None:
        """End the warden and its guard by closing our end; then the jail is gone."""
        self._control.close()
        if not await_end(self._guard, _END_SECONDS):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._guard, signal.SIGKILL)
                os.waitpid(self._guard, 0)


def _seen(answer: dict[str, object]) -> tuple[int | None, str]:
    """``(status, the end of the log)``."""
    status = answer.get("status")
    return status if isinstance(status, int) else None, str(answer.get("log", ""))
