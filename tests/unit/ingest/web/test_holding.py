"""What is gathered leaves in one send, and whole."""

import asyncio
import selectors
import socket
from typing import Any

from agentd.ingest.web.link import HoldingTransport


class Recorder:
    """What a transport was told, in its order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def writelines(self, pieces: list[bytes]) -> None:
        self.told.append(pieces)

    def close(self) -> None:
        self.told.append("close")


def test_what_is_held_leaves_at_once() -> None:
    recorder = Recorder()
    transport = HoldingTransport(recorder)  # type: ignore[arg-type]
    with transport.holding():
        transport.write(b"head ")
        transport.write(b"body")
        assert not recorder.told
    transport.write(b"next")
    assert recorder.told == [[b"head ", b"body"], b"next"]


def test_closed_amid_it_nothing_is_lost() -> None:
    recorder = Recorder()
    transport = HoldingTransport(recorder)  # type: ignore[arg-type]
    with transport.holding():
        transport.write(b"last")
        transport.close()
    assert recorder.told == [[b"last"], "close"]


def test_an_empty_piece_leaves_nothing_to_be_sent() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        try:
            holding = HoldingTransport(transport)
            with holding.holding():
                holding.write(b"head")
                holding.write(b"")
            assert theirs.recv(100) == b"head"
            key = loop._selector.get_key(ours)  # type: ignore[attr-defined]
            assert not key.events & selectors.EVENT_WRITE
        finally:
            transport.abort()
            theirs.close()
            await asyncio.sleep(0)

    asyncio.run(main())
