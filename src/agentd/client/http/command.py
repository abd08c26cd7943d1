"""A command of a daemon, over WebSocket; after a lost connection it goes on from where it was."""

import http.client
import os
import select
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec

from agentd.client import cut
from agentd.client.http import attached, wire
from agentd.client.http.client import DELAYS, HttpClient
from agentd.client.http.errors import Unreachable, from_view
from agentd.client.http.frames import BINARY, PONG, TEXT, Message
from agentd.client.http.killing import kill
from agentd.client.http.websocket import WebSocket
from agentd.model.api import ResultView
from agentd.model.control import check_signal, check_window
from agentd.model.errors import AgentdError, Conflict, InvalidInput, SandboxError
from agentd.model.result import Cause, CauseCode, Result
from agentd.model.running import Stepped

# Output read ahead of the caller, and stdin taken from it ahead of the connection.
MAX_QUEUE = 1 << 20
MAX_BACKLOG = 1 << 20
MAX_CAPTURE = 64 << 20  # bytes of each stream
_PIECE = 64 << 10
_CHARACTER = 3  # bytes of a UTF-8 character without its last
_HEAD = 9  # bytes before the data: the stream's number, and the first byte's cursor
_STREAMS = {1: "stdout", 2: "stderr", 3: "pty"}
_SIGKILL = 9
_UNKNOWN = object()  # an end that nobody saw: the daemon was not there
_EOF = msgspec.json.encode({"op": "eof"})
_KILL = msgspec.json.encode({"op": "signal", "signal": _SIGKILL})


def _shown(name: str) -> str:
    """Return the stream that a caller knows: a terminal's is its stdout."""
    return "stderr" if name == "stderr" else "stdout"


class RemoteCommand(Stepped):
    """``path`` is the process's own; ``cursors`` say where to begin.

    One thread drives it; others may write, signal and kill. ``lost`` counts bytes of each stream
    that the daemon no longer had.
    """

    def __init__(
        self,
        client: HttpClient,
        path: str,
        id_: str,
        *,
        pid: int | None = None,
        stdin: bool = False,
        pty: bool = False,
        capture: bool = False,
        cursors: Mapping[str, int] | None = None,
        wake: int = -1,
    ) -> None:
        self.id = id_
        self.pid = pid
        self._came = {"stdout": 0, "stderr": 0, "pty": 0, **(cursors or {})}
        # Asked for again, for a character that began in them: they are in no output.
        self._again = {name: min(at, _CHARACTER) for name, at in (cursors or {}).items() if at}
        self.before: dict[str, bytes] = {}
        self.lost: dict[str, int] = {}
        self.exit: object | None = None
        self._client = client
        self._path = path
        self._stdin_open = stdin or pty
        self._pty = pty
        self._kept = {"stdout": bytearray(), "stderr": bytearray()} if capture else None
        self._cut = False
        self._refusal: AgentdError | None = None
        self._killed = False
        self._queue: deque[tuple[str, bytes]] = deque()
        self._queued = 0
        self._given = self._taken = 0  # messages from here: sent, and known to have arrived
        self._fed = 0  # of these the last of stdin
        # Of these the signals and sizes, by number, that may not have arrived.
        self._controls: deque[tuple[int, bytes]] = deque()
        self._asked = 0  # of those, how many an unanswered ping asks about
        self._fruitless = 0  # connections one after the other that brought nothing
        self._lock = threading.RLock()
        self._closed = False
        self._socket: WebSocket | None = None
        self._nudge = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Also of one that is forgotten, as ``start`` of what goes on by itself often is.
        self._free = weakref.finalize(self, os.close, self._nudge)
        self._free.atexit = False
        try:
            self._attach(first=True, wake=wake)
        except BaseException:
            self._free()
            raise

    @property
    def cursors(self) -> dict[str, int]:
        """Bytes of each stream that ``step`` gave out, and those before them."""
        with self._lock:
            given = dict(self._came)
            for name, data in self._queue:
                given["pty" if self._came["pty"] else name] -= len(data)
            return given

    @property
    def backlog(self) -> int:
        with self._lock:
            return self._socket.backlog if self._socket is not None else 0

    def step(
        self, timeout: float | None = None, extra_fds: Sequence[int] = ()
    ) -> tuple[list[tuple[str, bytes]], list[int]]:
        ready: list[int] = []
        if not self._queue and self.exit is None:
            ready = self._pump(timeout, extra_fds)
        with self._lock:
            chunks = list(self._queue)
            self._queue.clear()
            self._queued = 0
            refusal, self._refusal = self._refusal, None
        if refusal is not None and self.exit is None:
            raise refusal
        return chunks, ready

    def write(self, data: bytes) -> None:
        """Send it; wait while over 1 MiB is on its way, unless the output must be read first."""
        if not self._stdin_open:
            raise InvalidInput("stdin is not open", remediation="start the command with stdin")
        for at in range(0, len(data), _PIECE):
            self._give(BINARY, data[at : at + _PIECE])
            while self.backlog > MAX_BACKLOG and self.exit is None and not self._queue:
                self._pump(None, ())

    def close_stdin(self) -> None:
        if self._stdin_open:
            self._stdin_open = False
            self._give(TEXT, _EOF)

    def signal(self, number: int) -> None:
        check_signal(number)
        self._give(TEXT, msgspec.json.encode({"op": "signal", "signal": int(number)}), again=True)

    def resize(self, rows: int, cols: int) -> None:
        check_window(rows, cols)
        size = {"op": "resize", "rows": rows, "cols": cols}
        self._give(TEXT, msgspec.json.encode(size), again=True)

    def kill(self) -> None:
        self._killed = True
        self.signal(_SIGKILL)

    def finish(self) -> Result:
        while self.exit is None:
            self.step()
        if not isinstance(self.exit, ResultView):
            raise SandboxError(
                f"how process {self.id} ended is not known",
                cause="it ended while its daemon was not running",
                remediation="its output is in its journal: agentd logs",
            )
        kept = self._kept or {}
        stdout, stderr = (bytes(kept.get(name, b"")) for name in ("stdout", "stderr"))
        found = wire.result(self.exit, stdout, stderr)
        if self._cut:
            found = msgspec.structs.replace(found, truncated=True)
        if self._killed and found.signal == _SIGKILL:
            cause = Cause.of(CauseCode.CANCELLED, "cancelled by its caller")
            found = msgspec.structs.replace(found, cause=cause)
        return found

    def detach(self) -> None:
        """Leave it running; ``cursors`` say what was seen of it."""
        with self._lock:
            self._closed = True
            self._drop()
            self._free()
            self._nudge = -1

    def close(self) -> None:
        """Free it; a command that has not ended is killed."""
        if self._closed:
            return
        if self.exit is None:
            # By a request of its own: whether a message arrives before the close nobody can say.
            kill(self._client, self._path)
        self.detach()

    # --- one round ---

    def _pump(self, timeout: float | None, extra_fds: Sequence[int]) -> list[int]:
        with self._lock:
            if self.exit is not None:  # who sends has found it
                return []
            socket = self._open()
            poller = select.poll()
            wanted = select.POLLIN if self._queued < MAX_QUEUE else 0
            poller.register(socket, wanted | (select.POLLOUT if socket.backlog else 0))
            poller.register(self._nudge, select.POLLIN)
            for fd in extra_fds:
                poller.register(fd, select.POLLIN)
            wait = 0 if socket.pending else None if timeout is None else int(timeout * 1000) + 1
        ready = [fd for fd, _ in poller.poll(wait)]
        with self._lock:
            if self._closed:
                raise self._gone()
            if self._nudge in ready:
                os.eventfd_read(self._nudge)
            is_open = self.exit is None and socket is self._socket  # not of who sent meanwhile
            if is_open and (socket.pending or socket.fileno() in ready):
                self._serve(socket)
        return [fd for fd in ready if fd in extra_fds]

    def _serve(self, socket: WebSocket) -> None:
        try:
            socket.flush()
            for message in socket.receive():
                self._take(message)
        except OSError as error:
            if self.exit is None:
                self._attach(error)
        if self.exit is not None:
            self._drop()

    def _take(self, message: Message) -> None:
        self._fruitless = 0
        if message.kind == BINARY:
            self._output(message.data)
        elif message.kind == PONG:
            self._taken, self._asked = max(self._taken, self._asked), 0
            while self._controls and self._controls[0][0] <= self._taken:
                self._controls.popleft()
            self._ask()
        else:
            self._event(message.data)

    def _output(self, message: bytes) -> None:
        name = _STREAMS.get(message[0]) if len(message) >= _HEAD else None
        if name is None:
            raise self._odd("a message of output without its head")
        at, data = int.from_bytes(message[1:_HEAD], "big"), message[_HEAD:]
        seen = self._came[name]
        if at > seen:
            self._missing(name, at)
        elif at < seen:
            if self._again.pop(name, 0):
                self.before[_shown(name)] = data[: seen - at]
            data = data[seen - at :]  # sent again: it did not know how far we were
        if not data:
            return
        self._came[name] += len(data)
        shown = _shown(name)
        if self._kept is None:
            self._queue.append((shown, data))
            self._queued += len(data)
        else:
            room = MAX_CAPTURE - len(self._kept[shown])
            self._cut = self._cut or len(data) > room
            self._kept[shown] += data[:room]

    def _event(self, message: bytes) -> None:
        try:
            event = attached.EVENT.decode(message)
        except msgspec.DecodeError as error:
            raise self._odd(str(error)) from error
        if event.process is not None:
            self.pid = event.process.pid or self.pid
        elif event.event == "lost" and event.stream in self._came:
            self._missing(event.stream, event.to)
        elif event.event == "exit":
            self.exit = event.result or _UNKNOWN
        elif event.error is not None and event.error.code != Conflict.code:
            # A conflict is input for a command that has ended: its end is on its way.
            self._refusal = self._refusal or from_view(event.error)

    def _missing(self, name: str, until: int) -> None:
        gone = until - self._came[name]
        if gone > 0:
            self.lost[name] = self.lost.get(name, 0) + gone
            self._came[name] = until
            self._cut = True
            if self._kept is None:
                self._queue.append((_shown(name), b""))

    # --- stdin and controls ---

    def _give(self, kind: int, data: bytes, *, again: bool = False) -> None:
        """Send it; ``again``: on the next connection too, unless it is known to have arrived."""
        with self._lock:
            if self._send(kind, data):
                self._given += 1
                if again:
                    self._controls.append((self._given, data))
                else:
                    self._fed = self._given
                self._ask()

    def _ask(self) -> None:
        """A ping behind what was given: its answer tells that all before it has arrived."""
        socket = self._socket
        if socket is not None and not self._asked and self._taken < self._given:
            self._asked = self._given
            with suppress(OSError):
                socket.ping()

    def _send(self, kind: int, data: bytes) -> bool:
        """Send it; False where the command has ended, and nobody would read it."""
        with self._lock:
            if self.exit is not None:
                return False
            socket = self._open()
            try:
                socket.send(kind, data)
            except OSError as error:
                self._attach(error)
                if self._socket is None:  # its end has come
                    return False
                socket = self._socket
                socket.send(kind, data)
            if socket.backlog:
                os.eventfd_write(self._nudge, 1)  # whoever polls must wait for room, too
            return True

    # --- the connection ---

    def _open(self) -> WebSocket:
        if self._socket is None:
            raise self._gone()
        return self._socket

    def _attach(
        self, lost: Exception | None = None, *, first: bool = False, wake: int = -1
    ) -> None:
        """Again, from the cursors on, but where the end has come by the one that broke. Raises
        Unreachable when that takes too long, GivenUp, and Woken once ``wake`` is readable."""
        socket = self._socket
        with suppress(OSError):  # who sends has perhaps not read that what was sent has arrived
            while socket is not None and self._queued < MAX_QUEUE and (left := socket.receive()):
                for message in left:
                    self._take(message)
        self._drop()
        if self.exit is not None:
            return
        if self._taken < self._fed and not self._pty:
            raise Unreachable(
                "the connection broke while stdin was on its way",
                cause=str(lost),
                remediation=f"attach to process {self.id}, and see how much of it has arrived",
            ) from lost
        query = {name: at - self._again.get(name, 0) for name, at in self._came.items() if at}
        self._fruitless += 1
        for delay in (0.0, *DELAYS) if self._fruitless <= len(DELAYS) else ():
            cut.of_this_thread().sleep(delay)
            try:
                self._socket = WebSocket(self._client, f"{self._path}/attach", query, wake)
            except (OSError, http.client.HTTPException, Unreachable) as error:
                if first and isinstance(error, Unreachable):
                    raise
                lost = error
            else:
                self._asked = 0
                # The connection that broke may have taken these along.
                lasting = [_KILL] if self._killed else []
                with suppress(OSError):
                    for data in [*(data for _, data in self._controls), *lasting]:
                        self._socket.send(TEXT, data)
                self._taken = self._given - len(self._controls)
                self._ask()
                return
        raise Unreachable(
            f"the connection to {self._client.address} broke, and there is no new one",
            cause=str(lost),
            remediation=f"process {self.id} may still run: attach to it later",
        ) from lost

    def _drop(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()

    def _gone(self) -> AgentdError:
        return SandboxError(
            f"process {self.id} was let go", remediation="attach to it, or start another"
        )

    def _odd(self, what: str) -> AgentdError:
        return AgentdError(
            f"the daemon at {self._client.address} broke the protocol",
            cause=what,
            remediation="use the same version of agentd on both sides",
        )
