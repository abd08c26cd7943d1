"""A command in a sandbox, driven from one thread, and written to from any: a poll loop around
``core.Command``."""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from agentd.guest import wire
from agentd.model.control import check_signal, check_window
from agentd.model.errors import AgentdError, BackendLost, GuestError, InvalidInput
from agentd.model.result import CauseCode, Exit
from agentd.model.running import Stepped
from agentd.transport.connection import V2Connection, encode_request, milliseconds
from agentd.transport.events import Chunk, CommandChannel, LostOutput, limit_exit
from agentd.transport.own_time import OwnTime
from agentd.transport.pipes import Feed, Late, Pipes

# Seconds that the agent has to end a command after its time, before its connection is dropped.
GRACE = 2.0
# How a command ends that was made to: what it left behind is not waited for.
_ENDED = frozenset(
    {CauseCode.TIMEOUT, CauseCode.OUTPUT_LIMIT, CauseCode.CANCELLED, CauseCode.SPAWN_FAILED}
)
# Output read ahead of the caller, and stdin taken from it ahead of the command.
MAX_QUEUE = 1 << 20
MAX_BACKLOG = 1 << 20
# Pieces of output ahead of the caller, where they have no bytes that credit would bound.
MAX_CHUNKS = 1 << 16
_PIECE = 64 << 10


class StreamCommand(Stepped):
    """Owns the connection until the command has ended, then gives it back, or drops it.

    ``capture`` keeps at most so many bytes a stream in ``stdout`` and ``stderr`` instead of
    yielding them. ``limit`` is the output limit of a stream, held here whatever the agent does.
    """

    def __init__(
        self,
        connection: V2Connection,
        command: CommandChannel,
        pipes: Pipes | None,
        give_back: Callable[[V2Connection], None],
        *,
        answer_by: float,
        own_time: OwnTime,
        stdin: bool = False,
        capture: bool = False,
        limit: int | None = None,
    ) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._connection: V2Connection | None = connection
        self._command = command
        self._pipes = pipes
        self._give_back = give_back
        self._capture = capture
        self._limit = limit
        self._seen = {"stdout": 0, "stderr": 0}
        self._queue: deque[Chunk] = deque()
        self._queued = 0
        self._outgoing = bytearray()
        # Of stdin and ``_outgoing``: who writes and signals may be another thread than who reads.
        self._sending = threading.RLock()
        self._feed = Feed()
        self._stdin_open = stdin
        self._answer_by: float | None = answer_by
        timeout = command.request.timeout if command.request else None
        self._own_time = own_time  # of ``_end_by``
        self._end_by = None if timeout is None else own_time.now() + timeout + GRACE
        self._imposed = CauseCode.TIMEOUT
        self._overflowed = False
        self._late: Late | None = None
        self.exit: Exit | None = None  # until its output is here as well
        self._error: AgentdError | None = None

    @property
    def pid(self) -> int | None:
        """The process id inside, once it has started."""
        return self._command.pid

    @property
    def cursor(self) -> tuple[int, int] | None:
        """Where an attached command's output began: bytes of stdout and stderr before it."""
        return self._command.cursor

    @property
    def truncated(self) -> bool:
        return self._command.truncated

    @property
    def backlog(self) -> int:
        """Bytes given to ``write`` that the command has not taken yet."""
        return self._feed.size

    def step(
        self, timeout: float | None = None, extra_fds: Sequence[int] = ()
    ) -> tuple[list[Chunk], list[int]]:
        """Wait for one round of output, of the end or of ``extra_fds`` being readable.

        Returns the chunks and the ready descriptors; both empty after ``timeout`` seconds, on
        the end, or where there was only protocol traffic. Raises BackendLost, GuestError and,
        for a refused request, OperationFailed.
        """
        ready: list[int] = []
        if not self._queue and (self.exit is None or extra_fds):
            ready = self._pump(timeout, extra_fds)
        chunks = list(self._queue)
        self._queue.clear()
        if self._queued:
            self._consumed(self._queued)
            self._queued = 0
        return chunks, ready

    def wait(self, timeout: float | None = None) -> Exit:
        """Wait for the end and return it; what is not captured is dropped. Raises TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.exit is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"the command has not ended within {timeout} s")
            self.step(left)
        return self.exit

    def write(self, data: bytes) -> None:
        """Queue it for stdin; wait while over 1 MiB is queued, unless its output must be read.

        What a command has not read when it ends is dropped.
        """
        if not self._stdin_open:
            raise InvalidInput(
                "stdin is not open",
                remediation="start the command with stdin, by REST with stdin_open",
            )
        with self._sending:
            self._feed.add(data)
        self._flush()
        while self._feed.size > MAX_BACKLOG and self.exit is None and not self._queue:
            self._pump(None, ())

    def feed_all(self, data: bytes) -> None:
        """Queue all of stdin and its end; ``wait`` sends it."""
        with self._sending:
            self._feed.add(data)
        self.close_stdin()

    def close_stdin(self) -> None:
        """Send end of file, after what was written."""
        with self._sending:
            self._stdin_open = False
            self._feed.ended = True
        self._flush()

    def signal(self, number: int, target: str = "group") -> None:
        """Signal the command's process group, or everything in the sandbox."""
        if check_signal(number, target):
            self._control({"op": "signal", "signal": int(number), "target": target})

    def resize(self, rows: int, cols: int) -> None:
        check_window(rows, cols)
        self._control({"op": "resize", "rows": rows, "cols": cols})

    def kill(self) -> None:
        """Kill its process group; the end comes by ``wait``, in ``GRACE`` seconds at the latest."""
        self._impose(CauseCode.CANCELLED)

    def close(self) -> None:
        """Free everything; a command that has not ended is killed by the connection's end."""
        pipes, self._pipes = self._pipes, None
        if pipes is not None:
            pipes.close()
        self._feed.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            self._error = self._error or BackendLost("the command's connection was closed")

    # -- the loop ---------------------------------------------------------------------------

    def _pump(self, timeout: float | None, extra_fds: Sequence[int]) -> list[int]:
        """Do one round of poll and its I/O; return the ready ones of ``extra_fds``."""
        if self._error is not None:
            raise self._error
        until = None if timeout is None else time.monotonic() + timeout
        late = self._late
        left = None if self._end_by is None else self._end_by - self._own_time.now()
        end_by = None if left is None else time.monotonic() + left
        dues = (self._answer_by, end_by, until) if late is None else (late.due, until)
        due = min([d for d in dues if d is not None], default=None)
        poller = select.poll()
        connection = self._connection
        if connection is not None:
            if late is None:
                outgoing = select.POLLOUT if self._outgoing else 0
                poller.register(connection, select.POLLIN | outgoing)
            if self._pipes is not None:
                # A caller knows the pid before it sees output, though the pipes may be the faster.
                # The ``started`` of a short command comes with its end. To be woken by its pipes
                # before that would only keep the agent from a core; ``_all_read`` takes what is in
                # them.
                has_begun = self._command.pid is not None
                wants_output = has_begun and (self._capture or self._queued < MAX_QUEUE)
                self._pipes.register(poller, wants_output, self._feed.size > 0)
        for fd in extra_fds:
            poller.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poller.poll(milliseconds(due))]
        try:
            self._serve(ready)
        except AgentdError as error:
            self._error = error
            self.close()
            raise
        return [fd for fd in ready if fd in extra_fds]

    def _serve(self, ready: list[int]) -> None:
        connection, pipes = self._connection, self._pipes
        if connection is None:
            return
        if pipes is not None:
            # The pipes first: what was written before the end comes out before it.
            for fd in ready:
                name = pipes.outputs.get(fd)
                if name is not None and (data := pipes.read(fd)):
                    self._take(name, data)
        if self._late is None and connection.fileno() in ready:
            for frame in connection.receive():
                chunk = self._command.receive(frame)
                if chunk is not None and not self._take(*chunk):
                    self._consumed(len(chunk[1]))
        if self._command.pid is not None:
            self._answer_by = None
        end = self._command.exit
        if end is not None:
            if self._all_read(end):
                self._finish(connection, end)
            return
        self._flush()
        self._expire()

    def _take(self, name: str, data: bytes) -> bool:
        """Keep a chunk for the caller: whether its credit waits for the caller to take it."""
        if self._limit is not None:
            room = self._limit - self._seen[name]
            if len(data) > room:
                data = data[:room]
                self._command.truncated = self._overflowed = True
                self._impose(CauseCode.OUTPUT_LIMIT)
            self._seen[name] += len(data)
        if self._capture:
            kept = self.stdout if name == "stdout" else self.stderr
            kept += data
            return False
        if isinstance(data, LostOutput) and len(self._queue) >= MAX_CHUNKS:
            raise GuestError("the agent told of more lost output than there can be")
        if data or isinstance(data, LostOutput):
            self._queue.append((name, data))
            self._queued += len(data)
        return bool(data)

    def _take_all(self, chunks: Iterable[Chunk]) -> None:
        for name, data in chunks:
            self._take(name, data)

    def _consumed(self, amount: int) -> None:
        if self._pipes is None and self.exit is None:
            with self._sending:
                self._outgoing += self._command.channel.consumed(amount)
            self._flush()

    def _impose(self, cause: CauseCode) -> None:
        if self._late is not None:
            self._late.stop()
        if self._command.exit is not None or self._imposed is not CauseCode.TIMEOUT:
            return
        self._imposed = cause
        # Also while it is paused: nobody waits for that.
        left = GRACE if self._end_by is None else self._end_by - self._own_time.now()
        self._own_time = OwnTime()
        self._end_by = self._own_time.now() + min(left, GRACE)
        if self._command.request is None:
            self.signal(9)  # cancel on an attached channel would only end the watching
        else:
            self._control({"op": "cancel"})

    def _expire(self) -> None:
        now = time.monotonic()
        if self._end_by is not None and self._own_time.now() >= self._end_by:
            self.exit = self._command.exit = limit_exit(self._imposed, self._command.asked)
            if self._pipes is not None:
                self._take_all(self._pipes.rest())
            self.close()
        elif self._answer_by is not None and now >= self._answer_by:
            raise GuestError("the agent did not answer a request in time")

    def _all_read(self, end: Exit) -> bool:
        """Return whether what it wrote is here, and what those wrote that it has left behind."""
        pipes, late = self._pipes, self._late
        if pipes is None:
            return True
        if late is None:
            if pipes.stdin is not None:
                pipes.close_stdin()
                self._feed.clear()
            self._take_all(pipes.at_exit())
            if not pipes.outputs:
                return True
            self._late = late = Late(pipes)
            if end.cause.code in _ENDED:
                late.stop()
        if not late.over():
            return False
        if pipes.outputs:
            self._take_all(pipes.rest())
            self._command.truncated = self._command.truncated or late.cut()
        return True

    def _finish(self, connection: V2Connection, end: Exit) -> None:
        if self._overflowed:
            cause = limit_exit(CauseCode.OUTPUT_LIMIT, self._command.asked).cause
            end = Exit(end.exit_code, end.signal, cause, end.usage)
        self.exit = self._command.exit = end
        with self._sending:
            if self._outgoing:
                self._outgoing = self._outgoing[connection.send_some(self._outgoing) :]
            if not self._outgoing:
                self._connection = None
                self._give_back(connection)
        self.close()

    # -- stdin and controls -----------------------------------------------------------------

    def _control(self, fields: dict[str, Any]) -> None:
        if self.exit is not None:
            return
        with self._sending:
            if len(self._outgoing) > MAX_BACKLOG:
                raise GuestError("the agent does not read its requests")
            self._outgoing += encode_request(wire.CONTROL, self._command.channel.number, fields)
        self._flush()

    def _flush(self) -> None:
        """Send what can be sent without waiting."""
        with self._sending:
            self._send_some()

    def _send_some(self) -> None:
        connection, pipes = self._connection, self._pipes  # whoever closes it meanwhile
        if connection is None:
            self._feed.clear()  # nobody reads it any more
            return
        if pipes is not None:
            self._flush_pipe(pipes)
        else:
            self._frame_stdin()
        if self._outgoing:
            try:
                del self._outgoing[: connection.send_some(self._outgoing)]
            except BackendLost:
                # What it said before it closed is still to be read, and says more.
                self._outgoing.clear()

    def _flush_pipe(self, pipes: Pipes) -> None:
        while self._feed.size and pipes.stdin is not None:
            try:
                self._feed.drop(os.write(pipes.stdin, self._feed.head(_PIECE)))
            except BlockingIOError:
                return
            except BrokenPipeError:
                pipes.close_stdin()
        if pipes.stdin is None:
            self._feed.clear()  # nobody reads it any more
        if self._feed.ended:
            pipes.close_stdin()

    def _frame_stdin(self) -> None:
        channel = self._command.channel
        while self._feed.size and channel.send_credit and len(self._outgoing) < MAX_BACKLOG:
            piece = self._feed.head(min(_PIECE, channel.send_credit))
            self._outgoing += channel.data(wire.STDIN, piece)
            self._feed.drop(len(piece))
        if self._feed.ended and not self._feed.size:
            self._feed.ended = False
            self._outgoing += wire.encode(wire.STDIN_EOF, channel.number)
