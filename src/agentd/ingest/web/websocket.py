"""One WebSocket, over ASGI."""

from collections.abc import Mapping
from typing import Any

from agentd.ingest.web.api import Api
from agentd.ingest.web.callers import identify
from agentd.ingest.web.link import link_of
from agentd.ingest.web.respond import encode, error_answer
from agentd.model.api import ErrorView
from agentd.model.errors import AgentdError
from agentd.model.principal import Principal


class Closed(Exception):
    """By the client, or with its connection."""


class Socket:
    def __init__(self, api: Api, scope: Any, receive: Any, send: Any) -> None:
        self.api = api
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

    async def authenticate(self) -> Principal:
        return await identify(self.api, self.scope)

    async def accept(self, subprotocol: str | None = None) -> None:
        await self._receive()  # websocket.connect
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol})
        if self.link.transport.is_closing():
            raise Closed
        self.accepted = True

    async def refuse(self, error: AgentdError) -> None:
        """Before it was accepted: an ordinary HTTP answer."""
        answer = error_answer(error)
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

    async def send_event(self, event: str, fields: Mapping[str, Any]) -> None:
        await self.send_text(encode({"event": event, **fields}).decode())

    async def send_error(self, error: AgentdError) -> None:
        view = ErrorView(error.code, error.message, error.cause, error.remediation)
        await self.send_event("error", {"error": view})

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._send({"type": "websocket.close", "code": code, "reason": reason[:120]})
