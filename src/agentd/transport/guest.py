"""The client of one agent: commands, files, tunnels and the sandbox's own operations."""

import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from agentd.guest import wire
from agentd.model import typed
from agentd.model.control import check_signal
from agentd.model.errors import Full, GuestError, InvalidInput, SandboxError
from agentd.model.limits import DEFAULTS
from agentd.model.running import Running, SpawnFailed, StdinNotStreamed
from agentd.model.spec import ExecLimits, ExecRequest
from agentd.transport.call import AgentCall, Truly, as_it_is, telling
from agentd.transport.connection import Crowded, V2Connection, encode_request
from agentd.transport.events import (
    CommandChannel,
    Error,
    ProcessInfo,
    decode,
    decode_any,
    failure,
    processes,
)
from agentd.transport.files import GuestFiles
from agentd.transport.own_time import OwnTime
from agentd.transport.pipes import Pipes
from agentd.transport.pool import Connections
from agentd.transport.stream import StreamCommand
from agentd.transport.tunnel import Tunnel
from agentd.transport.v1 import V1Command, V1Connection, V1Result, check, refuse

ANSWER_TIMEOUT = 30.0
_ERROR = typed.decoder(Error)


class Guest:
    """Runs commands and operations in one sandbox, by its agent. Thread-safe; each operation has a
    connection of its own, and idle ones are reused.

    ``passes_descriptors``: the agent is on this kernel and ``open_stream`` gives unix sockets,
    so a command's output goes through pipes and not through the agent. ``pipe_owner`` is the user
    and group whose those are, where commands are not the caller's, and ``pipe_bytes`` what that of
    stdout holds, if not as much as usual. ``elsewhere`` says of a program that is not there what to
    do.
    """

    def __init__(
        self,
        open_stream: Callable[[], socket.socket],
        *,
        passes_descriptors: bool,
        pipe_owner: tuple[int, int] | None = None,
        pipe_bytes: int = 0,
        elsewhere: Callable[[str], str] | None = None,
        handshake_timeout: float = 10.0,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        # An agent on this kernel is agentd's own, and speaks v2 whatever its version.
        self._pool = Connections(open_stream, handshake_timeout, known=passes_descriptors)
        self._passes = passes_descriptors
        self._pipe_owner = pipe_owner
        self._pipe_bytes = pipe_bytes
        self._elsewhere = elsewhere
        self._answer_timeout = answer_timeout
        # A v1 agent was left with a command that nobody can end.
        self._overran = False
        self.files = GuestFiles(self._call)
        #: What one of our errors comes of, as far as whoever has the sandbox knows.
        self.truly: Truly = as_it_is
        #: By which commands have their time.
        self.own_time = OwnTime()

    def run(self, request: ExecRequest, *, stdin: bytes | None = None) -> V1Result:
        """Return ``(exit, stdout, stderr, truncated)``, at most ``output_limit`` bytes a stream.

        The limit is 64 MiB where the request has none. ``stdin`` None is no input. Raises
        BackendLost, GuestError, and OperationFailed for a request the agent refused.
        """
        connection = self._take(request)
        if isinstance(connection, V1Connection):
            return self._run_v1(connection, request, stdin)
        feeds = stdin is not None or request.stdin
        command = self._start(connection, request, feeds=feeds, capture=True)
        with command:
            if feeds:
                command.feed_all(stdin or b"")
            end = command.wait()
        return end, bytes(command.stdout), bytes(command.stderr), command.truncated

    def start(self, request: ExecRequest, *, capture: bool = False) -> Running:
        """Start a command to follow; ``capture`` keeps its output for ``wait``, and yields none.
        Raises StdinNotStreamed where only ``start_with_whole_stdin`` will do."""
        try:
            connection = self._take(request)
            if isinstance(connection, V1Connection):
                return self._start_v1(connection, request, whole=False)
            return self._start(connection, request, feeds=request.stdin, capture=capture)
        except SandboxError as error:  # as ``telling``, for which each command would pay
            told = self.truly(error)
            if told is error:
                raise
            raise told from error

    def start_with_whole_stdin(self, request: ExecRequest) -> Running:
        """Start one in an agent that speaks v1: it begins once its stdin has ended."""
        connection = self._take(request)
        if isinstance(connection, V1Connection):
            return self._start_v1(connection, request, whole=True)
        return self._start(connection, request, feeds=request.stdin, capture=False)

    def start_detached(self, request: ExecRequest, *, hold: bool = False) -> int:
        """Start a command that outlives this connection, and return its pid; ``attach`` has its
        output.

        ``hold``: it waits for the first of those once the agent's rings are full.

        Raises SpawnFailed, Full.
        """
        if not request.argv:
            raise InvalidInput("the command is empty", remediation="name a program")
        fields = exec_fields(request, stdin=request.stdin) | {"detach": True}
        fields |= {"hold": True} if hold else {}
        with self._call(fields) as call:
            command = CommandChannel(call.channel, request, passed=False, elsewhere=self._elsewhere)
            kind, payload = call.next()
            command.receive((kind, call.channel.number, payload))
            call.ended = True
        if command.refused_as_full:
            raise Full(
                "no more commands can be started in this sandbox at once",
                cause=command.exit.cause.message if command.exit else "",
                remediation="wait until one of them has ended, or use another sandbox",
            )
        if command.exit is not None:
            raise SpawnFailed(command.exit)
        if command.pid is None:
            raise GuestError("the agent answered a detached command without a pid")
        return command.pid

    def attach(
        self,
        command: int | str,
        cursor: tuple[int, int] = (0, 0),
        *,
        hold: bool = False,
        asked: ExecRequest | None = None,
    ) -> StreamCommand:
        """Follow a command by pid or tag, from those bytes of stdout and stderr on.

        ``hold``: it waits for us rather than have us miss anything, as long as we are there.
        ``asked``: what it was started as, so that its end names the limits.

        Leaving it does not end it; ``cursor`` says where the output really began.
        """
        key = "pid" if isinstance(command, int) else "tag"
        place = {"stdout": cursor[0], "stderr": cursor[1]}
        with telling(self.truly):
            connection = self._v2("attach", urgent=True)  # what it is to follow runs already
            try:
                core = CommandChannel(connection.open_channel(), None, passed=False, asked=asked)
                fields = {"op": "attach", key: command, "cursor": place}
                fields |= {"hold": True} if hold else {}
                deadline = time.monotonic() + self._answer_timeout
                connection.send(encode_request(wire.REQUEST, core.channel.number, fields), deadline)
            except BaseException:
                connection.close()
                raise
        return StreamCommand(
            connection,
            core,
            None,
            self._pool.give_back,
            answer_by=deadline,
            own_time=self.own_time,
            # Of one that was started elsewhere nobody knows: the agent drops what it does not read.
            stdin=asked is None or asked.stdin or asked.pty is not None,
        )

    def processes(self) -> list[ProcessInfo]:
        """List the commands that run, and detached ones that have ended."""
        value = self.call("list").get("processes")
        if not isinstance(value, list):
            raise GuestError("the agent sent a list without processes")
        return processes(value)

    def signal(self, command: int | str, number: int) -> None:
        """Signal the process group of a command, by pid or tag."""
        check_signal(number)
        key = "pid" if isinstance(command, int) else "tag"
        self.call("signal", signal=int(number), target="group", **{key: command})

    def call(self, op: str, **fields: object) -> dict[str, Any]:
        """Send one request, and return the fields of its one answer."""
        with self._call({"op": op, **fields}, urgent=True) as call:
            return _answer(call, op)

    def tell(self, op: str, **fields: object) -> None:
        """Send one request as ``call`` does, and do not wait for its answer."""
        connection = self._v2(op, urgent=True)
        try:
            channel = connection.open_channel()
            frame = encode_request(wire.REQUEST, channel.number, {"op": op, **fields})
            connection.tell(channel, frame, time.monotonic() + self._answer_timeout)
        except BaseException:
            connection.close()
            raise
        self._pool.give_back(connection)

    def tunnel(self, port: int) -> Tunnel:
        """Open a TCP connection to ``port`` on the sandbox's loopback."""
        with telling(self.truly):
            connection = self._v2("tunnels")
            try:
                return Tunnel(AgentCall(connection, self._answer_timeout), port, self.truly)
            except BaseException:
                connection.close()
                raise

    def busy(self) -> bool:
        """Return whether anything is asked of the agent now, by us."""
        return self._pool.in_use()

    def renew(self, *, lost: bool = False) -> None:
        """Let go of the streams that idle, which may be dead without a sign, and of the others once
        they are given back; at once where they are ``lost``, which their users see."""
        self._pool.renew(lost=lost)

    def close(self) -> None:
        """Close the idle connections; what is in use closes when it ends."""
        self._pool.close()

    def _take(self, request: ExecRequest) -> V2Connection | V1Connection:
        if not request.argv:
            raise InvalidInput("the command is empty", remediation="name a program")
        return self._connect()

    def _v2(self, what: str, *, urgent: bool = False) -> V2Connection:
        connection = self._connect(urgent=urgent)
        if isinstance(connection, V1Connection):
            self._pool.give_back(connection)
            raise refuse(what)
        return connection

    def _connect(self, *, urgent: bool = False) -> V2Connection | V1Connection:
        try:
            connection = self._pool.take(urgent=urgent)
        except GuestError as error:
            if not self._overran:
                raise
            raise GuestError(
                "the agent is busy: a command that ran longer than its time limit may still run",
                cause=f"protocol v1 cannot end it, and serves one after the other: {error}",
                remediation="end this sandbox, or wait for the command",
            ) from error
        self._overran = False
        return connection

    @contextmanager
    def _call(self, fields: dict[str, Any], *, urgent: bool = False) -> Iterator[AgentCall]:
        """A call on a connection of its own, reused only where the call came to its end."""
        op = str(fields["op"])
        with telling(self.truly):
            connection = self._v2("detached commands" if op == "exec" else op, urgent=urgent)
            call = AgentCall(connection, self._answer_timeout)
            try:
                call.request(fields)
                yield call
            finally:
                if call.ended and not call.pending():
                    self._pool.give_back(connection)
                else:
                    connection.close()

    def _run_v1(
        self, connection: V1Connection, request: ExecRequest, stdin: bytes | None
    ) -> V1Result:
        try:
            outcome = connection.run(request, stdin, self._answer_timeout)
        except BaseException:
            connection.close()
            raise
        if connection.fileno() >= 0:
            self._pool.give_back(connection)
        else:
            self._overran = True
        return outcome

    def _start_v1(
        self, connection: V1Connection, request: ExecRequest, *, whole: bool
    ) -> V1Command:
        try:
            check(request)
            if request.stdin and not whole:
                raise refuse("streamed stdin", StdinNotStreamed)
        except BaseException:
            self._pool.give_back(connection)
            raise
        return V1Command(
            lambda stdin: self._run_v1(connection, request, stdin),
            lambda: self._pool.give_back(connection),
            feeds=request.stdin,
        )

    def _start(
        self, connection: V2Connection, request: ExecRequest, *, feeds: bool, capture: bool
    ) -> StreamCommand:
        pipes = None
        try:
            if self._passes and request.pty is None and not connection.is_crowded:
                pipes = Pipes(feeds, self._pipe_owner, self._pipe_bytes)
            deadline = time.monotonic() + self._answer_timeout
            core = CommandChannel(
                connection.open_channel(),
                request,
                passed=pipes is not None,
                elsewhere=self._elsewhere,
            )
            fields = exec_fields(request, stdin=feeds, fds=pipes.names if pipes else ())
            frame = encode_request(wire.REQUEST, core.channel.number, fields)
            connection.send(frame, deadline, pipes.theirs if pipes else ())
            # The agent is woken on this core, and what we do next can wait until it has forked.
            os.sched_yield()
            if pipes is not None:
                pipes.hand_over()
        except Crowded:
            if pipes is not None:
                pipes.close()
            return self._start(connection, request, feeds=feeds, capture=capture)
        except BaseException:
            connection.close()
            if pipes is not None:
                pipes.close()
            raise
        limit = request.output_limit
        if limit is None and capture:
            limit = DEFAULTS.output
        return StreamCommand(
            connection,
            core,
            pipes,
            self._pool.give_back,
            answer_by=deadline,
            own_time=self.own_time,
            stdin=feeds or request.pty is not None,
            capture=capture,
            limit=limit,
        )


def _answer(call: AgentCall, op: str) -> dict[str, Any]:
    """Return the fields of the one result. Raises OperationFailed, GuestError."""
    kind, payload = call.next()
    if kind != wire.EVENT:
        raise GuestError(f"the agent sent a frame of type {kind} out of place")
    value = decode_any(payload)
    name = value.pop("event")
    if name == "error":
        raise failure(decode(_ERROR, payload), op)
    if name != "result":
        raise GuestError(f"the agent did not answer {op} with a result")
    call.ended = True
    return value


def exec_fields(request: ExecRequest, *, stdin: bool, fds: Sequence[str] = ()) -> dict[str, Any]:
    """Return the ``exec`` request; passed descriptors take the place of in-band streams."""
    fields: dict[str, Any] = {"op": "exec", "argv": request.argv}
    limits = {} if request.limits is None else _limit_fields(request.limits)
    if request.cwd is not None:
        fields["cwd"] = request.cwd
    if request.env:
        fields["env"] = request.env
    if request.tag is not None:
        fields["tag"] = request.tag
    if request.timeout is not None:
        limits["wall_ms"] = max(1, math.ceil(request.timeout * 1000))
    if fds:
        fields["fds"] = fds
    elif request.output_limit is not None:
        limits["output"] = request.output_limit
    if request.pty is not None:
        fields["pty"] = {"rows": request.pty.rows, "cols": request.pty.cols}
    elif stdin and not fds:
        fields["stdin"] = "stream"
    if limits:
        fields["limits"] = limits
    return fields


def _limit_fields(limits: ExecLimits) -> dict[str, int]:
    fields = msgspec.structs.asdict(limits)
    fields["cpu_s"] = fields.pop("cpu")
    return {name: value for name, value in fields.items() if value is not None}
