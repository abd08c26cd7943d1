"""One request and its answer, streamed: what is read at one end is written at the other before
more is read."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import h11

from agentd.egress.terminator import requests
from agentd.egress.terminator.credentials import BodyFilter, CredentialRefusal
from agentd.egress.terminator.ends import BROKEN, ReadEnd
from agentd.egress.terminator.recording import ExchangeDraft, Unrecorded
from agentd.egress.terminator.requests import RefusedRequest, RequestHead

if TYPE_CHECKING:
    from agentd.egress.terminator.connection import ReadConnection

_MAX_AHEAD = 64 << 10  # of the program, while it waits for its answer
_SWITCHING, _LAST = 101, 200
_NO_ANSWER = "it had no answer"
_UNANSWERED = "the host ended the connection before it answered"
_ITS_OWN = "ask again, or ask whoever runs the host: nothing here forbids it"
Fields = list[tuple[bytes, bytes]]
_ENCODINGS = b"accept-encoding"
_BODILESS = (204, 304)
_FRAMING = {b"content-length", b"transfer-encoding"}
HALF_SECONDS = 120.0  # without a word of the host's, where the program has said all it will


class Over(Exception):
    """The connection has ended; says why, as far as it is worth saying."""


class Judged(NamedTuple):
    """A request's head, as it was read and as it came; ``path`` and ``rule`` are for its record."""

    head: RequestHead
    raw: bytes
    path: str
    rule: str
    began: float
    moved: tuple[int, int]  # sent and received on its connection by then


class JudgedExchange:
    def __init__(self, of: "ReadConnection", judged: Judged) -> None:
        assert of.client is not None  # noqa: S101  (for the type checker)
        self._of, self._judged, self.head, self._client = of, judged, judged.head, of.client
        #: Whether it is to be recorded, and is not yet.
        self.is_open = False
        self._status = 0
        self.answered = False  # as far as that something of it was sent, behind 100 and the like
        self._down = h11.Connection(h11.SERVER, max_incomplete_event_size=requests.MAX_HEAD)
        self._down.receive_data(judged.raw + of.ahead)
        of.ahead = b""
        self._task: asyncio.Task[object] | None = asyncio.current_task()

    async def run(self) -> bool:
        """Return whether the connection can have another. Raises RefusedRequest before anything
        was answered, Over and what broken ends raise."""
        raise NotImplementedError

    def rules_changed(self) -> None:
        """End the request where the rules of now do not allow it."""
        of = self._of
        try:
            requests.judge(self.head, of.name, of.port, of.sandbox.table)
        except RefusedRequest as refused:
            of.reason = f"the rules were changed: {refused.reason}"
            if self._task is not None:
                self._task.cancel()

    def _said(self) -> object:
        """Return what the program said next, an event of h11's. Raises RefusedRequest."""
        try:
            return self._down.next_event()
        except h11.RemoteProtocolError:
            raise RefusedRequest("bad_request", "the request is no HTTP", status=400) from None

    def _record(self, reason: str) -> None:
        of, judged = self._of, self._judged
        sent, received = (now - before for now, before in zip(of.moved, judged.moved, strict=True))
        ms = (asyncio.get_running_loop().time() - judged.began) * 1000
        row: dict[str, object] = {"method": self.head.method, "path": judged.path}
        row |= {"status": self._status, "rule": judged.rule, "allowed": True}
        row |= {"reason": reason[:300]}
        row |= {"sent": sent, "received": received, "ms": round(ms, 1), "ended": True}
        of.terminator.records.request(of, row)


class RequestExchange(JudgedExchange):
    """One with the host that was dialled. It is recorded where the rules say so."""

    def __init__(self, of: "ReadConnection", judged: Judged) -> None:
        super().__init__(of, judged)
        assert of.upstream is not None  # noqa: S101  (for the type checker)
        self._upstream, self._look = of.upstream, of.look
        self._sent = False  # the request, as a whole
        self._deaf = False  # the host takes no more of it: its answer may say why
        self._up = h11.Connection(h11.CLIENT, max_incomplete_event_size=requests.MAX_HEAD)
        recording = of.sandbox.recording
        self._draft: ExchangeDraft | Unrecorded = Unrecorded()
        if recording is not None:
            self._draft = ExchangeDraft(recording, judged.head, of.name, of.port)
            self.is_open = True
        self._unfit = _NO_ANSWER  # why it is not to be recorded
        self._lacks = ""  # what is said where it was not
        self._answered_whole = False

    async def run(self) -> bool:
        reason = ""
        sending: asyncio.Task[None] | None = None
        try:
            await self._send_head()
            sending = asyncio.ensure_future(self._send_body())
            switched = await self._answer(sending)
            if switched:
                self._unfit = "it became a WebSocket"
                await self._tunnel()
                return False
            await _settled(sending)
            return self._again()
        except h11.RemoteProtocolError as error:
            # Behind the colon h11 repeats what came, in which a secret may be.
            reason = f"what came is no HTTP: {str(error).partition(':')[0]}"
            if self._status < _LAST and self._up.trailing_data == (b"", True):
                reason = _UNANSWERED
            if self.answered:
                raise Over(reason) from None
            raise RefusedRequest("bad_answer", reason, status=502, fix=_ITS_OWN) from None
        except (Over, *BROKEN) as error:
            reason = str(error)
            raise
        except (CredentialRefusal, RefusedRequest):
            if not self._draft.has_answer:  # it was answered here, and no host has anything of it
                self._draft.forget()
                self._draft = Unrecorded()
            raise
        finally:
            if sending is not None:
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await sending
            self._finish(reason)
            reason = reason or self._lacks
            if self.answered or reason:
                self._record(reason)

    def _finish(self, reason: str) -> None:
        """Have it written down, once."""
        draft, self._draft, self.is_open = self._draft, Unrecorded(), False
        whole, why = self._answered_whole, self._unfit
        if draft.has_answer and not whole:  # what came of it
            why = ""
        elif why == _NO_ANSWER and reason:
            why = f"{why}: {reason}"
        lacks = draft.finish(broken=not whole, why=why[:300])
        if lacks and (self.answered or whole):
            self._lacks = f"not recorded: {lacks}"

    # --- the request ---

    async def _send_head(self) -> None:
        event = self._said()
        if not isinstance(event, h11.Request):
            raise RefusedRequest("bad_request", "the request is no request", status=400)
        fields = requests.without_offer(event.headers.raw_items())
        target, headers = self._look.head(event.method, event.target, fields)
        if self._of.sandbox.recording is not None:  # what is recorded is to be read
            headers = [pair for pair in headers if pair[0].lower() != _ENCODINGS]
            headers.append((_ENCODINGS, b"identity"))
        request = h11.Request(method=event.method, target=target, headers=headers)
        await self._upstream.write(self._up.send(request) or b"")

    async def _send_body(self) -> None:
        look = self._look.body()
        while True:
            event = self._said()
            if event is h11.NEED_DATA:
                data = await self._client.read()
                self._down.receive_data(data)
                if not data:
                    self._of.over = True
            elif isinstance(event, h11.Data):
                self._draft.asked(bytes(event.data))
                await self._pass_on(look.feed(bytes(event.data)))
                await asyncio.sleep(0)  # a piece may have thousands of chunks
            elif isinstance(event, h11.EndOfMessage):
                requests.check_trailers(event.headers.raw_items())
                await self._pass_on(look.finish())
                await self._to_host(self._up.send(_end(event, self._look.body)))
                break
            else:
                raise Over("the program went away")
        self._sent = not self._deaf
        self._of.ahead = bytes(self._down.trailing_data[0])
        await self._look_ahead()

    async def _pass_on(self, data: bytes) -> None:
        if data:
            await self._to_host(self._up.send(h11.Data(data=data)))

    async def _to_host(self, data: bytes | None) -> None:
        if data and not self._deaf:
            try:
                await self._upstream.write(data)
            except BROKEN:
                self._deaf = True

    async def _look_ahead(self) -> None:
        """Notice that the program goes away while it waits, and keep what it says next."""
        while len(self._of.ahead) < _MAX_AHEAD and not self._of.over:
            data = await self._client.read()
            self._of.ahead += data
            if not data:
                self._of.over, self._upstream.patience = True, HALF_SECONDS

    # --- the answer ---

    async def _answer(self, sending: "asyncio.Task[None]") -> bool:
        """Return whether both sides speak another protocol from now on."""
        look: BodyFilter | None = None
        out: list[bytes] = []
        while True:
            event = self._up.next_event()
            if event is h11.NEED_DATA:
                await self._flush(out)
                self._up.receive_data(await self._await_answer(sending))
            elif isinstance(event, h11.InformationalResponse):
                headers = self._look.answer_head(event.status_code, event.headers.raw_items())
                told = h11.InformationalResponse(
                    status_code=event.status_code, headers=headers, reason=self._words(event)
                )
                self._status = event.status_code
                if event.status_code == _SWITCHING:
                    await _settled(sending)
                    if not self._sent:
                        raise Over("the host switched before it was asked")
                out.append(self._down.send(told) or b"")
                if event.status_code == _SWITCHING:
                    await self._flush(out)
                    return True
            elif isinstance(event, h11.Response):
                self._status = event.status_code
                headers = self._look.answer_head(event.status_code, event.headers.raw_items())
                look = self._look.answer_body()
                words = self._words(event)
                self._draft.answered(event.status_code, words, headers)
                headers = self._told_of_its_end(event, headers)
                answer = h11.Response(status_code=event.status_code, headers=headers, reason=words)
                out.append(self._down.send(answer) or b"")
            elif isinstance(event, h11.Data) and look is not None:
                data = look.feed(bytes(event.data))
                if data:
                    self._draft.came(data)
                    out += self._down.send_with_data_passthrough(h11.Data(data=data)) or ()
                await asyncio.sleep(0)
            elif isinstance(event, h11.EndOfMessage) and look is not None:
                if rest := look.finish():
                    self._draft.came(rest)
                    out.append(self._down.send(h11.Data(data=rest)) or b"")
                out.append(self._down.send(self._end(event)) or b"")
                self._answered_whole = True
                self._unfit = "" if self._sent else "it was answered before all of it was sent"
                self._finish("")  # who has its answer finds it recorded
                await self._flush(out)
                return False
            else:
                raise Over("the host went away")

    def _told_of_its_end(self, answer: h11.Response, fields: Fields) -> Fields:
        """Say that nothing follows, where the host ends its connection behind ``answer``, as one of
        HTTP/1.0 does, and one that says no length: else a program asks again there, in vain."""
        bare = self.head.method == "HEAD" or answer.status_code in _BODILESS
        framed = bare or not _FRAMING.isdisjoint(name for name, _ in answer.headers)
        if framed and answer.http_version != b"1.0":
            return fields
        kept = [(name, value) for name, value in fields if name.lower() != b"connection"]
        return [*kept, (b"Connection", b"close")]

    def _end(self, event: h11.EndOfMessage) -> h11.EndOfMessage:
        """With the trailers, which HTTP/1.0 has none of."""
        trailers = self._look.answer_head(self._status, event.headers.raw_items())
        self._draft.trailers(trailers)
        return h11.EndOfMessage(headers=[] if self.head.version == b"HTTP/1.0" else trailers)

    def _words(self, event: h11.Response | h11.InformationalResponse) -> bytes:
        """What the host says beside its status: what stands in a field could stand there, too."""
        ((_, words),) = self._look.answer_head(event.status_code, [(b"reason", event.reason)])
        return words

    async def _await_answer(self, sending: "asyncio.Task[None]") -> bytes:
        """Read from the host; what breaks the request's way there is told in place of silence."""
        reading = asyncio.ensure_future(self._upstream.read())
        try:
            while not reading.done():
                waited = {reading} if sending.done() else {reading, sending}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and (error := sending.exception()) is not None:
                    raise error
            return reading.result()
        finally:
            reading.cancel()

    async def _flush(self, out: list[bytes]) -> None:
        data = b"".join(out)
        out.clear()
        if data:
            self.answered = self.answered or self._status >= _LAST or self._status == _SWITCHING
            await self._client.write(data)

    # --- what comes then ---

    def _again(self) -> bool:
        """Return whether both ends keep the connection."""
        done = (h11.DONE, h11.DONE)
        states = [(each.our_state, each.their_state) for each in (self._down, self._up)]
        return self._sent and states == [done, done] and not self._up.trailing_data[0]

    async def _tunnel(self) -> None:
        """What both say after they have switched."""
        up = self._pump(self._of.ahead, self._client, self._upstream, self._look.tunnel())
        back = bytes(self._up.trailing_data[0])
        down = self._pump(back, self._upstream, self._client, self._look.answer_body())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(up)
                group.create_task(down)
        except BaseExceptionGroup as errors:
            refused, _ = errors.split(CredentialRefusal)
            raise (refused.exceptions[0] if refused else Over(str(errors.exceptions[0]))) from None

    async def _pump(self, first: bytes, source: ReadEnd, target: ReadEnd, look: BodyFilter) -> None:
        data = first or await source.read()
        while data:
            await target.write(look.feed(data))
            data = await source.read()
        await target.write(look.finish())
        await target.finish()


async def _settled(sending: "asyncio.Task[None]") -> None:
    """Stop looking ahead; a body that is not all sent, while it was answered, ends it."""
    sending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending


def _end(event: h11.EndOfMessage, look: Callable[[], BodyFilter]) -> h11.EndOfMessage:
    """Trailers, looked at as the body is."""
    return h11.EndOfMessage(
        headers=[(name, _looked_at(value, look)) for name, value in event.headers.raw_items()]
    )


def _looked_at(text: bytes, look: Callable[[], BodyFilter]) -> bytes:
    passed = look()
    return passed.feed(text) + passed.finish()
