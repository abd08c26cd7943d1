"""uvicorn's protocols, with bounds on what a client may send, and how slowly."""

import asyncio
from collections.abc import Generator
from typing import Any, Literal, NoReturn, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import CloseCode, Frame
from websockets.http11 import MAX_LINE_LENGTH
from websockets.streams import StreamReader

from agentd.ingest.web.errors import Busy, HeadersTooLarge, RequestTimeout
from agentd.ingest.web.limits import WebLimits
from agentd.ingest.web.link import HoldingTransport, Link
from agentd.ingest.web.routes import Doors
from agentd.ingest.web.seats import Seats
from agentd.model.answer import Answer
from agentd.model.errors import AgentdError, InvalidInput
from agentd.model.gatekeeper import Gatekeeper

_FRAGMENTS = 4096  # of one message
_FRAMES = 64  # of a client that are parsed in one turn of the loop
_PONGS = 1 << 20  # bytes that wait for a client who pings and does not read


class ServerShared(ServerState):
    """Holds the state that all connections share."""

    def __init__(self, limits: WebLimits, gatekeeper: Gatekeeper) -> None:
        super().__init__()
        self.limits = limits
        self.gatekeeper = gatekeeper
        self.draining = False


class _Stalling:
    """How long a client has taken nothing of what is written for it."""

    def __init__(self) -> None:
        self._left = 0
        self._since = 0.0

    def seconds(self, transport: asyncio.Transport, now: float) -> float:
        left = transport.get_write_buffer_size()
        if left == 0 or left != self._left:
            self._left, self._since = left, now
        return now - self._since


class HttpConnection(HttpToolsProtocol):
    # There is none at first; uvicorn's type of it leaves that out.
    cycle: RequestResponseCycle | None  # type: ignore[assignment]

    def __init__(self, config: Config, state: ServerShared, doors: Doors, seats: Seats) -> None:
        super().__init__(config, state, {})
        self._doors = doors
        self._seats = seats
        self.access_log = False
        self.limits = state.limits
        self.shared = state
        self._stalling = _Stalling()
        self._is_over = False  # one connection too many
        self._deaf = False  # the client is wrong: what else it sends is not looked at
        self._in_head = False
        self._too_large = ""  # what is the most
        self._head = 0  # bytes of it
        self._trailers = 0
        self._since = 0.0  # when the connection or the head began
        self._unread = False  # there is more of a request that has its answer already
        self._discarded = 0
        self._active: RequestResponseCycle | None = None  # self.cycle is the last that came

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        holding = HoldingTransport(transport)
        super().connection_made(cast("asyncio.Transport", holding))
        link = Link(holding, self.shared.gatekeeper, self._seats)
        self.app_state["link"] = link
        self._since = self.loop.time()
        self._is_over = not self._seats.enter(link)
        if self.shared.draining:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self.app_state["link"].lost()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._deaf:
            self._discard(len(data))
            return
        if self._is_over:
            self._refuse(Busy("too many connections", remediation="send it again later"))
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._end_after_this()
        except httptools.HttpParserError as error:
            self._refuse(self._reason(error))
        else:
            if self._in_head:
                self._head += len(data)
                if self._head > self.limits.head:
                    self._too_large = self._most
                    self._refuse(self._reason(None))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head = 0
        self._trailers = 0
        self._since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.head:
            self._refuse_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # A trailer is no header (RFC 9110, 6.5.1): who filters headers before us has not seen
            # it. It is bounded as they are, and says nothing.
            self._trailers += len(name) + len(value) + 4
            if self._trailers > self.limits.head:
                raise ValueError("the trailers are too large")
            return
        super().on_header(name, value)
        if len(self.headers) > self.limits.headers:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
        if size > self.limits.head:
            self._refuse_head()
        if len(self.pipeline) >= self.limits.pipelined:
            raise ValueError("too many pipelined requests")
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise ValueError("only HTTP/1.0 and 1.1 are spoken here")
        hosts = sum([name == b"host" for name, _ in self.headers])
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise ValueError(f"it has {hosts} Host headers")  # RFC 9112, 3.2
        bodies = [v for n, v in self.headers if n in (b"content-length", b"transfer-encoding")]
        if self.parser.should_upgrade() and self._should_upgrade():
            if bodies not in ([], [b"0"]):
                raise ValueError("a WebSocket's handshake has no body")
            self._check_lines()
        self._in_head = False
        self.app_state["link"].has_asked = True
        self._unread = True
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        if self._has_answered():
            self._discard(len(body))
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = False
        self._discarded = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def check(self, now: float) -> None:
        """End what takes too long; called once a second."""
        limits = self.limits
        leaves = self.shared.draining and self.app_state["link"].goes_on
        most = limits.farewell if leaves else limits.stall
        if self._stalling.seconds(self.transport, now) > most:
            link = self.app_state["link"]
            link.shut() if leaves else link.cut()
        elif self._deaf or self._is_over or (self._unread and self._has_answered()):
            if now - self._since > limits.discard_seconds:
                self.transport.abort()
        elif is_overstaying(self.app_state["link"], limits, now):
            self.transport.abort()
        elif self._in_head:
            if now - self._since > limits.head_seconds:
                self._refuse(RequestTimeout("the request did not come in time"))
        elif self.cycle is None and now - self._since > limits.idle:
            self.transport.close()

    def _has_answered(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete

    def _check_lines(self) -> None:
        """Refuse a handshake that websockets would not read, and not answer either."""
        lines = [len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n")]
        lines += [len(name) + len(value) + len(": \r\n") for name, value in self.headers]
        if max(lines) > MAX_LINE_LENGTH:
            self._refuse_head(f"a line of a WebSocket's has {MAX_LINE_LENGTH} bytes at most")

    @property
    def _most(self) -> str:
        return f"{self.limits.head} bytes and {self.limits.headers} headers are the most"

    def _refuse_head(self, most: str = "") -> NoReturn:
        # What a callback raises, the parser turns into an HttpParserCallbackError.
        self._too_large = most or self._most
        raise ValueError("the head of the request is too large")

    def _reason(self, error: Exception | None) -> AgentdError:
        if self._too_large:
            return HeadersTooLarge(
                "the request line and headers are too large", cause=self._too_large
            )
        raised = None if error is None else error.__context__  # in a callback, if it was one
        why = raised if isinstance(raised, ValueError) else error
        return InvalidInput("this is no HTTP request", cause=str(why))

    def _discard(self, size: int) -> None:
        """Let a client that still sends read its answer first, for a while."""
        self._discarded += size
        if self._discarded > self.limits.discarded:
            self.transport.abort()

    def _end_after_this(self) -> None:
        self._deaf = True
        self._since = self.loop.time()
        if self._active is not None:
            self._active.keep_alive = False

    def _refuse(self, error: AgentdError) -> None:
        """Answer what is no request, and hang up; never amid the answer to another."""
        self._in_head = False
        self._end_after_this()
        self.pipeline.clear()
        active = self._active
        if active is not None and not active.response_complete:
            if not active.more_body:
                return
            if active.response_started:
                self.transport.abort()
                return
            # The rest of its body can no longer come: whoever waits for it is told.
            active.disconnected = True
            active.message_event.set()
        self.transport.write(_as_bytes(self._doors.error(error)))
        if self.transport.can_write_eof():
            self.transport.write_eof()  # an orderly end; we close when the client does, or later
        else:
            self.transport.close()


class _Frames(StreamReader):
    """Gives the parser so many frames: one may have six bytes, and what came at once 40,000."""

    left = _FRAMES

    def at_eof(self) -> Generator[None, None, bool]:
        """The parser asks this before each frame."""
        while not self.left:
            yield
        self.left -= 1
        return (yield from super().at_eof())


class WsConnection(WebSocketsSansIOProtocol):
    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        state = cast("ServerShared", server_state)
        self.limits = state.limits
        self._shared = state
        self.curr_msg_data_type: Literal["text", "bytes"] = "bytes"
        self._stalling = _Stalling()
        self.conn.reader = self._came = _Frames()
        self.conn.parser = self.conn.parse()  # the one that it began with has the other reader
        next(self.conn.parser)
        self._turn: asyncio.Handle | None = None  # in which the rest is parsed

    def data_received(self, data: bytes) -> None:
        self._came.left = _FRAMES
        super().data_received(data)
        self._go_on()

    def shutdown(self) -> None:
        self.app_state["link"].is_shut = True
        super().shutdown()

    async def receive(self) -> Any:
        message = await super().receive()
        self._go_on()
        return message

    def _go_on(self) -> None:
        """Parse the rest of what came once what was parsed is taken, and others had a turn."""
        if self._came.left or not self._came.buffer or self.read_paused or self._turn is not None:
            return
        self.transport.pause_reading()
        self._turn = self.loop.call_soon(self._parse_more)

    def _parse_more(self) -> None:
        self._turn = None
        if not self.transport.is_closing():
            self.transport.resume_reading()
            self.data_received(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.app_state["link"].lost()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True  # else uvicorn complains of a refusal
        self._go_on()  # closing, it waits for nobody who takes messages

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.fail(CloseCode.INVALID_DATA, "a text that is not UTF-8")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= _FRAGMENTS:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        super().handle_ping()
        if self.transport.get_write_buffer_size() > _PONGS:
            self.transport.abort()

    def check(self, now: float) -> None:
        most = self.limits.farewell if self._shared.draining else self.limits.stall
        stalls = self._stalling.seconds(self.transport, now) > most
        if stalls or is_overstaying(self.app_state["link"], self.limits, now):
            self.transport.abort()


def is_overstaying(link: Link, limits: WebLimits, now: float) -> bool:
    """Return whether a stranger has had its time, whatever it did meanwhile."""
    return not link.principal and now - link.since > limits.stranger


def _as_bytes(answer: Answer) -> bytes:
    head = [f"HTTP/1.1 {answer.status} "]
    head += [f"{name}: {value}" for name, value in answer.headers.items()]
    head += [f"content-length: {len(answer.body)}", "connection: close", "", ""]
    return "\r\n".join(head).encode("latin-1") + answer.body
