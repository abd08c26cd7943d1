"""What a sandbox asked, down to the client; and what it is answered from, up."""

from typing import Any

from agentd.ingest.rest.api import Exchange
from agentd.ingest.rest.download import download
from agentd.ingest.rest.operation import recordable
from agentd.model.answer import Answer
from agentd.model.cassette import MAX_CASSETTE

LINES = "application/x-ndjson"


async def get_cassette(exchange: Exchange, query: dict[str, Any]) -> None:
    """Read what it asked and was answered until now, where that is recorded."""
    service, id_ = await exchange.authenticate(), exchange.path["id"]
    cassette = await exchange.web.threads.transfers.run(service.network.cassette, id_)
    exchange.hold(len(cassette))
    headers = [(b"content-type", LINES.encode())]
    await download(exchange, lambda: iter([cassette]), 200, headers)


async def put_cassette(exchange: Exchange, query: dict[str, Any]) -> None:
    """Have it answered from this cassette, from its beginning."""
    service, id_ = await exchange.authenticate(), exchange.path["id"]
    data = await exchange.body(MAX_CASSETTE, "record less at once")

    def play() -> Answer:
        service.network.play(id_, data)
        return Answer(204)

    await exchange.answer(await exchange.web.threads.uploads.run(recordable(play)))
