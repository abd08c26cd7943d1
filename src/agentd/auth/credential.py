"""Parts of a credential."""

from agentd.model.credential import Credential


def bearer(credential: Credential) -> str | None:
    """Return the token of ``Authorization: Bearer TOKEN`` (RFC 6750 §2.1), or None."""
    scheme, space, token = (credential.authorization or "").partition(" ")
    if not space or scheme.lower() != "bearer":
        return None
    return token.strip() or None
