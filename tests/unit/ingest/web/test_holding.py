"""What is gathered leaves in one send, and whole."""

import asyncio
import os
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

    def is_closing(self) -> bool:
        return "close" in self.told

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


def test_an_answer_to_who_has_just_gone_breaks_no_later_connection() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        number = ours.fileno()
        holding = HoldingTransport(transport)
        transport.abort()  # its socket is closed when the loop has its turn
        with holding.holding():
            holding.write(b"an answer")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert ours.fileno() == -1
        theirs.close()
        with socket.socket() as later:
            if later.fileno() != number:
                os.dup2(later.fileno(), number)
            loop.add_reader(number, print)  # FileNotFoundError: watched since before it was opened
            loop.remove_reader(number)
            if later.fileno() != number:
                os.close(number)

    asyncio.run(main())
