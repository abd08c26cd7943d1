"""A command on a channel, sans I/O: frames in; output, a pid and an end out."""

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentd.guest import wire
from agentd.model.errors import GuestError
from agentd.model.spec import ExecRequest
from agentd.transport.channel import Channel, Frame
from agentd.transport.events import (
    EXEC,
    Attached,
    Dropped,
    Error,
    Exited,
    StartFailed,
    command_exit,
    decode,
    failure,
    spawn_exit,
)

if TYPE_CHECKING:
    from agentd.model.result import Exit


class LostOutput(bytes):
    """No bytes, where ``length`` bytes should be: the agent's ring had dropped them."""

    length: int

    @classmethod
    def of(cls, length: int) -> "LostOutput":
        made = cls()
        made.length = length
        return made


Chunk = tuple[str, bytes]
_NAMES = {wire.STDOUT: "stdout", wire.STDERR: "stderr"}


class CommandChannel:
    """``passed``: the output goes past this stream; ``request`` is None for an attached one, of
    which ``asked`` is what it was asked as, where that is known: its end names the limits."""

    def __init__(
        self,
        channel: Channel,
        request: ExecRequest | None,
        *,
        passed: bool,
        elsewhere: Callable[[str], str] | None = None,
        asked: ExecRequest | None = None,
    ) -> None:
        self.channel = channel
        self.request = request
        self.asked = request or asked
        self.passed = passed
        self._elsewhere = elsewhere
        self.pid: int | None = None
        self.cursor: tuple[int, int] | None = None
        self.exit: Exit | None = None
        self.truncated = False
        self.refused_as_full = False  # by the agent, which starts no more at once

    def receive(self, frame: Frame) -> Chunk | None:
        """Raises GuestError for what is out of place, OperationFailed for a refused request."""
        if self.exit is not None:
            raise GuestError("the agent went on after a command's end")
        accepted = self.channel.accept(frame)
        if accepted is None:
            return None
        kind, payload = accepted
        if kind == wire.EVENT:
            return self._event(payload)
        name = _NAMES.get(kind)
        if name is None or self.passed or self.pid is None:
            raise GuestError(f"the agent sent a frame of type {kind} out of place")
        # An empty frame costs no credit: kept, they would fill the queue for ever.
        return (name, payload) if payload else None

    def _event(self, payload: bytes) -> Chunk | None:
        event = decode(EXEC, payload)
        if isinstance(event, Dropped):
            if self.cursor is None:
                raise GuestError("the agent sent an event out of place")
            return event.stream, LostOutput.of(event.bytes)
        if isinstance(event, Error):
            raise failure(event, self.request.argv[0] if self.request else "attach")
        if isinstance(event, Exited) and self.pid is not None:
            self.exit = command_exit(event, self.asked)
            self.truncated = self.truncated or event.truncated
        elif self.pid is not None or isinstance(event, Exited):
            raise GuestError("the agent sent an event out of place")
        elif isinstance(event, StartFailed):
            if self.request is None:
                raise GuestError("the agent sent an event out of place")
            self.exit = spawn_exit(event, self.request, self._elsewhere)
            self.refused_as_full = event.stage == "request" and event.errno == errno.EAGAIN
        elif isinstance(event, Attached) != (self.request is None):
            raise GuestError("the agent sent an event out of place")
        else:
            self.pid = event.pid
            if isinstance(event, Attached):
                self.cursor = event.cursor.stdout, event.cursor.stderr
        return None
