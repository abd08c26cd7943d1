"""The links to ports that were given out: in memory, so that a daemon that starts again knows none.

A link's token is as good as its maker's word about one port of one sandbox, for as long as it
lasts: who made it is authenticated anew each time, so that it falls with their key.
"""

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from agentd.model.errors import Unauthenticated
from agentd.model.principal import Principal

if TYPE_CHECKING:
    from agentd.model.port import PortDomain

MOST = 16384  # at once
MOST_OF_ONE = 1024  # principal; its oldest go for new ones
_BYTES = 32


class _Given(msgspec.Struct, frozen=True):
    principal: str
    sandbox: str
    port: int
    ends: float  # of time.monotonic
    again: Callable[[], Principal]


class Links:
    """Gives out links, and knows who made each. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        #: Where browsers find ports, which the listeners know; None where they cannot.
        self.domain: PortDomain | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._given: dict[bytes, _Given] = {}  # by the digest of the token, the oldest first

    def add(
        self, who: str, sandbox: str, port: int, seconds: float, again: Callable[[], Principal]
    ) -> str:
        """Return a token; ``again`` authenticates who made it."""
        token = secrets.token_urlsafe(_BYTES)
        now = self._clock()
        with self._lock:
            self._make_room(who, now)
            self._given[_digest(token)] = _Given(who, sandbox, port, now + seconds, again)
        return token

    def maker(self, token: str, sandbox: str, port: int) -> Callable[[], Principal]:
        """Return what authenticates who made it. Raises Unauthenticated for one that is not for
        this port, or not any more."""
        with self._lock:
            found = self._given.get(_digest(token))
        if found is None or found.ends <= self._clock():
            raise Unauthenticated(
                "the link is not valid, or not any more", remediation="ask for another"
            )
        if (found.sandbox, found.port) != (sandbox, port):
            raise Unauthenticated("the link is for another port", remediation="ask for one of it")
        return found.again

    def _make_room(self, who: str, now: float) -> None:
        """Under the lock."""
        for digest in [d for d, given in self._given.items() if given.ends <= now]:
            del self._given[digest]
        held = Counter(given.principal for given in self._given.values())
        if held[who] >= MOST_OF_ONE:
            self._forget(who)
        elif len(self._given) >= MOST:
            self._forget(held.most_common(1)[0][0])

    def _forget(self, who: str) -> None:
        del self._given[next(d for d, given in self._given.items() if given.principal == who)]


def _digest(token: str) -> bytes:
    """By which it is looked up: how long that takes tells nothing of the token."""
    return sha256(token.encode()).digest()
