"""The table in docs/api.md: each row is written above the function that answers it; and how an
ordinary one is answered.

An ordinary operation is one call of the service: decoding, the call and encoding are all done by
one thread, so that a request costs one hop there and one back. Who asks is found out before that:
each caller has a share of the threads."""

import contextlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from agentd.ingest.rest import unfit
from agentd.ingest.rest.api import Exchange, answer, as_sent, error_answer
from agentd.ingest.web.errors import UnsupportedMediaType
from agentd.ingest.web.rooms import Room, caller
from agentd.model import typed
from agentd.model.answer import Answer
from agentd.model.api import MkdirBody, MoveBody, Repeat
from agentd.model.capability import CallFailed
from agentd.model.door import DoorService
from agentd.model.errors import AgentdError, InvalidInput, Refused

F = TypeVar("F", bound=Callable[..., object])
_MOST = 64
_SHORT = 4096  # bytes of a body that is read before it is known whose it is
_TAKES: Mapping[type | str, str] = {
    int: "a whole number, in decimal",
    bool: "true or false",
    "mode": "an octal number, as 644",
}


class Parameter(msgspec.Struct, frozen=True):
    """Declares a parameter of the query: ``kind`` is str, int, bool, or "mode" for an octal number.
    One without a default is required. ``repeat`` makes it a tuple."""

    name: str
    kind: type | str = str
    default: Any = msgspec.UNSET
    repeat: bool = False
    help: str = ""


def parse(query: bytes, declared: Sequence[Parameter]) -> dict[str, Any]:
    """Return the values of what is declared, by name. Raises InvalidInput."""
    if not query:
        return {p.name: _value(p, None) for p in declared}
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST, errors="strict"
        )
    except UnicodeDecodeError:
        raise InvalidInput(
            "the query is not UTF-8", remediation="write it in UTF-8, percent-encoded"
        ) from None
    except ValueError as error:
        raise InvalidInput(
            "the query is malformed",
            cause=str(error),
            remediation="write it as name=value&name=value, percent-encoded",
        ) from None
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        given.setdefault(name, []).append(value)
    known = {p.name for p in declared}
    for name in given.keys() - known:
        raise InvalidInput(
            f"there is no query parameter {name[:64]!r}",
            remediation=f"there are: {', '.join(sorted(known)) or 'none'}",
        )
    return {p.name: _value(p, given.get(p.name)) for p in declared}


def _value(parameter: Parameter, given: list[str] | None) -> Any:
    if given is None:
        if parameter.default is msgspec.UNSET:
            raise InvalidInput(
                f"the query parameter {parameter.name!r} is missing",
                remediation=f"add {parameter.name}=... to the URL",
            )
        return parameter.default
    values = tuple(_convert(parameter, text) for text in given)
    if parameter.repeat:
        return values
    if len(values) > 1:
        raise InvalidInput(
            f"the query parameter {parameter.name!r} is there twice", remediation="give it once"
        )
    return values[0]


def _convert(parameter: Parameter, text: str) -> Any:
    kind = parameter.kind
    if kind is bool:
        found = {"true": True, "1": True, "": True, "false": False, "0": False}.get(text.lower())
        if found is not None:
            return found
    elif kind is int:
        # int() would take "1_0", " 1" and digits of other scripts.
        if text.isascii() and text.isdigit() and len(text) < 19:
            return int(text)
    elif kind == "mode":
        if 1 <= len(text) <= 5 and not set(text) - set("01234567") and int(text, 8) <= 0o7777:
            return int(text, 8)
    else:
        if "\0" in text:
            raise InvalidInput(
                f"the query parameter {parameter.name!r} has a zero byte in it",
                remediation="leave it out",
            )
        return text
    told = f"the query parameter {parameter.name}={text[:64]!r} cannot be read"
    raise InvalidInput(told, remediation=f"give {_TAKES[kind]}")


def labels(pairs: Sequence[str]) -> Mapping[str, str]:
    """Read labels from ``k=v`` texts. Raises InvalidInput."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InvalidInput(
                f"label={pair[:64]!r} is not of the form key=value",
                remediation="write it as label=key=value",
            )
        found[key] = value
    return found


class Arguments(msgspec.Struct, frozen=True):
    path: Mapping[str, str]
    query: dict[str, Any]
    body: Any
    raw: bytes = b""  # the body as it came

    @property
    def id(self) -> str:
        return self.path["id"]

    @property
    def process(self) -> str:
        return self.path["proc"]


# Of a body, which is decoded twice. A capability's parameters may have 250,000.
MAX_VALUES = 1 << 18
LARGE = "write large data to a file: PUT .../files takes it as a stream"
Call = Callable[[DoorService, Arguments], object]
AtOnce = Callable[[DoorService, Arguments], Callable[[], None] | None]
Stream = Callable[[Exchange, dict[str, Any]], Awaitable[None]]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """Describes a row of the table: ``call`` is an ordinary one's; ``stream`` answers by itself.
    ``answer`` is a msgspec type, or a media type. The service is what checks ``scope``: here it is
    for the reader."""

    method: str
    path: str
    scope: str
    help: str
    call: Call | None = None
    stream: Stream | None = None
    query: tuple[Parameter, ...] = ()
    body: Any = None
    answer: Any = None
    status: int = 200
    waits: bool = False  # for something inside a sandbox
    is_large: bool = False  # it has an effect, and its answer may be of many bytes
    control: bool = False  # looks at one, ends it or what is in it: always has room
    once: bool = False  # takes an Idempotency-Key
    # To do it twice is not to do it once, and it takes no key: what to do instead. Where neither
    # is said it may be repeated, and a key makes no difference.
    keyless: str = ""
    lasting: bool = True  # what it does outlives a loss of power, or may
    # What may be done without a thread, and is then answered without a body; what it returns is
    # done behind the answer. Where it returns None, ``call`` is made.
    at_once: AtOnce | None = None
    also: Mapping[int, Any] = {}  # other statuses, and their answers

    async def handle(self, exchange: Exchange) -> None:
        query = parse(exchange.scope["query_string"], self.query)
        check_encoding(exchange)
        if self.keyless and exchange.headers.get("idempotency-key") is not None:
            raise InvalidInput(
                f"{self.method} {self.path} takes no Idempotency-Key", remediation=self.keyless
            )
        if self.stream is not None:
            await self.stream(exchange, query)
            return
        limit = exchange.web.limits.body
        length = exchange.length
        key = exchange.headers.get("idempotency-key") if self.once else None
        exchange.comes_again = key is not None and not self.lasting  # the next daemon does it then
        if length is not None and length > limit:
            await exchange.body(limit, LARGE)  # raises TooLarge
        raw = b""
        if self.control and 0 < (length or 0) <= _SHORT:
            # First: of a client that has gone before it is known who it was there is no body any
            # more, and what it has whole sent to end something is done all the same.
            raw = await exchange.body(limit, LARGE)
        service = await exchange.authenticate()
        if self.is_large:
            exchange.web.answers.require_room(caller.get())  # before it is done
        if length != 0 and not raw:
            raw = await exchange.body(limit, LARGE)
        rest = None
        if self.at_once is not None and not raw:
            rest = self.at_once(service, Arguments(exchange.path, query, None))
        if rest is not None:
            await self._answer_before(rest, exchange)
            return
        call = partial(exchange.build, partial(self._answer, service, exchange, query, raw))
        if key is None:
            made = await self._room(exchange).run(call)
        else:
            made = as_sent(await self._at_most_once(exchange, service, key, query, raw, call))
        await exchange.answer(made)

    async def _answer_before(self, rest: Callable[[], None], exchange: Exchange) -> None:
        try:
            await exchange.answer(answer(None, self.status))
        finally:
            with contextlib.suppress(Exception):  # the service has told its log
                await exchange.web.threads.short.run(rest)

    async def _at_most_once(
        self,
        exchange: Exchange,
        service: DoorService,
        key: str,
        query: dict[str, Any],
        raw: bytes,
        call: Callable[[], Answer],
    ) -> Answer:
        request, work = fingerprint(exchange, raw), recordable(call)

        def authorise(approved: frozenset[str] | None) -> None:
            body = None if self.body is None else decode(exchange, self.body, raw)
            id_ = exchange.path.get("id", "")
            service.repeats.readmit(_repeat(body, id_, query, raw), approved)

        return await service.repeats.once(
            key, request, work, self._room(exchange).run, lasting=self.lasting, authorise=authorise
        )

    def _room(self, exchange: Exchange) -> Room:
        threads = exchange.web.threads
        if self.control:
            return threads.control
        return threads.waits if self.waits else threads.short

    # -- in a thread --

    def _answer(
        self, service: DoorService, exchange: Exchange, query: dict[str, Any], raw: bytes
    ) -> Answer:
        if self.call is None:
            raise TypeError(f"{self.path} has nothing to call")
        body = None if self.body is None else decode(exchange, self.body, raw)
        if self.body is None and raw:
            raise InvalidInput("this takes no body", remediation="send it without one")
        value = self.call(service, Arguments(exchange.path, query, body, raw))
        return answer(value, self.status)


class OperationTable(list[Operation]):
    """Holds the operations of a module, in order."""

    def row(self, method: str, path: str, scope: str, **facts: Any) -> Callable[[F], F]:
        """Add the decorated function as an operation; ``facts`` are Operation's other fields.

        A coroutine function answers by itself. ``help`` is its docstring's first line, ``answer``
        the type that the function returns; one that returns None is answered with 204.
        """

        def add(function: F) -> F:
            kind = "stream" if inspect.iscoroutinefunction(function) else "call"
            if kind == "call":
                returned = function.__annotations__["return"]
                facts.setdefault("answer", returned)
                facts.setdefault("status", 204 if returned is None else 200)
            words = (function.__doc__ or "").partition("\n")[0].removesuffix(".")
            facts.setdefault("help", words[:1].lower() + words[1:])
            facts[kind] = function
            self.append(Operation(method=method, path=path, scope=scope, **facts))
            return function

        return add


def decode(exchange: Exchange, kind: Any, raw: bytes) -> Any:
    """Decode the body as ``kind``; no body at all is an empty object. Raises InvalidInput."""
    media = (exchange.headers.get("content-type") or "").partition(";")[0].strip().lower()
    # A form of another site's page can send every type but this one without asking first.
    if raw and media != "application/json":
        raise InvalidInput(
            f"the body is not JSON but {media[:64] or 'of no type'}",
            remediation="send Content-Type: application/json",
        )
    return decode_json(kind, raw or b"{}")


def decode_json(kind: Any, raw: bytes | str) -> Any:
    """Decode JSON as ``kind``, at most MAX_VALUES values. Raises InvalidInput."""
    text = raw if isinstance(raw, bytes) else raw.encode(errors="surrogatepass")
    if typed.has_more_values(text, MAX_VALUES):
        raise InvalidInput(f"the body has over {MAX_VALUES} values", remediation=LARGE)
    try:
        found = typed.decoder(kind).decode(raw)
        _each_once(raw if isinstance(raw, str) else raw.decode())
    except (msgspec.DecodeError, UnicodeError) as error:  # ValidationError is one
        fix = unfit.remediation(kind, str(error))
        raise InvalidInput(f"the body does not fit: {_why(error, raw)}", remediation=fix) from None
    except RecursionError:
        raise InvalidInput("the body is nested too deeply", remediation="nest it less") from None
    return found


def _why(error: Exception, raw: bytes | str) -> str:
    text = raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
    # The decoder takes half of a pair at the end of a text for the end of the body.
    if str(error) == "Input data was truncated" and re.search(r'\\u[dD][89abAB][^"]{2}"', text):
        return "JSON is malformed: invalid utf-16 surrogate pair"
    return str(error)


def _pairs_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(
            name for name, times in Counter(name for name, _ in pairs).items() if times > 1
        )
        raise InvalidInput(f"the body has the key {twice[:64]!r} twice", remediation="send it once")
    return found


# Numbers are not what it is about: an int of many digits would be an error of its own.
_each_once = json.JSONDecoder(object_pairs_hook=_pairs_once, parse_int=float, strict=False).decode


def check_encoding(exchange: Exchange) -> None:
    """Refuse a body that is encoded. Raises UnsupportedMediaType."""
    coding = exchange.headers.get("content-encoding")
    if coding is not None and coding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(
            f"the body is encoded as {coding[:64]!r}",
            remediation="send it without Content-Encoding",
        )


def fingerprint(exchange: Exchange, raw: bytes) -> bytes:
    """Return what must be the same when an Idempotency-Key is used again."""
    scope = exchange.scope
    head = scope["method"].encode(), scope["raw_path"], scope["query_string"], raw
    return b"".join(len(part).to_bytes(8, "big") + part for part in head)


def recordable(call: Callable[[], Answer]) -> Callable[[], Answer]:
    """Make a call answer errors, too. Those by which nothing was done are raised: the request may
    be sent again with its key."""

    def answering() -> Answer:
        try:
            return call()
        except CallFailed as error:
            return error_answer(error)  # it has run, as far as it went
        except (InvalidInput, Refused):
            raise
        except AgentdError as error:
            return error_answer(error)

    return answering


def _repeat(body: Any, id_: str, query: dict[str, Any], raw: bytes) -> Repeat:
    """Return what has to be allowed anew: a file's place, or two, or what the body asks for."""
    if isinstance(body, MoveBody):
        return Repeat(None, id_, body.path, body.to)
    if isinstance(body, MkdirBody):
        return Repeat(None, id_, body.path)
    if body is None and "path" in query:
        return Repeat(None, id_, query["path"])
    return Repeat(body, id_, raw=raw)
