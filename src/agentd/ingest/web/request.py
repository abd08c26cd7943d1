"""What a request and a WebSocket have in common: a door, a connection, a path, and who asks."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from agentd.ingest.web.callers import identify
from agentd.ingest.web.door import Door
from agentd.ingest.web.link import link_of
from agentd.model.credential import Credential
from agentd.model.door import DoorService

D = TypeVar("D", bound=Door)


class WebRequest(Generic[D]):
    """An ASGI request of either kind. Belongs to a task of the event loop."""

    def __init__(self, door: D, scope: Any, receive: Any, send: Any) -> None:
        self.door = door
        self.web = door.web
        self.scope = scope
        self.link = link_of(scope)
        self._receive = receive
        self._send = send

    @property
    def path(self) -> Mapping[str, str]:
        """The parameters in it."""
        parameters: Mapping[str, str] = self.scope["path_params"]
        return parameters

    async def authenticate(self, credential: Credential | None = None) -> DoorService:
        """Ask the gatekeeper who asks. Raises Unauthenticated, Forbidden, Full."""
        return await identify(self.door, self.scope, credential)
