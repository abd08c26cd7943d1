"""Who asks, and what they may do."""

import msgspec

from agentd.model.errors import Forbidden

# What each allows; "admin" is all of them, and every principal's sandboxes.
SCOPES = {
    "run": "run commands in sandboxes of one's own",
    "create": "create and end them",
    "files": "write their files",
    "read": "look at them: their state, output and files",
    "ports": "connect to their ports",
    "snapshot": "pause, snapshot and fork them",
    "mount": "show them folders of the host, beneath sandbox.mounts",
    "volumes": "make, show to them and remove volumes of one's own",
    "secrets": "keep secrets of one's own, for sandboxes that use them and never have them",
    "net": "give them the host's network, where sandbox.networks has it",
    "egress": "give them a network that rules restrict, within egress.allow",
    "approve": "approve what a policy wants approved",
    "keys": "make and revoke API keys of one's own",
    "admin": "everything, and everybody's sandboxes",
}
ADMIN = "admin"
# What a credential has of which nothing else is said: neither what reaches beyond sandboxes of
# one's own, nor what reaches the host.
ORDINARY = ("run", "create", "files", "read", "ports", "snapshot")


class Principal(msgspec.Struct, frozen=True):
    """A caller by name, however it was authenticated; sandboxes belong to the name.

    ``via`` is "peer", "key", "jwt", "mtls", "signed" or "local", or "sandbox" of what a program in
    one asks for by itself. ``credential`` says for the log
    which key, token or certificate proved it; it is never a secret.
    """

    name: str
    scopes: frozenset[str]
    via: str
    credential: str = ""

    def may(self, scope: str) -> bool:
        return scope in self.scopes or ADMIN in self.scopes

    def require(self, scope: str) -> None:
        """Raises Forbidden where it may not."""
        if scope not in self.scopes and ADMIN not in self.scopes:
            held = ", ".join(sorted(self.scopes)) or "none"
            raise Forbidden(
                f"{self.name} lacks the scope {scope!r}",
                cause=f"it has {held}",
                remediation=f"use a credential with the scope {scope!r}",
            )

    def owns(self, owner: str) -> bool:
        """Return whether it may see and touch what belongs to the principal named ``owner``."""
        return self.name == owner or ADMIN in self.scopes


def local(name: str) -> Principal:
    """Return the principal of an embedded pipeline: may do all that the kernel lets the user do."""
    return Principal(name, frozenset((ADMIN,)), "local")
