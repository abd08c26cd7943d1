"""One request and its answer, over ASGI: who asks, what proves that, its body, and what it is told;
and what a browser must not ask in one's name."""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import msgspec

from agentd.ingest.web.door import Door
from agentd.ingest.web.errors import RequestTimeout
from agentd.ingest.web.link import Link
from agentd.ingest.web.rooms import STREAM, AnswerRoom, caller
from agentd.ingest.web.web import Stoppable
from agentd.model import context
from agentd.model.answer import Answer
from agentd.model.credential import Credential
from agentd.model.door import DoorService
from agentd.model.errors import AgentdError, Forbidden, InvalidInput, TooLarge

#: These prove something to us; nobody else is ever told them.
CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"proxy-authorization"))
_READ = frozenset((b"authorization", b"x-api-key", b"origin", b"host"))


def credential_of(link: Link, headers: Iterable[tuple[bytes, bytes]]) -> Credential:
    """Read it. Raises InvalidInput for one that is there twice, Forbidden for another site's."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _READ:
            # Two servers in a row could each believe another one of them.
            if name in found:
                raise InvalidInput(
                    f"the header {name.decode()} is there twice", remediation="send it once"
                )
            found[name] = value
    authorization, api_key = found.get(b"authorization"), found.get(b"x-api-key")
    if authorization is None and api_key is None:
        is_plain_tcp = not link.is_unix and link.credential.certificate is None
        _check_site(found, is_plain_tcp=is_plain_tcp)
        return link.credential
    return msgspec.structs.replace(
        link.credential, authorization=_text(authorization), api_key=_text(api_key)
    )


def is_quick(credential: Credential) -> bool:
    """Return whether a look into memory is enough, as for a peer and for an API key, which has no
    dot.

    A token and a certificate have a signature to be verified, and a token's key may have to be
    fetched first.
    """
    if credential.authorization is not None:
        return "." not in credential.authorization
    return credential.api_key is not None or credential.certificate is None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _check_site(found: dict[bytes, bytes], *, is_plain_tcp: bool) -> None:
    """Where the connection itself is the credential, any page in a browser could use it.

    A request of another site's page names that site in Origin (Fetch standard, "Origin header");
    after DNS rebinding Origin and Host agree, but both then name the attacker's domain.
    """
    host = found.get(b"host", b"").decode("latin-1")
    origin = found.get(b"origin")
    if origin is not None and urlsplit(origin.decode("latin-1")).netloc.lower() != host.lower():
        raise Forbidden(
            "a page of another site asks this",
            cause=f"its origin is {origin.decode('latin-1')[:200]!r}",
            remediation="send an API key with the request",
        )
    if is_plain_tcp and host and not _is_address(host):
        raise Forbidden(
            f"this is not the host {host[:200]!r}",
            cause="without a credential it answers to localhost and to IP addresses only",
            remediation="send an API key, or use http://localhost",
        )


def _is_address(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


D = TypeVar("D", bound=Door)


class WebRequest(Generic[D]):
    """An ASGI request of either kind: it has a door, a connection, a path, and who asks.

    Belongs to a task of the event loop.
    """

    def __init__(self, door: D, scope: Any, receive: Any, send: Any) -> None:
        self.door = door
        self.web = door.web
        self.scope = scope
        self.link: Link = scope["state"]["link"]
        # By their names in lower case.
        self.headers: Mapping[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        if len(self.headers) < len(scope["headers"]):
            self.headers = _joined(scope["headers"])
        self.path: Mapping[str, str] = scope.get("path_params", {})  # the parameters in it
        self.quick = True  # whether it takes no time to ask who asks
        self._receive = receive
        self._send = send

    async def authenticate(self, credential: Credential | None = None) -> DoorService:
        """Ask the gatekeeper who asks: whatever this task asks of rooms from now on is theirs.

        ``credential`` is for a door that reads another one than ``credential_of`` does. Raises
        Unauthenticated and others for what proves nothing, Full where the caller has too many
        connections.
        """
        given = (
            credential_of(self.link, self.scope["headers"]) if credential is None else credential
        )
        prove = partial(self.door.gatekeeper.authenticate, given)
        return await self.prove(prove, quick=is_quick(given))

    async def prove(self, prove: Callable[[], DoorService], *, quick: bool) -> DoorService:
        """Do as ``authenticate`` by what is no credential; ``quick`` where it cannot block."""
        self.quick = quick
        # Until it is known who asks, that takes room of the connection's address alone.
        caller.set(self.link.address)
        service = prove() if quick else await self.web.threads.short.run(prove)
        name = service.caller.name
        self.link.identify(name)
        caller.set(name)
        return service


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """Several of one name are one with commas (RFC 9110, 5.2): neither is left out."""
    found: dict[str, str] = {}
    for name, value in ((n.decode("latin-1"), v.decode("latin-1")) for n, v in headers):
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


_FLUSH_LOOKS = 0.01
_FREE = 64 << 10  # bytes of a request that count for nobody


class Disconnected(InvalidInput):
    """The client went away amid its request; nobody reads the answer."""

    code = "cancelled"


class Answered(Exception):
    """To HEAD, by the head of the answer to GET: the rest is not wanted."""


class Aborted(AgentdError):
    """The answer had begun when it broke: the connection is cut, so that nobody takes it for
    whole."""


class Exchange(WebRequest[D]):
    """A request, and the one answer to it. Belongs to a task of the event loop."""

    started = False
    head_only = False
    comes_again = False  # its client sends it once more, by itself, where it gets no answer
    _kept = 0  # bytes that stay in memory until it is answered
    _holder = ""  # whose they are
    _share: AnswerRoom | None = None  # of those that all answers may have
    _is_over = False

    # -- the request's body --

    @cached_property
    def length(self) -> int | None:
        """The body's; None where it comes in chunks. The parser has made sure of the number."""
        if self.headers.get("transfer-encoding") is not None:
            return None
        return int(self.headers.get("content-length") or 0)

    async def chunks(self, *, whole: bool = False) -> AsyncIterator[bytes]:
        """Yield it as it comes; ``whole``: all of it is to come in body_seconds. Raises
        Disconnected, RequestTimeout."""
        limits, loop = self.web.limits, asyncio.get_running_loop()
        begun, size, more = loop.time(), 0, True
        while more:
            try:
                async with asyncio.timeout(limits.body_seconds):
                    message = await self._receive()
            except TimeoutError:
                raise RequestTimeout("the rest of the body did not come in time") from None
            if message["type"] == "http.disconnect":
                raise Disconnected("the client went away before the end of the body")
            more = message["more_body"]
            size += len(message["body"])
            late = loop.time() - begun - limits.body_seconds
            if more and late > 0 and (whole or size < late * limits.slowest):
                raise RequestTimeout("the body comes too slowly")
            if message["body"]:
                taken = loop.time()
                yield message["body"]
                begun += loop.time() - taken  # that a command does not read is no client's fault

    async def body(self, limit: int, fix: str = "send a smaller one") -> bytes:
        """Read the whole of it, ``limit`` bytes at most. Raises TooLarge, before anything is read
        where its length is known; ``fix`` is what to do then."""
        if (self.length or 0) > limit:
            raise _too_large(limit, fix)
        parts, size = [], 0
        async for chunk in self.chunks(whole=True):
            size += len(chunk)
            if size > limit:
                raise _too_large(limit, fix)
            self.hold(len(chunk))
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def hold(self, size: int) -> None:
        """Count so many more bytes as kept in memory until it is answered; the first of each are
        free, so that there is always room for what ends and renews. Raises Full."""
        more = max(0, self._kept + size - _FREE) - max(0, self._kept - _FREE)
        if more:
            self._holder = self._holder or caller.get()
            self.web.holds.take(self._holder, more)
        self._kept += size

    def release(self) -> None:
        """Give back the memory that it held. Idempotent."""
        if self._kept > _FREE:
            self.web.holds.give_back(self._holder, self._kept - _FREE)
        self._kept = 0
        self._is_over = True
        self._let_go()

    def _let_go(self) -> None:
        share: AnswerRoom | None = vars(self).pop("_share", None)  # at once, by whichever thread
        if share is not None:
            share.resize(0)

    @contextlib.contextmanager
    def staying(
        self, stream: Stoppable, size: int = STREAM, *, ends: bool = False
    ) -> Iterator[None]:
        """Stop the stream when the client goes, when agentd drains, unless it ``ends`` by itself,
        and at the end of the block. It counts as ``size`` bytes of answers, whatever waits for its
        client. Raises Full."""
        room = contextlib.ExitStack()
        if not ends:
            self.web.add(stream)
        self.link.on_lost(stream.stop)
        try:
            room.callback(self.web.answers.hold(caller.get(), size, lasting=True))
            yield
        finally:
            self.web.remove(stream)
            self.link.forget(stream.stop)
            stream.stop()
            room.close()

    # -- the answer --

    def build(self, make: Callable[[], Answer]) -> Answer:
        """Make the answer, in a thread. What says ``context.make_room`` waits until the caller has
        room for it; the answer itself counts as theirs until ``release``."""
        share, size = AnswerRoom(self.web.answers, caller.get()), 0
        try:
            with context.answering(share.make_room):
                made = make()
            size = len(made.body)
        finally:
            share.resize(size if size > _FREE else 0)
            if size > _FREE:
                self._share = share
                if self._is_over:  # its client has gone meanwhile
                    self._let_go()
        return made

    async def answer(self, answer: Answer) -> None:
        """Send the answer; a large one counts as the caller's until the client has taken most of
        it. What was done must be told, and counts beyond what there is room for; else it raises
        Full."""
        headers = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in answer.headers.items()]
        if answer.status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(answer.body)))
        is_large = len(answer.body) > _FREE
        if is_large:
            self._share = self._share or AnswerRoom(self.web.answers, caller.get())
            self._share.resize(len(answer.body), refuse=self.scope["method"] == "GET")
        with self.link.transport.holding(), contextlib.suppress(Answered):
            await self.start(answer.status, headers)
            await (self.write if is_large else self.end)(answer.body)
        if is_large and not self.head_only:
            await self.end()

    async def fail(self, error: AgentdError) -> None:
        """Answer with the error; where the answer has begun, cut it off."""
        if self.started:
            await self.abort()
        else:
            await self.answer(self.door.error(error))

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        message = {"type": "http.response.start", "status": status, "headers": headers}
        await self._send(message)
        if self.head_only:
            await self.end()
            raise Answered

    async def write(self, data: bytes) -> None:
        """Send a piece; wait until the client has taken most of it. Raises Disconnected."""
        if self.link.is_lost:
            raise Disconnected("the client went away amid the answer")
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def flush(self, seconds: float) -> None:
        """Wait until the kernel has what was written, the client is gone, or so long at most."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (
            self.link.transport.get_write_buffer_size()
            and not self.link.is_lost
            and loop.time() < end
        ):
            await asyncio.sleep(_FLUSH_LOOKS)

    async def abort(self) -> None:
        """Cut the connection; returns when it is."""
        gone = asyncio.Event()
        self.link.transport.abort()
        self.link.on_lost(gone.set)
        await gone.wait()


def _too_large(limit: int, fix: str) -> TooLarge:
    return TooLarge(f"the body is larger than {limit} bytes", remediation=fix)
