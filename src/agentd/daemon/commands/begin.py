"""The ways to begin a command in a sandbox's agent, or to find it again."""

import contextlib
import signal
from typing import TYPE_CHECKING, Protocol

from agentd.model.errors import AgentdError
from agentd.model.spec import ExecRequest
from agentd.transport.running import NeverRan, SpawnFailed, StdinNotStreamed

if TYPE_CHECKING:
    from agentd.transport.guest import Guest
    from agentd.transport.running import Running


class Begin(Protocol):
    """``pid``: of one that has started, though the agent may not have told what follows."""

    pid: int | None
    place: tuple[int, int] | None

    def __call__(self, guest: "Guest") -> "Running": ...


class BeginStreamed:
    """Starts a command whose output and end come by a stream: it ends with the stream."""

    pid: int | None = None
    place: tuple[int, int] | None = None

    def __init__(self, request: ExecRequest, *, capture: bool = False) -> None:
        self._request = request
        self._capture = capture

    def __call__(self, guest: "Guest") -> "Running":
        try:
            return guest.start(self._request, capture=self._capture)
        except StdinNotStreamed:
            return guest.start_with_whole_stdin(self._request)


class BeginDetached:
    """Starts a command that outlives the daemon; its request's ``tag`` finds it again."""

    place: tuple[int, int] | None = None

    def __init__(self, request: ExecRequest) -> None:
        self._request = request
        self.pid: int | None = None

    def __call__(self, guest: "Guest") -> "Running":
        try:
            pid = guest.start_detached(self._request, hold=True)
        except SpawnFailed as failure:
            return NeverRan(failure.exit)
        self.pid = pid
        try:
            return guest.attach(pid, hold=True, asked=self._request)
        except BaseException:  # it is refused, and does not go on all the same
            with contextlib.suppress(AgentdError):
                guest.signal(pid, signal.SIGKILL)
            raise
