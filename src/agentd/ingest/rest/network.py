"""What a sandbox may reach, and what it did; what it asked, down to the client, and what it is
answered from, up."""

from typing import Any

from agentd.ingest.rest.api import Exchange
from agentd.ingest.rest.download import BYTES, download
from agentd.ingest.rest.operation import Arguments, OperationTable, Parameter, recordable
from agentd.model.answer import Answer
from agentd.model.cassette import MAX_CASSETTE
from agentd.model.network import ConnectionPage, NetworkBody, NetworkView
from agentd.model.service import Service

OPERATIONS = OperationTable()
_NETWORK = "/v1/sandboxes/{id}/network"
_CASSETTE = _NETWORK + "/cassette"
_LINES = "application/x-ndjson"
_AFTER = (Parameter("after", int, 0, help="next of the page before"),)


@OPERATIONS.row("GET", _NETWORK, "read")
def _get(service: Service, a: Arguments) -> NetworkView:
    """Show its network, and the rules that hold."""
    return service.network.get(a.id)


@OPERATIONS.row("PUT", _NETWORK, "egress", body=NetworkBody, waits=True)
def _set(service: Service, a: Arguments) -> NetworkView:
    """Let other rules hold from now on."""
    return service.network.set(a.id, a.body.net)


@OPERATIONS.row("GET", _CASSETTE, "read", answer=_LINES)
async def _get_cassette(exchange: Exchange, query: dict[str, Any]) -> None:
    """Read what it asked and was answered until now, where that is recorded."""
    service, id_ = await exchange.authenticate(), exchange.path["id"]
    cassette = await exchange.web.threads.transfers.run(service.network.cassette, id_)
    exchange.hold(len(cassette))
    headers = [(b"content-type", _LINES.encode())]
    await download(exchange, lambda: iter([cassette]), 200, headers)


@OPERATIONS.row("PUT", _CASSETTE, "create", body=BYTES, status=204)
async def _put_cassette(exchange: Exchange, query: dict[str, Any]) -> None:
    """Have it answered from this cassette, from its beginning."""
    service, id_ = await exchange.authenticate(), exchange.path["id"]
    data = await exchange.body(MAX_CASSETTE, "record less at once")

    def play() -> Answer:
        service.network.play(id_, data)
        return Answer(204)

    await exchange.answer(await exchange.web.threads.uploads.run(recordable(play)))


@OPERATIONS.row("GET", _NETWORK + "/connections", "read", query=_AFTER, waits=True)
def _connections(service: Service, a: Arguments) -> ConnectionPage:
    """Tell what it connected to, and what it was refused."""
    return service.network.connections(a.id, a.query["after"])
