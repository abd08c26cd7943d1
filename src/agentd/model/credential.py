"""What a request brings along to prove who asks."""

import msgspec


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """All of it is as the transport saw it; nothing here has been believed yet.

    ``certificate`` is the client's, in DER, and only where the TLS layer verified its chain
    against the configured CA and the client proved that it holds the key. ``foreign`` marks a
    peer in another user or pid namespace than ours: a container, or one of our own sandboxes.
    """

    peer_uid: int | None = None
    peer_pid: int | None = None
    foreign: bool = False
    authorization: str | None = None  # the header's value
    api_key: str | None = None  # of X-API-Key
    certificate: bytes | None = None

    @property
    def bearer(self) -> str | None:
        """The token of ``Authorization: Bearer TOKEN`` (RFC 6750 §2.1), or None."""
        scheme, space, token = (self.authorization or "").partition(" ")
        if not space or scheme.lower() != "bearer":
            return None
        return token.strip() or None

    def __repr__(self) -> str:
        """Leave out the secrets: this ends up in logs and tracebacks."""
        present = [
            name for name in ("authorization", "api_key", "certificate") if getattr(self, name)
        ]
        return f"Credential(peer_uid={self.peer_uid}, peer_pid={self.peer_pid}, with={present})"
