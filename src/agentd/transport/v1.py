"""Protocol v1: one JSON line each way, no streaming. What it cannot do is refused by name."""

import codecs
import math
import select
import socket
import time
from collections.abc import Callable, Sequence

import msgspec

from agentd.model import context, typed
from agentd.model.errors import AgentdError, BackendLost, GuestError, InvalidInput, Refused
from agentd.model.limits import DEFAULTS, MIB
from agentd.model.result import Cause, CauseCode, Exit, Usage
from agentd.model.running import Stepped
from agentd.model.spec import ExecRequest
from agentd.transport.connection import milliseconds, ready, shut
from agentd.transport.text import safe_text

MAX_REQUEST = 32 * MIB
# Two outputs of 64 MiB in base64, and the rest of the object.
MAX_REPLY = 2 * (64 * MIB * 4 // 3 + 4) + MIB
GRACE = 2.0
_READ = 256 << 10
_SHORT = 64 << 10  # bytes of an answer that count for nobody
V1Result = tuple[Exit, bytes, bytes, bool]


class _Reply(msgspec.Struct):
    exit_code: int
    stdout: bytes = b""  # msgspec reads base64 into bytes
    stderr: bytes = b""
    error: str | None = None


_DECODER = typed.decoder(_Reply)


_FIX = "use a guest image with the agentd agent"


def refuse(what: str, kind: type[Refused] = Refused) -> Refused:
    return kind(f"the agent inside speaks protocol v1, which has no {what}", remediation=_FIX)


class V1Connection:
    """Owns the socket; one request at a time."""

    def __init__(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        self._socket = stream

    def run(self, request: ExecRequest, stdin: bytes | None, answer_timeout: float) -> V1Result:
        """Run a command to its end. Raises Refused, InvalidInput, BackendLost, GuestError; then it
        must be closed."""
        line = encode(request, stdin)
        start = time.monotonic()
        limit = None if request.timeout is None else start + request.timeout + GRACE
        self._send(line, start + answer_timeout)
        reply = self._receive(limit)
        if reply is None:
            self.close()
            message = f"ran longer than {request.timeout:g} s and may still run: v1 cannot end it"
            return Exit(None, None, Cause.of(CauseCode.TIMEOUT, message)), b"", b"", False
        return result(reply, request, time.monotonic() - start)

    def _send(self, line: bytes, deadline: float) -> None:
        view = memoryview(line)
        while view:
            if not ready(self._socket.fileno(), select.POLLOUT, deadline):
                raise GuestError("the agent does not read its requests")
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise BackendLost("the connection to the agent broke", cause=str(error)) from None

    def _receive(self, deadline: float | None) -> bytearray | None:
        """Return the answer's line; None when it did not come in time. A long one is read as soon
        as there is room for it in memory, with what is in it. Raises what ``context.make_room``
        does."""
        buffer, room = bytearray(), _SHORT
        while ready(self._socket.fileno(), select.POLLIN, deadline):
            try:
                data = self._socket.recv(_READ)
            except BlockingIOError:
                continue
            except OSError as error:
                raise BackendLost("the connection to the agent broke", cause=str(error)) from None
            if not data:
                raise BackendLost("the agent closed the connection before its answer")
            end = data.find(b"\n")
            if end >= 0 and end != len(data) - 1:
                raise GuestError("the agent sent more than one answer")
            buffer += data
            if len(buffer) > MAX_REPLY:
                raise GuestError(f"the agent's answer is over {MAX_REPLY} bytes")
            if end >= 0:
                return buffer
            if len(buffer) > room:
                # All at once: while it waits for more, what it has would count for nobody.
                room, began = MAX_REPLY, time.monotonic()
                context.make_room(2 * room)
                deadline = None if deadline is None else deadline + time.monotonic() - began
        return None

    def fileno(self) -> int:
        return self._socket.fileno()

    def idle(self) -> bool:
        return not ready(self.fileno(), select.POLLIN, 0.0)

    def shut(self) -> None:
        """Let whoever uses it see its end. May be called in any thread."""
        shut(self._socket)

    def close(self) -> None:
        self._socket.close()


def check(request: ExecRequest) -> None:
    """Check that v1 has what is asked. Raises Refused."""
    if request.pty is not None:
        raise refuse("terminals")
    if request.limits is not None:
        raise refuse("limits of a command")


def encode(request: ExecRequest, stdin: bytes | None) -> bytes:
    """Return the request's line. Raises Refused for what v1 lacks, InvalidInput over its bound."""
    check(request)
    try:
        text = None if stdin is None else stdin.decode()
    except UnicodeDecodeError:
        raise refuse("binary stdin") from None
    fields: dict[str, object] = {
        "command": request.argv[0],
        "args": request.argv[1:],
        "cwd": request.cwd,
        "env": request.env,
        "stdin": text,
    }
    if request.timeout is not None:
        fields["timeout_ms"] = math.ceil(request.timeout * 1000)
    try:
        line = msgspec.json.encode(fields) + b"\n"
    except UnicodeEncodeError:
        raise refuse("arguments, variables or directories that are not UTF-8") from None
    if len(line) > MAX_REQUEST:
        raise InvalidInput(f"request of {len(line)} bytes is over v1's limit of {MAX_REQUEST}")
    return line


def result(line: bytes | bytearray, request: ExecRequest, seconds: float) -> V1Result:
    """Read the agent's answer. Raises GuestError for a malformed one."""
    try:
        reply = _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        raise GuestError("the agent's answer is malformed", cause=safe_text(str(error))) from None
    limit = DEFAULTS.output if request.output_limit is None else request.output_limit
    out, err = reply.stdout[:limit], reply.stderr[:limit]
    cut = len(out) + len(err) < len(reply.stdout) + len(reply.stderr)
    cause = _cause(reply, request, seconds, cut)
    truncated = cut or cause.code is CauseCode.OUTPUT_LIMIT or _lost_late(reply)
    code = reply.exit_code if 0 <= reply.exit_code <= 255 else None
    if cause.code is CauseCode.SPAWN_FAILED:
        code = 127 if "(os error 2)" in (reply.error or "") else 126
    return Exit(code, None, cause, Usage(wall_ms=seconds * 1000)), out, err, truncated


def _cause(reply: _Reply, request: ExecRequest, seconds: float, cut: bool) -> Cause:
    error = "" if _lost_late(reply) else safe_text(reply.error or "")
    if error.startswith(("Failed to spawn", "Invalid request")):
        return Cause.of(CauseCode.SPAWN_FAILED, f"{request.argv[0]}: {error}")
    if reply.exit_code < 0 and request.timeout is not None and seconds >= request.timeout:
        return Cause.of(CauseCode.TIMEOUT, f"ran longer than {request.timeout:g} s")
    if cut or "output" in error:
        return Cause.of(CauseCode.OUTPUT_LIMIT, error or "wrote more than its output limit")
    if reply.exit_code < 0:
        return Cause.of(CauseCode.SIGNALLED, error or "killed by a signal that v1 does not name")
    return Cause.of(CauseCode.EXITED, f"exited with code {reply.exit_code}")


def _lost_late(reply: _Reply) -> bool:
    """What the command left behind went on writing after its end: that is how it ended all the
    same."""
    return (reply.error or "").startswith("output truncated")


class V1Command(Stepped):
    """A v1 command in the shape of a running one: its output comes at once, with its end.

    ``feeds``: it begins once its stdin is whole, for v1 sends that along. ``release`` is called
    instead of ``run`` where that never comes to be.
    """

    pid: int | None = None
    backlog = 0

    def __init__(
        self, run: Callable[[bytes | None], V1Result], release: Callable[[], None], *, feeds: bool
    ) -> None:
        self.truncated = False
        self.stdout = self.stderr = b""
        self._run: Callable[[bytes | None], V1Result] | None = run
        self._release = release
        self._feeds = feeds
        self._stdin = bytearray()
        self._whole = not feeds
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._refusal: AgentdError | None = None  # raised where its end is waited for
        self._exit: Exit | None = None
        self._chunks: list[tuple[str, bytes]] = []
        if not feeds:
            self._begin(run, None)

    @property
    def exit(self) -> Exit | None:
        return self._exit

    def step(
        self, timeout: float | None = None, extra_fds: Sequence[int] = ()
    ) -> tuple[list[tuple[str, bytes]], list[int]]:
        if self._refusal is not None:
            self.close()
            raise self._refusal
        if self._run is not None and self._whole:
            self._begin(self._run, bytes(self._stdin))
        elif self._run is not None:
            return [], self._idle(timeout, extra_fds)
        chunks, self._chunks = self._chunks, []
        return chunks, []

    def wait(self, timeout: float | None = None) -> Exit:
        while self._exit is None:
            self.step()
        return self._exit

    def write(self, data: bytes) -> None:
        if not self._feeds or (self._whole and self._exit is None):
            raise InvalidInput("stdin is not open", remediation="start the command with stdin")
        if self._exit is not None or self._refusal is not None:
            return  # what a command has not read when it ends is dropped
        if len(self._stdin) + len(data) > MAX_REQUEST:
            text = f"stdin is over the {MAX_REQUEST} bytes of a v1 request"
            self._refusal = InvalidInput(text, remediation=_FIX)
            self._stdin = bytearray()
            return
        self._check(data)
        self._stdin += data

    def close_stdin(self) -> None:
        if not self._whole:
            self._check(b"", final=True)
            self._whole = True

    def signal(self, number: int, target: str = "group") -> None:
        raise refuse("signals")

    def resize(self, rows: int, cols: int) -> None:
        raise refuse("terminals")

    def kill(self) -> None:
        """Do nothing: it has ended already, or has not begun."""
        if self._run is not None:
            self.close()
            cause = Cause.of(CauseCode.CANCELLED, "cancelled by the caller before it began")
            self._exit = Exit(None, None, cause)

    def close(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            self._release()

    def _begin(self, run: Callable[[bytes | None], V1Result], stdin: bytes | None) -> None:
        """Run it to its end."""
        self._run = None
        self._stdin = bytearray()
        self._exit, out, err, self.truncated = run(stdin)
        self._chunks = [(n, d) for n, d in (("stdout", out), ("stderr", err)) if d]
        self.stdout, self.stderr = out, err

    def _check(self, data: bytes, *, final: bool = False) -> None:
        try:
            self._decoder.decode(data, final)
        except UnicodeDecodeError:
            self._refusal = self._refusal or refuse("binary stdin")

    def _idle(self, timeout: float | None, extra_fds: Sequence[int]) -> list[int]:
        """Wait for its stdin: nothing of its own can happen."""
        if timeout is None and not extra_fds:
            raise refuse("streamed stdin: its end must come before the command's output")
        poller = select.poll()
        for fd in extra_fds:
            poller.register(fd, select.POLLIN)
        until = None if timeout is None else time.monotonic() + timeout
        return [fd for fd, _ in poller.poll(milliseconds(until))]
