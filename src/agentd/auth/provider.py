"""The port: one way of proving who asks."""

from typing import Protocol

from agentd.model.credential import Credential
from agentd.model.principal import Principal


class AuthProvider(Protocol):
    """Thread-safe. Called for every request."""

    def authenticate(self, credential: Credential) -> Principal | None:
        """None where the credential is of another kind.

        Raises Unauthenticated where it is of this kind and does not hold, Forbidden where it
        holds and its bearer is not let in.
        """
