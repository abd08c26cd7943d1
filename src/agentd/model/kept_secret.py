"""Secrets that a daemon keeps, as callers set and list them; and the noun that does so."""

from typing import Protocol

import msgspec


class SecretBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``PUT /v1/secrets/{name}``: one line of ASCII, 8 to 8192 bytes."""

    value: str

    def __repr__(self) -> str:
        return "SecretBody(...)"


class SecretView(msgspec.Struct, frozen=True):
    """One that a daemon keeps. Its value is told to nobody; ``created`` and ``changed`` are seconds
    since 1970."""

    name: str
    principal: str
    created: float
    changed: float


class Secrets(Protocol):
    """Values that a daemon keeps for oneself, for sandboxes that use them and never have them
    (``SandboxBody.secrets``). Nobody reads one back, and nobody else is told of it."""

    def set(self, name: str, value: str) -> SecretView:
        """Keep a value, in place of one of that name. Raises InvalidInput, QuotaExceeded."""

    def list(self) -> tuple[SecretView, ...]:
        """List them, by name."""

    def delete(self, name: str) -> None:
        """Forget one; sandboxes that use it go on with it. Raises NotFound."""
