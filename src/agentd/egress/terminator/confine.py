"""What the terminator gives up: as the relay, and no socket can be made either."""

from agentd.egress.relay import confine as relay
from agentd.egress.relay.confine import CHECKS as RELAYS_CHECKS

_NOT_CALLED = frozenset(["accept4", "connect", "pipe2", "socket", "splice"])
#: Event loop, sockets that others made, and what CPython and OpenSSL call for memory and locks.
CALLS = " ".join(name for name in relay.CALLS.split() if name not in _NOT_CALLED)
CHECKS = tuple(rule for rule in RELAYS_CHECKS if rule.names not in _NOT_CALLED)


def confine(user: int | None) -> list[str]:
    """Confine it as the relay; raises as that does."""
    return relay.confine(user, CALLS, CHECKS)
