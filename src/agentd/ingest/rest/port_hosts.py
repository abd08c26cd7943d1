"""``http://8080-sbx-abcdefghijkl.localhost/...``: each port of a sandbox at a host of its own.

So a browser keeps the pages of a sandbox apart from this API, and from those of every other port.
"""

from typing import Any

from agentd.ingest.rest.api import Api, Exchange, Socket
from agentd.ingest.web.door import Application
from agentd.ingest.web.routes import Routes
from agentd.model.port import PortDomain, PortHost, host_of


class PortHosts:
    def __init__(self, api: Api) -> None:
        self._domains = {domain.name: domain for domain in api.web.domains}
        self._routes = Routes(api)
        self._routes.add("/{path:rest}", {}, otherwise=self._forward)
        self._routes.add_socket("/{path:rest}", self._forward_websocket)

    def application(self, host: str) -> Application | None:
        """Return what answers at a host, None where it is none of a port."""
        found = host_of(host)
        return None if found is None or found.domain not in self._domains else self._routes

    # What speaks HTTP to a server inside is loaded for the first that asks for one.

    async def _forward(self, exchange: Exchange) -> None:
        from agentd.ingest.rest import hosted

        host, domain = self._asked(exchange.scope)
        await hosted.forward(exchange, host, domain)

    async def _forward_websocket(self, socket: Socket) -> None:
        from agentd.ingest.rest import hosted

        host, domain = self._asked(socket.scope)
        await hosted.forward_websocket(socket, host, domain)

    def _asked(self, scope: Any) -> tuple[PortHost, PortDomain]:
        given = next(value for name, value in scope["headers"] if name == b"host")
        host = host_of(given.decode("latin-1"))
        if host is None:
            raise TypeError("it was asked for at another host")
        return host, self._domains[host.domain]
