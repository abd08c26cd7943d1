"""The agent's EVENT payloads as types, what they mean to a caller, and a command on a channel, sans
I/O: frames in; output, a pid and an end out."""

import errno
import json
import math
import signal
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from agentd.guest import wire
from agentd.model import typed
from agentd.model.errors import GuestError, OperationFailed
from agentd.model.result import REMEDIATION, Cause, CauseCode, Exit, Usage
from agentd.model.spec import ExecRequest
from agentd.transport.connection import Channel, Frame
from agentd.transport.text import kernel_text, safe_text

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Errno = Annotated[int, msgspec.Meta(ge=0, le=4095)]
Pid = Annotated[int, msgspec.Meta(ge=1, le=1 << 22)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
ExitCode = Annotated[int, msgspec.Meta(ge=0, le=255)]
SignalNumber = Annotated[int, msgspec.Meta(ge=1, le=64)]
AgentCause = Literal[
    "exited",
    "signalled",
    "timeout",
    "output_limit",
    "disk_full",
    "oom",
    "pids_limit",
    "seccomp_violation",
    "cancelled",
]


class Started(msgspec.Struct, tag="started", tag_field="event"):
    pid: Pid


class StartFailed(msgspec.Struct, tag="failed", tag_field="event"):
    errno: Errno
    stage: str = ""
    message: str = ""
    detail: str = ""


class AgentUsage(msgspec.Struct):
    wall_ms: Milliseconds = 0.0
    cpu_ms: Milliseconds = 0.0
    peak_memory_bytes: Count = 0


class Exited(msgspec.Struct, tag="exited", tag_field="event"):
    code: ExitCode | None
    signal: SignalNumber | None
    cause: AgentCause
    usage: AgentUsage = msgspec.field(default_factory=AgentUsage)
    truncated: bool = False


class Cursor(msgspec.Struct):
    stdout: Count = 0
    stderr: Count = 0


class Attached(msgspec.Struct, tag="attached", tag_field="event"):
    pid: Pid
    cursor: Cursor = msgspec.field(default_factory=Cursor)


class Dropped(msgspec.Struct, tag="dropped", tag_field="event"):
    """Output that the agent's ring no longer had when we came to it."""

    stream: Literal["stdout", "stderr"]
    bytes: Count


class Error(msgspec.Struct, tag="error", tag_field="event"):
    errno: Errno = 0
    message: str = ""


class ProcessInfo(msgspec.Struct, frozen=True):
    """A command that the agent knows; ``stdout_bytes`` is where its output stream stands."""

    pid: Pid
    argv: tuple[str, ...] = ()
    state: Literal["running", "exited"] = "running"
    tag: str | None = None
    code: int | None = None
    signal: int | None = None
    cause: str | None = None
    stdout_bytes: Count = 0
    stderr_bytes: Count = 0


ExecEvent = Started | Attached | StartFailed | Dropped | Exited | Error
EXEC = typed.decoder(ExecEvent)
_ANY = typed.decoder(dict[str, Any])
T = TypeVar("T")


def decode(decoder: "msgspec.json.Decoder[T]", payload: bytes) -> T:
    """Decode an event. Raises GuestError for anything but the decoder's type."""
    try:
        return decoder.decode(payload)
    except (ValueError, RecursionError) as error:
        if "surrogate" not in str(error):
            raise _malformed(error) from None
    # A name that is not UTF-8: json keeps its lone surrogates, msgspec refuses them.
    try:
        return typed.convert(_JSON.decode(payload.decode()), decoder.type)
    except (ValueError, RecursionError) as error:
        raise _malformed(error) from None


def _number(text: str) -> float:
    """Raises ValueError for what JSON, or a float, has no number for: as msgspec."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number that can be told")
    return value


_JSON = json.JSONDecoder(parse_float=_number, parse_constant=_number)


def decode_any(payload: bytes) -> dict[str, Any]:
    """Return an event as it is. Raises GuestError unless it is an object that names its event."""
    value = decode(_ANY, payload)
    if not isinstance(value.get("event"), str):
        raise GuestError("the agent sent an event without a name")
    return value


def _malformed(error: Exception) -> GuestError:
    return GuestError("the agent sent a malformed event", cause=safe_text(str(error)))


def failure(event: Error, what: str) -> OperationFailed:
    """Return the agent's refusal of ``what`` as an exception."""
    return OperationFailed(f"{what}: {kernel_text(event.errno, event.message)}", errno=event.errno)


# What the kernel says where a limit lets no further process be: no name or path is to blame.
_WANTING = {errno.EAGAIN: CauseCode.PIDS_LIMIT, errno.ENOMEM: CauseCode.OOM}


_MAX_DETAIL = 1000
_NAME_MAX = 255  # of a file, in bytes
# What the agent says of an interpreter, a loader, or where a link leads.
_GONE = "does not exist in the sandbox"
_NO_FOLDER = "name a directory of the sandbox as the working directory, or make it first: mkdir -p"
_CLOSED = (
    "its modes keep the command's user out: let others in (chmod a+x), also of a folder that is "
    "mounted there, or name another working directory"
)
_FILE = "name a directory of the sandbox as the working directory: that is a file"
_FOLDERS = {errno.EACCES: _CLOSED, errno.ENOTDIR: _FILE}
_MOUNT = "show the folder that has it at its own path: --mount DIR:DIR"
_INTERPRETER = "name what runs it: sh FILE; or make #!/bin/sh, say, its first line"
_TOO_LONG = (
    "send what is long by stdin or a file: an argument or a variable may have 128 KiB, and all of "
    "them together a quarter of the stack's limit, 2 MiB mostly"
)
_NO_TERMINAL = "run it without a terminal, or behind a wall that has them: --isolation namespace"


def spawn_exit(
    event: StartFailed, request: ExecRequest, elsewhere: Callable[[str], str] | None = None
) -> Exit:
    """Return an end with exit code 127 where something was not found, else 126, as shells have it.

    ``elsewhere`` says of a name that was not found how it could be.
    """
    subject = request.cwd if event.stage == "cwd" and request.cwd else request.argv[0]
    subject = safe_text(subject, _MAX_DETAIL)
    text = kernel_text(event.errno, event.message)
    if event.detail:
        text = f"{text}, as {safe_text(event.detail, _MAX_DETAIL)}"
    message = f"{subject}: {text} (stage {safe_text(event.stage, 20) or 'unknown'})"
    cause = Cause.of(CauseCode.SPAWN_FAILED, message)
    wanting = _WANTING.get(event.errno)
    remediation = REMEDIATION[wanting] if wanting is not None else ""
    if event.stage == "cwd":
        remediation = remediation or _FOLDERS.get(event.errno, _NO_FOLDER)
    if event.stage == "pty" and event.errno in (errno.EACCES, errno.ENOENT):
        remediation = _NO_TERMINAL
    # Of an argument gVisor says what others say of a name.
    if event.stage == "exec" and (
        event.errno == errno.E2BIG
        or (event.errno == errno.ENAMETOOLONG and len(request.argv[0]) <= _NAME_MAX)
    ):
        remediation = _TOO_LONG
    if event.stage == "exec" and event.errno == errno.ENOEXEC and "interpreter" in event.detail:
        remediation = _INTERPRETER
    if event.stage == "exec" and event.errno == errno.ENOENT:
        if _GONE in event.detail:
            remediation = _MOUNT
        elif elsewhere is not None and "/" not in request.argv[0]:
            remediation = elsewhere(request.argv[0])
    if remediation:
        cause = msgspec.structs.replace(cause, remediation=remediation)
    return Exit(127 if event.errno == 2 else 126, None, cause)


def command_exit(event: Exited, request: ExecRequest | None) -> Exit:
    if event.cause == "exited" and event.code is None:
        raise GuestError("the agent sent an exit without an exit code")
    code = CauseCode(event.cause)
    usage = event.usage
    return Exit(
        event.code,
        event.signal,
        Cause.of(code, _message(code, event.code, event.signal, request)),
        Usage(usage.wall_ms, usage.cpu_ms, usage.peak_memory_bytes),
    )


def limit_exit(code: CauseCode, request: ExecRequest | None) -> Exit:
    """Return an end that the host imposed: how the command itself ended is not known."""
    return Exit(None, None, Cause.of(code, _message(code, None, None, request)))


def _message(
    code: CauseCode, status: int | None, number: int | None, request: ExecRequest | None
) -> str:
    match code:
        case CauseCode.EXITED:
            return f"exited with code {status}"
        case CauseCode.SIGNALLED:
            return f"killed by {signal_name(number)}" if number else "killed by a signal"
        case CauseCode.TIMEOUT if number == signal.SIGXCPU and request and request.limits:
            return f"used more than {request.limits.cpu} s of CPU time"
        case CauseCode.TIMEOUT if request and request.timeout is not None:
            return f"ran longer than {request.timeout:g} s"
        case CauseCode.OUTPUT_LIMIT if request and request.output_limit is not None:
            return f"wrote more than {request.output_limit} bytes to a stream"
    return _WORDS[code]


def signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


_WORDS = {
    CauseCode.TIMEOUT: "ran longer than its time limit",
    CauseCode.OUTPUT_LIMIT: "wrote more than its output limit",
    CauseCode.OOM: "the sandbox ran out of memory",
    CauseCode.PIDS_LIMIT: "the sandbox ran into its limit of processes",
    CauseCode.DISK_FULL: "no space was left on a disk of the sandbox",
    CauseCode.SECCOMP_VIOLATION: "killed for a system call that the sandbox forbids",
    CauseCode.CANCELLED: "cancelled by the caller",
}


def processes(values: Sequence[object]) -> list[ProcessInfo]:
    """Return them typed. Raises GuestError."""
    try:
        return typed.convert(values, list[ProcessInfo])
    except (ValueError, RecursionError) as error:
        raise _malformed(error) from None


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
    """Takes a command's frames, and has its pid and end. ``passed``: the output goes past this
    stream; ``request`` is None for an attached one, of which ``asked`` is what it was started as,
    where that is known: its end names the limits."""

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
        """Return a frame's output, None where it has none. Raises GuestError for what is out of
        place, OperationFailed for a refused request."""
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
