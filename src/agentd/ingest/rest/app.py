"""The table of paths, and the door that answers them."""

from collections.abc import Sequence

from agentd._version import __version__
from agentd.ingest.rest import (
    approvals,
    audit,
    calls,
    events,
    files,
    keys,
    links,
    meta,
    network,
    processes,
    sandboxes,
    secrets,
    volumes,
)
from agentd.ingest.rest.api import JSON, Api, Exchange, Socket, encode
from agentd.ingest.rest.openapi import document
from agentd.ingest.rest.operation import Operation
from agentd.ingest.rest.port_hosts import PortHosts
from agentd.ingest.rest.sockets import attach, execute
from agentd.ingest.rest.tunnels import tunnel
from agentd.ingest.web.door import Mount
from agentd.ingest.web.routes import Handler, Routes
from agentd.ingest.web.web import Web
from agentd.model.answer import Answer
from agentd.model.gatekeeper import Gatekeeper

_SANDBOX = "/v1/sandboxes/{id}"
_PORTS = _SANDBOX + "/ports/{port}"
_DOCUMENT = "/openapi.json"
_ALWAYS = ("/healthz", "/readyz", "/metrics")  # answered while draining, too


def operations(*, metrics: bool = False) -> tuple[Operation, ...]:
    """List all but WebSockets, ports and the document itself. The hottest first: routes are
    tried in order."""
    table = (
        *processes.OPERATIONS,
        *sandboxes.OPERATIONS,
        *files.OPERATIONS,
        *network.OPERATIONS,
        *links.OPERATIONS,
        *volumes.OPERATIONS,
        *secrets.OPERATIONS,
        *keys.OPERATIONS,
        *approvals.OPERATIONS,
        *audit.OPERATIONS,
        *calls.OPERATIONS,
        *events.OPERATIONS,
        *meta.OPERATIONS,
    )
    return (*table, *meta.METRICS) if metrics else table


def mount(web: Web, gatekeeper: Gatekeeper) -> Mount:
    """Give the REST API its paths. ``/metrics`` is one of them where ``web`` has metrics."""
    api = Api(web, gatekeeper)
    table = operations(metrics=web.metrics is not None)
    by_path: dict[str, dict[str, Handler[Api]]] = {}
    for operation in table:
        by_path.setdefault(operation.path, {})[operation.method] = operation.handle
    by_path[_DOCUMENT] = {"GET": _openapi(table)}
    routes = Routes(api, fix=f"GET {_DOCUMENT} lists them")
    for path, methods in by_path.items():
        routes.add(path, methods)
    for path in (_PORTS, _PORTS + "/{path:rest}"):
        routes.add(path, {}, otherwise=_forward)
        routes.add_socket(path, _forward_websocket)
    routes.add_socket(_SANDBOX + "/tunnels/{port}", tunnel)
    routes.add_socket(_SANDBOX + "/exec", execute)
    routes.add_socket(_SANDBOX + "/processes/{proc}/attach", attach)
    hosts = PortHosts(api)
    paths = ("/v1", _DOCUMENT, *_ALWAYS)
    return Mount(api, routes, paths, always=_ALWAYS, hosted=(hosts.hosts, hosts.routes))


def _openapi(table: Sequence[Operation]) -> Handler[Api]:
    cached: list[bytes] = []

    async def handle(exchange: Exchange) -> None:
        if not cached:
            cached.append(encode(document(table, __version__)))
        await exchange.answer(Answer(200, cached[0], {"content-type": JSON}))

    return handle


# What speaks HTTP to a server inside is loaded for the first that asks for one.


async def _forward(exchange: Exchange) -> None:
    from agentd.ingest.rest import ports

    await ports.forward(exchange)


async def _forward_websocket(socket: Socket) -> None:
    from agentd.ingest.rest import ports_websocket

    await ports_websocket.forward(socket)
