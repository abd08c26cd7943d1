"""All ways of proving who asks, in their order; and those two that a connection is by itself."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from agentd.model.credential import Credential
from agentd.model.errors import Forbidden, Unauthenticated
from agentd.model.principal import ORDINARY, Principal

_HINT = "send an API key as 'Authorization: Bearer agd_...', or use the unix socket"
# Users of another user namespace that have no number in ours all read as this one.
_OVERFLOW_UID = 65534
ANY = "*"


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


class PeerRule(msgspec.Struct, frozen=True):
    """``principal`` is the name to take; without it, ``uid:N``."""

    scopes: frozenset[str]
    principal: str | None = None


class PeerProvider:
    """Says which users may do what over a unix socket, whose other end the kernel tells
    (``linux.peer``)."""

    def __init__(self, rules: Mapping[int | str, PeerRule], *, containers: bool = False) -> None:
        """``rules`` by uid; "*" is for those that no other names.

        ``containers`` also lets in processes of other namespaces. Sandboxes are such, and maybe
        with our uid: a socket that is mounted into one would be a way out of it.
        """
        self._rules = dict(rules)
        self._containers = containers

    def authenticate(self, credential: Credential) -> Principal | None:
        uid = credential.peer_uid
        if uid is None:
            return None
        if credential.foreign and not self._containers:
            raise Forbidden(
                f"process {credential.peer_pid} is in a container or a sandbox",
                remediation="use an API key there, or set containers = true in [auth]",
            )
        rule = self._rules.get(uid)
        if rule is None and 0 <= uid != _OVERFLOW_UID:
            rule = self._rules.get(ANY)
        if rule is None:
            raise Forbidden(
                f"uid {uid} is not let in",
                remediation=f"use an API key, or add [[auth.peers]] with uid = {uid}",
            )
        return Principal(rule.principal or f"uid:{uid}", rule.scopes, "peer", f"uid:{uid}")


def rules_of(pairs: Iterable[tuple[int | str, PeerRule]]) -> dict[int | str, PeerRule]:
    """The first rule for a uid holds."""
    rules: dict[int | str, PeerRule] = {}
    for uid, rule in pairs:
        rules.setdefault(uid, rule)
    return rules
