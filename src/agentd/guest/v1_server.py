"""A connection that speaks protocol v1: one request at a time, in order; docs/guest-protocol.md."""

import contextlib
import select
from collections.abc import Callable, Iterator

from agentd.guest import v1, wire
from agentd.guest.budget import FREE_LINE, FREE_OUTPUT, Budget, BudgetShare, of_machine
from agentd.guest.loop import READ
from agentd.guest.output import STDERR, STDOUT
from agentd.guest.process import ExitInfo, GuestProcess
from agentd.guest.processes import Processes
from agentd.guest.spawn_request import STDIN_NONE, STDIN_STREAM, SpawnError, SpawnRequest
from agentd.guest.stream import HostStream


class Hangup:
    """Between ``start`` and ``stop`` calls ``callback`` once when the peer of a stream is gone, not
    merely half-closed.

    Reading cannot tell the two apart, and is paused meanwhile. An epoll always reports EPOLLHUP and
    EPOLLERR (epoll_ctl(2)), and is itself readable then. A vsock whose peer is gone has neither
    (net/vmw_vsock/af_vsock.c, vsock_poll): there each change is a reason to ask the stream.
    """

    def __init__(self, stream: HostStream, callback: Callable[[], None]) -> None:
        self._stream = stream
        self._callback = callback
        self._epoll = select.epoll()
        # EPERM: a plain file, whose other side cannot go away.
        with contextlib.suppress(PermissionError):
            self._epoll.register(stream.write_fd, select.EPOLLRDHUP | select.EPOLLET)

    def start(self) -> None:
        self._stream.loop.watch(self._epoll.fileno(), READ, self._ready)

    def stop(self) -> None:
        self._stream.loop.forget(self._epoll.fileno())

    def close(self) -> None:
        if not self._epoll.closed:
            self._stream.loop.forget(self._epoll.fileno())
            self._epoll.close()

    def _ready(self, _: int) -> None:
        gone = select.EPOLLHUP | select.EPOLLERR
        if any(events & gone for _, events in self._epoll.poll(0)) or self._stream.peer_is_gone():
            self.close()
            self._callback()


class V1Server:
    """The ``StreamUser`` of a v1 stream; ``start`` it with what the handshake has read.

    Reads no further while a command runs or a reply waits to be sent, so that a client is held up
    by the kernel's buffers. When the client is gone its command's process group is killed.
    """

    def __init__(
        self,
        stream: HostStream,
        processes: Processes,
        *,
        budget: Budget | None = None,
        max_line: int = v1.MAX_LINE,
        max_output: int = v1.MAX_OUTPUT,
    ) -> None:
        """``budget`` is what all connections share; without one, it has its own."""
        budget = budget or of_machine(max_line)
        self._stream = stream
        self._processes = processes
        self._max_line = min(max_line, budget.line)
        self._lines = v1.LineBuffer(self._max_line)
        self._max_output = max_output
        self._budget = budget
        self._input, self._output = BudgetShare(budget), BudgetShare(budget)
        # Of the request that is served now.
        self._request_bytes = 0
        self._crowded_out = False
        self._process: GuestProcess | None = None
        self._request: v1.V1Request | None = None
        self._outputs: dict[int, bytearray] = {}
        self._hangup: Hangup | None = None
        # What is left of the reply being sent.
        self._reply: Iterator[bytes] | None = None
        self._eof = False
        self._done = False

    def start(self, data: bytes = b"") -> None:
        """Take the stream over. ``data`` came before; its EOF may have come, too."""
        self._stream.user = self
        self._eof = self._stream.eof
        self.on_bytes(data)

    def on_bytes(self, data: bytes) -> None:
        self._lines.feed(data)
        # Where others hold too much, a long line is as one over the limit: its rest is dropped.
        fits = self._hold_input()
        self._lines.limit = self._max_line if fits else min(FREE_LINE, self._max_line)
        self._advance()
        self._hold_input()

    def on_eof(self) -> None:
        self._eof = True
        self._advance()

    def on_drained(self) -> None:
        self._send()
        self._advance()

    def on_lost(self) -> None:
        self._done = True
        self._reply = None
        self._unwatch()
        self._lines = v1.LineBuffer(self._max_line)
        self._release()
        if self._process is not None:
            self._process.abandon()
            self._process = None

    @property
    def _busy(self) -> bool:
        return self._process is not None or self._reply is not None

    def _advance(self) -> None:
        """Serve the lines at hand, until one of them keeps us busy."""
        lines = self._lines.lines()
        while not (self._busy or self._done):
            try:
                self._serve(next(lines))
            except StopIteration:
                if not self._eof:
                    self._stream.resume()
                    return
                # At most one line is left, and then nothing.
                last = self._lines.rest()
                if not last:
                    self._end()
                    return
                self._serve(last)
        if not self._done:
            self._stream.pause()

    def _serve(self, line: bytes | None) -> None:
        try:
            if line is None:
                raise v1.InvalidRequest(self._too_long())
            if line == wire.HELLO and self._stream.restart is not None:
                rest = self._lines.rest()  # the next host need not wait for our answer
                self.on_lost()
                self._stream.restart(line + rest)
            elif line.startswith(b"{") or not v1.is_blank(line):
                self._run(v1.parse_request(line, self._budget.values), len(line))
        except v1.InvalidRequest as error:
            self._answer(-1, f"Invalid request: {error}")
        except v1.NotText:
            self._end()

    def _too_long(self) -> str:
        limit = self._lines.limit
        crowd = ", as long as other connections hold so much" if limit < self._max_line else ""
        return f"line is over the limit of {limit} bytes{crowd}"

    def _run(self, request: v1.V1Request, size: int) -> None:
        self._request = request
        self._request_bytes = size
        self._crowded_out = False
        self._outputs = {STDOUT: bytearray(), STDERR: bytearray()}
        try:
            process = self._processes.start(
                self._spawn_request(request), on_output=self._on_output, on_exit=self._on_exit
            )
        except SpawnError as error:
            self._answer(-1, v1.spawn_error(error.errno, str(error)))
            return
        self._process = process
        process.after_start(self._on_started)
        if request.stdin is not None:
            process.feed(request.stdin)
            process.feed_eof()
        if self._hangup is None:
            self._hangup = Hangup(self._stream, self._stream.abort)
        self._hangup.start()

    def _spawn_request(self, request: v1.V1Request) -> SpawnRequest:
        limits = {"output": self._max_output}
        if request.timeout_ms is not None:
            limits["wall_ms"] = request.timeout_ms
        none = request.stdin is None
        return SpawnRequest(
            [request.command, *request.args],
            cwd=request.cwd,
            env=request.env,
            stdin=STDIN_NONE if none else STDIN_STREAM,
            limits=limits,
        )

    def _on_started(self, error: SpawnError | None) -> None:
        if error is None:
            return
        self._process = None
        if self._hangup is not None:
            self._hangup.stop()
        self._answer(-1, v1.spawn_error(error.errno, str(error)))
        self._advance()

    def _on_output(self, number: int, data: bytes) -> None:
        if self._crowded_out:
            return
        size = sum(map(len, self._outputs.values())) + len(data)
        if self._output.hold(max(0, size - FREE_OUTPUT)):
            self._outputs[number] += data
            return
        self._crowded_out = True
        if self._process is not None:
            self._process.overflow()

    def _on_exit(self, info: ExitInfo) -> None:
        self._process = None
        if self._hangup is not None:
            self._hangup.stop()
        self._answer(-1 if info.code is None else info.code, self._error(info))
        self._advance()

    def _error(self, info: ExitInfo) -> str | None:
        if self._crowded_out:
            return f"output limit of {self._budget.size} bytes for all connections exceeded"
        if info.cause == "output_limit":
            return f"output limit of {self._max_output} bytes exceeded"
        if info.cause == "timeout" and self._request is not None:
            return f"time limit of {self._request.timeout_ms} ms exceeded"
        if info.truncated:
            return "output truncated: what the command left behind went on writing after its exit"
        return None

    def _answer(self, exit_code: int, error: str | None) -> None:
        self._request, self._request_bytes = None, 0
        self._hold_input()
        out, self._outputs = self._outputs, {}
        self._reply = v1.reply_pieces(exit_code, out.get(STDOUT, b""), out.get(STDERR, b""), error)
        self._send()

    def _send(self) -> None:
        """Send what fits; a client that reads slowly is served on by ``on_drained``."""
        while self._reply is not None and not self._stream.full:
            piece = next(self._reply, None)
            if piece is None:
                self._reply = None
                self._output.hold(0)
            else:
                self._stream.write(piece)

    def _hold_input(self) -> bool:
        """Return whether there is room for the lines at hand, and for the request being served."""
        return self._input.hold(max(0, len(self._lines) + self._request_bytes - FREE_LINE))

    def _release(self) -> None:
        """Nothing is held any more."""
        self._request, self._request_bytes = None, 0
        self._input.hold(0)
        self._output.hold(0)

    def _unwatch(self) -> None:
        if self._hangup is not None:
            self._hangup.close()
            self._hangup = None

    def _end(self) -> None:
        """No more requests: the stream ends once the last reply has left, however slowly."""
        self._done = True
        self._unwatch()
        # What is still to be sent is bounded by the stream.
        self._release()
        self._stream.finish(patient=True)
