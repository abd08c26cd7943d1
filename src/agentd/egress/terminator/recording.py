"""What is recorded of a sandbox's exchanges: one line each, in a file that its host shares.

The file is of a fixed size, and written from where it stands: the next terminator goes on behind
this one.
"""

import hashlib
import io
import re
from collections import Counter
from typing import NamedTuple

import msgspec

from agentd.egress.terminator.credentials import Headers, is_for_credentials
from agentd.egress.terminator.requests import RequestHead
from agentd.model.cassette import (
    MAX_BODY,
    MAX_CASSETTE,
    MAX_EXCHANGES,
    REDACTED,
    Pairs,
    RecordedBody,
    RecordedExchange,
    headers_of,
    line,
    unsayable,
)

#: Bytes of the cassettes of all sandboxes of one terminator, and of one owner's; of those that are
#: played as well.
MAX_TOGETHER, MAX_OF_ONE = 1 << 30, 256 << 20
#: Stands for an exchange that found no room.
LEFT_OUT = b"-\n"
#: Bytes that are kept for these.
_FOR_LEFT_OUT = 1 << 20
# Of a request: what says something of its body, or of the answer that is wanted.
_KEPT = (b"accept", b"content-type", b"content-encoding", b"range")
_COOKIES = (b"cookie", b"set-cookie")
_ATTRIBUTE = re.compile(
    rb"secure|httponly|partitioned|(expires|max-age|domain|path|samesite|priority)=[^=]*", re.I
)


class CassetteRoom:
    """What cassettes that are written may take: all together, and those of one owner. Of "", who is
    nobody's caller, all that there is."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    def left(self, owner: str) -> int:
        left = MAX_TOGETHER - self._taken.total()
        return min(left, MAX_OF_ONE - self._taken[owner]) if owner else left

    def take(self, owner: str, count: int) -> None:
        """Take so many bytes; less than none gives them back."""
        self._taken[owner] += count
        if not self._taken[owner]:
            del self._taken[owner]


class CassetteWriter:
    """Records one sandbox. What open exchanges hold counts as written: they are bounded."""

    def __init__(self, file: io.FileIO, begun: tuple[int, int], room: CassetteRoom) -> None:
        """Takes ownership. ``begun``: the bytes and exchanges that are in it."""
        self._file, self._room, self._owner = file, room, ""
        self._size, self._count = begun
        #: Bytes that are in it.
        self.written = self._size
        room.take(self._owner, self._size)
        if self._size:
            self._write(b"\n")  # behind what another did not finish

    def count_for(self, owner: str) -> None:
        """Take room of this owner's, with what is in it."""
        self._room.take(self._owner, -self._size)
        self._room.take(owner, self._size)
        self._owner = owner

    def take(self, count: int) -> bool:
        """Return whether there was room for so many bytes, which are taken then."""
        fits = self._fits(count)
        self._add(count if fits else 0)
        return fits

    def give(self, count: int) -> None:
        self._add(-count)

    def end(self) -> None:
        """Give all room back: its sandbox has ended. What is open still takes none."""
        self._room.take(self._owner, -self._size)
        self._room = CassetteRoom()

    def add(self, exchange: RecordedExchange) -> bool:
        """Write it; return whether there was room for it."""
        data = line(exchange)
        if self._count < MAX_EXCHANGES and self._fits(len(data)):
            self._count += 1
            self._write(data)
            return True
        if self._size + len(LEFT_OUT) <= MAX_CASSETTE:
            self._write(LEFT_OUT)
        return False

    def _fits(self, count: int) -> bool:
        left = self._room.left(self._owner)
        most = min(MAX_CASSETTE - _FOR_LEFT_OUT - self._size, left)
        return count <= most

    def _add(self, count: int) -> None:
        self._size += count
        self._room.take(self._owner, count)

    def _write(self, data: bytes) -> None:
        self._add(len(data))
        self.written += len(data)
        self._file.write(data)


class _Answer(NamedTuple):
    status: int
    reason: str
    headers: Pairs


class ExchangeDraft:
    """One exchange while it is going on: what the program says and is told, piece by piece."""

    def __init__(self, recording: CassetteWriter, head: RequestHead, host: str, port: int) -> None:
        self._recording, self._head = recording, head
        self._host, self._port = host, port
        self._asked, self._came = bytearray(), bytearray()
        self._digest = hashlib.sha256()
        self._answer = _Answer(0, "", ())
        self._trailers: Pairs = ()
        self._why = ""

    @property
    def has_answer(self) -> bool:
        """Return whether an answer has begun."""
        return self._answer.status > 0

    def asked(self, data: bytes) -> None:
        """Take a piece of the request's body."""
        self._digest.update(data)
        self._keep(self._asked, data, "its body")

    def answered(self, status: int, reason: bytes, headers: Headers) -> None:
        self._answer = _Answer(status, reason.decode("latin-1"), _redacted(headers))

    def came(self, data: bytes) -> None:
        """Take a piece of the answer's body."""
        self._keep(self._came, data, "its answer")

    def trailers(self, headers: Headers) -> None:
        self._trailers = _redacted(headers)

    def finish(self, *, broken: bool = False, why: str = "") -> str:
        """Write it down. ``broken``: the answer was; ``why`` there is none to write. Return why it
        was not recorded, if it was not."""
        why = self._why or why
        self.forget()
        made = RecordedExchange(
            method=self._head.method,
            host=self._host,
            port=self._port,
            target=self._head.target,
            headers=_kept(self._head.fields),
            body=RecordedBody(sha256=self._digest.hexdigest()),
            status=self._answer.status,
            unrecorded=why,
        )
        if not why:
            whole = msgspec.structs.replace(
                made,
                body=RecordedBody.of(bytes(self._asked)),
                reason=self._answer.reason,
                answer_headers=self._answer.headers,
                answer=RecordedBody.of(bytes(self._came)),
                trailers=self._trailers,
                broken=broken,
            )
            odd = unsayable(whole)
            why = f"its answer has {odd}, which a cassette cannot have" if odd else ""
            made = msgspec.structs.replace(made, unrecorded=why) if why else whole
        return why if self._recording.add(made) else "the cassette is full"

    def _keep(self, kept: bytearray, data: bytes, what: str) -> None:
        if self._why:
            return
        if len(kept) + len(data) > MAX_BODY:
            self._why = f"{what} is over {MAX_BODY} bytes"
        elif not self._recording.take(len(data)):
            self._why = f"the cassette had no room for {what}"
        else:
            kept += data
            return
        self.forget()
        self._asked, self._came = bytearray(), bytearray()

    def forget(self) -> None:
        """Take none of the file's room any more."""
        self._recording.give(len(self._asked) + len(self._came))


class Unrecorded:
    """The draft of an exchange of which none is made."""

    has_answer = False

    def asked(self, _data: bytes) -> None: ...

    def answered(self, _status: int, _reason: bytes, _headers: Headers) -> None: ...

    def came(self, _data: bytes) -> None: ...

    def trailers(self, _headers: Headers) -> None: ...

    def forget(self) -> None: ...

    def finish(self, *, broken: bool = False, why: str = "") -> str:
        del broken, why
        return ""


def _kept(fields: Headers) -> Pairs:
    """Of a request's headers what the file has."""
    kept = [pair for pair in fields if pair[0].lower() in _KEPT or _is_secret(pair[0])]
    return _redacted(kept)


def _redacted(fields: Headers) -> Pairs:
    return headers_of((name.lower(), _shown(name, value)) for name, value in fields)


def _shown(name: bytes, value: bytes) -> bytes:
    if not _is_secret(name):
        return value
    if name.lower() != b"set-cookie":
        return REDACTED
    cookie, *others = value.split(b";")
    name = cookie[: cookie.find(b"=") + 1]  # nothing, where there is a value alone
    # Behind a comma there may be the next cookie.
    attributes = [one for one in others if _ATTRIBUTE.fullmatch(one.strip())]
    return b";".join((name + REDACTED, *attributes))


def _is_secret(name: bytes) -> bool:
    return name.lower() in _COOKIES or is_for_credentials(name)
