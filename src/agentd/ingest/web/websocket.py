"""One WebSocket, over ASGI."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from agentd.ingest.web.callers import identify
from agentd.ingest.web.door import Door
from agentd.ingest.web.link import link_of
from agentd.model.credential import Credential
from agentd.model.errors import AgentdError
from agentd.model.principal import Principal

D = TypeVar("D", bound=Door)


class Closed(Exception):
    """By the client, or with its connection."""


class Socket(Generic[D]):
    def __init__(self, door: D, scope: Any, receive: Any, send: Any) -> None:
        self.door = door
        self.web = door.web
        self.scope = scope
        self.link = link_of(scope)
        self.accepted = False
        self._receive = receive
        self._send = send

    @property
    def path(self) -> Mapping[str, str]:
        """The parameters in it."""
        parameters: Mapping[str, str] = self.scope["path_params"]
        return parameters

    async def authenticate(self, credential: Credential | None = None) -> Principal:
        """Ask the gatekeeper who asks. Raises Unauthenticated, Forbidden, Full."""
        return await identify(self.door, self.scope, credential)

    async def accept(self, subprotocol: str | None = None) -> None:
        await self._receive()  # websocket.connect
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol})
        if self.link.transport.is_closing():
            raise Closed
        self.accepted = True

    async def refuse(self, error: AgentdError) -> None:
        """Before it was accepted: an ordinary HTTP answer."""
        answer = self.door.error(error)
        headers = [(n.encode(), v.encode("latin-1")) for n, v in answer.headers.items()]
        start = {"type": "websocket.http.response.start", "status": answer.status}
        await self._send(start | {"headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": answer.body})

    async def receive(self) -> str | bytes:
        """Raises Closed."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise Closed
        text = message.get("text")
        data: str | bytes = message["bytes"] if text is None else text
        return data

    async def send(self, data: bytes) -> None:
        await self._send({"type": "websocket.send", "bytes": data})

    async def send_text(self, text: str) -> None:
        await self._send({"type": "websocket.send", "text": text})

    async def send_error(self, error: AgentdError) -> None:
        """As the door words it, if it does."""
        text = self.door.message(error)
        if text is not None:
            await self.send_text(text)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._send({"type": "websocket.close", "code": code, "reason": reason[:120]})
