"""The table of routes, and the application that serves it."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.routing import BaseRoute, Route, WebSocketRoute

from agentd.ingest.rest import (
    approvals,
    audit,
    calls,
    files,
    keys,
    meta,
    ports,
    ports_websocket,
    processes,
    sandboxes,
)
from agentd.ingest.rest.openapi import document
from agentd.ingest.rest.operation import Operation
from agentd.ingest.rest.query import Parameter, parse
from agentd.ingest.rest.sockets import ATTACH_QUERY, attach, execute
from agentd.ingest.service import Service
from agentd.ingest.web.api import Api
from agentd.ingest.web.exchange import Aborted, Answered, Disconnected, Exchange
from agentd.ingest.web.limits import Limits
from agentd.ingest.web.respond import (
    JSON,
    Draining,
    MethodNotAllowed,
    encode,
    error_answer,
    internal,
    status_of,
)
from agentd.ingest.web.websocket import Closed, Socket
from agentd.model.api import Answer
from agentd.model.errors import AgentdError, NotFound

_SANDBOX = "/v1/sandboxes/{id}"
_PORTS = _SANDBOX + "/ports/{port}"
_ALWAYS = ("/healthz", "/readyz", "/metrics")  # answered while draining, too


Handler = Callable[[Exchange], Awaitable[None]]
SocketHandler = Callable[[Socket, dict[str, Any]], Awaitable[None]]


class _Rest(StringConvertor):
    """Starlette's "path" stops at a line feed; that is for the server inside to judge."""

    regex = r"[\s\S]*"


register_url_convertor("rest", _Rest())


def operations(*, metrics: bool = False) -> tuple[Operation, ...]:
    """All but WebSockets, ports and the document itself. The hottest first: routes are tried in
    order."""
    table = (
        *processes.OPERATIONS,
        *sandboxes.OPERATIONS,
        *files.OPERATIONS,
        *keys.OPERATIONS,
        *approvals.OPERATIONS,
        *audit.OPERATIONS,
        *calls.OPERATIONS,
        *meta.OPERATIONS,
    )
    return (*table, meta.METRICS) if metrics else table


def create_app(
    service: Service,
    *,
    limits: Limits | None = None,
    metrics: Callable[[], bytes] | None = None,
) -> Starlette:
    """To be served by ``server.Server``: it needs what that tells of connections.

    ``metrics`` gives the text of ``/metrics``, from any thread.
    """
    api = Api(service, limits or Limits(), metrics)
    table = operations(metrics=metrics is not None)
    by_path: dict[str, dict[str, Handler]] = {}
    for operation in table:
        by_path.setdefault(operation.path, {})[operation.method] = operation.handle
    by_path["/openapi.json"] = {"GET": _openapi(table, service)}
    routes: list[BaseRoute] = [
        Route(path, Resource(api, methods)) for path, methods in by_path.items()
    ]
    forward = Resource(api, {}, otherwise=ports.forward)
    routes += [
        Route(_PORTS, forward),
        Route(_PORTS + "/{path:rest}", forward),
        WebSocketRoute(_SANDBOX + "/exec", WsResource(api, execute)),
        WebSocketRoute(
            _SANDBOX + "/processes/{proc}/attach", WsResource(api, attach, ATTACH_QUERY)
        ),
        WebSocketRoute(_PORTS, WsResource(api, ports_websocket.forward, None)),
        WebSocketRoute(_PORTS + "/{path:rest}", WsResource(api, ports_websocket.forward, None)),
    ]
    for route in routes:
        _end_exactly(route)
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    app.router.default = _Nothing(api)
    app.state.api = api
    return app


def _end_exactly(route: Any) -> None:
    """Starlette's ``$`` also matches before a line feed: /metrics%0A would be /metrics, but not for
    whoever guards that path."""
    route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z")


class Resource:
    """A path: what it answers to each method, whatever goes wrong meanwhile."""

    def __init__(
        self, api: Api, methods: Mapping[str, Handler], otherwise: Handler | None = None
    ) -> None:
        self._api = api
        self._methods = methods
        self._otherwise = otherwise

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(self._api, scope, receive, send)
        try:
            handler = self._methods.get(scope["method"], self._otherwise)
            if handler is None and scope["method"] == "HEAD":
                handler = self._methods.get("GET")
                exchange.head_only = handler is not None
            if self._api.draining and scope["path"] not in _ALWAYS:
                raise _draining()
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
            await _fail(exchange, error)
        except asyncio.CancelledError:
            await exchange.abort()
        except Exception as error:
            await _fail(exchange, internal(error, f"{scope['method']} {scope['path'][:200]!r}"))

    async def _not_allowed(self, exchange: Exchange) -> None:
        also = {"HEAD"} if "GET" in self._methods else set()
        allowed = ", ".join(sorted({*self._methods, *also}))
        error = MethodNotAllowed(
            f"{exchange.scope['method']} is not for this path", remediation=f"it takes {allowed}"
        )
        answer = error_answer(error)
        headers = {**answer.headers, "allow": allowed}
        await exchange.answer(Answer(answer.status, answer.body, headers))


async def _fail(exchange: Exchange, error: AgentdError) -> None:
    if exchange.started:
        await exchange.abort()
    else:
        await exchange.answer(error_answer(error))


class WsResource:
    """``query`` None leaves it to the handler."""

    def __init__(
        self, api: Api, handler: SocketHandler, query: Sequence[Parameter] | None = ()
    ) -> None:
        self._api = api
        self._handler = handler
        self._query = query

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        socket = Socket(self._api, scope, receive, send)
        try:
            if self._api.draining:
                raise _draining()
            query = {} if self._query is None else parse(scope["query_string"], self._query)
            await self._handler(socket, query)
        except Closed:
            return
        except AgentdError as error:
            await _fail_socket(socket, error)
        except asyncio.CancelledError:
            socket.link.transport.abort()
        except Exception as error:
            if not socket.link.transport.is_closing():
                await _fail_socket(socket, internal(error, f"WS {scope['path'][:200]!r}"))


async def _fail_socket(socket: Socket, error: AgentdError) -> None:
    if socket.link.transport.is_closing():
        return
    if not socket.accepted:
        await socket.refuse(error)
        return
    await socket.send_error(error)
    # RFC 6455 §7.4.1: 1008 policy violation, 1011 unexpected condition.
    await socket.close(1008 if status_of(error) < 500 else 1011, error.message)


class _Nothing:
    """Where no route leads."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        error = NotFound("there is no such path", remediation="GET /openapi.json lists them")
        if scope["type"] == "websocket":
            await Socket(self._api, scope, receive, send).refuse(error)
        elif scope["type"] == "http":
            await Exchange(self._api, scope, receive, send).answer(error_answer(error))


def _openapi(table: Sequence[Operation], service: Service) -> Handler:
    cached: list[bytes] = []

    async def handle(exchange: Exchange) -> None:
        if not cached:
            version = service.version().get("agentd", "")
            cached.append(encode(document(table, version)))
        await exchange.answer(Answer(200, cached[0], {"content-type": JSON}))

    return handle


def _draining() -> Draining:
    return Draining(
        "the daemon is about to end", remediation="come back when it has been started again"
    )
