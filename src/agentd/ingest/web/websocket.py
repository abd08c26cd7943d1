"""One WebSocket, over ASGI."""

from agentd.ingest.web.exchange import D, WebRequest
from agentd.ingest.web.status import status_of
from agentd.model.errors import AgentdError


class Closed(Exception):
    """By the client, by us, or with its connection."""


class Socket(WebRequest[D]):
    """A WebSocket, before and after it is accepted."""

    accepted = closed = False

    async def accept(self, subprotocol: str | None = None) -> None:
        await self._receive()  # websocket.connect
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol})
        if self.link.transport.is_closing():
            raise Closed
        self.accepted = True

    async def refuse(self, error: AgentdError) -> None:
        """Answer it by HTTP, before it was accepted."""
        answer = self.door.error(error)
        headers = [(n.encode(), v.encode("latin-1")) for n, v in answer.headers.items()]
        start = {"type": "websocket.http.response.start", "status": answer.status}
        await self._send(start | {"headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": answer.body})

    async def receive(self) -> str | bytes:
        """Return the next message. Raises Closed."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise Closed
        text = message.get("text")
        data: str | bytes = message["bytes"] if text is None else text
        return data

    async def send(self, data: bytes) -> None:
        """Raises Closed once we have closed it, as the rest does that sends."""
        await self._tell({"type": "websocket.send", "bytes": data})

    async def send_text(self, text: str) -> None:
        await self._tell({"type": "websocket.send", "text": text})

    async def send_error(self, error: AgentdError) -> None:
        """Send an error as the door words it, if it does."""
        text = self.door.message(error)
        if text is not None:
            await self.send_text(text)

    async def fail(self, error: AgentdError) -> None:
        """Tell the error and close, or refuse what was not accepted yet."""
        if self.closed or self.link.transport.is_closing():
            return
        if not self.accepted:
            await self.refuse(error)
            return
        await self.send_error(error)
        # RFC 6455 §7.4.1: 1008 policy violation, 1011 unexpected condition.
        await self.close(1008 if status_of(error) < 500 else 1011, error.message)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if self.closed:
            raise Closed
        self.closed = True
        await self._send({"type": "websocket.close", "code": code, "reason": reason[:120]})

    async def _tell(self, message: dict[str, object]) -> None:
        if self.closed:  # one task does, amid what another answers
            raise Closed
        await self._send(message)
