"""Files and tars of a sandbox, down to the client."""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from agentd.ingest.rest.api import Exchange
from agentd.ingest.web.errors import RangeNotSatisfiable
from agentd.ingest.web.exchange import Aborted

BYTES = "application/octet-stream"
TAR = "application/x-tar"
_BATCH = 256 << 10
_FLUSH_SECONDS = 10.0
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


async def get_file(exchange: Exchange, query: dict[str, Any]) -> None:
    """Read a file's bytes, or a Range of them.

    One Range (RFC 9110 §14.2) of GET; several, or a malformed one, are answered with all of it.
    """
    id_, path = exchange.path["id"], query["path"]
    files = (await exchange.authenticate()).files
    asked = None if exchange.head_only else _range(exchange.headers.get("range"))
    offset, most = asked or (0, None)
    found = await exchange.web.threads.transfers.run(files.read, id_, path, offset, most)
    size, length = found.size or 0, None
    try:
        if size:
            length = min(size - found.first, size if most is None else most)
            if asked and length <= 0:
                raise RangeNotSatisfiable(f"the file has {size} bytes")
    except BaseException:
        await exchange.web.threads.transfers.run(found.close)
        raise
    headers = _headers(size if length is None else length)
    if asked and length is not None:
        last = found.first + length - 1
        headers.append((b"content-range", b"bytes %d-%d/%d" % (found.first, last, size)))
    status = 206 if asked and size else 200
    await download(exchange, lambda: found, status, headers, length)


def _headers(length: int) -> list[tuple[bytes, bytes]]:
    """Return the headers of a file. One of no size may have content, as those of /proc do."""
    headers = [(b"content-type", BYTES.encode()), (b"accept-ranges", b"bytes")]
    return [*headers, (b"content-length", b"%d" % length)] if length else headers


def _range(header: str | None) -> tuple[int, int | None] | None:
    """Return the offset, from the end where it is negative, and how many bytes at most; None for
    all."""
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        last = int(match[2])
        return (-last, None) if last else (0, 0)
    first = int(match[1])
    if not match[2]:
        return first, None
    return None if int(match[2]) < first else (first, int(match[2]) - first + 1)


async def get_tar(exchange: Exchange, query: dict[str, Any]) -> None:
    """Read a tar of a folder or file, whose names begin with the last part of path."""
    service, id_ = await exchange.authenticate(), exchange.path["id"]
    headers = [(b"content-type", TAR.encode())]
    await download(exchange, lambda: service.files.read_tar(id_, query["path"]), 200, headers)


async def get_snapshot(exchange: Exchange, query: dict[str, Any]) -> None:
    """Read a snapshot as an archive of an OCI image."""
    service, id_ = await exchange.authenticate(), exchange.path["id"]
    headers = [(b"content-type", TAR.encode())]
    await download(exchange, lambda: service.snapshots.export(id_), 200, headers)


async def download(
    exchange: Exchange,
    read: Callable[[], Iterator[bytes]],
    status: int,
    headers: list[tuple[bytes, bytes]],
    length: int | None = None,
) -> None:
    """Send what ``read`` yields; the next piece is fetched while one is sent, so that no thread
    waits for a slow client.

    Raises Aborted where it breaks when the answer has begun.
    """
    room, pieces = exchange.web.threads.transfers, _Pieces(read)
    piece = await room.run(pieces.take)
    pieces.check()  # while nothing has been answered yet
    task: asyncio.Future[bytes] | None = None
    try:
        await exchange.start(status, headers)
        while piece:
            if length is not None:
                piece = piece[:length]
                length -= len(piece)
            task = room.run(pieces.take)
            if piece:
                await exchange.write(piece)
            if pieces.is_broken:
                await exchange.flush(_FLUSH_SECONDS)  # what was sent says what broke
            piece = await task
        if length:
            raise Aborted("the file has become shorter")
        await exchange.end()
    finally:
        if task is not None:
            # One thread at a time may use the source.
            await asyncio.wait([task])
            with contextlib.suppress(Exception):
                task.result()
        await room.run(pieces.close)


class _Pieces:
    """What is downloaded, a batch at a time. One thread at a time may use it."""

    def __init__(self, read: Callable[[], Iterator[bytes]]) -> None:
        self._read = read
        self._source: Iterator[bytes] | None = None
        self._error: Exception | None = None  # what ended the source, behind its last pieces

    @property
    def is_broken(self) -> bool:
        return self._error is not None

    def check(self) -> None:
        """Raises what ended the source, where its last pieces have been taken."""
        if self._error is not None:
            raise self._error

    def take(self) -> bytes:
        """Return the next ones. Those before an error still go out: a tar tells in them what it
        is."""
        self.check()
        if self._source is None:
            self._source = iter(self._read())
        parts: list[bytes] = []
        size = 0
        try:
            for part in self._source:
                parts.append(part)
                size += len(part)
                if size >= _BATCH:
                    break
        except Exception as error:
            if not parts:
                raise
            self._error = error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        close = getattr(self._source, "close", None)
        if close is not None:
            close()
