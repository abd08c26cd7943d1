"""HttpClient to a daemon: encoded, sent, tried again where that is safe, and their answers."""

import atexit
import http.client
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack, overload
from urllib.parse import quote

import msgspec

from agentd._version import __version__
from agentd.client import arguments, cut
from agentd.client.http.address import Address
from agentd.client.http.connection import Connection, NeverAsked, Pool, Woken
from agentd.client.http.errors import Unreachable, from_answer
from agentd.model import typed
from agentd.model.errors import AgentdError, InvalidInput, NotFound
from agentd.model.install import DISTRIBUTION

# A daemon that is started again is back within these seconds.
DELAYS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
_MAX_ERROR = 1 << 20
_SAFE = ("GET", "DELETE")
T = TypeVar("T")
Query: TypeAlias = "Mapping[str, object] | Iterable[tuple[str, object]]"


class How(TypedDict, total=False):
    """As of ``HttpClient.call``."""

    query: Query
    once: bool
    safe: bool
    ends: bool
    wake: int
    on_wake: Callable[[], bool] | None


class HttpClient:
    """Sends requests to one daemon. Thread-safe; ``close`` it when it is no longer needed: the next
    use opens it again."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.pool = Pool(address)

    @overload
    def call(
        self, method: str, path: str, body: object = None, *, into: type[T], **how: Unpack[How]
    ) -> T: ...
    @overload
    def call(self, method: str, path: str, body: object = None, **how: Unpack[How]) -> None: ...
    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        into: type[T] | None = None,
        query: Query = (),
        once: bool = False,
        safe: bool = False,
        ends: bool = False,
        wake: int = -1,
        on_wake: Callable[[], bool] | None = None,
    ) -> T | None:
        """Ask, and return the answer as ``into``, or None.

        ``once``: the daemon does it at most once, however often it is sent. ``safe``: to do it
        twice does no harm. Either is sent again after a lost connection. ``ends``: it ends
        something, and waits for no other. Once ``wake`` is readable ``on_wake`` is called, now and
        then until it is True or the answer comes.
        Raises what the daemon says, or Unreachable.
        """
        headers = {"Content-Type": "application/json"} if body is not None else {}
        data = None if body is None else as_json(body)
        if once:
            headers["Idempotency-Key"] = new_key()

        def attempt(fresh: bool) -> bytes:
            waker = None if on_wake is None else (wake, on_wake)
            with self._exchange(
                method, path, query, data, headers, fresh, waker=waker, ends=ends
            ) as response:
                return response.read()

        answer = self.trying(safe or once or method in _SAFE, attempt)
        return None if into is None else self.decode(into, answer)

    def pages(self, path: str, into: type[T]) -> tuple[T, ...]:
        """Return a list, all of its pages."""
        found: list[T] = []
        cursor: str | None = ""
        while cursor is not None:
            more = [("cursor", cursor)] if cursor else []
            with self.open("GET", path, query=more) as response:
                found += self.decode(list[into], response.read())  # type: ignore[valid-type]
                cursor = response.headers.get("agentd-next")
        return tuple(found)

    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: "bytes | Iterable[bytes] | None" = None,
        headers: Mapping[str, str] | None = None,
        once: bool = False,
        wake: int = -1,
    ) -> "Iterator[http.client.HTTPResponse]":
        """Return an answer to be read as it comes. Reads raise Woken once ``wake`` is readable.

        A body in pieces cannot be sent twice, and is not.
        """
        asked = dict(headers or {})
        if once:
            asked["Idempotency-Key"] = new_key()
        source = None if body is None or isinstance(body, bytes) else _Source(body)
        safe = source is None and (once or method in _SAFE)
        sent = body if source is None else iter(source)

        def begin(fresh: bool) -> Any:
            exchange = self._exchange(method, path, query, sent, asked, fresh, wake)
            return exchange, exchange.__enter__()

        try:
            exchange, response = self.trying(safe, begin)
        except Unreachable:
            if source is not None and source.error is not None:
                raise source.error from None
            raise
        with ExitStack() as stack, self._reading():
            stack.push(exchange)
            yield response

    def upload(
        self, path: str, body: "bytes | Iterable[bytes]", query: Query, into: Any = None
    ) -> Any:
        with self.open("PUT", path, query=query, body=body, once=True) as response:
            answer = response.read()
        return None if into is None else self.decode(into, answer)

    def trying(self, safe: bool, attempt: Callable[[bool], T]) -> T:
        """Return what ``attempt`` does, again after a lost connection where that is ``safe``."""
        lost: Exception | None = None
        for delay in (0.0, *(DELAYS if safe else ())):
            if delay:  # even a sleep of 0 gives the processor away
                cut.of_this_thread().sleep(delay)
            cut.of_this_thread().check()
            try:
                return attempt(lost is not None)
            except Unreachable as error:
                if lost is None:
                    raise
                lost = error
            except NeverAsked:
                if lost is not None:  # but by the one that broke
                    raise Woken from None
                raise
            except (OSError, http.client.HTTPException) as error:
                lost = error
        raise self._lost(lost) from lost

    def headers(self) -> dict[str, str]:
        """Return the headers that say who asks."""
        found = {"User-Agent": f"{DISTRIBUTION}/{__version__}"}
        if self.address.api_key:
            found["Authorization"] = f"Bearer {self.address.api_key}"
        return found

    def close(self) -> None:
        self.pool.close()

    def decode(self, into: type[T], data: bytes) -> T:
        try:
            return typed.decoder(into).decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self.misunderstood(error) from error

    def misunderstood(self, error: Exception) -> AgentdError:
        return AgentdError(
            f"the answer of {self.address} is not what it should be",
            cause=str(error),
            remediation="use the same version of agentd on both sides",
        )

    @contextmanager
    def _exchange(
        self,
        method: str,
        path: str,
        query: Query,
        body: Any,
        headers: Mapping[str, str],
        fresh: bool,
        wake: int = -1,
        waker: tuple[int, Callable[[], bool]] | None = None,
        ends: bool = False,
    ) -> "Iterator[http.client.HTTPResponse]":
        """``wake`` is for the answer's body, ``waker`` for all of it."""
        connection, done = self.pool.take(fresh=fresh, ends=ends), False
        response: http.client.HTTPResponse | None = None
        try:
            with cut.of_this_thread().holding(connection):
                if waker is not None:
                    connection.wake_by(*waker, dials_on=ends)
                response = self._answer(connection, method, path + encoded(query), body, headers)
                if response.status >= 400:
                    found = response.read(_MAX_ERROR)
                    done = response.isclosed()
                    raise from_answer(response.status, response.headers, found)
                if waker is None:
                    connection.wake_by(wake)
                yield response
                # What was not read to its end cannot be used again.
                done = response.isclosed()
        finally:
            if response is not None:
                response.close()  # one that ends with its connection is the socket's last owner
            self.pool.give_back(connection, reusable=done)

    def _answer(
        self,
        connection: Connection,
        method: str,
        target: str,
        body: Any,
        headers: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        sent = {**self.headers(), **headers}
        chunked = body is not None and not isinstance(body, bytes)
        if chunked:
            sent["Transfer-Encoding"] = "chunked"
        try:
            connection.request(method, target, body, sent, encode_chunked=chunked)
        except (BrokenPipeError, ConnectionResetError):
            # It may have refused before it had read all: then it has said why.
            if connection.sock is None:
                raise
        return connection.getresponse()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (ConnectionError, http.client.HTTPException) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception | None) -> Unreachable:
        if isinstance(error, http.client.IncompleteRead):
            return Unreachable(
                f"the answer of {self.address} was cut short",
                cause="the daemon could not go on with it: the sandbox may have ended",
                remediation="look whether it is there, and ask again; the daemon's log says more",
            )
        fix = "it may have been done or not: look before you do it again"
        if self.address.tls and not self.address.cert:
            fix += "; a daemon that wants a client's certificate (AGENTD_CERT) breaks all without"
        return Unreachable(
            f"the connection to {self.address} broke",
            cause=str(error) or type(error).__name__,
            remediation=fix,
        )


class _Source:
    """The caller's pieces; what goes wrong in making them is the caller's own error."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._pieces
        except OSError as error:
            self.error = error
            raise


def encoded(query: Query) -> str:
    """Write ``?name=value&...``; None is left out. Raises InvalidInput for what is not UTF-8."""
    pairs = query.items() if isinstance(query, Mapping) else query
    texts = [(name, _raw(_text(value))) for name, value in pairs if value is not None]
    parts = [f"{name}={quote(text, safe='/:')}" for name, text in texts]
    return "?" + "&".join(parts) if parts else ""


def segment(name: str) -> str:
    """Quote one part of a path; an id with dots in it names nothing of another's.

    Raises InvalidInput for an empty one, as of a variable that is not set: it would be no part; and
    NotFound for one with a slash, which a server may take for two.
    """
    arguments.text(name, "an id")
    if not name:
        raise InvalidInput("an empty id names nothing", remediation="is a variable of it unset?")
    if "/" in name:
        raise NotFound(
            f"there is nothing with the id {name[:64]!r}",
            remediation="no id and no name has a slash in it; ls lists those there are",
        )
    # What came as other bytes is given back as those: nothing is called so.
    return quote(_raw(name, "surrogateescape"), safe="").replace(".", "%2E")


def as_json(body: object) -> bytes:
    """Write a body as JSON. Raises InvalidInput."""
    try:
        written = msgspec.json.encode(body)
        if b"null" in written:  # which is what msgspec writes of a number that is none
            arguments.finite(body)
        return written
    except (TypeError, OverflowError) as error:
        raise InvalidInput(
            "what is asked holds what JSON has no value for",
            cause=str(error),
            remediation="send text, finite numbers of up to 64 bits, true, false, null, lists, "
            "objects",
        ) from None
    except UnicodeEncodeError as error:
        raise _not_utf8(error.object) from None


def _not_utf8(text: str) -> InvalidInput:
    return InvalidInput(
        f"{text[:200]!a} is not UTF-8, and a daemon is asked in UTF-8 alone",
        remediation="name it otherwise, or ask without a daemon (--embedded, embedded=True)",
    )


def new_key() -> str:
    return os.urandom(16).hex()


def _raw(text: str, errors: str = "strict") -> bytes:
    """Encode in UTF-8 whatever the locale says. Raises InvalidInput."""
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError:
        raise _not_utf8(text) from None


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


# --- one client for each daemon, however many sandboxes ---

_lock = threading.Lock()
_shared: dict[Address, tuple[HttpClient, int]] = {}
_resting: list[HttpClient] = []  # at most one: the last that nobody uses any more


def shared(address: Address) -> HttpClient:
    """Return the process's client for it; ``release`` it."""
    with _lock:
        client, users = _shared.get(address) or (_rested(address) or HttpClient(address), 0)
        _shared[address] = client, users + 1
        return client


def release(client: HttpClient) -> None:
    """Give it back. With its last user go its connections, but for one: who makes one sandbox after
    another would open a connection for each."""
    with _lock:
        found, users = _shared.get(client.address, (client, 0))
        if found is client and users > 1:
            _shared[client.address] = client, users - 1
            return
        if found is client:
            _shared.pop(client.address, None)
        client.pool.close(keep=1)
        before, _resting[:] = _resting[:], [client]
    for old in before:
        if old is not client:
            old.close()


def _rested(address: Address) -> HttpClient | None:
    if _resting and _resting[0].address == address:
        return _resting.pop()
    return None


@atexit.register
def close_resting() -> None:
    """Close the connection that is kept for the next sandbox; that opens one again."""
    with _lock:
        resting, _resting[:] = _resting[:], []
    for client in resting:
        client.close()
