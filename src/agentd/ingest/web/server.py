"""uvicorn's protocols on any number of listeners, in an event loop that is there already."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from email.utils import formatdate
from functools import partial

from uvicorn.config import Config

from agentd.ingest.web.listeners import BACKLOG, Listener
from agentd.ingest.web.protocol import HttpConnection, ServerShared, WsConnection
from agentd.ingest.web.routes import Doors
from agentd.ingest.web.seats import Seats
from agentd.ingest.web.web import Web
from agentd.model.errors import AgentdError, Conflict
from agentd.model.gatekeeper import Gatekeeper

_POLL = 0.05


class Server:
    """Serves; ``start``, then ``drain`` or ``close``. The listeners are its own from then on."""

    def __init__(
        self, web: Web, gatekeeper: Gatekeeper, served: Sequence[tuple[Listener, Doors]]
    ) -> None:
        self._web = web
        self._served = list(served)
        self._configs = {doors: _config(web, doors) for _, doors in served}
        self._state = ServerShared(web.limits, gatekeeper)
        self._servers: dict[Listener, asyncio.Server] = {}
        self.trouble = ""  # why some can no longer connect
        self._ticking: asyncio.Task[None] | None = None

    @property
    def names(self) -> list[str]:
        return [listener.name for listener, _ in self._served]

    @property
    def connections(self) -> int:
        return len(self._state.connections)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tick(loop.time())
        self._ticking = loop.create_task(self._tick_forever())
        try:
            for listener, doors in self._served:
                await self._serve(listener, doors)
        except BaseException:
            await self.close()
            raise

    async def look(self) -> None:
        """Listen anew where the file of a unix socket was removed. What is connected stays."""
        troubles = []
        for place, (listener, doors) in enumerate(self._served):
            why = listener.lost()
            if not why or self._state.draining:
                continue
            try:
                if listener.again is None or "removed" not in why:
                    raise Conflict(why)
                new = listener.again()
                self._served[place] = new, doors  # before it is waited for: a drain ends it, too
                try:
                    await self._serve(new, doors)
                except BaseException:
                    self._served[place] = listener, doors
                    new.close()  # with its file, so that the next look finds it missing again
                    raise
                await self._stop(listener)
            except (AgentdError, OSError, ValueError) as error:  # the last: a drain closed it
                troubles.append(f"{why}: {error}" if str(error) != why else why)
        self.trouble = "; ".join(troubles)

    async def _stop(self, listener: Listener) -> None:
        """Stop listening on one socket."""
        if listener.socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(listener.socket)
        for _ in range(3):
            await asyncio.sleep(0)
        if server := self._servers.pop(listener, None):
            server.close()
        listener.close()

    async def _serve(self, listener: Listener, doors: Doors) -> None:
        loop = asyncio.get_running_loop()
        seats = Seats(self._web.limits.connections)
        server = await loop.create_server(
            partial(HttpConnection, self._configs[doors], self._state, doors, seats),
            sock=listener.socket,
            backlog=BACKLOG,  # or asyncio makes it 100
            ssl=listener.tls,
            ssl_handshake_timeout=self._web.limits.tls_seconds if listener.tls else None,
        )
        self._servers[listener] = server

    async def drain(self, seconds: float) -> bool:
        """Take no more; let what runs end, for so long. Whether all of it did. Then tell those who
        wait for an answer that they wait in vain, and close.

        Streams that go on for ever are ended at once: their clients have cursors to come back
        with.
        """
        self._web.drain()
        self._state.draining = True
        await self._stop_listening()
        for connection in tuple(self._state.connections):
            connection.shutdown()
        deadline = time.monotonic() + seconds
        while (self._state.tasks or self._state.connections) and time.monotonic() < deadline:
            await asyncio.sleep(_POLL)
        done = not self._state.tasks
        for connection in tuple(self._state.connections):
            connection.app_state["link"].is_shut = True
        await self._cancel()
        await self.close()
        return done

    async def _cancel(self) -> None:
        tasks = tuple(self._state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    async def close(self) -> None:
        """Cut everything. Idempotent. Threads end with the calls that they are in."""
        self._web.drain()
        self._state.draining = True
        await self._stop_listening()
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking
            self._ticking = None
        for connection in tuple(self._state.connections):
            connection.app_state["link"].shut()
        await self._cancel()
        await asyncio.sleep(0)
        self._web.close()

    async def _stop_listening(self) -> None:
        loop = asyncio.get_running_loop()
        for listener, _ in self._served:
            if listener.socket.fileno() >= 0:
                loop.remove_reader(listener.socket)
        # What was accepted just now gets its transport first: asyncio leaks the socket of one
        # whose server is closed meanwhile (base_events.Server._attach asserts).
        for _ in range(3):
            await asyncio.sleep(0)
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        for listener, _ in self._served:
            listener.close()

    async def _tick_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            self._tick(loop.time())

    def _tick(self, now: float) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        for connection in tuple(self._state.connections):
            connection.check(now)  # type: ignore[union-attr]  # all are ours


def _config(web: Web, doors: Doors) -> Config:
    config = Config(
        doors,
        http=HttpConnection,
        ws=WsConnection,
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws_max_size=web.limits.message,
        ws_ping_timeout=None,  # who has not looked for a while has not gone: the kernel knows that
        ws_per_message_deflate=False,  # costs memory, and is a way to make ours grow
        timeout_keep_alive=int(web.limits.idle) or 1,
    )
    config.load()
    return config
