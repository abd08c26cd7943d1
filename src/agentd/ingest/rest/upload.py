"""Files and tars, up into a sandbox: the whole of a file or nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from agentd.ingest.rest.api import Exchange, answer, as_sent
from agentd.ingest.rest.operation import fingerprint, recordable
from agentd.ingest.web.bridge import Bridge, fill
from agentd.model.answer import Answer, Authorise
from agentd.model.api import Repeat
from agentd.model.door import Repeats

_AHEAD = 1 << 20  # bytes that may wait for the thread that writes them
_WHOLE = 1 << 20  # an upload up to this is part of what its Idempotency-Key stands for


async def put_file(exchange: Exchange, query: dict[str, Any]) -> None:
    """Write a file: the whole of it or nothing."""
    service, id_ = await exchange.authenticate(), exchange.path["id"]

    def write(data: Iterable[bytes]) -> Answer:
        options = {"mode": query["mode"], "parents": query["parents"]}
        return answer({"size": service.files.write(id_, query["path"], data, **options)})

    await _put(exchange, service.repeats, query["path"], write)


async def _put(
    exchange: Exchange, repeats: Repeats, path: str, write: Callable[[Iterable[bytes]], Answer]
) -> None:
    repeat = Repeat(None, exchange.path["id"], path)
    key = exchange.headers.get("idempotency-key")
    if key is None:
        await exchange.answer(await _upload(exchange, write))
        return

    def authorise(approved: frozenset[str] | None) -> None:
        repeats.readmit(repeat, approved)

    await exchange.answer(as_sent(await _put_once(exchange, repeats, key, write, authorise)))


async def _put_once(
    exchange: Exchange,
    repeats: Repeats,
    key: str,
    write: Callable[[Iterable[bytes]], Answer],
    authorise: Authorise,
) -> Answer:
    """Of a large upload its length and its Content-Digest (RFC 9530) stand for the bytes; of one
    that says no length, its first MiB does, for the length."""
    carry = exchange.web.threads.uploads.run
    length, chunks = exchange.length, exchange.chunks()
    head = b"" if (length or 0) > _WHOLE else await _head(exchange, chunks)
    if (length or len(head)) <= _WHOLE:
        work = recordable(lambda: write((head,)))
        request = fingerprint(exchange, head)
        return await repeats.once(key, request, work, carry, authorise=authorise)
    digest = exchange.headers.get("content-digest") or ""
    stands_for = head + f"{length} {digest}".encode()
    async with _feeding(_after(head, chunks)) as (feed, filling):
        work = recordable(lambda: write(feed))
        request = fingerprint(exchange, stands_for)
        found = await repeats.once(key, request, work, carry, authorise=authorise)
        if found.replayed:
            # Most clients look for an answer only once they have sent all.
            feed.close()
            await asyncio.wait([filling])
        return found


async def _head(exchange: Exchange, chunks: AsyncIterator[bytes]) -> bytes:
    """Read all of it where it is no longer than _WHOLE; else a little more than that of it."""
    head = bytearray()
    async for chunk in chunks:
        exchange.hold(len(chunk))
        head += chunk
        if len(head) > _WHOLE:
            break
    return bytes(head)


async def _after(head: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if head:
        yield head
    async for chunk in chunks:
        yield chunk


async def put_tar(exchange: Exchange, query: dict[str, Any]) -> None:
    """Unpack a tar into a folder, or as one."""
    service, id_ = await exchange.authenticate(), exchange.path["id"]

    def write(data: Iterable[bytes]) -> Answer:
        options = {name: True for name in ("whole", "replace") if query[name]}
        service.files.write_tar(id_, query["path"], data, **options)
        return Answer(204)

    await _put(exchange, service.repeats, query["path"], write)


async def _upload(exchange: Exchange, write: Callable[[Iterable[bytes]], Answer]) -> Answer:
    async with _feeding(exchange.chunks()) as (feed, _):
        return await exchange.web.threads.uploads.run(recordable(lambda: write(feed)))


@asynccontextmanager
async def _feeding(
    chunks: AsyncIterator[bytes],
) -> AsyncIterator[tuple[Bridge[bytes], "asyncio.Task[None]"]]:
    """The request's body, as it comes, and what fills it."""
    feed: Bridge[bytes] = Bridge(_AHEAD)
    filling = asyncio.create_task(fill(feed, chunks))
    try:
        yield feed, filling
    finally:
        filling.cancel()
        await asyncio.wait([filling])
