"""Where a request goes: to which door of its listener, there to which row of its table of paths.

And what is answered whatever goes wrong meanwhile.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import combinations
from typing import Any, Generic, TypeVar

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.routing import Route, Router, WebSocketRoute

from agentd.ingest.web.door import Application, Door, Mount
from agentd.ingest.web.errors import Draining, MethodNotAllowed, ShutDown, internal
from agentd.ingest.web.exchange import Aborted, Answered, Disconnected, Exchange
from agentd.ingest.web.web import Web
from agentd.ingest.web.websocket import Closed, Socket
from agentd.model import context
from agentd.model.answer import Answer
from agentd.model.errors import AgentdError, InvalidInput, NotFound, without_frames

_TRACE = (b"traceparent", b"tracestate")
_MAX_HEADER = 512  # tracestate's own bound, W3C Trace Context §3.3.1.5


class Doors:
    """An ASGI application. Answers carry the request's id as ``x-request-id``; the log has it, too.

    A path that no door claims is answered by the first one.
    """

    def __init__(self, web: Web, mounts: Mapping[str, Mount]) -> None:
        """``mounts`` by the names of the doors. Raises InvalidInput where two claim one path."""
        for clash in _clashes(mounts):
            raise InvalidInput(clash, remediation="serve them on a [[listen]] of their own each")
        self._web = web
        self._first = next(iter(mounts.values()))
        # No claim is above another, so at most one of them fits.
        self._paths = [(path.rstrip("/"), one) for one in mounts.values() for path in one.paths]
        self._is_one = len(mounts) == 1
        self._hosts = [one.hosted for one in mounts.values() if one.hosted is not None]

    def error(self, error: AgentdError) -> Answer:
        """Write it in the first door's form: nothing tells yet which one is meant."""
        return self._first.door.error(error)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        mount = self._first if self._is_one else self._mount(scope["path"])
        host, trace = "", {}
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1")
            elif name in _TRACE and len(value) <= _MAX_HEADER:
                trace[name.decode()] = value.decode("latin-1")
        link = scope["state"]["link"]
        gone = context.Gone(lambda: link.is_shut)
        header = (b"x-request-id", context.begin(gone, trace).encode())
        started = False

        async def tell(message: Any) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        hosted = self._at_host(host) if self._hosts else None
        always = () if hosted is not None else mount.always
        link.on_lost(gone.set)
        try:
            if self._web.draining and scope["path"] not in always:
                await _refuse(mount, Draining(), scope, receive, tell)
            else:
                await (hosted or mount.application)(scope, receive, tell)
        # Of an application that is no ``Routes``.
        except (Exception, asyncio.CancelledError) as error:
            what = f"the request {scope['path'][:200]!r}"
            failure = internal(error, what) if isinstance(error, Exception) else ShutDown()
            if started:
                link.cut()
            else:
                await _refuse(mount, failure, scope, receive, tell)
        finally:
            link.forget(gone.set)

    def _at_host(self, host: str) -> Application | None:
        """Return what answers at a host, where that is none of the doors' own."""
        for hosts, application in self._hosts:
            if hosts.fullmatch(host):
                return application
        return None

    def _mount(self, path: str) -> Mount:
        for claimed, mount in self._paths:
            if _is_below(path, claimed):
                return mount
        return self._first


def _is_below(path: str, claimed: str) -> bool:
    """Return whether ``path`` is the one that is claimed, or below it; both without a slash at the
    end."""
    return path == claimed or path.startswith(claimed + "/")


def _clashes(mounts: Mapping[str, Mount]) -> Iterator[str]:
    for (one, first), (other, second) in combinations(mounts.items(), 2):
        for mine in (path.rstrip("/") for path in first.paths):
            for theirs in (path.rstrip("/") for path in second.paths):
                if _is_below(mine, theirs) or _is_below(theirs, mine):
                    path = max(mine, theirs, key=len) or "/"
                    yield f"the doors {one!r} and {other!r} both answer {path} on one listener"


async def _refuse(mount: Mount, error: AgentdError, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await Socket(mount.door, scope, receive, send).refuse(error)
    else:
        await Exchange(mount.door, scope, receive, send).answer(mount.door.error(error))


D = TypeVar("D", bound=Door)
Handler = Callable[[Exchange[D]], Awaitable[None]]
SocketHandler = Callable[[Socket[D]], Awaitable[None]]


class _Rest(StringConvertor):
    """Starlette's "path" stops at a line feed; that is for who serves the path to judge."""

    regex = r"[\s\S]*"


register_url_convertor("rest", _Rest())


class Routes(Generic[D]):
    """An ASGI application: paths are tried in the order in which they were added.

    ``/hooks/{name}`` has the parameter ``name``, which ends at a slash; ``{name:rest}`` takes all
    that follows. ``fix`` is what to do for who asks for a path that is not there.
    """

    def __init__(self, door: D, *, fix: str = "") -> None:
        self._door = door
        self._router = Router(redirect_slashes=False, default=_Nothing(door, fix))

    def add(
        self, path: str, methods: "Mapping[str, Handler[D]]", otherwise: "Handler[D] | None" = None
    ) -> None:
        """Add ``methods`` by name, ``otherwise`` for all others; HEAD is GET without a body."""
        self._append(Route(path, _Resource(self._door, methods, otherwise)))

    def add_socket(self, path: str, handler: "SocketHandler[D]") -> None:
        self._append(WebSocketRoute(path, _SocketResource(self._door, handler)))

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        return self._router(scope, receive, send)

    def _append(self, route: Any) -> None:
        # Starlette's ``$`` also matches before a line feed: /metrics%0A would be /metrics, but not
        # for whoever guards that path.
        route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z")
        self._router.routes.append(route)


class _Resource(Generic[D]):
    """A path: what it answers to each method."""

    def __init__(
        self, door: D, methods: "Mapping[str, Handler[D]]", otherwise: "Handler[D] | None"
    ) -> None:
        self._door = door
        self._methods = methods
        self._otherwise = otherwise

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(self._door, scope, receive, send)
        try:
            handler = self._methods.get(scope["method"], self._otherwise)
            if handler is None and scope["method"] == "HEAD":
                handler = self._methods.get("GET")
                exchange.head_only = handler is not None
            if handler is None:
                await self._not_allowed(exchange)
            else:
                await handler(exchange)
        except Answered:
            return
        except Disconnected:
            if exchange.started:  # else the connection has gone, or is told already
                await exchange.abort()
        except Aborted:
            await exchange.abort()
        except AgentdError as error:
            await exchange.fail(without_frames(error))
        except asyncio.CancelledError:
            await self._interrupt(exchange)
        except Exception as error:
            await exchange.fail(internal(error, f"{scope['method']} {scope['path'][:200]!r}"))
        finally:
            exchange.release()

    async def _interrupt(self, exchange: Exchange[D]) -> None:
        """Tell that the daemon ends. Who asks the next one again by itself is cut off: that answers
        what is asked, as what only looks or deletes."""
        if exchange.comes_again or exchange.scope["method"] in ("GET", "HEAD", "DELETE"):
            await exchange.abort()
        else:
            await exchange.fail(ShutDown())

    async def _not_allowed(self, exchange: Exchange[D]) -> None:
        also = {"HEAD"} if "GET" in self._methods else set()
        allowed = ", ".join(sorted({*self._methods, *also}))
        error = MethodNotAllowed(
            f"{exchange.scope['method']} is not for this path", remediation=f"it takes {allowed}"
        )
        answer = self._door.error(error)
        headers = {**answer.headers, "allow": allowed}
        await exchange.answer(Answer(answer.status, answer.body, headers))


class _SocketResource(Generic[D]):
    def __init__(self, door: D, handler: "SocketHandler[D]") -> None:
        self._door = door
        self._handler = handler

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        socket = Socket(self._door, scope, receive, send)
        try:
            await self._handler(socket)
        except Closed:
            return
        except AgentdError as error:
            await socket.fail(without_frames(error))
        except asyncio.CancelledError:
            socket.link.transport.abort()
        except Exception as error:
            if not socket.link.transport.is_closing():
                await socket.fail(internal(error, f"WS {scope['path'][:200]!r}"))


class _Nothing(Generic[D]):
    """Answers for a path that leads nowhere."""

    def __init__(self, door: D, fix: str) -> None:
        self._door = door
        self._fix = fix

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        error = NotFound("there is no such path", remediation=self._fix)
        if scope["type"] == "websocket":
            await Socket(self._door, scope, receive, send).refuse(error)
        else:
            await Exchange(self._door, scope, receive, send).fail(error)
