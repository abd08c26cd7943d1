"""All ways of proving who asks, in their order."""

from collections.abc import Sequence
from typing import Protocol

from agentd.model.credential import Credential
from agentd.model.errors import Unauthenticated
from agentd.model.principal import ORDINARY, Principal

_HINT = "send an API key as 'Authorization: Bearer agd_...', or use the unix socket"


class AuthProvider(Protocol):
    """A way to authenticate a caller. Thread-safe. Called for every request."""

    def authenticate(self, credential: Credential) -> Principal | None:
        """Tell who it is; None where the credential is of another kind.

        Raises Unauthenticated where it is of this kind and does not hold, Forbidden where it
        holds and its bearer is not let in.
        """


class ProviderChain:
    """The providers in order: those that judge a request come before those that judge a connection.

    Who presents a token wants to be who the token says. Where that fails, taking the peer's
    identity instead could only widen what the request may do, so it is refused.
    """

    def __init__(self, presented: Sequence[AuthProvider], ambient: Sequence[AuthProvider]) -> None:
        """``presented`` read the request's headers, ``ambient`` the connection it came by."""
        self._presented = tuple(presented)
        self._ambient = tuple(ambient)

    def authenticate(self, credential: Credential) -> Principal:
        """Raises Unauthenticated and Forbidden."""
        headers = [h for h in (credential.authorization, credential.api_key) if h is not None]
        if len(headers) > 1:
            raise Unauthenticated(
                "the request has two credentials",
                remediation="send Authorization or X-API-Key, not both",
            )
        providers = self._presented if headers else self._ambient
        for provider in providers:
            principal = provider.authenticate(credential)
            if principal is not None:
                return principal
        if headers:
            raise Unauthenticated("no credential of this kind is accepted here", remediation=_HINT)
        raise Unauthenticated("the request has no credential", remediation=_HINT)


class Anyone:
    """For ``--insecure`` on loopback: whoever connects may do all but rule over others."""

    _PRINCIPAL = Principal("anyone", frozenset(ORDINARY), "local")

    def authenticate(self, credential: Credential) -> Principal | None:
        # A peer on the unix socket has an identity of its own.
        return self._PRINCIPAL if credential.peer_uid is None else None
