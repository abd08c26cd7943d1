"""The policy in force: a bundle by its path or name, which can be loaded anew while it decides."""

import threading
from collections.abc import Callable

from agentd.model.errors import Refused
from agentd.policy import source
from agentd.policy.build import Built, Cache
from agentd.policy.engine import SECONDS, PolicyEngine
from agentd.policy.process import NoAnswer, WorkerLost, WorkerSlow


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
            found = self._read()
            built = self._cache.get(found) or self._cache.put(found)
            super().__init__(built, workers=workers, seconds=seconds, remember=remember)
            try:
                self._use(found, built)
            except BaseException:
                super().close()
                raise
        except BaseException:
            self._cache.close()
            raise

    def reload(
        self,
        where: str | None = None,
        sha256: str | None = None,
        agree: Callable[[str], object] = str,
    ) -> str:
        """Takes what lies there now, or at ``where`` with that pin, once ``agree`` returns of its
        digest; that digest.

        Raises what the constructor and ``agree`` do, and then goes on with what it had.
        """
        with self._lock:
            had = self._where, self._sha256
            if where is not None:
                self._where, self._sha256 = where, sha256
            try:
                found = self._read()
                self._use(found, self._cache.get(found) or self._cache.put(found), agree)
            except BaseException:
                self._where, self._sha256 = had
                raise
            return self.digest

    def close(self) -> None:
        """Waits for the decisions that are being made; later ones are refused."""
        super().close()
        self._cache.close()

    def _read(self) -> source.BundleSource:
        found = source.read(self._where)
        check_pin(found, self._sha256)
        return found

    def _use(
        self, found: source.BundleSource, built: Built, agree: Callable[[str], object] = str
    ) -> None:
        """What was kept and cannot be loaded, torn by a full disk say, is compiled anew."""
        try:
            self.load(built)
        except WorkerSlow:
            raise
        except (NoAnswer, WorkerLost):
            built = self._cache.put(found)
            self.load(built)
        agree(built.digest)
        self.use(built)


def check_pin(found: source.BundleSource, sha256: str | None) -> None:
    """Raises PinMismatch where it is another bundle."""
    if sha256 and found.digest != f"sha256:{sha256.removeprefix('sha256:').lower()}":
        raise PinMismatch(
            f"the policy bundle {found.where} is not the one that is expected",
            cause=f"it is {found.digest}, and policy.sha256 is {sha256}",
            remediation="look at what changed; then set policy.sha256, or take the change back",
        )
