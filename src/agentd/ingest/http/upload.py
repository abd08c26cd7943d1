"""Files and tars, up into a sandbox: the whole of a file or nothing."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from agentd.ingest.http.exchange import Exchange
from agentd.ingest.http.feed import Feed
from agentd.ingest.http.operation import fingerprint, recordable
from agentd.ingest.http.respond import answer
from agentd.model.api import Answer
from agentd.model.principal import Principal

_WHOLE = 1 << 20  # an upload up to this is part of what its Idempotency-Key stands for


async def put_file(exchange: Exchange, query: dict[str, Any]) -> None:
    service, id_ = exchange.api.service, exchange.path["id"]
    who = await exchange.authenticate()

    def write(data: Iterable[bytes]) -> Answer:
        options = {"mode": query["mode"], "parents": query["parents"]}
        return answer({"size": service.write_file(who, id_, query["path"], data, **options)})

    key = exchange.header(b"idempotency-key")
    if key is None:
        await exchange.answer(await _upload(exchange, write))
    else:
        await exchange.answer(await _put_once(exchange, who, key, write))


async def _put_once(
    exchange: Exchange, who: Principal, key: str, write: Callable[[Iterable[bytes]], Answer]
) -> Answer:
    """Of a large upload its length and its Content-Digest (RFC 9530) stand for the bytes."""
    length = exchange.length()
    if length is not None and length <= _WHOLE:
        whole = await exchange.body(_WHOLE)

        async def work() -> Answer:
            return await recordable(exchange.api.threads.uploads, write, (whole,))

        return await exchange.api.service.once(who, key, fingerprint(exchange, whole), work)

    async def stream() -> Answer:
        return await _upload(exchange, write)

    stands_for = f"{length} {exchange.header(b'content-digest') or ''}".encode()
    return await exchange.api.service.once(who, key, fingerprint(exchange, stands_for), stream)


async def put_tar(exchange: Exchange, query: dict[str, Any]) -> None:
    service, id_ = exchange.api.service, exchange.path["id"]
    who = await exchange.authenticate()

    def write(data: Iterable[bytes]) -> Answer:
        service.write_tar(who, id_, query["path"], data)
        return Answer(204)

    await exchange.answer(await _upload(exchange, write))


async def _upload(exchange: Exchange, write: Callable[[Iterable[bytes]], Answer]) -> Answer:
    feed = Feed()
    filling = asyncio.create_task(feed.fill(exchange.chunks()))
    try:
        return await recordable(exchange.api.threads.uploads, write, feed)
    finally:
        filling.cancel()
        await asyncio.wait([filling])
