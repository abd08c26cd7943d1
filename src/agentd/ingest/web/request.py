"""What a request and a WebSocket have in common: a door, a connection, a path, and who asks."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from agentd.ingest.web.credential import credential_of, is_quick
from agentd.ingest.web.door import Door
from agentd.ingest.web.threads import caller
from agentd.model.credential import Credential
from agentd.model.door import DoorService

if TYPE_CHECKING:
    from agentd.ingest.web.link import Link

D = TypeVar("D", bound=Door)


class WebRequest(Generic[D]):
    """An ASGI request of either kind. Belongs to a task of the event loop."""

    def __init__(self, door: D, scope: Any, receive: Any, send: Any) -> None:
        self.door = door
        self.web = door.web
        self.scope = scope
        self.link: Link = scope["state"]["link"]
        # By their names in lower case.
        self.headers: Mapping[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        if len(self.headers) < len(scope["headers"]):
            self.headers = _joined(scope["headers"])
        self.path: Mapping[str, str] = scope.get("path_params", {})  # the parameters in it
        self.quick = True  # whether it takes no time to ask who asks
        self._receive = receive
        self._send = send

    async def authenticate(self, credential: Credential | None = None) -> DoorService:
        """Ask the gatekeeper who asks: whatever this task asks of rooms from now on is theirs.

        ``credential`` is for a door that reads another one than ``credential_of`` does. Raises
        Unauthenticated and others for what proves nothing, Full where the caller has too many
        connections.
        """
        given = (
            credential_of(self.link, self.scope["headers"]) if credential is None else credential
        )
        prove = partial(self.door.gatekeeper.authenticate, given)
        return await self.prove(prove, quick=is_quick(given))

    async def prove(self, prove: Callable[[], DoorService], *, quick: bool) -> DoorService:
        """``authenticate`` by what is no credential; ``quick`` where it cannot block."""
        self.quick = quick
        # Until it is known who asks, that takes room of the connection's address alone.
        caller.set(self.link.address)
        service = prove() if quick else await self.web.threads.short.run(prove)
        name = service.caller.name
        self.link.identify(name)
        caller.set(name)
        return service


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """Several of one name are one with commas (RFC 9110, 5.2): neither is left out."""
    found: dict[str, str] = {}
    for name, value in ((n.decode("latin-1"), v.decode("latin-1")) for n, v in headers):
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found
