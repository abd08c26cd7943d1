"""A door's table of paths, and what is answered whatever goes wrong meanwhile."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.routing import Route, Router, WebSocketRoute

from agentd.ingest.web.door import Door
from agentd.ingest.web.errors import MethodNotAllowed, internal
from agentd.ingest.web.exchange import Aborted, Answered, Disconnected, Exchange
from agentd.ingest.web.websocket import Closed, Socket
from agentd.model.answer import Answer
from agentd.model.errors import AgentdError, NotFound

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
        """``methods`` by their names, ``otherwise`` for all others; HEAD is GET without a body."""
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
            await exchange.fail(error)
        except asyncio.CancelledError:
            await exchange.abort()
        except Exception as error:
            await exchange.fail(internal(error, f"{scope['method']} {scope['path'][:200]!r}"))
        finally:
            exchange.release()

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
            await socket.fail(error)
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
