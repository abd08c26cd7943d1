"""Signed requests as the configuration has them: who is trusted, and whether all must be signed."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from agentd.auth.signing import MEMBER, ReplayTable, SignatureMissing, SignerUnknown, verify
from agentd.daemon.config.schema import Signed
from agentd.model.principal import Principal

if TYPE_CHECKING:
    from agentd.auth import signers


class SignedRequests:
    """Verifies signatures of requests. Thread-safe."""

    def __init__(
        self, config: Signed, replay: ReplayTable, clock: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._replay = replay
        self._clock = clock
        self._signers: signers.Signers | None = None
        if config.signers is not None:
            from agentd.auth.signers import Signers  # cryptography: where nobody signs, not needed

            self._signers = Signers(config.signers)

    @property
    def problems(self) -> tuple[str, ...]:
        """List what lies among the signers and is not trusted."""
        return self._signers.problems if self._signers is not None else ()

    def acting(
        self, who: Principal, request: Mapping[str, Any], *, repeat: bool = False
    ) -> Principal:
        """Return as whom ``request`` is done: its signer, or ``who``, where it is not signed.

        A signature uses up its nonce, unless it is a ``repeat`` that gets a recorded answer: its
        nonce is used already. ``via`` is "signed" then, and ``credential`` the key's id.
        Raises Unauthenticated where it does not hold, or is missing and must not be; and what
        ``verify`` does.
        """
        config = self._config
        if MEMBER not in request:
            if config.required:
                raise SignatureMissing(
                    "the request is not signed, and must be",
                    remediation="sign it: agentd sign; auth.signed.required says so",
                )
            return who
        if self._signers is None:
            # Not taken for one without: who signed it expects to be told from who sent it.
            raise SignerUnknown(
                "this daemon trusts no signers",
                remediation="set auth.signed.signers, or send it without a signature",
            )
        return verify(
            request,
            self._signers,
            _Used() if repeat else self._replay,
            self._clock(),
            config.skew,
            max_age=config.max_age,
            audience=config.audience,
        ).acts_as()


class _Used:
    """The signature of a request that was admitted before."""

    def first_use(self, key: str, nonce: str, issued: float) -> bool:
        return True
