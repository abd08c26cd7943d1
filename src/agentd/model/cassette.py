"""What a sandbox asked and was answered, as a file of JSON lines that can be read and compared.

{"cassette": "agentd", "version": 1}
{"method": "POST", "host": "api.example.com", "port": 443, "target": "/v1/x?a=b",
 "headers": [["content-type", "application/json"]], "body": {"text": "{}"}, "status": 200,
 "reason": "OK", "answer_headers": [...], "answer": {"base64": "..."}}
{"exchanges": 1, "left_out": 0}

The last line says how many there are: a file without it was cut. Pure.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable
from typing import NoReturn, TypeVar

import msgspec

from agentd.model import typed
from agentd.model.errors import InvalidInput

VERSION = 1
#: Bytes of a cassette, and of one body; exchanges of a cassette.
MAX_CASSETTE, MAX_BODY, MAX_EXCHANGES = 64 << 20, 4 << 20, 10_000
#: Of one exchange, in JSON: each header is three. Heads and trailers of 64 KiB have fewer.
MAX_VALUES = 1 << 18
#: What stands for the value of a header that is for credentials.
REDACTED = b"redacted"

_AGAIN = "record it anew, with the rule record:FILE"
# What would be spelled at length in JSON.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"([\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_HOST = re.compile(r"[a-z0-9_.-]{1,253}")
_TARGET = re.compile(r"/[^ \r\n\0]*")
_WORDS = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
Pairs = tuple[tuple[str, str], ...]
T = TypeVar("T")


class RecordedBody(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One of ``text`` and ``base64``; neither is nothing. ``sha256``, in hex, is of one that was
    too large to be kept."""

    text: str = ""
    base64: str = ""
    sha256: str = ""

    @classmethod
    def of(cls, data: bytes) -> "RecordedBody":
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = "\0"
        if _CONTROL.search(text):
            return cls(base64=base64.b64encode(data).decode())
        return cls(text=text)

    @property
    def data(self) -> bytes:
        """Raises ValueError."""
        return base64.b64decode(self.base64, validate=True) if self.base64 else self.text.encode()

    @property
    def digest(self) -> str:
        """Raises ValueError."""
        return self.sha256 or hashlib.sha256(self.data).hexdigest()


NOTHING = RecordedBody()


class RecordedExchange(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A request, as a program sent it, and its answer. ``port`` is that which was dialled.
    ``broken``: the answer was broken off, and ``answer`` is what came of it. ``unrecorded`` says
    why there is no answer here."""

    method: str
    host: str
    port: int
    target: str
    headers: Pairs = ()
    body: RecordedBody = NOTHING
    status: int = 0
    reason: str = ""
    answer_headers: Pairs = ()
    answer: RecordedBody = NOTHING
    trailers: Pairs = ()
    broken: bool = False
    unrecorded: str = ""

    @property
    def place(self) -> str:
        """What a request has to be the same in beside its body."""
        return place(self.method, self.host, self.port, self.target)


class _First(msgspec.Struct, frozen=True):
    cassette: str
    version: int


class _Last(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    exchanges: int
    left_out: int


class Cassette(msgspec.Struct, frozen=True):
    """``left_out``: exchanges for which there was no room."""

    exchanges: tuple[RecordedExchange, ...]
    left_out: int = 0

    @property
    def endpoints(self) -> tuple[tuple[str, int], ...]:
        """The hosts and ports that were asked, each once."""
        return tuple(dict.fromkeys((each.host, each.port) for each in self.exchanges))

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules of a network that has its hosts."""
        return tuple(sorted(f"{host}:{port}" for host, port in self.endpoints))


def place(method: str, host: str, port: int, target: str) -> str:
    """Return what stands for what is asked, in 64 characters."""
    asked = msgspec.json.encode([method, host, port, target])
    return hashlib.sha256(asked).hexdigest()


def line(exchange: RecordedExchange) -> bytes:
    """Return it as it stands in the file, with the line's end."""
    return msgspec.json.encode(exchange) + b"\n"


def joined(lines: Iterable[bytes], left_out: int) -> bytes:
    """Return the file of these lines of exchanges."""
    found = list(lines)
    first = msgspec.json.encode(_First("agentd", VERSION))
    last = msgspec.json.encode(_Last(len(found), left_out))
    return first + b"\n" + b"".join(found) + last + b"\n"


def parse(data: bytes) -> Cassette:
    """Raises InvalidInput, naming the line and the fix."""
    spans, left_out = spans_of(data)
    found = (exchange_of(number, data[slice(*span)]) for number, span in enumerate(spans, 2))
    return Cassette(tuple(found), left_out)


def spans_of(data: bytes) -> tuple[list[tuple[int, int]], int]:
    """Return where the line of each exchange begins and ends, and how many were left out. Raises
    InvalidInput."""
    check_size(data)
    end = data.find(b"\n")
    _check_first(data[:end] if end >= 0 else data)
    spans = []
    while 0 <= end < len(data) - 1:
        begin, end = end + 1, data.find(b"\n", end + 1)
        spans.append((begin, end))
        if len(spans) > MAX_EXCHANGES + 1:
            _wrong(f"has over {MAX_EXCHANGES} exchanges", "record less at once")
    if end < 0 or not spans or not data.startswith(b'{"exchanges"', spans[-1][0]):
        _cut(data)
    counts = _decoded(len(spans) + 1, data[slice(*spans.pop())], _Last)
    if counts.exchanges != len(spans):
        _wrong(
            f"says at its end that it has {counts.exchanges} exchanges, and has {len(spans)}",
            f"change the number if lines were left out on purpose; else {_AGAIN}",
        )
    return spans, counts.left_out


def check_size(data: bytes) -> None:
    """Raises InvalidInput."""
    if len(data) > MAX_CASSETTE:
        _wrong(f"has over {MAX_CASSETTE} bytes", "record less at once")


def _check_first(head: bytes) -> None:
    try:
        first = typed.decoder(_First).decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        first = _First("", 0)
    if first.cassette != "agentd":
        _wrong("line 1 is not that of a cassette", f"name a file that agentd wrote, or {_AGAIN}")
    if first.version != VERSION:
        fix = f"use a newer agentd, or {_AGAIN}" if first.version > VERSION else _AGAIN
        _wrong(f"line 1 has version {first.version}, and this agentd reads {VERSION}", fix)


def exchange_of(number: int, text: bytes) -> RecordedExchange:
    """Return what a line says. Raises InvalidInput, naming it by its number."""
    if typed.has_more_values(text, MAX_VALUES):
        _wrong(f"line {number} has over {MAX_VALUES} values", "leave headers out of it")
    found = _decoded(number, text, RecordedExchange)
    if not (_HOST.fullmatch(found.host) and 0 < found.port < 1 << 16):
        _wrong(
            f"line {number} has the host {found.host[:64]!r}:{found.port}, which is none", _AGAIN
        )
    is_path = _TARGET.fullmatch(found.target) and found.target.isascii()
    if not (is_path and _NAME.fullmatch(found.method)):
        asked = f"{found.method[:32]} {found.target[:64]}"
        _wrong(f"line {number} has {asked!r}, which no request asks for", "write it as GET /v1/x")
    try:
        sizes = [len(found.body.data), len(found.answer.data)]
    except (ValueError, binascii.Error):
        _wrong(f"line {number} has a body that is no base64", _AGAIN)
    if max(sizes) > MAX_BODY:
        _wrong(f"line {number} has a body of {max(sizes)} bytes, over {MAX_BODY}", _AGAIN)
    if not found.unrecorded and not 200 <= found.status <= 999:
        _wrong(f"line {number} has the status {found.status}", "give it one of 200 to 999")
    if odd := unsayable(found):
        _wrong(f"line {number} has {odd}, which is none", _AGAIN)
    return found


def unsayable(exchange: RecordedExchange) -> str:
    """Return what of its answer is no HTTP, "" where all of it is."""
    for name, value in (*exchange.answer_headers, *exchange.trailers):
        if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            return f"the header {name[:64]!r}"
    return "" if _WORDS.fullmatch(exchange.reason) else f"the reason {exchange.reason[:64]!r}"


def _decoded(number: int, text: bytes, kind: type[T]) -> T:
    try:
        return typed.decoder(kind).decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _wrong(f"line {number} does not fit: {str(error)[:200]}", f"mend it, or {_AGAIN}")


def _cut(data: bytes) -> NoReturn:
    whole = data.count(b"\n")
    _wrong(f"ends after line {whole} without its last, which counts them: it was cut", _AGAIN)


def _wrong(what: str, fix: str) -> NoReturn:
    raise InvalidInput(f"the cassette {what}", remediation=fix)


def check_hosts(endpoints: Iterable[tuple[str, int]], may: Callable[[str, int], bool]) -> None:
    """Raises InvalidInput where one of a cassette ``may`` not be asked."""
    for host, port in endpoints:
        if not may(host, port):
            _wrong(
                f"has {host}:{port}, which no rule of the sandbox has",
                f"make the sandbox with replay,{host}:{port}",
            )


def headers_of(fields: Iterable[tuple[bytes, bytes]]) -> Pairs:
    """Return them as text; what is no ASCII as HTTP has it, a byte a character."""
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)


def fields_of(pairs: Pairs) -> list[tuple[bytes, bytes]]:
    """Undo ``headers_of``. Raises UnicodeEncodeError."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
