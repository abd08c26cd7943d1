"""A request that is answered from a cassette: nobody is asked, and the same is said each time."""

import hashlib
import io
from collections import deque

import h11

from agentd.egress.cassettes import CassetteIndex
from agentd.egress.terminator.exchange import JudgedExchange, Over
from agentd.egress.terminator.requests import RefusedRequest
from agentd.model import cassette, typed
from agentd.model.cassette import MAX_BODY, RecordedExchange, fields_of

_RECORD = "record it, with --net record:FILE and rules for what is to be asked"
_PIECE = 1 << 20
_EMPTY = (204, 304)


class CassettePlayer:
    """What of a cassette was given, and what comes next."""

    def __init__(self, file: io.FileIO) -> None:
        """``file`` has a line with its index, and the cassette; closes it."""
        with file:
            # FileIO.readall would seek, which is not allowed here.
            data = b"".join(iter(lambda: file.read(_PIECE), b""))
        self._begin = data.index(b"\n") + 1
        self._data = memoryview(data)
        index = typed.decoder(CassetteIndex).decode(self._data[: self._begin])
        self._left_out = index.left_out
        self._found: dict[str, dict[str, deque[tuple[int, int]]]] = {}
        for place, digest, begin, end in index.exchanges:
            bodies = self._found.setdefault(place, {})
            bodies.setdefault(digest, deque()).append((begin, end))

    def next(self, method: str, host: str, port: int, target: str, digest: str) -> RecordedExchange:
        """Return the next of those that are the same, and the last again. Raises RefusedRequest
        where there is none."""
        bodies = self._found.get(cassette.place(method, host, port, target))
        if bodies is None or digest not in bodies:
            what = f"{method} {host}:{port}{target}"[:500]
            more = f", and {self._left_out} were left out of it" if self._left_out else ""
            has = f"has {what} with another body" if bodies else f"has no {what}{more}"
            raise _missing(f"the cassette {has}")
        same = bodies[digest]
        begin, end = same.popleft() if len(same) > 1 else same[0]
        line = self._data[self._begin + begin : self._begin + end]
        found = typed.decoder(RecordedExchange).decode(line)
        if found.unrecorded:
            raise _missing(f"it was not recorded: {found.unrecorded}")
        return found


def _missing(why: str) -> RefusedRequest:
    return RefusedRequest("not_recorded", why, fix=_RECORD)


class ReplayedExchange(JudgedExchange):
    """One without a host."""

    async def run(self) -> bool:
        of, head = self._of, self.head
        digest = await self._digest()
        player = of.sandbox.player
        if player is None:
            why = "no cassette has been put into the sandbox yet"
            fix = "put one in: agentd net cassette SANDBOX --put FILE"
            raise RefusedRequest("no_cassette", why, fix=fix)
        found = player.next(head.method, of.name, of.port, head.target, digest)
        try:
            data = self._answered(found)
        except h11.LocalProtocolError as error:
            raise _missing(f"its answer in the cassette is no HTTP: {error}") from None
        self._status, self.answered = found.status, True
        await self._client.write(data)
        self._record("broken off, as it was recorded" if found.broken else "")
        of.ahead = bytes(self._down.trailing_data[0])
        return self._down.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}

    async def _digest(self) -> str:
        """Read the request; return its body's digest."""
        digest, size = hashlib.sha256(), 0
        while True:
            event = self._said()
            if event is h11.NEED_DATA:
                if self._down.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    await self._client.write(self._down.send(go_on) or b"")
                data = await self._client.read()
                self._down.receive_data(data)
                if not data:
                    self._of.over = True
            elif isinstance(event, h11.Data):
                size += len(event.data)
                if size > MAX_BODY:
                    raise _missing(f"its body is over {MAX_BODY} bytes")
                digest.update(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return digest.hexdigest()
            elif not isinstance(event, h11.Request):
                raise Over("the program went away")

    def _answered(self, found: RecordedExchange) -> bytes:
        """Raises h11.LocalProtocolError."""
        body = found.answer.data
        headers = fields_of(found.answer_headers)
        if not found.broken and self.head.method != "HEAD" and found.status not in _EMPTY:
            # Who mends an answer by hand does not count.
            length = str(len(body)).encode()
            headers = [(name, _length(name, value, length)) for name, value in headers]
        reason = found.reason.encode("latin-1")
        events: list[h11.Event] = [
            h11.Response(status_code=found.status, headers=headers, reason=reason),
            h11.Data(data=body),
        ]
        if not found.broken:
            trailers = [] if self.head.version == b"HTTP/1.0" else fields_of(found.trailers)
            events.append(h11.EndOfMessage(headers=trailers))
        return b"".join(self._down.send(event) or b"" for event in events)


def _length(name: bytes, value: bytes, length: bytes) -> bytes:
    return length if name == b"content-length" else value
