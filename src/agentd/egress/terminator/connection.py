"""One connection that is read: TLS at both ends, and one exchange after the other."""

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL

from agentd.egress.terminator import requests
from agentd.egress.terminator.credentials import CredentialRefusal
from agentd.egress.terminator.ends import BROKEN, IDLE_SECONDS, ClientTls, ReadEnd, UpstreamTls
from agentd.egress.terminator.exchange import Judged, JudgedExchange, Over, RequestExchange
from agentd.egress.terminator.looks import HostLook, Untouched
from agentd.egress.terminator.replaying import ReplayedExchange
from agentd.egress.terminator.requests import RefusedRequest

if TYPE_CHECKING:
    from agentd.egress.terminator.metering import ConnectionMeter
    from agentd.egress.terminator.terminator import ReadSandbox, Terminator

#: Seconds until both ends have agreed on TLS; that a head takes once it has begun; that an
#: answer waits to be read.
START_SECONDS, HEAD_SECONDS = 20.0, 30.0
LINGER_SECONDS = 2.0
_LINGER_BYTES = 4 << 20
_TLS = b"\x16"
_HTTP_PORT = 80
_EMPTY_LINES = re.compile(rb"\A(?:\r\n)+")


class ReadConnection:
    """``to`` is the name and the port that were dialled; ``n`` its number at the relay."""

    def __init__(
        self,
        terminator: "Terminator",
        sandbox: "ReadSandbox",
        n: int,
        to: tuple[str, int],
        ends: Sequence[socket.socket],
    ) -> None:
        """Takes ownership of ``ends``, the program's and the host's, if there is one."""
        self.terminator, self.sandbox, self.n = terminator, sandbox, n
        self.name, self.port = to
        self._sockets = ends
        self.client: ReadEnd | None = None
        self.upstream: ReadEnd | None = None
        #: Of the program that were read and not yet taken.
        self.ahead = b""
        #: Whether it has said all it will.
        self.over = False
        self.exchange: JudgedExchange | None = None
        self.look: HostLook = sandbox.credentials.for_host(*to) or Untouched()
        self.meter: ConnectionMeter | None = None
        self._trust = ""  # why the host is not believed
        self.reason = ""

    @property
    def moved(self) -> tuple[int, int]:
        """Return the bytes that were sent and received, as they were read here."""
        ends = self.client, self.upstream
        sent, received = (0 if end is None else end.moved for end in ends)
        return sent, received

    async def run(self) -> None:
        """Run until one of the ends has had enough."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._begin()
            for end, other in ((self.client, self.upstream), (self.upstream, self.client)):
                if end is not None:
                    end.meter, end.other = self.meter, other
            while await self._serve_one():
                pass
            await self.linger()
        except Over as over:
            self.reason = self.reason or str(over)
        except TimeoutError:
            self.reason = self.reason or "nothing was said for too long"
        except BROKEN as error:
            self.reason = self.reason or _told(error)
        finally:
            self.close()

    def close(self) -> None:
        for end in (self.client, self.upstream):
            if end is not None:
                end.close(broken=bool(self.reason))
        for sock in self._sockets:
            sock.close()

    def rules_changed(self) -> None:
        """End it where they do not allow what is being asked."""
        if self.exchange is not None:
            self.exchange.rules_changed()

    async def _begin(self) -> None:
        near, *others = self._sockets
        near.setblocking(False)
        client = ReadEnd(near)
        self.client = client
        plain = self.port == _HTTP_PORT or not await self._speaks_tls(client)
        if not others:  # nobody was dialled
            if not plain:
                self.client = tls = ClientTls(near)
                await self._accept(tls)
            return
        (far,) = others
        if plain:
            self.upstream = ReadEnd(far)
            self.look = (
                self.sandbox.credentials.for_host(self.name, self.port, tls=False) or self.look
            )
            return
        tls = ClientTls(near)
        self.client = tls
        upstream = UpstreamTls(far)
        self.upstream = upstream
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._verify(upstream))
                group.create_task(self._accept(tls))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _speaks_tls(self, client: ReadEnd) -> bool:
        first = await client.peek()
        return first == _TLS

    async def _accept(self, tls: ClientTls) -> None:
        issuer = self.sandbox.issuer
        try:
            await tls.accept(self.terminator.client_context, lambda c: issuer.use(c, self.name))
        except SSL.Error as error:
            raise Over(f"the program ended TLS: {_told(error)}") from None
        except OSError as error:
            raise Over(f"the program ended TLS: {error}") from None

    async def _verify(self, upstream: UpstreamTls) -> None:
        try:
            await upstream.connect(self.terminator.upstream_context, self.name)
        except ssl.SSLCertVerificationError as error:
            self._trust = f"its certificate is not believed: {error.verify_message}"
        except OSError as error:  # of which ssl.SSLError is one
            self._trust = f"it speaks no TLS with us: {_told(error)}"

    async def _serve_one(self) -> bool:
        """Return whether another request may come."""
        before = self.moved
        raw = await self._head()
        if raw is None:
            return False
        began = asyncio.get_running_loop().time()
        method = target = rule = ""
        try:
            head = requests.read_head(raw)
            method, target = head.method, head.target
            path, rule = requests.judge(head, self.name, self.port, self.sandbox.table)
            if self._trust:
                raise RefusedRequest("untrusted_host", self._trust, status=502)
            kind = ReplayedExchange if self.upstream is None else RequestExchange
            exchange = self.exchange = kind(self, Judged(head, raw, path, rule, began, before))
            return await exchange.run()
        except (RefusedRequest, CredentialRefusal) as refused:
            alarm = isinstance(refused, CredentialRefusal) and refused.alarm
            # A host may answer before it has all of a request.
            silent = self.exchange is not None and self.exchange.answered
            told = _of_request(refused, rule)
            await self.refuse(told, method, target, alarm=alarm, silent=silent)
            return False
        finally:
            self.exchange = None

    async def _head(self) -> bytes | None:
        """Return the next request's head; None where there is none, or the host has gone."""
        assert self.client is not None  # noqa: S101  (for the type checker)
        raw = self._whole_head()
        if raw is not None:
            return raw
        if self.over:
            return None
        gone: asyncio.Future[None] | None = None
        if self.upstream is not None and not self._trust:
            gone = asyncio.ensure_future(self.upstream.gone())
        try:
            seconds = HEAD_SECONDS if self.ahead else IDLE_SECONDS
            while raw is None:
                async with asyncio.timeout(seconds):
                    data = await _first(self.client.read(), gone)
                if not data:
                    return None
                seconds = HEAD_SECONDS
                self.ahead += data
                raw = self._whole_head()
            return raw
        finally:
            if gone is not None:
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError, *BROKEN):
                    await gone

    def _whole_head(self) -> bytes | None:
        # An empty line before a request is to be ignored (RFC 9112, 2.2).
        self.ahead = _EMPTY_LINES.sub(b"", self.ahead)
        end = self.ahead.find(requests.END)
        if end >= 0:
            end += len(requests.END)
            raw, self.ahead = self.ahead[:end], self.ahead[end:]
            return raw
        if len(self.ahead) > requests.MAX_HEAD or b"\n\n" in self.ahead or b"\n\r\n" in self.ahead:
            raw, self.ahead = self.ahead, b""  # it is refused, whatever else would come
            return raw
        return None

    async def refuse(
        self,
        refused: RefusedRequest,
        method: str,
        target: str,
        *,
        alarm: bool = False,
        silent: bool = False,
    ) -> None:
        """Answer a request that goes no further, unless ``silent``: the connection is to end with
        it."""
        row: dict[str, object] = {
            "method": method,
            "path": target.partition("?")[0],
            "status": refused.status,
        }
        row |= {"rule": refused.rule, "allowed": False, "reason": refused.reason, "ended": True}
        self.terminator.records.request(self, row | {"alarm": True} if alarm else row)
        if silent:
            return
        fields, body = requests.answer(refused, self.name, self.port, method, target)
        await self.say(refused.status, fields, b"" if method == "HEAD" else body)

    async def say(self, status: int, fields: list[tuple[str, str]], body: bytes) -> None:
        assert self.client is not None  # noqa: S101  (for the type checker)
        words = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway"}
        lines = [f"HTTP/1.1 {status} {words.get(status, 'Refused')}"]
        lines += [f"{name}: {value}" for name, value in fields]
        with contextlib.suppress(TimeoutError, *BROKEN):
            async with asyncio.timeout(LINGER_SECONDS):
                await self.client.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def linger(self) -> None:
        """Let the program read what it was answered: what is closed with something unread resets,
        and takes that along."""
        assert self.client is not None  # noqa: S101  (for the type checker)
        await self.client.finish()
        most = self.client.moved + _LINGER_BYTES
        with contextlib.suppress(TimeoutError, *BROKEN):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.over and self.client.moved < most:
                    self.over = not await self.client.read()


async def _first(reading: Coroutine[Any, Any, bytes], gone: asyncio.Future[None] | None) -> bytes:
    """What is read, or nothing where the host has gone meanwhile."""
    task = asyncio.ensure_future(reading)
    try:
        await asyncio.wait({task, *([gone] if gone else ())}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else b""
    finally:
        task.cancel()


def _of_request(refused: RefusedRequest | CredentialRefusal, rule: str) -> RefusedRequest:
    """The rule that allows it is told of a secret: no other rule would have it go on."""
    if isinstance(refused, RefusedRequest):
        return refused
    code, status, fix = refused.code, refused.status, refused.remediation
    return RefusedRequest(code, refused.message, status=status, rule=rule, fix=fix)


def _told(error: BaseException) -> str:
    if isinstance(error, SSL.Error):
        found = error.args[0] if error.args else ()
        reasons = (
            [str(each[-1]) for each in found if isinstance(each, tuple)]
            if isinstance(found, list)
            else []
        )
        return ", ".join(reasons) or "it ended without a word"
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
