"""Who is let in: a door presents what a request brought along, and gets what its caller may ask."""

import socket
from typing import Protocol

from agentd.model.credential import Credential
from agentd.model.door import DoorService


class Gatekeeper(Protocol):
    """The only one that gives out a service. Thread-safe."""

    def peer(self, connection: socket.socket) -> Credential:
        """Tell who is at the other end of a unix socket; to be asked when the connection is new.

        Raises OSError where they have gone.
        """

    def authenticate(self, credential: Credential) -> DoorService:
        """Give out the service of who asks, once a request: it counts towards their rate. May
        block, for a token's key may have to be fetched. Raises Unauthenticated, Forbidden,
        QuotaExceeded."""

    def follow(self, token: str, sandbox: str, port: int) -> DoorService:
        """Give out the service of who made a link to a port of a sandbox, for that port alone.

        Raises as ``authenticate`` does; Unauthenticated for a link that does not hold, too."""
