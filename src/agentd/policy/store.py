"""The policy in force: a bundle by its path or name, which can be loaded anew while it decides."""

import threading

from agentd.model.errors import Refused
from agentd.policy import source
from agentd.policy.build import Built, Cache
from agentd.policy.engine import SECONDS, PolicyEngine


class PinMismatch(Refused):
    code = "policy_pin"


class PolicyStore(PolicyEngine):
    """``where`` is a folder, or "permissive", "strict" or "paranoid"; ``sha256`` the digest that
    it must have ("sha256:..." or its hexadecimal digits); ``cache`` a folder to keep what was
    compiled. Raises BundleError, PinMismatch, InvalidInput. Thread-safe. To be closed."""

    def __init__(
        self,
        where: str,
        *,
        sha256: str | None = None,
        cache: str | None = None,
        workers: int | None = None,
        seconds: float = SECONDS,
        remember: bool = True,
    ) -> None:
        self._where = where
        self._sha256 = sha256
        self._lock = threading.Lock()
        self._cache = Cache(cache)
        try:
            built = self._built()
            super().__init__(built, workers=workers, seconds=seconds, remember=remember)
            try:
                self.use(built)
            except BaseException:
                super().close()
                raise
        except BaseException:
            self._cache.close()
            raise

    def reload(self, where: str | None = None, sha256: str | None = None) -> str:
        """Takes what lies there now, or at ``where`` with that pin; its digest.

        Raises what the constructor does, and then goes on with what it had.
        """
        with self._lock:
            had = self._where, self._sha256
            if where is not None:
                self._where, self._sha256 = where, sha256
            try:
                self.use(self._built())
            except BaseException:
                self._where, self._sha256 = had
                raise
            return self.digest

    def close(self) -> None:
        """Waits for the decisions that are being made; later ones are refused."""
        super().close()
        self._cache.close()

    def _built(self) -> Built:
        found = source.read(self._where)
        check_pin(found, self._sha256)
        return self._cache.get(found) or self._cache.put(found)


def check_pin(found: source.BundleSource, sha256: str | None) -> None:
    """Raises PinMismatch where it is another bundle."""
    if sha256 and found.digest != f"sha256:{sha256.removeprefix('sha256:').lower()}":
        raise PinMismatch(
            f"the policy bundle {found.where} is not the one that is expected",
            cause=f"it is {found.digest}, and policy.sha256 is {sha256}",
            remediation="look at what changed; then set policy.sha256, or take the change back",
        )
