"""``http://8080-sbx-abcdefghijkl.localhost/...``: each port of a sandbox at a host of its own.

So a browser keeps the pages of a sandbox apart from this API, and from those of every other port.
"""

from typing import Any

from agentd.ingest.rest.api import Api, Exchange, Socket
from agentd.ingest.web.routes import Routes
from agentd.model.port import PortDomain, PortHost, hosts_of


class PortHosts:
    """``hosts`` matches the names of the hosts at which ``routes`` answers."""

    def __init__(self, api: Api) -> None:
        self._domains = {domain.name: domain for domain in api.web.domains}
        self.hosts = hosts_of(self._domains)
        self.routes = Routes(api)
        self.routes.add("/{path:rest}", {}, otherwise=self._forward)
        self.routes.add_socket("/{path:rest}", self._forward_websocket)

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
        match = self.hosts.fullmatch(given.decode("latin-1").lower())
        if match is None:
            raise TypeError("it was asked for at another host")
        host = PortHost(match["sandbox"], int(match["port"]), match["domain"])
        return host, self._domains[host.domain]
