"""One v2 connection: frames in and out, channels, credit and back-pressure."""

import errno
import os
from collections.abc import Callable, Mapping

from agentd.guest import wire
from agentd.guest.operation import ChannelOperation, RequestError, Starter
from agentd.guest.stream import HostStream

MAX_CHANNELS = 256
# Small grants are gathered into one CREDIT frame. Well under the window, so the host never starves.
GRANT_BYTES = wire.INITIAL_WINDOW // 4
# More credit than anybody could use; beyond it the host is counting wrong.
MAX_CREDIT = 1 << 40


class OpenChannel:
    """The ``operation.Channel`` of one request."""

    __slots__ = (
        "_connection", "_credit", "_granting", "ended", "loop", "number", "operation", "window",
    )  # fmt: skip

    def __init__(self, connection: "HostConnection", number: int) -> None:
        self.loop = connection.stream.loop
        self.number = number
        self.operation: ChannelOperation | None = None
        self.ended = False
        # Bytes the host may still send.
        self.window = wire.INITIAL_WINDOW
        self._connection = connection
        self._credit = wire.INITIAL_WINDOW
        self._granting = 0

    def event(self, name: str, **fields: object) -> None:
        if not self.ended:
            self._connection.send_json(wire.EVENT, self.number, {"event": name, **fields})

    def event_lazily(self, name: str, **fields: object) -> None:
        """Sends an event that nobody is in a hurry for; it may travel with the next one."""
        if not self.ended:
            event = {"event": name, **fields}
            frame = wire.encode_json(wire.EVENT, self.number, event)
            self._connection.stream.write(frame, lazy=True)

    def finish(self, name: str, **fields: object) -> None:
        if not self.ended:
            self.event(name, **fields)
            self._connection.end(self)

    def fail(self, error: Exception) -> None:
        code, message = explain(error)
        self.finish("error", errno=code, message=message)

    def send(self, kind: int, data: bytes) -> None:
        if not self.ended:
            self._credit -= len(data)
            self._connection.stream.write(wire.encode(kind, self.number, data))

    def send_eof(self) -> None:
        if not self.ended:
            self._connection.stream.write(wire.encode(wire.DATA_EOF, self.number))

    def credit(self) -> int:
        return max(0, min(self._credit, self._connection.stream.room()))

    def grant(self, amount: int) -> None:
        if self.ended:
            return
        self._granting += amount
        if self._granting >= GRANT_BYTES or self.window == 0:
            self.window += self._granting
            granted, self._granting = self._granting, 0
            self._connection.stream.write(wire.encode_credit(self.number, granted))

    def receive(self, length: int) -> None:
        """Take a data frame off the window. Raises WireError where there is none left."""
        if length > self.window:
            raise wire.WireError(
                f"{length} bytes sent on channel {self.number} with {self.window} of credit"
            )
        self.window -= length

    def receive_credit(self, amount: int) -> None:
        self._credit += amount
        if self._credit > MAX_CREDIT:
            raise wire.WireError(f"credit of channel {self.number} is over {MAX_CREDIT}")


class HostConnection:
    """The stream's user after a v2 handshake. ``first`` is what followed the hello line."""

    def __init__(
        self,
        stream: HostStream,
        operations: Mapping[str, Starter],
        hello_reply: bytes,
        first: bytes,
    ) -> None:
        self.stream = stream
        self._operations = operations
        self._decoder = wire.FrameDecoder(wire.FROM_HOST)
        self._channels: dict[int, OpenChannel] = {}
        self._fds: list[int] = []
        self._closed = False
        stream.user = self
        # Who has asked already waits for the answer to that.
        stream.write(hello_reply, lazy=bool(first))
        self.on_bytes(first)

    def send_json(self, kind: int, channel: int, value: dict[str, object]) -> None:
        self.stream.write(wire.encode_json(kind, channel, value))

    def end(self, channel: OpenChannel) -> None:
        """Ends a channel, whose last event is out."""
        channel.ended = True
        self._channels.pop(channel.number, None)
        operation, channel.operation = channel.operation, None
        if operation is not None:
            guarded(operation.close)

    def on_bytes(self, data: bytes) -> None:
        self._fds += self.stream.take_fds()
        try:
            if len(self._fds) > wire.MAX_PENDING_FDS:
                raise wire.WireError(f"more than {wire.MAX_PENDING_FDS} descriptors are waiting")
            for kind, channel, payload in self._decoder.feed(data):
                if self._closed:
                    return
                self._dispatch(kind, channel, payload)
            if self._fds and self._between_frames():
                self._drop_fds()
        except wire.WireError as error:
            if not self._restarted():
                self.go_away(str(error))
            return
        # A host that asks without reading the answers is not heard until it does.
        if not self._closed and self.stream.full:
            self.stream.pause()

    def on_eof(self) -> None:
        try:
            self._decoder.close()
        except wire.WireError as error:
            self.go_away(str(error))
            return
        self._shut()
        self.stream.finish()

    def on_drained(self) -> None:
        self.stream.resume()
        for channel in list(self._channels.values()):
            self._call(channel, "on_credit")

    def on_lost(self) -> None:
        self._shut()

    def go_away(self, reason: str) -> None:
        """End the connection and state why."""
        if self._closed:
            return
        self._shut()
        self.send_json(wire.GOAWAY, 0, {"reason": reason})
        self.stream.finish()

    def _restarted(self) -> bool:
        """On a stream that hosts share, a hello in place of a frame is the next host's."""
        restart, rest = self.stream.restart, self._decoder.rest()
        if restart is None or not rest or not wire.HELLO.startswith(rest[: len(wire.HELLO)]):
            return False
        self._shut()
        restart(rest)
        return True

    def _shut(self) -> None:
        self._closed = True
        for channel in list(self._channels.values()):
            self.end(channel)
        self._drop_fds()

    def _drop_fds(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def _between_frames(self) -> bool:
        try:
            self._decoder.close()
        except wire.WireError:
            return False
        return True

    def _dispatch(self, kind: int, number: int, payload: bytes) -> None:
        if kind == wire.GOAWAY:
            self._shut()
            self.stream.finish()
            return
        if kind == wire.REQUEST:
            self._request(number, wire.decode_json(payload))
            return
        channel = self._channels.get(number)
        if channel is None:
            # It has ended, and the host did not know yet.
            return
        if kind in wire.PAID:
            channel.receive(len(payload))
            self._call(channel, "on_data", kind, payload)
        elif kind == wire.CREDIT:
            channel.receive_credit(wire.decode_credit(payload))
            self._call(channel, "on_credit")
        elif kind == wire.CONTROL:
            self._control(channel, wire.decode_json(payload))
        else:
            self._call(channel, "on_eof", kind)

    def _request(self, number: int, request: dict[str, object]) -> None:
        if number in self._channels:
            raise wire.WireError(f"channel {number} is open already")
        channel = OpenChannel(self, number)
        fds = self._claim(request)
        name = request.get("op")
        starter = self._operations.get(name) if isinstance(name, str) else None
        if starter is None or len(self._channels) >= MAX_CHANNELS:
            for fd in fds:
                os.close(fd)
            if starter is None:
                channel.fail(RequestError(f"unknown operation {str(name)[:64]!r}"))
            else:
                channel.fail(
                    RequestError(f"{MAX_CHANNELS} channels are open already", errno.EAGAIN)
                )
            return
        self._channels[number] = channel
        try:
            operation = starter(channel, request, fds)
        except Exception as error:
            channel.fail(error)
            return
        if channel.ended and operation is not None:
            guarded(operation.close)
        elif not channel.ended:
            channel.operation = operation

    def _control(self, channel: OpenChannel, request: dict[str, object]) -> None:
        if request.get("op") != "cancel":
            self._call(channel, "on_control", request)
        elif hasattr(channel.operation, "cancel"):
            # It still has something to say: how it ended.
            self._call(channel, "cancel")
        else:
            channel.fail(RequestError("cancelled", errno.ECANCELED))

    def _claim(self, request: dict[str, object]) -> list[int]:
        """The descriptors that came for this request, in order."""
        names = request.get("fds")
        if request.get("op") == "sys.accept":
            count = 1
        elif request.get("op") == "exec" and isinstance(names, list):
            count = len(names)
        else:
            return []
        claimed, self._fds = self._fds[:count], self._fds[count:]
        return claimed

    def _call(self, channel: OpenChannel, name: str, *arguments: object) -> None:
        operation = channel.operation
        if operation is None:
            return
        try:
            getattr(operation, name)(*arguments)
        except Exception as error:
            channel.fail(error)


def explain(error: Exception) -> tuple[int, str]:
    """Returns ``(errno, message)`` of a refusal; a fault of ours is told on stderr too."""
    if isinstance(error, RequestError):
        return error.errno, str(error)
    if isinstance(error, OSError):
        return error.errno or 0, error.strerror or str(error)
    report(error)
    return 0, f"internal error: {type(error).__name__}"


def report(error: Exception) -> None:
    """Writes a line to stderr; the agent goes on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
    try:
        os.write(2, f"agentd-guest: {place}: {type(error).__name__}: {error}\n".encode())
    except (OSError, UnicodeError):
        return


def guarded(call: Callable[[], None]) -> None:
    """Run a clean-up whose failure must not stop the next one."""
    try:
        call()
    except Exception as error:
        report(error)
