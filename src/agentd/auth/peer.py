"""Which users may do what over a unix socket, whose other end the kernel tells (``linux.peer``)."""

from collections.abc import Iterable, Mapping

import msgspec

from agentd.model.credential import Credential
from agentd.model.errors import Forbidden
from agentd.model.principal import Principal

# Users of another user namespace that have no number in ours all read as this one.
_OVERFLOW_UID = 65534
ANY = "*"


class PeerRule(msgspec.Struct, frozen=True):
    """``principal`` is the name to take; without it, ``uid:N``."""

    scopes: frozenset[str]
    principal: str | None = None


class PeerProvider:
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
