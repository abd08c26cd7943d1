"""A request that is answered from a cassette: nobody is asked, and the same is said each time."""

import hashlib
import io

import h11

from agentd.egress.terminator.exchange import JudgedExchange, Over
from agentd.egress.terminator.requests import RefusedRequest
from agentd.model.cassette import MAX_BODY, RecordedExchange, fields_of, parse

_RECORD = "record it, with --net record:FILE and rules for what is to be asked"
_PIECE = 1 << 20
_EMPTY = (204, 304)
_Key = tuple[str, str, int, str, str]


class CassettePlayer:
    """What of a cassette was given, and what comes next."""

    def __init__(self, file: io.FileIO) -> None:
        """Closes ``file``. Raises InvalidInput."""
        with file:
            # FileIO.readall would seek, which is not allowed here.
            cassette = parse(b"".join(iter(lambda: file.read(_PIECE), b"")))
        self._left_out = cassette.left_out
        self._found: dict[_Key, list[RecordedExchange]] = {}
        self._targets: set[tuple[str, str, int, str]] = set()
        for each in cassette.exchanges:
            self._found.setdefault(each.key, []).append(each)
            self._targets.add(each.key[:4])

    def next(self, key: _Key) -> RecordedExchange:
        """Return the next of those that are the same, and the last again. Raises RefusedRequest
        where there is none."""
        there = self._found.get(key)
        if there is None:
            raise _missing(self._why_not(key))
        found = there.pop(0) if len(there) > 1 else there[0]
        if found.unrecorded:
            raise _missing(f"it was not recorded: {found.unrecorded}")
        return found

    def _why_not(self, key: _Key) -> str:
        method, host, port, target, _ = key
        what = f"{method} {host}:{port}{target}"[:500]
        if key[:4] in self._targets:
            return f"the cassette has {what} with another body"
        more = f", and {self._left_out} were left out of it" if self._left_out else ""
        return f"the cassette has no {what}{more}"


def _missing(why: str) -> RefusedRequest:
    return RefusedRequest("not_recorded", why, fix=_RECORD)


class ReplayedExchange(JudgedExchange):
    """One without a host."""

    async def run(self) -> bool:
        of, head = self._of, self._head
        try:
            digest = await self._digest()
        except h11.RemoteProtocolError:
            raise RefusedRequest("bad_request", "its body is no HTTP", status=400) from None
        player = of.sandbox.player
        if player is None:
            why = "no cassette has been put into the sandbox yet"
            fix = "put one in: agentd net cassette SANDBOX --put FILE"
            raise RefusedRequest("no_cassette", why, fix=fix)
        found = player.next((head.method, of.name, of.port, head.target, digest))
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
            event = self._down.next_event()
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
        if not found.broken and self._head.method != "HEAD" and found.status not in _EMPTY:
            # Who mends an answer by hand does not count.
            length = str(len(body)).encode()
            headers = [(name, _length(name, value, length)) for name, value in headers]
        reason = found.reason.encode("latin-1")
        events: list[h11.Event] = [
            h11.Response(status_code=found.status, headers=headers, reason=reason),
            h11.Data(data=body),
        ]
        if not found.broken:
            trailers = [] if self._head.version == b"HTTP/1.0" else fields_of(found.trailers)
            events.append(h11.EndOfMessage(headers=trailers))
        return b"".join(self._down.send(event) or b"" for event in events)


def _length(name: bytes, value: bytes, length: bytes) -> bytes:
    return length if name == b"content-length" else value
